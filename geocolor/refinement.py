"""Refinement: bases and coefficients trained for a while to give the dense model's outputs again.

What truncation has lost in one layer, others can partly give back; nothing but the factors moves, so the plan, the
sharing and the number of parameters stay as they are. The loss is the divergence from the dense model (Kullback–Leibler
for classes and tokens, cosine distance for embeddings; knowledge distillation, Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geocolor.backend import factored_layers
from geocolor.divergence import divergence_of
from geocolor.factored_layers import FactoredLayer
from geocolor.losses import Batch, Loss, device_of, loss_for, move
from geocolor.modes import evaluating
from geocolor.preflight import check_weights
from geocolor.progress import bar
from geocolor.refinement_checkpoint import State, identity, read_checkpoint, write_checkpoint
from solvers.atomic import refuse_folder

WARM_UP = 0.3
"""Fraction of the steps in which the learning rate rises from a 25th of its peak; then it falls to almost nothing
(Smith & Topin 2018, arXiv:1708.07120)."""


@dataclass(frozen=True)
class RefineSettings:
    """How to refine; every field is an option of the command line.

    Attributes:
        steps: optimizer steps, one batch each.
        learning_rate: the peak of one cycle of AdamW.
        labels: weight of the loss on the batches' own labels; the divergence from the dense model has the rest.
        norms: also train normalisation layers (modules whose own parameters all have one axis).
        clip: largest norm of a gradient.
        precision: "bfloat16" runs the forward pass under autocast; values and moments stay float32.
        holdout: fraction of the batches never trained on, by which the best step is chosen; with 0 the last step is
            kept, unless it is no nearer on the training batches than what came in.
        evaluate_every: steps between two looks at the hold-out.
        patience: looks without a new best on the hold-out after which to stop early; 0 never stops early.
        checkpoint_every: steps between two checkpoints.
        seed: orders the batches.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    labels: float = 0.0
    norms: bool = False
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    holdout: float = 0.1
    evaluate_every: int = 50
    patience: int = 0
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("evaluate_every", 1), ("checkpoint_every", 1), ("patience", 0), ("seed", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more and whole, got {getattr(self, name)!r}")
        for name in ("learning_rate", "clip", "labels", "holdout"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")
        if not 0 <= self.labels <= 1:
            raise ValueError(f"labels is a weight between 0 and 1, got {self.labels}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout is a fraction below 1, got {self.holdout}")
        if self.patience and not self.holdout:
            raise ValueError(
                f"patience {self.patience} needs a hold-out to look at: pass a holdout above 0, or patience 0"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")


@dataclass(frozen=True)
class Refinement:
    """A refined model and how it came about.

    `before` and `after` are the divergence from the dense model on the hold-out (on the training batches where there
    is none); `trace` has (step, loss on the batch, divergence on the hold-out) at every look; `model` has the values
    of step `best_step`. `held_out` is the number of batches in the hold-out.
    """

    model: nn.Module
    before: float
    after: float
    best_step: int
    steps: int
    seconds: float
    trace: tuple[tuple[int, float, float], ...]
    held_out: int = 0


def refine(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Batch],
    settings: RefineSettings | int | None = None,
    *,
    loss: Loss | None = None,
    checkpoint: str | Path | None = None,
    keep_checkpoint: bool = False,
    inplace: bool = False,
    progress: bool = False,
) -> Refinement:
    """Train the factors of a compressed model to match the dense one on calibration batches.

    `batches` are calibration data, as for `measure`; never show it the test data. `settings` may be the number of steps
    alone. With `checkpoint` a run that is killed goes on from that file and gives the same values bit for bit on the
    same machine; the file is removed at the end unless `keep_checkpoint`, then a finished run is known from it. A copy
    of `model` is trained unless `inplace`.

    The step that was best on the hold-out is kept, step 0 among them, so on the hold-out the result is never worse than
    what came in. Without a hold-out (`holdout=0`, or one batch alone) it is the last step looked at that is nearer on
    the training batches than what came in. A loss that is not finite after the first step ends the training with a
    warning and one more look; a step on a batch that meets no factored layer changes nothing.

    Raises `ValueError` for a model without factored layers, for too few batches, for weights, a first look or a first
    loss that are not finite, for another model's outputs, or for a checkpoint of another run.
    """
    if settings is None:
        settings = RefineSettings()
    elif not isinstance(settings, RefineSettings):
        settings = RefineSettings(steps=settings)
    batches = list(batches)
    if not batches:
        raise ValueError("refine needs batches to train on; pass the calibration data")
    loss = loss_for(dense, batches[0], loss)
    _check(settings, len(batches), loss)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        refuse_folder(path)
    started = time.perf_counter()
    target = model if inplace else copy.deepcopy(model)
    trained = trainable(target, norms=settings.norms)
    check_weights(target, "the compressed model")
    check_weights(dense, "the dense model")
    frozen = [(parameter, parameter.requires_grad) for parameter in target.parameters()]
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        with evaluating(target, dense, gradients=True):
            state = _train(target, dense, trained, batches, settings, loss, path, progress)
    finally:
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)
            parameter.grad = None
    if path is not None and not keep_checkpoint:
        path.unlink(missing_ok=True)
    return Refinement(
        model=target,
        before=state.trace[0][2],
        after=state.best,
        best_step=state.best_step,
        steps=state.step,
        seconds=time.perf_counter() - started,
        trace=tuple(state.trace),
        held_out=len(split(batches, settings.holdout)[1]),
    )


def trainable(model: nn.Module, *, norms: bool = False) -> dict[str, nn.Parameter]:
    """The parameters that refinement moves, by name, each once: bases and coefficients, and `norms` where wanted.

    Raises `ValueError` for a model without factored layers.
    """
    layers = factored_layers(model)
    if not layers:
        raise ValueError("the model has no factored layers, so there is nothing to refine: apply a plan first")
    factors = {
        id(map.weight)
        for layer in layers.values()
        for map in (layer.coefficients, *(basis.map for basis in layer.bases().values()))
    }
    if norms:
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            if not isinstance(module, FactoredLayer) and all(parameter.ndim == 1 for parameter in own):
                factors |= {id(parameter) for parameter in own}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in factors}


