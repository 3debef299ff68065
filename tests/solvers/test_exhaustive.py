import math

import numpy as np
import pytest
from hypothesis import given, settings

from solvers import GroupProblem, MedoidProblem, PairwiseProblem, solve
from solvers.exhaustive import subset_prices
from solvers.search import Search
from solvers.testing import group_problems, medoid_problems, pairwise_problems, unstructured_cost
from tests.solvers.brute_force import optimum


@settings(deadline=None, max_examples=60)
@given(medoid_problems(max_size=5) | pairwise_problems(max_size=5) | group_problems(max_size=5))
def test_the_walk_finds_what_pricing_every_partition_finds(problem):
    solution = solve(problem, "exhaustive")
    assert solution.cost == pytest.approx(optimum(problem))
    assert solution.lower_bound == solution.cost
    assert solution.status == ("optimal" if math.isfinite(solution.cost) else "infeasible")


def test_subsets_are_priced_as_the_problem_prices_classes():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 5))
    for problem in (
        MedoidProblem(rng.random((5, 4)), 2),
        PairwiseProblem(weight + weight.T, rng.random((5, 5)) < 0, 0.5),
        GroupProblem(5, unstructured_cost(0)),
    ):
        prices = subset_prices(problem, Search(problem))[0]
        for mask in range(1, 32):
            assert prices[mask] == pytest.approx(problem.class_cost([i for i in range(5) if mask >> i & 1]))


def test_every_subset_is_priced_once():
    problem = GroupProblem(7, unstructured_cost(0))
    assert solve(problem, "exhaustive").oracle_calls == 2**7 - 1


def test_the_largest_problem_is_done_and_a_larger_one_refused():
    pairs = np.kron(np.eye(4), np.ones((3, 3))) * -1.0 + 0.5
    assert solve(PairwiseProblem(pairs, conflict=pairs > 0), "exhaustive").cost == -6
    with pytest.raises(ValueError, match="refuses more than 12 items, not 13"):
        solve(PairwiseProblem(np.zeros((13, 13))), "exhaustive")
