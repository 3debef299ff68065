"""How far another model is from the dense one, on a part of the calibration data that one look can afford."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from geocolor.losses import Batch, Loss, device_of, move, samples_in
from geocolor.modes import evaluating
from geocolor.progress import track

#: Calibration data of one look, whichever comes first.
MOST_SAMPLES, MOST_UNITS = 512, 16384

#: Bytes of the dense model's outputs that are kept, so that they are computed once for all looks and comparisons.
KEPT_OUTPUTS = 2**27


class Chosen(list[Batch]):
    """Batches on the model's device; `outputs` are the dense model's on each, or empty where they do not fit."""

    def __init__(self, batches: Iterable[Batch], outputs: Iterable[Tensor]) -> None:
        super().__init__(batches)
        self.outputs = tuple(outputs)


def few(
    batches: Sequence[Batch],
    loss: Loss,
    model: nn.Module,
    most_samples: int = MOST_SAMPLES,
    most_units: int = MOST_UNITS,
) -> Chosen:
    """Batches spread evenly over the data, until they hold enough samples or units of the loss; at least one."""
    chosen: list[Batch] = []
    kept: list[Tensor] = []
    samples = units = size = 0
    with evaluating(model):
        for batch in (batches[index] for index in spread(len(batches))):
            if chosen and (samples >= most_samples or units >= most_units):
                break
            batch = move(batch, device_of(model))
            outputs = loss.forward(model, batch)
            units += loss.units(outputs, batch)
            samples += samples_in(batch)
            size += outputs.nbytes
            kept = [*kept, outputs] if size <= KEPT_OUTPUTS else []
            chosen.append(batch)
    return Chosen(chosen, kept)


def known_outputs(batches: Sequence[Batch]) -> bool:
    """Whether `dense_outputs` need not be computed."""
    return isinstance(batches, Chosen) and bool(batches.outputs)


def dense_outputs(model: nn.Module, batches: Sequence[Batch], index: int, loss: Loss) -> Tensor:
    """The outputs of the dense model on a batch, without gradients: those that `few` has kept, or computed."""
    if isinstance(batches, Chosen) and batches.outputs:
        return batches.outputs[index]
    with evaluating(model):
        return loss.forward(model, move(batches[index], device_of(model)))


def spread(count: int) -> list[int]:
    """`0 … count − 1` in an order whose every beginning is spread evenly: the golden ratio's rotation."""
    return sorted(range(count), key=lambda index: index * 0.618033988749895 % 1)


def divergence_of(
    model: nn.Module,
    other: nn.Module,
    batches: Sequence[Batch],
    loss: Loss,
    *,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    progress: bool = False,
) -> float:
    """Mean divergence, per unit, of another model from this one; of `few` batches this one's outputs are known.

    The other model may be this one with something in its place for a while: it runs `within` a context.
    """
    total, units = 0.0, 0
    with evaluating(model, other):
        for index, batch in enumerate(track(batches, "checking the plan on calibration data", wanted=progress)):
            batch = move(batch, device_of(model))
            reference = dense_outputs(model, batches, index, loss)
            with within():
                outputs = loss.forward(other, batch)
            if outputs.shape != reference.shape:
                raise ValueError(
                    f"on one batch the dense model gives outputs of shape {tuple(reference.shape)}, the other of "
                    f"{tuple(outputs.shape)}: pass the dense model that the other was made from"
                )
            part, count = loss.divergence(outputs, reference, batch)
            total, units = total + float(part), units + count
    return total / max(units, 1)
