"""Layers in their own curvature within a bound of memory: made when asked for, the latest kept, their roots on disk."""

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geocolor.bases import Metric, root, whitened
from geocolor.curvature import Curvature
from geocolor.layers import Layer, weight_of
from geocolor.memory import give_back

#: What a metric holds once it has been priced, as a multiple of what it holds at first (`Metric.gram`, its mirror …).
GROWN = 2.5


class MetricsWithin(Mapping[str, Metric]):
    """The metric of every layer of a curvature, at most `memory` bytes of them at a time, but always one.

    The root of a factor is taken once: it is kept in a temporary folder and read from there.
    """

    def __init__(self, model: nn.Module, curvature: Curvature, memory: int) -> None:
        self._model, self._curvature, self._memory = model, curvature, memory
        self._folder = Path(tempfile.mkdtemp(prefix="geocolor."))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._kept: OrderedDict[str, Metric] = OrderedDict()
        self._files: dict[tuple[str, str], Path] = {}

    def __getitem__(self, name: str) -> Metric:
        if name not in self._kept:
            layer = self._curvature.layer(name)
            self._make_room(size_of(layer))
            self._kept[name] = self._made(layer)
        self._kept.move_to_end(name)
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._curvature.A

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self._curvature.layers)

    def __len__(self) -> int:
        return len(self._curvature.layers)

    def _make_room(self, needed: int) -> None:
        while self._kept and needed + sum(map(size_of, map(self._curvature.layer, self._kept))) > self._memory:
            self._kept.popitem(last=False)
            give_back()

    def _made(self, layer: Layer) -> Metric:
        return whitened(weight_of(self._model, layer).cpu(), self._root("G", layer.name), self._shared_root(layer))

    def _shared_root(self, layer: Layer) -> Tensor:
        """The very root that another layer of the same input holds, where one is in memory."""
        inputs = self._curvature.inputs
        for name, metric in self._kept.items():
            if inputs[name] == inputs[layer.name]:
                return metric.root_in
        return self._root("A", inputs[layer.name], layer.name)

    def _root(self, side: str, name: str, of: str | None = None) -> Tensor:
        """The root of the factor of layer `of`, under the name of its group."""
        if (side, name) not in self._files:
            factors = self._curvature.A if side == "A" else self._curvature.G
            path = self._folder / f"{len(self._files)}.safetensors"
            taken = root(factors[of or name])
            save_file({"root": taken}, path)
            self._files[side, name] = path
            return taken
        found: Tensor = load_file(self._files[side, name])["root"]
        return found


def size_of(layer: Layer) -> int:
    """Bytes that a layer's metric comes to hold."""
    return round(GROWN * torch.float64.itemsize * (2 * layer.m * layer.n + layer.m**2 + layer.n**2))
