"""The main job, end to end: measure, price, plan, apply, save, load again, compare with the dense model."""

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from geocolor.atomic import refuse_occupied, replace_directory
from geocolor.backend import plan_of
from geocolor.bases import FactoredKind
from geocolor.calibration import calibrate, seen_from
from geocolor.carry_out import apply
from geocolor.curvature import Curvature, LanczosCurvature, measure
from geocolor.curvature.shrinkage import SHRINKAGE
from geocolor.curvature.windows import measure_within
from geocolor.divergence import few
from geocolor.evaluation import evaluate_pair
from geocolor.figures import draw_plan
from geocolor.geo_sharing import AXES, BETA, geo_sharing
from geocolor.graph import KINDS, CostGraph, price
from geocolor.journal import Journal
from geocolor.layers import find_layers
from geocolor.losses import Loss, loss_for
from geocolor.mapped import converted
from geocolor.memory import give_back, resident
from geocolor.planning import budgeted, plan
from geocolor.plans import Plan, write_plan
from geocolor.presets import GEO_SHARING, SEARCHED, Preset, find_preset
from geocolor.prices import Prices
from geocolor.quantities import size
from geocolor.refinement import RefineSettings, refine
from geocolor.report import Report, refinement_report, run_report, weight_bytes, write_report
from geocolor.stand_ins import planned
from geocolor.storage import load, save
from geocolor.transformers_format import is_transformers_model
from geocolor.updating import update_coefficients, updated_where_nearer
from geocolor.verification import verified

#: Powers of a layer's damage that plans are made under; which one serves best belongs to the model and the budget.
AGGREGATES = (1.0, 2.0)

#: The size from which layers are looked at where none is asked for.
CALIBRATED_AT = 0.8

#: Relative to the mean of a Kronecker factor's diagonal.
DAMPING = 1e-3

#: The power of a layer's damage under which a plan is made without looks, for refinement, and the steps of refinement
#: after which it is compared. stories260K at keep 0.5 ends at 0.702 with it (powers 1.5, 2, 3: 0.711, 0.724, 0.751), at
#: 0.83 with what is nearest at once.
SPREAD, TRIAL_STEPS = 1.25, 50

#: No round follows one that brought the best plan nearer by less than such a part, unless sharing lost. All three
#: rounds would have brought another 0.0 % on stories260K and MiniLM (keep 0.8) and KWT-1 (0.4).
WORTH_A_ROUND = 0.01

#: At this size and below it is tried whether coefficients fitted to the smaller model's own inputs are nearer; above,
#: inputs have hardly moved. Basis Sharing has the same bound.
UPDATED_BELOW = 0.6


@dataclass(frozen=True)
class Settings:
    """What a run is asked for; every field is an option of the command line.

    `preset` other than "geocolor" is a published method (`geocolor.presets`) and has its own `estimate` and `damping`;
    what belongs to the search then stays at its defaults, but for "geo-sharing", which takes `solver`, `time_limit`,
    `bases` with `rank_fraction`, `trust_region` (0.01 when None) and `axes`, which it alone takes. Without `aggregate`
    each of `AGGREGATES` makes a plan, and calibration data chooses among them. `memory` bounds the bytes that the
    process holds while it measures and prices (half of what the model leaves of them is for layers and classes that are
    kept, the rest for what is computed of a pair); looks and verdicts hold the weights of a smaller model instead.
    """

    preset: str = SEARCHED

    keep: float | None = None
    bases: int | None = None
    max_flops: float | None = None
    solver: str = "auto"
    kinds: tuple[FactoredKind, ...] = KINDS
    aggregate: float | None = None
    estimate: str | None = None
    damping: float | None = None
    shrinkage: float | None = None
    draws: int = 1
    rounds: int = 3
    trust_region: float | None = None
    flat_energy: float = 0.05
    rank_fraction: float = 0.5
    axes: int = AXES
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    time_limit: float = 60.0
    memory: int | None = None
    seed: int = 0

    @property
    def size(self) -> float | None:
        """The fraction that may remain, of the parameters or else of the FLOPs; None where bases are counted alone."""
        return self.keep or self.max_flops

    @property
    def powers(self) -> tuple[float, ...]:
        """The powers of a layer's damage that plans are made under; calibration data chooses among several."""
        several = self.aggregate is None and self.size is not None and self.rounds > 0
        return AGGREGATES if several else (self.aggregate or 1.0,)


