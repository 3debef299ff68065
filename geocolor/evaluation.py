"""Evaluation: what a model costs and how well it does on data."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from geocolor.losses import Batch, Classification, Embedding, Loss, NextToken, device_of, loss_for, move
from geocolor.modes import evaluating
from geocolor.parameters import parameter_bytes, parameter_count
from geocolor.progress import track


@dataclass(frozen=True)
class Evaluation:
    """The mean `loss` over `units`, in `unit`, and what follows from it; None where it does not apply.

    `perplexity` and `bits_per_byte` are those of language models, `accuracy` and `similarity` (mean cosine of the
    embeddings with those of the reference) those of classifiers and encoders. `parameters` and `parameter_bytes` count
    shared storage once; `latency_seconds` is the median time of one forward pass over the first batch.
    """

    loss: float
    unit: str
    units: int
    perplexity: float | None
    bits_per_byte: float | None
    accuracy: float | None
    similarity: float | None
    parameters: int
    parameter_bytes: int
    latency_seconds: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same data; `divergence` is the mean distance of the second from the first, per unit.

    The divergence (KL of the outputs, cosine distance, squared error) is what predicted damage is the second order of.
    """

    dense: Evaluation
    compressed: Evaluation
    divergence: float


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss | None = None,
    reference: nn.Module | None = None,
    metrics: Mapping[str, Callable[[nn.Module], float]] | None = None,
    *,
    bytes_per_unit: float | None = None,
    repeats: int = 5,
    progress: bool = False,
) -> Evaluation:
    """The model's mean loss on `batches`, its size and its speed, in evaluation mode and without gradients.

    `loss` is found from model and batch when None. `reference` is the dense model where the loss compares two models
    (`Embedding`). `metrics` are functions of the model, called once each. `bytes_per_unit` (bytes of text per predicted
    token, see `geocolor.data.bytes_per_token`) turns nats into bits per byte. With `repeats=0` nothing is timed.

    Raises ValueError when there is no batch or nothing in the batches counts.
    """
    first, rest, total = _first_of(batches)
    loss = loss_for(model, first, loss)
    if loss.compares and reference is None:
        raise ValueError(f"the {loss.name} loss compares two models: pass the dense model as reference=")
    tally = _Tally(loss)
    with evaluating(model, reference):
        for batch in track(rest, "evaluating", total=total, wanted=progress):
            outputs = _outputs(model, batch, loss)
            expected = _outputs(reference, batch, loss) if reference is not None and loss.compares else None
            tally.add(outputs, batch, expected)
        return tally.evaluation(model, first, repeats, bytes_per_unit, metrics or {})


def evaluate_pair(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Batch],
    loss: Loss | None = None,
    *,
    bytes_per_unit: float | None = None,
    repeats: int = 5,
    progress: bool = False,
) -> Comparison:
    """Both models evaluated, and how far they are apart, with one pass of each over `batches`; see `evaluate`."""
    first, rest, total = _first_of(batches)
    loss = loss_for(dense, first, loss)
    tallies, distance = (_Tally(loss), _Tally(loss)), 0.0
    with evaluating(dense, compressed):
        for batch in track(rest, "evaluating dense and compressed", total=total, wanted=progress):
            expected, outputs = (_outputs(model, batch, loss) for model in (dense, compressed))
            expected = expected.to(outputs.device)
            for tally, made in zip(tallies, (expected, outputs), strict=True):
                tally.add(made, batch, expected if loss.compares else None)
            distance += float(loss.divergence(outputs, expected, move(batch, outputs.device))[0])
        seen = [
            tally.evaluation(model, first, repeats, bytes_per_unit, {})
            for tally, model in zip(tallies, (dense, compressed), strict=True)
        ]
    return Comparison(seen[0], seen[1], distance / tallies[1].units)


def latency(model: nn.Module, batch: Batch, repeats: int = 10, loss: Loss | None = None) -> float:
    """Median seconds of a forward pass over `batch`, after two passes to warm up."""
    loss = loss_for(model, batch, loss)
    device = device_of(model)
    batch = move(batch, device)
    seconds = []
    with torch.no_grad():  # in inference mode layers that share a basis would evaluate it once each
        for _ in range(2 + max(1, repeats)):
            begin = time.perf_counter()
            loss.forward(model, batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


@dataclass
class _Tally:
    """Sums over batches: the loss, the units that count, the labels hit by the largest logit (classification only)."""

    loss: Loss
    total: float = 0.0
    units: int = 0
    correct: int = 0

    def add(self, outputs: Tensor, batch: Batch, expected: Tensor | None) -> None:
        batch = move(batch, outputs.device)
        total, units = self.loss.total(outputs, batch, None if expected is None else expected.to(outputs.device))
        self.total, self.units = self.total + total.item(), self.units + units
        if isinstance(self.loss, Classification):
            self.correct += int((outputs.argmax(-1) == self.loss.labels(batch)).sum())

    def evaluation(
        self,
        model: nn.Module,
        first: Batch,
        repeats: int,
        bytes_per_unit: float | None,
        metrics: Mapping[str, Callable[[nn.Module], float]],
    ) -> Evaluation:
        loss = self.loss
        if self.units == 0:
            raise ValueError(f"no {loss.unit.split()[-1]} in these batches counts; are all of them padding or ignored?")
        mean = self.total / self.units
        causal = isinstance(loss, NextToken)
        return Evaluation(
            loss=mean,
            unit=loss.unit,
            units=self.units,
            perplexity=math.exp(min(mean, 700.0)) if causal else None,
            bits_per_byte=mean / math.log(2) / bytes_per_unit if causal and bytes_per_unit else None,
            accuracy=self.correct / self.units if isinstance(loss, Classification) else None,
            similarity=1 - mean if isinstance(loss, Embedding) else None,
            parameters=parameter_count(model),
            parameter_bytes=parameter_bytes(model),
            latency_seconds=latency(model, first, repeats, loss) if repeats else None,
            metrics={name: float(metric(model)) for name, metric in metrics.items()},
        )


def _first_of(batches: Iterable[Batch]) -> tuple[Batch, Iterable[Batch], int | None]:
    """The first batch, all of them, and their number where it is known."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("there are no batches to evaluate on; pass at least one")
    return first, chain([first], iterator), len(batches) if isinstance(batches, Sized) else None


def _outputs(model: nn.Module, batch: Batch, loss: Loss) -> Tensor:
    return loss.forward(model, move(batch, device_of(model)))
