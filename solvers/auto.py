"""Which solver to use when nobody says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from solvers.benders import Benders
from solvers.branch_and_cut import BranchAndCut
from solvers.branch_and_price import BranchAndPrice
from solvers.chromatic import Chromatic
from solvers.column_generation import ColumnGeneration
from solvers.group import GroupProblem
from solvers.lagrangian import Lagrangian
from solvers.local_search import LocalSearch
from solvers.medoid import MedoidProblem
from solvers.merging import Merged, MergeTwins, merge_twins, told
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.sparse_medoid import SparseMedoidProblem
from solvers.subset_dp import SubsetDP, linked_parts
from solvers.tabu import Tabu

EXACT_GROUP_ITEMS = 14
COLUMN_GENERATION_ITEMS = 200
EXACT_WEIGHTED_ITEMS = 150
SMALL_CLASS = 9


@dataclass(frozen=True)
class Auto(Solver):
    """Picks by the kind and size of the problem, and says what it picked."""

    name: ClassVar[str] = "auto"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, SparseMedoidProblem, PairwiseProblem, GroupProblem)
    exact: ClassVar[bool] = True

    def run(self, problem: Problem, search: Search) -> None:
        choose(problem)[0].run(problem, search)


def choose(problem: Problem) -> tuple[Solver, str]:
    """The solver for this problem, and why; where twins may be merged, for the problem that is left."""
    merged = _merged(problem)
    if merged is None:
        return _choose(problem)
    solver, why = _choose(merged.problem)
    return MergeTwins(solver), f"{told(merged.classes)}; {solver.name} for them: {why}"


def _merged(problem: Problem) -> Merged | None:
    """Merging pays wherever there are twins: 60 layers, copies of ten, are proven in 0.04 s, and not in 3 s unmerged.

    Not for proper coloring, whose solver sets aside more than twins. What symmetries are left are not broken: ordering
    twins makes CP-SAT up to ten times as quick, but branch and cut has no color names and is quicker still.
    """
    if isinstance(problem, MedoidProblem) or (isinstance(problem, PairwiseProblem) and not problem.weightless):
        return merge_twins(problem)
    return None


def _choose(problem: Problem) -> tuple[Solver, str]:
    if isinstance(problem, GroupProblem):
        linked = max(map(len, linked_parts(problem.compatible)), default=0)
        if linked <= EXACT_GROUP_ITEMS:
            return SubsetDP(), f"{linked} linked items are few enough to price every class"
        if problem.size <= COLUMN_GENERATION_ITEMS:
            return ColumnGeneration(), f"{linked} linked items of a set function, more than {EXACT_GROUP_ITEMS}"
        return LocalSearch(), f"{problem.size} items of a set function, more than {COLUMN_GENERATION_ITEMS}"
    if isinstance(problem, SparseMedoidProblem):
        return Lagrangian(), f"{len(problem.costs)} listed pairs of {problem.size} items: multipliers and swaps"
    if isinstance(problem, MedoidProblem):
        shape = f"{problem.size} items and {problem.candidates} candidates"
        return Benders(), f"multipliers settle most medoid problems, branch and cut the rest: {shape}"
    assert isinstance(problem, PairwiseProblem)
    if problem.weightless:
        return Chromatic(), "no pair has a weight, so conflicts and the number of colors are all there is"
    if problem.size <= EXACT_WEIGHTED_ITEMS:
        if problem.opening >= 0 and not (problem.weight < 0).any() and problem.size <= SMALL_CLASS * problem.limit:
            return BranchAndPrice(), f"no weight attracts, and classes are about {SMALL_CLASS} items or fewer"
        return BranchAndCut(), f"cutting planes often settle {problem.size} items with weights"
    return Tabu(), f"{problem.size} items with weights, more than {EXACT_WEIGHTED_ITEMS}"
