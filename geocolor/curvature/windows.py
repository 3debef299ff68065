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
from geocolor.curvature.shrinkage import SHRINKAGE
from geocolor.curvature.sketch import Sketch, Sketchable, rank_of
from geocolor.journal import MEASURED, Journal
from geocolor.layers import Layer
from geocolor.losses import Batch, Loss, device_of, loss_for, move
from geocolor.memory import forget_peak, give_back, hold_no_free, peak
from geocolor.quantities import size

#: Matrices of the widest side that are made on the way: the product of a batch, and what dividing and damping leave.
PASSING = 5

#: The same of the n × k matrices of a sketch: the sum, a batch's product, the directions, and what is made of them.
SKETCH_PASSING = 8

LEAST_RANK = 32


def measure_within(
    memory: int,
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Sequence[Layer],
    loss: Loss | None = None,
    *,
    estimate: str = "kronecker",
    damping: float = 1e-3,
    shrinkage: float = SHRINKAGE,
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
    runs. A layer whose own statistics do not fit has them sketched (`geocolor.curvature.sketch`); pricing multiplies
    with the sketch, and makes only that of the narrower side dense. Raises ValueError where not even the sketches fit.
    """
    loss = loss_for(model, batches[0], loss)
    folder = temporary_folder() if journal is None or journal.folder is None else journal.folder
    whole = folder / _name("curvature", layers, damping, shrinkage)
    hold_no_free()
    forget_peak()
    inputs = input_groups(model, batches[0], loss, layers)
    free = min(processes.gathered(memory - peak()))
    if all(processes.gathered(whole.is_file())):
        return load_curvature(whole, free // 2)
    parts = []
    with _said_once():
        for window, ranks in windows([layer for layer in layers if layer.name in inputs], inputs, free, memory):
            part = folder / _name("window", window, damping, shrinkage, ranks)
            if not all(processes.gathered(part.is_file())):
                record = _name("sums", window, ranks).removesuffix(".safetensors")
                chosen: dict[str, Any] = {"estimate": estimate, "draws": draws, "seed": seed, "progress": progress}
                chosen |= {"journal": journal, "record": record, "ranks": ranks}
                sums = accumulate(model, batches, loss, window, **chosen)
                try:
                    finish(sums, damping=damping, shrinkage=shrinkage, consume=True).save(part)
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


def _name(what: str, layers: Sequence[Layer], *settings: object) -> str:
    """Of a file about these layers; of journals it outlives a change of other settings."""
    digest = hashlib.sha256(repr((tuple(layers), *settings)).encode()).hexdigest()[:8]
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


def windows(
    layers: Sequence[Layer], inputs: Mapping[str, str], free: int, memory: int
) -> list[tuple[list[Layer], dict[str, int]]]:
    """Layers in as few windows as fit in `free` bytes, those of one input together where they can be.

    With each window the ranks of what is sketched: of a layer that does not fit alone, its wider side, or both.
    """
    found: list[tuple[list[Layer], dict[str, int]]] = []
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(inputs[layer.name], []).append(layer)
    for group in groups.values():
        if found and not found[-1][1] and bytes_of([*found[-1][0], *group], inputs) <= free:
            found[-1][0].extend(group)
            continue
        fresh: list[Layer] = []
        for layer in group:
            if bytes_of([layer], inputs) > free:
                found.append(([layer], _ranks(layer, inputs, free, memory)))
            elif fresh and bytes_of([*fresh, layer], inputs) <= free:
                fresh.append(layer)
            else:
                fresh = [layer]
                found.append((fresh, {}))
    return found


def _ranks(layer: Layer, inputs: Mapping[str, str], free: int, memory: int) -> dict[str, int]:
    """The largest ranks with which a layer's statistics fit."""
    A, G = f"A/{inputs[layer.name]}", f"G/{layer.name}"
    least = {key: min(LEAST_RANK, width) for key, width in ((A, layer.n), (G, layer.m))}
    for sides in ((A,) if layer.n >= layer.m else (G,), (A, G)):
        ranks = {side: least[side] for side in sides}
        if bytes_of([layer], inputs, ranks) > free:
            continue
        while bytes_of([layer], inputs, larger := {side: rank + LEAST_RANK for side, rank in ranks.items()}) <= free:
            ranks = larger
        return {side: min(rank, max((layer.n if side == A else layer.m) // 4, 1)) for side, rank in ranks.items()}
    needed = memory - free + bytes_of([layer], inputs, least)
    raise ValueError(
        f"a memory of {size(memory)} is not enough: the model with one batch takes {size(memory - free)}, sketched "
        f"statistics of layer {layer.name!r} ({layer.m} × {layer.n}) {size(needed - memory + free)}; "
        f"allow {size(1.05 * needed)}, or pass smaller batches"
    )


def bytes_of(layers: Sequence[Layer], inputs: Mapping[str, str], ranks: Mapping[str, int] | None = None) -> int:
    """What the sums of a window take, and the matrices that are made on the way; `ranks` as in `windows`."""
    widths = {f"A/{inputs[layer.name]}": layer.n for layer in layers} | {f"G/{layer.name}": layer.m for layer in layers}
    ranks = ranks or {}
    dense = [width for key, width in widths.items() if key not in ranks]
    entries = sum(width**2 for width in dense) + PASSING * max(dense, default=0) ** 2
    entries += sum(SKETCH_PASSING * widths[key] * rank for key, rank in ranks.items())
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


class Union(Sketchable):
    """Mappings without a common key as one."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        self._parts = {name: part for part in parts for name in part}

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name][name]

    def rank(self, name: str) -> int | None:
        return rank_of(self._parts[name], name)

    def sketch(self, name: str) -> Sketch:
        part = self._parts[name]
        assert isinstance(part, Sketchable)
        return part.sketch(name)

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
