"""The flattest or the sharpest axes of every layer's Hessian block, by Lanczos' method on Hessian-vector products.

The curvature of Geo-Sharing (arXiv:2511.06786). No block is ever formed: a product `v ↦ Hv` costs about three forward
passes over the calibration batches, and `scipy.sparse.linalg.eigsh` finds `t` eigenvectors from some `2t` to `3t` of
them.

**What `t` axes can and cannot see.** `t` of the `mn` axes of a block hold a part `t/mn` of the squared norm of a change
that knows nothing of them. The leading axes hold much of the trace, so they tell which changes hurt most; of the
differences among all other directions they know nothing. Minor axes are some of the very many along which the loss
hardly bends: taking them out of a change takes next to nothing away, and the rest is priced by its norm alone. For the
part that is not spanned the mean curvature `(tr H − Σλ)/(mn − t)` is used; its trace is Hutchinson's estimate.

Measured (benchmarks/geo_sharing.py; last three blocks of KWT-1, 16 clips, mn = 4,096 or 16,384): the 25 sharpest axes
hold 72 to 98 % of a layer's trace, 100 hold 96 % or more; the 200 flattest hold less than 10⁻⁸ of it. With 12 classes
no more than 11 directions a clip are curved at all: 16 clips leave thousands of flat ones, and minor axes are any of
them. What is curved on other data only, no axis of these clips shows: past that rank, more axes predict a damage of
zero and the measured one rises again.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from geocolor.curvature.curvature import layers_from
from geocolor.curvature.exact import Kind
from geocolor.journal import Journal
from geocolor.layers import Layer, as_matrix, as_stored, find_layers
from geocolor.losses import Batch, Loss, device_of, loss_for, move, samples_in
from geocolor.modes import evaluating
from geocolor.progress import track
from geocolor.schema import Count, Frozen, NamedShape, Text, validated
from geocolor.tensor_files import AGAIN, check_tensors, read_tensors, write_tensors

Which = Literal["minor", "leading"]
Floats = NDArray[np.float64]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Axes:
    """`t` axes of one layer's block: `vectors` [t, m, n], orthonormal as vectors of length mn, `values` [t] their λ.

    Minor axes come by rising, leading ones by falling curvature. `trace` is that of the whole block, with its standard
    error (None for fewer than two probes), and `products` counts the Hessian-vector products that all of this took.
    """

    layer: Layer
    which: Which
    vectors: Tensor
    values: Tensor
    trace: float
    trace_error: float | None
    products: int

    @property
    def share(self) -> float:
        """The fraction of the block's trace that these axes hold."""
        return float(self.values.sum()) / self.trace if self.trace else 0.0

    @property
    def rest(self) -> float:
        """Mean curvature of the directions that are not spanned, at least a billionth of the largest value here."""
        left = self.layer.parameters - len(self.values)
        mean = (self.trace - float(self.values.sum())) / left
        return max(mean, 1e-9 * max(float(self.values.abs().max()), abs(self.trace) / left), 1e-300)

    def first(self, axes: int) -> Axes:
        """The first `axes` of them; those that a shorter run would have found."""
        return replace(self, vectors=self.vectors[:axes], values=self.values[:axes])

    def coordinates(self, change: Tensor) -> Tensor:
        """`Qᵀδ` [t], float64, of a change `δ` (m × n)."""
        return (self.vectors.flatten(1) @ change.to(self.vectors).flatten()).double()

    def project(self, change: Tensor) -> Tensor:
        """`QQᵀδ`, m × n: the part of a change that lies in the span of the axes."""
        coordinates = self.vectors.flatten(1) @ change.to(self.vectors).flatten()
        return (coordinates @ self.vectors.flatten(1)).view_as(change).to(change)


