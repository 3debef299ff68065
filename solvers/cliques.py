"""Large and maximum cliques of a conflict graph, its rows held as bit sets in Python's whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Stop = Callable[[float], bool]
"""Asked with the steps done since it was last asked; true ends the search."""

STARTS = 50
"""From how many items, those of the highest degree, a clique is grown greedily."""


@dataclass(frozen=True)
class FoundClique:
    """Items that all conflict with one another, ascending, and whether it is proven that no clique is larger."""

    items: tuple[int, ...]
    maximum: bool


def neighbour_sets(conflict: NDArray[np.bool_]) -> list[int]:
    """The neighbours of each item as the set bits of a number: bit j of entry i is ``conflict[i, j]``."""
    packed = np.packbits(conflict, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def members(bits: int) -> Iterator[int]:
    """The places of the set bits, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def greedy_clique(conflict: NDArray[np.bool_], starts: int = STARTS) -> list[int]:
    """Items that all conflict with one another, ascending; their number is a lower bound on the colors.

    Grown from each of the ``starts`` items of highest degree by the candidate with the most neighbours among the
    candidates.
    """
    if not len(conflict):
        return []
    neighbours = neighbour_sets(conflict)
    degree = conflict.sum(axis=1)
    best: list[int] = []
    for first in np.argsort(-degree, kind="stable")[:starts].tolist():
        if degree[first] < len(best):
            break  # no item further on is in a larger clique
        clique, candidates = [first], neighbours[first]
        while candidates and len(clique) + candidates.bit_count() > len(best):
            chosen = max(members(candidates), key=lambda item: (candidates & neighbours[item]).bit_count())
            clique.append(chosen)
            candidates &= neighbours[chosen]
        if not candidates and len(clique) > len(best):
            best = clique
    return sorted(best)


def maximum_clique(conflict: NDArray[np.bool_], stop: Stop, start: Sequence[int] = ()) -> FoundClique:
    """Branch and bound with greedy colorings as bounds, from the clique ``start`` or a greedy one.

    Items are renumbered by peeling off one of least degree at a time; a node colors its candidates by independent sets
    of bits and branches only on those whose color, with the clique so far, could beat the best (Tomita & Kameda 2007;
    San Segundo, Rodríguez-Losada & Jiménez 2011).
    """
    greedy = greedy_clique(conflict)
    best = sorted(start) if len(start) >= len(greedy) else greedy
    # Only items of a core of degree |best| can be in a larger clique; the last peeled comes first.
    order = _peeled(conflict, len(best))[::-1]
    if not order:
        return FoundClique(tuple(best), True)
    neighbours = neighbour_sets(conflict[np.ix_(order, order)])
    everything = (1 << len(order)) - 1
    clique: list[int] = []
    stack = [_Node(everything, *_branches(everything, neighbours, len(best)))]
    while stack:
        node = stack[-1]
        if not node.branches or len(clique) + node.colors[-1] <= len(best):
            stack.pop()
            if clique:
                clique.pop()
            continue
        if stop(1e3 + 30.0 * node.candidates.bit_count()):
            return FoundClique(tuple(best), False)
        item = node.branches.pop()
        node.colors.pop()
        candidates = node.candidates & neighbours[item]
        node.candidates ^= 1 << item
        if candidates:
            clique.append(item)
            stack.append(_Node(candidates, *_branches(candidates, neighbours, len(best) - len(clique))))
        elif len(clique) >= len(best):
            best = sorted(order[i] for i in [*clique, item])
    return FoundClique(tuple(best), True)


@dataclass
class _Node:
    """Candidates to extend the clique by, those worth branching on (last first), and the color of each of these."""

    candidates: int
    branches: list[int]
    colors: list[int]


def _branches(candidates: int, neighbours: list[int], enough: int) -> tuple[list[int], list[int]]:
    """The candidates that a greedy coloring gives a color above ``enough``, and these colors, ascending from 1."""
    branches: list[int] = []
    colors: list[int] = []
    color = 0
    while candidates:
        color += 1
        free = candidates
        while free:
            lowest = free & -free
            item = lowest.bit_length() - 1
            candidates ^= lowest
            free &= ~(neighbours[item] | lowest)
            if color > enough:
                branches.append(item)
                colors.append(color)
    return branches, colors


def _peeled(conflict: NDArray[np.bool_], core: int) -> list[int]:
    """The items of the ``core``-core in the order in which one of least degree left is taken away."""
    degree = conflict.sum(axis=1).astype(np.int64)
    gone = len(conflict) + 1
    order: list[int] = []
    for _ in range(len(conflict)):
        item = int(degree.argmin())
        if degree[item] >= core or order:
            order.append(item)
        degree[conflict[item]] -= 1
        degree[item] = gone * 2
        degree[degree > gone] = gone * 2
    return order
