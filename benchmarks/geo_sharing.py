"""Geo-Sharing's two dials on KWT-1: how many axes `t` of the Hessian, and how wide a trust region `β`.

    python -m benchmarks.geo_sharing --data ../shared/bench

The attention matrices of KWT-1's last three blocks lend one another bases, always as many and of the same rank, so that
all compressed models are of one size; the curvature comes from a few clips. Plans are made on calibration data; damage
is the divergence from the dense model on test clips. Axes are kept in `--work`, results are written after every step,
and a run goes on where it stopped. Seconds are those of the processor, on one thread.
"""

import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from benchmarks.subjects import SUBJECTS, Name, Subject, kwt1
from geocolor.atomic import write_atomically
from geocolor.backend import factored_layers
from geocolor.carry_out import apply
from geocolor.curvature import Curvature, LanczosCurvature, load_axes, measure, measure_axes
from geocolor.curvature.lanczos import Which
from geocolor.divergence import divergence_of
from geocolor.geo_sharing import geo_sharing, plan_geo_sharing, spread
from geocolor.graph import price
from geocolor.layers import Layer, find_layers, weight_of
from geocolor.losses import Classification
from geocolor.modes import evaluating
from geocolor.planning import plan
from geocolor.plans import Plan
from geocolor.stand_ins import StandIn, replaced
from geocolor.storage import load, save
from geocolor.trust_region import Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel

Row = dict[str, Any]
Part = Literal["dials", "whole"]
SIDES: tuple[Which, ...] = ("minor", "leading")


@dataclass(frozen=True)
class Arguments:
    """Geo-Sharing's ablations: damage against the number of axes and the trust region, time against the axes."""

    data: Path = Path("../shared/bench")
    """Folder with kwt1/."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/geo_sharing.json")
    """Where results go, and come from where a run is resumed."""
    figure: Path = Path("docs/geo_sharing.png")
    """Where the figure goes."""
    work: Path = Path("runs/geo_sharing")
    """Where axes are kept."""
    axes: tuple[int, ...] = (25, 50, 100, 200)
    """Numbers of axes t; the largest is measured, the others are its first."""
    betas: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Radii of the trust region, relative to the weight."""
    blocks: tuple[int, ...] = (9, 10, 11)
    """Blocks of KWT-1 whose axes are measured."""
    bases: int = 4
    """Bases that are lent."""
    rank_fraction: float = 0.5
    """Their rank, as a fraction of the smaller width."""
    samples: int = 16
    """Clips behind the Hessian."""
    test_batches: int = 5
    """Test batches that damage is measured on, spread evenly."""
    parts: tuple[Part, ...] = ("dials", "whole")
    """The two dials on three blocks, and whole plans of the preset."""
    whole_keep: float = 0.7
    """Fraction of the parameters that whole plans keep."""
    whole_models: tuple[Name, ...] = ("kwt1", "embedded")
    """Models of whole plans."""
    whole_axes: tuple[int, ...] = (4, 10, 25)
    """Numbers of axes of whole plans."""
    whole_samples: int = 2
    """Clips or sequences behind the Hessians of whole plans: every layer has its own axes."""
    report_only: bool = False
    """Measure nothing, only draw the figure."""


@dataclass(frozen=True)
class Bench:
    """What every measurement needs; axes of `measured` layers, plans for `layers`, their attention matrices."""

    arguments: Arguments
    subject: Subject
    measured: tuple[Layer, ...]
    layers: tuple[Layer, ...]
    test: Sequence[Any]
    rows: list[Row]
    console: Console

    @property
    def model(self) -> nn.Module:
        return self.subject.model

    def done(self, **key: Any) -> bool:
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def record(self, row: Row) -> None:
        self.rows.append(row)
        text = json.dumps(self.rows, indent=1) + "\n"
        write_atomically(self.arguments.output, lambda temporary: temporary.write_text(text))
        shown = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        self.console.print(", ".join(shown), highlight=False)

    @cached_property
    def dense(self) -> list[Tensor]:
        with evaluating(self.model):
            return [self.subject.loss.forward(self.model, batch) for batch in self.test]

    def divergence(self, smaller: nn.Module) -> float:
        """Mean divergence from the dense model on the test clips."""
        loss, parts = self.subject.loss, []
        with evaluating(smaller):
            for batch, expected in zip(self.test, self.dense, strict=True):
                parts.append(loss.divergence(loss.forward(smaller, batch), expected, batch))
        return sum(float(total) for total, _ in parts) / sum(units for _, units in parts)


def run(bench: Bench) -> None:
    """All measurements that are missing."""
    if "whole" in bench.arguments.parts:
        for name in bench.arguments.whole_models:
            for t in bench.arguments.whole_axes:
                whole(bench, name, t)
    if "dials" in bench.arguments.parts:
        dials(bench)


