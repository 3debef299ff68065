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
    """A proper coloring ``[L]`` with ``number`` colors, from random ones; None when the moves or the time ran out."""
    start = rng.integers(0, number, len(conflict))
    colors, clashes = fewest_clashes(conflict.astype(np.int32), start, number, iterations, rng, search)
    return colors if clashes == 0 else None


def fewest_clashes(
    rows: NDArray[np.int32],
    start: NDArray[np.int64],
    number: int,
    iterations: int,
    rng: np.random.Generator,
    search: Search,
) -> tuple[NDArray[np.int64], int]:
    """The colors ``[L]`` with the fewest conflicts met on the way from ``start``, and how many these are.

    Each step takes the best move of an item in conflict to another color, ties at random. The way back is barred for
    0.6 · (items in conflict) + up to 9 steps (Galinier & Hao 1999), unless it leads below the fewest conflicts yet.

    Args:
        rows: ``[L, L]``, 1 for a conflict and else 0.
    """
    size = len(rows)
    never = 4 * size + 4
    colors = start.copy()
    clashes = np.stack([rows[:, colors == c].sum(axis=1, dtype=np.int32) for c in range(number)], axis=1)  # [L, number]
    flat = clashes.reshape(-1)
    own = np.arange(size) * number + colors  # where an item's own color stands in ``flat``
    barred = np.zeros((size, number), dtype=np.int64)
    barred.reshape(-1)[own] = forever = iterations + 1
    total = int(flat[own].sum()) // 2
    best, fewest = colors.copy(), total
    draws: list[float] = []
    for step in range(1, iterations + 1):
        if total == 0:
            break
        if not draws:
            if search.expired(ASK_EVERY * 2e3):
                break
            draws = rng.random(ASK_EVERY).tolist()
        draw = draws.pop()
        current = flat.take(own)
        active = current.nonzero()[0]
        change = clashes.take(active, axis=0)
        change -= current.take(active)[:, None]
        moves = change.reshape(-1)
        least = int(moves[moves.argmin()])
        if total + least >= fewest:
            np.putmask(change, barred.take(active, axis=0) > step, never)
            least = int(moves[moves.argmin()])
            if least == never:
                continue
        ties = (moves == least).nonzero()[0]
        draw *= len(ties)
        chosen = int(draw)
        at, color = divmod(int(ties[chosen]), number)
        item = int(active[at])
        old = int(colors[item])
        row = rows[item]
        clashes[:, old] -= row
        clashes[:, color] += row
        colors[item] = color
        own[item] += color - old
        barred[item, old] = step + int(0.6 * len(active)) + int(10 * (draw - chosen))
        barred[item, color] = forever
        total += least
        if total < fewest:
            fewest = total
            best[:] = colors
    return best, fewest
