"""Coefficients fitted again on the inputs that the smaller model really produces, layer after layer.

The sequential update of SVD-LLM (arXiv:2403.07378) and of Basis Sharing at small sizes (arXiv:2410.03765): a layer's
inputs have moved since they were measured, because the layers before it are factored now.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geocolor.backend import attach_plan, factored_layers, plan_of
from geocolor.bases import coefficients, metric
from geocolor.curvature import Curvature, estimate
from geocolor.curvature.curvature import damped
from geocolor.curvature.observation import InputGroups, watched
from geocolor.divergence import divergence_of, few
from geocolor.journal import Journal
from geocolor.layers import Layer, weight_of
from geocolor.losses import Batch, Loss, device_of, loss_for, move, positions
from geocolor.mapped import copied, put_in_files
from geocolor.modes import evaluating
from geocolor.progress import track


def update_coefficients(
    smaller: nn.Module,
    dense: nn.Module,
    batches: Sequence[Batch],
    curvature: Curvature,
    loss: Loss | None = None,
    *,
    files: Path | None = None,
    progress: bool = False,
    journal: Journal | None = None,
) -> nn.Module:
    """Set, in place, the coefficients of every factored layer to the best for its present inputs.

    `C = argmin tr(G δ A' δᵀ)`, `δ = L C Rᵀ − W`, with `A'` the second moment of the inputs in `smaller` and `G` and the
    damping of `curvature` (`G = I` is what the papers do). Bases and sizes stay. In the order in which layers run;
    those that read one input are updated together, and those that read nothing are left as they are. Costs a forward
    pass over `batches` for every input. What the `journal` holds is not fitted again. With a folder `files`
    coefficients then lie in files there (`geocolor.mapped`).
    """
    journal = journal or Journal()
    factored = factored_layers(smaller)
    layers = {layer.name: layer for layer in curvature.layers if layer.name in factored}
    if not layers:
        return smaller
    loss = loss_for(dense, batches[0], loss)
    ran = inputs_read(smaller, batches[0], loss, list(layers.values()))

    def fitted(first: str) -> dict[str, Tensor]:
        seen = input_moment(smaller, layers[first], batches, loss)
        if seen is None:
            return {}
        A = damped(seen, curvature.damping)
        found = {}
        for name in (name for name, group in ran.items() if group == first):
            bases = {s: b.map.weight.detach().flatten(1).double().cpu() for s, b in factored[name].bases().items()}
            member = metric(weight_of(dense, layers[name]).cpu(), curvature.G[name], A)
            right = bases["right"].T if "right" in bases else None
            found[name] = coefficients(member, bases.get("left"), right)
        return found

    firsts = list(dict.fromkeys(ran.values()))
    for index, first in enumerate(track(firsts, "updating coefficients", wanted=progress)):
        for name, matrix in journal.tensors(f"update-{index}", partial(fitted, first)).items():
            weight = factored[name].coefficients.weight
            assert isinstance(weight, nn.Parameter)
            with torch.no_grad():
                weight.copy_(matrix.reshape(weight.shape))
            if files is not None:
                put_in_files([weight], files)
    return smaller


def updated_where_nearer(
    smaller: nn.Module,
    dense: nn.Module,
    calibration: Sequence[Batch],
    curvature: Curvature,
    loss: Loss | None = None,
    *,
    files: Path | None = None,
    progress: bool = False,
    journal: Journal | None = None,
) -> nn.Module:
    """`update_coefficients` on a copy, taken where it is nearer to the dense model on calibration data.

    At small sizes inputs have moved far and it gains much; near the dense model it may lose. At most 512 samples or
    16,384 units of the loss are used. The plan that the model remembers is scaled to the damage measured.
    """
    loss = loss_for(dense, calibration[0], loss)
    batches = few(calibration, loss, dense)
    journal = journal or Journal()
    other = copied(smaller, files)
    update_coefficients(other, dense, batches, curvature, loss, files=files, progress=progress, journal=journal)
    before, after = (
        journal.value(f"update/{name}", partial(divergence_of, dense, model, batches, loss, progress=progress))
        for name, model in (("before", smaller), ("after", other))
    )
    if not after < before:
        return smaller
    plan = plan_of(other)
    if plan is not None and after > 0:
        attach_plan(other, plan.rescaled(after / before))
    return other


def inputs_read(model: nn.Module, batch: Batch, loss: Loss, layers: Sequence[Layer]) -> dict[str, str]:
    """For every layer that is called, in the order of the calls, the first one that reads the very same input."""
    groups = InputGroups({})

    def on_call(layer: Layer, x: Tensor) -> None:
        groups.reads(layer, x)

    with watched(model, layers, on_call, gradients=False):
        loss.forward(model, move(batch, device_of(model)))
    groups.settle()
    return groups.inputs


def input_moment(model: nn.Module, layer: Layer, batches: Sequence[Batch], loss: Loss) -> Tensor | None:
    """`Σ x xᵀ / positions` of what `layer` reads, n × n; every pass ends where the layer is first called.

    None where it reads no position, as an expert may that these batches are not sent to.
    """
    moment, count, mask = torch.zeros(layer.n, layer.n, dtype=torch.float64), 0, None
    room = estimate.Room()

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal moment, count
        x = args[0] if args else next(iter(kwargs.values()))
        seen, positions_seen = estimate.input_moment(layer, x, mask, 0, room)
        moment += seen.cpu()
        count += positions_seen
        raise _ReadError

    handle = model.get_submodule(layer.name).register_forward_pre_hook(read, with_kwargs=True)
    try:
        with evaluating(model):
            for batch in batches:
                batch = move(batch, device_of(model))
                mask = positions(batch)
                with suppress(_ReadError):
                    loss.forward(model, batch)
    finally:
        handle.remove()
    return moment / count if count else None


class _ReadError(Exception):
    """Thrown through the model once the layer has been reached."""
