"""Prices as they are seen from a smaller model: where damage is large, the dense model's own curvature misleads.

`½ tr(G δ A δᵀ)` is the rise of the loss near the dense model, if a layer's inputs and output gradients are independent.
A smaller model is not near: its layers read inputs that the layers before them have bent, and the damage of one adds to
that of others or drowns in it. So a model is made smaller and looked at, in turns. From there, (1) the second moments
of what its layers really read move `A`; (2) one backward pass of its divergence `J` from the dense model gives every
layer's slope, `−½⟨∇J, W − Ŵ⟩`: the layer's own damage where the quadratic holds, and what more parameters would save
there where it does not. The scale of its `G` follows. This is successive quadratic approximation (Nocedal & Wright,
Numerical Optimization, 2006, §18), in which inputs stand for the layers before.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from geocolor import processes
from geocolor.curvature import Curvature
from geocolor.curvature.on_disk import OnDisk
from geocolor.divergence import dense_outputs, divergence_of, few, known_outputs
from geocolor.graph import price
from geocolor.journal import Journal
from geocolor.layers import weight_of
from geocolor.losses import Batch, Loss, device_of, loss_for, move
from geocolor.modes import differentiable, evaluating
from geocolor.moved_inputs import MOMENTS, moved_inputs, moved_on_disk
from geocolor.progress import track
from geocolor.stand_ins import StandIn, among_neighbours, parameter, replaced, without_sharing

#: How far a look moves prices towards what it sees: plans that follow it all the way swing between two states.
STEP = 0.5

#: Fraction of the mean slope of a layer below which a slope counts little.
SMALL = 0.1

#: Blocks in a row that share, and how often more damage than predicted they may do before more damping is taken.
TRIED_TOGETHER, MOST_OFF = 4, 30.0

#: Dampings, relative to the mean of a factor's diagonal, tried in turns where sharing does far more than predicted.
MORE_DAMPING = (0.1, 0.3)

#: A layer's scale is moved by at most this factor in either direction.
MOST = 1e4


def calibrate(
    model: nn.Module,
    curvature: Curvature,
    batches: Iterable[Batch],
    loss: Loss | None = None,
    *,
    keep: float = 0.8,
    rounds: int = 3,
    progress: bool = False,
    journal: Journal | None = None,
) -> Curvature:
    """The curvature as it is seen from the best model without sharing that keeps `keep` of the parameters.

    Each of `rounds` makes that model under the curvature so far, and looks from there (`seen_from`); the first one sees
    every layer low-rank, or what is priced far too high would never be seen. Then neighbouring blocks share for a
    while: where that does `MOST_OFF` times the damage predicted, the looks are taken again under more damping, as in
    Levenberg and Marquardt's method (directions that inputs of one layer do not have and those that another layer does
    not read look free, and are not where both layers use them). At most 512 samples or 16,384 units of the
    loss are used, whichever comes first; a round costs a pass forward and back over them. Calibration data only: never
    show it the test data.
    """
    batches = batches if isinstance(batches, Sequence) else list(batches)
    if not batches:
        raise ValueError("there are no calibration batches; pass at least one")
    loss = loss_for(model, batches[0], loss)
    chosen = few(batches, loss, model)
    known: dict[str, Any] = {"keep": keep, "journal": journal}
    seen = _looked(model, curvature, chosen, loss, rounds, progress=progress, **known)
    for damping in MORE_DAMPING:
        if damping <= curvature.damping or _holds(model, seen, chosen, loss, **known):
            break
        warnings.warn(
            f"sharing among neighbouring blocks does over {MOST_OFF:g} times the damage predicted on calibration data: "
            f"prices are found again under a damping of {damping:g} (--damping)",
            stacklevel=2,
        )
        seen = _looked(model, curvature.damped_to(damping), chosen, loss, rounds, progress=progress, **known)
    return seen


def _looked(
    model: nn.Module,
    curvature: Curvature,
    chosen: Sequence[Batch],
    loss: Loss,
    rounds: int,
    *,
    keep: float,
    progress: bool,
    journal: Journal | None,
) -> Curvature:
    """The curvature after some looks from models without sharing."""
    for done in track(range(rounds), "looking from smaller models", wanted=progress):
        stand_ins = without_sharing(price(model, curvature, kinds=("in",)), keep, every=done == 0)
        if not stand_ins:  # everything fits as it is
            break
        curvature = seen_from(model, stand_ins, curvature, chosen, loss, journal=journal)
    return curvature


def _holds(
    model: nn.Module,
    curvature: Curvature,
    chosen: Sequence[Batch],
    loss: Loss,
    *,
    keep: float,
    journal: Journal | None,
) -> bool:
    """Whether a model whose neighbouring blocks share is about as near to the dense one as predicted."""
    stand_ins = among_neighbours(price(model, curvature, kinds=("in", "out")), keep, TRIED_TOGETHER)
    if not stand_ins:
        return True
    predicted = math.fsum(_predicted(model, stand_ins, curvature).values())

    there = partial(replaced, model, stand_ins)
    measured = partial(divergence_of, model, model, chosen, loss, within=there)
    return _alike(journal).value(f"holds/{curvature.damping:g}", measured) <= MOST_OFF * predicted


def _alike(journal: Journal | None) -> Journal:
    """The journal, where no other process could know another one's pieces and this one not."""
    return journal if journal is not None and processes.world() == 1 else Journal()


