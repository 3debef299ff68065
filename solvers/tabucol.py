"""TabuCol: proper colorings by moving items out of conflicts (Hertz & de Werra 1987)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.compiled import compilation
from solvers.pairwise import PairwiseProblem
from solvers.palette import Decision, Palette, weightless_refusal
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.tabucol_kernel import FEWEST, SIGNATURE, STEP, TOTAL, move_items

EFFORT = 2_000_000
"""Between two looks at the clock; a few milliseconds."""


@dataclass(frozen=True)
class TabuCol(Solver):
    """Proper coloring with fewer and fewer colors: from random colors, move items in conflict until none is.

    Begins with DSATUR and stops at the size of a maximum clique.

    Attributes:
        iterations: moves for each number of colors before giving up; None: 500 per item.
    """

    iterations: int | None = None

    name: ClassVar[str] = "tabucol"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)

    def __post_init__(self) -> None:
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {self.iterations}")

    def refusal(self, problem: Problem) -> str:
        return super().refusal(problem) or weightless_refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, PairwiseProblem)
        rng = np.random.default_rng(search.seed)
        iterations = 500 * problem.size if self.iterations is None else self.iterations

        def decide(conflict: NDArray[np.bool_], number: int) -> Decision:
            return Decision(tabu_coloring(conflict, number, iterations, rng, search))

        Palette(problem, search).descend(decide, "")


@dataclass(frozen=True)
class Neighbours:
    """A graph as lists of neighbours: those of item i are ``others[starts[i] : starts[i + 1]]``."""

    starts: NDArray[np.int64]
    others: NDArray[np.int32]

    @classmethod
    def of(cls, conflict: NDArray[np.bool_]) -> Neighbours:
        return cls(
            np.append(0, np.cumsum(conflict.sum(axis=1, dtype=np.int64))), np.nonzero(conflict)[1].astype(np.int32)
        )

    def clashes(self, colors: NDArray[np.int32], number: int) -> NDArray[np.int32]:
        """``[L, number]``: how many neighbours of an item have a color."""
        size = len(colors)
        places = np.repeat(np.arange(size) * number, np.diff(self.starts)) + colors[self.others]
        return np.bincount(places, minlength=size * number).astype(np.int32).reshape(size, number)


def tabu_coloring(
    conflict: NDArray[np.bool_], number: int, iterations: int, rng: np.random.Generator, search: Search
) -> NDArray[np.int64] | None:
    """A proper coloring ``[L]`` with ``number`` colors, from random ones; None when the moves or the time ran out."""
    start = rng.integers(0, number, len(conflict))
    colors, clashes = fewest_clashes(Neighbours.of(conflict), start, number, iterations, rng, search)
    return colors if clashes == 0 else None


def fewest_clashes(
    graph: Neighbours,
    start: NDArray[np.int64],
    number: int,
    iterations: int,
    rng: np.random.Generator,
    search: Search,
) -> tuple[NDArray[np.int64], int]:
    """The colors ``[L]`` with the fewest conflicts met on the way from ``start``, and how many these are.

    Each step takes the best move of an item in conflict to another color, ties at random. The way back is barred for
    0.6 · (conflicts) + up to 9 steps (Galinier & Hao 1999), unless it leads below the fewest conflicts yet.
    """
    size = len(start)
    colors = start.astype(np.int32)
    clashes = graph.clashes(colors, number)
    total = int(clashes[np.arange(size), colors].sum()) // 2
    state = np.array([total, total, 0, rng.integers(1 << 48)], dtype=np.int64)
    best, barred = colors.copy(), np.zeros((size, number), dtype=np.int64)
    active = np.zeros((2, size), dtype=np.int32)
    kernel = compilation(move_items, SIGNATURE).wait(search)
    while kernel is not None and state[TOTAL] > 0 and state[STEP] < iterations:
        arrays = (graph.starts, graph.others, colors, clashes, barred, best, active, state)
        if search.expired(kernel(*arrays, iterations, EFFORT)):
            break
    return best.astype(np.int64), int(state[FEWEST])
