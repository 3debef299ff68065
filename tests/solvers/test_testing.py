"""The tools that users are given to test solvers: relations, equivariance, strategies, the shrinker."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import (
    Coloring,
    GroupProblem,
    MedoidProblem,
    PairwiseProblem,
    Solver,
    SparseMedoidProblem,
    automorphisms,
    solve,
)
from solvers.exhaustive import Exhaustive
from solvers.relations import RELATIONS, change
from solvers.testing import (
    as_code,
    check_equivariance,
    check_relations,
    colorings,
    group_problems,
    medoid_problems,
    pairwise_problems,
    planted_medoid_problems,
    planted_pairwise_problems,
    shrink,
    sparse_medoid_problems,
    symmetries,
)

ANY_PROBLEM = st.one_of(medoid_problems(5), pairwise_problems(5), group_problems(4))
PLANTED = st.one_of(planted_medoid_problems(5), planted_pairwise_problems(6))


@settings(deadline=None, max_examples=60)
@given(ANY_PROBLEM, st.data())
def test_every_relation_holds_for_every_coloring_and_for_the_optimum(problem, data):
    optimum = solve(problem, "exhaustive").cost
    for relation in RELATIONS:
        changed = relation(problem, np.random.default_rng(0))
        if changed is None or changed.problem.size > 8:
            continue
        coloring = data.draw(colorings(problem.size))
        expected = changed.factor * problem.cost(coloring) + changed.offset(coloring)
        assert changed.problem.cost(changed.carry(coloring)) == pytest.approx(expected, rel=1e-9, abs=1e-6)
        if changed.constant is not None:
            expected = changed.factor * optimum + changed.constant
            assert solve(changed.problem, "exhaustive").cost == pytest.approx(expected, rel=1e-9, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(PLANTED, st.data())
def test_symmetries_keep_the_cost_of_every_coloring(problem, data):
    element = data.draw(symmetries(problem))
    coloring = data.draw(colorings(problem.size))
    assert problem.cost(coloring.permute(element)) == pytest.approx(problem.cost(coloring), abs=1e-9)


def test_planted_problems_have_symmetries():
    seen = []

    @settings(deadline=None, max_examples=30, database=None)
    @given(st.one_of(planted_pairwise_problems(6), planted_medoid_problems(5)))
    def look(problem):
        seen.append(automorphisms(problem).order > 1)

    look()
    assert sum(seen) > len(seen) / 3


@settings(deadline=None, max_examples=25)
@given(ANY_PROBLEM, st.integers(0, 100))
def test_problems_and_exact_solvers_are_equivariant(problem, seed):
    check_equivariance(problem, "exhaustive", seed=seed)


def test_relations_are_checked_on_problems_of_any_size():
    rng = np.random.default_rng(2)
    check_relations(MedoidProblem(rng.random((16, 16)), 4), "cp_sat")
    check_relations(MedoidProblem(rng.random((60, 50)), 4, penalty=rng.random(60)), "local_search")
    check_equivariance(MedoidProblem(rng.random((16, 16)), 4), "cp_sat")


@dataclass(frozen=True)
class Partial(Exhaustive):
    """Exact, but blind to the last item."""

    name: ClassVar[str] = "partial"

    def run(self, problem, search):
        if problem.size < 4:
            return Exhaustive().run(problem, search)
        search.offer(Coloring([0] * problem.size))
        return search.prove(search.cost, proof="a mistake")


@dataclass(frozen=True)
class Lopsided(Solver):
    """Puts the first item alone, wherever it came from."""

    name: ClassVar[str] = "lopsided"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem,)
    exact: ClassVar[bool] = True

    def run(self, problem, search):
        search.offer(Coloring([0] + [1] * (problem.size - 1)))
        search.prove(search.cost, proof="a mistake")


def test_relations_catch_a_solver_whose_optima_do_not_fit():
    problem = PairwiseProblem(np.array([[0, -3, 1], [-3, 0, 2], [1, 2, 0]]), opening=1.0)
    with pytest.raises(AssertionError, match=r"every item twice: the bound -8\.0 is above a cost of -16\.0"):
        check_relations(problem, Partial())


def test_equivariance_catches_a_solver_that_minds_the_order():
    problem = MedoidProblem([[0, 9, 9], [9, 0, 1], [9, 1, 0]], 2)
    with pytest.raises(AssertionError, match=r"an optimum of 1\.0, once items are renamed 9\.0"):
        check_equivariance(problem, Lopsided(), sigma=[1, 0, 2])


@settings(deadline=None, max_examples=30)
@given(sparse_medoid_problems(5), st.data())
def test_relations_hold_for_sparse_problems_as_for_their_dense_form(problem, data):
    coloring = data.draw(colorings(problem.size))
    for relation in RELATIONS:
        changed = change(relation, problem, np.random.default_rng(0))
        assert type(changed.problem) is SparseMedoidProblem
        expected = changed.factor * problem.cost(coloring) + changed.offset(coloring)
        assert changed.problem.cost(changed.carry(coloring)) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(ANY_PROBLEM | sparse_medoid_problems(5), st.data())
def test_code_makes_the_same_problem(problem, data):
    names = {}
    exec(as_code(problem), names)
    again = names["problem"]
    assert type(again) is type(problem)
    assert (again.size, again.limit) == (problem.size, problem.limit)
    for _ in range(3):
        coloring = data.draw(colorings(problem.size))
        assert again.cost(coloring) == problem.cost(coloring)
    assert as_code(again) == as_code(problem)


def test_a_failing_problem_becomes_small():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(12, 9)) * 100
    costs[7, 3] = math.inf
    shown = []
    small = shrink(
        MedoidProblem(costs, {"a": 2, "b": 3}, penalty=rng.random(12), group=list("aaaabbbbb")),
        lambda p: np.isinf(p.cost_matrix).any(),
        show=shown.append,
    )
    assert shown == [
        "from math import inf\nfrom solvers import MedoidProblem\nproblem = MedoidProblem([[inf]], K=0)",
    ]
    assert np.isinf(small.cost_matrix).all()


def test_a_failing_pairwise_problem_becomes_a_triangle():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(14, 14)).round(3)
    problem = PairwiseProblem(weight + weight.T, rng.random((14, 14)) < 0, 0.37, 4)

    def odd_cycle(p):
        """A negative triangle: signs whose product is negative cannot all be satisfied."""
        w = p.weight
        n = p.size
        return any(w[i, j] * w[j, k] * w[i, k] < 0 for i in range(n) for j in range(i) for k in range(j))

    small = shrink(problem, odd_cycle, show=None)
    assert (small.size, small.opening, small.K) == (3, 0.0, None)
    assert set(np.abs(small.weight[np.triu_indices(3, 1)])) == {1.0}


def test_an_exception_is_hunted_by_its_type():
    def fails(problem):
        if problem.size >= 2 and problem.class_cost((0, 1)) > 3:
            raise ZeroDivisionError
        if problem.size < 2:
            raise KeyError("another defect")

    problem = GroupProblem(6, lambda items: 1.5 * len(items) + 0.25 * sum(items), K=3, penalty=np.ones(6))
    small = shrink(problem, fails, show=None)
    assert as_code(small).endswith("problem = GroupProblem(2, {(0,): 0, (1,): 0, (0, 1): 5}.__getitem__, K=None)")


def test_what_does_not_fail_cannot_be_shrunk():
    with pytest.raises(ValueError, match="does not fail"):
        shrink(MedoidProblem(np.ones((3, 3)), 1), lambda p: False)
    with pytest.raises(TypeError, match="how to make a SparseMedoidProblem smaller is not known"):
        shrink(SparseMedoidProblem([0, 1], [0], [1.0], candidates=1, K=1), lambda p: True)


def test_the_shrinker_keeps_to_its_checks():
    calls = []

    def fails(problem):
        calls.append(problem.size)
        return problem.size > 20

    shrink(MedoidProblem(np.random.default_rng(0).random((40, 40)), 5), fails, max_checks=9, show=None)
    assert len(calls) == 10


def test_long_set_functions_are_not_written_down():
    with pytest.raises(ValueError, match="shrink the problem first"):
        as_code(GroupProblem(11, len))
