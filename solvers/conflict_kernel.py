"""What is left of a conflict graph once the items are set aside that any coloring extends to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.cliques import members, neighbour_sets


@dataclass(frozen=True)
class ConflictKernel:
    """The parts of a conflict graph that decide whether it has a proper coloring with ``number`` colors.

    Set aside one after the other, until nothing changes:

    * items with fewer than ``number`` neighbours left, for which some color is always free;
    * items whose neighbours left are all neighbours of another item, whose color they can take.

    What is left falls into connected components that need not know of one another. The graph has a proper coloring
    with ``number`` colors exactly when each of ``parts`` has one.

    Attributes:
        conflict: ``[L, L]``, the whole graph.
        number: of colors.
        parts: the components, each its items ascending; the largest first.
        aside: what was set aside, in that order: the item, and the item whose color it takes or −1 for any free one.
    """

    conflict: NDArray[np.bool_]
    number: int
    parts: tuple[tuple[int, ...], ...]
    aside: tuple[tuple[int, int], ...]

    def lift(self, colors: NDArray[np.int64]) -> NDArray[np.int64]:
        """A proper coloring of all items from one of the parts (entries of other items are ignored).

        It has no more colors than the largest of ``number`` and those of the parts.
        """
        lifted = np.full(len(self.conflict), -1, dtype=np.int64)
        for part in self.parts:
            lifted[list(part)] = colors[list(part)]
        for item, model in reversed(self.aside):
            if model >= 0:
                lifted[item] = lifted[model]
                continue
            shown = lifted[self.conflict[item]]
            taken = np.zeros(len(shown) + 1, dtype=bool)
            taken[shown[(shown >= 0) & (shown < len(taken))]] = True
            lifted[item] = int(taken.argmin())
        return lifted


def conflict_kernel(conflict: NDArray[np.bool_], number: int) -> ConflictKernel:
    """Set aside what can be for colorings with ``number`` colors."""
    neighbours = neighbour_sets(conflict)
    left = (1 << len(conflict)) - 1
    aside: list[tuple[int, int]] = []
    changed = True
    while changed:
        changed = False
        for item in members(left):
            around = neighbours[item] & left
            model = -1 if around.bit_count() < number else _dominating(item, around, neighbours, left)
            if model is not None:
                aside.append((item, model))
                left ^= 1 << item
                changed = True
    return ConflictKernel(conflict, number, _components(left, neighbours), tuple(aside))


def _dominating(item: int, around: int, neighbours: list[int], left: int) -> int | None:
    """Another item left that is a neighbour of all of ``around``."""
    common = left ^ (1 << item)
    for other in members(around):
        common &= neighbours[other]
        if not common:
            return None
    return (common & -common).bit_length() - 1


def _components(left: int, neighbours: list[int]) -> tuple[tuple[int, ...], ...]:
    parts: list[tuple[int, ...]] = []
    while left:
        part = front = left & -left
        while front:
            reached = 0
            for item in members(front):
                reached |= neighbours[item]
            front = reached & left & ~part
            part |= front
        parts.append(tuple(members(part)))
        left ^= part
    return tuple(sorted(parts, key=len, reverse=True))
