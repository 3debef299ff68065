"""What the commands of the command line do; each returns the figures it prints, for `--json`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from geocolor import data
from geocolor.atomic import refuse_occupied, replace_directory
from geocolor.carry_out import apply
from geocolor.curvature import load_curvature
from geocolor.demo import run as run_demo
from geocolor.evaluation import evaluate
from geocolor.figures import draw_plan, draw_race
from geocolor.graph import CostGraph
from geocolor.pipeline import Clock, Report, Settings, compress_into, prepare, priced, write_model, write_report
from geocolor.planning import allocate
from geocolor.plans import Plan, read_plan, write_plan
from geocolor.tables import comparison_table, plan_grid, plan_table, race_table
from solvers import solve, solver_names

__all__ = ["carry_out", "compare", "compress", "demo", "evaluation", "make_plan", "show", "write_report"]

Form = Literal["group", "medoid", "pairwise"]


def demo(console: Console, keep: float, out: Path) -> Report:
    return run_demo(console, keep, out)


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
) -> Report:
    refuse_occupied(out, overwrite)
    model, tokenizer = data.load_model(source)
    calibration = data.batches(data_source, model, tokenizer, sequence, batch_size)
    if test_source is None:
        calibration, test = data.split_tail(calibration)
    else:
        test = data.batches(test_source, model, tokenizer, sequence, batch_size)
    if samples is not None:
        calibration = calibration[: max(1, samples // batch_size)]
    report, _ = compress_into(
        out, model, calibration, test, settings, tokenizer=tokenizer, overwrite=overwrite, progress=True
    )
    console.print(comparison_table(report))
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
) -> Report:
    refuse_occupied(out, overwrite)
    model, tokenizer = data.load_model(source)
    calibration = data.batches(data_source, model, tokenizer, sequence, batch_size, samples)
    clock = Clock()
    prepared = prepare(model, calibration, settings, clock=clock, progress=True)

    def write(folder: Path) -> None:
        write_plan(prepared.plan, folder / "plan.json")
        prepared.curvature.save(folder / "curvature.safetensors")
        draw_plan(prepared.plan, folder / "plan.png")

    replace_directory(out, write, overwrite)
    if graph_path is not None:
        prepared.graph.write(graph_path, prepared.plan.price)
    _print_plan(console, prepared.plan)
    report = plan_report(prepared.plan) | {
        "seconds": clock.seconds,
        "plan": str(out / "plan.json"),
        "figure": str(out / "plan.png"),
    }
    _print_places(console, report)
    return report


def carry_out(
    console: Console, source: str, plan_path: Path, curvature_path: Path | None, out: Path, overwrite: bool
) -> Report:
    refuse_occupied(out, overwrite)
    plan = read_plan(plan_path)
    beside = plan_path.parent / "curvature.safetensors"
    if curvature_path is None and not beside.exists():
        raise FileNotFoundError(
            f"no curvature beside the plan ({beside}): give its file with --curvature, or write it with `geocolor plan`"
        )
    curvature = load_curvature(curvature_path or beside)
    model, tokenizer = data.load_model(source)
    clock = Clock()
    with clock("apply"):
        smaller = apply(model, plan, curvature, inplace=True, progress=True)
    with clock("save"):
        write_model(smaller, out, plan, tokenizer, overwrite=overwrite)
    console.print(f"kept {plan.kept:.4f} of {plan.parameters_dense:,} parameters in scope")
    report = plan_report(plan) | {"seconds": clock.seconds, "model": str(out)}
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
) -> Report:
    model, tokenizer = data.load_model(source)
    test = data.batches(data_source, model, tokenizer, sequence, batch_size, samples)
    reference = data.load_model(reference_source)[0] if reference_source is not None else None
    started = time.perf_counter()
    result = evaluate(model, test, reference=reference, progress=True)
    report: Report = {key: value for key, value in vars(result).items() if value is not None}
    report["seconds"] = {"evaluate": time.perf_counter() - started}
    if reference is not None:
        report["loss_reference"] = evaluate(reference, test, reference=reference, progress=True).loss
    for key, value in report.items():
        console.print(f"{key.replace('_', ' '):>22}  {value}", highlight=False)
    return report


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
) -> Report:
    model, tokenizer = data.load_model(source)
    calibration = data.batches(data_source, model, tokenizer, sequence, batch_size, samples)
    clock = Clock()
    _, graph = priced(model, calibration, settings, clock=clock, progress=True)
    size = len(graph.layers)
    rows = race(console, graph, settings, bases or sorted({max(1, size // 4), max(1, size // 2), size}), form, names)
    console.print(race_table(rows))
    report: Report = {"form": form, "layers": size, "seconds": clock.seconds, "rows": rows}
    if figure is not None:
        draw_race(rows, figure)
        _print_places(console, {"figure": str(figure)})
    return report


def race(
    console: Console,
    graph: CostGraph,
    settings: Settings,
    bases: Sequence[int],
    form: Form,
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Every solver on the same problem for each K, prices of classes computed beforehand where they are few."""
    assert settings.keep is not None
    budget = int(settings.keep * graph.parameters_dense)
    price = allocate(graph, [(i,) for i in range(len(graph.layers))], budget).price
    rows = []
    for K in bases:
        problem: Any
        if form == "medoid":
            problem = graph.medoid_problem(
                K, rank_fraction=settings.rank_fraction, beta=settings.trust_region, flat_energy=settings.flat_energy
            )
        elif form == "pairwise":
            problem = graph.pairwise_problem(price, K)
        else:
            problem = graph.group_problem(price, K)
        for name in names or solver_names(problem):
            with console.status(f"K = {K}: {name}"):
                solution = solve(problem, name, time_limit=settings.time_limit, seed=settings.seed)
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
    plan = read_plan(plan_path)
    target = out or plan_path.with_suffix(".png")
    draw_plan(plan, target)
    _print_plan(console, plan)
    report = plan_report(plan) | {"figure": str(target)}
    _print_places(console, report)
    return report


def plan_report(plan: Plan) -> Report:
    """What a plan says of itself."""
    return {
        "kept": plan.kept,
        "keep": plan.keep,
        "parameters_dense": plan.parameters_dense,
        "parameters": plan.parameters,
        "damage_predicted": plan.predicted_damage,
        "bases": plan.basis_count,
        "solver": plan.solver,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
    }


def _print_plan(console: Console, plan: Plan) -> None:
    console.print(plan_table(plan))
    console.print(plan_grid(plan))


def _print_places(console: Console, report: Report) -> None:
    for key in ("plan", "model", "figure"):
        if key in report:
            console.print(f"{key:>8}  {report[key]}", highlight=False, soft_wrap=True)
