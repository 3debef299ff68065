"""Layers in their own curvature within a bound of memory: made when asked for, those asked for last are kept."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geocolor.bases import Factor, Metric
from geocolor.curvature import Curvature
from geocolor.curvature.sketch import Sketch, Sketchable
from geocolor.layers import Layer, weight_of
from geocolor.memory import give_back, hold_no_free

#: What is computed once of a metric and its mirror, where it has been asked for.
REMEMBERED = {"gram", "spectrum", "leading"}


class MetricsWithin(Mapping[str, Metric]):
    """The metric of every layer of a curvature, at most `memory` bytes of them at a time, but always one.

    `WᵀGW`, `WAWᵀ` and spectra are computed once: of a metric that is let go they are kept in a temporary folder.
    """

    def __init__(
        self,
        model: nn.Module,
        curvature: Curvature,
        memory: int,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        hold_no_free()
        self._model, self._curvature, self._memory = model, curvature, memory
        self._dtype, self._device = dtype, torch.device(device)
        self._folder = Path(tempfile.mkdtemp(prefix="geocolor."))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._kept: OrderedDict[str, Metric] = OrderedDict()
        self._files: dict[tuple[str, str, str], Path] = {}
        self._energies: dict[str, float] = {}

    def __getitem__(self, name: str) -> Metric:
        if name not in self._kept:
            layer = self._curvature.layer(name)
            self._make_room(self._size(name))
            self._kept[name] = self._made(layer)
        self._kept.move_to_end(name)
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._curvature.A

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self._curvature.layers)

    def __len__(self) -> int:
        return len(self._curvature.layers)

    def set_aside(self) -> None:
        """Let go of all layers; what has been computed of them is in files."""
        while self._kept:
            self._remember(*self._kept.popitem(last=False))
        give_back()

    def _make_room(self, needed: int) -> None:
        while self._kept and needed + sum(map(self._size, self._kept)) > self._memory:
            self._remember(*self._kept.popitem(last=False))
            give_back()

    def _size(self, name: str) -> int:
        return size_of(self._curvature.layer(name), self._dtype)

    def _remember(self, name: str, metric: Metric) -> None:
        for side, turned in (("in", metric), ("out", metric.mirror)):
            for what in REMEMBERED & turned.__dict__.keys():
                if (key := (side, what, name)) not in self._files:
                    path = self._folder / f"{len(self._files)}.safetensors"
                    save_file({what: turned.__dict__[what].contiguous()}, path)
                    self._files[key] = path
        if "energy" in metric.narrow.__dict__:
            self._energies[name] = metric.energy

    def _made(self, layer: Layer) -> Metric:
        weight = weight_of(self._model, layer, self._dtype).to(self._device)
        metric = Metric(weight, self._factor(self._curvature.G, layer.name), self._shared(layer))
        for side, turned in (("in", metric), ("out", metric.mirror)):
            for what in REMEMBERED:
                if (path := self._files.get((side, what, layer.name))) is not None:
                    loaded = load_file(path, device=str(self._device))[what]
                    turned.__dict__[what] = loaded.clone()  # aligned, or products would differ in the last bit
        if layer.name in self._energies:
            metric.narrow.__dict__["energy"] = self._energies[layer.name]
        return metric

    def _factor(self, factors: Mapping[str, Tensor], name: str) -> Factor:
        return Factor(held(factors, name, self._dtype, self._device))

    def _shared(self, layer: Layer) -> Factor:
        """The very `A` that another layer of the same input holds, where one is in memory."""
        inputs = self._curvature.inputs
        for name, metric in self._kept.items():
            if inputs[name] == inputs[layer.name]:
                return metric.A
        return self._factor(self._curvature.A, layer.name)


def size_of(layer: Layer, dtype: torch.dtype = torch.float64) -> int:
    """Bytes that a layer's metric comes to hold: `W`, `A`, `G`; of sides that are not the wider one roots and grams."""
    m, n = layer.m, layer.n
    sides = m * m * (3 if m <= n else 1) + n * n * (3 if n <= m else 1)
    return dtype.itemsize * (sides + min(m, n) ** 2 + (3 if m != n else 2) * m * n)


def held(
    factors: Mapping[str, Tensor],
    name: str,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor | Sketch:
    """The factor of a layer: a sketch where there is one."""
    if isinstance(factors, Sketchable) and factors.rank(name) is not None:
        sketch = factors.sketch(name)
        return Sketch(sketch.low.to(device, dtype), sketch.diagonal.to(device, dtype), sketch.outside)
    return factors[name].to(device, dtype)