@dataclass
class Clock:
    """Seconds by step; `timer` is what they are read from, `time.process_time` where others use the machine too."""

    seconds: dict[str, float] = field(default_factory=dict)
    timer: Callable[[], float] = time.perf_counter

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = self.timer()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + self.timer() - started


@dataclass(frozen=True)
class Prepared:
    """A model priced and planned, not yet changed.

    `graph` is None where layers were priced along axes of the Hessian. `updated`: the preset fits coefficients again
    once the plan is carried out (`geocolor.updating`).
    """

    curvature: Curvature | LanczosCurvature
    graph: CostGraph | None
    plan: Plan
    updated: Literal["never", "always", "nearer"] = "never"


def prepare(
    model: nn.Module,
    calibration: Sequence[Any],
    settings: Settings,
    *,
    curvature: Curvature | None = None,
    prices: Prices | None = None,
    loss: Loss | None = None,
    clock: Clock,
    progress: bool = False,
    journal: Journal | None = None,
) -> Prepared:
    """Measure curvature, price the layers, search plans, keep the one that does least damage on calibration data.

    `curvature`: measured already, with these settings, and for a preset not calibrated; `prices`: what was priced under
    it, used where it was with the same settings. What the `journal` holds of the same run is not done again.
    """
    if settings.preset == GEO_SHARING:
        return _by_axes(model, calibration, settings, loss=loss, clock=clock, progress=progress, journal=journal)
    preset = find_preset(settings.preset)
    if preset is not None:
        return _by_preset(
            preset,
            model,
            calibration,
            settings,
            curvature=curvature,
            loss=loss,
            clock=clock,
            progress=progress,
            journal=journal,
        )
    _, graph = priced(
        model,
        calibration,
        settings,
        curvature=curvature,
        prices=prices,
        loss=loss,
        clock=clock,
        progress=progress,
        journal=journal,
    )
    return searched(model, graph, calibration, settings, loss=loss, clock=clock, progress=progress, journal=journal)


def searched(
    model: nn.Module,
    graph: CostGraph,
    calibration: Sequence[Any],
    settings: Settings,
    *,
    loss: Loss | None = None,
    clock: Clock,
    progress: bool = False,
    journal: Journal | None = None,
) -> Prepared:
    """A plan for every aggregate of the graph, and of those the one that does least damage on calibration data.

    Then, `rounds` times or until one gains less than `WORTH_A_ROUND`, prices are moved to what is seen from the model
    of the last plan, and another coloring is searched under them. Plans without sharing are measured beside all of
    them, and the best of all is taken.
    """
    journal = journal or Journal()
    loss = loss_for(model, calibration[0], loss)
    found = _planned(graph, settings, clock, progress, journal)
    if not settings.rounds:
        return Prepared(graph.curvature, graph.under(found[0].aggregate), found[0])
    with clock("verify"):
        chosen = few(calibration, loss, model)
        verdict = verified(model, graph, found, chosen, loss, progress=progress, journal=journal)
    best, best_graph = verdict, graph
    for _ in range(settings.rounds):
        stand_ins = planned(graph, verdict.plan)
        graph.set_aside()
        if not stand_ins:  # everything fits as it is
            break
        with clock("calibrate"):
            curvature = seen_from(model, stand_ins, graph.curvature, chosen, loss, journal=journal)
        with clock("price"):
            power = verdict.plan.aggregate
            promising = partial(graph.under(power).promising, next(p.price for p in found if p.aggregate == power))
            near = journal.value(f"near/{curvature.rounds}", promising)  # plans read from a journal price no pairs
            graph.set_aside()
            graph = price(model, curvature, kinds=graph.kinds, aggregate=power, near=near, progress=progress)
        found = _planned(graph, settings, clock, progress, journal)
        with clock("verify"):
            verdict = verified(model, graph, found, chosen, loss, progress=progress, journal=journal)
        gained = 1 - verdict.damage / best.damage if best.damage > 0 else 0.0
        if gained > 0:
            best, best_graph = verdict, graph
        if gained < WORTH_A_ROUND and not verdict.lost:
            break
    verdict, graph = best, best_graph
    if verdict.lost:
        warnings.warn(verdict.loss_of_sharing(graph.curvature.unit), stacklevel=2)
    small = settings.size is not None and settings.size <= UPDATED_BELOW and settings.trust_region is None
    updated: Literal["never", "nearer"] = "nearer" if small else "never"
    return Prepared(graph.curvature, graph.under(verdict.plan.aggregate), verdict.plan, updated)


