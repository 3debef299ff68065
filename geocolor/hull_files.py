"""Hulls of priced classes as tensors, for files."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from geocolor.plans import Kind
from geocolor.rate_distortion import Options

Hulls = dict[tuple[float, float], Options]
"""The hull of one class under every power of the damage and weight of operations."""

KINDS: tuple[str, ...] = get_args(Kind)


def as_tensors(classes: Sequence[Hulls]) -> dict[str, Tensor]:
    """The points of all hulls end to end, and how many each has, [classes, hulls]."""
    hulls = [hull for powers in classes for hull in powers.values()]
    columns = {
        name: np.concatenate([getattr(hull, name) for hull in hulls])
        for name in ("parameters", "damage", "rank", "right_rank", "operations")
    }
    columns["kind"] = np.concatenate([[KINDS.index(kind) for kind in hull.kind] for hull in hulls]).astype(np.int8)
    columns["points"] = np.array([[len(hull) for hull in powers.values()] for powers in classes])
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def from_tensors(tensors: Mapping[str, Tensor], which: Sequence[tuple[float, float]]) -> list[Hulls]:
    """The inverse of `as_tensors`, value by value; `which` are the keys of every class, in order."""
    ends = tensors["points"].flatten().cumsum(0)[:-1].numpy()
    parameters, damage, rank, right_rank, operations, kind = (
        np.split(tensors[name].numpy(), ends)
        for name in ("parameters", "damage", "rank", "right_rank", "operations", "kind")
    )
    names = np.array(KINDS, dtype="U5")
    weights = [weight for _, weight in which] * (len(parameters) // len(which))
    hulls = [
        Options(parameters[i], damage[i], names[kind[i]], rank[i], right_rank[i], operations[i], weight)
        for i, weight in enumerate(weights)
    ]
    count = len(which)
    return [dict(zip(which, hulls[i : i + count], strict=True)) for i in range(0, len(hulls), count)]
