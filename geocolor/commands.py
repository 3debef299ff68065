"""What the commands of the command line do; each returns the figures it prints, for `--json`."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from torch import nn

import geocolor
from geocolor import data, latency, processes
from geocolor.atomic import check_place, replace_directory
from geocolor.backend import plan_of
from geocolor.budget import allocate
from geocolor.carry_out import apply
from geocolor.clock import Clock
from geocolor.compression import compress_into, delivered, write_model
from geocolor.curvature import Curvature, LanczosCurvature, load_axes, load_curvature
from geocolor.demo import forecast_demo
from geocolor.demo import run as run_demo
from geocolor.digests import digest_of, digest_of_model
from geocolor.evaluation import evaluate, evaluate_pair
from geocolor.figures import draw_plan, draw_race
from geocolor.forecast import Forecast, forecast, forecast_applying, forecast_measuring, forecast_refinement, lacking
from geocolor.forecast_runs import forecast_evaluation, forecast_race
from geocolor.graph import CostGraph
from geocolor.journal import Journal, journal_folder, kept, refuse_output
from geocolor.layers import find_layers
from geocolor.losses import Batch, default_loss, is_causal, samples_in
from geocolor.measured import (
    CURVATURE,
    PRICES,
    Measured,
    check_weights_measured,
    measure_into,
    own_place,
    read_measured,
)
from geocolor.memory import give_back, resident
from geocolor.opening import opened
from geocolor.pipeline import Pipeline
from geocolor.plans import Plan, read_plan, write_plan
from geocolor.preflight import (
    Form,
    alike,
    check_file,
    check_keep,
    check_runs,
    check_sequence,
    check_settings,
    check_solver,
    check_weights,
)
from geocolor.presets import GEO_SHARING
from geocolor.progress import countdown, waiting
from geocolor.quantities import duration, size
from geocolor.refinement import RefineSettings
from geocolor.report import (
    Report,
    comparison_report,
    plan_report,
    refinement_report,
    weight_bytes,
    write_report,
)
from geocolor.scope import left_out, reasons
from geocolor.settings import Settings
from geocolor.storage import PLAN_FILE, load
from geocolor.summary import plural
from geocolor.tables import comparison_table, forecast_table, plan_grid, plan_table, race_table
from geocolor.tensor_files import checksum
from geocolor.unpacking import unpack_as_planned
from solvers import find_solver, solve, solver_names

__all__ = [
    "carry_out",
    "compare",
    "compress",
    "demo",
    "evaluation",
    "make_plan",
    "measure",
    "refined",
    "show",
    "write_report",
]

FIGURES = (".png", ".svg", ".pdf")


def demo(console: Console, keep: float, out: Path, dry_run: bool = False) -> Report:
    check_keep(keep)
    check_place(out)
    if dry_run:
        return say_expected(console, forecast_demo(keep), out)
    return run_demo(console, keep, out, lambda expecting: announce(out, expecting))


def compress(
    console: Console,
    source: str,
    data_source: str,
    test_source: str | None,
    out: Path,
    settings: Settings,
    sequence: int,
    batch_size: int,
    samples: int | None,
    overwrite: bool,
    refinement: RefineSettings | None = None,
    dry_run: bool = False,
    curvature_path: Path | None = None,
) -> Report:
    check_settings(settings)
    refuse_output(out, overwrite, source, data_source, test_source)
    model, tokenizer = _opened(console, source, settings, out)
    calibration, test = _both(data_source, test_source, model, tokenizer, sequence, batch_size)
    calibration = _first(calibration, samples)
    known = _read_measured(curvature_path, settings, model)
    expecting = partial(forecast, model, calibration, settings, test=test, refinement=refinement)
    if dry_run:
        return say_expected(console, expecting(), out)
    if settings.preset != GEO_SHARING and known is None and settings.memory is None:
        announce(out, expecting)
    told = asdict(settings) | {"refinement": refinement and asdict(refinement), "test data": digest_of(test)}
    with _kept(out, _measured(model, calibration, settings, known), told, overwrite) as journal:
        report, _ = compress_into(
            out,
            Pipeline(model, calibration, settings, progress=True, journal=journal),
            test,
            curvature=known.curvature if known else None,
            prices=known.prices if known else None,
            tokenizer=tokenizer,
            refinement=refinement,
            save_dtype=_stored_dtype(source),
            bytes_per_unit=_bytes_per_unit(model, tokenizer, test),
            overwrite=overwrite,
        )
        if Path(source).is_dir():
            report["bytes_on_disk_dense"] = weight_bytes(Path(source)) or None
        report |= _predicted(model, read_plan(out / "plan.json"), sequence * batch_size, settings.memory)
        write_report(report, out / "report.json")
    if refinement is not None:
        _print_refinement(console, report)
    console.print(comparison_table(report))
    _print_speed(console, report)
    _print_seconds(console, report["seconds"])
    _print_places(console, report)
    return report


def measure(
    console: Console,
    source: str,
    data_source: str,
    out: Path,
    settings: Settings,
    sequence: int,
    batch_size: int,
    samples: int | None,
    pairs: bool,
    overwrite: bool,
    dry_run: bool = False,
) -> Report:
    """In each of the processes that torchrun started; the first of them prints and writes."""
    check_settings(settings)
    refuse_output(out, overwrite, source, data_source)
    device = processes.own_device()
    with processes.joined(device), warnings.catch_warnings():
        if processes.rank() > 0:
            console.quiet = True
            warnings.simplefilter("ignore")
        if dry_run and processes.world() > 1:
            raise ValueError("--dry-run foresees one process: type the same command without torchrun")
        model, tokenizer = _opened(console, source, settings, out)
        model = model.to(device)
        calibration = _first(_batches(data_source, model, tokenizer, sequence, batch_size), samples)
        if processes.world() == 1:
            expecting = partial(forecast_measuring, model, calibration, settings, pairs=pairs)
            if dry_run:
                return say_expected(console, expecting(), out)
            if settings.memory is None:  # timing pieces of the work takes what the work itself must not
                announce(out, expecting)
        basis, told = _measured(model, calibration, settings), asdict(settings) | {"pairs": pairs}
        with _kept(own_place(out), basis, told, overwrite) as journal:
            run = Pipeline(model, calibration, settings, progress=True, journal=journal)
            graph = measure_into(out, run, pairs=pairs, overwrite=overwrite)
        together = f" in {processes.world()} processes" if processes.world() > 1 else ""
        console.print(
            f"measured {len(graph.layers)} layers on {graph.curvature.samples} samples{together}", highlight=False
        )
        report: Report = {
            "layers": len(graph.layers),
            "parameters_dense": graph.parameters_dense,
            "classes_priced": len(graph.known),
            "processes": processes.world(),
            "device": str(device),
            "seconds": run.clock.seconds,
            "curvature": str(out / CURVATURE),
        }
        if pairs:
            report["prices"] = str(out / PRICES)
        _print_seconds(console, run.clock.seconds)
        _print_places(console, report)
    return report


def make_plan(
    console: Console,
    source: str,
    data_source: str,
    out: Path,
    settings: Settings,
    sequence: int,
    batch_size: int,
    samples: int | None,
    graph_path: Path | None,
    overwrite: bool,
    dry_run: bool = False,
    curvature_path: Path | None = None,
) -> Report:
    check_settings(settings)
    refuse_output(out, overwrite, source, data_source)
    check_file(graph_path, (".graphml", ".json"))
    if graph_path is not None and settings.preset == GEO_SHARING:
        raise ValueError(f"--graph has nothing to write: --preset {GEO_SHARING} prices no pairs of layers")
    model, tokenizer = _opened(console, source, settings, out)
    calibration = _first(_batches(data_source, model, tokenizer, sequence, batch_size), samples)
    known = _read_measured(curvature_path, settings, model)
    expecting = partial(forecast, model, calibration, settings)
    if dry_run:
        return say_expected(console, expecting(), out)
    if settings.preset != GEO_SHARING and known is None and settings.memory is None:
        announce(out, expecting)

    def write(folder: Path) -> None:
        write_plan(prepared.plan, folder / "plan.json")
        curvature = prepared.curvature
        if isinstance(curvature, Curvature):
            curvature = replace(curvature, fingerprint=prepared.plan.fingerprint.sha256)
        curvature.save(folder / CURVATURE)
        draw_plan(prepared.plan, folder / "plan.png")

    with _kept(out, _measured(model, calibration, settings, known), asdict(settings), overwrite) as journal:
        run = Pipeline(model, calibration, settings, progress=True, journal=journal)
        prepared = run.prepared(known.curvature if known else None, known.prices if known else None)
        if prepared.updated != "never":
            what = "the update" if prepared.updated == "always" else "fitting them to the smaller model's own inputs"
            warnings.warn(
                f"a plan holds no coefficients: {what}, as --preset {settings.preset} does it at this size, is part of "
                "`geocolor compress`, and `geocolor apply` leaves it out",
                stacklevel=2,
            )
        occupied = overwrite or journal.written
        journal.writes_now()
        replace_directory(out, write, occupied)
        if graph_path is not None and prepared.graph is not None:
            prepared.graph.write(graph_path, prepared.plan.price)
    _print_plan(console, prepared.plan)
    expected = _predicted(model, prepared.plan, sequence * batch_size, settings.memory)
    _print_speed(console, plan_report(prepared.plan) | expected)
    _print_seconds(console, run.clock.seconds)
    report = (
        plan_report(prepared.plan)
        | expected
        | {
            "seconds": run.clock.seconds,
            "plan": str(out / "plan.json"),
            "figure": str(out / "plan.png"),
        }
    )
    _print_places(console, report)
    return report


def carry_out(
    console: Console,
    source: str,
    plan_path: Path,
    curvature_path: Path | None,
    out: Path,
    overwrite: bool,
    dry_run: bool = False,
) -> Report:
    refuse_output(out, overwrite, source)
    plan = _plan(plan_path)
    if curvature_path is None and not (plan_path.parent / CURVATURE).exists():
        raise FileNotFoundError(
            f"no curvature beside the plan ({plan_path.parent / CURVATURE}): give its file with --curvature, or write "
            "it with `geocolor plan`"
        )
    curvature_path = curvature_path or plan_path.parent
    if curvature_path.is_dir():
        curvature_path /= CURVATURE
    curvature: Curvature | LanczosCurvature
    if plan.curvature.get("estimate") == "lanczos":
        curvature = load_axes(curvature_path)
    else:  # read layer by layer
        curvature = load_curvature(curvature_path, memory=0)
    place = out.absolute().parent
    model, tokenizer = _model(source, dtype=_stored_dtype(source) or torch.float32, mapped=place)  # as it lies in files
    if plan_of(model) is not None:
        raise ValueError(f"{source} is compressed already: name the dense model that the plan was made for")
    unpack_as_planned(model, plan.layers, place)
    plan.check(model)
    if isinstance(curvature, Curvature):
        check_weights_measured(curvature, curvature_path, plan.fingerprint.sha256)
        expecting = partial(forecast_applying, model, plan, curvature)
        if dry_run:
            return say_expected(console, expecting(), out)
        announce(out, expecting)
    clock = Clock()
    with curvature_path.open("rb") as file:
        basis = {"model": digest_of_model(model), "curvature": hashlib.file_digest(file, "sha256").hexdigest()}
    with _kept(out, basis, {"plan": plan.model_dump(mode="json")}, overwrite) as journal:
        with clock("apply"):
            smaller = apply(model, plan, curvature, inplace=True, files=journal.folder, progress=True, journal=journal)
        occupied = overwrite or journal.written
        journal.writes_now()
        with clock("save"):
            write_model(smaller, out, plan, tokenizer, overwrite=occupied)
    console.print(f"kept {plan.kept:.4f} of {plan.parameters_dense:,} parameters in scope")
    report = plan_report(plan) | {"seconds": clock.seconds, "model": str(out)}
    _print_places(console, report)
    return report


def refined(
    console: Console,
    source: str,
    dense_source: str,
    data_source: str,
    test_source: str | None,
    out: Path,
    settings: RefineSettings,
    sequence: int,
    batch_size: int,
    samples: int | None,
    overwrite: bool,
    dry_run: bool = False,
) -> Report:
    refuse_output(out, overwrite, dense_source, data_source, test_source)
    dense, tokenizer = _model(dense_source)
    model, _ = _model(source, dense)
    plan = plan_of(model)
    if plan is None:
        raise ValueError(f"{source} is not a compressed model: make one with `geocolor compress` or `geocolor apply`")
    if error := _made_for_another(plan, dense):
        raise ValueError(f"{dense_source} is not the model that {source} was made from: {error}") from error
    calibration, test = _both(data_source, test_source, dense, tokenizer, sequence, batch_size)
    calibration = _first(calibration, samples)
    expecting = partial(forecast_refinement, model, dense, calibration, settings, test)
    if dry_run:
        return say_expected(console, expecting(), out)
    announce(out, expecting)
    basis = {"model": digest_of_model(dense), "data": digest_of(calibration)}
    told = asdict(settings) | {"compressed model": digest_of_model(model), "test data": digest_of(test)}
    with _kept(out, basis, told, overwrite) as journal:
        run = Pipeline(dense, calibration, Settings(), progress=True, journal=journal)
        found = run.refined(model, settings)
        occupied = overwrite or journal.written
        journal.writes_now()
        with run.clock("save"):
            write_model(found.model.to(dtype=_stored_dtype(source)), out, plan, tokenizer, overwrite=occupied)
        report, _ = delivered(
            dense,
            plan,
            test,
            out,
            clock=run.clock,
            extra={"refined_from": source} | refinement_report(found),
            bytes_per_unit=_bytes_per_unit(dense, tokenizer, test),
            progress=True,
        )
    _print_refinement(console, report)
    console.print(comparison_table(report))
    _print_seconds(console, report["seconds"])
    _print_places(console, report)
    return report


def evaluation(
    console: Console,
    source: str,
    data_source: str,
    reference_source: str | None,
    sequence: int,
    batch_size: int,
    samples: int | None,
    dry_run: bool = False,
) -> Report:
    beside = Path(source) / "plan.json"
    plan = _plan(beside) if beside.is_file() else None
    reference = _model(reference_source)[0] if reference_source is not None else None
    model, tokenizer = _model(source, reference)
    test = _first(_batches(data_source, model, tokenizer, sequence, batch_size), samples)
    if reference is None and default_loss(model, test[0]).compares:
        raise ValueError(f"the loss of {source} is a distance to the dense model; name that one with --reference")
    if reference is not None:
        _warn_of_another(reference, plan_of(model) or plan, f"{reference_source} is not the model that {source}")
    expecting = partial(forecast_evaluation, model, test, reference=reference)
    if dry_run:
        return say_expected(console, expecting(), Path(source))
    announce(None, expecting)
    clock = Clock()
    bytes_per_unit = _bytes_per_unit(model, tokenizer, test)
    with clock("evaluate"):
        if reference is None:
            result = evaluate(model, test, bytes_per_unit=bytes_per_unit, progress=True)
            report: Report = {key: value for key, value in vars(result).items() if value is not None and value != {}}
            report["model_parameters"] = report["parameters"]
        else:
            compared = evaluate_pair(reference, model, test, bytes_per_unit=bytes_per_unit, progress=True)
            report = comparison_report(compared)
    if plan is not None:
        report |= plan_report(plan)
    report["seconds"] = clock.seconds
    for key, value in report.items():
        console.print(f"{key.replace('_', ' '):>22}  {_readable(value)}", highlight=False)
    return report


def _warn_of_another(reference: nn.Module, plan: Plan | None, is_not: str) -> None:
    """Where the plan was made for another dense model; with a compressed one any may be compared."""
    if plan is None or plan_of(reference) is not None:
        return
    if error := _made_for_another(plan, reference):
        warnings.warn(f"{is_not} was made from, and figures beside it say little: {error}", stacklevel=3)


def _made_for_another(plan: Plan, dense: nn.Module) -> ValueError | None:
    """What `Plan.check` says against a dense model, its packed modules opened as the plan needs them."""
    unpack_as_planned(dense, plan.layers)
    try:
        plan.check(dense)
    except ValueError as error:
        return error
    return None


def compare(
    console: Console,
    source: str,
    data_source: str,
    settings: Settings,
    bases: Sequence[int],
    form: Form,
    names: Sequence[str],
    figure: Path | None,
    sequence: int,
    batch_size: int,
    samples: int | None,
    dry_run: bool = False,
) -> Report:
    check_settings(settings)
    check_file(figure, FIGURES)
    for name in names:
        find_solver(name)
    if min(bases, default=1) < 1:
        raise ValueError(f"--bases holds {min(bases)}; every K must be at least 1")
    model, tokenizer = _opened(console, source, settings)
    calibration = _first(_batches(data_source, model, tokenizer, sequence, batch_size), samples)
    count = len(find_layers(model, settings.include, settings.exclude))
    if max(bases, default=1) > count:
        raise ValueError(f"--bases holds {max(bases)}, the model has {count} layers in scope; ask for at most as many")
    for name in names:
        check_solver(name, form, count)
    racing = len(names) or len(solver_names(alike(form, count)))
    expecting = partial(forecast_race, model, calibration, settings, form, racing * (len(bases) or 3))
    if dry_run:
        return say_expected(console, expecting(), figure or Path())
    announce(None, expecting)
    run = Pipeline(model, calibration, settings, progress=True)
    _, graph = run.priced()
    size = len(graph.layers)
    with run.clock("race"):
        rows = race(graph, settings, bases or sorted({max(1, size // 4), max(1, size // 2), size}), form, names)
    console.print(race_table(rows))
    report: Report = {"form": form, "layers": size, "seconds": run.clock.seconds, "rows": rows}
    if figure is not None:
        draw_race(rows, figure)
        _print_places(console, {"figure": str(figure)})
    return report


def race(
    graph: CostGraph,
    settings: Settings,
    bases: Sequence[int],
    form: Form,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Every solver on the same problem for each K."""
    assert settings.keep is not None
    budget = int(settings.keep * graph.parameters_dense)
    price = allocate(graph, [(i,) for i in range(len(graph.layers))], budget).price
    if form != "medoid":
        graph.price_pairs(progress=True)  # or the first solver would pay for them all
    rows = []
    for K in bases:
        problem: Any
        if form == "medoid":
            problem = graph.medoid_problem(
                K,
                rank_fraction=settings.rank_fraction,
                beta=settings.trust_region,
                flat_energy=settings.flat_energy,
                progress=True,
            )
        elif form == "pairwise":
            problem = graph.pairwise_problem(price, K)
        else:
            problem = graph.group_problem(price, K)
        for name in names or solver_names(problem):
            with countdown(f"K = {K}: {name}", settings.time_limit):
                solution = solve(problem, name, time_limit=settings.time_limit, seed=settings.seed)
            if solution.interrupted:
                raise KeyboardInterrupt
            rows.append(
                {
                    "solver": name,
                    "K": K,
                    "cost": solution.cost,
                    "lower_bound": solution.lower_bound,
                    "gap": solution.gap,
                    "seconds": solution.seconds,
                    "status": solution.status,
                    "classes": solution.coloring.number_of_colors if solution.coloring is not None else None,
                }
            )
    return rows


