"""Colorings as covers by independent sets: bounds by weights on the items, and integer programs over all maximal sets.

Dense conflict graphs have few independent sets, and there the cover's linear relaxation (the fractional chromatic
number) and its integer program prove what models with a variable for each item and color leave open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.cliques import Stop, maximum_clique, members, neighbour_sets
from solvers.palette import Decision
from solvers.search import Search

WEIGHT_UNIT = 10_000
"""Dual prices are rounded to whole multiples of 1 / WEIGHT_UNIT, so that weights are summed exactly."""


def maximal_independent_sets(conflict: NDArray[np.bool_], most: int, stop: Stop) -> list[int] | None:
    """All of them, as bit sets; None when there are more than ``most`` or when stopped.

    Bron & Kerbosch (1973) on the complement, with the pivot of most neighbours (Tomita, Tanaka & Takahashi 2006).
    """
    everything = (1 << len(conflict)) - 1
    others = [everything & ~row & ~(1 << item) for item, row in enumerate(neighbour_sets(conflict))]
    found: list[int] = []
    stack = [(0, everything, 0)]  # the set so far, what may join it, what was tried before
    while stack:
        chosen, candidates, tried = stack.pop()
        if not candidates:
            if not tried:
                found.append(chosen)
            if len(found) > most:
                return None
            continue
        if stop(200.0 * candidates.bit_count()):
            return None
        pivot = max(members(candidates | tried), key=lambda item: (candidates & others[item]).bit_count())
        for item in members(candidates & ~others[pivot]):
            bit = 1 << item
            stack.append((chosen | bit, candidates & others[item], tried & others[item]))
            candidates ^= bit
            tried |= bit
    return found


def fractional_weights(sets: Sequence[int], size: int) -> tuple[NDArray[np.int64], int]:
    """Whole weights ``[L]`` of the items and the most that any of the sets weighs, from the cover's linear program.

    Their sum over that most is a lower bound on the colors; but for rounding it is the fractional chromatic number.
    """
    from scipy.optimize import linprog

    held = _incidence(sets, size)
    solved = linprog(-np.ones(size), A_ub=held.T, b_ub=np.ones(len(sets)), bounds=(0, 1), method="highs")
    prices = np.full(size, 0.0) if solved.x is None else solved.x
    weights = np.floor(prices * WEIGHT_UNIT + 1e-6).astype(np.int64)
    return weights, max(int((held.T @ weights).max()), 1)


def largest_independent_set(conflict: NDArray[np.bool_], start: Sequence[int], stop: Stop) -> int | None:
    """The number of items of the largest independent set, from the independent set ``start``; None when stopped."""
    free = ~conflict
    np.fill_diagonal(free, False)
    found = maximum_clique(free, stop, start)
    return len(found.items) if found.maximum else None


def decide_by_cover(sets: Sequence[int], size: int, number: int, search: Search, nodes: int) -> Decision:
    """Ask for a cover by ``number`` of the maximal independent sets, by HiGHS's branch and cut with so many nodes."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    limit = math.inf if search.deterministic else search.remaining()
    held = _incidence(sets, size)
    result = milp(
        np.ones(len(sets)),
        integrality=np.ones(len(sets), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(held, 1, np.inf)],
        options={"node_limit": nodes, "time_limit": limit},
    )
    search.spend(1e4 * (len(sets) + size) * (1 + (result.mip_node_count or 0)))
    if result.mip_dual_bound is not None and result.mip_dual_bound > number + 1e-6:
        return Decision(impossible=True)
    if result.x is None or round(result.fun) > number:
        return Decision()
    colors = np.full(size, -1, dtype=np.int64)
    for color, chosen in enumerate(np.flatnonzero(result.x > 0.5).tolist()):
        for item in members(sets[chosen]):
            colors[item] = color
    return Decision(colors)


def _incidence(sets: Sequence[int], size: int):  # type: ignore[no-untyped-def]
    """``[L, number of sets]``, sparse: 1 where the set holds the item."""
    from scipy.sparse import csc_array

    rows = [list(members(chosen)) for chosen in sets]
    starts = np.cumsum([0, *map(len, rows)])
    entries = np.array([item for row in rows for item in row], dtype=np.int64)
    return csc_array((np.ones(len(entries)), entries, starts), shape=(size, len(sets)))
