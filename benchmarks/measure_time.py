"""What measuring costs beside the passes it rides on: `measure` against a plain forward and backward, in pairs.

    python -m benchmarks.measure_time --data ../shared/bench

Both run over the same batches, in turns within one process; the plain run differentiates all parameters, as training
does. Seconds are those of the processor on one thread, so that other work on the machine hardly counts.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from benchmarks.subjects import SUBJECTS, Name, Subject
from geocolor.atomic import write_atomically
from geocolor.curvature import measure
from geocolor.layers import find_layers
from geocolor.losses import Batch
from geocolor.modes import evaluating

Row = dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """Time of `measure` relative to a plain forward and backward over the same batches."""

    data: Path = Path("../shared/bench")
    """Folder of the models and data."""
    only: tuple[Name, ...] = ("stories260K", "kwt1", "resnet56", "embedded", "minilm")
    """Models to measure."""
    batches: int = 4
    """Calibration batches of a run, spread evenly."""
    pairs: int = 5
    """How often both are run."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/measure_time.json")
    """Where results go; rows of models that are not run stay."""


def compared(subject: Subject, batches: Sequence[Batch], pairs: int) -> Row:
    """Seconds of both in turns, after one run of each that does not count, and their ratio in every pair."""
    model, loss = subject.model.eval(), subject.loss
    layers = find_layers(model, subject.include)

    def plain() -> None:
        with evaluating(model, gradients=True):
            for index, batch in enumerate(batches):
                pseudo, _ = loss.sampled(model, batch, torch.Generator().manual_seed(index))
                pseudo.backward()
                model.zero_grad()

    def measured() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few samples
            measure(model, batches, loss, layers=layers)

    found = [(_seconds(plain), _seconds(measured)) for _ in range(pairs + 1)][1:]
    ratios = [mine / theirs for theirs, mine in found]
    return {
        "model": subject.name,
        "batches": len(batches),
        "pairs": pairs,
        "plain": round(statistics.median(theirs for theirs, _ in found), 4),
        "measure": round(statistics.median(mine for _, mine in found), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "torch": torch.__version__,
    }


def _seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def _write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(rows, indent=1) + "\n"))


def main() -> None:
    arguments, console = tyro.cli(Arguments, description=__doc__), Console()
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    for name in arguments.only:
        try:
            subject = SUBJECTS[name](arguments.data)
        except FileNotFoundError as error:
            console.print(f"[yellow]{name} is left out: {error}")
            continue
        data = subject.calibration  # sorted by length, where lengths differ
        chosen = [data[(2 * k + 1) * len(data) // (2 * arguments.batches)] for k in range(arguments.batches)]
        row = compared(subject, chosen, arguments.pairs)
        rows = [each for each in rows if each["model"] != name] + [row]
        _write(rows, arguments.output)
        console.print(", ".join(f"{key} {value}" for key, value in row.items()), highlight=False)


if __name__ == "__main__":
    main()