def show(console: Console, plan_path: Path, out: Path | None) -> Report:
    plan = _plan(plan_path)
    target = out or plan_path.with_suffix(".png")
    check_file(target, FIGURES)
    draw_plan(plan, target)
    _print_plan(console, plan)
    report = plan_report(plan) | {"seconds": {"plan": plan.seconds}, "figure": str(target)}
    _print_places(console, report)
    return report


def say_expected(console: Console, expected: Forecast, out: Path) -> Report:
    """What `--dry-run` prints."""
    console.print(forecast_table(expected))
    for lack in lacking(expected, out):
        warnings.warn(lack, stacklevel=2)
    return expected.report()


def announce(out: Path | None, expecting: Callable[[], Forecast]) -> None:
    """Say on standard error what is expected, unless an unfinished run is gone on with: part of it is done.

    Without `out` nothing to speak of is written.
    """
    if out is not None and journal_folder(out).exists():
        return
    expected = expecting()
    within = f" ({duration(expected.search)} of them for the search at most)" if expected.search else ""
    Console(stderr=True, markup=False, emoji=False).print(
        f"expected: {duration(expected.total)}{within}, {size(expected.memory)} of memory at the peak"
        + ("" if out is None else f", {size(expected.disk)} of disk at most"),
        highlight=False,
        soft_wrap=True,
    )
    for lack in lacking(expected, out or Path()):
        warnings.warn(lack, stacklevel=2)


