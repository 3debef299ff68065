"""Plans meet their budget, are proven where possible, and never lose to not sharing."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import geocolor
from geocolor.budget import allocate
from geocolor.graph import CostGraph
from solvers import GroupProblem, Solution, solve
from tests.conftest import Network


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.6, 0.4, 0.3])
def test_a_plan_meets_its_budget_and_is_never_predicted_worse_than_not_sharing(graph: CostGraph, keep: float) -> None:
    plan = geocolor.plan(graph, keep)
    alone = allocate(graph, [(i,) for i in range(6)], math.floor(keep * graph.parameters_dense))
    assert plan.kept <= keep
    assert plan.objective <= alone.damage
    assert plan.objective_without_sharing == alone.damage
    assert plan.lower_bound <= plan.objective
    assert plan.predicted_damage == pytest.approx(plan.objective, rel=1e-6)


@pytest.mark.parametrize("solver", ["greedy", "local_search", "spectral", "adjacent", "private"])
def test_no_solver_makes_a_plan_worse_than_not_sharing(graph: CostGraph, solver: str) -> None:
    plan = geocolor.plan(graph, 0.5, solver=solver)
    assert plan.objective_without_sharing is not None
    assert plan.objective <= plan.objective_without_sharing


def test_predicted_damage_is_that_of_the_weights_installed(network: nn.Module, graph: CostGraph) -> None:
    plan = geocolor.plan(graph, 0.6)
    smaller = geocolor.merge_to_dense(geocolor.apply(network, plan, graph.curvature))
    for cls in plan.classes:
        for name, predicted in cls.damage.items():
            new, old = smaller.get_submodule(name).weight, network.get_submodule(name).weight
            assert isinstance(new, Tensor)
            assert isinstance(old, Tensor)
            assert graph.curvature.damage(name, new.double() - old.double()) == pytest.approx(predicted, abs=1e-7)


def test_all_kept_is_all_dense(network: nn.Module, graph: CostGraph, batches: list[tuple[Tensor, Tensor]]) -> None:
    plan = geocolor.plan(graph, 1.0)
    assert plan.predicted_damage == 0.0
    assert plan.kept <= 1
    smaller = geocolor.apply(network, plan, graph.curvature)
    torch.testing.assert_close(smaller(batches[0][0]), network(batches[0][0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bases", [1, 2, 5])
def test_no_more_bases_than_asked_for_own_one(graph: CostGraph, bases: int) -> None:
    plan = geocolor.plan(graph, 0.9, bases=bases)
    assert plan.basis_count <= bases
    assert plan.kept <= 0.9


@pytest.mark.parametrize("bases", [1, 3, 6])
def test_bases_alone_are_lent_by_their_medoids(network: nn.Module, graph: CostGraph, bases: int) -> None:
    plan = geocolor.plan(graph, bases=bases)
    assert plan.basis_count <= bases
    assert all(cls.medoid in cls.layers for cls in plan.classes)
    smaller = geocolor.apply(network, plan, graph.curvature)
    assert geocolor.evaluate(smaller, [(torch.randn(4, 6, 8), torch.randint(5, (4,)))]).loss > 0


def test_a_trust_region_is_priced(network: nn.Module, graph: CostGraph) -> None:
    free, clipped = geocolor.plan(graph, 0.5), geocolor.plan(graph, 0.5, beta=0.2)
    assert clipped.trust_region == 0.2
    assert clipped.predicted_damage >= free.predicted_damage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = geocolor.apply(network, clipped, graph.curvature)
    installed = geocolor.merge_to_dense(smaller)
    for cls in clipped.classes:
        for name, predicted in cls.damage.items():
            new, old = installed.get_submodule(name).weight, network.get_submodule(name).weight
            assert graph.curvature.damage(name, new.double() - old.double()) == pytest.approx(predicted, abs=1e-7)  # type: ignore[operator, union-attr]


def test_a_region_out_of_reach_is_said(network: nn.Module, graph: CostGraph) -> None:
    plan = geocolor.plan(graph, 0.3, beta=1e-6)
    with pytest.warns(UserWarning, match="cannot come within the trust region"):
        geocolor.apply(network, plan, graph.curvature)


@pytest.mark.parametrize(
    ("keep", "bases", "sentence"),
    [
        (None, None, "needs a budget"),
        (0.0, None, "above 0 and at most 1; got 0"),
        (-1.0, None, "above 0 and at most 1"),
        (1.2, None, "above 0 and at most 1; got 1.2"),
        (float("nan"), None, "above 0 and at most 1; got nan"),
        (None, 0, "bases must be at least 1; got 0"),
        (0.8, 7, "more than the 6 layers in scope"),
        (0.01, None, "cannot be reached: the least found for these layers is keep="),
        (0.1, 1, "raise keep or bases"),
    ],
)
def test_budgets_that_make_no_sense_get_a_sentence(
    graph: CostGraph, keep: float | None, bases: int | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        geocolor.plan(graph, keep, bases)


def test_too_few_bases_for_the_shapes_get_a_sentence() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = geocolor.price(model, geocolor.measure(model, [(torch.randn(32, 4), torch.randint(2, (32,)))]))
    with pytest.raises(ValueError, match="1 basis cannot serve layers of 3 different shapes: ask for at least 3"):
        geocolor.plan(graph, bases=1)


@given(keep=st.floats(0.35, 0.99))
@settings(max_examples=15, deadline=None)
def test_a_larger_budget_never_does_more_damage_without_sharing(keep: float) -> None:
    graph = session_graph()
    groups = [(i,) for i in range(len(graph.layers))]
    small = allocate(graph, groups, math.floor(keep * graph.parameters_dense))
    large = allocate(graph, groups, math.floor(min(1.0, keep + 0.05) * graph.parameters_dense))
    assert small.parameters <= keep * graph.parameters_dense
    assert large.damage <= small.damage * (1 + 1e-9)


_graphs: list[CostGraph] = []


def session_graph() -> CostGraph:
    if not _graphs:
        torch.manual_seed(1)
        model = Network()
        batches = [(torch.randn(16, 6, 8), torch.randint(5, (16,))) for _ in range(4)]
        _graphs.append(geocolor.price(model, geocolor.measure(model, batches)))
    return _graphs[0]


def test_the_same_seed_gives_the_same_plan() -> None:
    one, other = (geocolor.plan(session_graph(), 0.6, seed=3) for _ in range(2))
    assert one.model_copy(update={"seconds": 0.0}) == other.model_copy(update={"seconds": 0.0})


def test_every_solve_begins_with_pairs_priced_and_the_coloring_before(
    graph: CostGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, found, unpriced = [], [], []

    def watched(problem: GroupProblem, solver: str, **options: Any) -> Solution:
        unpriced.extend(pair for pair in np.argwhere(np.triu(problem.compatible, 1)).tolist())
        unpriced[:] = [pair for pair in unpriced if tuple(pair) not in graph._hulls]
        starts.append(options["start"])
        found.append(solve(problem, solver, **options))
        return found[-1]

    monkeypatch.setattr("geocolor.planning.solve", watched)
    geocolor.plan(graph, 0.5)
    assert not unpriced
    assert starts == [None, *(solution.coloring for solution in found[:-1])]
