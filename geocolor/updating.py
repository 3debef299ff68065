"""Coefficients fitted again on the inputs that the smaller model really produces, layer after layer.

The sequential update of SVD-LLM (arXiv:2403.07378) and of Basis Sharing at small sizes (arXiv:2410.03765): a layer's
inputs have moved since they were measured, because the layers before it are factored now.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from geocolor.backend import factored_layers
from geocolor.bases import coefficients, metric
from geocolor.curvature import ESTIMATES, Curvature, accumulate
from geocolor.curvature.curvature import damped
from geocolor.layers import weight_of
from geocolor.losses import Batch, Loss
from geocolor.progress import track


def update_coefficients(
    smaller: nn.Module,
    dense: nn.Module,
    batches: Sequence[Batch],
    curvature: Curvature,
    loss: Loss | None = None,
    *,
    progress: bool = False,
) -> nn.Module:
    """Set, in place, the coefficients of every factored layer to the best for its present inputs.

    `C = argmin tr(G δ A' δᵀ)`, `δ = L C Rᵀ − W`, with `A'` the second moment of the inputs in `smaller` and `G` and the
    damping of `curvature` (`G = I` is what the papers do). Bases and sizes stay. In the order in which layers run;
    those that read one input are updated together. Costs a forward pass over `batches` for every input.
    """
    factored = factored_layers(smaller)
    layers = {layer.name: layer for layer in curvature.layers if layer.name in factored}
    if not layers:
        return smaller
    ran = accumulate(smaller, batches[:1], loss, list(layers.values()), estimate="activation").inputs
    for first in track(list(dict.fromkeys(ran.values())), "updating coefficients", wanted=progress):
        sums = accumulate(smaller, batches, loss, [layers[first]], estimate="activation")
        moment = ESTIMATES["activation"].input_factor(sums, layers[first])
        assert moment is not None
        A = damped(moment, curvature.damping)
        for name in (name for name, group in ran.items() if group == first):
            bases = {s: b.map.weight.detach().flatten(1).double().cpu() for s, b in factored[name].bases().items()}
            member = metric(weight_of(dense, layers[name]).cpu(), curvature.G[name], A)
            right = bases["right"].T if "right" in bases else None
            fitted = coefficients(member, bases.get("left"), right)
            weight = factored[name].coefficients.weight
            with torch.no_grad():
                weight.copy_(fitted.reshape(weight.shape))
    return smaller
