"""Does the price predict? Many diverse plans of one model at one size: predicted against measured damage.

    python -m benchmarks.fidelity --data ../shared/bench -o benchmarks/results/fidelity.json

For every model and `keep` at least forty plans are made: random colorings with random allocations, habits, and those
of solvers under several aggregates and kinds. Each is carried out, its predicted damage taken from the factors that
are really installed, and its divergence from the dense model measured on test data. Calibration data alone decides
plans and prices; test data is only looked at. Results are written after every plan, and a run goes on where it stopped.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import nn

from benchmarks.environment import environment
from benchmarks.panels import panels
from benchmarks.subjects import SUBJECTS, Name, Subject, check_data
from geocolor.atomic import write_atomically
from geocolor.backend import factored_layers
from geocolor.budget import Allocation, Group, UnreachableError, allocate
from geocolor.calibration import calibrate
from geocolor.carry_out import apply
from geocolor.curvature import Curvature, measure
from geocolor.divergence import divergence_of, few
from geocolor.graph import CostGraph, price
from geocolor.habits import neighbours, private, readers_of_norms
from geocolor.layers import find_layers, weight_of
from geocolor.planning import fixed_plan, plan
from geocolor.plans import Plan
from geocolor.ranks import rounded, uniform

Row = dict[str, Any]
RANDOM_PLANS = 24

#: Of the plans drawn at random; labels of the curvature are drawn with 0 by default, too.
SEED = 0


@dataclass(frozen=True)
class Arguments:
    """Does the price predict? Predicted against measured damage of many diverse plans."""

    data: Path = Path("../shared/bench")
    """Folder with stories260K/, kwt1/, sts/ and text/; the embedded model needs none."""
    only: tuple[Name, ...] = ("stories260K", "kwt1", "resnet56", "embedded", "minilm")
    """Models to run."""
    keep: tuple[float, ...] = (0.9, 0.8, 0.7, 0.5)
    """Fractions of the parameters in scope to keep."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/fidelity.json")
    """Where results go, and come from where a run is resumed; the figure lies beside it."""
    test_batches: int = 8
    """Test batches that damage is measured on, spread evenly."""
    rounds: int = 3
    """Looks from smaller models that move the curvature, as `geocolor compress` has them."""
    report_only: bool = False
    """Make no plan, only the table and the figure."""


def plans(graphs: Mapping[float, CostGraph], subject: Subject, keep: float) -> Iterator[tuple[str, Plan]]:
    """At least forty plans of the same size and as unlike one another as can be, each with its name.

    `graphs` are cost graphs by aggregate, all with the same curvature.
    """
    graph = graphs[1.0]
    budget = math.floor(keep * graph.parameters_dense)
    for power, priced in graphs.items():
        for solver in ("private", "greedy", "spectral"):
            yield f"{solver}, p={power:g}", plan(priced, keep, solver=solver, time_limit=20)
    for kinds in (("in",), ("out",), ("in", "out")):
        yield f"greedy, {'+'.join(kinds)}", plan(replace(graph, kinds=kinds, _hulls={}), keep, solver="greedy")
    reading = readers_of_norms(subject.model, graph.layers, subject.calibration[0], subject.loss)
    habits = [("neighbours", neighbours(graph.layers, size, reading or None)) for size in (2, 3, 4, 100)]
    for name, groups in [*habits, ("private", private(graph.layers))]:
        size = max(map(len, groups))
        title = f"{name} by {size}" if size > 1 else name
        for allocated in ("allocated", "uniform"):
            if allocated == "uniform":
                options = rounded(graph, groups, uniform(graph, groups, keep), keep)
            else:
                options = list(allocate(graph, groups, budget).options)
            yield f"{title}, {allocated}", fixed_plan(graph, groups, options, keep, title)
    rng = np.random.default_rng(SEED)
    for number in range(RANDOM_PLANS):
        groups = random_groups(graph, rng)
        noise = float(rng.choice([0.0, 0.5, 1.5]))
        try:
            found = distorted(graph, groups, budget, noise, rng)
        except UnreachableError:
            continue
        made = fixed_plan(graph, found.groups, found.options, keep, "random")
        yield f"random {number}, allocation off by e^{noise:g}", made


def random_groups(graph: CostGraph, rng: np.random.Generator) -> list[Group]:
    """A random coloring: layers join a compatible class, or begin one, with a chance that is drawn first."""
    compatible, groups = graph.compatible(), list[list[int]]()
    join = rng.choice([0.0, 0.3, 0.6, 0.9])
    for item in rng.permutation(len(graph.layers)).tolist():
        open_to = [group for group in groups if compatible[item, group].all() and len(graph.hull([*group, item]))]
        if open_to and rng.random() < join:
            open_to[int(rng.integers(len(open_to)))].append(item)
        else:
            groups.append([item])
    return [tuple(sorted(group)) for group in groups]


def distorted(
    graph: CostGraph, groups: Sequence[Group], budget: int, noise: float, rng: np.random.Generator
) -> Allocation:
    """Ranks as they would be chosen if every layer's damage were misjudged by a factor of about `e^noise`."""
    scales = np.exp(noise * rng.standard_normal(len(groups)))
    hulls = {}
    for group, scale in zip(groups, scales, strict=True):
        hull = graph.hull(group)
        hulls[tuple(sorted(group))] = {(graph.aggregate, graph.weight): replace(hull, damage=hull.damage * scale)}
    return allocate(replace(graph, _hulls=hulls), groups, budget)


def predicted(model: nn.Module, smaller: nn.Module, curvature: Curvature) -> list[float]:
    """`½ tr(G δ A δᵀ)` of every layer, `δ` the change of its weight in the live smaller model."""
    factored = factored_layers(smaller)
    return [
        curvature.damage(layer.name, factored[layer.name].dense(torch.float64) - weight_of(model, layer))
        if layer.name in factored
        else 0.0
        for layer in curvature.layers
    ]


