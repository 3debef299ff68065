import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import ItemWeights, PairwiseProblem, certify, solve
from solvers.chromatic import bound_by_independent_sets
from solvers.cliques import members
from solvers.independent_sets import (
    decide_by_cover,
    fractional_weights,
    largest_independent_set,
    maximal_independent_sets,
)
from solvers.palette import Palette
from solvers.search import Search

GRAPHS = st.builds(nx.gnp_random_graph, st.integers(1, 11), st.floats(0, 1), seed=st.integers(0, 1000))


def never(steps):
    return False


def matrix(graph):
    return nx.to_numpy_array(graph) > 0


def problem_of(graph, opening=1, K=None):
    return PairwiseProblem(np.zeros((len(graph),) * 2), matrix(graph), opening, K)


def all_maximal(graph):
    return {frozenset(clique) for clique in nx.find_cliques(nx.complement(graph))}


@given(GRAPHS)
def test_every_maximal_independent_set_is_found_once(graph):
    sets = maximal_independent_sets(matrix(graph), 10**6, never)
    assert len(sets) == len(set(sets))
    assert {frozenset(members(chosen)) for chosen in sets} == all_maximal(graph)
    assert maximal_independent_sets(matrix(graph), len(sets) - 1, never) is None
    assert maximal_independent_sets(matrix(graph), len(sets), lambda steps: True) is None


@given(GRAPHS)
def test_the_largest_independent_set_has_the_size_of_the_largest_of_all(graph):
    size = max(map(len, all_maximal(graph)))
    assert largest_independent_set(matrix(graph), [0], never) == size


def test_the_fractional_bound_of_an_odd_cycle_is_rounded_up():
    sets = maximal_independent_sets(matrix(nx.cycle_graph(7)), 1000, never)
    weights, most = fractional_weights(sets, 7)
    assert weights.sum() / most == pytest.approx(7 / 3, abs=1e-3)
    problem = problem_of(nx.cycle_graph(7))
    assert ItemWeights(tuple(weights.tolist()), most).bound(problem) == 3


@settings(deadline=None)
@given(GRAPHS)
def test_fractional_weights_never_say_more_than_the_chromatic_number(graph):
    problem = problem_of(graph)
    weights, most = fractional_weights(maximal_independent_sets(problem.conflict, 10**6, never), len(graph))
    bound = ItemWeights(tuple(weights.tolist()), most).bound(problem)
    assert max(map(len, nx.find_cliques(graph))) <= bound <= solve(problem, "dsatur").cost


@settings(deadline=None)
@given(GRAPHS, st.data())
def test_weights_are_refused_exactly_when_an_independent_set_weighs_more(graph, data):
    size = len(graph)
    weights = tuple(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)))
    most = max(sum(weights[item] for item in chosen) for chosen in all_maximal(graph))
    problem = problem_of(graph)
    if most:
        assert ItemWeights(weights, most).bound(problem) == max(1, math.ceil(sum(weights) / most))
    if most > 1:
        with pytest.raises(ValueError, match=f"do not conflict and weigh more than {most - 1}"):
            ItemWeights(weights, most - 1).bound(problem)


def test_weights_that_do_not_fit_are_refused():
    triangle = problem_of(nx.complete_graph(3))
    assert ItemWeights((1, 1, 1), 1).bound(triangle) == 3
    assert ItemWeights((1, 1, 1), 1).bound(triangle.with_limit(2)) == math.inf
    with pytest.raises(ValueError, match="weights of 2 items do not fit"):
        ItemWeights((1, 1), 1).bound(triangle)
    with pytest.raises(ValueError, match="0 or more"):
        ItemWeights((1, -1, 1), 1).bound(triangle)
    with pytest.raises(ValueError, match="1 or more"):
        ItemWeights((0, 0, 0), 0).bound(triangle)


@pytest.mark.parametrize("graph", [nx.gnp_random_graph(14, 0.6, seed=seed) for seed in range(4)], ids=range(4))
def test_covers_decide_the_number_of_colors(graph):
    problem = problem_of(graph)
    chromatic = int(solve(problem, "dsatur").cost)
    sets = maximal_independent_sets(problem.conflict, 10**6, never)
    found = decide_by_cover(sets, 14, chromatic, Search(problem), nodes=1000)
    assert len(set(found.colors.tolist())) <= chromatic
    assert not (problem.conflict & np.equal.outer(found.colors, found.colors)).any()
    assert decide_by_cover(sets, 14, chromatic - 1, Search(problem), nodes=1000).impossible


def test_a_bound_by_independent_sets_can_be_checked_by_anybody():
    graph = nx.complement(nx.cycle_graph(11))  # no class holds more than two: six colors, but no clique above five
    problem = problem_of(graph)
    palette = Palette(problem, Search(problem))
    assert palette.lower == 5
    bound_by_independent_sets(palette, nodes=100)
    assert palette.lower == 6
    solution = solve(problem, "chromatic")
    verdict = certify(problem, solution)
    assert (solution.cost, solution.proof) == (6, "")
    assert (verdict.bound, verdict.trusted) == (6, False)
    refused = solve(problem.with_limit(5), "chromatic")
    assert refused.status == "infeasible"
    assert "independent sets are too small for K = 5 colors" in refused.message