def _planned(
    graph: CostGraph, settings: Settings, clock: Clock, progress: bool, journal: Journal | None = None
) -> list[Plan]:
    """A plan for every aggregate of the graph."""
    graph = budgeted(graph, settings.keep, settings.max_flops)

    def found(power: float) -> dict[str, Any]:
        return plan(
            graph.under(power),
            settings.keep,
            settings.bases,
            max_flops=settings.max_flops,
            solver=settings.solver,
            beta=settings.trust_region,
            flat_energy=settings.flat_energy,
            rank_fraction=settings.rank_fraction,
            time_limit=settings.time_limit / len(graph.aggregates),
            seed=settings.seed,
            progress=progress,
            journal=journal,
        ).model_dump(mode="json")

    journal = journal or Journal()
    with clock("plan"):
        keys = {power: f"plan/{graph.curvature.rounds}/{power:g}" for power in graph.aggregates}
        return [Plan.model_validate(journal.value(key, partial(found, power))) for power, key in keys.items()]


def _by_preset(
    preset: Preset,
    model: nn.Module,
    calibration: Sequence[Any],
    settings: Settings,
    *,
    curvature: Curvature | None,
    loss: Loss | None,
    clock: Clock,
    progress: bool,
    journal: Journal | None,
) -> Prepared:
    """Measured and planned as a published method has it: nothing is searched."""
    if settings.keep is None:
        raise ValueError(f"the preset {preset.name} needs keep, the fraction of the parameters that may remain")
    if curvature is None:
        curvature = measured(model, calibration, settings, loss=loss, clock=clock, progress=progress, journal=journal)
    with clock("plan"):
        graph, made = preset.plan(model, curvature, settings.keep, calibration[0], loss)
    return Prepared(
        graph.curvature, graph, made, updated="always" if settings.keep <= preset.updated_below else "never"
    )


def _by_axes(
    model: nn.Module,
    calibration: Sequence[Any],
    settings: Settings,
    *,
    loss: Loss | None,
    clock: Clock,
    progress: bool,
    journal: Journal | None,
) -> Prepared:
    """Geo-Sharing."""
    with clock("measure and plan"):
        made, curvature = geo_sharing(
            model,
            calibration,
            loss,
            keep=settings.keep,
            bases=settings.bases,
            rank_fraction=settings.rank_fraction,
            axes=settings.axes,
            layers=find_layers(model, settings.include, settings.exclude),
            beta=BETA if settings.trust_region is None else settings.trust_region,
            solver=settings.solver,
            time_limit=settings.time_limit,
            seed=settings.seed,
            progress=progress,
            journal=journal,
        )
    return Prepared(curvature, None, made)


def carried_out(
    prepared: Prepared,
    model: nn.Module,
    calibration: Sequence[Any],
    *,
    loss: Loss | None = None,
    clock: Clock,
    progress: bool = False,
    journal: Journal | None = None,
) -> nn.Module:
    """The smaller model, its coefficients fitted again on its own inputs where `prepared` says so.

    The model remembers its plan, whose predicted damage is then that of the coefficients it has.
    """
    with clock("apply"):
        graph = prepared.graph
        computed: dict[str, Any] = {} if graph is None else {"metrics": graph.metrics, "known": graph.factors}
        files = journal.folder if graph is not None and graph.bounded and journal is not None else None
        known: dict[str, Any] = {"files": files, "progress": progress, "journal": journal}
        smaller = apply(model, prepared.plan, prepared.curvature, **computed, **known)
        if graph is not None:
            graph.set_aside()
    if prepared.updated == "never" or not isinstance(prepared.curvature, Curvature):
        return smaller
    with clock("update"):
        if prepared.updated == "always":
            return update_coefficients(smaller, model, calibration, prepared.curvature, loss, **known)
        return updated_where_nearer(smaller, model, calibration, prepared.curvature, loss, **known)


def without_looks(
    model: nn.Module,
    curvature: Curvature,
    settings: Settings,
    *,
    clock: Clock,
    progress: bool = False,
    journal: Journal | None = None,
) -> list[Prepared]:
    """Plans under the dense model's own curvature, which spread damage: refinement may bring them nearer than others.

    None where the settings already ask for no looks, or for a number of bases alone.
    """
    if not settings.rounds or settings.size is None:
        return []
    power = settings.aggregate or SPREAD
    with clock("price"):
        graph = price(model, curvature, kinds=settings.kinds, aggregate=power, progress=progress)
    [found] = _planned(graph, settings, clock, progress, journal)
    return [Prepared(curvature, graph, found)]


