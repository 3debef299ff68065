"""DSATUR as an exact search: the items in the order of their saturation, every color that is free tried in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.cliques import maximum_clique, members, neighbour_sets
from solvers.pairwise import PairwiseProblem
from solvers.palette import Decision, Palette, weightless_refusal
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver

CLIQUE_NODES = 2_000
LOOK_AROUND = 3
"""Items with so few colors left are told apart by the colors that they take from their neighbours."""


@dataclass(frozen=True)
class DsaturSearch(Solver):
    """Exact coloring by branch and bound in plain Python: small graphs and those that a clique nearly decides.

    Settings: none.
    """

    name: ClassVar[str] = "dsatur"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)
    exact: ClassVar[bool] = True

    def refusal(self, problem: Problem) -> str:
        return super().refusal(problem) or weightless_refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, PairwiseProblem)
        Palette(problem, search).descend(
            lambda conflict, number: decide_by_dsatur(conflict, number, search), "DSATUR's search, exhausted"
        )


def decide_by_dsatur(conflict: NDArray[np.bool_], number: int, search: Search) -> Decision:
    """Brélaz's (1979) order made exact: a clique first, then always the item with the fewest colors left.

    Ties go to the item whose colors left are left to most of its neighbours too (Sewell 1996; San Segundo 2012 looks
    only among ties and late), and to the higher degree earlier on.
    """
    clique = maximum_clique(conflict, search.counted(CLIQUE_NODES)).items
    if len(clique) > number:
        return Decision(impossible=True)
    state = _Painted(neighbour_sets(conflict), number)
    for item in clique:
        if not state.paint(item, state.used):
            return Decision(impossible=True)
    stack = [state.choices(state.next_item())] if state.open else []
    while state.open and stack:
        item, colors = stack[-1]
        if state.colors[item] >= 0:
            state.erase()
        if search.expired(50.0 * len(conflict)):
            return Decision()
        if not colors:
            stack.pop()
        elif state.paint(item, colors.pop()) and state.open:
            stack.append(state.choices(state.next_item()))
    if state.open:
        return Decision(impossible=True)
    return Decision(np.array(state.colors, dtype=np.int64))


class _Painted:
    """A partial coloring. ``shown[i]``: the colors of item i's neighbours, a bit each. ``open``: not yet colored."""

    def __init__(self, neighbours: list[int], number: int) -> None:
        self.neighbours, self.number = neighbours, number
        self.colors = [-1] * len(neighbours)
        self.shown = [0] * len(neighbours)
        self.open = (1 << len(neighbours)) - 1
        self.used = 0
        self._trail: list[tuple[int, int, int, list[int]]] = []

    def paint(self, item: int, color: int) -> bool:
        """Give an item a color; false when that leaves a neighbour none."""
        bit, everything = 1 << color, (1 << self.number) - 1
        self.open ^= 1 << item
        self.colors[item] = color
        told, possible = [], True
        for other in members(self.neighbours[item] & self.open):
            if not self.shown[other] & bit:
                self.shown[other] |= bit
                told.append(other)
                possible = possible and self.shown[other] != everything
        self._trail.append((item, bit, self.used, told))
        self.used = max(self.used, color + 1)
        return possible

    def erase(self) -> None:
        """Take back the last color given."""
        item, bit, self.used, told = self._trail.pop()
        for other in told:
            self.shown[other] ^= bit
        self.colors[item] = -1
        self.open ^= 1 << item

    def next_item(self) -> int:
        most, ties = -1, []
        for item in members(self.open):
            saturation = self.shown[item].bit_count()
            if saturation > most:
                most, ties = saturation, [item]
            elif saturation == most:
                ties.append(item)
        if len(ties) == 1:
            return ties[0]
        if self.number - most > LOOK_AROUND:
            return max(ties, key=lambda item: (self.neighbours[item] & self.open).bit_count())
        return max(ties, key=self._shared)

    def _shared(self, item: int) -> int:
        """How often a color left to the item is left to a neighbour too."""
        ours = ((1 << self.number) - 1) & ~self.shown[item]
        return sum((ours & ~self.shown[other]).bit_count() for other in members(self.neighbours[item] & self.open))

    def choices(self, item: int) -> tuple[int, list[int]]:
        """The item and its free colors, the last to be tried first: those in use, in the end one new color."""
        number = min(self.used + 1, self.number)
        return item, [color for color in reversed(range(number)) if not self.shown[item] >> color & 1]
