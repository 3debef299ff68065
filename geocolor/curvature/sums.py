"""Sums: the raw statistics behind a curvature. They add, so parts of the data may be measured apart and merged."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from geocolor.curvature.curvature import layers_from
from geocolor.layers import Layer
from geocolor.tensor_files import read_tensors, write_tensors


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

    def all_reduce(self) -> Sums:
        """The sum over all processes of `torch.distributed`, on each of them."""
        shapes = {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}
        parts: list[tuple[Sums, dict[str, tuple[int, ...]]]] = [(self, {})] * dist.get_world_size()
        dist.all_gather_object(parts, (replace(self, tensors={}), shapes))
        total = reduce(operator.add, (counts for counts, _ in parts))
        everywhere = {key: shape for _, known in parts for key, shape in known.items()}
        device = (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        )
        for key, shape in sorted(everywhere.items()):
            own = self.tensors.get(key)
            tensor = torch.zeros(shape, dtype=torch.float64) if own is None else own
            total.tensors[key] = tensor.to(device, copy=True)
            dist.all_reduce(total.tensors[key])
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


def load_sums(path: str | Path) -> Sums:
    """Reads what `Sums.save` wrote. Raises FileNotFoundError or, for another kind of file, ValueError."""
    tensors, metadata = read_tensors(Path(path), "sums")
    return Sums(tensors=tensors, layers=layers_from(metadata.pop("layers")), **metadata)
