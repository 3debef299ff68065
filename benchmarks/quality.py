"""Quality at equal size: damage of geocolor and of published methods on real models, one shot and refined.

    python -m benchmarks.quality --data ../shared/bench

Every method is a preset of the one pipeline: same calibration data, same layers in scope, same kept parameters, same
refinement. A row is appended as soon as it is measured, so a run that is stopped goes on where it was; the table and
the figure are made from all rows there are.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from torch import nn

from benchmarks.environment import environment
from benchmarks.panels import panels
from benchmarks.subjects import DAMAGES, SUBJECTS, Name, Subject, check_data
from geocolor.atomic import write_atomically
from geocolor.clock import Clock
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph
from geocolor.losses import Classification
from geocolor.modes import evaluating
from geocolor.parameters import parameter_count
from geocolor.pipeline import Pipeline, Prepared
from geocolor.plans import Plan
from geocolor.presets import GEO_SHARING, PRESETS
from geocolor.settings import Settings

Stage = Literal["one shot", "refined"]
Row = dict[str, Any]

OURS = "geocolor"
PRIVATE = "geocolor, private"
PEERS = (*PRESETS, GEO_SHARING)
METHODS = (OURS, PRIVATE, *PEERS)
KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.3)
#: Fractions at which a model has nothing to lose are left out.
MOST: Mapping[str, float] = {"kwt1": 0.4}


@dataclass(frozen=True)
class Arguments:
    """Damage of geocolor and of published methods at equal size."""

    data: Path = Path("../shared/bench")
    """Folder with stories260K/, kwt1/, resnet_cifar10/ and sts/; the embedded model needs none."""
    only: tuple[Name, ...] = ("stories260K", "kwt1", "resnet56", "embedded", "minilm")
    """Models to run."""
    keep: tuple[float, ...] = ()
    """Fractions of the parameters in scope to keep, instead of 0.9 … 0.3 (KWT-1: 0.4 and 0.3)."""
    methods: tuple[str, ...] = METHODS[:-1]
    """Methods to run; geo-sharing, which takes longest, only when named."""
    stages: tuple[Stage, ...] = ("one shot", "refined")
    """Measured at once, and after refinement."""
    rows: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/quality.jsonl")
    """Where rows go, and come from where a run is resumed; table and figure lie beside it."""
    time_limit: float = 60.0
    """Seconds for the search of a plan."""
    seed: int = 0
    """Of the labels that are sampled, of the solver and of refinement."""
    report_only: bool = False
    """Measure nothing, only write table and figure."""


@dataclass
class Losses:
    """Sums over test data: the loss and the units that count by batch, the divergence from the dense model, hits."""

    total: list[float] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    divergence: float = 0.0
    correct: float = 0.0
    samples: int = 0

    def rise_from(self, dense: "Losses") -> tuple[float, float]:
        """The rise of the mean loss over that of another model on the same batches, and its standard error.

        The error is that of a ratio of sums (Cochran, Sampling Techniques, 1977, §6), batches being what is drawn.
        """
        rises = [mine - other for mine, other in zip(self.total, dense.total, strict=True)]
        units, batches = sum(self.units), len(self.units)
        mean = math.fsum(rises) / units
        squares = math.fsum((rise - mean * count) ** 2 for rise, count in zip(rises, self.units, strict=True))
        return mean, math.sqrt(squares * batches / max(batches - 1, 1)) / units


def told(plan: Plan) -> Row:
    """What rows say of a plan that was searched."""
    shared = [list(cls.layers) for cls in plan.classes if len(cls.layers) > 1]
    return {"predicted": plan.predicted_damage, "aggregate": plan.aggregate, "shared": shared}


@dataclass
class Bench:
    """A model with what methods share: curvatures by estimate and damping, the graph of one size."""

    subject: Subject
    arguments: Arguments
    console: Console

    def __post_init__(self) -> None:
        self.model = self.subject.model.eval()
        self.curvatures: dict[tuple[str, float], tuple[Curvature, float]] = {}
        self.graph: tuple[float, CostGraph, dict[str, float]] | None = None
        with evaluating(self.model):
            self.outputs = [self.subject.loss.forward(self.model, batch) for batch in self.subject.test]
        self.dense = self.losses(self.model)
        self.dense_parameters = parameter_count(self.model)

    def settings(self, method: str, keep: float) -> Settings:
        return Settings(
            keep=keep,
            preset=method if method in PEERS else OURS,
            solver="private" if method == PRIVATE else "auto",
            draws=self.subject.draws if method in (OURS, PRIVATE) else 1,
            include=self.subject.include,
            time_limit=self.arguments.time_limit,
            seed=self.arguments.seed,
        )

    def run(self, method: str, keep: float) -> Pipeline:
        """As `geocolor compress` would run a method."""
        subject, clock = self.subject, Clock(timer=time.process_time)
        settings = self.settings(method, keep)
        return Pipeline(self.model, subject.calibration, settings, subject.loss, clock, progress=True)

    def measured(self, run: Pipeline) -> tuple[Curvature, float]:
        """The curvature a method asks for, and the seconds it took."""
        preset = PRESETS.get(run.settings.preset)
        key = ("kronecker", -1.0) if preset is None else (preset.estimate, preset.damping)
        if key not in self.curvatures:
            alone = replace(run, clock=Clock(timer=time.process_time))
            self.curvatures[key] = (alone.measured(), alone.clock.seconds["measure"])
        return self.curvatures[key]

    def prepared(self, run: Pipeline) -> Prepared:
        """The plan, as `geocolor compress` would make it; steps that methods share count for each of them."""
        keep, preset = run.settings.keep, run.settings.preset
        assert keep is not None
        if preset == GEO_SHARING:
            return run.prepared()
        curvature, run.clock.seconds["measure"] = self.measured(run)
        if preset in PRESETS:
            return run.prepared(curvature)
        if self.graph is None or self.graph[0] != keep:
            shared = replace(run, clock=Clock(timer=time.process_time))
            self.graph = (keep, shared.priced(curvature)[1], shared.clock.seconds)
        run.clock.seconds.update(self.graph[2])
        return run.searched(self.graph[1])

    def rows(self, method: str, keep: float, stages: Sequence[Stage]) -> Iterator[Row]:
        """One method at one size, measured on the live model."""
        subject, run = self.subject, self.run(method, keep)
        prepared = self.prepared(run)
        smaller = run.carried_out(prepared)
        dense = prepared.plan.parameters_dense
        kept = (parameter_count(smaller) - (self.dense_parameters - dense)) / dense
        if kept > keep:
            raise RuntimeError(f"{method}: {kept} of the parameters are more than {keep}")
        row: Row = {
            "model": subject.name,
            "keep": keep,
            "method": method,
            "kept": round(kept, 6),
            "seconds": {step: round(value, 2) for step, value in run.clock.seconds.items()},
        }
        searched = method in (OURS, PRIVATE)
        if "one shot" in stages:
            said = told(prepared.plan) if searched else {}
            yield row | said | {"stage": "one shot"} | self.figures(smaller)
        if "refined" in stages:
            refinement = replace(subject.refinement, seed=self.arguments.seed)
            trained = replace(run, calibration=subject.training or subject.calibration)
            if searched:  # as `geocolor compress --refine` does
                others = run.without_looks(self.measured(run)[0])
                chosen = trained.nearest_refined([prepared, *others], refinement)
                row |= told(chosen.plan)
                if chosen is not prepared:
                    smaller = run.carried_out(chosen)
            found = trained.refined(smaller, refinement)
            row["seconds"] = row["seconds"] | {"refine": round(run.clock.seconds["refine"], 2)}
            yield row | {"stage": "refined", "best_step": found.best_step} | self.figures(found.model)

    def losses(self, model: nn.Module) -> Losses:
        """What the test data says of a model, batch by batch."""
        loss, found = self.subject.loss, Losses()
        with evaluating(model):
            for batch, reference in zip(self.subject.test, self.outputs, strict=True):
                outputs = loss.forward(model, batch)
                total, count = loss.total(outputs, batch, reference)
                found.total.append(float(total))
                found.units.append(count)
                found.divergence += float(loss.divergence(outputs, reference, batch)[0])
                if isinstance(loss, Classification):
                    hits = float((outputs.argmax(-1) == loss.labels(batch)).sum())
                    found.correct, found.samples = found.correct + hits, found.samples + len(outputs)
        return found

    def figures(self, smaller: nn.Module) -> Row:
        """What is measured on test data; the error of the damage is one standard deviation, of drawing test data."""
        losses = self.losses(smaller)
        damage, error = losses.rise_from(self.dense)
        found = {"damage": damage, "error": error, "divergence": losses.divergence / sum(losses.units)}
        if losses.samples:
            found["accuracy"] = losses.correct / losses.samples
        if self.subject.scores is not None:
            found |= self.subject.scores(smaller)
        return {name: float(f"{value:.6g}") for name, value in found.items()}


def read_rows(path: Path) -> list[Row]:
    """Rows of earlier runs; a last line that was cut off is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def run(arguments: Arguments, console: Console) -> None:
    """Measure what is missing, by model, stage and size."""
    done = {(row["model"], row["keep"], row["method"], row["stage"]) for row in read_rows(arguments.rows)}
    for name in arguments.only:
        try:
            bench = Bench(SUBJECTS[name](arguments.data), arguments, console)
        except FileNotFoundError as error:
            console.print(f"[yellow]{name} is left out: {error}")
            continue
        keeps = arguments.keep or tuple(keep for keep in (*KEEPS[:-1], 0.4, 0.3) if _wanted(name, keep))
        for keep in keeps:
            for method in arguments.methods:
                missing: list[Stage] = [stage for stage in arguments.stages if (name, keep, method, stage) not in done]
                if not missing:
                    continue
                started = time.perf_counter()
                for row in bench.rows(method, keep, missing):
                    with arguments.rows.open("a") as out:
                        out.write(json.dumps(row | environment(arguments.seed)) + "\n")
                    console.print(
                        f"{name} {keep:g} {method}, {row['stage']}: {row['damage']:.4g} "
                        f"({time.perf_counter() - started:.0f} s)",
                        highlight=False,
                    )


