"""Permutation groups given by generators: orbits, and the order by Schreier and Sims."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Permutation = tuple[int, ...]
Points = NDArray[np.intp]


class Orbits:
    """Points joined to those that generators map them to; generators may be added one by one."""

    def __init__(self, size: int) -> None:
        self.leader = list(range(size))

    def find(self, point: int) -> int:
        """The smallest point of the orbit."""
        while self.leader[point] != point:
            self.leader[point] = self.leader[self.leader[point]]
            point = self.leader[point]
        return point

    def add(self, generator: Sequence[int]) -> None:
        images = np.asarray(generator, dtype=np.intp)
        for point in np.flatnonzero(images != np.arange(len(images))).tolist():
            a, b = self.find(point), self.find(int(images[point]))
            self.leader[max(a, b)] = min(a, b)


def orbits(generators: Sequence[Sequence[int]], size: int) -> tuple[Permutation, ...]:
    """The orbits of the group generated, each ascending, in the order of their first elements."""
    joined = Orbits(size)
    for generator in generators:
        joined.add(generator)
    members: dict[int, list[int]] = {}
    for point in range(size):
        members.setdefault(joined.find(point), []).append(point)
    return tuple(tuple(orbit) for orbit in members.values())


def group_order(generators: Sequence[Sequence[int]], size: int) -> int:
    """How many permutations the generators generate, exactly (Schreier–Sims; Knuth 1991).

    >>> group_order([(1, 2, 3, 4, 0), (1, 0, 2, 3, 4)], 5)
    120
    """
    chain: list[_Level] = []
    for generator in generators:
        _add(chain, 0, np.asarray(generator, dtype=np.intp).reshape(size))
    return math.prod(len(level.transversal) for level in chain)


class _Level:
    """One stabiliser of the chain: a base point and, for each point of its orbit, a permutation that leads there."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.generators: list[Points] = []
        self.transversal: dict[int, Points] = {base: np.arange(size)}


def _add(chain: list[_Level], depth: int, element: Points) -> None:
    """Make the group at this depth hold an element that fixes all earlier base points."""
    if _holds(chain, depth, element):
        return
    if depth == len(chain):
        chain.append(_Level(int(np.flatnonzero(element != np.arange(len(element)))[0]), len(element)))
    level = chain[depth]
    level.generators.append(element)
    todo = [(point, element) for point in level.transversal]
    while todo:
        point, generator = todo.pop()
        reached, path = int(generator[point]), generator[level.transversal[point]]
        if reached not in level.transversal:
            level.transversal[reached] = path
            todo.extend((reached, other) for other in level.generators)
        else:  # Schreier: these generate the stabiliser of the base point
            _add(chain, depth + 1, np.argsort(level.transversal[reached])[path])


def _holds(chain: list[_Level], depth: int, element: Points) -> bool:
    for level in chain[depth:]:
        reached = int(element[level.base])
        if reached not in level.transversal:
            return False
        element = np.argsort(level.transversal[reached])[element]
    return bool((element == np.arange(len(element))).all())
