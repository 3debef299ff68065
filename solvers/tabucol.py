"""TabuCol: proper colorings by moving items out of conflicts (Hertz & de Werra 1987)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.pairwise import PairwiseProblem
from solvers.palette import Decision, Palette, weightless_refusal
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver

ASK_EVERY = 64
"""Moves between two looks at the clock."""


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


def tabu_coloring(
    conflict: NDArray[np.bool_], number: int, iterations: int, rng: np.random.Generator, search: Search
) -> NDArray[np.int64] | None:
    """A proper coloring ``[L]`` with ``number`` colors; None when the moves or the time ran out.

    Each step takes the best move of an item in conflict to another color, ties at random. The way back is barred for
    0.6 · (items in conflict) + up to 9 steps (Galinier & Hao 1999), unless it leads below the fewest conflicts yet.
    """
    size = len(conflict)
    rows = conflict.astype(np.int32)
    colors = rng.integers(0, number, size)
    clashes = np.stack([rows[:, colors == c].sum(axis=1) for c in range(number)], axis=1)  # [L, number]
    flat = clashes.reshape(-1)
    own = np.arange(size) * number + colors  # where an item's own color stands in ``flat``
    barred = np.zeros((size, number), dtype=np.int64)
    total = int(flat[own].sum()) // 2
    fewest = total
    never = 4 * size + 4
    for step in range(1, iterations + 1):
        if total == 0:
            return colors
        if step % ASK_EVERY == 0 and search.expired(ASK_EVERY * 2e3):
            return None
        current = flat[own]
        active = current.nonzero()[0]
        change = clashes[active] - current[active, None]
        change[np.arange(len(active)), colors[active]] = never
        free = np.where((barred[active] > step) & (change + total >= fewest), never, change).reshape(-1)
        least = int(free.min())
        if least == never:
            continue
        ties = (free == least).nonzero()[0]
        draw = int(rng.integers(len(ties) * 10))
        at, color = divmod(int(ties[draw // 10]), number)
        item = int(active[at])
        old = int(colors[item])
        clashes[:, old] -= rows[item]
        clashes[:, color] += rows[item]
        colors[item] = color
        own[item] += color - old
        barred[item, old] = step + int(0.6 * len(active)) + draw % 10
        total += least
        fewest = min(fewest, total)
    return colors if total == 0 else None