def _wanted(name: str, keep: float) -> bool:
    """KWT-1 is measured where it has something to lose; 0.4 is its size alone."""
    return keep <= MOST[name] if name in MOST else keep != 0.4


def by_case(rows: Sequence[Row]) -> dict[tuple[str, Stage, float], dict[str, Row]]:
    """Rows by model, stage and size, then by method; a later row replaces an earlier one."""
    found: dict[tuple[str, Stage, float], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["stage"], row["keep"]), {})[row["method"]] = row
    models = list(SUBJECTS)
    return dict(sorted(found.items(), key=lambda case: (models.index(case[0][0]), case[0][1], -case[0][2])))


def markdown(rows: Sequence[Row]) -> str:
    """A table for every model and stage: sizes down, methods across, the least damage in bold; then times."""
    cases = by_case(rows)
    parts = [
        "# Damage at equal size\n",
        "One standard error, of drawing the test data, is shown where it is more than 5 % of the damage.\n",
    ]
    for model, stage in dict.fromkeys((case[0], case[1]) for case in cases):
        own = {case[2]: methods for case, methods in cases.items() if case[:2] == (model, stage)}
        names = [name for name in METHODS if any(name in methods for methods in own.values())]
        parts += [f"## {model}, {stage}\n", f"| keep | {' | '.join(names)} | ours / best peer |"]
        parts.append("| --- |" + " ---: |" * (len(names) + 1))
        for keep, methods in own.items():
            least = min(row["damage"] for row in methods.values())
            cells = [_cell(methods.get(name), least) for name in names]
            parts.append(f"| {keep:g} | {' | '.join(cells)} | {_ratio(methods)} |")
        parts.append("")
    parts += [
        "## Seconds of a run, by step, keep 0.8 (KWT-1: 0.4)\n",
        "| model | method | seconds | steps |",
        "| --- | --- | ---: | --- |",
    ]
    for (model, stage, keep), methods in cases.items():
        if stage == "one shot" and keep == (0.4 if model in MOST else 0.8):
            for name in (OURS, PRIVATE, "svd-llm", "svd-llm-update", "basis-sharing"):
                if name in methods:
                    seconds = methods[name]["seconds"]
                    steps = ", ".join(f"{step} {value:g}" for step, value in seconds.items())
                    parts.append(f"| {model} | {name} | {sum(seconds.values()):.1f} | {steps} |")
    return "\n".join(parts) + "\n"


