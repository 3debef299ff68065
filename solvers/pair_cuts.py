"""Separation: which inequalities of the clique partitioning polytope a fractional point violates.

A point is ``E``, ``[L, L]``, symmetric with a zero diagonal: how far each pair shares a color; and ``k``, the number of
colors. The inequalities are those of ``certificates.Inequality``, which gives their formulas and sources.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TINY = 1e-6


class Cut(NamedTuple):
    """An inequality by its kind and items, as in ``certificates.Inequality``."""

    kind: str
    left: tuple[int, ...]
    right: tuple[int, ...]


def triangles(E: Floats, attractive: NDArray[np.bool_], most: int) -> list[Cut]:
    """The ``most`` violated triangle inequalities e(j, i) + e(j, k) − e(i, k) ≤ 1, the worst of each j first.

    Those whose two positive pairs both repel follow from the others at an optimum (Miyauchi & Sukegawa 2015), so they
    are asked for only where nothing else is violated.
    """
    for needed in (attractive, np.ones_like(attractive)):
        found = _triangles(E, needed, most)
        if found or needed.all():
            return found
    return []


def _triangles(E: Floats, needed: NDArray[np.bool_], most: int) -> list[Cut]:
    size = len(E)
    each = max(20, 2 * most // size)
    parts: list[tuple[Floats, NDArray[np.intp]]] = []
    for j in range(size):
        near = np.flatnonzero(E[j] > TINY)
        if len(near) < 2:
            continue
        row, wanted = E[j, near], needed[j, near]
        excess = row[:, None] + row[None, :] - E[np.ix_(near, near)] - 1.0
        p, q = np.nonzero(np.triu((excess > TINY) & (wanted[:, None] | wanted[None, :]), 1))
        values = excess[p, q]
        if len(values) > each:
            keep = np.argpartition(-values, each)[:each]
            p, q, values = p[keep], q[keep], values[keep]
        parts.append((values, np.column_stack([np.full(len(p), j), near[p], near[q]])))
    if not parts:
        return []
    values = np.concatenate([part[0] for part in parts])
    items = np.concatenate([part[1] for part in parts])
    order = np.argsort(-values, kind="stable")[:most]
    return [Cut("two_partition", (j,), (i, k)) for j, i, k in items[order].tolist()]


def packed_triangles(weight: Floats, most: int) -> list[Cut]:
    """At most so many triangles of two pairs that attract and one that repels, packed greedily into the weights.

    Each takes as much from its three pairs as the least of them has left, the strongest repulsion first; what they take
    together is a lower bound already, so they are the rows to begin with.
    """
    left = weight.copy()
    repelling = np.argwhere(np.triu(weight > 0, 1))
    order = np.argsort(-weight[repelling[:, 0], repelling[:, 1]], kind="stable")
    pull = np.maximum(-left, 0.0)
    cuts = list[Cut]()
    for i, k in repelling[order].tolist():
        room = left[i, k]
        both = np.minimum(pull[i], pull[k])
        for j in np.argsort(-both, kind="stable").tolist():
            taken = min(room, both[j])
            if taken <= 0:
                break
            room -= taken
            for a in (i, k):
                pull[a, j] -= taken
                pull[j, a] -= taken
            cuts.append(Cut("two_partition", (j,), (i, k)))
        if len(cuts) >= most:
            break
    return cuts


def stars(E: Floats, most: int, least: float = 1e-3) -> list[Cut]:
    """2-partition inequalities with one item on the left: the right side is gathered greedily from every start."""
    found: dict[Cut, float] = {}
    for j in range(len(E)):
        near = np.flatnonzero((E[j] > 1e-4) & (E[j] < 1 - 1e-4))
        number = len(near)
        if number < 3:
            continue
        inside = E[np.ix_(near, near)]
        member = np.eye(number, dtype=bool)
        value = E[j, near].copy()
        gain = E[j, near][None, :] - inside
        _gather(member, value, gain, inside, 1e-4)
        for row in np.flatnonzero(value > 1 + least):
            found[Cut("two_partition", (j,), tuple(near[member[row]].tolist()))] = float(value[row])
    return _worst(found, most)


def odd_wheels(E: Floats, most: int, least: float = 1e-3) -> list[Cut]:
    """For each hub the shortest odd closed walks in the lengths 1 − e(hub, u) − e(hub, v) + 2 e(u, v), if below 1.

    Shortest paths between the two copies of a vertex in the doubled graph; exact where triangle inequalities hold.
    """
    from scipy.sparse.csgraph import dijkstra

    found: dict[Cut, float] = {}
    for hub in range(len(E)):
        near = np.flatnonzero((E[hub] > 1e-4) & (E[hub] < 1 - 1e-4))
        number = len(near)
        if number < 5:
            continue
        row = E[hub, near]
        length = 1 - row[:, None] - row[None, :] + 2 * E[np.ix_(near, near)]
        length = np.maximum(length, 1e-6)  # scipy takes 1e-9 for no edge
        np.fill_diagonal(length, 0.0)
        length[length >= 1] = 0.0
        nothing = np.zeros_like(length)
        distance, before = dijkstra(
            np.block([[nothing, length], [length, nothing]]), indices=np.arange(number), return_predecessors=True
        )
        for start in np.flatnonzero(distance[np.arange(number), number + np.arange(number)] < 1 - 2 * least):
            walk, at = list[int](), int(before[start, number + start])
            while at != start and at >= 0:
                walk.append(at % number)
                at = int(before[start, at])
            rim = [int(start), *walk]
            if len(set(rim)) == len(rim) >= 5 and len(rim) % 2:
                first = rim.index(min(rim))
                rim = rim[first:] + rim[:first]
                cut = Cut("odd_wheel", (hub,), tuple(near[rim].tolist()))
                found[cut] = 1 - float(distance[start, number + start])
    return _worst(found, most)


def class_counts(E: Floats, apart: NDArray[np.bool_], k: float, most: int, least: float = 1e-4) -> list[Cut]:
    """``Σ e(Q) + p(p + 1)/2 · k ≥ p |Q|``: Q gathered greedily from many starts, for the p that k makes likely."""
    size = len(E)
    starts = np.argsort(E.sum(axis=1), kind="stable")[:60]
    found: dict[Cut, float] = {}
    tie = 1e-9 * apart.sum(axis=1)  # of equal items those with many conflicts first
    top = max(1, int(np.ceil(size / max(k, 1.0))))
    for p in sorted({int(step) for step in np.linspace(1, top, min(top, 20)).round()}):
        member = np.zeros((len(starts), size), dtype=bool)
        member[np.arange(len(starts)), starts] = True
        value = np.full(len(starts), float(p))
        gain = p - E[starts]
        _gather(member, value, gain, E, 1e-7, tie)
        needed = p * (p + 1) / 2 * k
        for row in np.flatnonzero(value > needed + least * p):
            found[Cut("class_count", tuple(np.flatnonzero(member[row]).tolist()), (p,))] = float(value[row] - needed)
    return _worst(found, most)


def forest(E: Floats, k: float, least: float = 1e-4) -> list[Cut]:
    """``k + Σ e(F) ≤ L`` for the heaviest spanning tree F (Prim's), where it is violated."""
    size = len(E)
    best, parent = E[0].copy(), np.zeros(size, dtype=np.intp)
    best[0] = -np.inf
    left, right, total = list[int](), list[int](), 0.0
    for _ in range(size - 1):
        item = int(best.argmax())
        if best[item] > TINY:
            left.append(item)
            right.append(int(parent[item]))
            total += float(best[item])
        closer = (E[item] > best) & np.isfinite(best)
        best[item] = -np.inf
        best[closer], parent[closer] = E[item][closer], item
    return [Cut("forest", tuple(left), tuple(right))] if k + total > size + least else []


def _gather(
    member: NDArray[np.bool_], value: Floats, gain: Floats, joined: Floats, least: float, tie: Floats | float = 0.0
) -> None:
    """Grow a set in every row, in place: the item of greatest gain joins while that is above ``least``.

    ``value`` rises by the gain, and the gains of the others fall by ``joined[item]``; ``tie`` decides between equals.
    """
    gain[member] = -np.inf
    rows = np.arange(len(member))
    while len(rows):
        chosen = (gain[rows] + tie).argmax(axis=1)
        pays = gain[rows, chosen] > least
        rows, chosen = rows[pays], chosen[pays]
        value[rows] += gain[rows, chosen]
        member[rows, chosen] = True
        gain[rows] -= joined[chosen]
        gain[rows, chosen] = -np.inf


def _worst(found: dict[Cut, float], most: int) -> list[Cut]:
    return sorted(found, key=lambda cut: (-found[cut], cut))[:most]