@dataclass(frozen=True, eq=False)
class LanczosCurvature:
    """Axes of every layer; `H ≈ Q Λ⁺ Qᵀ + σ(I − QQᵀ)`, `σ` the mean curvature of what is not spanned (`Axes.rest`).

    With minor axes the flat directions are the spanned ones, with leading axes those that are not spanned.
    """

    layers: tuple[Layer, ...]
    axes: Mapping[str, Axes]
    which: Which
    kind: Kind
    loss: str
    unit: str
    units: int
    samples: int
    tolerance: float
    seed: int
    estimate: str = "lanczos"

    def first(self, axes: int) -> LanczosCurvature:
        """The same with the first `axes` of every layer."""
        return replace(self, axes={name: each.first(axes) for name, each in self.axes.items()})

    def damage(self, name: str, delta: Tensor) -> float:
        """Predicted rise of the loss, `½ Σ λ⁺ (qᵀδ)² + ½ σ ‖δ − QQᵀδ‖²`, for a change `delta` (m × n)."""
        axes = self.axes[name]
        delta = delta.detach()
        inside = axes.coordinates(delta)
        outside = max(float(delta.double().square().sum() - inside.square().sum()), 0.0)
        return 0.5 * float(axes.values.clamp(min=0) @ inside.square()) + 0.5 * axes.rest * outside

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with its metadata inside; the old file stays until the new one is complete."""
        tensors = {f"vectors/{name}": each.vectors for name, each in self.axes.items()}
        tensors |= {f"values/{name}": each.values for name, each in self.axes.items()}
        metadata: dict[str, Any] = {
            "layers": [asdict(layer) for layer in self.layers],
            "found": {
                name: (len(each.values), each.trace, each.trace_error, each.products)
                for name, each in self.axes.items()
            },
            "block": self.kind,  # "kind" is the file's own
        }
        for name in ("which", "loss", "unit", "units", "samples", "tolerance", "seed"):
            metadata[name] = getattr(self, name)
        write_tensors(Path(path), "axes", tensors, metadata)


class _Header(Frozen):
    layers: tuple[NamedShape, ...] = Field(min_length=1)
    found: dict[Text, tuple[Count, float, float | None, Count]]
    block: Kind
    which: Which
    loss: Text
    unit: Text
    units: Count
    samples: Count
    tolerance: float = Field(ge=0)
    seed: int


def load_axes(path: str | Path) -> LanczosCurvature:
    """Reads what `LanczosCurvature.save` wrote.

    Raises FileNotFoundError, or ValueError naming the file where it is damaged, of another kind or incomplete.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path, "axes")
    header = validated(_Header, metadata, str(path), "the header", AGAIN)
    layers = layers_from(header.layers, path)
    if set(header.found) != {layer.name for layer in layers}:
        raise ValueError(f"{path}: its axes are those of other layers than it lists. {AGAIN}")
    counts = {layer.name: header.found[layer.name][0] for layer in layers}
    vectors = {name: tensor for name, tensor in tensors.items() if name.startswith("vectors/")}
    values = {name: tensor for name, tensor in tensors.items() if name not in vectors}
    shapes = {f"vectors/{layer.name}": (counts[layer.name], layer.m, layer.n) for layer in layers}
    check_tensors(path, vectors, shapes, torch.float32)
    check_tensors(path, values, {f"values/{layer.name}": (counts[layer.name],) for layer in layers})
    return LanczosCurvature(
        layers=layers,
        axes={
            layer.name: Axes(
                layer,
                header.which,
                vectors[f"vectors/{layer.name}"],
                values[f"values/{layer.name}"],
                *header.found[layer.name][1:],
            )
            for layer in layers
        },
        kind=header.block,
        **{name: value for name, value in header if name not in ("layers", "found", "block")},
    )


def measure_axes(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Loss | None = None,
    *,
    axes: int = 50,
    which: Which = "minor",
    kind: Kind = "gauss-newton",
    layers: Sequence[Layer] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    tolerance: float = 1e-3,
    trace_probes: int = 8,
    seed: int = 0,
    hold: bool = True,
    progress: bool = False,
    journal: Journal | None = None,
) -> LanczosCurvature:
    """The `axes` flattest (`minor`, the paper's) or sharpest (`leading`) directions of every layer's Hessian block.

    `kind="gauss-newton"` takes the part of the Hessian that is never negative, so that minor axes are flat ones;
    "hessian" takes all second derivatives, at the real labels: its minor axes are those of the most negative curvature
    (in KWT-1's first block a fifth as strong as the sharpest, and several times as slow to find). An axis is accepted
    when `‖Hq − λq‖` is at most `tolerance` times the largest curvature: among directions flatter than that it is any
    one. `trace_probes` products go to Hutchinson's estimate of the trace. Products are computed in the model's dtype
    (half precision in a float32 copy), Lanczos' recurrence in float64; the same seed and batches give the same axes.

    Time and memory grow with the number of batches, so a few dozen samples are meant. With `hold` the graphs of all
    batches are kept while a layer is worked on; without it one batch is in memory at a time, at twice the time. Layers
    whose axes the `journal` holds are passed over.

    Attention runs on torch's math path, since the fused kernels cannot be differentiated twice. Raises `ValueError`
    where a layer has no more than `axes` weights, is not reached, has no curvature or one that is not finite, or where
    the model cannot be differentiated twice.
    """
    chosen = find_layers(model, include, exclude) if layers is None else tuple(layers)
    batches = list(batches)
    if not batches:
        raise ValueError("there are no calibration batches; pass at least one")
    for layer in chosen:
        _check_size(layer, axes)
    loss = loss_for(model, batches[0], loss)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
        model = copy.deepcopy(model).float()
    journal, found, units = journal or Journal(), dict[str, Axes](), 0

    def tensors_of(layer: Layer) -> dict[str, Tensor]:
        with hessian_product(model, layer, batches, loss, kind=kind, hold=hold) as (product, counted):
            each = layer_axes(
                layer,
                product,
                device_of(model),
                axes=axes,
                which=which,
                tolerance=tolerance,
                trace_probes=trace_probes,
                seed=seed,
            )
        error = math.nan if each.trace_error is None else each.trace_error
        numbers = torch.tensor([each.trace, error, each.products, counted], dtype=torch.float64)
        return {"vectors": each.vectors, "values": each.values, "numbers": numbers}

    for index, layer in enumerate(track(chosen, f"finding {which} axes of the Hessian", wanted=progress)):
        made = journal.tensors(f"axes-{index}", partial(tensors_of, layer))
        trace, error, products, counted = made["numbers"].tolist()
        known = None if math.isnan(error) else error
        found[layer.name] = Axes(layer, which, made["vectors"], made["values"], trace, known, round(products))
        units = round(counted)
    return LanczosCurvature(
        layers=chosen,
        axes=found,
        which=which,
        kind=kind,
        loss=loss.name,
        unit=loss.unit,
        units=units,
        samples=sum(map(samples_in, batches)),
        tolerance=tolerance,
        seed=seed,
    )


