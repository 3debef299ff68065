"""A budget on FLOPs, alone and beside one on parameters: met, with bounds that hold against all plans there are."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import geocolor
from geocolor.budget import Limits, allocate
from geocolor.flops import plan_flops, plan_flops_dense
from geocolor.graph import CostGraph
from geocolor.pipeline import Pipeline
from geocolor.planning import budgeted, limits
from geocolor.plans import PlannedClass, class_parameters, read_plan, shapes_of, write_plan
from geocolor.preflight import check_settings
from geocolor.rate_distortion import Option
from geocolor.report import plan_report
from geocolor.settings import Settings
from solvers import Coloring
from tests.conftest import Network


def cost(plan: geocolor.Plan) -> float:
    """Fraction of the FLOPs."""
    return sum(plan_flops(plan).values()) / plan_flops_dense(plan)


@pytest.mark.parametrize(
    ("keep", "max_flops"), [(None, 0.8), (None, 0.4), (0.5, 0.5), (0.4, 0.5), (0.5, 0.6), (0.35, 0.9)]
)
def test_a_plan_meets_both_budgets_and_loses_to_no_plan_without_sharing(
    graph: CostGraph, keep: float | None, max_flops: float
) -> None:
    plan = geocolor.plan(graph, keep, max_flops=max_flops)
    assert plan.kept <= (keep or 1)
    assert cost(plan) <= max_flops
    assert plan.max_flops == max_flops
    assert plan.lower_bound <= plan.objective
    assert plan.objective_without_sharing is None or plan.objective <= plan.objective_without_sharing
    private = geocolor.plan(graph, keep, max_flops=max_flops, solver="private")
    assert plan.objective <= private.objective
    assert cost(private) <= max_flops


def test_a_budget_on_flops_that_is_none_changes_nothing(graph: CostGraph) -> None:
    free, bounded = geocolor.plan(graph, 0.5), geocolor.plan(graph, 0.5, max_flops=1.0)
    assert cost(free) < 1
    assert bounded.objective == free.objective
    assert bounded.coloring() == free.coloring()


def test_flops_cost_what_sharing_across_inputs_hides(graph: CostGraph) -> None:
    """At equal parameters a plan bound in FLOPs does more damage, and takes fewer of them."""
    free = geocolor.plan(graph, 0.35)
    assert cost(free) > free.kept
    limit = (free.kept + cost(free)) / 2
    bounded = geocolor.plan(graph, 0.35, max_flops=limit)
    assert bounded.objective >= free.objective
    assert cost(bounded) <= limit


def test_operations_of_an_option_are_the_flops_of_its_plan(graph: CostGraph) -> None:
    layers = list(graph.layers)
    for group in [(0,), (0, 1), (0, 3), (0, 1, 3, 4), (2, 5), (0, 1, 2)]:
        options = graph.options(group)
        rest = [i for i in range(len(layers)) if i not in group]
        for option in (options[i] for i in range(0, len(options), 3)):
            whole = [Option("dense", None, None, layers[i].parameters, 0.0, layers[i].parameters) for i in rest]
            made = geocolor.planning.fixed_plan(graph, [group, *((i,) for i in rest)], [option, *whole], 1.0, "by hand")
            left = sum(layers[i].parameters for i in rest)
            assert sum(plan_flops(made).values()) == pytest.approx(2 * (option.operations + left))
            assert option.operations >= option.parameters


def three_layers() -> CostGraph:
    torch.manual_seed(3)
    model = Network(width=5)
    batches = [(torch.randn(16, 6, 5), torch.randint(5, (16,))) for _ in range(4)]
    layers = [
        layer for layer in geocolor.find_layers(model) if layer.name in ("blocks.0.q", "blocks.0.k", "blocks.1.o")
    ]
    return geocolor.price(model, geocolor.measure(model, batches, layers=layers))


TINY: list[CostGraph] = []
EVERYTHING: list[tuple[int, int, float]] = []


def everything(graph: CostGraph) -> list[tuple[int, int, float]]:
    """Parameters, operations and damage of every plan: all partitions, kinds and ranks, each counted on its own."""
    found: list[tuple[int, int, float]] = []
    names, shapes = [layer.name for layer in graph.layers], shapes_of(graph.layers)
    held: dict[tuple[int, ...], list[tuple[int, int, float]]] = {}
    for coloring in {Coloring(colors) for colors in itertools.product(range(3), repeat=3)}:
        classes = coloring.classes()
        for group in classes:
            if group not in held:
                held[group] = list(ways(graph, group, names, shapes))
        for chosen in itertools.product(*(held[group] for group in classes)):
            parameters, operations, damage = (sum(column) for column in zip(*chosen, strict=True))
            found.append((int(parameters), int(operations), damage))
    return found


def ways(graph: CostGraph, group: tuple[int, ...], names: list[str], shapes: Any) -> Any:
    width = 5
    inputs = len({graph.curvature.inputs[names[i]] for i in group})
    if len(group) == 1:
        yield 25, 25, 0.0
    for kind, left, right in [
        *(("in", r, None) for r in range(1, width)),
        *(("out", r, None) for r in range(1, width)),
        *(("both", r, s) for r in range(1, width) for s in range(1, width)),
    ]:
        option = Option(kind, left, right, 0, 0.0, 0)  # type: ignore[arg-type]
        members = tuple(names[i] for i in group)
        damage = graph.damage(group, option)
        cls = PlannedClass(kind=kind, layers=members, rank=left, right_rank=right, parameters=0, damage=damage)
        g, n = len(group), width
        operations = {
            "in": (inputs * n + g * n) * left,
            "out": 2 * g * n * left,
            "both": g * (n * left + left * (right or 0)) + inputs * n * (right or 0),
        }[kind]
        yield class_parameters(cls, shapes), operations, math.fsum(damage.values())


@given(keep=st.one_of(st.none(), st.floats(0.3, 1.0)), max_flops=st.floats(0.3, 1.0))
@settings(max_examples=12, deadline=None)
def test_bounds_hold_and_proven_plans_are_the_best_of_all(keep: float | None, max_flops: float) -> None:
    if not TINY:
        TINY.append(three_layers())
        EVERYTHING.extend(everything(TINY[0]))
    graph = TINY[0]
    both = limits(graph, keep, max_flops)
    allowed = [damage for parameters, operations, damage in EVERYTHING if both.hold(parameters, operations)]
    if not allowed:
        with pytest.raises(ValueError, match="raise"):
            geocolor.plan(graph, keep, max_flops=max_flops)
        return
    try:
        plan = geocolor.plan(graph, keep, max_flops=max_flops, solver="exhaustive")
    except ValueError:
        assert len(allowed) < 10, "only where next to nothing is left"
        return
    best = min(allowed)
    assert plan.lower_bound <= best * (1 + 1e-9) + 1e-12
    assert best <= plan.objective * (1 + 1e-9) + 1e-12
    assert both.hold(plan.parameters, sum(plan_flops(plan).values()) // 2)


@given(st.floats(0.3, 1.0), st.floats(0.3, 1.0))
@settings(max_examples=8, deadline=None)
def test_allocations_of_one_coloring_are_within_their_limits(keep: float, max_flops: float) -> None:
    if not TINY:
        TINY.append(three_layers())
        EVERYTHING.extend(everything(TINY[0]))
    graph, both = budgeted(TINY[0], keep, max_flops), limits(TINY[0], keep, max_flops)
    try:
        found = allocate(graph, [(0, 1), (2,)], both)
    except ValueError:
        return
    assert found.within(both)
    assert found.operations == sum(option.operations for option in found.options)


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        ({"max_flops": 0.0}, "max_flops is the fraction of FLOPs that remain, above 0 and at most 1; got 0"),
        ({"max_flops": 1.5}, "at most 1; got 1.5"),
        ({"max_flops": float("nan")}, "got nan"),
        ({"max_flops": 0.05}, "max_flops=0"),
        ({"keep": 0.05, "max_flops": 0.9}, "cannot be reached"),
    ],
)
def test_budgets_that_cannot_be_met_get_a_sentence(graph: CostGraph, budget: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        geocolor.plan(graph, **budget)  # type: ignore[arg-type]


def test_a_plan_keeps_its_budget_on_disk(graph: CostGraph, tmp_path: Path) -> None:
    plan = geocolor.plan(graph, max_flops=0.6)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan


def test_a_model_compressed_by_flops_alone_takes_no_more_of_them(
    network: nn.Module, curvature: geocolor.Curvature, graph: CostGraph
) -> None:
    plan = geocolor.plan(graph, max_flops=0.5)
    smaller = geocolor.apply(network, plan, curvature)
    dense = sum(
        2 * plan.layers[cls.layers[0]].m * plan.layers[cls.layers[0]].n for cls in plan.classes if cls.kind == "dense"
    )
    assert sum(geocolor.flops.flops(smaller).values()) + dense <= 0.5 * plan_flops_dense(plan)


def test_of_layers_that_see_more_positions_less_is_left() -> None:
    """In a convolutional network the budget is on what an image costs, as torch counts it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    ).eval()
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(5, (16,))) for _ in range(4)]
    curvature = geocolor.measure(model, batches)
    graph = geocolor.price(model, curvature)
    assert graph.loads["2"] == pytest.approx(4 * graph.loads["6"])
    assert sum(graph.loads[layer.name] * layer.parameters for layer in graph.layers) == pytest.approx(
        graph.parameters_dense
    )
    image = torch.randn(1, 3, 8, 8)

    def counted(of: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter:
            of(image)
        return int(counter.get_total_flops())

    in_scope = sum(2 * layer.parameters * curvature.positions[layer.name] / 64 for layer in graph.layers)
    for keep, max_flops in ((None, 0.6), (0.7, 0.65), (0.9, 0.5)):
        plan = geocolor.plan(graph, keep, max_flops=max_flops, solver="greedy")
        smaller = geocolor.apply(model, plan, curvature)
        saved = counted(model) - counted(smaller)
        assert saved >= (1 - max_flops) * in_scope * (1 - 1e-6)
        assert saved / in_scope == pytest.approx(1 - cost(plan), abs=1e-3)
        assert plan.lower_bound <= plan.objective
        assert plan.kept <= (keep or 1)


def test_a_report_counts_parameters_bytes_and_flops(graph: CostGraph) -> None:
    report = plan_report(geocolor.plan(graph, 0.8, max_flops=0.6))
    assert report["bytes"] == 4 * report["parameters"]
    assert report["bytes_dense"] == 4 * report["parameters_dense"]
    assert report["flops_per_position"] <= 0.6 * report["flops_per_position_dense"]
    assert (report["keep"], report["max_flops"]) == (0.8, 0.6)


def test_settings_on_flops_are_checked_before_anything_runs() -> None:
    check_settings(Settings(max_flops=0.5))
    for wrong, sentence in [
        (Settings(max_flops=0.0), "--max-flops is the fraction of FLOPs that remain, above 0 and at most 1; got 0"),
        (Settings(), "Pass --keep .*--max-flops"),
        (Settings(keep=0.5, max_flops=0.5, preset="svd"), "--max-flops belongs to the search"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            check_settings(wrong)


def test_a_calibrated_run_meets_a_budget_on_flops(network: nn.Module, batches: list[Any]) -> None:
    prepared = Pipeline(network, batches, Settings(max_flops=0.6, time_limit=3, solver="greedy")).prepared()
    assert cost(prepared.plan) <= 0.6
    assert prepared.plan.keep is None


def test_limits_weigh_their_sizes() -> None:
    assert Limits(10).size(0.0) == 10
    assert Limits(10, 20).size(0.25) == 12.5
    assert Limits(10, 20).hold(10, 20)
    assert not Limits(10, 20).hold(10, 21)
