"""The pricing problem of set partitioning with pair weights: the set of least ``Σ a(i) + Σ w(i, j)``, w ≥ 0.

Pairs that may not be together have w = inf. Sets are rows of Boolean matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sets = NDArray[np.bool_]
BATCH = 4096


@dataclass(frozen=True)
class Priced:
    """The result of exact pricing.

    Attributes:
        value: the least value of a non-empty set, or the cut-off where no set is below it; −inf when cut short.
        sets: sets below the cut-off, the least among them.
        nodes: how many partial sets were looked at.
    """

    value: float
    sets: Sets
    nodes: int


def values_of(a: Floats, w: Floats, sets: Sets) -> Floats:
    member = sets.astype(np.float64)
    finite = np.where(np.isfinite(w), w, 0.0)
    return np.asarray(member @ a + ((member @ finite) * member).sum(axis=1) / 2)


def improved_sets(a: Floats, w: Floats) -> Sets:
    """One set for each item: begun by it alone, then by the best addition or removal until none pays."""
    size = len(a)
    wall = np.where(np.isfinite(w), w, 1e30)
    member = np.eye(size, dtype=bool)
    gain = a[None, :] + wall  # of adding an item; a member's removal gains −gain
    np.fill_diagonal(gain, a)
    rows = np.arange(size)
    for _ in range(3 * size):
        change = np.where(member[rows], -gain[rows], gain[rows])
        change[member[rows] & (member[rows].sum(axis=1) == 1)[:, None]] = np.inf
        chosen = change.argmin(axis=1)
        pays = change[np.arange(len(rows)), chosen] < -1e-9 * (1.0 + np.abs(a).max())
        rows, chosen = rows[pays], chosen[pays]
        if not len(rows):
            break
        sign = np.where(member[rows, chosen], -1.0, 1.0)
        moved = wall[chosen].copy()
        moved[np.arange(len(rows)), chosen] = 0.0
        gain[rows] += sign[:, None] * moved
        member[rows, chosen] ^= True
    return np.unique(member, axis=0)


def cheapest_set(a: Floats, w: Floats, cutoff: float, expired: Callable[[float], bool]) -> Priced:
    """Branch and bound in batches: items by rising a, each partial set extended by later items only.

    Weights are not negative, so a partial set of value v whose later items would change it by g ends at
    ``v + Σ min(0, g)`` or above; and by what its later items are worth among themselves, which is known from the sets
    that begin with them (Russian dolls: Verfaillie, Lemaître & Schiex 1996).
    """
    size = len(a)
    order = np.argsort(a, kind="stable")
    a, w = a[order], np.where(np.isfinite(w), w, 1e30)[np.ix_(order, order)]
    doll = np.zeros(size + 1)  # the least value of a set of items from here on, or 0
    best, found, nodes = cutoff, list[tuple[float, NDArray[np.bool_]]](), 0
    tiny = 1e-12 * (1.0 + np.abs(a).max(initial=0.0))
    for first in range(size - 1, -1, -1):
        if a[first] >= 0:
            if a[first] < best - tiny:
                best = float(a[first])
                found.append((best, np.arange(size) == first))
            continue
        low = doll[first + 1]  # sets that begin with ``first`` count if below that
        start = np.zeros((1, size), dtype=bool)
        start[0, first] = True
        gain = (a + w[first])[None, :]
        stack = [(np.array([a[first]]), start, np.where(np.arange(size) > first, gain, 0.0))]
        while stack:
            value, member, gain = stack.pop()
            nodes += len(value)
            if expired(4.0 * gain.size):
                return Priced(-np.inf, _unordered(found, order), nodes)
            least = int(value.argmin())
            low = min(low, float(value[least]))
            for row in np.flatnonzero(value < best - tiny)[:50]:
                found.append((float(value[row]), member[row]))
            best = min(best, float(value[least]))
            negative = np.minimum(gain, 0.0)
            rest = np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]  # from each item on
            limit = low - tiny
            row, item = np.nonzero((gain < 0) & (value[:, None] + np.maximum(rest, doll[None, :size]) < limit))
            later = np.maximum(rest[row, item] - gain[row, item], doll[item + 1])
            kept = value[row] + gain[row, item] + later < limit
            row, item = row[kept], item[kept]
            for at in range(0, len(row), BATCH):
                r, i = row[at : at + BATCH], item[at : at + BATCH]
                grown = member[r].copy()
                grown[np.arange(len(r)), i] = True
                further = np.where(np.arange(size)[None, :] > i[:, None], gain[r] + w[i], 0.0)
                further[gain[r] >= 0] = 0.0
                stack.append((value[r] + gain[r, i], grown, further))
        doll[first] = min(doll[first + 1], low)
    return Priced(best, _unordered(found, order), nodes)


def _unordered(found: list[tuple[float, NDArray[np.bool_]]], order: NDArray[np.intp]) -> Sets:
    found = sorted(found, key=lambda pair: pair[0])[:100]
    sets = np.zeros((len(found), len(order)), dtype=bool)
    for at, (_, member) in enumerate(found):
        sets[at, order[member]] = True
    return sets
