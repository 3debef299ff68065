"""Hulls of priced classes as tensors, for files."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from geocolor.plans import Kind
from geocolor.rate_distortion import Options

Hulls = dict[float, Options]
"""The hull of one class under every power of the damage."""

KINDS: tuple[str, ...] = get_args(Kind)


def as_tensors(classes: Sequence[Hulls]) -> dict[str, Tensor]:
    """The points of all hulls end to end, and how many each has, [classes, powers]."""
    hulls = [hull for powers in classes for hull in powers.values()]
    columns = {
        name: np.concatenate([getattr(hull, name) for hull in hulls])
        for name in ("parameters", "damage", "rank", "right_rank")
    }
    columns["kind"] = np.concatenate([[KINDS.index(kind) for kind in hull.kind] for hull in hulls]).astype(np.int8)
    columns["points"] = np.array([[len(hull) for hull in powers.values()] for powers in classes])
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def from_tensors(tensors: Mapping[str, Tensor], powers: Sequence[float]) -> list[Hulls]:
    """The inverse of `as_tensors`, value by value."""
    ends = tensors["points"].flatten().cumsum(0)[:-1].numpy()
    parameters, damage, rank, right_rank, kind = (
        np.split(tensors[name].numpy(), ends) for name in ("parameters", "damage", "rank", "right_rank", "kind")
    )
    names = np.array(KINDS, dtype="U5")
    hulls = [Options(parameters[i], damage[i], names[kind[i]], rank[i], right_rank[i]) for i in range(len(parameters))]
    count = len(powers)
    return [dict(zip(powers, hulls[i : i + count], strict=True)) for i in range(0, len(hulls), count)]
