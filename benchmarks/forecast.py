"""Forecast against what happened: time of the processor, peak memory of the process, most bytes on disk.

    python -m benchmarks.forecast stories260K --command compare

One command on one model a process, since memory is counted from its start; a row of the results that is there already
is not measured again. Times are those of the processor, not of the clock on the wall, so that other work on the machine
does not count. What solvers race in `compare` is foreseen with all the time that they may take, and not
compared.
"""

import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from benchmarks.subjects import SUBJECTS, Name, Subject
from geocolor import commands, demo
from geocolor.backend import plan_of
from geocolor.carry_out import apply
from geocolor.clock import Clock
from geocolor.compression import delivered, write_model
from geocolor.curvature import Curvature
from geocolor.digests import digest_of
from geocolor.embedded import MODEL
from geocolor.evaluation import evaluate, evaluate_pair
from geocolor.figures import draw_plan
from geocolor.forecast import Forecast, forecast, forecast_applying, forecast_measuring, forecast_refinement
from geocolor.forecast_runs import forecast_evaluation, forecast_race
from geocolor.journal import journal_folder, kept
from geocolor.losses import Batch
from geocolor.measured import CURVATURE, measure_into
from geocolor.pipeline import Pipeline, Prepared
from geocolor.plans import write_plan
from geocolor.report import write_report
from geocolor.settings import Settings
from geocolor.sweep import sweep
from geocolor.sweep_grid import compress_cell, forecast_sweep, grid

Command = Literal["compress", "measure", "plan", "apply", "refine", "demo", "compare", "evaluate", "sweep"]
Row = dict[str, Any]

#: Steps that `refine` takes.
STEPS = 40

#: What `compare` races, and over how many K; the presets of a `sweep`.
RACED, BASES, SWEPT = ("greedy", "local_search"), 2, ("svd", "svd-llm")

#: Characters of the text that a sweep reads, about as many tokens of each model; fewer bytes on disk than `SMALL` are
#: none to speak of.
TEXT, SMALL = {"stories260K": 200_000, "embedded": 60_000}, 1_000_000


@dataclass(frozen=True)
class Options:
    """Forecast a run of a command, then do it."""

    model: Positional[Name]
    """Model and data."""
    command: Command = "compress"
    """Command; `demo` knows the embedded model only, and `sweep` models with a folder and text of their own."""
    data: Path = Path("../shared/bench")
    """Folder of the models and data."""
    keep: float = 0.8
    """Fraction of the parameters that may remain."""
    solver: str = "greedy"
    """Solver."""
    time_limit: float = 10.0
    """Seconds of search at most."""
    rounds: int = 3
    """Looks from smaller models."""
    samples: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(optional)")] = None
    """Calibration batches at most."""
    test_samples: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(optional)")] = None
    """Test batches at most."""
    include: tuple[str, ...] = ()
    """Patterns of layer names in scope; those of the model's other benchmarks when not given."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/forecast.json")
    """Where results go, and are looked for."""

    def asked(self) -> Row:
        return {key: value for key, value in asdict(self).items() if key not in ("data", "output")}


class Disk:
    """Watches a folder grow, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self._folder, self._over = folder, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, size_of(self._folder))

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return max(self.most, size_of(self._folder))


