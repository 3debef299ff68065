"""Branch and price against brute force; its pricing against every set; its prices against tampering."""

import itertools
import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import BranchAndPrice, ClassPrices, MedoidProblem, PairwiseProblem, certify, solve
from solvers.pricing import cheapest_set, improved_sets, values_of
from tests.solvers.brute_force import optimum


def never(steps):
    return False


def distances(size, seed, whole=True, **settings):
    points = np.random.default_rng(seed).normal(size=(size, 3))
    weight = 100 * np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    weight = np.rint(weight) if whole else (weight + weight.T) / 2
    return PairwiseProblem(weight, **settings)


@st.composite
def positive_problems(draw):
    size = draw(st.integers(1, 6))
    weight, conflict = np.zeros((size, size)), np.zeros((size, size), bool)
    upper = np.triu_indices(size, 1)
    costs = draw(st.sampled_from([st.integers(0, 5).map(float), st.floats(0, 50, allow_subnormal=False), st.just(0.0)]))
    weight[upper] = draw(st.lists(costs, min_size=len(upper[0]), max_size=len(upper[0])))
    if draw(st.booleans()):
        conflict[upper] = draw(st.lists(st.booleans(), min_size=len(upper[0]), max_size=len(upper[0])))
    opening = draw(st.sampled_from([0.0, 1.0, 7.5]))
    return PairwiseProblem(weight + weight.T, conflict | conflict.T, opening, draw(st.none() | st.integers(1, 4)))


@settings(deadline=None, max_examples=80)
@given(positive_problems())
def test_it_finds_and_proves_the_optimum_of_every_small_problem(problem):
    solution = solve(problem, BranchAndPrice(steps=1))
    best = optimum(problem)
    unit = 1e-6 * (problem.scale * problem.size)
    assert solution.cost == best or abs(solution.cost - best) <= unit
    assert solution.lower_bound == best or abs(solution.lower_bound - best) <= unit
    assert certify(problem, solution).sound


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_pricing_finds_the_cheapest_of_all_sets(seed, size):
    rng = np.random.default_rng(seed)
    w = rng.random((size, size)) * 3
    w[rng.random((size, size)) < 0.2] = np.inf
    w = np.maximum(w, w.T)
    np.fill_diagonal(w, 0)
    a = 3 * rng.normal(size=size) - 1
    sets = [s for k in range(1, size + 1) for s in itertools.combinations(range(size), k)]
    prices = [a[list(s)].sum() + sum(w[pair] for pair in itertools.combinations(s, 2)) for s in sets]
    priced = cheapest_set(a, w, math.inf, never)
    assert priced.value == pytest.approx(min(prices))
    assert values_of(a, w, priced.sets).min() == pytest.approx(min(prices))
    improved = improved_sets(a, w)
    assert improved.any(axis=1).all()
    assert values_of(a, w, improved).min() >= min(prices) - 1e-9
    for row in improved | priced.sets[:1]:
        assert len(row) == size


def test_pricing_that_is_cut_short_claims_nothing():
    problem = distances(12, 0)
    assert cheapest_set(np.full(12, -500.0), problem.weight, math.inf, lambda steps: True).value == -math.inf


@pytest.mark.parametrize(("size", "K", "seed"), [(14, 4, 0), (16, 5, 1), (18, 6, 2)])
def test_it_agrees_with_branch_and_cut(size, K, seed):
    problem = distances(size, seed, K=K)
    solution = solve(problem, BranchAndPrice(steps=1))
    assert solution.status == "optimal"
    assert solution.cost == solve(problem, "branch_and_cut").cost


def test_a_fractional_root_is_branched_on():
    """Odd cycles of cheap pairs, each in two colors: every second pair looks free to the relaxation."""
    weight = np.full((10, 10), 10.0)
    for at, other in [*((i, (i + 1) % 5) for i in range(5)), *((5 + i, 5 + (i + 1) % 5) for i in range(5))]:
        weight[at, other] = weight[other, at] = 1.0
    problem = PairwiseProblem(weight, K=5)
    solution = solve(problem, BranchAndPrice(steps=1))
    assert solution.status == "optimal"
    assert solution.cost == solve(problem, "branch_and_cut").cost


def test_chromatic_numbers_by_branch_and_price():
    for graph, chromatic in ((nx.petersen_graph(), 3), (nx.cycle_graph(7), 3), (nx.mycielski_graph(4), 4)):
        conflict = nx.to_numpy_array(graph) > 0
        problem = PairwiseProblem(np.zeros(conflict.shape), conflict, opening=1)
        assert solve(problem, "branch_and_price").cost == chromatic
        assert solve(problem.with_limit(chromatic - 1), "branch_and_price").status == "infeasible"


def test_prices_are_evidence_and_tampered_ones_are_refused():
    problem = distances(15, 3, K=4)
    solution = solve(problem, BranchAndPrice(steps=1))
    assert isinstance(solution.certificate, ClassPrices)
    verdict = certify(problem, solution)
    assert verdict.sound
    assert verdict.bound > 0.9 * solution.cost
    prices = solution.certificate.prices

    def faults(*changed):
        return str(certify(problem, replace(solution, certificate=ClassPrices(changed), proof="")))

    assert "not a number of 0 or more" in faults(-1.0, *prices[1:])
    assert "not a number of 0 or more" in faults(math.nan, *prices[1:])
    assert "14 prices of items do not fit" in faults(*prices[1:])
    assert "said to follow from the certificate" in faults(prices[0] + 1e4, *prices[1:])
    with pytest.raises(ValueError, match="do not fit MedoidProblem"):
        ClassPrices((1.0,)).bound(MedoidProblem([[1.0]], 1))
    with pytest.raises(ValueError, match="a weight or the opening is negative"):
        ClassPrices((1.0, 1.0)).bound(PairwiseProblem([[0, -1], [-1, 0]]))


def test_any_prices_bound_every_coloring():
    rng = np.random.default_rng(1)
    problem = distances(6, 4, opening=20.0, K=3)
    for _ in range(20):
        assert ClassPrices(tuple((100 * rng.random(6)).tolist())).bound(problem) <= optimum(problem)


def test_costs_of_very_different_size_do_not_drown_one_another():
    weight = np.array([[0, 1e12, 1e-12, 2], [1e12, 0, 3, 1], [1e-12, 3, 0, 2e-12], [2, 1, 2e-12, 0]])
    problem = PairwiseProblem(weight, K=3)
    assert solve(problem, "branch_and_price").cost == optimum(problem)


@pytest.mark.parametrize("limit", [0.02, 0.2])
def test_a_deterministic_run_that_is_cut_short_repeats_itself(limit):
    problem = distances(40, 2, K=6)
    first, second = (solve(problem, "branch_and_price", time_limit=limit, deterministic=True) for _ in range(2))
    assert (first.coloring, first.lower_bound, first.status) == (second.coloring, second.lower_bound, second.status)


def test_negative_weights_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="it takes weights and an opening of 0 or more"):
        solve(PairwiseProblem([[0, -1], [-1, 0]]), "branch_and_price")
    with pytest.raises(ValueError, match="smoothing must be at least 0 and below 1"):
        BranchAndPrice(smoothing=1.0)
