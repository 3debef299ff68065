"""How far another model is from the dense one, on a part of the calibration data that one look can afford."""

from collections.abc import Sequence

from torch import nn

from geocolor.losses import Batch, Loss, device_of, move, samples_in
from geocolor.modes import evaluating
from geocolor.progress import track

#: Calibration data of one look, whichever comes first.
MOST_SAMPLES, MOST_UNITS = 512, 16384


def few(
    batches: Sequence[Batch],
    loss: Loss,
    model: nn.Module,
    most_samples: int = MOST_SAMPLES,
    most_units: int = MOST_UNITS,
) -> list[Batch]:
    """Batches spread evenly over the data, until they hold enough samples or units of the loss; at least one."""
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
