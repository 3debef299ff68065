"""Proper coloring by everything there is: clique and kernel, TabuCol for colorings, CP-SAT for proofs and colorings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.coloring_model import decide_by_cp_sat
from solvers.pairwise import PairwiseProblem
from solvers.palette import Decision, Palette, weightless_refusal
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.tabucol import tabu_coloring

PROOF = "CP-SAT's search, exhausted"


@dataclass(frozen=True)
class Chromatic(Solver):
    """The fewest colors, until a clique or an exhausted search says that there are none.

    In turns, each four times as long as the one before, on the kernel of the conflicts: TabuCol with one color less
    than known, CP-SAT with as few as are not excluded yet, and CP-SAT with one less than known. A turn is measured in
    moves and in CP-SAT's deterministic time, so that a seed gives one answer.

    Attributes:
        workers: CP-SAT's threads. A deterministic run uses one whatever is asked for.
        iterations: TabuCol's moves for each item in the first turn.
        effort: CP-SAT's deterministic seconds in the first turn.
    """

    workers: int = 1
    iterations: int = 100
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

        def by_tabucol(conflict: NDArray[np.bool_], number: int) -> Decision:
            moves = longer * self.iterations * len(conflict)
            return Decision(tabu_coloring(conflict, number, moves, rng, search))

        def by_cp_sat(conflict: NDArray[np.bool_], number: int) -> Decision:
            return decide_by_cp_sat(conflict, number, search, effort=longer * self.effort, workers=self.workers)

        while not palette.settled() and not search.expired():
            palette.descend(by_tabucol, "")
            palette.ascend(by_cp_sat, PROOF)
            palette.descend(by_cp_sat, PROOF)
            longer *= 4
