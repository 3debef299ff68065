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

from geocolor.layers import storage_key
from geocolor.losses import Batch, Classification, Embedding, Loss, NextToken, default_loss, device_of, move
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
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("there are no batches to evaluate on; pass at least one")
    loss = default_loss(model, first) if loss is None else loss
    if loss.compares and reference is None:
        raise ValueError(f"the {loss.name} loss compares two models: pass the dense model as reference=")
    modes = [(module, module.training) for each in (model, reference) if each is not None for module in each.modules()]
    total, units, correct = 0.0, 0, 0
    length = len(batches) if isinstance(batches, Sized) else None
    try:
        for module, _ in modes:
            module.training = False
        with torch.inference_mode():
            for batch in track(chain([first], iterator), "evaluating", total=length, wanted=progress):
                part, count, hits = _one_batch(model, batch, loss, reference)
                total, units, correct = total + part, units + count, correct + hits
        seconds = latency(model, first, repeats, loss) if repeats else None
        measured = {name: float(metric(model)) for name, metric in (metrics or {}).items()}
    finally:
        for module, training in modes:
            module.training = training
    if units == 0:
        raise ValueError(f"no {loss.unit.split()[-1]} in these batches counts; are all of them padding or ignored?")
    mean = total / units
    causal = isinstance(loss, NextToken)
    return Evaluation(
        loss=mean,
        unit=loss.unit,
        units=units,
        perplexity=math.exp(min(mean, 700.0)) if causal else None,
        bits_per_byte=mean / math.log(2) / bytes_per_unit if causal and bytes_per_unit else None,
        accuracy=correct / units if isinstance(loss, Classification) else None,
        similarity=1 - mean if isinstance(loss, Embedding) else None,
        parameters=parameter_count(model),
        parameter_bytes=parameter_bytes(model),
        latency_seconds=seconds,
        metrics=measured,
    )


def latency(model: nn.Module, batch: Batch, repeats: int = 10, loss: Loss | None = None) -> float:
    """Median seconds of a forward pass over `batch`, after two passes to warm up."""
    loss = default_loss(model, batch) if loss is None else loss
    device = device_of(model)
    batch = move(batch, device)
    seconds = []
    with torch.inference_mode():
        for _ in range(2 + max(1, repeats)):
            begin = time.perf_counter()
            loss.forward(model, batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared storage counted once."""
    return sum(parameter.numel() for parameter in _unique_parameters(model))


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters in memory, shared storage counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in _unique_parameters(model))


def _unique_parameters(model: nn.Module) -> list[Tensor]:
    unique: dict[tuple[str, int], Tensor] = {}
    for parameter in model.parameters():
        key = storage_key(parameter)
        if key not in unique or unique[key].numel() < parameter.numel():
            unique[key] = parameter
    return list(unique.values())


def _one_batch(model: nn.Module, batch: Batch, loss: Loss, reference: nn.Module | None) -> tuple[float, int, int]:
    """Sum of the loss, number of units, and number of labels hit by the largest logit (classification only)."""
    batch = move(batch, device_of(model))
    outputs = loss.forward(model, batch)
    expected = None
    if reference is not None and loss.compares:
        expected = loss.forward(reference, move(batch, device_of(reference))).to(outputs.device)
    total, units = loss.total(outputs, batch, expected)
    hits = int((outputs.argmax(-1) == loss.labels(batch)).sum()) if isinstance(loss, Classification) else 0
    return total.item(), units, hits
