"""Proper colorings by crossing two that are nearly proper (Galinier & Hao 1999; only two: Moalic & Gondran 2018)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.search import Search
from solvers.tabucol import Neighbours, fewest_clashes

MOVES_PER_ITEM = 20
"""TabuCol's moves for each item after a crossing."""
CYCLE = 10
"""After so many generations the best colors of the cycle before the last come back."""


def cross_colorings(
    conflict: NDArray[np.bool_], number: int, iterations: int, rng: np.random.Generator, search: Search
) -> NDArray[np.int64] | None:
    """A proper coloring ``[L]`` with ``number`` colors; None when TabuCol's ``iterations`` moves or the time ran out.

    Two colorings are crossed both ways in each generation, and TabuCol mends the children. Every ``CYCLE`` generations
    an older coloring takes the place of one of the two, which keeps them apart; once alike, two new ones begin.
    """
    size = len(conflict)
    graph = Neighbours.of(conflict)
    moves = MOVES_PER_ITEM * size
    turns = max(iterations // (2 * moves), 1)
    parents: list[NDArray[np.int64]] = []
    while turns > 0 and not search.expired():
        if not parents or alike(parents[0], parents[1], number):
            parents = [rng.integers(0, number, size) for _ in range(2)]
            generation, fewest, best, older = 0, size * size, parents[0], parents[0]
        else:
            parents = [cross(parents[0], parents[1], number, rng), cross(parents[1], parents[0], number, rng)]
        for at, child in enumerate(parents):
            parents[at], clashes = fewest_clashes(graph, child, number, moves, rng, search)
            if clashes == 0:
                return parents[at]
            if clashes < fewest:
                fewest, best = clashes, parents[at]
        generation, turns = generation + 1, turns - 1
        if generation % CYCLE == 0:
            parents[0], older, fewest = older, best, size * size
    return None


def cross(
    first: NDArray[np.int64], second: NDArray[np.int64], number: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Colors ``[L]`` that take the largest class left of the one and of the other in turn, the rest at random."""
    child = np.full(len(first), -1, dtype=np.int64)
    giver, other = first.copy(), second.copy()
    for color in range(number):
        sizes = np.bincount(giver[giver >= 0], minlength=number)
        given = giver == rng.choice(np.flatnonzero(sizes == sizes.max()))
        child[given] = color
        giver[given] = other[given] = -1
        giver, other = other, giver
    left = child < 0
    child[left] = rng.integers(0, number, int(left.sum()))
    return child


def alike(first: NDArray[np.int64], second: NDArray[np.int64], number: int) -> bool:
    """Whether two colorings are the same but for the names of the colors."""
    shared = np.zeros((number, number), dtype=np.int64)
    np.add.at(shared, (first, second), 1)
    return int(shared.max(axis=1, initial=0).sum()) == len(first) == int(shared.max(axis=0, initial=0).sum())