def seen_from(
    model: nn.Module,
    stand_ins: Sequence[StandIn],
    curvature: Curvature,
    batches: Sequence[Batch],
    loss: Loss,
    step: float = STEP,
    *,
    journal: Journal | None = None,
) -> Curvature:
    """The curvature moved by `step` towards what the model with `stand_ins` shows, all of `batches` being used.

    `A` becomes a mean of the former one and that of the inputs there; the scale of each `G` follows the layer's slope,
    geometrically. Scales common to all are such that the predicted damage of `stand_ins` is the divergence measured.
    What the look moves is a piece of the `journal`, named by how many looks there were before.
    """
    alike, has_moments = _alike(journal), curvature.estimate in MOMENTS
    moved: Callable[..., dict[str, Tensor]] = partial(moved_inputs, model, stand_ins, curvature, batches, loss, step)
    sloped: Callable[[], Sloped] = partial(_slopes, model, stand_ins, batches, loss)
    if isinstance(curvature.A, OnDisk) and has_moments:
        there = replace(curvature, A=moved_on_disk(curvature.A, curvature, alike, moved))
    else:
        if has_moments and processes.world() == 1 and known_outputs(batches):
            both = cache(partial(_at_once, model, stand_ins, curvature, batches, loss, step))
            moved, sloped = lambda: both()[0], lambda: both()[1]
        inputs = alike.tensors(f"look-{curvature.damping:g}-{curvature.rounds}-inputs", moved)
        A = {layer.name: inputs[curvature.inputs[layer.name]] for layer in curvature.layers} if inputs else curvature.A
        there = replace(curvature, A=A)
    scales = alike.value(
        f"look/{curvature.damping:g}/{curvature.rounds}", partial(_scales, model, stand_ins, there, sloped, step)
    )
    return replace(there.scaled(scales), rounds=curvature.rounds + 1)


def _scales(
    model: nn.Module,
    stand_ins: Sequence[StandIn],
    curvature: Curvature,
    sloped: Callable[[], Sloped],
    step: float,
) -> dict[str, float]:
    """What every layer's `G` is to be multiplied by."""
    slopes, variances, measured = sloped()
    predicted = _predicted(model, stand_ins, curvature)
    seen = [max(slopes[name], 0.0) for name in predicted]
    ratios = smoothed(list(predicted.values()), seen)
    trust = step * certainty(ratios, seen, [variances[name] for name in predicted])
    scales = {name: ratio**trust for name, ratio in zip(predicted, ratios, strict=True)}
    common = _ratio(measured, math.fsum(scales[name] * damage for name, damage in predicted.items()))
    return {layer.name: common * scales.get(layer.name, 1.0) for layer in curvature.layers}


def _predicted(model: nn.Module, stand_ins: Sequence[StandIn], curvature: Curvature) -> dict[str, float]:
    """The damage of every layer with a stand-in."""
    found = {}
    for each in stand_ins:
        weight = each.weight
        found[each.layer.name] = curvature.damage(each.layer.name, weight - weight_of(model, each.layer).to(weight))
    return found


def shifted(model: nn.Module, stand_ins: Sequence[StandIn], before: Curvature, after: Curvature) -> float:
    """How far a look has moved the layers' damage, relative to one another.

    The root mean square of the logarithms of the shares that layers have in the damage of `stand_ins`, after over
    before, weighted by the shares: what moves all layers alike moves no plan.
    """
    shares = [_shares(_predicted(model, stand_ins, curvature)) for curvature in (before, after)]
    both = [(old, new) for old, new in zip(*shares, strict=True) if old > 0 and new > 0]
    return math.sqrt(math.fsum(new * math.log(new / old) ** 2 for old, new in both))


def _shares(damage: Mapping[str, float]) -> list[float]:
    total = math.fsum(damage.values())
    return [each / total if total > 0 else 0.0 for each in damage.values()]


Sloped = tuple[dict[str, float], dict[str, float], float]
"""The slope of every layer, its variance, and the divergence."""