def layer_axes(
    layer: Layer,
    product: Product,
    device: torch.device,
    *,
    axes: int,
    which: Which = "minor",
    tolerance: float = 1e-3,
    trace_probes: int = 8,
    seed: int = 0,
) -> Axes:
    """The axes of one layer whose block is given by its product with a matrix m × n; see `measure_axes`."""
    _check_size(layer, axes)
    size, count = layer.parameters, 0
    rng = np.random.default_rng([seed, zlib.crc32(layer.name.encode())])

    def times(vector: Floats) -> Floats:
        nonlocal count
        count += 1
        change = torch.from_numpy(np.ascontiguousarray(vector).reshape(layer.m, layer.n)).to(device)
        result: Floats = product(change).double().cpu().numpy().ravel()
        if not np.isfinite(result).all():
            raise ValueError(
                f"layer {layer.name!r}: a product of its Hessian holds NaN or infinite values; check the weights and "
                "the calibration data, or measure in float32"
            )
        return result

    start = rng.standard_normal(size)
    if not times(start).any():
        raise ValueError(
            f"layer {layer.name!r} has no curvature on this calibration data: its input is always zero, or nothing "
            "after it depends on it; leave it out with exclude"
        )
    hessian = LinearOperator((size, size), matvec=times, dtype=np.float64)
    sharpest = abs(float(_eigsh(hessian, 1, "LM", start, 0.05, layer, min(8, size))[0][0]))
    # Shifted, so that convergence is measured against the sharpest curvature: ARPACK's own test is relative to λ,
    # which is zero or nearly so for minor axes and past the rank of the block.
    sign = -1.0 if which == "minor" else 1.0
    shifted = LinearOperator((size, size), matvec=lambda x: x + sign / sharpest * times(x), dtype=np.float64)
    shifted_values, vectors = _eigsh(shifted, axes, "LA", start, tolerance, layer)
    order = np.argsort(-shifted_values, kind="stable")
    values, vectors = sign * sharpest * (shifted_values[order] - 1.0), vectors[:, order]
    rest = []
    for _ in range(trace_probes):
        probe = rng.choice([-1.0, 1.0], size)
        probe -= vectors @ (vectors.T @ probe)
        rest.append(float(probe @ times(probe)))
    spread = float(np.std(rest, ddof=1)) / len(rest) ** 0.5 if len(rest) > 1 else None
    return Axes(
        layer=layer,
        which=which,
        vectors=torch.from_numpy(np.ascontiguousarray(vectors.T, dtype=np.float32)).view(axes, layer.m, layer.n),
        values=torch.from_numpy(values.copy()),
        trace=float(values.sum()) + (float(np.mean(rest)) if rest else 0.0),
        trace_error=spread,
        products=count,
    )


