"""How fast this machine does what a run is made of: each piece timed once on the model and a batch of its own data."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from geocolor.bases import Factor, Known, Metric, damage_alone, factorize, metric
from geocolor.curvature import accumulate, finish
from geocolor.curvature.windows import input_groups, windows
from geocolor.graph import MOST_PAIRS, nearest_of_each
from geocolor.layers import Layer, weight_of
from geocolor.losses import Batch, Loss, device_of, move
from geocolor.memory import forget_peak, peak, resident
from geocolor.modes import evaluating
from geocolor.rate_distortion import Options, can_share, options
from geocolor.settings import Settings

#: Wider matrices are timed in part, and scaled by the cube of the width: those of a layer alone, those of pairs.
WIDEST, WIDEST_OF_PAIRS = 1536, 1024

#: Where only pairs of near layers are priced: how many times `nearest_of_each` there are for each layer, on its two
#: sides, most of them near in both directions.
NEAREST_OF_EACH = 1.5

#: Kinds of pairs that are timed, those that take longest first; the others are scaled from them.
MOST_KINDS = 12

#: Draws that are timed, the others are scaled from them.
MOST_DRAWS = 4

Timer = Callable[[], float]
T = TypeVar("T")


@dataclass(frozen=True)
class LayerPace:
    """Seconds for one layer: reading it, its spectrum, and its factors at the budget, these from nothing computed."""

    read: float
    spectrum: float
    fit: float


@dataclass(frozen=True)
class Pace:
    """Seconds by position of a batch (`forward`, `measured`) and for each layer by name; all `pairs` together.

    `points` is how many a pair's hulls have on the average, over all powers; `units` of the loss there are in a
    position, and its `outputs` have so many bytes. `inputs` are the groups of layers that read one tensor, as in
    `Curvature`. In bytes: `resident` what the process holds between its steps, `peak` what it has held while a batch
    was measured, `activations` what a batch took then by position.
    """

    forward: float
    measured: float
    layers: Mapping[str, LayerPace]
    pairs: float
    pair_count: int
    points: float
    units: float
    outputs: float
    inputs: Mapping[str, str]
    resident: int
    peak: int
    activations: float


def pace_of(
    model: nn.Module,
    layers: Sequence[Layer],
    batch: Batch,
    settings: Settings,
    loss: Loss,
    powers: Sequence[float],
    timer: Timer = time.perf_counter,
) -> Pace:
    """Costs two forward passes, one measured batch, and each piece once for each shape of layer and kind of pair.

    Where `settings.memory` does not hold the statistics of all layers, a window of them is measured, and the others are
    timed on made-up factors.
    """
    batch = move(batch, device_of(model))
    positions = positions_in([batch])
    with evaluating(model):
        outputs = loss.forward(model, batch)
        units, size = loss.units(outputs, batch), outputs.numel() * outputs.element_size()
        forward, _ = _timed(timer, lambda: loss.forward(model, batch))
    del outputs
    before = peak()
    forget_peak()
    passes, window, ranks = 1, list(layers), dict[str, int]()
    if settings.memory is not None:
        inputs = input_groups(model, batch, loss, layers)
        ran = [layer for layer in layers if layer.name in inputs]
        several = windows(ran, inputs, settings.memory - peak(), settings.memory)
        passes, (window, ranks) = len(several), several[0]
    held, draws = resident(), min(settings.draws, MOST_DRAWS)
    measured, sums = _timed(
        timer,
        lambda: accumulate(
            model,
            [batch],
            loss,
            window,
            estimate=settings.weighed_by,
            draws=draws,
            seed=settings.seed,
            ranks=ranks,
        ),
    )
    measured += (settings.draws / draws - 1) * max(measured - forward, 0.0)
    most = peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say it
        curvature = finish(sums)
    if settings.memory is None:
        inputs = dict(curvature.inputs)
        ran = list(curvature.layers)
    factors = KnownFactors(curvature.A, curvature.G, inputs)
    budget = settings.keep or settings.max_flops or 0.8
    seconds, count, points = _pairs(model, ran, factors, settings, powers, timer)
    return Pace(
        forward=forward / positions,
        measured=passes * measured / positions,
        layers=layer_paces(model, ran, factors, budget, timer),
        pairs=seconds,
        pair_count=count,
        points=points,
        units=units / positions,
        outputs=size / positions,
        inputs=inputs,
        resident=held,
        peak=max(before, most),
        activations=max(most - held, 0) / positions,
    )


def positions_in(batches: Sequence[Batch]) -> int:
    """Elements of the first tensor in every batch: what a pass over them takes is in proportion to it."""
    return sum(_first_tensor(batch).numel() for batch in batches)


def _first_tensor(batch: Batch) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    return _first_tensor(next(iter(batch.values() if isinstance(batch, Mapping) else batch)))


def _timed(timer: Timer, work: Callable[[], T]) -> tuple[float, T]:
    started = timer()
    result = work()
    return timer() - started, result


def _part(layer: Layer, widest: int) -> tuple[int, int, float]:
    """Rows and columns of a layer's matrix that are timed, and how many times as long the whole takes."""
    scale = max(1.0, max(layer.m, layer.n) / widest)
    return max(2, round(layer.m / scale)), max(2, round(layer.n / scale)), scale**3


