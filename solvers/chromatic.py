"""Proper coloring by everything there is: clique and kernel, TabuCol for colorings, CP-SAT for proofs and colorings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.coloring_model import decide_by_cp_sat
from solvers.crossing import cross_colorings
from solvers.dsatur import dsatur
from solvers.independent_sets import (
    decide_by_cover,
    fractional_weights,
    largest_independent_set,
    maximal_independent_sets,
)
from solvers.pairwise import PairwiseProblem
from solvers.palette import Decision, Palette, weightless_refusal
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.symmetric_coloring import find_symmetric_coloring
from solvers.tabucol import tabu_coloring

CP_SAT = "CP-SAT's search, exhausted"
LARGEST_SET = 30
"""Beyond so many items in a color, independent sets are too many to look at."""
MOST_SETS = 3_000
"""Up to so many maximal independent sets, programs over them all are solved."""
BOUNDING_NODES = 10_000
"""How far the search for the largest independent set goes in the first turn."""


@dataclass(frozen=True)
class Chromatic(Solver):
    """The fewest colors, until a clique or an exhausted search says that there are none.

    In turns, each four times as long as the one before, on the kernel of the conflicts: TabuCol with one color less
    than known, from the second turn on colorings crossed for four times as many moves; bounds by independent
    sets and where these are few a cover by them; CP-SAT with as few colors as are not excluded yet, for less time the
    more numbers are left to exclude, then among symmetric colorings only, and for a quarter of the time with one less
    than known. A turn is measured in moves, nodes and CP-SAT's deterministic time, so that a seed gives one answer.

    Attributes:
        workers: CP-SAT's threads. A deterministic run uses one whatever is asked for.
        iterations: TabuCol's moves for each number of colors in the first turn, 1,000 for each item at most.
        effort: CP-SAT's deterministic seconds in the first turn.
    """

    workers: int = 1
    iterations: int = 200_000
    effort: float = 2.0

    name: ClassVar[str] = "chromatic"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("iterations", self.iterations)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not self.effort > 0:
            raise ValueError(f"effort must be above 0 seconds, got {self.effort}")

    def refusal(self, problem: Problem) -> str:
        return super().refusal(problem) or weightless_refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, PairwiseProblem)
        rng = np.random.default_rng(search.seed)
        palette = Palette(problem, search)
        longer = 1

        def by_moves(conflict: NDArray[np.bool_], number: int) -> Decision:
            moves = longer * min(self.iterations, 1_000 * len(conflict))
            if longer == 1:
                return Decision(tabu_coloring(conflict, number, moves, rng, search))
            return Decision(cross_colorings(conflict, number, 4 * moves, rng, search))

        def by_cp_sat(conflict: NDArray[np.bool_], number: int) -> Decision:
            effort = longer * self.effort / (palette.upper - palette.lower)
            return decide_by_cp_sat(conflict, number, search, effort=effort, workers=self.workers)

        def by_quick_cp_sat(conflict: NDArray[np.bool_], number: int) -> Decision:
            return decide_by_cp_sat(conflict, number, search, effort=longer * self.effort / 4, workers=self.workers)

        def by_symmetry(conflict: NDArray[np.bool_], number: int) -> Decision:
            return find_symmetric_coloring(conflict, number, search, effort=longer * self.effort, workers=self.workers)

        def by_covers(conflict: NDArray[np.bool_], number: int) -> Decision:
            sets = few_independent_sets(conflict, search)
            if sets is None:
                return Decision()
            weights, most = fractional_weights(sets, len(conflict))
            if weights.sum() <= (number - 1) * most:
                return Decision()  # the relaxation is too weak for the integer program to be quick
            return decide_by_cover(sets, len(conflict), number, search, nodes=100 * longer)

        while not palette.settled() and not search.expired():
            palette.descend(by_moves, "")
            bound_by_independent_sets(palette, nodes=longer * BOUNDING_NODES)
            palette.descend(by_covers, "HiGHS's search over all maximal independent sets, exhausted")
            palette.ascend(by_cp_sat, CP_SAT)
            if not palette.settled():
                palette.attempt(palette.lower, by_symmetry, "")
            palette.descend(by_quick_cp_sat, CP_SAT)
            longer *= 4


def few_independent_sets(conflict: NDArray[np.bool_], search: Search) -> list[int] | None:
    """All maximal independent sets where they are small and few."""
    _, sizes = np.unique(dsatur(conflict).colors, return_counts=True)
    if sizes.max() > LARGEST_SET:
        return None
    return maximal_independent_sets(conflict, MOST_SETS, search.expired)


def bound_by_independent_sets(palette: Palette, nodes: int) -> None:
    """Bounds by the fractional chromatic number where independent sets are few, else by the size of the largest."""
    search = palette.search
    for part in () if palette.settled() else palette.kernel(palette.wanted).parts:
        conflict = palette.problem.conflict[np.ix_(part, part)]
        sets = few_independent_sets(conflict, search)
        if sets is not None:
            palette.certify(part, *fractional_weights(sets, len(part)))
            continue
        _, classes, sizes = np.unique(palette.colors[list(part)], return_inverse=True, return_counts=True)
        if sizes.max() > LARGEST_SET or len(part) <= sizes.max() * palette.lower:
            continue  # even the largest class is too large for a better bound
        largest = np.flatnonzero(classes == sizes.argmax()).tolist()
        most = largest_independent_set(conflict, largest, search.counted(nodes))
        if most is not None:
            palette.certify(part, np.ones(len(part), dtype=np.int64), most)
