"""Probes: how far the model really moves when a layer is replaced, to set the scale of its curvature by.

`G ⊗ A` takes inputs and output gradients for independent, and the loss for quadratic. Both fail by a factor that
belongs to the layer (a first attention layer of a byte model: 100). So every layer is truncated alone, to about the
rank it would get, and the divergence from the dense model is measured on a few calibration batches: the scale of its
`G` is what that says. A last probe truncates all layers together, which sets the scale common to all.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from torch import Tensor, nn

from geocolor import processes
from geocolor.bases import factorize
from geocolor.budget import Allocation, allocate
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph, price
from geocolor.journal import Journal
from geocolor.layers import Layer, as_stored
from geocolor.losses import Batch, Loss, default_loss, device_of, move, samples_in
from geocolor.modes import evaluating
from geocolor.progress import bar, track

#: A layer's scale is moved by at most this factor in either direction.
MOST = 1e4

#: Fraction of the mean damage of a layer below which a probe counts little.
SMALL = 0.1


@dataclass(frozen=True)
class Replacement:
    """A layer's low-rank stand-in `first @ second` (m × r, r × n), and what it is predicted to cost."""

    layer: Layer
    first: Tensor
    second: Tensor
    predicted: float


def calibrate(
    model: nn.Module,
    curvature: Curvature,
    batches: Sequence[Batch],
    loss: Loss | None = None,
    *,
    keep: float = 0.8,
    rounds: int = 2,
    most_samples: int = 64,
    most_units: int = 2048,
    progress: bool = False,
    journal: Journal | None = None,
) -> Curvature:
    """The curvature with the scale of every layer's `G` set by probes near the budget `keep`.

    `most_samples` and `most_units` bound the batches used for one layer (whichever comes first, at least one batch);
    the last probe takes eight times as many. Costs `rounds · L + 8` forward passes over them. Calibration
    data only: never show it the test data. What the `journal` holds is not probed again.
    """
    journal = journal or Journal()
    loss = default_loss(model, batches[0]) if loss is None else loss
    chosen = few(batches, loss, model, most_samples, most_units)
    more = few(batches, loss, model, 8 * most_samples, 8 * most_units)  # rare events decide: one trial can afford them
    steps = len(chosen) * rounds * len(curvature.layers) + len(more)
    with bar("probing layers", steps, wanted=progress) as advance:

        def each_alone(curvature: Curvature, turn: int) -> dict[str, float]:
            stand_ins, _ = replacements(model, curvature, keep)
            trials = [[each] for each in stand_ins]
            measured = divergences(model, trials, chosen, loss, advance, journal, f"probe/{turn}")
            ratios = smoothed([each.predicted for each in stand_ins], measured)
            # later rounds probe other ranks: they are averaged with the earlier ones, or plans would swing
            return {each.layer.name: ratio ** (1 / turn) for each, ratio in zip(stand_ins, ratios, strict=True)}

        def all_together(curvature: Curvature) -> float:
            _, planned = replacements(model, curvature, keep)
            if not planned:
                return 1.0
            [together] = divergences(model, [planned], more, loss, advance, journal, "probe/all")
            return _ratio(together, sum(each.predicted for each in planned))

        alike = journal if processes.world() == 1 else Journal()  # or one would know and another ask all for it
        for turn in range(1, rounds + 1):
            curvature = scaled(curvature, alike.value(f"scale/{turn}", partial(each_alone, curvature, turn)))
        common = alike.value("scale/all", partial(all_together, curvature)) if rounds else 1.0
        curvature = scaled(curvature, {layer.name: common for layer in curvature.layers})
    return replace(curvature, probes=curvature.probes + rounds)


def replacements(model: nn.Module, curvature: Curvature, keep: float) -> tuple[list[Replacement], list[Replacement]]:
    """Stand-ins of all layers at the best allocation without sharing, and of those that it does not leave dense."""
    graph = price(model, curvature, kinds=("in",))
    groups = [(i,) for i in range(len(graph.layers))]
    alone = allocate(graph, groups, int(keep * graph.parameters_dense), at_least=True)
    stand_ins = [replacement(graph, index, alone) for index in range(len(graph.layers))]
    return stand_ins, [each for each, option in zip(stand_ins, alone.options, strict=True) if option.kind != "dense"]


def scaled(curvature: Curvature, scales: Mapping[str, float]) -> Curvature:
    """The curvature with each layer's `G` multiplied; layers that shared a `G` object no longer do."""
    return curvature.scaled(scales)


