"""Refinement: bases and coefficients trained for a while to give the dense model's outputs again.

What truncation has lost in one layer, others can partly give back; nothing but the factors moves, so the plan, the
sharing and the number of parameters stay as they are. The loss is the divergence from the dense model (Kullback–Leibler
for classes and tokens, cosine distance for embeddings; knowledge distillation, Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AllowInfNan, Field
from torch import Tensor, nn

from geocolor.backend import factored_layers
from geocolor.divergence import divergence_of
from geocolor.factored_layers import FactoredLayer
from geocolor.losses import Batch, Loss, device_of, loss_for, move
from geocolor.modes import evaluating
from geocolor.progress import bar
from geocolor.schema import Count, Frozen, Text, validated
from geocolor.tensor_files import read_tensors, write_tensors

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
        holdout: fraction of the batches never trained on, by which the best step is chosen; 0 keeps the last step.
        evaluate_every: steps between two looks at the hold-out.
        patience: looks without a new best after which to stop early; 0 never stops early.
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
        for name, least in (("steps", 0), ("evaluate_every", 1), ("checkpoint_every", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.labels <= 1:
            raise ValueError(f"labels is a weight between 0 and 1, got {self.labels}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout is a fraction below 1, got {self.holdout}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")


@dataclass(frozen=True)
class Refinement:
    """A refined model and how it came about.

    `before` and `after` are the divergence from the dense model on the hold-out (on the training batches where there
    is none); `trace` has (step, loss on the batch, divergence on the hold-out) at every look; `model` has the values
    of step `best_step`.
    """

    model: nn.Module
    before: float
    after: float
    best_step: int
    steps: int
    seconds: float
    trace: tuple[tuple[int, float, float], ...]


@dataclass
class _State:
    """Where a run is: all that a checkpoint holds."""

    step: int = 0
    best_step: int = 0
    best: float = math.inf
    looks_since: int = 0
    trace: list[tuple[int, float, float]] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)


def refine(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[Batch],
    settings: RefineSettings | None = None,
    *,
    loss: Loss | None = None,
    checkpoint: str | Path | None = None,
    keep_checkpoint: bool = False,
    inplace: bool = False,
    progress: bool = False,
) -> Refinement:
    """Train the factors of a compressed model to match the dense one on calibration batches.

    `batches` are calibration data, as for `measure`; never show it the test data. With `checkpoint` a run that is
    killed goes on from that file and gives the same values bit for bit on the same machine; the file is removed at the
    end unless `keep_checkpoint`, then a finished run is known from it. A copy of `model` is trained unless `inplace`.
    The step that was best on the hold-out is kept, step 0 among them, so on the hold-out the result is never worse than
    what came in.

    Raises `ValueError` for a model without factored layers, for too few batches, or for a checkpoint of another run.
    """
    settings = settings or RefineSettings()
    batches = batches if isinstance(batches, Sequence) else list(batches)
    if not batches:
        raise ValueError("refine needs batches to train on; pass the calibration data")
    loss = loss_for(dense, batches[0], loss)
    started = time.perf_counter()
    target = model if inplace else copy.deepcopy(model)
    trained = trainable(target, norms=settings.norms)
    frozen = [(parameter, parameter.requires_grad) for parameter in target.parameters()]
    training, holdout = split(batches, settings.holdout)
    path = None if checkpoint is None else Path(checkpoint)
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        with evaluating(target, dense, gradients=True):
            state = _train(target, dense, trained, training, holdout, settings, loss, path, progress)
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


def _train(
    target: nn.Module,
    dense: nn.Module,
    trained: Mapping[str, nn.Parameter],
    training: Sequence[Batch],
    holdout: Sequence[Batch],
    settings: RefineSettings,
    loss: Loss,
    path: Path | None,
    progress: bool,
) -> _State:
    masters = {name: master(parameter) for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(list(masters.values()), lr=settings.learning_rate, weight_decay=0.0)
    run = _identity(masters, settings, len(training), len(holdout)) if path is not None else {}
    state = _State()
    if path is not None and path.exists():
        state = _resume(path, trained, masters, optimizer, run)
    else:
        _look(state, target, dense, masters, holdout or training, loss, math.nan, keep=True)
    with bar("refining", settings.steps, wanted=progress) as advance:
        for _ in range(state.step):
            advance()
        while state.step < settings.steps and not (settings.patience and state.looks_since >= settings.patience):
            rate = one_cycle(state.step, settings.steps, settings.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = training[_turn(state.step, len(training), settings)]
            value = _step(target, dense, trained, masters, optimizer, batch, settings, loss)
            if not math.isfinite(value):
                warnings.warn(
                    f"the loss became {value} at step {state.step}: the best step before it is kept. "
                    "A lower learning rate may help",
                    stacklevel=4,
                )
                break
            state.step += 1
            last = state.step == settings.steps
            if state.step % settings.evaluate_every == 0 or last:
                keep = bool(holdout) or last
                _look(state, target, dense, masters, holdout or training, loss, value, keep=keep)
            if path is not None and (state.step % settings.checkpoint_every == 0 or last):
                _write(path, state, masters, optimizer, run)
            advance()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state.values[name])
    return state


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
    """One step on one batch; the loss before it, per unit. A step that is not finite changes nothing."""
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
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    return int(torch.randperm(count, generator=generator)[place])


def _look(
    state: _State,
    target: nn.Module,
    dense: nn.Module,
    masters: Mapping[str, Tensor],
    batches: Sequence[Batch],
    loss: Loss,
    value: float,
    *,
    keep: bool,
) -> None:
    """Measure the divergence, and remember the values where they are the best yet."""
    found = divergence_of(dense, target, batches, loss)
    state.trace.append((state.step, value, found))
    state.looks_since += 1
    if keep and (found < state.best or not state.values):
        state.best, state.best_step, state.looks_since = found, state.step, 0
        state.values = {name: values.detach().clone() for name, values in masters.items()}


def _identity(masters: Mapping[str, Tensor], settings: RefineSettings, training: int, holdout: int) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint."""
    digest = hashlib.sha256()
    for name, values in masters.items():
        digest.update(name.encode())
        digest.update(values.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return {"start": digest.hexdigest(), "batches": training, "held out": holdout, **asdict(settings)}


def _write(
    path: Path,
    state: _State,
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, Any],
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, values in masters.items():
        moments = optimizer.state[values]
        tensors |= {
            f"now/{name}": values.detach(),
            f"best/{name}": state.values[name],
            f"first/{name}": moments["exp_avg"],
            f"second/{name}": moments["exp_avg_sq"],
        }
    metadata = {
        "run": dict(run),
        "step": state.step,
        "best_step": state.best_step,
        "best": state.best,
        "looks_since": state.looks_since,
        "trace": state.trace,
    }
    write_tensors(path, "refinement", {name: tensor.cpu() for name, tensor in tensors.items()}, metadata)


Loose = Annotated[float, AllowInfNan(True)]


class _Header(Frozen):
    run: dict[Text, Any]
    step: Count
    best_step: Count
    best: Loose
    looks_since: Count
    trace: tuple[tuple[Count, Loose, Loose], ...] = Field(min_length=1)


def _resume(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, Any],
) -> _State:
    tensors, metadata = read_tensors(path, "refinement")
    header = validated(_Header, metadata, str(path), "the header", "remove it to begin anew")
    odd = [key for key, value in run.items() if header.run.get(key) != value]
    if odd:
        raise ValueError(
            f"{path} is the checkpoint of another run: its {odd[0]} is {header.run.get(odd[0])!r:.80}, not "
            f"{run[odd[0]]!r}; remove it to begin anew, or repeat the command it was made by"
        )
    if not header.best_step <= header.step <= run["steps"]:
        raise ValueError(f"{path} does not fit: it is at step {header.step} of {run['steps']}; remove it")
    for name, parameter in trained.items():
        for what in ("now", "best", "first", "second"):
            found = tensors.get(f"{what}/{name}")
            if found is None or found.shape != parameter.shape or not found.is_floating_point():
                raise ValueError(f"{path} does not fit: {what}/{name} is missing or of another shape; remove it")
    with torch.no_grad():
        for name, parameter in trained.items():
            masters[name].copy_(tensors[f"now/{name}"])
            parameter.copy_(masters[name])
            optimizer.state[masters[name]] = {
                "step": torch.tensor(float(header.step)),
                "exp_avg": tensors[f"first/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"second/{name}"].to(parameter.device),
            }
    return _State(
        step=header.step,
        best_step=header.best_step,
        best=header.best,
        looks_since=header.looks_since,
        trace=list(header.trace),
        values={name: tensors[f"best/{name}"].to(parameter.device) for name, parameter in trained.items()},
    )
