"""Groupings that are fixed beforehand: every layer by itself, or the same matrix of neighbouring blocks."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geocolor.budget import Group
from geocolor.layers import Layer
from geocolor.losses import Batch, Loss, device_of, move
from geocolor.modes import evaluating


def private(layers: Sequence[Layer]) -> list[Group]:
    """Every layer a class of its own."""
    return [(i,) for i in range(len(layers))]


def neighbours(layers: Sequence[Layer], size: int = 2, sharing: Collection[str] | None = None) -> list[Group]:
    """Classes of `size` consecutive blocks: layers whose names differ in their first integer component alone.

    Where fewer than half of such a series are named in `sharing` (None: all are), it shares nothing; layers outside the
    repeated blocks are classes of their own. Classes are indices of `layers`, ascending.
    """
    series: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for i, layer in enumerate(layers):
        parts = layer.name.split(".")
        place = next((k for k, part in enumerate(parts) if part.isdigit()), None)
        if place is None:
            series[(i,)] = [(0, i)]
        else:
            kind = (*parts[:place], None, *parts[place + 1 :], layer.in_side, layer.out_side)
            series.setdefault(kind, []).append((int(parts[place]), i))
    groups: list[Group] = []
    for members in series.values():
        ordered = [i for _, i in sorted(members)]
        shared = sharing is None or 2 * sum(layers[i].name in sharing for i in ordered) >= len(ordered)
        step = size if shared else 1
        groups += [tuple(sorted(ordered[k : k + step])) for k in range(0, len(ordered), step)]
    return sorted(groups)


def readers_of_norms(model: nn.Module, layers: Sequence[Layer], batch: Batch, loss: Loss) -> set[str]:
    """Names of the layers that read the output of a normalisation: q, k, v, gate and up of a transformer block.

    What reads anything else (an attention's output, an activation) is o or down. Found by running one batch and
    comparing tensors by identity; a normalisation is a module whose own parameters all have one axis.
    """
    made: dict[int, weakref.ref[Tensor]] = {}
    found: set[str] = set()

    def normalised(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = weakref.ref(output)

    def reading(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if id(x) in made and made[id(x)]() is x:
                found.add(name)

        return hook

    handles = []
    try:
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if own and all(parameter.ndim == 1 for parameter in own) and not list(module.children()):
                handles.append(module.register_forward_hook(normalised))
        for layer in layers:
            module = model.get_submodule(layer.name)
            handles.append(module.register_forward_pre_hook(reading(layer.name), with_kwargs=True))
        with evaluating(model), torch.no_grad():
            loss.forward(model, move(batch, device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return found