def _cell(row: Row | None, least: float) -> str:
    if row is None:
        return ""
    text = _digits(row["damage"])
    if row.get("error", 0.0) > 0.05 * abs(row["damage"]):
        text += f" ± {_digits(row['error'])}"
    return f"**{text}**" if row["damage"] == least else text


def _digits(damage: float) -> str:
    return f"{damage:.3g}" if abs(damage) < 1 else f"{damage:.2f}"


def _ratio(methods: Mapping[str, Row]) -> str:
    """Ours against the best published method; divergences are compared where the loss of either has fallen."""
    peers = [row for name, row in methods.items() if name in PEERS]
    if OURS not in methods or not peers:
        return ""

    def against_best(figure: str) -> tuple[float, float]:
        return methods[OURS][figure], min(row[figure] for row in peers)

    ours, best = against_best("damage")
    if min(ours, best) > 0:
        return f"{ours / best:.2f}"
    ours, best = against_best("divergence")
    return f"divergence: {_digits(ours)} / {_digits(best)} = {ours / best:.2f}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Damage against size: a panel for each model, one shot, and then those that were refined.

    Where some model's loss is below that of the dense one, the panel shows divergences, which have a logarithm.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    cases = by_case(rows)
    drawn = sorted(dict.fromkeys((stage, model) for model, stage, _ in cases), key=lambda each: each[0] == "refined")
    figure, shown = panels(len(drawn), 4.2, 3.3, 1.2)
    handles: dict[str, Any] = {}
    for axes, (stage, model) in zip(shown, drawn, strict=True):
        own = [row for case, methods in cases.items() if case[:2] == (model, stage) for row in methods.values()]
        figure_of = "damage" if min(row["damage"] for row in own) > 0 else "divergence"
        for method in METHODS:
            points = sorted(
                (keep, methods[method][figure_of])
                for (name, when, keep), methods in cases.items()
                if (name, when) == (model, stage) and method in methods
            )
            if points:
                order = len(METHODS) - METHODS.index(method)  # ours above the others
                [handles[method]] = axes.plot(*zip(*points, strict=True), **_style(method), label=method, zorder=order)
        axes.set(yscale="log", title=f"{model}, {stage}", xlabel="kept fraction", xlim=(0.27, 0.93))
        axes.set_ylabel(DAMAGES.get(model, "damage") if figure_of == "damage" else "divergence from the dense model")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
    figure.suptitle("Damage on test data at equal size: lower is better", fontsize=12, weight="bold")
    named = [method for method in METHODS if method in handles]
    figure.legend(
        [handles[each] for each in named], named, loc="outside lower center", ncols=5, frameon=False, fontsize=8
    )
    form = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=110))