def split(batches: Sequence[Batch], holdout: float) -> tuple[list[Batch], list[Batch]]:
    """Batches to train on and batches to judge by, the latter spread evenly; a single batch serves as both."""
    count = min(math.ceil(holdout * len(batches)), len(batches) - 1)
    if count == 0:
        return list(batches), []
    judged = {round((index + 0.5) * len(batches) / count - 0.5) for index in range(count)}
    return (
        [batch for index, batch in enumerate(batches) if index not in judged],
        [batch for index, batch in enumerate(batches) if index in judged],
    )


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step: from a 25th of the peak up to it, then down to nothing, along cosines."""
    top = WARM_UP * steps
    if step < top:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * step / top)) / 2)
    return peak * max(1e-5, (1 + math.cos(math.pi * (step - top) / max(steps - top, 1))) / 2)


def _check(settings: RefineSettings, batches: int, loss: Loss) -> None:
    """Raise `ValueError` for settings that these batches or this loss cannot meet."""
    if settings.patience and batches == 1:
        raise ValueError(
            f"patience {settings.patience} needs a hold-out to look at, and one batch leaves none: pass smaller "
            "batches, or patience 0"
        )
    if settings.labels and loss.compares:
        raise ValueError(
            f"labels is {settings.labels}, and the {loss.name} loss compares with the dense model, not with labels: "
            "pass labels=0, or another loss="
        )


def _train(
    target: nn.Module,
    dense: nn.Module,
    trained: Mapping[str, nn.Parameter],
    batches: Sequence[Batch],
    settings: RefineSettings,
    loss: Loss,
    path: Path | None,
    progress: bool,
) -> State:
    training, held_out = split(range(len(batches)), settings.holdout)
    judging = [batches[index] for index in held_out or training]
    masters = {name: master(parameter) for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(list(masters.values()), lr=settings.learning_rate, weight_decay=0.0)
    run = identity(target, dense, batches, loss, settings) if path is not None else {}
    look = partial(_look, target=target, dense=dense, masters=masters, batches=judging, loss=loss, best=bool(held_out))
    if path is not None and path.exists():
        state = read_checkpoint(path, trained, masters, optimizer, run)
    else:
        state = State()
        look(state, math.nan)
        if not math.isfinite(state.best):
            apart = (divergence_of(dense, target, [batch], loss) for batch in batches)
            wrong = next((index for index, found in enumerate(apart) if not math.isfinite(found)), 0)
            raise ValueError(_not_finite("the divergence from the dense model", state.best, wrong, len(batches)))
    with bar("refining", settings.steps, wanted=progress) as advance:
        for _ in range(state.step):
            advance()
        while state.step < settings.steps and not (settings.patience and state.looks_since >= settings.patience):
            rate = one_cycle(state.step, settings.steps, settings.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            index = training[_turn(state.step, len(training), settings)]
            value = _step(target, dense, trained, masters, optimizer, batches[index], settings, loss)
            if not math.isfinite(value):
                if state.step == 0:
                    raise ValueError(_not_finite("the loss or its gradient", value, index, len(batches)))
                warnings.warn(
                    f"the loss became {value} at step {state.step}, on batch {index + 1} of {len(batches)}: the best "
                    "step before it is kept. A lower learning rate may help, or data without NaN and infinity",
                    stacklevel=3,
                )
                if state.trace[-1][0] < state.step:
                    look(state, value)
                break
            state.step += 1
            last = state.step == settings.steps
            if state.step % settings.evaluate_every == 0 or last:
                look(state, value)
            if path is not None and (state.step % settings.checkpoint_every == 0 or last):
                write_checkpoint(path, state, masters, optimizer, run)
            advance(f"loss {value:.4g}, {state.trace[-1][2]:.4g} {'held out' if held_out else 'on all batches'}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state.values[name])
    return state


def _not_finite(what: str, value: float, index: int, count: int) -> str:
    return (
        f"{what} is {value} on batch {index + 1} of {count} before any step, though all weights are finite: look for "
        "NaN or infinity in that batch and leave it out, or load both models in float32"
    )


def master(parameter: nn.Parameter) -> Tensor:
    """What the optimizer moves: the parameter itself, or a float32 copy of one of lower precision."""
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return parameter.detach().float().requires_grad_(True)


def _step(
    target: nn.Module,
    dense: nn.Module,
    trained: Mapping[str, nn.Parameter],
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    settings: RefineSettings,
    loss: Loss,
) -> float:
    """One step on one batch; the loss before it, per unit. A step that is not finite, or nothing's, changes nothing."""
    batch = move(batch, device_of(target))
    with torch.no_grad():
        reference = loss.forward(dense, move(batch, device_of(dense))).to(device_of(target))
    for parameter in trained.values():
        parameter.grad = None
    with _autocast(settings, device_of(target)):
        outputs = loss.forward(target, batch)
    total, units = loss.divergence(outputs, reference, batch)
    value = total / max(units, 1)
    if settings.labels:
        own, count = loss.total(outputs, batch, reference)
        value = (1 - settings.labels) * value + settings.labels * own / max(count, 1)
    if not value.requires_grad:  # no factored layer was met, as where a batch is for other experts
        return float(value)
    value.backward()
    for name, parameter in trained.items():
        if masters[name] is not parameter:
            masters[name].grad = None if parameter.grad is None else parameter.grad.float()
    norm = nn.utils.clip_grad_norm_(masters.values(), settings.clip)
    if not bool(torch.isfinite(norm)):
        return math.nan
    optimizer.step()
    with torch.no_grad():
        for name, parameter in trained.items():
            if masters[name] is not parameter:
                parameter.copy_(masters[name])
    return float(value.detach())


def _autocast(settings: RefineSettings, device: torch.device) -> AbstractContextManager[Any]:
    if settings.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _turn(step: int, count: int, settings: RefineSettings) -> int:
    """Which batch a step takes: every epoch in another order that the seed gives."""
    epoch, place = divmod(step, count)
    generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + epoch) % 2**64)
    return int(torch.randperm(count, generator=generator)[place])


def _look(
    state: State,
    value: float,
    *,
    target: nn.Module,
    dense: nn.Module,
    masters: Mapping[str, Tensor],
    batches: Sequence[Batch],
    loss: Loss,
    best: bool,
) -> None:
    """Measure the divergence, and remember the values where they are the `best` yet, or else nearer than the first."""
    found = divergence_of(dense, target, batches, loss)
    bound = state.best if best or not state.trace else state.trace[0][2]
    state.trace.append((state.step, value, found))
    state.looks_since += 1
    if found < bound or not state.values:
        state.best, state.best_step, state.looks_since = found, state.step, 0
        state.values = {name: values.detach().clone() for name, values in masters.items()}
