"""DSATUR: colour next the item whose neighbours already show the most colors (Brélaz 1979)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring


def dsatur(conflict: NDArray[np.bool_]) -> Coloring:
    """A proper coloring of the conflict graph ``[L, L]``; ties go to the higher degree, then to the lower index."""
    size = len(conflict)
    colors = np.full(size, -1, dtype=np.int64)
    degree = conflict.sum(axis=1)
    seen = np.zeros((size, size), dtype=bool)  # seen[i, c]: some neighbour of i has color c
    for _ in range(size):
        priority = seen.sum(axis=1) * (size + 1) + degree
        priority[colors >= 0] = -1
        item = int(priority.argmax())
        colors[item] = int(seen[item].argmin())  # a vertex of degree d < L always has a free color below L
        seen[conflict[item], colors[item]] = True
    return Coloring(colors.tolist())


def dsatur_order(conflict: NDArray[np.bool_], first: list[int]) -> list[int]:
    """The items, ``first`` before the rest, the rest by how many conflicts tie them to those before them."""
    order = list(first)
    rest = [i for i in range(len(conflict)) if i not in set(first)]
    tied = conflict[:, order].sum(axis=1).astype(np.int64)
    degree = conflict.sum(axis=1)
    while rest:
        item = max(rest, key=lambda i: (tied[i], degree[i], -i))
        rest.remove(item)
        order.append(item)
        tied += conflict[:, item]
    return order