def size_of(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue  # gone meanwhile
    return total


@dataclass(frozen=True)
class Run:
    """A command made ready: what makes its forecast, and what does it into a folder and gives seconds by step.

    `search` is a step that is foreseen with all of its time limits: it is not compared.
    """

    expecting: Callable[[], Forecast]
    doing: Callable[[Path], Mapping[str, float]]
    search: str | None = None


def compress_run(options: Options, subject: Subject, settings: Settings) -> Run:
    calibration, test = _data(options, subject)

    def doing(place: Path) -> Mapping[str, float]:
        out, clock = place / "out", Clock(timer=time.process_time)
        with kept(out, {"data": digest_of(calibration)}, asdict(settings), say=print) as journal:
            run = Pipeline(subject.model, calibration, settings, subject.loss, clock, journal=journal)
            prepared = run.prepared()
            smaller = run.carried_out(prepared)
            plan = plan_of(smaller) or prepared.plan
            with clock("save"):
                write_model(smaller, out, plan)
            delivered(subject.model, plan, test, out, clock=clock, loss=subject.loss)
        assert not journal_folder(out).exists()
        return clock.seconds

    def expecting() -> Forecast:
        return forecast(subject.model, calibration, settings, test=test, loss=subject.loss, timer=time.process_time)

    return Run(expecting, doing)


def measure_run(options: Options, subject: Subject, settings: Settings) -> Run:
    calibration, _ = _data(options, subject)

    def doing(place: Path) -> Mapping[str, float]:
        out, clock = place / "out", Clock(timer=time.process_time)
        with kept(out, {}, {}, say=print) as journal:
            run = Pipeline(subject.model, calibration, settings, subject.loss, clock, journal=journal)
            measure_into(out, run)
        return clock.seconds

    def expecting() -> Forecast:
        return forecast_measuring(subject.model, calibration, settings, loss=subject.loss, timer=time.process_time)

    return Run(expecting, doing)


def plan_run(options: Options, subject: Subject, settings: Settings) -> Run:
    calibration, _ = _data(options, subject)

    def doing(place: Path) -> Mapping[str, float]:
        out, clock = place / "out", Clock(timer=time.process_time)
        out.mkdir()
        with kept(place / "journal", {}, {}, say=print) as journal:
            run = Pipeline(subject.model, calibration, settings, subject.loss, clock, journal=journal)
            prepared = run.prepared()
            with clock("save"):
                write_plan(prepared.plan, out / "plan.json")
                prepared.curvature.save(out / CURVATURE)
                draw_plan(prepared.plan, out / "plan.png")
        return clock.seconds

    def expecting() -> Forecast:
        return forecast(subject.model, calibration, settings, loss=subject.loss, timer=time.process_time)

    return Run(expecting, doing)


def _without_sharing(options: Options, subject: Subject, settings: Settings) -> tuple[Pipeline, Prepared]:
    """A plan whose making is not looked at, and the run that made it."""
    calibration, _ = _data(options, subject)
    run = Pipeline(subject.model, calibration, replace(settings, rounds=0, solver="private"), subject.loss)
    return run, run.prepared()


def apply_run(options: Options, subject: Subject, settings: Settings) -> Run:
    """Of a plan without sharing."""
    _, prepared = _without_sharing(options, subject, settings)
    curvature = prepared.curvature
    assert isinstance(curvature, Curvature)

    def doing(place: Path) -> Mapping[str, float]:
        out, clock = place / "out", Clock(timer=time.process_time)
        with kept(out, {}, {}, say=print) as journal:
            with clock("apply"):
                smaller = apply(
                    subject.model, prepared.plan, curvature, inplace=True, files=journal.folder, journal=journal
                )
            with clock("save"):
                write_model(smaller, out, prepared.plan)
        return clock.seconds

    return Run(
        lambda: forecast_applying(subject.model, prepared.plan, curvature, timer=time.process_time),
        doing,
    )


def refine_run(options: Options, subject: Subject, settings: Settings) -> Run:
    """Of a model without shared bases."""
    calibration, test = _data(options, subject)
    run, prepared = _without_sharing(options, subject, settings)
    smaller, training = run.carried_out(prepared), replace(subject.refinement, steps=STEPS)

    def doing(place: Path) -> Mapping[str, float]:
        out, clock = place / "out", Clock(timer=time.process_time)
        with kept(out, {}, {}, say=print) as journal:
            found = replace(run, clock=clock, journal=journal).refined(smaller, training)
            with clock("save"):
                write_model(found.model, out, prepared.plan)
            delivered(subject.model, prepared.plan, test, out, clock=clock, loss=subject.loss)
        return clock.seconds

    def expecting() -> Forecast:
        return forecast_refinement(
            smaller, subject.model, calibration, training, test, loss=subject.loss, timer=time.process_time
        )

    return Run(expecting, doing)


def compare_run(options: Options, subject: Subject, settings: Settings) -> Run:
    calibration, _ = _data(options, subject)

    def doing(_: Path) -> Mapping[str, float]:
        clock = Clock(timer=time.process_time)
        graph = Pipeline(subject.model, calibration, settings, subject.loss, clock).priced()[1]
        size = len(graph.layers)
        with clock("pairs"):
            graph.price_pairs()
        with clock("race"):
            commands.race(graph, settings, [size // 2, size][:BASES], "group", RACED)
        return clock.seconds

    def expecting() -> Forecast:
        return forecast_race(
            subject.model,
            calibration,
            settings,
            "group",
            len(RACED) * BASES,
            loss=subject.loss,
            timer=time.process_time,
        )

    return Run(expecting, doing, "race")


def evaluate_run(options: Options, subject: Subject, settings: Settings) -> Run:
    _, test = _data(options, subject)
    pair = subject.loss.compares

    def doing(_: Path) -> Mapping[str, float]:
        clock = Clock(timer=time.process_time)
        with clock("evaluate"):
            if pair:
                evaluate_pair(subject.model, subject.model, test, loss=subject.loss)
            else:
                evaluate(subject.model, test, loss=subject.loss)
        return clock.seconds

    reference = subject.model if pair else None
    return Run(
        lambda: forecast_evaluation(
            subject.model, test, reference=reference, loss=subject.loss, timer=time.process_time
        ),
        doing,
    )


def demo_run(options: Options) -> Run:
    def doing(place: Path) -> Mapping[str, float]:
        clock = Clock(timer=time.process_time)
        with clock("demo"):
            demo.run(Console(quiet=True), options.keep, place / "out")
        return clock.seconds

    return Run(lambda: demo.forecast_demo(options.keep, timer=time.process_time), doing)


def sweep_run(options: Options, settings: Settings) -> Run:
    """Two published methods at two sizes. Its forecast is of the clock on the wall: the processor's part is taken."""
    model = {"stories260K": options.data / "stories260K", "embedded": Path(str(MODEL))}[options.model]
    stories = (options.data / "text" / "tinystories_train_head_2MiB.txt").read_text(encoding="utf-8")
    text = Path(tempfile.mkdtemp()) / "text.txt"
    text.write_text(stories[: TEXT[options.model]])
    common = {
        "model": str(model.resolve()),
        "data": str(text),
        "test_data": None,
        "sequence": 256,
        "batch_size": 8,
        "samples": options.samples,
        "refine": 0,
    }
    cells = grid(common, settings, (options.keep, options.keep - 0.1), ("auto",), SWEPT)

    def expecting() -> Forecast:
        wall, processor = time.perf_counter(), time.process_time()
        expected = forecast_sweep(cells)
        share = (time.process_time() - processor) / (time.perf_counter() - wall)
        return replace(expected, seconds={step: share * value for step, value in expected.seconds.items()})

    def doing(place: Path) -> Mapping[str, float]:
        clock = Clock(timer=time.process_time)
        with clock("sweep"):
            rows = sweep(cells, compress_cell, place / "out")
        assert not any("error" in row for row in rows)
        return clock.seconds

    return Run(expecting, doing)


def _data(options: Options, subject: Subject) -> tuple[Sequence[Batch], Sequence[Batch]]:
    return list(subject.calibration)[: options.samples], list(subject.test)[: options.test_samples]


def prepared_run(options: Options) -> Run:
    settings = Settings(keep=options.keep, solver=options.solver, time_limit=options.time_limit, rounds=options.rounds)
    if options.command == "demo":
        return demo_run(options)
    if options.command == "sweep":
        return sweep_run(options, settings)
    subject = SUBJECTS[options.model](options.data)
    settings = replace(settings, include=options.include or subject.include, draws=subject.draws)
    of = {
        "compress": compress_run,
        "measure": measure_run,
        "plan": plan_run,
        "apply": apply_run,
        "refine": refine_run,
        "compare": compare_run,
        "evaluate": evaluate_run,
    }[options.command]
    return of(options, subject, settings)


def measured(options: Options) -> Row:
    run = prepared_run(options)
    started = time.process_time()
    expected = run.expecting()
    probing = time.process_time() - started
    with watched() as (place, disk):
        started = time.perf_counter()
        seconds = run.doing(place)
        wall, most = time.perf_counter() - started, disk.stop()
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    searched = expected.search if run.search else 0.0
    compared = sum(value for step, value in seconds.items() if step != run.search)
    return {
        "asked": json.loads(json.dumps(options.asked())),
        "expected": expected.report(),
        "happened": {
            "seconds": seconds,
            "total_seconds": sum(seconds.values()),
            "wall_seconds": wall,
            "memory_bytes": memory,
            "disk_bytes": most,
            "probing_seconds": probing,
        },
        "ratio": {
            "time": (expected.total - searched) / compared,
            "memory": expected.memory / memory,
            **({"disk": expected.disk / most} if most > SMALL else {}),
        },
    }


@contextmanager
def watched() -> Iterator[tuple[Path, Disk]]:
    """A folder and what grows in it; temporary folders made meanwhile lie there, too."""
    with tempfile.TemporaryDirectory() as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield Path(folder), Disk(Path(folder))
        finally:
            tempfile.tempdir = before


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    rows: list[Row] = json.loads(options.output.read_text()) if options.output.exists() else []
    asked = json.loads(json.dumps(options.asked()))
    if any(row["asked"] == asked for row in rows):
        print(f"there already: {asked}")
        return
    row = measured(options)
    print(json.dumps(row, indent=1))
    rows = json.loads(options.output.read_text()) if options.output.exists() else []  # others may have written
    write_report([*rows, row], options.output)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
