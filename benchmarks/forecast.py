"""Forecast against what happened: time of the processor by step, peak memory of the process, most bytes on disk.

    python -m benchmarks.forecast stories260K --data ../shared/bench --json forecast.json

One model a process, since memory is counted from its start. Times are those of the processor, not of the clock on the
wall, so that other work on the machine does not count.
"""

import json
import resource
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from benchmarks.subjects import SUBJECTS, Name
from geocolor.backend import plan_of
from geocolor.digests import digest_of
from geocolor.forecast import Forecast, forecast
from geocolor.journal import journal_folder, kept
from geocolor.pipeline import Clock, Settings, carried_out, delivered, prepare
from geocolor.report import write_report


@dataclass(frozen=True)
class Options:
    """Forecast a run of `geocolor compress`, then do it."""

    model: Positional[Name]
    """Model and data."""
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
    json: Path | None = None
    """Write the figures there."""


class Disk:
    """Watches folders grow, in a thread."""

    def __init__(self, *folders: Path) -> None:
        self.most = 0
        self._folders, self._over = folders, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, sum(map(size_of, self._folders)))

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return max(self.most, sum(map(size_of, self._folders)))


def size_of(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue  # gone meanwhile
    return total


def run(options: Options) -> dict[str, Any]:
    subject = SUBJECTS[options.model](options.data)
    settings = Settings(
        keep=options.keep,
        solver=options.solver,
        time_limit=options.time_limit,
        rounds=options.rounds,
        include=options.include or subject.include,
    )
    settings = replace(settings, draws=subject.draws)
    calibration, test = list(subject.calibration)[: options.samples], list(subject.test)[: options.test_samples]
    started = time.process_time()
    expected = forecast(subject.model, calibration, settings, test=test, loss=subject.loss, timer=time.process_time)
    probing = time.process_time() - started
    with tempfile.TemporaryDirectory() as place:
        out, clock = Path(place) / "out", Clock(timer=time.process_time)
        disk = Disk(Path(place))
        basis = {"data": digest_of(calibration)}
        with kept(out, basis, asdict(settings), say=print) as journal:
            prepared = prepare(subject.model, calibration, settings, loss=subject.loss, clock=clock, journal=journal)
            smaller = carried_out(prepared, subject.model, calibration, loss=subject.loss, clock=clock, journal=journal)
            plan = plan_of(smaller) or prepared.plan
            delivered(smaller, subject.model, plan, test, out, clock=clock, loss=subject.loss)
        assert not journal_folder(out).exists()
        return compared(expected, clock, disk.stop()) | {"model": options.model, "probing_seconds": probing}


def compared(expected: Forecast, clock: Clock, disk: int) -> dict[str, Any]:
    """Both sides, and expected over happened."""
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = sum(clock.seconds.values())
    return {
        "expected": expected.report(),
        "happened": {"seconds": clock.seconds, "total_seconds": seconds, "memory_bytes": memory, "disk_bytes": disk},
        "ratio": {
            "time": expected.total / seconds,
            "memory": expected.memory / memory,
            "disk": expected.disk / disk,
        },
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    figures = run(options)
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        write_report(figures, options.json)


if __name__ == "__main__":
    main()