@dataclass(frozen=True)
class KnownFactors:
    """A and G of layers: those measured, or made-up ones of the same size; `inputs` groups layers that share A."""

    A: Mapping[str, Tensor]
    G: Mapping[str, Tensor]
    inputs: Mapping[str, str]
    made: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def of(self, layer: Layer, widest: int) -> tuple[Tensor, Tensor]:
        """The part of A and G that is timed; whole ones are the very tensors, so that `Known` knows them."""
        m, n, _ = _part(layer, widest)
        A = self.A.get(layer.name) if layer.name in self.A else self._made(self.inputs[layer.name], n)
        G = self.G.get(layer.name) if layer.name in self.G else self._made("", m)
        assert A is not None
        assert G is not None
        return (A if n == len(A) else A[:n, :n]), (G if m == len(G) else G[:m, :m])

    def _made(self, name: str, size: int) -> Tensor:
        if (name, size) not in self.made:
            drawn = torch.randn(size, 2 * size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            self.made[name, size] = drawn @ drawn.T / (2 * size)
        return self.made[name, size]


def _member(model: nn.Module, layer: Layer, factors: KnownFactors, factor: Known | type[Factor], widest: int) -> Metric:
    m, n, _ = _part(layer, widest)
    A, G = factors.of(layer, widest)
    return metric(weight_of(model, layer)[:m, :n].cpu(), G, A, factor)


def layer_paces(
    model: nn.Module, layers: Sequence[Layer], factors: KnownFactors, keep: float, timer: Timer
) -> dict[str, LayerPace]:
    """The pace of every layer by name; each shape is timed once."""
    shapes: dict[tuple[int, int], LayerPace] = {}
    for layer in layers:
        if (layer.m, layer.n) not in shapes:
            shapes[layer.m, layer.n] = _layer_pace(model, layer, factors, keep, timer)
    return {layer.name: shapes[layer.m, layer.n] for layer in layers}


def _layer_pace(model: nn.Module, layer: Layer, factors: KnownFactors, keep: float, timer: Timer) -> LayerPace:
    m, n, times = _part(layer, WIDEST)
    read, member = _timed(timer, lambda: _member(model, layer, factors, Factor, WIDEST))
    spectrum, _ = _timed(timer, lambda: damage_alone(member))
    rank = min(max(1, int(keep * m * n / (m + n))), min(m, n) - 1)
    fit, _ = _timed(timer, lambda: factorize("in", {layer.name: _member(model, layer, factors, Factor, WIDEST)}, rank))
    return LayerPace(read * times ** (2 / 3), times * spectrum, times * fit)


def _pairs(
    model: nn.Module,
    layers: Sequence[Layer],
    factors: KnownFactors,
    settings: Settings,
    powers: Sequence[float],
    timer: Timer,
) -> tuple[float, int, float]:
    """Seconds for pricing all pairs that could share a basis, their number, and the mean points of their hulls."""
    found: dict[tuple[object, ...], list[tuple[Layer, Layer]]] = {}
    for i, one in enumerate(layers):
        for other in layers[:i]:
            if any(can_share((one, other), kind) for kind in settings.kinds):
                same = factors.inputs[one.name] == factors.inputs[other.name]
                found.setdefault((*sorted([(one.m, one.n), (other.m, other.n)]), same), []).append((other, one))
    kinds = sorted(found.values(), key=lambda pairs: len(pairs) * _size(pairs[0]), reverse=True)
    known, seconds, points, work = Known(), 0.0, 0.0, 0.0
    for pairs in kinds[:MOST_KINDS]:
        shapes = [_part(layer, WIDEST_OF_PAIRS) for layer in pairs[0]]
        parts = [
            Layer(layer.name, m, n, layer.form if times == 1 else "linear", layer.geometry if times == 1 else ())
            for layer, (m, n, times) in zip(pairs[0], shapes, strict=True)
        ]
        members = [_member(model, layer, factors, known, WIDEST_OF_PAIRS) for layer in pairs[0]]
        price = partial(options, parts, members, settings.kinds, powers)
        first, _ = _timed(timer, price)  # what layers remember is computed with the first pair that they are in
        again, priced = _timed(timer, partial(_hulls, price))
        times = max(shape[2] for shape in shapes)
        seconds += times * (again * len(pairs) + max(first - again, 0.0))
        points += len(pairs) * sum(map(len, priced)) * times ** (1 / 3)
        work += len(pairs) * _size(pairs[0])
    rest = sum(len(pairs) * _size(pairs[0]) for pairs in kinds[MOST_KINDS:])
    count = sum(map(len, kinds))
    timed = sum(map(len, kinds[:MOST_KINDS]))
    part = 1.0 if count <= MOST_PAIRS else min(1.0, NEAREST_OF_EACH * nearest_of_each(layers) * len(layers) / count)
    whole = seconds * (1 + rest / work) if work else 0.0
    return part * whole, round(part * count), points / timed if timed else 0.0


def _hulls(price: Callable[[], Mapping[Any, Options]]) -> list[Options]:
    return [each.hull() for each in price().values()]


def _size(pair: tuple[Layer, Layer]) -> float:
    return sum(layer.m * layer.n * min(layer.m, layer.n) for layer in pair)
