"""Colour refinement of an edge-labelled complete digraph (one-dimensional Weisfeiler–Leman)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


def edge_words(values: NDArray[np.float64]) -> Words:
    """A pseudo-random 64-bit word for each ordered pair, the same where both directions carry equal floats.

    Args:
        values: ``[n, n]``, the edge labels. The diagonal plays no part in what follows: give it as a color.
    """
    forth = mixed(np.ascontiguousarray(values + 0.0).view(np.uint64))  # + 0.0: there is one zero, not two
    return forth if np.array_equal(values, values.T) else mixed(forth + (forth.T << np.uint64(1)))


def refine(words: Words, colors: Ints, splitters: NDArray[np.bool_] | None = None) -> Ints | None:
    """Split colors until vertices of one color see the same colors through the same edges.

    Args:
        words: ``[n, n]``, from ``edge_words``.
        colors: ``[k, n]``, k colorings of the same graph with names 0, 1, … in common; they are refined side by side,
            so that the results can be compared.
        splitters: ``[k, n]``, the vertices whose colors have changed since the coloring was last refined; all if None.

    Returns:
        The refined colorings; None as soon as they differ in how many vertices have some color.

    A round looks at new colors only, and at all parts of a color that was split but the largest (Hopcroft 1971). A
    multiset is told by the sum of words. Two that differ could have one sum (with probability 2⁻⁶⁴), which would only
    leave the result coarser; nothing that rests on it is taken without a check.
    """
    number = int(colors.max(initial=-1)) + 1
    looked_at = np.ones(colors.shape, bool) if splitters is None else splitters
    while number < colors.shape[1]:
        keys = mixed(colors.astype(np.uint64))
        for at, row in enumerate(colors):
            chosen = np.flatnonzero(looked_at[at])
            seen = mixed(row[chosen].astype(np.uint64) ^ np.uint64(0x5851F42D4C957F2D))
            keys[at] ^= mixed(words[chosen] ^ seen[:, None]).sum(axis=0, dtype=np.uint64)
        names = np.unique(keys.ravel(), return_inverse=True)[1].reshape(colors.shape).astype(np.int64)
        split = int(names.max(initial=-1)) + 1
        counts = np.bincount(names[0], minlength=split)
        if any(not np.array_equal(np.bincount(row, minlength=split), counts) for row in names[1:]):
            return None
        if split == number:
            break
        parent = np.empty(split, dtype=np.int64)
        parent[names[0]] = colors[0]
        order = np.lexsort((-counts, parent))
        changed = np.ones(split, bool)
        changed[order[np.flatnonzero(np.diff(parent[order], prepend=-1))]] = False  # the largest part of each
        colors, looked_at, number = names, changed[names], split
    same = all(np.array_equal(np.sort(row), np.sort(colors[0])) for row in colors[1:])
    return colors if same else None


def individualise(colors: Ints, vertices: list[int]) -> tuple[Ints, NDArray[np.bool_]]:
    """The vertex given for each coloring, not alone in its color, gets a new one; also where, for ``refine``."""
    single, where = colors.copy(), np.zeros(colors.shape, bool)
    rows = np.arange(len(colors))
    single[rows, vertices] = int(colors.max()) + 1
    where[rows, vertices] = True
    return single, where


def mixed(words: Words) -> Words:
    """splitmix64's finaliser (Steele, Lea & Flood 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words