def measured_curvature(subject: Subject) -> Curvature:
    """Of the dense model."""
    layers = find_layers(subject.model, subject.include)
    return measure(subject.model, subject.calibration, subject.loss, layers=layers, damping=subject.damping)


def graphs_at(subject: Subject, bare: Curvature, keep: float, rounds: int = 3) -> dict[float, CostGraph]:
    """Prices as seen from smaller models of that size, by aggregate."""
    curvature = calibrate(subject.model, bare, subject.calibration, subject.loss, keep=keep, rounds=rounds)
    graph = price(subject.model, curvature, aggregate=(1.0, 2.0, 3.0))
    return {power: graph.under(power) for power in graph.aggregates}


def run(arguments: Arguments, console: Console) -> list[Row]:
    """Make the plans that are missing; all rows."""
    rows: list[Row] = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    for name in arguments.only if not arguments.report_only else ():
        subject = SUBJECTS[name](arguments.data)
        model, loss = subject.model.eval(), subject.loss
        step = max(len(subject.test) // arguments.test_batches, 1)
        test = few(subject.test[::step][: arguments.test_batches], loss, model, sys.maxsize, sys.maxsize)
        bare: Curvature | None = None
        for keep in arguments.keep:
            done = {row["plan"] for row in rows if (row["model"], row["keep"]) == (name, keep)}
            if "last" in done:
                continue
            bare = bare or measured_curvature(subject)
            graphs = graphs_at(subject, bare, keep, arguments.rounds)
            curvature, metrics = graphs[1.0].curvature, graphs[1.0].metrics
            seen = set[str]()
            for title, made in plans(graphs, subject, keep):
                shape = str([(cls.kind, cls.layers, cls.rank, cls.right_rank) for cls in made.classes])
                if title in done or shape in seen:
                    continue
                seen.add(shape)
                smaller = apply(model, made, curvature, metrics=metrics)
                by_layer = predicted(model, smaller, curvature)
                row = {
                    "model": name,
                    "keep": keep,
                    "plan": title,
                    "kept": made.kept,
                    "predicted": math.fsum(by_layer),
                    "measured": divergence_of(model, smaller, test, loss),
                    "by_layer": [float(f"{damage:.6g}") for damage in by_layer],
                } | environment(SEED)
                rows.append(row)
                write(rows, arguments.output)
                console.print(
                    f"{name} {keep:g}  {title}: {row['predicted']:.4g} {row['measured']:.4g}", highlight=False
                )
            rows.append({"model": name, "keep": keep, "plan": "last"})
            write(rows, arguments.output)
    return [row for row in rows if row["plan"] != "last"]


def write(rows: Sequence[Row], path: Path) -> None:
    text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def figures(rows: Sequence[Row]) -> dict[tuple[str, float], tuple[int, float, float]]:
    """For every model and keep: number of plans, Spearman's rank correlation, median |log(predicted / measured)|."""
    found = {}
    for case in sorted({(row["model"], row["keep"]) for row in rows}, key=lambda case: (case[0], -case[1])):
        own = [row for row in rows if (row["model"], row["keep"]) == case and row["measured"] > 0]
        said, seen = (np.array([row[key] for row in own]) for key in ("predicted", "measured"))
        ratio = float(np.median(np.abs(np.log(said / seen))))
        found[case] = (len(own), float(spearmanr(said, seen).statistic), ratio)
    return found


def table(rows: Sequence[Row]) -> Table:
    shown = Table("model", "keep", "plans", "Spearman", "median |log ratio|", title="predicted against measured damage")
    for column in shown.columns[1:]:
        column.justify = "right"
    for (model, keep), (count, rank, ratio) in figures(rows).items():
        shown.add_row(model, f"{keep:g}", str(count), f"{rank:.3f}", f"{ratio:.3f}")
    return shown


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each model, both axes logarithmic; a color for each size, a ring around what solvers made."""
    from matplotlib.ticker import LogLocator, NullFormatter

    models = list(dict.fromkeys(row["model"] for row in rows))
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    colors = dict(zip(keeps, ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#000000"), strict=False))
    figure, drawn = panels(len(models), 4.4, 4.2, 0.4)
    for axes, model in zip(drawn, models, strict=True):
        own = [row for row in rows if row["model"] == model]
        ends = [
            min(min(r["predicted"], r["measured"]) for r in own),
            max(max(r["predicted"], r["measured"]) for r in own),
        ]
        axes.plot(ends, ends, color="#999999", linewidth=1, zorder=0)
        for keep in keeps:
            for ours in (False, True):
                part = [row for row in own if row["keep"] == keep and row["plan"].startswith("greedy") == ours]
                axes.scatter(
                    [row["predicted"] for row in part],
                    [row["measured"] for row in part],
                    s=26 if ours else 14,
                    color=colors[keep],
                    edgecolor="black" if ours else "none",
                    linewidth=0.8,
                    label=f"keep {keep:g}" if part and not ours else None,
                )
        axes.set(xscale="log", yscale="log", title=model, xlabel="predicted damage", ylabel="measured divergence")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < 100 * ends[0] else (1,)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=8, frameon=False, loc="upper left")
        axes.grid(alpha=0.25)
    figure.suptitle("Each point is a plan; on the line the price is right.\nRinged: found by a solver", fontsize=10)
    form = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=110))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    check_data(arguments.data, arguments.only)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    console = Console()
    rows = run(arguments, console)
    if not rows:
        raise SystemExit(f"{arguments.output} holds no plan: run without --report-only first")
    console.print(table(rows))
    draw(rows, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
