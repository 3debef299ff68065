"""Prices kept in a file: what classes of layers cost, computed once, perhaps on many machines."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from geocolor.bases import FactoredKind
from geocolor.graph import CostGraph
from geocolor.hull_files import Hulls, as_tensors, from_tensors
from geocolor.rate_distortion import Options
from geocolor.schema import Frozen, Text, validated
from geocolor.tensor_files import AGAIN, read_tensors, write_tensors


@dataclass(frozen=True)
class Prices:
    """What a cost graph has priced, and under what.

    `model` is the fingerprint of its weights, `curvature` the checksum of its curvature's file.
    """

    model: str
    curvature: str
    layers: tuple[str, ...]
    kinds: tuple[FactoredKind, ...]
    aggregates: tuple[float, ...]
    hulls: Mapping[tuple[int, ...], Mapping[tuple[float, float], Options]]

    def fit(self, graph: CostGraph) -> bool:
        """Whether they are what `graph`, made of the same curvature, would compute itself."""
        names = tuple(layer.name for layer in graph.layers)
        known = (self.model, self.layers, self.kinds, self.aggregates)
        return known == (graph.fingerprint.sha256, names, graph.kinds, graph.aggregates) and graph.weights == (0.0,)


class _Header(Frozen):
    model: Text
    curvature: Text
    layers: tuple[Text, ...] = Field(min_length=1)
    kinds: tuple[FactoredKind, ...] = Field(min_length=1, max_length=3)
    aggregates: tuple[float, ...] = Field(min_length=1, max_length=16)


def write_prices(graph: CostGraph, curvature: str, path: str | Path) -> None:
    """Write all that `graph` has priced; `curvature` is the checksum of the file its curvature is in."""
    groups = list(graph.known)
    tensors = {
        "members": torch.tensor([index for group in groups for index in group], dtype=torch.int64),
        "sizes": torch.tensor([len(group) for group in groups], dtype=torch.int64),
    }
    if groups:
        which = [(power, 0.0) for power in graph.aggregates]
        tensors |= as_tensors([{each: graph.known[group][each] for each in which} for group in groups])
    header = {
        "model": graph.fingerprint.sha256,
        "curvature": curvature,
        "layers": [layer.name for layer in graph.layers],
        "kinds": graph.kinds,
        "aggregates": graph.aggregates,
    }
    write_tensors(Path(path), "prices", tensors, header)


def read_prices(path: str | Path) -> Prices:
    """Reads what `write_prices` wrote. Raises FileNotFoundError, or ValueError naming the file where it is damaged."""
    path = Path(path)
    tensors, metadata = read_tensors(path, "prices")
    header = validated(_Header, metadata, str(path), "the header", AGAIN)
    try:
        hulls = _hulls(tensors, header)
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: its prices do not fit together ({error}). {AGAIN}") from error
    return Prices(header.model, header.curvature, header.layers, header.kinds, header.aggregates, hulls)


def _hulls(tensors: Mapping[str, Tensor], header: _Header) -> dict[tuple[int, ...], Hulls]:
    members, sizes, powers = tensors["members"].tolist(), tensors["sizes"].tolist(), header.aggregates
    if min(sizes, default=1) < 1 or len(members) != sum(sizes):
        raise ValueError("classes and their sizes disagree")
    if not all(0 <= index < len(header.layers) for index in members):
        raise ValueError("a class has a layer that is not there")
    groups = [tuple(members[a:b]) for a, b in pairwise(accumulate(sizes, initial=0))]
    if not groups:
        return {}
    points, damage = tensors["points"], tensors["damage"]
    columns = {len(tensors[name]) for name in ("parameters", "damage", "kind", "rank", "right_rank", "operations")}
    if tuple(points.shape) != (len(groups), len(powers)) or int(points.min()) < 0 or columns != {int(points.sum())}:
        raise ValueError("classes and their points disagree")
    if damage.dtype != torch.float64 or not bool(torch.isfinite(damage).all()) or int(tensors["kind"].min()) < 0:
        raise ValueError("a damage is not finite, or a kind unknown")
    return dict(zip(groups, from_tensors(tensors, [(power, 0.0) for power in powers]), strict=True))
