import math

import numpy as np
import pytest

from solvers import Coloring, GroupProblem, LocalSearch, solve
from solvers.testing import rate_distortion_problem, unstructured_cost
from tests.solvers.brute_force import optimum, partitions


def spread(points):
    """One to open a class, and the squared distances to its mean."""

    def cost(items):
        members = points[list(items)]
        return 1.0 + float(((members - members.mean(axis=0)) ** 2).sum())

    return cost


def test_the_oracle_gets_ascending_items_and_is_asked_once_for_each_class():
    asked = []
    problem = GroupProblem(4, lambda items: asked.append(items) or float(len(items)))
    for coloring in (Coloring([1, 0, 1, 0]), Coloring([0, 1, 0, 1]), Coloring([0, 1, 0, 2])):
        problem.cost(coloring)
    assert problem.class_cost([3, 1]) == 2
    assert asked == [(0, 2), (1, 3), (1,), (3,)]
    assert problem.oracle_calls == len(problem.priced) == 4


@pytest.mark.parametrize("solver", ["auto", "greedy", "local_search", "spectral", "cp_sat", "adjacent", "random"])
def test_no_solver_asks_about_an_incompatible_pair(solver):
    kind = np.arange(9) % 3
    compatible = kind[:, None] == kind[None, :]
    seen = []
    problem = GroupProblem(9, lambda items: seen.append(items) or 3.0 + len(items), compatible=compatible, K=4)
    solution = solve(problem, solver)
    assert solution.status in ("optimal", "feasible")
    assert seen
    assert all(len({kind[i] for i in items}) == 1 for items in seen)


def test_past_K_the_items_with_the_least_to_lose_are_left_out():
    problem = GroupProblem(4, lambda items: 0.0, K=2, penalty=[5, 1, 3, 2])
    assert problem.cost(Coloring([0, 1, 2, 3])) == 3
    assert problem.cost(Coloring([0, 1, 2, 2])) == 1
    assert GroupProblem(4, lambda items: 0.0, K=2).cost(Coloring([0, 1, 2, 3])) == math.inf


@pytest.mark.parametrize("K", [None, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_greedy_and_local_search_are_never_worse_than_not_sharing(seed, K):
    free = rate_distortion_problem(8, seed)
    problem = GroupProblem(8, free.class_cost, K=K, penalty=[free.class_cost((i,)) + 0.1 for i in range(8)])
    private = problem.cost(Coloring(range(8)))
    assert solve(problem, "local_search").cost <= solve(problem, "greedy").cost + 1e-12 <= private + 1e-9


def test_local_search_is_close_to_the_optimum_on_rate_distortion_prices():
    excess = []
    for seed in range(12):
        problem = rate_distortion_problem(8, seed, price=0.02)
        best = solve(problem, "exhaustive").cost
        excess.append(solve(rate_distortion_problem(8, seed, price=0.02), "local_search").cost / best - 1)
    assert np.mean(excess) < 1e-3
    assert max(excess) < 1e-2


@pytest.mark.parametrize("seed", range(4))
def test_item_lower_bounds_hold_for_every_coloring(seed):
    problem = rate_distortion_problem(5, seed)
    bound = solve(problem, "private").lower_bound
    assert bound == pytest.approx(problem.item_lower_bound.sum())
    assert all(bound <= problem.cost(coloring) for coloring in partitions(5))


def test_clusters_are_found_where_they_are():
    points = np.concatenate([np.random.default_rng(0).normal(center, 0.1, (6, 2)) for center in (0, 3, 6, 9)])
    truth = Coloring(np.arange(24) // 6)
    for solver in ("greedy", "local_search", "spectral", "cp_sat"):
        assert solve(GroupProblem(24, spread(points)), solver).coloring == truth


def test_local_search_spares_the_oracle():
    problem = rate_distortion_problem(14, 0)
    after_greedy = solve(problem, "greedy").oracle_calls
    assert after_greedy <= 14 + 14 * 13 // 2 + 13 * 13  # pairs once, then one row for each merge
    solution = solve(problem, LocalSearch(max_oracle_calls=50))
    assert solution.oracle_calls <= 50 + 1
    assert "50 oracle calls" in solution.message


def test_merging_goes_through_classes_without_a_price_of_their_own():
    """Items 0 and 1 are allowed only together."""

    def cost(items):
        return math.inf if len({0, 1} & set(items)) == 1 else float(len(items))

    for solver in ("greedy", "local_search", "cp_sat", "exhaustive"):
        assert solve(GroupProblem(4, cost), solver).cost == 4


@pytest.mark.parametrize("seed", range(3))
def test_set_partitioning_agrees_with_brute_force(seed):
    problem = GroupProblem(6, unstructured_cost(seed), K=3)
    solution = solve(problem, "cp_sat")
    assert (solution.cost, solution.status) == (optimum(problem), "optimal")
    assert solution.lower_bound == pytest.approx(solution.cost)


def test_recombining_a_pool_claims_no_bound():
    solution = solve(GroupProblem(14, unstructured_cost(1)), "cp_sat")
    assert solution.lower_bound == -math.inf
    assert solution.status == "feasible"
    assert "no bound" in solution.message


def test_what_the_oracle_may_not_say_is_refused_with_the_class():
    with pytest.raises(ValueError, match=r"group_cost\(\(0, 2\)\) is nan"):
        GroupProblem(3, lambda items: math.nan).class_cost([2, 0])
    with pytest.raises(ValueError, match="is -inf; a class must cost a number"):
        GroupProblem(3, lambda items: -math.inf).class_cost([1])


def test_bad_arrays_are_refused_in_a_sentence():
    one = float
    with pytest.raises(ValueError, match=r"compatible must be symmetric, but \[0, 1\]"):
        GroupProblem(2, one, compatible=[[1, 1], [0, 1]])
    with pytest.raises(ValueError, match="square matrix of 3 rows"):
        GroupProblem(3, one, compatible=np.ones((2, 2)))
    with pytest.raises(ValueError, match="item_lower_bound has 1 entries for 2 items"):
        GroupProblem(2, one, item_lower_bound=[0])
    with pytest.raises(ValueError, match=r"penalty\[0\] is nan"):
        GroupProblem(1, one, penalty=[math.nan])
    with pytest.raises(ValueError, match="GroupProblem: K must be"):
        GroupProblem(1, one, K=0.5)
    with pytest.raises(ValueError, match="size must be 0 or more"):
        GroupProblem(-1, one)


def test_another_limit_keeps_the_prices_already_known():
    calls = []
    problem = GroupProblem(3, lambda items: calls.append(items) or 1.0)
    problem.cost(Coloring([0, 0, 1]))
    assert problem.with_limit(1).cost(Coloring([0, 0, 1])) == math.inf
    assert len(calls) == 2
