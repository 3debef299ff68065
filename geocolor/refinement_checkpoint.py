"""The file from which a killed refinement goes on bit for bit: values, AdamW's moments, and what the run was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import AllowInfNan, Field
from torch import Tensor, nn

from geocolor.digests import digest_of, digest_of_model
from geocolor.journal import difference
from geocolor.losses import Batch, Loss
from geocolor.schema import Count, Frozen, Text, validated
from geocolor.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from geocolor.refinement import RefineSettings

KIND, ANEW = "refinement", "Remove it to begin anew"


@dataclass
class State:
    """Where a run is."""

    step: int = 0
    best_step: int = 0
    best: float = math.inf
    looks_since: int = 0
    trace: list[tuple[int, float, float]] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)


def identity(
    target: nn.Module, dense: nn.Module, batches: Sequence[Batch], loss: Loss, settings: RefineSettings
) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint."""
    return {
        **asdict(settings),
        "batches": len(batches),
        "compressed model": digest_of_model(target),
        "dense model": digest_of_model(dense),
        "data": digest_of(batches),
        "loss": digest_of(loss),
    }


def write_checkpoint(
    path: Path,
    state: State,
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, Any],
) -> None:
    """The moments of what has had no gradient yet are zeros, and it has taken no steps."""
    tensors: dict[str, Tensor] = {}
    taken: dict[str, int] = {}
    for name, values in masters.items():
        moments = optimizer.state.get(values) or {"step": 0, "exp_avg": None, "exp_avg_sq": None}
        taken[name] = int(moments["step"])
        first, second = (moments[key] if taken[name] else torch.zeros_like(values) for key in ("exp_avg", "exp_avg_sq"))
        tensors |= {
            f"now/{name}": values.detach(),
            f"best/{name}": state.values[name],
            f"first/{name}": first,
            f"second/{name}": second,
        }
    metadata = {
        "run": dict(run),
        "step": state.step,
        "best_step": state.best_step,
        "best": state.best,
        "looks_since": state.looks_since,
        "trace": state.trace,
        "taken": taken,
    }
    write_tensors(path, KIND, {name: tensor.cpu() for name, tensor in tensors.items()}, metadata)


Loose = Annotated[float, AllowInfNan(True)]


class _Header(Frozen):
    run: dict[Text, Any]
    step: Count
    best_step: Count
    best: Loose
    looks_since: Count
    trace: tuple[tuple[Count, Loose, Loose], ...] = Field(min_length=1)
    taken: dict[Text, Count]


def read_checkpoint(
    path: Path,
    trained: Mapping[str, nn.Parameter],
    masters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, Any],
) -> State:
    """Where the run was; values and moments go to `trained`, `masters` and `optimizer`.

    Raises `ValueError` naming the file where it is damaged, or of another run.
    """
    tensors, metadata = read_tensors(path, KIND, ANEW)
    header = validated(_Header, metadata, str(path), "the header", ANEW)
    if other := difference(header.run, run):
        raise ValueError(
            f"{path} is the checkpoint of another run, with {other}: remove it to begin anew, or repeat the command it "
            "was made by"
        )
    if not header.best_step <= header.step <= run["steps"]:
        raise ValueError(f"{path} does not fit: it is at step {header.step} of {run['steps']}. {ANEW}")
    for name, parameter in trained.items():
        for what in ("now", "best", "first", "second"):
            found = tensors.get(f"{what}/{name}")
            if found is None or found.shape != parameter.shape or not found.is_floating_point():
                raise ValueError(f"{path} does not fit: {what}/{name} is missing or of another shape. {ANEW}")
        if not header.taken.get(name, math.inf) <= header.step:
            raise ValueError(f"{path} does not fit: it does not say how many steps {name} has taken. {ANEW}")
    with torch.no_grad():
        for name, parameter in trained.items():
            masters[name].copy_(tensors[f"now/{name}"])
            parameter.copy_(masters[name])
            if header.taken[name]:
                optimizer.state[masters[name]] = {
                    "step": torch.tensor(float(header.taken[name])),
                    "exp_avg": tensors[f"first/{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"second/{name}"].to(parameter.device),
                }
    return State(
        step=header.step,
        best_step=header.best_step,
        best=header.best,
        looks_since=header.looks_since,
        trace=list(header.trace),
        values={name: tensors[f"best/{name}"].to(parameter.device) for name, parameter in trained.items()},
    )
