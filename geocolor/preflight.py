"""What can be refused before any long work: settings, places to write to, weights, a model that does not run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from geocolor.atomic import check_place
from geocolor.curvature import ESTIMATES
from geocolor.layers import is_offloaded
from geocolor.losses import Batch, Classification, check_classes, default_loss, device_of, move
from geocolor.presets import GEO_SHARING, SEARCHED, find_preset
from geocolor.settings import Settings
from solvers import GroupProblem, MedoidProblem, PairwiseProblem, Problem, find_solver, solver_names
from solvers.atomic import refuse_folder

Form = Literal["group", "medoid", "pairwise"]


def check_settings(settings: Settings) -> None:
    """Raise ValueError for a setting that no model can meet. What depends on the model is checked by the steps."""
    if settings.keep is None and settings.bases is None and settings.max_flops is None:
        raise ValueError(
            "how small should it become? Pass --keep (fraction of the parameters), --max-flops and/or --bases"
        )
    if settings.max_flops is not None and not 0 < settings.max_flops <= 1:
        raise ValueError(
            f"--max-flops is the fraction of FLOPs that remain, above 0 and at most 1; got {settings.max_flops:g}"
        )
    if settings.keep is not None:
        check_keep(settings.keep)
    if settings.bases is not None and settings.bases < 1:
        raise ValueError(f"--bases is {settings.bases}; it must be at least 1, or --keep 1 leaves the model as it is")
    find_solver(settings.solver)
    _check_preset(settings)
    if settings.preset == SEARCHED:
        check_solver(settings.solver, "medoid" if settings.size is None else "group")
    for name, least in (("rounds", 0), ("draws", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"--{name} is {getattr(settings, name)}; it must be at least {least}")
    if settings.estimate is not None and settings.estimate not in ESTIMATES:
        raise ValueError(f"--estimate is {settings.estimate!r}; there are {', '.join(ESTIMATES)}")
    if not settings.kinds:
        raise ValueError("--kinds is empty; name at least one of in, out and both")
    for name, value, low, high in (
        ("--trust-region", settings.trust_region, 0.0, math.inf),
        ("--aggregate", settings.aggregate, 0.0, math.inf),
        ("--flat-energy", settings.flat_energy, 0.0, 1.0),
        ("--rank-fraction", settings.rank_fraction, 0.0, 1.0),
    ):
        if value is not None and not low < value < high:
            most = f" and below {high:g}" if math.isfinite(high) else " and finite"
            raise ValueError(f"{name} is {value:g}; it must be above {low:g}{most}")
    if settings.damping is not None and not 0 <= settings.damping < math.inf:
        raise ValueError(f"--damping is {settings.damping:g}; it must be at least 0 and finite")
    if settings.shrinkage is not None and not 0 <= settings.shrinkage <= 1:
        raise ValueError(f"--shrinkage is {settings.shrinkage:g}; it must lie between 0 (none) and 1")
    if not settings.time_limit > 0:
        raise ValueError(f"--time-limit is {settings.time_limit:g} seconds; it must be above 0")


def check_solver(name: str, form: Form, size: int = 1) -> None:
    """Raise ValueError for a solver that takes no problem of that form and size."""
    problem = alike(form, size)
    if why := find_solver(name).refusal(problem):
        takers = ", ".join(solver_names(problem))
        raise ValueError(f"solver {name!r} is none for this search: {why}; solvers that are: {takers}")


def alike(form: Form, size: int) -> Problem:
    """A problem of that form and size, to see which solvers take it."""
    if form == "medoid":
        return MedoidProblem(np.zeros((size, size)), size)
    return PairwiseProblem(np.zeros((size, size))) if form == "pairwise" else GroupProblem(size, lambda _: 0.0)


def _check_preset(settings: Settings) -> None:
    """Published methods search nothing: what belongs to the search must not be set beside them."""
    find_preset(settings.preset)
    if settings.preset == SEARCHED:
        return
    if settings.preset == GEO_SHARING:
        if settings.keep is not None and settings.bases is not None:
            raise ValueError(f"--preset {GEO_SHARING} takes either --keep or --bases")
        _check_unset(settings, ("max_flops", "kinds", "aggregate", "estimate", "damping", "shrinkage", "flat_energy"))
        return
    if settings.keep is None:
        raise ValueError(f"--preset {settings.preset} needs --keep, the fraction of the parameters that may remain")
    searched = ("bases", "max_flops", "solver", "kinds", "aggregate", "trust_region", "flat_energy", "rank_fraction")
    _check_unset(settings, searched)


def _check_unset(settings: Settings, names: tuple[str, ...]) -> None:
    default = Settings()
    for name in names:
        if getattr(settings, name) != getattr(default, name):
            option, lacks = name.replace("_", "-"), "has none" if settings.preset == GEO_SHARING else "searches nothing"
            raise ValueError(f"--{option} belongs to the search, and --preset {settings.preset} {lacks}")


def check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"--keep is the fraction of parameters that remain, above 0 and at most 1; got {keep:g}")


def check_file(path: Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Raise where a file cannot be written at `path` (None passes), or its name ends otherwise than in `suffixes`."""
    if path is None:
        return
    refuse_folder(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path}: its name has to end in {', '.join(suffixes[:-1])} or {suffixes[-1]}")
    check_place(path)


def check_weights(model: nn.Module, called: str = "the model") -> None:
    """Raise ValueError naming the first parameter that holds NaN, infinity, or nothing at all; where, and how many.

    `called` is what the sentence calls the model.
    """
    elsewhere = {id(p) for module in model.modules() if is_offloaded(module) for p in module.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if id(parameter) in elsewhere:
            continue
        if parameter.is_meta:
            raise ValueError(f"{called}'s {name} has a shape and no values (device 'meta'): load its weights first")
        wrong = ~torch.isfinite(parameter.detach())
        if wrong.any():
            where = ", ".join(str(int(i)) for i in wrong.nonzero()[0])
            raise ValueError(
                f"{called}'s {name}[{where}] is {parameter.detach()[tuple(wrong.nonzero()[0])]:g}, and "
                f"{int(wrong.sum())} of its {wrong.numel()} weights are not finite; repair or train the model again"
            )


def check_sequence(model: nn.Module, sequence: int) -> None:
    """Raise ValueError where a transformers model has positions for fewer tokens than `sequence`."""
    config: Any = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < sequence:
        raise ValueError(f"the model takes at most {positions} tokens, --sequence is {sequence}; pass a smaller one")


def check_runs(model: nn.Module, batches: Sequence[Batch], source: str) -> None:
    """Raise ValueError where the model does not run on the first batch of `source`, or labels are no classes of it."""
    try:
        loss = default_loss(model, batches[0])
        with torch.inference_mode():
            outputs = loss.forward(model, move(batches[0], device_of(model)))
        if isinstance(loss, Classification):
            for batch in batches:
                check_classes(loss.labels(batch), outputs.shape[-1])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
