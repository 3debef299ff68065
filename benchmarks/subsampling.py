"""How much data does the curvature need? Plans from a fraction of the statistics, and the bootstrap that foretells it.

    python -m benchmarks.subsampling --data ../shared/bench -o benchmarks/results/subsampling.json

Curvature is measured on all calibration batches and on each of several disjoint fractions of them, which costs so much
less. Every curvature makes a plan, carried out and measured on the same test data: its damage is compared with that of
the plan of all the data. Before that, the bootstrap over parts of all the data says whether the plan is stable. Times
are the processor's.
"""

import json
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from benchmarks.subjects import SUBJECTS, Name, Subject
from geocolor.atomic import write_atomically
from geocolor.curvature import Curvature, measure
from geocolor.divergence import divergence_of
from geocolor.layers import find_layers
from geocolor.pipeline import Pipeline
from geocolor.settings import Settings
from geocolor.stability import bootstrap, parts

Row = dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """Damage of plans made from a fraction of the statistics."""

    data: Path = Path("../shared/bench")
    """Folder with stories260K/ and text/; the embedded model needs none."""
    only: tuple[Name, ...] = ("stories260K",)
    """Models to run."""
    keep: tuple[float, ...] = (0.9, 0.8)
    """Fractions of the parameters in scope to keep."""
    cut: int = 4
    """The statistics are measured on one batch in so many."""
    trials: int = 2
    """Disjoint fractions that are tried, at most `cut`."""
    resamples: int = 8
    """Draws of the bootstrap."""
    test_batches: int = 8
    """Test batches that damage is measured on, spread evenly."""
    rounds: int = 2
    """Looks from smaller models that move each curvature, as `geocolor compress` has them; 0 for none."""
    time_limit: float = 20.0
    """Seconds for each search."""
    solver: str = "greedy"
    """Solver of the search."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/subsampling.json")
    """Where results go."""


def run(arguments: Arguments, console: Console) -> list[Row]:
    rows: list[Row] = []
    for name in arguments.only:
        subject = SUBJECTS[name](arguments.data)
        batches = list(subject.calibration)
        layers = find_layers(subject.model, subject.include)
        whole, seconds = _measured(subject, batches)
        fractions = [
            _measured(subject, batches[first :: arguments.cut]) for first in range(min(arguments.trials, arguments.cut))
        ]
        shards = parts(subject.model, batches, layers, subject.loss, draws=subject.draws)
        for keep in arguments.keep:
            stability = bootstrap(
                subject.model, shards, keep, resamples=arguments.resamples, time_limit=arguments.time_limit
            )
            console.print(f"{name}, keep {keep:g}: {stability}", highlight=False)
            damage = _damage(subject, whole, keep, arguments)
            found = [_damage(subject, curvature, keep, arguments) for curvature, _ in fractions]
            row: Row = {
                "model": name,
                "keep": keep,
                "samples": whole.samples,
                "damage": damage,
                "damage_of_fractions": found,
                "moved": [each / damage - 1 for each in found],
                "cut": arguments.cut,
                "seconds": seconds,
                "seconds_of_fractions": [spent for _, spent in fractions],
                "bootstrap_spread": stability.spread,
                "bootstrap_regrets": stability.regrets,
                "bootstrap_agreement": float(np.mean(stability.agreements)),
                "stable": stability.stable,
            }
            moved = ", ".join(f"{100 * each:+.1f} %" for each in row["moved"])
            console.print(
                f"  damage {damage:.4g} from {whole.samples} samples ({seconds:.1f} s); from one in {arguments.cut}: "
                f"{moved} ({row['seconds_of_fractions'][0]:.1f} s)",
                highlight=False,
            )
            rows.append(row)
            text = json.dumps({"settings": _settings(arguments), "rows": rows}, indent=1) + "\n"
            write_atomically(arguments.output, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]
    return rows


def _measured(subject: Subject, batches: list[Any]) -> tuple[Curvature, float]:
    layers = find_layers(subject.model, subject.include)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(
            subject.model, batches, subject.loss, layers=layers, draws=subject.draws, damping=subject.damping
        )
    return found, time.process_time() - started


def _damage(subject: Subject, curvature: Curvature, keep: float, arguments: Arguments) -> float:
    """Divergence on test data of the plan that this curvature makes, as `geocolor compress` would make it."""
    settings = replace(
        Settings(),
        keep=keep,
        include=subject.include,
        solver=arguments.solver,
        rounds=arguments.rounds,
        time_limit=arguments.time_limit,
    )
    run = Pipeline(subject.model, subject.calibration, settings, subject.loss)
    smaller = run.carried_out(run.prepared(curvature))
    step = max(len(subject.test) // arguments.test_batches, 1)
    return divergence_of(subject.model, smaller, subject.test[::step][: arguments.test_batches], subject.loss)


def _settings(arguments: Arguments) -> Row:
    return {key: value for key, value in vars(arguments).items() if key not in ("data", "output")}


if __name__ == "__main__":
    run(tyro.cli(Arguments, description=__doc__), Console())
