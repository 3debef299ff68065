"""Curvature within a bound of memory: a window of layers at a time, each a pass over the data, written when done."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geocolor import processes
from geocolor.curvature.curvature import Curvature, load_curvature
from geocolor.curvature.measurement import NothingMeasuredError, accumulate, finish, some
from geocolor.curvature.observation import InputGroups, OnGradient, watched
from geocolor.journal import MEASURED, Journal
from geocolor.layers import Layer
from geocolor.losses import Batch, Loss, default_loss, device_of, move
from geocolor.memory import forget_peak, give_back, peak
from geocolor.quantities import size

#: Matrices of the widest side that are made on the way: the product of a batch, and what dividing and damping leave.
PASSING = 5


def measure_within(
    memory: int,
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Sequence[Layer],
    loss: Loss | None = None,
    *,
    estimate: str = "kronecker",
    damping: float = 1e-3,
    draws: int = 1,
    seed: int = 0,
    progress: bool = False,
    journal: Journal | None = None,
) -> Curvature:
    """`measure` in a process that holds at most `memory` bytes; the same factors, which stay in a file.

    The first batch is run once to see which layers read one input, and how much the model takes. What is left bounds a
    window of layers, and half of it later what is kept of what is computed of the factors
    (`geocolor.curvature.on_disk`). The file is one of the `journal`, which goes on from windows that are finished and
    from the sums of the one under way; where it keeps nothing, it lies in a temporary folder as long as the process
    runs. Raises ValueError where `memory` is not enough for the layer with the widest sides.
    """
    loss = default_loss(model, batches[0]) if loss is None else loss
    folder = temporary_folder() if journal is None or journal.folder is None else journal.folder
    whole = folder / _name("curvature", layers, damping)
    forget_peak()
    inputs = input_groups(model, batches[0], loss, layers)
    free = min(processes.gathered(memory - peak()))
    if all(processes.gathered(whole.is_file())):
        return load_curvature(whole, free // 2)
    parts = []
    with _said_once():
        for window in windows([layer for layer in layers if layer.name in inputs], inputs, free, memory):
            part = folder / _name("window", window, damping)
            if not all(processes.gathered(part.is_file())):
                record = _name("sums", window, 0.0).removesuffix(".safetensors")
                chosen: dict[str, Any] = {"estimate": estimate, "draws": draws, "seed": seed, "progress": progress}
                sums = accumulate(model, batches, loss, window, **chosen, journal=journal, record=record)
                try:
                    finish(sums, damping=damping, consume=True).save(part)
                except NothingMeasuredError as error:
                    warnings.warn(str(error), stacklevel=2)
                    continue
                for file in folder.glob(f"{record}*"):
                    file.unlink()
            parts.append(part)
            give_back()
        never = [f"{layer.name!r} (never ran)" for layer in layers if layer.name not in inputs]
        if never:
            warnings.warn(f"left out of the curvature, and so left as they are: {some(never)}", stacklevel=2)
    if not parts:
        raise NothingMeasuredError("no layer can be measured: does the loss depend on the layers in scope?")
    joined([load_curvature(part, free) for part in parts], layers, inputs).save(whole)
    for part in parts:
        part.unlink()
    return load_curvature(whole, free // 2)


def _name(what: str, layers: Sequence[Layer], damping: float) -> str:
    """Of a file about these layers; of journals it outlives a change of other settings."""
    digest = hashlib.sha256(repr((tuple(layers), damping)).encode()).hexdigest()[:8]
    return f"{MEASURED}-{what}-{digest}-{processes.rank()}-of-{processes.world()}.safetensors"


def temporary_folder() -> Path:
    """One that lasts as long as the process."""
    folder = tempfile.mkdtemp(prefix="geocolor.")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def input_groups(model: nn.Module, batch: Batch, loss: Loss, layers: Sequence[Layer]) -> dict[str, str]:
    """For every layer that is called, the first one that reads the very same input; the model runs there and back."""
    groups = InputGroups({})

    def on_call(layer: Layer, x: Tensor) -> OnGradient:
        groups.reads(layer, x)
        return lambda _: None

    device = device_of(model)
    with watched(model, layers, on_call, gradients=True) as leaves:
        batch = move(batch, device)
        pseudo, _ = loss.sample(loss.forward(model, batch), batch, torch.Generator(device).manual_seed(0))
        if leaves and pseudo.requires_grad:
            torch.autograd.backward(pseudo, inputs=leaves)
    groups.settle()
    return groups.inputs


def windows(layers: Sequence[Layer], inputs: Mapping[str, str], free: int, memory: int) -> list[list[Layer]]:
    """Layers in as few windows as fit in `free` bytes, those of one input together where they can be."""
    found: list[list[Layer]] = []
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(inputs[layer.name], []).append(layer)
    for group in groups.values():
        if found and bytes_of([*found[-1], *group], inputs) <= free:
            found[-1] += group
            continue
        found.append([])
        for layer in group:
            if found[-1] and bytes_of([*found[-1], layer], inputs) > free:
                found.append([])
            found[-1].append(layer)
            if bytes_of(found[-1], inputs) > free:
                needed = memory - free + bytes_of([layer], inputs)
                raise ValueError(
                    f"a memory of {size(memory)} is not enough: the model with one batch takes {size(memory - free)}, "
                    f"the statistics of layer {layer.name!r} ({layer.m} × {layer.n}) {size(needed - memory + free)}; "
                    f"allow {size(1.05 * needed)}, or pass smaller batches"
                )
    return found


def bytes_of(layers: Sequence[Layer], inputs: Mapping[str, str]) -> int:
    """What the sums of a window take, and the matrices that are made on the way."""
    widest = max(max(layer.m, layer.n) for layer in layers)
    moments = {inputs[layer.name]: layer.n**2 for layer in layers}
    entries = sum(moments.values()) + sum(layer.m**2 for layer in layers) + PASSING * widest**2
    return entries * torch.float64.itemsize


def joined(parts: Sequence[Curvature], layers: Sequence[Layer], inputs: Mapping[str, str]) -> Curvature:
    """The curvature of all `layers` from those of windows."""
    measured = {layer.name for part in parts for layer in part.layers}
    layers = tuple(layer for layer in layers if layer.name in measured)
    firsts: dict[str, str] = {}
    return replace(
        parts[0],
        layers=layers,
        A=Union([part.A for part in parts]),
        G=Union([part.G for part in parts]),
        positions={name: count for part in parts for name, count in part.positions.items()},
        inputs={layer.name: firsts.setdefault(inputs[layer.name], layer.name) for layer in layers},
    )


class Union(Mapping[str, Tensor]):
    """Mappings without a common key as one."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        self._parts = {name: part for part in parts for name in part}

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


@contextmanager
def _said_once() -> Iterator[None]:
    """What every window warns of is said once, at the end."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in said):
        warnings.warn(text, stacklevel=4)
