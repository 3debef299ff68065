import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import GroupProblem, MedoidProblem, PairwiseProblem, lagrangian_bound, quick_bound, solve
from solvers.testing import group_problems, medoid_problems, pairwise_problems
from tests.solvers.brute_force import optimum


def at_most(bound, cost):
    return bound <= cost + 1e-9 * (abs(cost) + 100) if math.isfinite(cost) else True


@settings(deadline=None, max_examples=120)
@given(medoid_problems(max_size=5) | pairwise_problems(max_size=5) | group_problems(max_size=5))
def test_the_quick_bound_holds_for_every_coloring(problem):
    bound = quick_bound(problem)
    best = optimum(problem)
    assert at_most(bound.value, best)
    if bound.value == math.inf:
        assert best == math.inf
        assert bound.reason


@settings(deadline=None, max_examples=80)
@given(medoid_problems(max_size=5), st.sampled_from([0.0, 1.0, math.inf]))
def test_the_lagrangian_bound_holds_whatever_guides_its_steps(problem, excess):
    best = optimum(problem)
    if problem.size and math.isfinite(best):
        assert at_most(lagrangian_bound(problem, best + excess).value, best)


def test_the_lagrangian_bound_closes_the_gap_of_structured_costs():
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(4, 2)) * 20, 10, axis=0) + rng.normal(size=(40, 2))
    problem = MedoidProblem(((points[:, None] - points[None]) ** 2).sum(axis=-1), 4)
    solution = solve(problem, "local_search")
    assert solution.status == "optimal"
    assert solution.gap <= 1e-6
    assert quick_bound(problem).value < solution.lower_bound


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (MedoidProblem([[1, 1], [math.inf] * 2], 1), "item 1 must own or share a basis, but every candidate"),
        (MedoidProblem([[1.0]], 0), "item 0 must own or share a basis, but K leaves no basis"),
        (PairwiseProblem(np.zeros((4, 4)), 1 - np.eye(4), K=3), "4 items conflict with one another.* K is 3"),
        (GroupProblem(2, float, K=0), "item 0 must own or share a basis, but K is 0"),
    ],
)
def test_infeasible_problems_come_with_the_reason(problem, reason):
    import re

    bound = quick_bound(problem)
    assert bound.value == math.inf
    assert re.search(reason, bound.reason)


def test_few_colors_force_pairs_together():
    """Five items in two colors share a color in four pairs at least: one class of three, one of two."""
    problem = PairwiseProblem(np.ones((5, 5)), K=2)
    assert quick_bound(problem).value == 4 == solve(problem, "exhaustive").cost


def test_a_clique_of_conflicts_pays_for_its_colors():
    conflict = np.zeros((5, 5))
    conflict[:3, :3] = 1 - np.eye(3)
    problem = PairwiseProblem(np.zeros((5, 5)), conflict, opening=2)
    assert quick_bound(problem).value == 6 == solve(problem, "greedy").cost
    assert solve(problem, "greedy").status == "optimal"
