"""Kronecker factors that stay in their file, read one by one when asked for, so that they need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from geocolor.curvature.sketch import Sketch, Sketchable
from geocolor.tensor_files import TensorFile


@dataclass(frozen=True, eq=False)
class OnDisk(Sketchable):
    """Factors by layer, nobody but the caller holding what was read; `tensors` names their tensors in `file`.

    `memory` bounds, in bytes, what is computed of them and kept. `scales` multiply factors; `lift` times the mean of
    its diagonal is added to that of each (more damping than the file's).
    """

    file: TensorFile
    tensors: Mapping[str, str]
    memory: int
    scales: Mapping[str, float] = field(default_factory=dict)
    lift: float = 0.0

    def __getitem__(self, name: str) -> Tensor:
        if self.rank(name) is not None:
            return self.sketch(name).dense()
        factor = self.file[self.tensors[name]]
        if name in self.scales:
            factor = factor * self.scales[name]
        if self.lift:
            factor = factor.clone()
            factor.diagonal().add_(self.lift * float(factor.diagonal().mean()))
        return factor

    def rank(self, name: str) -> int | None:
        key = self.tensors[name]
        return None if key in self.file else self.file.shape(f"U{key}")[1]

    def sketch(self, name: str) -> Sketch:
        key = self.tensors[name]
        found = Sketch(self.file[f"U{key}"], self.file[f"D{key}"])
        if name in self.scales:
            found = found.scaled(self.scales[name])
        return found.lifted(self.lift) if self.lift else found

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def path(self) -> Path:
        return self.file.path

    def scaled(self, scales: Mapping[str, float]) -> OnDisk:
        """The factors times `scales`."""
        both = {name: self.scales.get(name, 1.0) * scales.get(name, 1.0) for name in {*self.scales, *scales}}
        return replace(self, scales=both)

    def lifted(self, lift: float) -> OnDisk:
        """The factors with `lift` times the mean of their diagonal added to it."""
        return replace(self, lift=(1 + self.lift) * (1 + lift) - 1)
