"""The dense Hessian block of a small layer, in float64: the brute-force twin that the tests hold estimates against."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from geocolor.layers import Layer, as_stored, weight_of
from geocolor.losses import Batch, Loss, device_of, move

Kind = Literal["gauss-newton", "hessian"]
LARGEST = 4096  # weights of a layer; the block then takes 128 MiB


@dataclass(frozen=True, eq=False)
class ExactCurvature:
    """`hessian` [mn, mn] of one layer's weight, rows of W one after another, so that it is to be compared with `G ⊗ A`.

    `gradient` [m, n] is that of the loss at the real labels.
    """

    layer: Layer
    hessian: Tensor
    gradient: Tensor
    kind: Kind

    def damage(self, name: str, delta: Tensor) -> float:
        """`½ δᵀHδ`, without the term `g·δ`."""
        if name != self.layer.name:
            raise KeyError(f"the exact curvature is that of layer {self.layer.name!r}, not of {name!r}")
        change = delta.detach().to(self.hessian).flatten()
        return 0.5 * float(change @ self.hessian @ change)


def hessian_block(
    model: nn.Module,
    layer: Layer,
    batches: Iterable[Batch],
    loss: Loss,
    *,
    kind: Kind = "gauss-newton",
    reference: nn.Module | None = None,
) -> ExactCurvature:
    """The curvature of the mean loss in the weight of `layer`, by automatic differentiation on a float64 copy.

    "hessian": all second derivatives. "gauss-newton": `Σ Jᵀ (∂²loss/∂y²) J / units`, the part that is never negative
    and that sampled gradients estimate (Schraudolph 2002); both agree where the outputs `y` are linear in the weight.
    `reference` defaults to the model itself, for losses that compare two models.

    Raises ValueError for a layer of more than 4,096 weights.
    """
    if layer.parameters > LARGEST:
        gigabytes = 8 * layer.parameters**2 / 2**30
        raise ValueError(
            f"layer {layer.name!r}: the exact block of {layer.parameters} weights takes {gigabytes:.1f} GiB; "
            f"it is meant for at most {LARGEST} weights, use estimate='kronecker'"
        )
    twin = copy.deepcopy(model).double().eval().requires_grad_(False)
    dense = twin if reference is None else copy.deepcopy(reference).double().eval().requires_grad_(False)
    weight = weight_of(twin, layer)
    block = weight.new_zeros(layer.parameters, layer.parameters)
    gradient = weight.new_zeros(layer.parameters)
    units = 0
    for raw in batches:
        batch = _double(move(raw, device_of(twin)))
        with torch.no_grad():
            expected = loss.forward(dense, batch) if loss.compares else None
        at = torch.zeros_like(weight).flatten()
        outputs = _Outputs(twin, layer, weight, batch, loss)
        total = _Total(batch, loss, expected)
        y, jacobian = outputs(at).detach(), jacrev(outputs)(at).flatten(0, -2)
        gradient += torch.func.grad(total)(y).flatten() @ jacobian
        if kind == "hessian":
            block += hessian(lambda change, f=total, g=outputs: f(g(change)))(at)
        else:
            inner = hessian(total)(y).reshape(y.numel(), y.numel())
            block += jacobian.T @ inner @ jacobian
        units += loss.total(y, batch, expected)[1]
    if units == 0:
        raise ValueError("there are no calibration batches; pass at least one")
    return ExactCurvature(layer, block / units, (gradient / units).reshape(layer.m, layer.n), kind)


@dataclass(frozen=True, eq=False)
class _Outputs:
    """The loss's outputs as a function of the change of the weight, flat."""

    model: nn.Module
    layer: Layer
    weight: Tensor
    batch: Batch
    loss: Loss

    def __call__(self, change: Tensor) -> Tensor:
        weight = as_stored(self.layer, self.weight + change.view(self.layer.m, self.layer.n))
        call = _Replaced(self.model, {f"{self.layer.name}.weight": weight})
        return self.loss.forward(call, self.batch)


@dataclass(frozen=True, eq=False)
class _Total:
    """The summed loss as a function of the outputs."""

    batch: Batch
    loss: Loss
    expected: Tensor | None

    def __call__(self, outputs: Tensor) -> Tensor:
        return self.loss.total(outputs, self.batch, self.expected)[0]


class _Replaced(nn.Module):
    """The model with some parameters replaced, so that a loss can call it like any model."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.forward = lambda *args, **keywords: functional_call(model, parameters, args, keywords)


def _double(batch: Batch) -> Batch:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _double(value) for key, value in batch.items()}
    return tuple(_double(value) for value in batch) if isinstance(batch, tuple) else batch
