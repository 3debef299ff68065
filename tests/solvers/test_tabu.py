"""Tabu search for pairs: its steps change the cost as they say, it leaves local optima, and it keeps every limit."""

import math

import networkx as nx
import numpy as np
import pytest

from solvers import Coloring, LocalSearch, PairwiseProblem, Tabu, solve
from solvers.pairwise_search import Painting
from solvers.search import Search
from solvers.tabu import best_allowed, excess, offer_spectral


def gaussian(size, seed, **settings):
    weight = np.rint(100 * np.random.default_rng(seed).normal(size=(size, size)))
    return PairwiseProblem(weight + weight.T, **settings)


@pytest.mark.parametrize("seed", range(4))
def test_a_step_changes_the_cost_as_it_says(seed):
    problem = gaussian(9, seed, opening=30.0, K=4)
    rng = np.random.default_rng(seed)
    state = Painting(problem, Coloring(rng.integers(0, 4, 9).tolist()))
    for _ in range(12):  # beyond the first local optimum
        before = problem.cost(Coloring(state.colors.tolist()))
        old = state.colors.copy()
        change, items = best_allowed(state, np.zeros((9, 4), bool), 0.0, rng)
        for item, color in items:
            state.move(item, color)
        assert problem.cost(Coloring(state.colors.tolist())) - before == pytest.approx(change)
        assert excess(state, old) == pytest.approx(change)


def test_what_is_tabu_is_taken_only_for_a_new_best():
    problem = PairwiseProblem([[0, -5, 1], [-5, 0, 1], [1, 1, 0]], K=2)
    state = Painting(problem, Coloring([0, 1, 1]))
    rng, all_tabu = np.random.default_rng(0), np.ones((3, 2), bool)
    assert best_allowed(state, all_tabu, -100.0, rng) == (math.inf, [])
    change, items = best_allowed(state, all_tabu, -1.0, rng)
    assert change < -1
    assert items


def test_a_swap_is_taken_where_no_single_move_pays():
    """Two full colors of two, and a price for a third: only the exchange of 1 and 2 pays."""
    weight = np.full((4, 4), 6.0)
    weight[0, 2] = weight[2, 0] = weight[1, 3] = weight[3, 1] = 0.0
    state = Painting(PairwiseProblem(weight, K=2), Coloring([0, 0, 1, 1]))
    change, items = best_allowed(state, np.zeros((4, 2), bool), 0.0, np.random.default_rng(0))
    assert change == -12
    assert len(items) == 2


def found(problem, solver, seed=0):
    """What the solver finds by itself: ``solve`` would go on to a bound."""
    search = Search(problem, seed=seed)
    solver.run(problem, search)
    return search.cost


@pytest.mark.parametrize("seed", range(3))
def test_it_is_never_worse_than_the_descents_it_begins_with(seed):
    problem = gaussian(50, seed, K=6)
    assert found(problem, Tabu(rounds=5, steps=500), seed) <= found(problem, LocalSearch(rounds=5), seed)


def test_it_leaves_local_optima_in_which_descents_end():
    problem = gaussian(40, 7)
    assert found(problem, Tabu(rounds=0, spectral=False)) < found(problem, LocalSearch(rounds=0))


def test_the_spectral_start_finds_components():
    graph = nx.disjoint_union_all([nx.complete_graph(4), nx.complete_graph(3), nx.complete_graph(5)])
    problem = PairwiseProblem(1.0 - 2.0 * nx.to_numpy_array(graph), K=3)
    search = Search(problem)
    offer_spectral(problem, search, np.random.default_rng(0))
    assert search.best == Coloring([0] * 4 + [1] * 3 + [2] * 5)


def test_conflicts_and_K_are_kept():
    conflict = nx.to_numpy_array(nx.cycle_graph(11)) > 0
    problem = PairwiseProblem(gaussian(11, 0).weight, conflict, K=3)
    solution = solve(problem, "tabu")
    assert math.isfinite(solution.cost)
    assert solution.cost == solve(problem, "branch_and_cut").cost


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="patience must be 1 or more, got 0"):
        Tabu(patience=0)
    with pytest.raises(ValueError, match="rounds must be 0 or more, got -1"):
        Tabu(rounds=-1)
