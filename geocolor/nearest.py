"""Which layers are worth pricing together: with hundreds of layers most pairs have nothing in common.

A basis of the inputs serves two layers where their `WᵀGW` weigh the same directions of the inputs; an output basis,
where their `WAWᵀ` do. How alike these are is told by the cosine of small random sketches of them, all pairs of which
cost next to nothing (Johnson–Lindenstrauss; Halko, Martinsson & Tropp 2011, arXiv:0909.4061).
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geocolor.bases import FactoredKind, Metric, Side, root
from geocolor.layers import Layer

#: Columns of a sketch.
WIDTH = 96


def nearest(
    layers: Sequence[Layer],
    metrics: Mapping[str, Metric],
    kinds: Sequence[FactoredKind],
    each: int,
    inputs: Mapping[str, str],
    seed: int = 0,
) -> NDArray[np.bool_]:
    """L × L: whether one of two layers is among the `each` most alike of the other on a side they could share.

    Layers that read one input (the same value in `inputs`) are always near each other.
    """
    near = np.eye(len(layers), dtype=bool)
    sides: tuple[Side, ...] = ("in", "out")
    for side in (side for side in sides if side in kinds or "both" in kinds):
        groups: dict[Hashable, list[int]] = {}
        for i, layer in enumerate(layers):
            groups.setdefault(layer.in_side if side == "in" else layer.out_side, []).append(i)
        for group in groups.values():
            alike = _alike([layers[i].name for i in group], metrics, side, seed)
            np.fill_diagonal(alike, -np.inf)
            for row, i in enumerate(group):
                for column in np.argsort(-alike[row])[: min(each, len(group) - 1)]:
                    near[i, group[column]] = near[group[column], i] = True
    readers: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        readers.setdefault(inputs.get(layer.name, layer.name), []).append(i)
    for group in readers.values():
        for i, j in pairwise(group):
            near[i, j] = near[j, i] = True
    return near


def connected(near: NDArray[np.bool_], group: Sequence[int]) -> bool:
    """Whether these layers hang together by steps from near to near."""
    reached, left = [group[0]], set(group[1:])
    while reached and left:
        i = reached.pop()
        found = [j for j in left if near[i, j]]
        left.difference_update(found)
        reached += found
    return not left


def _alike(names: Sequence[str], metrics: Mapping[str, Metric], side: Side, seed: int) -> NDArray[np.float64]:
    """Cosines of the sketches `Ωᵀ Wᵀ G W Ω` (or its mirror) of all pairs, `Ω` drawn under the mean factor of that side.

    One layer is asked for at a time, so that the others need not be in memory.
    """

    def turned(name: str) -> Metric:
        return metrics[name] if side == "in" else metrics[name].mirror

    mean = turned(names[0]).A.matrix / len(names)
    for name in names[1:]:
        mean += turned(name).A.matrix / len(names)
    width = len(mean)
    drawn = torch.randn(width, min(WIDTH, width), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    directions: Tensor = root(mean) @ drawn.to(mean)
    stacked = mean.new_empty(len(names), directions.shape[1] ** 2)
    for row, name in enumerate(names):
        member = turned(name)
        seen = member.weight @ directions
        sketch = (seen.T @ (member.G.times(seen))).flatten()
        stacked[row] = sketch / sketch.norm().clamp(min=1e-300)
    cosines: NDArray[np.float64] = (stacked @ stacked.T).cpu().numpy()
    return cosines
