"""Colour refinement of an edge-labelled complete digraph (one-dimensional Weisfeiler–Leman)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]


def edge_words(labels: Ints) -> Words:
    """A pseudo-random 64-bit word for each edge label."""
    return _mix(labels.astype(np.uint64))


def refine(edges: Words, colors: Ints) -> Ints:
    """Split colors until vertices of one color see the same colors through the same edges.

    Args:
        edges: ``[n, n]``, the words of the edge labels.
        colors: ``[k, n]``, k colorings of the same graph with names in common; they are refined side by side, so that
            the results can be compared.

    A multiset is told by the sum of words. Two that differ could have one sum (with probability 2⁻⁶⁴), which would only
    leave the result coarser; nothing that rests on it is taken without a check.
    """
    number = len(np.unique(colors))
    while True:
        seen = _mix(colors.astype(np.uint64) + np.uint64(1))
        sums = np.stack([_mix(edges ^ row[None, :]).sum(axis=1, dtype=np.uint64) for row in seen])
        keys = np.stack([colors.astype(np.uint64).ravel(), sums.ravel()], axis=1)
        _, names = np.unique(keys, axis=0, return_inverse=True)
        colors = names.reshape(colors.shape).astype(np.int64)
        split = int(colors.max(initial=-1)) + 1
        if split == number:
            return colors
        number = split


def individualise(colors: Ints, vertex: int) -> Ints:
    """The vertex gets a color of its own, which comes before all others."""
    single = colors + 1
    single[vertex] = 0
    return single


def _mix(words: Words) -> Words:
    """splitmix64's finaliser."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Words = words ^ (words >> np.uint64(31))
    return mixed
