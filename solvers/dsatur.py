"""DSATUR: colour next the item whose neighbours already show the most colors (Brélaz 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring


def dsatur(conflict: NDArray[np.bool_]) -> Coloring:
    """A proper coloring of the conflict graph ``[L, L]``; ties go to the higher degree, then to the lower index."""
    size = len(conflict)
    colors = np.full(size, -1, dtype=np.int64)
    degree = conflict.sum(axis=1)
    seen = np.zeros((size, int(degree.max(initial=0)) + 1), dtype=bool)  # seen[i, c]: a neighbour of i has color c
    priority = degree.astype(np.int64)  # (size + 1) · saturation + degree; −1 for colored items
    for _ in range(size):
        item = int(priority.argmax())
        color = int(seen[item].argmin())  # an item of degree d has a free color among d + 1
        colors[item], priority[item] = color, -1
        told = conflict[item] & ~seen[:, color] & (colors < 0)
        seen[told, color] = True
        priority[told] += size + 1
    return Coloring(colors.tolist())


def dsatur_order(conflict: NDArray[np.bool_], first: Sequence[int]) -> list[int]:
    """The items, ``first`` before the rest, the rest by how many conflicts tie them to those before them."""
    size = len(conflict)
    order = list(first)
    step = (size + 1) * conflict
    priority = conflict.sum(axis=1) + step[:, order].sum(axis=1)
    priority[order] = -1
    for _ in range(size - len(order)):
        item = int(priority.argmax())
        order.append(item)
        priority += step[item] * (priority >= 0)
        priority[item] = -1
    return order