def whole(bench: Bench, name: Name, t: int) -> None:
    """The preset on all layers of a model, saved, loaded again and measured on all test data."""
    arguments = bench.arguments
    key = {"part": "whole", "model": name, "axes": t, "keep": arguments.whole_keep, "samples": arguments.whole_samples}
    if bench.done(**key):
        return
    subject = bench.subject if name == bench.subject.name else SUBJECTS[name](arguments.data)
    model, loss = subject.model.eval(), subject.loss
    begun = time.process_time()
    made, curvature = geo_sharing(
        model,
        subject.calibration,
        loss,
        keep=arguments.whole_keep,
        axes=t,
        samples=arguments.whole_samples,
        layers=find_layers(model, subject.include),
        progress=True,
    )
    seconds = time.process_time() - begun
    with tempfile.TemporaryDirectory() as folder:
        save(apply(model, made, curvature), Path(folder) / "model")
        loaded = load(model, Path(folder) / "model")
    row: Row = {
        "layers": len(made.layers),
        "shared": sum(len(cls.layers) for cls in made.classes if len(cls.layers) > 1),
        "kept": made.kept,
        "measured": divergence_of(model, loaded, subject.test, loss),
    }
    if isinstance(loss, Classification):
        row["accuracy"] = accuracy(loaded, subject)
    bench.record(key | row | {"seconds": seconds})


def accuracy(model: nn.Module, subject: Subject) -> float:
    """On all test data."""
    right = clips = 0
    with evaluating(model):
        for batch in subject.test:
            labels = Classification().labels(batch)
            right += int((subject.loss.forward(model, batch).argmax(-1) == labels).sum())
            clips += len(labels)
    return right / clips


def dials(bench: Bench) -> None:
    """Damage against axes and radius, and time against axes, on three blocks."""
    arguments = bench.arguments
    batches = spread(bench.subject.calibration, arguments.samples)
    for which in SIDES:
        everything = measured(bench, which, batches)
        spectra(bench, everything)
        curvature = replace(everything, layers=bench.layers)
        for t in arguments.axes:
            against(bench, curvature, t, 0.01, "coefficients")
            against(bench, curvature, t, None, "coefficients")
        for beta in arguments.betas:
            for mode in ("coefficients", "paper"):
                against(bench, curvature, 50, beta, mode)
        unprojected(bench, curvature, 50)
    references(bench)
    durations(bench, batches)


