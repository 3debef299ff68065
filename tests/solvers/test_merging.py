"""Twins made one: the optimum stays, by enumeration; what must stay apart is left as it is."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Coloring, CpSat, LocalSearch, MedoidProblem, PairwiseProblem, certify, solve
from solvers.lagrangian import Lagrangian
from solvers.merging import MergeTwins, UnfoldingSearch, merge_twins
from solvers.search import Search
from solvers.symmetric_cp_sat import SymmetricCpSat
from solvers.testing import check_solver, medoid_problems, pairwise_problems


@st.composite
def problems_with_copies(draw):
    """Small problems some of whose items are there several times, at any mutual weight."""
    problem = draw(st.one_of(medoid_problems(4), pairwise_problems(4)).filter(lambda p: p.size > 0))
    kinds = draw(st.lists(st.integers(0, problem.size - 1), min_size=1, max_size=7))
    if isinstance(problem, MedoidProblem):
        columns = draw(st.lists(st.integers(0, problem.candidates - 1), min_size=1, max_size=5))
        return MedoidProblem(
            problem.cost_matrix[np.ix_(kinds, columns)],
            problem.K,
            penalty=None if problem.penalty is None else problem.penalty[kinds],
            group=None if problem.group is None else [problem.group[b] for b in columns],
        )
    own = np.array(draw(st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 1.0, np.inf]), min_size=4, max_size=4)))
    weight = np.where(problem.conflict, np.inf, problem.weight)
    np.fill_diagonal(weight, own[: problem.size])
    return PairwiseProblem(weight[np.ix_(kinds, kinds)], None, problem.opening, problem.K)


@settings(deadline=None, max_examples=120)
@given(problems_with_copies())
def test_the_merged_problem_has_the_same_optimum(problem):
    merged = merge_twins(problem)
    best = solve(problem, "exhaustive")
    if merged is None:
        return
    smaller = solve(merged.problem, "exhaustive")
    assert smaller.cost + merged.constant == pytest.approx(best.cost, abs=1e-9)
    if smaller.coloring is not None:
        unfolded = merged.expand(smaller.coloring)
        assert problem.cost(unfolded) == pytest.approx(best.cost, abs=1e-9)
        assert merged.problem.cost(merged.contract(unfolded)) == pytest.approx(smaller.cost, abs=1e-9)
    assert sorted(i for members in merged.classes for i in members) == list(range(problem.size))


@settings(deadline=None, max_examples=60)
@given(problems_with_copies(), st.sampled_from([CpSat(), SymmetricCpSat(), LocalSearch()]))
def test_bounds_and_evidence_hold_for_the_first_problem(problem, inner):
    best = solve(problem, "exhaustive").cost
    solution = solve(problem, MergeTwins(inner))
    assert certify(problem, solution).sound
    assert solution.lower_bound <= best + 1e-6 * (1 + abs(best) if np.isfinite(best) else 0)
    if inner.exact:
        assert solution.cost == pytest.approx(best)
        assert solution.lower_bound == pytest.approx(best)


def test_merging_keeps_the_contract():
    check_solver(MergeTwins(), max_examples=8, max_size=5)


def test_multipliers_of_merged_rows_are_evidence_for_all_of_them():
    rng = np.random.default_rng(0)
    problem = MedoidProblem(rng.random((8, 8))[np.repeat(np.arange(8), 3)], 3)
    solution = solve(problem, MergeTwins(Lagrangian()))
    verdict = certify(problem, solution)
    assert verdict.sound
    assert verdict.bound == pytest.approx(solution.lower_bound)
    assert "24 items, twins merged, are 8" in solution.message


def spread(weight, opening):
    """Two twins at ``weight``, and a third item to which both are indifferent."""
    pairs = np.zeros((3, 3))
    pairs[0, 1] = pairs[1, 0] = weight
    pairs[2, :2] = pairs[:2, 2] = 5.0
    return PairwiseProblem(pairs, opening=opening)


@pytest.mark.parametrize(
    ("weight", "opening", "merges"), [(0, 0, True), (-1, 2, True), (-1, -1, True), (1, 0, False), (-1, -1.5, False)]
)
def test_twins_are_merged_where_being_apart_can_save_nothing(weight, opening, merges):
    problem = spread(weight, opening)
    assert (merge_twins(problem) is not None) == merges
    together, apart = problem.cost(Coloring([0, 0, 1])), problem.cost(Coloring([0, 1, 2]))
    assert (together <= apart) == merges


def test_what_was_merged_may_be_twins_again():
    """Two pairs of twins that differ among themselves, and are one class of two once each is merged."""
    weight = np.full((5, 5), -3.0)
    weight[0, 1] = weight[1, 0] = weight[2, 3] = weight[3, 2] = -1.0
    weight[4] = weight[:, 4] = 2.0
    merged = merge_twins(PairwiseProblem(weight, opening=1.0))
    assert [sorted(members) for members in merged.classes] == [[0, 1, 2, 3], [4]]
    assert merged.constant == -1 - 1 - 4 * 3


def test_problems_without_twins_are_left_alone():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(9, 9))
    assert merge_twins(PairwiseProblem(weight + weight.T)) is None
    assert merge_twins(MedoidProblem(rng.random((9, 9)), 3)) is None
    assert merge_twins(PairwiseProblem(np.zeros((0, 0)))) is None


@dataclass(frozen=True)
class Interrupted(LocalSearch):
    """Finds something and is then stopped by Ctrl-C."""

    name: ClassVar[str] = "interrupted"

    def run(self, problem, search):
        search.offer(Coloring([0] * problem.size))
        raise KeyboardInterrupt


def test_what_is_found_is_handed_on_at_once():
    problem = PairwiseProblem(np.zeros((4, 4)), opening=1.0)
    solution = solve(problem, MergeTwins(Interrupted()))
    assert solution.interrupted
    assert solution.coloring == Coloring([0, 0, 0, 0])


def test_auto_merges_what_may_be_merged():
    rng = np.random.default_rng(0)
    base = rng.random((6, 6))
    kinds = np.repeat(np.arange(6), 5)
    medoid = solve(MedoidProblem(base[np.ix_(kinds, kinds)], 2))
    weight = base + base.T
    np.fill_diagonal(weight, 0.0)
    pairwise = solve(PairwiseProblem(weight[np.ix_(kinds, kinds)], K=2))
    for solution in (medoid, pairwise):
        assert solution.solver == "merge_twins"
        assert "30 items, twins merged, are 6" in solution.message
        assert solution.status == "optimal"
        assert len({solution.coloring[item] for item in range(5)}) == 1


def test_auto_leaves_proper_colorings_to_their_own_solver():
    conflict = np.kron(1 - np.eye(3), np.ones((2, 2)))
    assert "merged" not in solve(PairwiseProblem(np.zeros((6, 6)), conflict, 1.0)).message


def test_the_gap_is_closed_where_the_constant_is_all_but_the_cost():
    """Twins that gain what the rest loses: a gap that is small beside either is large beside the sum."""
    weight = np.full((4, 4), 1e6)
    weight[0, 1] = weight[1, 0] = -2e6 + 1.0
    weight[2, 3] = weight[3, 2] = -2e6 + 1.25
    problem = PairwiseProblem(weight, K=1)
    merged = merge_twins(problem)
    outer = Search(problem)
    inner = UnfoldingSearch(merged, outer)
    inner.offer(Coloring([0, 0]))
    assert outer.cost == problem.cost(Coloring([0, 0, 0, 0])) == 2.25
    inner.prove(inner.cost - 1.0, proof="a bound")
    assert not inner.closed()
    inner.prove(inner.cost, proof="a better bound")
    assert inner.closed()
    assert outer.closed()
