import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from solvers import Clique, Coloring, GroupProblem, ItemShares, MedoidProblem, Multipliers, PairwiseProblem, solve
from solvers.certify import TOLERANCE, certify, naive_cost
from solvers.problem import round_up
from solvers.testing import group_problems, medoid_problems, pairwise_problems


@pytest.fixture
def medoids():
    return MedoidProblem(np.random.default_rng(1).random((8, 8)), K=3)


@settings(deadline=None, max_examples=80)
@given(medoid_problems(max_size=5) | pairwise_problems(max_size=5) | group_problems(max_size=5))
def test_what_solve_returns_is_sound(problem):
    verdict = certify(problem, solve(problem, "local_search"))
    assert verdict.sound, str(verdict)
    slack = TOLERANCE * problem.scale * problem.size
    assert verdict.bound <= verdict.claimed + slack or verdict.bound == verdict.claimed


def test_a_bound_by_an_exhausted_search_is_told_from_one_with_evidence(medoids):
    verdict = certify(medoids, solve(medoids, "exhaustive"))
    assert verdict.sound
    assert verdict.trusted
    assert verdict.bound < verdict.claimed
    assert "partitions priced" in str(verdict)


def test_a_wrong_cost_a_wrong_bound_and_wrong_evidence_are_named(medoids):
    solution = solve(medoids, "greedy")
    assert "not 0.5" in str(certify(medoids, replace(solution, cost=0.5)))
    assert "is above the cost" in str(certify(medoids, replace(solution, lower_bound=solution.cost + 1)))
    high = replace(solution, certificate=Multipliers((math.inf,) * 8))
    assert "the certificate does not hold: the multiplier of item 0 is inf" in str(certify(medoids, high))
    weak = replace(solution, certificate=Multipliers((0.0,) * 8), proof="")
    assert "is said to follow from the certificate, which gives" in str(certify(medoids, weak))
    other = replace(solution, certificate=Clique((0, 1)))
    assert "a clique of conflicts says nothing about MedoidProblem" in str(certify(medoids, other))


def test_a_coloring_priced_at_other_representatives_is_found_out(medoids):
    solution = solve(medoids, "greedy")
    moved = tuple((b + 1) % 8 for b in solution.representatives)
    assert not certify(medoids, replace(solution, representatives=moved)).sound
    assert not certify(medoids, replace(solution, representatives=())).sound


def test_multipliers_give_the_lagrangian_bound_by_its_formula():
    problem = MedoidProblem([[0, 5], [1, 0], [9, 1]], K=1, penalty=[math.inf, 3, 2])
    u = (1.0, 2.0, 4.0)
    gains = [-1 - 1, -2 - 3]
    assert Multipliers(u).bound(problem) == sum(u) + min(gains) + min(2 - 4, 0)
    with pytest.raises(ValueError, match="2 multipliers do not fit"):
        Multipliers((1.0, 2.0)).bound(problem)


def test_an_item_that_nothing_serves_is_evidence_of_infeasibility():
    problem = MedoidProblem([[1, 1], [math.inf] * 2], 1)
    assert Multipliers((0.0, math.inf)).bound(problem) == math.inf
    with pytest.raises(ValueError, match="item 0 is inf, but the item has a basis"):
        Multipliers((math.inf, 0.0)).bound(problem)


def test_a_clique_that_is_none_is_refused():
    path = PairwiseProblem(np.zeros((3, 3)), [[0, 1, 0], [1, 0, 1], [0, 1, 0]], opening=1)
    assert Clique((0, 1)).bound(path) == 2
    assert Clique().bound(path) == 1
    with pytest.raises(ValueError, match="items 0 and 2 of the clique do not conflict"):
        Clique((0, 1, 2)).bound(path)
    with pytest.raises(ValueError, match="items 1 and 1"):
        Clique((1, 1)).bound(path)


def test_item_shares_are_what_the_problem_says():
    problem = GroupProblem(3, lambda items: 4.0, item_lower_bound=[1, 1, 1], penalty=[0.5, 2, 2])
    assert ItemShares().bound(problem) == 2.5
    assert ItemShares().bound(GroupProblem(1, lambda items: 1.0)) == -math.inf


def test_whole_costs_round_bounds_up():
    problem = MedoidProblem([[4, 10], [6, 2]], K=1)
    assert problem.grain == 2
    assert round_up(4.1, 2) == 6
    assert round_up(4 + 1e-9, 2) == 4 + 1e-9
    assert round_up(-math.inf, 2) == -math.inf
    assert MedoidProblem([[0.5, 1]], 1).grain == 0
    assert PairwiseProblem([[0, 4], [4, 0]], opening=6).grain == 2
    assert PairwiseProblem([[0, 4], [4, 0]], opening=0.5).grain == 0


@settings(deadline=None, max_examples=60)
@given(medoid_problems(max_size=4) | pairwise_problems(max_size=5))
def test_every_cost_is_a_multiple_of_the_grain(problem):
    cost = solve(problem, "greedy").cost
    if problem.grain and math.isfinite(cost):
        assert cost % problem.grain == 0


def test_conflicts_and_too_many_colors_cost_infinitely_much():
    problem = PairwiseProblem(np.ones((3, 3)), [[0, 1, 0], [1, 0, 0], [0, 0, 0]], opening=1, K=2)
    assert naive_cost(problem, Coloring([0, 0, 1])) == math.inf
    assert naive_cost(problem, Coloring([0, 1, 2])) == math.inf
    assert naive_cost(problem, Coloring([0, 1, 1])) == 3
