"""What stands in the way, price, search or form? The best of many plans by what they really do after refinement.

    python -m benchmarks.candidates --data ../shared/bench --only stories260K --keep 0.5

The plans are those of `benchmarks.fidelity`, and more that are made under the dense model's own curvature. Each is
carried out, measured on test data, refined like every method of `benchmarks.quality`, and measured again. Picking among
them by test damage is no method but an oracle: how far the best of them lies below the plan that geocolor takes is what
a better price could gain, and where all of them end alike it is neither price nor search that decides.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.environment import environment
from benchmarks.fidelity import graphs_at, measured_curvature, plans, predicted, write
from benchmarks.panels import panels
from benchmarks.quality import Arguments as QualityArguments
from benchmarks.quality import Bench, by_case, read_rows
from benchmarks.subjects import SUBJECTS, Name, check_data
from geocolor.atomic import write_atomically
from geocolor.carry_out import apply
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph, price
from geocolor.planning import plan
from geocolor.plans import Plan
from geocolor.refinement import refine

Row = dict[str, Any]

#: Powers of a layer's damage under the dense model's own curvature.
SPREADS = (1.0, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Arguments:
    """The best of many plans by what they really do after refinement."""

    data: Path = Path("../shared/bench")
    """Folder with stories260K/, kwt1/, sts/ and text/; the embedded model needs none."""
    only: tuple[Name, ...] = ("stories260K",)
    """Models to run."""
    keep: tuple[float, ...] = (0.5,)
    """Fractions of the parameters in scope to keep."""
    seed: int = 0
    """Of refinement."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/candidates.json")
    """Where results go, and come from where a run is resumed; the figure lies beside it."""
    quality: Path = Path("benchmarks/results/quality.jsonl")
    """Rows of `benchmarks.quality`: what geocolor and the published methods reach."""
    report_only: bool = False
    """Measure nothing, only the table and the figure."""


def candidates(bench: Bench, bare: Curvature, keep: float) -> Iterator[tuple[str, Plan, CostGraph]]:
    """Plans with their names and the graph that prices them."""
    subject = bench.subject
    spread = price(bench.model, bare, aggregate=SPREADS)
    for power in SPREADS:
        for solver in ("greedy", "private"):
            graph = spread.under(power)
            yield f"{solver}, p={power:g}, no looks", plan(graph, keep, solver=solver, time_limit=20), graph
    graphs = graphs_at(subject, bare, keep)
    for title, made in plans(graphs, subject, keep):
        yield title, made, graphs[1.0]


def run(arguments: Arguments, console: Console) -> list[Row]:
    """Measure what is missing; all rows."""
    rows: list[Row] = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    for name in arguments.only if not arguments.report_only else ():
        bench = Bench(SUBJECTS[name](arguments.data), QualityArguments(), console)
        bare = measured_curvature(bench.subject)
        for keep in arguments.keep:
            done = {row["plan"] for row in rows if (row["model"], row["keep"]) == (name, keep)}
            for title, made, graph in candidates(bench, bare, keep):
                if title in done:
                    continue
                row = {"model": name, "keep": keep, "plan": title, "kept": made.kept}
                rows.append(row | judged(bench, made, graph, arguments.seed) | environment(arguments.seed))
                write(rows, arguments.output)
                console.print(rows[-1], highlight=False)
    return rows


def judged(bench: Bench, made: Plan, graph: CostGraph, seed: int) -> Row:
    """Predicted damage, and the rise of the test loss before and after refinement."""
    smaller = apply(bench.model, made, graph.curvature, metrics=graph.metrics)
    found: Row = {"predicted": math.fsum(predicted(bench.model, smaller, graph.curvature))}
    found["one shot"] = bench.figures(smaller)["damage"]
    subject = bench.subject
    settings, data = replace(subject.refinement, seed=seed), subject.training or subject.calibration
    refined = refine(smaller, bench.model, data, settings, loss=subject.loss, inplace=True)
    return found | {"refined": bench.figures(refined.model)["damage"], "hold-out": float(f"{refined.after:.6g}")}


def cases(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """Rows by model and size."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["keep"]), []).append(row)
    return found


def table(rows: Sequence[Row]) -> Table:
    """For every model and size: how many plans, the spread of their damage before and after, how orders agree."""
    heads = ("model", "keep", "plans", "one shot", "refined", "best", "one shot ~ refined", "predicted ~ refined")
    shown = Table(*heads, title="damage of many plans: least to most; rank correlations")
    for (model, keep), own in cases(rows).items():
        before, after, said = ([row[key] for row in own] for key in ("one shot", "refined", "predicted"))
        best = min(own, key=lambda row: row["refined"])["plan"]
        ranges = [f"{min(values):.3g} – {max(values):.3g}" for values in (before, after)]
        agree = [f"{spearmanr(values, after).statistic:.2f}" for values in (before, said)]
        shown.add_row(model, f"{keep:g}", str(len(own)), *ranges, best, *agree)
    return shown


def draw(rows: Sequence[Row], quality: Sequence[Row], path: Path) -> None:
    """A panel for every model and size: damage before refinement across, after it upwards; methods by name."""
    found, known = cases(rows), by_case(quality)
    figure, drawn = panels(len(found), 5.4, 4.6, 0.0)
    for axes, ((model, keep), own) in zip(drawn, found.items(), strict=True):
        for searched, color in ((False, "#999999"), (True, "#0072B2")):
            part = [row for row in own if row["plan"].startswith(("greedy", "spectral")) == searched]
            label = "found by a solver" if searched else "random, habits, private"
            axes.scatter([r["one shot"] for r in part], [r["refined"] for r in part], s=18, color=color, label=label)
        before, after = (known.get((model, stage, keep), {}) for stage in ("one shot", "refined"))
        for method in before.keys() & after.keys():
            at = (before[method]["damage"], after[method]["damage"])
            axes.scatter(*at, s=60, marker="*", color="#D55E00" if method == "geocolor" else "#009E73", zorder=3)
            axes.annotate(method, at, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(title=f"{model}, keep {keep:g}", xlabel="damage one shot", ylabel="damage after refinement")
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.25)
    form = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=110))


def main() -> None:
    import torch

    arguments = tyro.cli(Arguments, description=__doc__)
    check_data(arguments.data, arguments.only)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    console = Console()
    rows = run(arguments, console)
    if not rows:
        raise SystemExit(f"{arguments.output} holds no plan: run without --report-only first")
    console.print(table(rows))
    draw(rows, read_rows(arguments.quality), arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
