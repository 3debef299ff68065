"""The main job in Python: which of the plans made is taken, and by what."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.divergence import divergence_of, few
from geocolor.graph import CostGraph
from geocolor.losses import Classification
from geocolor.pipeline import SPREAD, Pipeline, Prepared
from geocolor.planning import fixed_plan
from geocolor.ranks import rounded, uniform
from geocolor.refinement import Refinement, RefineSettings
from geocolor.settings import AGGREGATES, Settings
from geocolor.stand_ins import planned
from geocolor.verification import Verdict, verified

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def graphs(network: nn.Module, curvature: geocolor.Curvature) -> CostGraph:
    return geocolor.price(network, curvature, aggregate=AGGREGATES)


def measured(network: nn.Module, plan: geocolor.Plan, graph: CostGraph, batches: Batches) -> float:
    chosen = few(batches, Classification(), network, 512, 16384)
    return divergence_of(network, geocolor.apply(network, plan, graph.curvature), chosen, Classification())


def test_powers_priced_together_are_those_priced_alone(
    network: nn.Module, curvature: geocolor.Curvature, graphs: CostGraph
) -> None:
    for power in AGGREGATES:
        alone = geocolor.price(network, curvature, aggregate=power)
        for group in ((0,), (0, 1), (0, 3), (2, 5), (0, 1, 3, 4)):
            one, other = graphs.under(power).hull(group), alone.hull(group)
            assert one.parameters.tolist() == other.parameters.tolist()
            assert one.damage.tolist() == pytest.approx(other.damage.tolist())
            assert one.kind.tolist() == other.kind.tolist()
    with pytest.raises(ValueError, match="none of 1, 2"):
        graphs.under(4.0)


def test_bases_are_computed_once_for_all_powers(graphs: CostGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.hull((0, 1))
    monkeypatch.setattr("geocolor.graph.options", lambda *_: pytest.fail("priced again"))
    for power in AGGREGATES:
        graphs.under(power).hull((1, 0))


def test_what_was_tried_is_neither_priced_nor_factorized_again(
    network: nn.Module, graphs: CostGraph, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [geocolor.plan(graphs.under(power), keep=0.5, solver="greedy") for power in AGGREGATES]
    verdict = verified(network, graphs, plans, batches)
    fresh = geocolor.apply(network, verdict.plan, graphs.curvature)
    monkeypatch.setattr("geocolor.carry_out.factorize", lambda *_: pytest.fail("factorized again"))
    known = geocolor.apply(network, verdict.plan, graphs.curvature, metrics=graphs.metrics, known=graphs.factors)
    planned(graphs, verdict.plan)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(known.state_dict()[name], value)
    assert graphs.factors is not None
    factored = {cls.layers for cls in verdict.plan.classes if cls.kind != "dense"}
    assert {layers for _, layers, *_ in graphs.factors} == factored
    shared = graphs.options((0, 1))
    monkeypatch.setattr("geocolor.graph.options", lambda *_: pytest.fail("priced again"))
    assert graphs.options((1, 0)) is shared


def test_the_plan_that_does_least_damage_on_calibration_data_is_taken(
    network: nn.Module, graphs: CostGraph, batches: Batches
) -> None:
    plans = [geocolor.plan(graphs.under(power), keep=0.5, solver="greedy") for power in AGGREGATES]
    taken = verified(network, graphs, plans, batches).plan
    private = [geocolor.plan(graphs.under(power), keep=0.5, solver="private") for power in AGGREGATES]
    damages = [measured(network, plan, graphs, batches) for plan in (*plans, *private)]
    assert measured(network, taken, graphs, batches) == pytest.approx(min(damages))
    assert taken.predicted_damage == pytest.approx(min(damages))


def test_sharing_that_does_more_damage_than_none_is_priced_anew_and_dropped_with_a_warning(
    network: nn.Module, graphs: CostGraph, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, private = forced(graphs), geocolor.plan(graphs, keep=0.5, solver="private")
    assert measured(network, shared, graphs, batches) > measured(network, private, graphs, batches)
    verdict = verified(network, graphs, [shared], batches)
    assert verdict.lost
    assert all(len(cls.layers) == 1 for cls in verdict.plan.classes)

    rounds: list[int] = []

    def one_color(_: Pipeline, graph: CostGraph) -> list[geocolor.Plan]:
        rounds.append(graph.curvature.rounds)
        return [forced(graph)]

    monkeypatch.setattr(Pipeline, "_planned", one_color)
    with pytest.warns(UserWarning, match="sharing was predicted to do less damage"):
        found = Pipeline(network, batches, Settings(keep=0.5)).searched(graphs)
    assert rounds == [0, 1, 2, 3]
    assert measured(network, found.plan, found.graph, batches) <= verdict.damage * (1 + 1e-6)


@pytest.mark.parametrize(("damages", "after"), [([1, 0.5, 0.497, 0.2], 2), ([1, 1.1, 0.2, 0.1], 1), ([0, 0, 0, 0], 1)])
def test_rounds_end_when_one_gains_next_to_nothing(
    network: nn.Module,
    graphs: CostGraph,
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
    damages: list[float],
    after: int,
) -> None:
    private, left = geocolor.plan(graphs, keep=0.5, solver="private"), iter(damages)
    monkeypatch.setattr(Pipeline, "_planned", lambda *_: [private])
    monkeypatch.setattr("geocolor.pipeline.verified", lambda *_, **__: Verdict(private, d := next(left), d))
    Pipeline(network, batches, Settings(keep=0.5, rounds=3)).searched(graphs)
    assert list(left) == damages[after + 1 :]


@pytest.mark.parametrize(("factor", "searches"), [(1.0, 1), (1.05, 1), (4.0, 2)])
def test_no_coloring_is_searched_after_a_look_that_hardly_moves_prices(
    network: nn.Module,
    graphs: CostGraph,
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    searches: int,
) -> None:
    private, planned = geocolor.plan(graphs, keep=0.5, solver="private"), list[int]()
    uneven = {layer.name: 3.0 * factor ** (i % 2) for i, layer in enumerate(graphs.layers)}  # 3 for all moves no plan

    def one_more(_: Pipeline, graph: CostGraph) -> list[geocolor.Plan]:
        planned.append(graph.curvature.rounds)
        return [private]

    monkeypatch.setattr(Pipeline, "_planned", one_more)
    monkeypatch.setattr("geocolor.pipeline.seen_from", lambda _, __, curvature, *___, **____: curvature.scaled(uneven))
    Pipeline(network, batches, Settings(keep=0.5, rounds=1, solver="private")).searched(graphs)
    assert len(planned) == searches


def test_looks_from_plans_never_make_the_plan_worse(network: nn.Module, graphs: CostGraph, batches: Batches) -> None:
    plans = [geocolor.plan(graphs.under(power), keep=0.4, solver="greedy") for power in AGGREGATES]
    first = verified(network, graphs, plans, batches).plan
    damages = [measured(network, first, graphs, batches)]
    for rounds in (1, 3):
        found = Pipeline(network, batches, Settings(keep=0.4, solver="greedy", rounds=rounds)).searched(graphs)
        damages.append(measured(network, found.plan, found.graph, batches))
    assert damages[0] >= damages[1] >= damages[2]


def forced(graph: CostGraph) -> geocolor.Plan:
    """All layers of a side in one class."""
    groups = [tuple(range(6))]
    options = rounded(graph, groups, uniform(graph, groups, 0.5), 0.5)
    return fixed_plan(graph, groups, options, 0.5, "forced")


def test_settings_without_an_aggregate_try_several(network: nn.Module, batches: Batches) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = Pipeline(network, batches, Settings(keep=0.5, solver="greedy")).prepared()
        first = Pipeline(network, batches, Settings(keep=0.5, solver="greedy", aggregate=1.0)).prepared()
    assert chosen.plan.aggregate in AGGREGATES
    assert first.plan.aggregate == 1.0
    assert chosen.graph.aggregate == chosen.plan.aggregate
    with torch.no_grad():
        geocolor.apply(network, chosen.plan, chosen.curvature)(batches[0][0])


def test_with_refinement_the_plan_is_chosen_after_a_few_steps_of_it(
    network: nn.Module, curvature: geocolor.Curvature, batches: Batches
) -> None:
    settings, refinement = Settings(keep=0.4, solver="greedy", rounds=1), RefineSettings(steps=20, evaluate_every=20)
    run, loss = Pipeline(network, batches, settings), Classification()
    first = run.prepared(curvature)
    [spread] = run.without_looks(curvature)
    assert spread.curvature.rounds == 0
    assert spread.plan.aggregate == SPREAD
    taken = run.nearest_refined([first, spread], refinement)

    def refined(prepared: Prepared) -> float:
        smaller = geocolor.apply(network, prepared.plan, prepared.curvature)
        return geocolor.refine(smaller, network, batches, refinement, loss=loss).after

    assert refined(taken) == min(refined(first), refined(spread))
    assert Pipeline(network, batches, Settings(keep=0.4, rounds=0)).without_looks(curvature) == []


@pytest.mark.parametrize(("step", "taken"), [(0, 0), (20, 1)])
def test_a_plan_that_refinement_has_brought_no_nearer_replaces_none(
    network: nn.Module, graphs: CostGraph, batches: Batches, monkeypatch: pytest.MonkeyPatch, step: int, taken: int
) -> None:
    """A hold-out is small: what is nearer on it at once may be so by accident."""
    after = iter([0.5, 0.4])

    def refined(_: Pipeline, smaller: nn.Module, __: RefineSettings) -> Refinement:
        return Refinement(smaller, 1.0, next(after), step, 20, 0.0, ())

    monkeypatch.setattr(Pipeline, "refined", refined)
    plans = [geocolor.plan(graphs.under(power), keep=0.4, solver="private") for power in AGGREGATES]
    contenders = [Prepared(graphs.curvature, graphs.under(plan.aggregate), plan) for plan in plans]
    found = Pipeline(network, batches, Settings(keep=0.4)).nearest_refined(contenders, RefineSettings(steps=20))
    assert found is contenders[taken]
