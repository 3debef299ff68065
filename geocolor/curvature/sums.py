"""Sums: the raw statistics behind a curvature. They add, so parts of the data may be measured apart and merged."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from geocolor import processes
from geocolor.curvature.curvature import check_inputs, layers_from
from geocolor.layers import Layer
from geocolor.schema import Count, Frozen, NamedShape, Text, validated
from geocolor.tensor_files import AGAIN, check_tensors, read_tensors, write_tensors


@dataclass(eq=False)
class Sums:
    """Float64 sums over calibration data, one tensor per key such as "A/<layer>" or "G/<layer>", and their counts.

    `a + b` is what measuring both parts together gives, exactly so up to the order of additions when the generator was
    keyed by the same batch indices (`accumulate(..., first=a.batches)`). `draws` counts the sampled units, so that
    parts with different numbers of draws merge correctly; `units` counts each unit once.
    """

    estimate: str
    loss: str
    unit: str
    layers: tuple[Layer, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    units: int = 0
    sampled: int = 0
    samples: int = 0
    batches: int = 0
    seed: int = 0

    def add(self, key: str, value: Tensor) -> None:
        """Adds `value` in float64."""
        if key in self.tensors:
            if self.tensors[key].device != value.device:  # read from a file, or the layer has moved
                self.tensors[key] = self.tensors[key].to(value.device)
            self.tensors[key] += value
        else:
            self.tensors[key] = value.to(torch.float64, copy=True)

    def __add__(self, other: Sums) -> Sums:
        self._check(other)
        tensors = dict(other.tensors)
        for key, tensor in self.tensors.items():
            tensors[key] = tensor + tensors[key].to(tensor.device) if key in tensors else tensor
        return replace(
            self,
            tensors=tensors,
            inputs={**other.inputs, **self.inputs},
            positions={
                name: self.positions.get(name, 0) + other.positions.get(name, 0)
                for name in {**self.positions, **other.positions}
            },
            units=self.units + other.units,
            sampled=self.sampled + other.sampled,
            samples=self.samples + other.samples,
            batches=self.batches + other.batches,
        )

    def save(self, path: str | Path) -> None:
        metadata = {key: value for key, value in vars(self).items() if key not in ("tensors", "layers")}
        metadata["layers"] = [asdict(layer) for layer in self.layers]
        write_tensors(Path(path), "sums", self.tensors, metadata)

    def times(self, count: int) -> Sums:
        """What measuring the same data `count` times gives: a bootstrap draws parts of the data with replacement."""
        return replace(
            self,
            tensors={key: count * tensor for key, tensor in self.tensors.items()},
            positions={name: count * seen for name, seen in self.positions.items()},
            units=count * self.units,
            sampled=count * self.sampled,
            samples=count * self.samples,
            batches=count * self.batches,
        )

    def all_reduce(self) -> Sums:
        """The sum over all processes of `torch.distributed`, on each of them; the own part is let go of on the way."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}
        parts = processes.gathered((replace(self, tensors={}), shapes))
        total = reduce(operator.add, (counts for counts, _ in parts))
        everywhere = {key: shape for _, known in parts for key, shape in known.items()}
        device = processes.exchange_device()
        for key, shape in sorted(everywhere.items()):
            own = self.tensors.pop(key, None)
            tensor = torch.zeros(shape, dtype=torch.float64) if own is None else own
            total.tensors[key] = processes.summed(tensor.to(device, copy=True))
        return total

    def _check(self, other: Sums) -> None:
        for key in ("estimate", "loss", "layers"):
            if getattr(self, key) != getattr(other, key):
                theirs, ours = getattr(other, key), getattr(self, key)
                what = "other layers" if key == "layers" else f"{key} {theirs!r}, not {ours!r}"
                raise ValueError(f"these sums cannot be added: the second was measured with {what}; measure it again")
        for name in self.inputs.keys() & other.inputs.keys():
            if self.inputs[name] != other.inputs[name]:
                raise ValueError(
                    f"these sums cannot be added: layer {name!r} shares its input with {self.inputs[name]!r} in one "
                    f"and with {other.inputs[name]!r} in the other; measure both with share_inputs=False"
                )


class _Header(Frozen):
    estimate: Text
    loss: Text
    unit: Text
    layers: tuple[NamedShape, ...]
    inputs: dict[Text, Text]
    positions: dict[Text, Count]
    units: Count
    sampled: Count
    samples: Count
    batches: Count
    seed: int


def load_sums(path: str | Path) -> Sums:
    """Reads what `Sums.save` wrote.

    Raises FileNotFoundError, or ValueError naming the file where it is damaged, of another kind or incomplete.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path, "sums")
    header = validated(_Header, metadata, str(path), "the header", AGAIN)
    layers = layers_from(header.layers, path)
    check_inputs(header.inputs, layers, path, complete=False)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        shapes |= {
            f"A/{layer.name}": (layer.n, layer.n),
            f"G/{layer.name}": (layer.m, layer.m),
            f"F/{layer.name}": (layer.m,),
            f"VA/{layer.name}": (3,),
            f"VG/{layer.name}": (3,),
            f"DA/{layer.name}": (layer.n,),
            f"DG/{layer.name}": (layer.m,),
        }
        for key, width in ((f"SA/{layer.name}", layer.n), (f"SG/{layer.name}", layer.m)):
            if key in tensors:
                shapes[key] = (width, min(tensors[key].shape[-1], width) if tensors[key].ndim else 0)
    check_tensors(path, tensors, {key: shape for key, shape in shapes.items() if key in tensors})
    halves = {key[1:] for key in tensors if key.startswith("S")} ^ {key[1:] for key in tensors if key.startswith("D")}
    if halves:
        raise ValueError(f"{path}: of the sketch of {min(halves)!r} one half is missing. {AGAIN}")
    counted = {key.partition("/")[2] for key in tensors if key.startswith(("A/", "DA/"))}
    uncounted = [name for name in counted if not header.positions.get(name)]
    if uncounted or (tensors and not header.sampled) or header.sampled < header.units:
        raise ValueError(f"{path}: its counts do not fit its sums. {AGAIN}")
    return Sums(tensors=tensors, layers=layers, **{name: value for name, value in header if name != "layers"})