class _Slopes:
    """`−½⟨∇J, W − Ŵ⟩` of every layer with a stand-in, and `J`, the divergence from the dense model; per unit."""

    def __init__(self, model: nn.Module, stand_ins: Sequence[StandIn], loss: Loss) -> None:
        self.weights = {each.layer.name: parameter(model, each.layer) for each in stand_ins}
        self._dense = {name: weight.data for name, weight in self.weights.items()}
        self._loss = loss
        # of every layer's slope the sum, that of squares, that of products with units; at last of J, units and squares
        self._sums = torch.zeros(len(self.weights) + 1, 3, dtype=torch.float64)
        self._rows = dict(zip(self.weights, self._sums, strict=False))

    def add(self, outputs: Tensor, reference: Tensor, batch: Batch) -> None:
        """Takes in a batch, while the stand-ins are in their places and their weights can be differentiated."""
        J, count = self._loss.divergence(outputs, reference, batch)
        self._sums[-1] += torch.tensor([float(J.detach()), count, count**2], dtype=torch.float64)
        if not J.requires_grad:  # nothing here depends on these layers: experts that are not called
            return
        with _gradients_of(self.weights, partial(self._seen, count)):
            torch.autograd.backward(J, inputs=list(self.weights.values()))

    def _seen(self, count: int, name: str, gradient: Tensor) -> None:
        missing = self._dense[name].double() - self.weights[name].detach().double()
        slope = -0.5 * float((gradient.double() * missing).sum())
        self._rows[name] += torch.tensor([slope, slope**2, slope * count], dtype=torch.float64)

    def means(self) -> Sloped:
        """Over all processes; the variance is that of drawing other batches, 0 where there are fewer than two."""
        sums = self._sums
        if processes.world() > 1:
            sums = processes.summed(sums.to(processes.exchange_device()))
        *rows, (total, units, squared) = sums.tolist()
        slopes = {name: row[0] / max(units, 1) for name, row in zip(self.weights, rows, strict=True)}
        alike = units**2 / squared if squared else 0.0  # batches, were they of one size
        variances = dict.fromkeys(slopes, 0.0)
        if alike >= 2:
            for (name, mean), (_, squares, products) in zip(slopes.items(), rows, strict=True):
                apart = squares - 2 * mean * products + mean**2 * squared
                variances[name] = max(apart, 0.0) / units**2 * alike / (alike - 1)
        return slopes, variances, total / max(units, 1)


def _slopes(model: nn.Module, stand_ins: Sequence[StandIn], batches: Sequence[Batch], loss: Loss) -> Sloped:
    """See `_Slopes`."""
    slopes = _Slopes(model, stand_ins, loss)
    with differentiable(slopes.weights.values()):
        for index in (index for index in range(len(batches)) if processes.is_mine(index)):
            batch = move(batches[index], device_of(model))
            reference = dense_outputs(model, batches, index, loss)
            with replaced(model, stand_ins), evaluating(model, gradients=True):
                slopes.add(loss.forward(model, batch), reference, batch)
    return slopes.means()


def _at_once(
    model: nn.Module,
    stand_ins: Sequence[StandIn],
    curvature: Curvature,
    batches: Sequence[Batch],
    loss: Loss,
    step: float,
) -> tuple[dict[str, Tensor], Sloped]:
    """What `moved_inputs` and `_slopes` find, of one pass over batches on which the dense model's outputs are known."""
    slopes = _Slopes(model, stand_ins, loss)

    def then(outputs: Tensor, batch: Batch, index: int) -> None:
        slopes.add(outputs, dense_outputs(model, batches, index, loss), batch)

    weights = list(slopes.weights.values())
    moved = moved_inputs(model, stand_ins, curvature, batches, loss, step, weights=weights, then=then)
    return moved, slopes.means()


@contextmanager
def _gradients_of(weights: Mapping[str, nn.Parameter], seen: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Each gradient is `seen` once it is whole, and let go of before the next; those that weights have are kept."""
    kept = [(weight, weight.grad) for weight in weights.values()]

    def told(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        seen(name, weight.grad)
        weight.grad = None

    handles = []
    try:
        for name, weight in weights.items():
            weight.grad = None
            handles.append(weight.register_post_accumulate_grad_hook(partial(told, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight, gradient in kept:
            weight.grad = gradient


def certainty(ratios: Sequence[float], measured: Sequence[float], variances: Sequence[float]) -> float:
    """What of the logarithms of all `smoothed` ratios is more than an accident of the batches that were drawn, 0 to 1.

    `1 − Σ variance / Σ log² ratio`, as in James and Stein's estimator (1961): layers whose slopes follow what was
    predicted but for the noise are not moved.
    """
    floor = _floor(measured)
    moved = math.fsum(math.log(ratio) ** 2 for ratio in ratios)
    noise = math.fsum(
        variance / (found + floor) ** 2 for found, variance in zip(measured, variances, strict=True) if variance
    )
    return max(1 - noise / moved, 0.0) if moved > 0 else 0.0


def _floor(measured: Sequence[float]) -> float:
    return SMALL * math.fsum(measured) / max(len(measured), 1)


def smoothed(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Measured over predicted damage of every layer, relative to that of all, drawn towards 1 where either is small.

    A layer whose damage is next to nothing says little of its scale, yet its plain ratio may be off by any factor:
    `SMALL` of the mean damage is added to both sides, the predicted ones brought to the common scale.
    """
    common = _ratio(math.fsum(measured), math.fsum(predicted))
    floor = _floor(measured)
    return [_ratio(found + floor, common * said + floor) for said, found in zip(predicted, measured, strict=True)]


def _ratio(measured: float, predicted: float) -> float:
    if not (measured > 0 and predicted > 0):
        return 1.0
    return min(max(measured / predicted, 1 / MOST), MOST)