#: Of the methods, in their order: ours red, those that share in greens.
COLORS = dict(
    zip(
        METHODS,
        [
            "#D55E00",
            "#D55E00",
            "#999999",
            "#7B5EA7",
            "#CC79A7",
            "#56B4E9",
            "#0072B2",
            "#009E73",
            "#3DB88B",
            "#7FCFAE",
            "#B5E3CF",
            "#E69F00",
            "#000000",
        ],
        strict=False,
    )
)


def _style(method: str) -> dict[str, Any]:
    if method in PEERS:
        return {"color": COLORS.get(method, "#444444"), "linewidth": 1.1, "marker": ".", "markersize": 5}
    line = "-" if method == OURS else ":"
    return {"color": COLORS[method], "linewidth": 2.2, "linestyle": line, "marker": "o", "markersize": 4}


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if unknown := set(arguments.methods) - set(METHODS):
        raise SystemExit(f"no method is called {sorted(unknown)[0]!r}; there are {', '.join(METHODS)}")
    check_data(arguments.data, arguments.only)
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    console = Console()
    if not arguments.report_only:
        run(arguments, console)
    rows = read_rows(arguments.rows)
    if not rows:
        raise SystemExit(f"{arguments.rows} holds no row: run without --report-only first")
    text = markdown(rows)
    write_atomically(arguments.rows.with_suffix(".md"), lambda temporary: temporary.write_text(text))
    draw(rows, arguments.rows.with_suffix(".png"))
    console.print(f"{arguments.rows.with_suffix('.md')}, {arguments.rows.with_suffix('.png')}")


if __name__ == "__main__":
    main()
