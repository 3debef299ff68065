"""A grid of runs, one row each: here one after the other, or on many machines by Ray; no row is lost or doubled.

Every cell has a file of its own, named by the digest of all that it asks for and written whole by this process alone.
A sweep that is killed, typed again, runs the cells without a file; what a machine was doing when it died is run again
elsewhere.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geocolor.atomic import write_atomically
from geocolor.json_files import read_json

Cell = Mapping[str, Any]
"""What one run is asked for, as JSON can hold it."""
Row = dict[str, Any]
Work = Callable[[Cell], Row]

#: How often Ray begins a cell again whose process has ended: a machine may go, but memory may also be too small for it.
TRIALS = 3

CELLS, RESULTS = "cells", "results.jsonl"


def sweep(
    cells: Sequence[Cell],
    work: Work,
    folder: Path,
    *,
    ray: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    failed: Callable[[Cell, str], Row] = lambda cell, why: {"error": why},
) -> list[Row]:
    """`work` done for every cell that has no row yet; all rows of these cells, in their order.

    `folder` holds the rows: `results.jsonl`, those of earlier sweeps too. With `ray`, the address of a cluster ("auto"
    for the one that runs here, "local" for one started here and ended afterwards), cells run wherever there is a CPU;
    `work` must be importable there. A row with an "error" is a cell that said no, and is asked again next time; one
    whose process ends `TRIALS` times more is such a row, which `failed` makes.
    """
    digests = list(dict.fromkeys(map(digest, cells)))
    by_digest = dict(zip(map(digest, cells), cells, strict=True))
    rows = _recorded(folder)
    left = {key: by_digest[key] for key in digests if _open(rows, key)}
    if len(left) < len(digests):
        say(f"{len(digests) - len(left)} of {len(digests)} cells are there already")
    _write_results(folder, rows, digests)
    for done, (key, row) in enumerate(_by_ray(left, work, ray, failed) if ray else _here(left, work), start=1):
        rows[key] = row
        document = {"cell": by_digest[key], "row": row, "checksum": digest(row)}
        text = json.dumps(document, indent=1, default=str) + "\n"
        _write(folder / CELLS / f"{key}.json", text)
        _write_results(folder, rows, digests)
        say(f"{done} of {len(left)}: {row.get('error') or 'done'}")
    return [rows[key] for key in digests]


def pending(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells that have no row yet, each once."""
    rows = _recorded(folder)
    return [cell for key, cell in {digest(cell): cell for cell in cells}.items() if _open(rows, key)]


def _open(rows: Mapping[str, Row], key: str) -> bool:
    return "error" in rows.get(key, {"error": ""})


def digest(cell: Cell) -> str:
    """The same for cells that ask for the same, and for rows that say the same."""
    return hashlib.sha256(json.dumps(cell, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _here(pending: Mapping[str, Cell], work: Work) -> Iterator[tuple[str, Row]]:
    for key, cell in pending.items():
        yield key, work(cell)


def _by_ray(
    pending: Mapping[str, Cell], work: Work, address: str, failed: Callable[[Cell, str], Row]
) -> Iterator[tuple[str, Row]]:
    try:
        import ray
    except ImportError as error:
        raise ImportError("a sweep over machines needs Ray: pip install 'geocolor[ray]', or leave --ray out") from error
    if not pending:
        return
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=None if address == "local" else address, log_to_driver=False)
    try:
        remote = ray.remote(num_cpus=1, max_retries=TRIALS)(work)
        running = {remote.remote(cell): key for key, cell in pending.items()}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            key = running.pop(done)
            try:
                row: Row = ray.get(done)
            except ray.exceptions.RayTaskError:  # raised by the work itself
                raise
            except ray.exceptions.RayError as error:
                row = failed(pending[key], f"its process ended {TRIALS + 1} times, for want of memory perhaps: {error}")
            yield key, row
    finally:
        if ours:
            ray.shutdown()


def _recorded(folder: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for file in sorted((folder / CELLS).glob("*.json")):
        document = read_json(file, "Delete it: its cell is then run again")
        whole = isinstance(document, dict) and set(document) == {"cell", "row", "checksum"}
        if not whole or not isinstance(document["row"], dict) or document["checksum"] != digest(document["row"]):
            raise ValueError(f"{file} is no row of a sweep, or damaged: delete it, and its cell is run again")
        rows[file.stem] = document["row"]
    return rows


def _write_results(folder: Path, rows: Mapping[str, Row], first: Sequence[str]) -> None:
    """One line for every row: those of this sweep in its order, then all others."""
    order = [key for key in first if key in rows] + [key for key in rows if key not in set(first)]
    _write(folder / RESULTS, "".join(json.dumps(rows[key], default=str) + "\n" for key in order))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text))