@contextmanager
def hessian_product(
    model: nn.Module,
    layer: Layer,
    batches: Sequence[Batch],
    loss: Loss,
    *,
    kind: Kind = "gauss-newton",
    hold: bool = True,
) -> Iterator[tuple[Product, int]]:
    """`v ↦ Hv` for matrices m × n, `H` the block of the mean loss in the weight of `layer`; and the units of the loss.

    Losses that compare two models compare this one with itself. The model is given back as it was.
    """
    weight = model.get_submodule(layer.name).weight
    assert isinstance(weight, nn.Parameter)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(parameter is weight)
        with evaluating(model, gradients=True), sdpa_kernel(SDPBackend.MATH), _differentiable_twice(layer):
            build = _hessian_part if kind == "hessian" else _gauss_newton_part
            units, parts = 0, list[Product | Batch]()
            for raw in batches:
                batch = move(raw, weight.device)
                part, counted = build(model, layer, weight, batch, loss)
                units += counted
                parts.append(part if hold else batch)
            if units == 0:
                raise ValueError("no unit of the loss counts in these batches; are all of them padding or ignored?")

            def product(change: Tensor) -> Tensor:
                vector = as_stored(layer, change.to(weight)).contiguous()
                total = torch.zeros(layer.m, layer.n, dtype=torch.float64, device=weight.device)
                for each in parts:
                    part = each if hold else build(model, layer, weight, each, loss)[0]
                    total += as_matrix(layer, part(vector))
                return total / units

            yield product, units
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _hessian_part(
    model: nn.Module, layer: Layer, weight: nn.Parameter, batch: Batch, loss: Loss
) -> tuple[Product, int]:
    """All second derivatives of one batch's summed loss: the gradient, differentiated once more."""
    outputs = loss.forward(model, batch)
    total, units = loss.total(outputs, batch, outputs.detach() if loss.compares else None)
    gradient = _gradient(total, weight, layer)

    def product(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(weight)
        (result,) = torch.autograd.grad(gradient, weight, vector, retain_graph=True, allow_unused=True)
        return torch.zeros_like(weight) if result is None else result

    return product, units


def _gauss_newton_part(
    model: nn.Module, layer: Layer, weight: nn.Parameter, batch: Batch, loss: Loss
) -> tuple[Product, int]:
    """`Jᵀ (∂²loss/∂y²) J v` of one batch; `Jv` is the derivative of `Jᵀu` in `u` (the double-backward trick)."""
    outputs = loss.forward(model, batch)
    dummy = torch.zeros_like(outputs, requires_grad=True)
    pulled = _gradient(outputs, weight, layer, dummy)
    at = outputs.detach().requires_grad_()
    total, units = loss.total(at, batch, outputs.detach() if loss.compares else None)
    (slope,) = torch.autograd.grad(total, at, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, dummy, vector, retain_graph=True)
        if not slope.requires_grad:
            return torch.zeros_like(weight)
        (bent,) = torch.autograd.grad(slope, at, pushed, retain_graph=True)
        (result,) = torch.autograd.grad(outputs, weight, bent, retain_graph=True)
        return result

    return product, units


def _gradient(outputs: Tensor, weight: nn.Parameter, layer: Layer, along: Tensor | None = None) -> Tensor:
    gradient = None
    if outputs.requires_grad:
        (gradient,) = torch.autograd.grad(outputs, weight, along, create_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"layer {layer.name!r} is not reached: the loss does not depend on it on this calibration data; leave it "
            "out with exclude"
        )
    return gradient


@contextmanager
def _differentiable_twice(layer: Layer) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        if not any(sign in str(error) for sign in ("is not implemented", "double backward", "differentiate twice")):
            raise
        raise ValueError(
            f"layer {layer.name!r}: the model has an operation that cannot be differentiated twice ({error}); load it "
            'with attn_implementation="eager", or measure another curvature (estimate="kronecker")'
        ) from error


def _check_size(layer: Layer, axes: int) -> None:
    if axes < 1:
        raise ValueError(f"axes is {axes}; at least one is needed")
    if axes >= layer.parameters:
        raise ValueError(
            f"layer {layer.name!r}: {axes} axes are asked for, its block has {layer.parameters}; ask for fewer, or "
            "leave the layer out with exclude"
        )


def _eigsh(
    operator: LinearOperator,
    axes: int,
    which: Literal["LM", "LA"],
    start: Floats,
    tolerance: float,
    layer: Layer,
    ncv: int | None = None,
) -> tuple[Floats, Floats]:
    try:
        values, vectors = eigsh(operator, axes, which=which, v0=start, tol=tolerance, ncv=ncv)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"layer {layer.name!r}: Lanczos' method found only {len(error.eigenvalues)} of {axes} axes; raise "
            f"tolerance (now {tolerance:g}) or ask for fewer axes"
        ) from error
    return values, vectors
