"""The whole job: measure, price, plan, apply, save, load again, compare with the dense model."""

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geocolor.atomic import refuse_occupied, replace_directory
from geocolor.backend import plan_of
from geocolor.clock import Clock
from geocolor.curvature import Curvature
from geocolor.evaluation import evaluate_pair
from geocolor.figures import draw_plan
from geocolor.losses import Batch, Loss
from geocolor.mapped import converted
from geocolor.memory import give_back
from geocolor.pipeline import Pipeline
from geocolor.plans import Plan, write_plan
from geocolor.preflight import check_settings, check_weights
from geocolor.prices import Prices
from geocolor.refinement import RefineSettings
from geocolor.report import Report, refinement_report, run_report, weight_bytes, write_report
from geocolor.settings import Settings
from geocolor.storage import load, save
from geocolor.transformers_format import is_transformers_model


def compress(
    model: nn.Module,
    calibration: Iterable[Batch],
    keep: float | None = None,
    *,
    loss: Loss | None = None,
    refinement: RefineSettings | None = None,
    progress: bool = False,
    **asked: Any,
) -> nn.Module:
    """The smaller model, as `geocolor compress` makes it; the model itself stays as it is.

    `keep` is the fraction of the parameters in scope that may remain. `asked` are other fields of
    `geocolor.settings.Settings`: `bases`, `max_flops`, `preset`, `solver`, `rounds`, `time_limit`, `include`, … With
    `refinement` the factors are then trained on the calibration data. `plan_of` gives the plan of what comes back.
    Where matrices are packed into one parameter (`geocolor.left_out` says so), pass `geocolor.unpack(model)`.

    Raises `ValueError` for settings that no model can meet, weights that are not finite, or a budget out of reach.
    """
    run = Pipeline(model, list(calibration), Settings(keep=keep, **asked), loss, progress=progress)
    check_settings(run.settings)
    check_weights(model)
    if not run.calibration:
        raise ValueError("compress needs batches to calibrate on; the calibration data are empty")
    smaller = run.carried_out(run.prepared(refinement=refinement))
    if refinement is not None:
        run.refined(smaller, refinement)
    return smaller


def compress_into(
    out: Path,
    run: Pipeline,
    test: Sequence[Any],
    *,
    curvature: Curvature | None = None,
    prices: Prices | None = None,
    tokenizer: Any = None,
    refinement: RefineSettings | None = None,
    save_dtype: torch.dtype | None = None,
    bytes_per_unit: float | None = None,
    overwrite: bool = False,
) -> tuple[Report, nn.Module]:
    """Do it all and report; `out` is the smaller model's folder, with `plan.json`, `plan.png` and `report.json` in it.

    Everything said about the smaller model is measured on the one loaded again from disk. With `refinement` its factors
    are trained on the calibration data before it is saved (`geocolor.refine`). `save_dtype` is the dtype of the saved
    weights (None: that of the model in memory). With a journal a run that is killed goes on where it was.
    """
    out, journal, clock = Path(out), run.journal, run.clock
    overwrite = overwrite or journal.written
    refuse_occupied(out, overwrite)
    prepared = run.prepared(curvature, prices, refinement)
    smaller = run.carried_out(prepared)
    extra: Report = {"preset": run.settings.preset}
    if refinement is not None:
        extra |= refinement_report(run.refined(smaller, refinement))
    journal.writes_now()
    plan = plan_of(smaller) or prepared.plan
    del prepared
    with clock("save"):
        if save_dtype is not None:
            smaller = converted(smaller, save_dtype, run.files)
        write_model(smaller, out, plan, tokenizer, overwrite=overwrite)
    del smaller  # what is measured is the one on disk
    known: dict[str, Any] = {"loss": run.loss, "files": run.files, "progress": run.progress}
    return delivered(run.model, plan, test, out, clock=clock, extra=extra, bytes_per_unit=bytes_per_unit, **known)


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