def measured(bench: Bench, which: Which, batches: Sequence[Any]) -> LanczosCurvature:
    """The axes, from the file of an earlier run where there is one."""
    path = bench.arguments.work / f"{which}.safetensors"
    if not path.exists():
        found = measure_axes(
            bench.model,
            batches,
            bench.subject.loss,
            axes=max(bench.arguments.axes),
            which=which,
            layers=bench.measured,
            progress=True,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return load_axes(path)


def spectra(bench: Bench, curvature: LanczosCurvature) -> None:
    """What part of every layer's trace the axes hold, by Hutchinson's estimate."""
    for name, axes in curvature.axes.items():
        if not bench.done(part="spectrum", which=curvature.which, layer=name):
            held = {str(t): axes.first(t).share for t in bench.arguments.axes}
            row = {"part": "spectrum", "which": curvature.which, "layer": name, "m": axes.layer.m, "n": axes.layer.n}
            error = (axes.trace_error or 0.0) / axes.trace
            bench.record(row | {"trace": axes.trace, "relative_error": error, "held": held, "products": axes.products})


def against(bench: Bench, curvature: LanczosCurvature, t: int, beta: float | None, mode: Mode) -> None:
    """A plan with the first `t` axes and a trust region, carried out and measured."""
    key = {"part": "damage", "which": curvature.which, "axes": t, "beta": beta, "mode": mode}
    if bench.done(**key):
        return
    first = curvature.first(t)
    begun = time.process_time()
    made = lent(bench, first, beta, mode)
    seconds = time.process_time() - begun
    smaller = apply(bench.model, made, first)
    changes = changed(bench, smaller)
    seen = sum(float(first.axes[name].project(delta).square().sum()) for name, delta in changes)
    norm = sum(float(delta.square().sum()) for _, delta in changes)
    bench.record(
        key
        | {
            "kept": made.kept,
            "predicted": made.predicted_damage,
            "measured": bench.divergence(smaller),
            "seen": seen / norm,
            "change": (norm / sum(float(weight_of(bench.model, layer).square().sum()) for layer in bench.layers))
            ** 0.5,
            "seconds": seconds,
        }
    )


def lent(bench: Bench, curvature: LanczosCurvature, beta: float | None, mode: Mode = "coefficients") -> Plan:
    arguments = bench.arguments
    return plan_geo_sharing(
        bench.model, curvature, bases=arguments.bases, rank_fraction=arguments.rank_fraction, beta=beta, mode=mode
    )


def changed(bench: Bench, smaller: nn.Module) -> list[tuple[str, Tensor]]:
    """`δ = Ŵ − W` of every layer."""
    factored = factored_layers(smaller)
    return [
        (layer.name, factored[layer.name].dense(torch.float64).detach() - weight_of(bench.model, layer))
        for layer in bench.layers
    ]


def unprojected(bench: Bench, curvature: LanczosCurvature, t: int) -> None:
    """The paper's weights `W + clip_τ(δ∥)`: of no basis any more, so nothing is compressed."""
    key = {"part": "damage", "which": curvature.which, "axes": t, "mode": "not compressed"}
    missing = [beta for beta in bench.arguments.betas if not bench.done(**key, beta=beta)]
    if not missing:
        return
    first = curvature.first(t)
    deltas = dict(changed(bench, apply(bench.model, lent(bench, first, None), first)))
    for beta in missing:
        clipped = []
        for layer in bench.layers:
            delta, weight = deltas[layer.name], weight_of(bench.model, layer)
            spanned = first.axes[layer.name].project(delta)
            flat = spanned if curvature.which == "minor" else delta - spanned
            moved = weight + flat * min(1.0, beta * float(weight.norm() / flat.norm()))
            clipped.append(StandIn(layer, moved))
        other = copy.deepcopy(bench.model)
        with replaced(other, clipped):
            bench.record(key | {"beta": beta, "kept": 1.0, "measured": bench.divergence(other)})


def references(bench: Bench) -> None:
    """As many bases of the same rank, priced without axes: by norm alone, and by Kronecker factors."""
    for estimate in ("identity", "kronecker"):
        if not bench.done(part="reference", estimate=estimate):
            curvature: Curvature = measure(
                bench.model,
                bench.subject.calibration,
                bench.subject.loss,
                layers=bench.layers,
                estimate=estimate,
                damping=0.3,  # what serves KWT-1 best
            )
            arguments = bench.arguments
            graph = price(bench.model, curvature)
            made = plan(graph, bases=arguments.bases, rank_fraction=arguments.rank_fraction)
            damage = bench.divergence(apply(bench.model, made, curvature))
            bench.record({"part": "reference", "estimate": estimate, "kept": made.kept, "measured": damage})


def durations(bench: Bench, batches: Sequence[Any]) -> None:
    """Seconds for one layer of every shape, in the first block in scope; a run for every number of axes."""
    for name in ("q", "fc1"):
        layer = next(layer for layer in bench.measured if layer.name.endswith(f".{name}"))
        for which in SIDES:
            for t in bench.arguments.axes:
                key = {"part": "time", "which": which, "layer": layer.name, "axes": t}
                if not bench.done(**key):
                    begun = time.process_time()
                    found = measure_axes(
                        bench.model, batches, bench.subject.loss, axes=t, which=which, layers=[layer], trace_probes=0
                    )
                    seconds, products = time.process_time() - begun, found.axes[layer.name].products
                    bench.record(key | {"m": layer.m, "n": layer.n, "seconds": seconds, "products": products})


COLORS = {"minor": "#0072B2", "leading": "#D55E00"}
NAMES = {"minor": "t flattest axes", "leading": "t sharpest axes"}
REFERENCES = {"identity": ("no axes: by norm alone", "#666666"), "kronecker": ("Kronecker factors", "#009E73")}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Four panels: damage against t and against β, time against t, and what part of the trace t axes hold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.4), facecolor="white", layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    _damage_by_axes(panels[0], rows)
    _damage_by_radius(panels[1], rows)
    _time(panels[2], rows)
    _held(panels[3], rows)
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.legend(fontsize=8, frameon=False, loc="upper left" if panel in panels[:2] else "best")
    figure.suptitle("Geo-Sharing: twelve attention matrices of KWT-1 share four bases of rank 32", fontsize=11)
    form = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=110))


def _select(rows: Sequence[Row], x: str, y: str, **key: Any) -> tuple[list[float], list[float]]:
    chosen = (row for row in rows if all(row.get(name) == value for name, value in key.items()))
    found = sorted((row[x], row[y]) for row in chosen if row[x] is not None)
    return [each[0] for each in found], [each[1] for each in found]


def _level(panel: "Panel", rows: Sequence[Row]) -> None:
    for row in rows:
        if row["part"] == "reference":
            label, color = REFERENCES[row["estimate"]]
            panel.axhline(row["measured"], color=color, linestyle=":", label=label)


