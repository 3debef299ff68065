import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Coloring, MedoidProblem, solve
from solvers.budget import choose_owners
from solvers.testing import colorings, medoid_problems
from tests.solvers.brute_force import optimum


def by_hand(problem, coloring):
    """The price of a coloring by trying every choice of a candidate, or none, for each class."""
    best = math.inf
    for choice in itertools.product(range(-1, problem.candidates), repeat=coloring.number_of_colors):
        labels = [problem.label[b] for b in choice if b >= 0]
        if any(labels.count(code) > limit for code, limit in enumerate(problem.limits)):
            continue
        total = 0.0
        for members, b in zip(coloring.classes(), choice, strict=True):
            if b >= 0:
                total += sum(problem.cost_matrix[i, b] for i in members)
            else:
                total += problem.penalties()[members[0]] if len(members) == 1 else math.inf
        best = min(best, total)
    return best


@settings(deadline=None)
@given(medoid_problems(max_size=4), st.data())
def test_a_coloring_costs_its_best_choice_of_candidates(problem, data):
    coloring = data.draw(colorings(problem.size))
    assert problem.cost(coloring) == pytest.approx(by_hand(problem, coloring))


@settings(deadline=None)
@given(medoid_problems(max_size=5), st.data())
def test_representatives_add_up_to_the_cost(problem, data):
    coloring = data.draw(colorings(problem.size))
    cost, medoids = problem.cost_of(coloring)
    if math.isfinite(cost):
        terms = [
            problem.cost_matrix[list(members), b].sum() if b >= 0 else problem.penalties()[members[0]]
            for members, b in zip(coloring.classes(), medoids, strict=True)
        ]
        assert sum(terms) == pytest.approx(cost)
        owners = [problem.label[b] for b in medoids if b >= 0]
        assert all(owners.count(code) <= limit for code, limit in enumerate(problem.limits))


@settings(deadline=None)
@given(medoid_problems(max_size=5))
def test_the_best_coloring_is_the_best_set_of_candidates(problem):
    """Facility location and coloring are one problem: the minimum over colorings is the minimum over open sets."""
    best = math.inf
    for number in range(problem.candidates + 1):
        for opened in itertools.combinations(range(problem.candidates), number):
            labels = [problem.label[b] for b in opened]
            if all(labels.count(code) <= limit for code, limit in enumerate(problem.limits)):
                columns = np.column_stack([problem.cost_matrix[:, list(opened)], problem.penalties()])
                best = min(best, float(columns.min(axis=1).sum()))
    assert optimum(problem) == pytest.approx(best)


def test_costs_may_be_asymmetric():
    problem = MedoidProblem([[0, 1], [5, 0]], K=1)
    assert problem.representatives(Coloring([0, 0])) == (1,)
    assert problem.cost(Coloring([0, 0])) == 1


def test_past_K_the_items_with_the_least_to_lose_are_left_out():
    problem = MedoidProblem(np.zeros((4, 1)), K=2, penalty=[5, 1, 3, 2])
    assert problem.cost_of(Coloring([0, 1, 2, 3])) == (3.0, (0, -1, 0, -1))
    assert problem.cost(Coloring([0, 1, 2, 2])) == 1.0  # a class of two cannot be left out


def test_an_item_leaves_its_basis_when_that_is_cheaper_even_within_K():
    assert MedoidProblem([[4.0]], K=1, penalty=[3.0]).cost_of(Coloring([0])) == (3.0, (-1,))


def test_each_shape_has_its_own_limit():
    inf = math.inf
    costs = [[0, 1, inf], [1, 0, inf], [inf, inf, 0]]
    group = ["square", "square", "tall"]
    one_each = MedoidProblem(costs, {"square": 1, "tall": 1}, group=group)
    assert one_each.cost(Coloring([0, 1, 2])) == inf
    assert one_each.cost_of(Coloring([0, 0, 1])) == (1.0, (0, 2))
    assert MedoidProblem(costs, {"square": 2, "tall": 0}, group=group).cost(Coloring([0, 1, 2])) == inf


def test_classes_that_have_a_choice_of_labels_are_assigned_at_the_least_cost():
    prices = np.array([[1.0, 2.0], [1.0, 9.0]])
    total, choice = choose_owners(prices, np.array([1, 1]), np.full(2, np.inf))
    assert total == 3.0
    assert choice.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([[0, math.nan]], 1), r"cost\[0, 1\] is nan"),
        (([[0, 1], [0]], 1), r"cost must be an array of numbers with 2 axes: "),
        (([["a"]], 1), r"cost must be an array of numbers with 2 axes: could not convert"),
        (([[0, -math.inf]], 1), r"cost\[0, 1\] is -inf"),
        (([1.0, 2.0], 1), r"cost must have 2 axes, got an array of shape \(2,\)"),
        (([[0]], -1), "K must be a whole number of bases, 0 or more, got -1"),
        (([[0]], 1.5), "K must be a whole number of bases, 0 or more, got 1.5"),
        (([[0]], True), "got True"),
        (([[0]], {"a": 1}), "no `group` says"),
    ],
)
def test_bad_costs_and_limits_are_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        MedoidProblem(*arguments)


def test_bad_penalties_and_labels_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"penalty\[1\] is nan"):
        MedoidProblem([[0], [0]], 1, penalty=[0, math.nan])
    with pytest.raises(ValueError, match="penalty has 1 entries for 2 items"):
        MedoidProblem([[0], [0]], 1, penalty=[0])
    with pytest.raises(ValueError, match="label 'b' of candidate 1 has no limit"):
        MedoidProblem([[0, 0]], {"a": 1}, group=["a", "b"])
    with pytest.raises(ValueError, match="1 labels for 2 candidates"):
        MedoidProblem([[0, 0]], {"a": 1}, group=["a"])
    with pytest.raises(ValueError, match="K must map each label"):
        MedoidProblem([[0, 0]], 1, group=["a", "a"])
    with pytest.raises(ValueError, match="the coloring has 3 items, the problem 1"):
        MedoidProblem([[0]], 1).cost(Coloring([0, 1, 2]))


def test_a_problem_keeps_its_own_copy_of_the_costs():
    costs = np.ones((2, 2))
    problem = MedoidProblem(costs, 1)
    costs[:] = 7
    assert problem.cost(Coloring([0, 0])) == 2
    with pytest.raises(ValueError, match="read-only"):
        problem.cost_matrix[0, 0] = 0


def test_no_items_cost_nothing_and_no_candidates_leave_only_penalties():
    assert solve(MedoidProblem([], 1)).cost == 0
    assert solve(MedoidProblem(np.zeros((2, 0)), 1, penalty=[1, 2])).cost == 3
    assert solve(MedoidProblem(np.zeros((2, 0)), 1)).status == "infeasible"
    assert solve(MedoidProblem(np.zeros((2, 0)), {}, penalty=[1, 2], group=())).cost == 3


def test_costs_of_very_different_size_in_one_matrix_are_kept_apart():
    problem = MedoidProblem([[1e-12, 1e12], [2e-12, 1e-12], [1e12, 1e-12]], K=2)
    for name in ("exhaustive", "cp_sat", "benders", "lagrangian", "local_search", "greedy"):
        assert solve(problem, name).cost == pytest.approx(3e-12)