def smoothed(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Measured over predicted damage of every layer, drawn towards that of all where a layer's own damage is small.

    A layer probed at a rank that costs next to nothing says nothing about lower ranks, yet its plain ratio may be off
    by any factor: `SMALL` of the mean damage is added to both sides, the predicted ones brought to the common scale.
    """
    common = _ratio(math.fsum(measured), math.fsum(predicted))
    floor = SMALL * math.fsum(measured) / max(len(measured), 1)
    return [
        common * _ratio(found + floor, common * said + floor) for said, found in zip(predicted, measured, strict=True)
    ]


def _ratio(measured: float, predicted: float) -> float:
    if not (measured > 0 and predicted > 0):
        return 1.0
    return min(max(measured / predicted, 1 / MOST), MOST)


def replacement(graph: CostGraph, index: int, allocation: Allocation) -> Replacement:
    """The layer at the rank its allocation gives it; one left dense at the rank it would take next."""
    layer, option = graph.layers[index], allocation.options[index]
    if option.kind == "dense":
        hull = graph.hull((index,))
        factored = hull.take((hull.kind != "dense").nonzero()[0])
        option = factored[factored.at(allocation.price)]
    assert option.rank is not None
    factors = factorize("in", {layer.name: graph.metrics[layer.name]}, option.rank)
    assert factors.right is not None
    return Replacement(layer, factors.coefficients[layer.name], factors.right.T, option.damage)


def few(
    batches: Sequence[Batch], loss: Loss, model: nn.Module, most_samples: int = 64, most_units: int = 2048
) -> list[Batch]:
    """Batches spread evenly over the data, until they hold enough samples or units of the loss."""
    chosen: list[Batch] = []
    samples = units = 0
    with evaluating(model):
        for batch in (batches[index] for index in spread(len(batches))):
            if chosen and (samples >= most_samples or units >= most_units):
                break
            batch = move(batch, device_of(model))
            units += loss.units(loss.forward(model, batch), batch)
            samples += samples_in(batch)
            chosen.append(batch)
    return chosen


def spread(count: int) -> list[int]:
    """`0 … count − 1` in an order whose every beginning is spread evenly: the golden ratio's rotation."""
    return sorted(range(count), key=lambda index: index * 0.618033988749895 % 1)


def divergences(
    model: nn.Module,
    trials: Sequence[Sequence[Replacement]],
    batches: Sequence[Batch],
    loss: Loss,
    advance: Any = lambda: None,
    journal: Journal | None = None,
    name: str = "probe",
) -> list[float]:
    """Mean divergence from the dense model, per unit, with the layers of each trial replaced; the model is restored.

    Every divergence on a batch is a piece of the `journal`, under `name`. Several processes share the trials.
    """
    journal, totals, units = journal or Journal(), [0.0] * len(trials), 0

    def measured(trial: Sequence[Replacement], batch: Batch, reference: Callable[[], Tensor]) -> list[float]:
        expected = reference()
        with replaced(model, trial):
            total, count = loss.divergence(loss.forward(model, batch), expected, batch)
        return [float(total), count]

    with evaluating(model):
        for number, batch in enumerate(batches):
            batch = move(batch, device_of(model))
            reference = cache(partial(loss.forward, model, batch))
            count = 0.0
            for index, trial in enumerate(trials):
                if processes.is_mine(index):
                    once = partial(measured, trial, batch, reference)
                    total, count = journal.value(f"{name}/{number}/{index}", once)
                    totals[index] += total
                advance()
            units += int(count)
    parts = processes.gathered([total / max(units, 1) for total in totals])
    return [parts[index % len(parts)][index] for index in range(len(trials))]


def divergence_of(
    model: nn.Module, other: nn.Module, batches: Sequence[Batch], loss: Loss, *, progress: bool = False
) -> float:
    """Mean divergence, per unit, of another model from this one."""
    total, units = 0.0, 0
    with evaluating(model, other):
        for batch in track(batches, "checking the plan on calibration data", wanted=progress):
            batch = move(batch, device_of(model))
            part, count = loss.divergence(loss.forward(other, batch), loss.forward(model, batch), batch)
            total, units = total + float(part), units + count
    return total / max(units, 1)


@contextmanager
def replaced(model: nn.Module, trial: Sequence[Replacement]) -> Iterator[None]:
    """The model with its weights replaced in place, and given back afterwards."""
    old: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for each in trial:
            weight = model.get_submodule(each.layer.name).weight
            assert isinstance(weight, nn.Parameter)
            old.append((weight, weight.data))
            weight.data = as_stored(each.layer, each.first @ each.second).to(weight).contiguous()
        yield
    finally:
        for weight, data in old:
            weight.data = data