@contextmanager
def _kept(out: Path, basis: Mapping[str, Any], settings: Mapping[str, Any], overwrite: bool) -> Iterator[Journal]:
    """The journal of a command; what it goes on with is said on standard error."""
    errors = Console(stderr=True, markup=False, emoji=False, quiet=processes.rank() > 0)
    versions = {module.__name__: module.__version__ for module in (geocolor, torch, np, transformers)}

    def say(sentence: str) -> None:
        errors.print(sentence, highlight=False, soft_wrap=True)

    with kept(out, {**basis, **versions}, settings, overwrite=overwrite, say=say) as journal:
        yield journal


def _read_measured(path: Path | None, settings: Settings, model: nn.Module) -> Measured | None:
    """What `geocolor measure` wrote, if it is named and fits."""
    if path is None:
        return None
    known = read_measured(path, settings.memory // 2 if settings.memory else None)
    known.check(settings, model)
    return known


def _measured(
    model: nn.Module, calibration: Sequence[Batch], settings: Settings, known: Measured | None = None
) -> dict[str, Any]:
    """All that decides what is measured."""
    return {
        "curvature": None if known is None else checksum(known.path),
        "model": digest_of_model(model),
        "data": digest_of(calibration),
        "estimate": settings.weighed_by,
        "draws": settings.draws,
        "seed": settings.seed,
        "include": settings.include,
        "exclude": settings.exclude,
    }


def _model(
    source: str,
    dense: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    mapped: Path | None = None,
) -> tuple[nn.Module, data.Tokenizer | None]:
    """The model that `source` names; `dense` is its architecture where `source` is a saved plain module."""
    folder = Path(source)
    if (folder / PLAN_FILE).is_file() and not (folder / "config.json").exists():
        if dense is None:
            raise ValueError(
                f"{source} is a compressed plain module, and only its program knows how to build it: "
                "use `geocolor evaluate` with the dense model as --reference module:function"
            )
        return load(dense, folder).eval(), None
    with waiting(f"loading {source}"):
        model, tokenizer = data.load_model(source, dtype, mapped)
    check_weights(model)
    return model, tokenizer


def _opened(
    console: Console, source: str, settings: Settings, out: Path | None = None
) -> tuple[nn.Module, data.Tokenizer | None]:
    """The model that `source` names, its packed modules opened where that brings layers into scope.

    Said is also what else is left out, if it is more than 1 % of the model. Where memory is bounded weights stay in
    files: their own, or beside `out`.
    """
    mapped = None if out is None or settings.memory is None else out.absolute().parent
    model, tokenizer = _model(source, mapped=mapped)
    model, said = opened(model, settings.include, settings.exclude, mapped)
    if said is not None:
        console.print(said, highlight=False)
    few = sum(p.numel() for p in model.parameters()) // 100
    for line in reasons(left_out(model, settings.include, settings.exclude), least=few):
        console.print(line, highlight=False, soft_wrap=True)
    return model, tokenizer


def _predicted(model: nn.Module, plan: Plan, positions: int, memory: int | None) -> Report:
    """Predicted times of the layers in scope on the machine that the model is on, by a short probe of it."""
    held, free = next(model.parameters()), None
    if memory is not None:
        give_back()
        free = memory - resident()
    return latency.predicted(plan, latency.probe(held.device, held.dtype, memory=free), positions)


def _stored_dtype(source: str) -> torch.dtype | None:
    """The dtype of the weights on disk, in which the smaller model is saved too; None where it cannot be known."""
    if (":" in source and not Path(source).exists()) or (Path(source) / PLAN_FILE).is_file():
        return None  # module:function, or a plain module, which is loaded as it was saved
    dtype = data.config_of(source).dtype
    return dtype if isinstance(dtype, torch.dtype) else None


def _batches(
    source: str, model: nn.Module, tokenizer: data.Tokenizer | None, sequence: int, batch_size: int
) -> list[Batch]:
    if Path(source).exists():
        check_sequence(model, sequence)
    batches = data.batches(source, model, tokenizer, sequence, batch_size)
    check_runs(model, batches, source)
    return batches


def _both(
    source: str,
    test_source: str | None,
    model: nn.Module,
    tokenizer: data.Tokenizer | None,
    sequence: int,
    batch_size: int,
) -> tuple[list[Batch], list[Batch]]:
    """Calibration and test data; the latter a tail of the former where no source is named."""
    calibration = _batches(source, model, tokenizer, sequence, batch_size)
    if test_source is None:
        return data.split_tail(calibration)
    return calibration, _batches(test_source, model, tokenizer, sequence, batch_size)


def _first(batches: list[Batch], samples: int | None) -> list[Batch]:
    """Batches with the first `samples` samples; all where None."""
    if samples is None:
        return batches
    if samples < 1:
        raise ValueError(f"--samples is {samples}; it must be at least 1")
    total = sum(map(samples_in, batches))
    return batches if samples >= total else data.split_tail(batches, 1 - samples / total)[0]


def _bytes_per_unit(model: nn.Module, tokenizer: data.Tokenizer | None, test: list[Batch]) -> float | None:
    """Bytes of text per predicted token, None where the model does not write text."""
    return data.bytes_per_token(test, tokenizer) if tokenizer is not None and is_causal(model) else None


def _plan(path: Path) -> Plan:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the plan.json in it")
    return read_plan(path)


def _readable(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_readable(entry)}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_plan(console: Console, plan: Plan) -> None:
    console.print(plan_table(plan))
    console.print(plan_grid(plan))


def _print_seconds(console: Console, seconds: Mapping[str, float]) -> None:
    console.print(" · ".join(f"{step} {duration(value)}" for step, value in seconds.items()), highlight=False)


def _print_refinement(console: Console, report: Report) -> None:
    on = "held-out calibration data" if report["batches_held_out"] else "the calibration data it was trained on"
    console.print(
        f"divergence on {on}: {report['divergence_before']:.4g} before, {report['divergence_after']:.4g} after step "
        f"{report['best_step']} of {report['steps']}",
        highlight=False,
    )


def _print_speed(console: Console, report: Report) -> None:
    console.print(latency.sentence(report), highlight=False)
    if slow := report["layers_slower_than_dense"]:
        console.print(
            f"{plural(slow, 'layer')} would be slower as factors than as matrices: run geocolor.merge_slow(model), "
            "or limit FLOPs with --max-flops",
            highlight=False,
        )


def _print_places(console: Console, report: Report) -> None:
    for key in ("plan", "model", "figure", "curvature", "prices"):
        if key in report:
            console.print(f"{key:>8}  {report[key]}", highlight=False, soft_wrap=True)