def _damage_by_axes(panel: "Panel", rows: Sequence[Row]) -> None:
    for which in SIDES:
        for beta, style in ((None, "-"), (0.01, "--")):
            key = {"part": "damage", "mode": "coefficients", "which": which, "beta": beta}
            region = "no trust region" if beta is None else f"β = {beta:g}"
            x, y = _select(rows, "axes", "measured", **key)
            panel.plot(x, y, style, marker="o", color=COLORS[which], label=f"{NAMES[which]}, {region}")
    _level(panel, rows)
    panel.set(xlabel="t, axes measured of each layer's Hessian", ylabel="divergence from the dense model, nats")
    panel.set(title="How many axes?", xscale="log", ylim=(0, 1.7 * panel.get_ylim()[1]))
    _ticks(panel, rows)


def _ticks(panel: "Panel", rows: Sequence[Row]) -> None:
    numbers = sorted({row["axes"] for row in rows if row["part"] == "time"})
    panel.set_xticks(numbers, [str(t) for t in numbers])
    panel.minorticks_off()


def _damage_by_radius(panel: "Panel", rows: Sequence[Row]) -> None:
    styles = {"coefficients": "-", "paper": "--", "not compressed": ":"}
    labels = {
        "coefficients": "kept by the coefficients",
        "paper": "clipped, then back on the basis",
        "not compressed": "clipped, left off the basis: nothing is saved",
    }
    for which in SIDES:
        for mode, style in styles.items():
            x, y = _select(rows, "beta", "measured", part="damage", mode=mode, which=which, axes=50)
            panel.plot(x, y, style, marker="o", ms=4, color=COLORS[which], label=f"{NAMES[which][2:]}, {labels[mode]}")
    panel.set(xlabel="β, radius of the trust region relative to the weight", title="How wide a trust region? (t = 50)")
    panel.set(xscale="log", ylim=(0, 2 * panel.get_ylim()[1]), ylabel="divergence from the dense model, nats")


def _time(panel: "Panel", rows: Sequence[Row]) -> None:
    for name, style in (("q", "-"), ("fc1", "--")):
        for which in SIDES:
            own = [row for row in rows if row["part"] == "time" and row["layer"].endswith(f".{name}")]
            x, y = _select(own, "axes", "seconds", which=which)
            size = f"{own[0]['m']} × {own[0]['n']}" if own else name
            panel.plot(x, y, style, marker="o", color=COLORS[which], label=f"{NAMES[which]}, a layer {size}")
    panel.set(
        xlabel="t", ylabel="seconds of one core for one layer", title="What do axes cost?", xscale="log", yscale="log"
    )
    panel.set_yticks([2, 5, 10, 20], ["2", "5", "10", "20"])
    _ticks(panel, rows)


def _held(panel: "Panel", rows: Sequence[Row]) -> None:
    spectra = [row for row in rows if row["part"] == "spectrum"]
    numbers = sorted({int(t) for row in spectra for t in row["held"]})
    for which in SIDES:
        own = [row for row in spectra if row["which"] == which]
        middle = [statistics.median(row["held"][str(t)] for row in own) for t in numbers]
        low, high = ([end(row["held"][str(t)] for row in own) for t in numbers] for end in (min, max))
        label = f"the Hessian's trace, in the {NAMES[which]} (median, range)"
        panel.plot(numbers, middle, marker="o", color=COLORS[which], label=label)
        panel.fill_between(numbers, low, high, color=COLORS[which], alpha=0.15, linewidth=0)
        x, y = _select(rows, "axes", "seen", part="damage", mode="coefficients", which=which, beta=None)
        panel.plot(x, y, "--", marker="s", color=COLORS[which], label=f"the change ‖δ‖², in the {NAMES[which]}")
    part = [statistics.median(t / (row["m"] * row["n"]) for row in spectra) for t in numbers]
    panel.plot(numbers, part, color="#666666", linestyle=":", label="all directions: t / mn")
    panel.set(xlabel="t", ylabel="part that lies in t axes", title="What do t axes hold?", xscale="log")
    panel.set_xticks(numbers, [str(t) for t in numbers])
    panel.minorticks_off()


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*cannot come within the trust region")
    rows: list[Row] = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    if not arguments.report_only:
        if not (arguments.data / "kwt1").is_dir():
            raise SystemExit(f"no folder {arguments.data / 'kwt1'}: --data names the one that holds kwt1/")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        subject = kwt1(arguments.data)
        measured, layers = (
            find_layers(subject.model, [f"layers.{block}.{part}" for block in arguments.blocks])
            for part in ("*", "[qkvo]")
        )
        step = max(len(subject.test) // arguments.test_batches, 1)
        test = subject.test[::step][: arguments.test_batches]
        run(Bench(arguments, subject, measured, layers, test, rows, Console()))
    if not rows:
        raise SystemExit(f"{arguments.output} holds no results: run without --report-only first")
    draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