def nearest_refined(
    model: nn.Module,
    contenders: Sequence[Prepared],
    calibration: Sequence[Any],
    refinement: RefineSettings,
    *,
    loss: Loss | None = None,
    clock: Clock,
    progress: bool = False,
    journal: Journal | None = None,
) -> Prepared:
    """The one that a few steps of refinement bring nearest to the dense model on the hold-out of calibration data."""
    if len(contenders) == 1:
        return contenders[0]
    journal, steps = journal or Journal(), min(TRIAL_STEPS, refinement.steps)
    trial = replace(refinement, steps=steps, evaluate_every=max(steps, 1))

    def divergence(prepared: Prepared) -> float:
        smaller = carried_out(prepared, model, calibration, loss=loss, clock=clock, progress=progress)
        with clock("refine"):
            return refine(smaller, model, calibration, trial, loss=loss, inplace=True, progress=progress).after

    found = [journal.value(f"trial/{k}", partial(divergence, each)) for k, each in enumerate(contenders)]
    return contenders[found.index(min(found))]


def priced(
    model: nn.Module,
    calibration: Sequence[Any],
    settings: Settings,
    *,
    curvature: Curvature | None = None,
    prices: Prices | None = None,
    loss: Loss | None = None,
    clock: Clock,
    progress: bool = False,
    journal: Journal | None = None,
) -> tuple[Curvature, CostGraph]:
    """Measure curvature, unless that is done, and make the cost graph, which begins with the `prices` that fit it."""
    if curvature is None:
        curvature = measured(model, calibration, settings, loss=loss, clock=clock, progress=progress, journal=journal)
    calibrated = curvature.rounds > 0
    if settings.rounds and not calibrated:
        if settings.memory is not None:
            _check_looks(model, curvature, settings.memory)
        with clock("calibrate"):
            curvature = calibrate(
                model,
                curvature,
                calibration,
                loss,
                keep=settings.size or CALIBRATED_AT,
                rounds=settings.rounds,
                progress=progress,
                journal=journal,
            )
    with clock("price"):
        graph = price(model, curvature, kinds=settings.kinds, aggregate=settings.powers, progress=progress)
        if prices is not None and (calibrated or not settings.rounds) and prices.fit(graph):
            graph.remember(prices.hulls)
    return curvature, graph


def _check_looks(model: nn.Module, curvature: Curvature, memory: int) -> None:
    """Warn where a smaller model beside the dense one does not fit."""
    weights = [model.get_submodule(layer.name).weight for layer in curvature.layers]
    needed = resident() + sum(weight.nbytes for weight in weights if isinstance(weight, torch.Tensor))
    if needed > memory:
        warnings.warn(
            f"a memory of {size(memory)} holds while layers are measured and priced; looks from smaller models hold "
            f"their weights beside the model, {size(needed)} in all: allow as much, or pass --rounds 0",
            stacklevel=3,
        )


def measured(
    model: nn.Module,
    calibration: Sequence[Any],
    settings: Settings,
    *,
    loss: Loss | None = None,
    clock: Clock,
    progress: bool = False,
    journal: Journal | None = None,
) -> Curvature:
    """The curvature that the preset asks for, where the settings name none."""
    preset = find_preset(settings.preset)
    damping = DAMPING if preset is None else preset.damping
    shrinkage = SHRINKAGE if preset is None else 0.0
    chosen: dict[str, Any] = {
        "layers": find_layers(model, settings.include, settings.exclude),
        "estimate": estimate_of(settings),
        "damping": damping if settings.damping is None else settings.damping,
        "shrinkage": shrinkage if settings.shrinkage is None else settings.shrinkage,
        "draws": settings.draws,
        "seed": settings.seed,
        "progress": progress,
        "journal": journal,
    }
    with clock("measure"):
        if settings.memory is not None:
            return measure_within(settings.memory, model, calibration, loss=loss, **chosen)
        return measure(model, calibration, loss, **chosen)


def estimate_of(settings: Settings) -> str:
    """The curvature's name: that of the settings, or else of their preset."""
    preset = find_preset(settings.preset)
    return settings.estimate or ("kronecker" if preset is None else preset.estimate)


def compress_into(
    out: Path,
    model: nn.Module,
    calibration: Sequence[Any],
    test: Sequence[Any],
    settings: Settings,
    *,
    curvature: Curvature | None = None,
    prices: Prices | None = None,
    tokenizer: Any = None,
    loss: Loss | None = None,
    refinement: RefineSettings | None = None,
    save_dtype: torch.dtype | None = None,
    bytes_per_unit: float | None = None,
    overwrite: bool = False,
    progress: bool = False,
    journal: Journal | None = None,
) -> tuple[Report, nn.Module]:
    """Do it all and report; `out` is the smaller model's folder, with `plan.json`, `plan.png` and `report.json` in it.

    Everything said about the smaller model is measured on the one loaded again from disk. With `refinement` its factors
    are trained on the calibration data before it is saved (`geocolor.refine`). `save_dtype` is the dtype of
    the saved weights (None: that of the model in memory). With a `journal` a run that is killed goes on where it was.
    """
    out, journal = Path(out), journal or Journal()
    overwrite = overwrite or journal.written
    refuse_occupied(out, overwrite)
    clock = Clock()
    known: dict[str, Any] = {"loss": loss, "clock": clock, "progress": progress, "journal": journal}
    if curvature is None and refinement is not None and settings.preset == SEARCHED:
        curvature = measured(model, calibration, settings, **known)
    prepared = prepare(model, calibration, settings, curvature=curvature, prices=prices, **known)
    if refinement is not None and settings.preset == SEARCHED and curvature is not None and not curvature.rounds:
        others = without_looks(model, curvature, settings, clock=clock, progress=progress, journal=journal)
        prepared = nearest_refined(model, [prepared, *others], calibration, refinement, **known)
    smaller = carried_out(prepared, model, calibration, loss=loss, clock=clock, progress=progress, journal=journal)
    extra: Report = {"preset": settings.preset}
    if refinement is not None:
        with clock("refine"):
            extra |= refinement_report(
                refine(
                    smaller,
                    model,
                    calibration,
                    refinement,
                    loss=loss,
                    checkpoint=journal.part("refinement.safetensors").path,
                    keep_checkpoint=True,
                    inplace=True,
                    progress=progress,
                )
            )
    journal.writes_now()
    plan = plan_of(smaller) or prepared.plan
    del prepared
    files = None if settings.memory is None else journal.folder
    with clock("save"):
        if save_dtype is not None:
            smaller = converted(smaller, save_dtype, files)
        write_model(smaller, out, plan, tokenizer, overwrite=overwrite)
    del smaller  # what is measured is the one on disk
    known = {"extra": extra, "loss": loss, "bytes_per_unit": bytes_per_unit, "files": files, "progress": progress}
    return delivered(model, plan, test, out, clock=clock, **known)


def delivered(
    dense: nn.Module,
    plan: Plan,
    test: Sequence[Any],
    out: Path,
    *,
    clock: Clock,
    extra: Report | None = None,
    loss: Loss | None = None,
    bytes_per_unit: float | None = None,
    files: Path | None = None,
    progress: bool = False,
) -> tuple[Report, nn.Module]:
    """Load the smaller model that lies in `out`, compare it with the dense one; `extra` joins the report.

    With a folder `files` its parameters lie in files, not in memory.
    """
    with clock("load"):
        reference = next(dense.parameters())
        loaded = load(type(dense) if is_transformers_model(dense) else dense, out, files=files)
        loaded = converted(loaded, reference.dtype, files).to(reference.device).eval()
    with clock("evaluate"):
        compared = evaluate_pair(dense, loaded, test, loss, bytes_per_unit=bytes_per_unit, progress=progress)
    report = run_report(plan, compared) | (extra or {})
    report["bytes_on_disk"] = weight_bytes(out)
    report["seconds"] = {step: round(value, 3) for step, value in clock.seconds.items()}
    report |= {"plan": str(out / "plan.json"), "model": str(out), "figure": str(out / "plan.png")}
    write_report(report, out / "report.json")
    return report, loaded


def write_model(smaller: nn.Module, out: Path, plan: Plan, tokenizer: Any = None, *, overwrite: bool = False) -> None:
    """One folder, written whole or not at all: the model, its tokenizer, the plan and the plan's picture."""

    def write(folder: Path) -> None:
        save(smaller, folder, tokenizer=tokenizer)
        write_plan(plan, folder / "plan.json")
        draw_plan(plan, folder / "plan.png")

    replace_directory(out, write, overwrite)
    gc.collect()  # the picture refers to itself
    give_back()
