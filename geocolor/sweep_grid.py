"""Compression over a grid of sizes, solvers and presets: the cells of a sweep, and what each of them does."""

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from geocolor.atomic import refuse_occupied
from geocolor.forecast import Forecast
from geocolor.preflight import check_settings
from geocolor.presets import GEO_SHARING, SEARCHED
from geocolor.quantities import duration, number, percent
from geocolor.report import Report, finite
from geocolor.settings import Settings
from geocolor.sweep import Cell, Row, pending, sweep


def grid(
    common: Mapping[str, Any],
    settings: Settings,
    keep: Sequence[float],
    solvers: Sequence[str],
    presets: Sequence[str],
) -> list[Cell]:
    """A cell for every combination; published methods search nothing, and have one cell whatever the solvers.

    `common` is what all cells share beside the settings: model, data, batches. Raises `ValueError` for settings that no
    model can meet, before anything runs.
    """
    for option, values in (("keep", keep), ("solver", solvers), ("preset", presets)):
        if not values:
            raise ValueError(f"--{option} names nothing, so the sweep has no cell: name at least one")
    cells: list[Cell] = []
    for preset in presets:
        for size in keep:
            for solver in solvers if preset in (SEARCHED, GEO_SHARING) else ("auto",):
                one = replace(settings, preset=preset, keep=size, solver=solver)
                check_settings(one)
                cells.append({**common, "settings": asdict(one)})
    return cells


def compress_cell(cell: Cell, dry_run: bool = False) -> Row:
    """Compress, save, load again and compare as `geocolor compress` does; the figures stay, the model does not.

    What refuses or fails (a budget out of reach, say, or memory) is a row too, with an "error". With `dry_run` the row
    is what is expected.
    """
    from geocolor import commands  # where a machine of a cluster begins
    from geocolor.refinement import RefineSettings

    asked = _asked(cell)
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = commands.compress(
                Console(quiet=True),
                cell["model"],
                cell["data"],
                cell["test_data"],
                Path(folder) / "model",
                _settings(cell),
                cell["sequence"],
                cell["batch_size"],
                cell["samples"],
                False,
                RefineSettings(steps=cell["refine"]) if cell["refine"] else None,
                dry_run,
            )
    except (ValueError, OSError) as error:
        return {**asked, "error": str(error)}
    except Exception as error:
        return {**asked, "error": f"{type(error).__name__}: {error}"}
    if dry_run:
        return report
    figures = {key: value for key, value in report.items() if key not in ("plan", "model", "figure")}
    row: Row = finite({**figures, **asked})
    return row


def _settings(cell: Cell) -> Settings:
    told: dict[str, Any] = cell["settings"]
    return Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})  # type: ignore[arg-type]


def _asked(cell: Cell) -> Row:
    """What its row says of a cell whatever comes of it."""
    settings = _settings(cell)
    return {
        "model": cell["model"],
        "preset": settings.preset,
        "keep": settings.keep,
        "max_flops": settings.max_flops,
        "solver_asked": settings.solver,
        "seed": settings.seed,
        "refine": cell["refine"],
    }


def forecast_sweep(cells: Sequence[Cell]) -> Forecast:
    """Of these cells one after the other: of each preset, one in the middle is foreseen and stands for all of it.

    Raises `ValueError` where it cannot be (`geocolor.forecast`).
    """
    by_preset: dict[str, list[Cell]] = {}
    for cell in cells:
        by_preset.setdefault(cell["settings"]["preset"], []).append(cell)
    seconds: dict[str, float] = {}
    search, memory, disk = 0.0, 0, 0
    for preset, alike in by_preset.items():
        started = time.perf_counter()
        row = compress_cell(alike[len(alike) // 2], dry_run=True)
        if "error" in row:
            raise ValueError(row["error"])
        opening = time.perf_counter() - started  # every cell loads the model and foresees what it takes
        seconds[f"{len(alike)} × {preset}"] = len(alike) * (row["total_seconds"] + opening)
        search += len(alike) * row["search_seconds_at_most"]
        memory, disk = max(memory, row["memory_bytes"]), max(disk, row["disk_bytes"])
    return Forecast(seconds, search, memory, disk)


def run_sweep(console: Console, cells: Sequence[Cell], out: Path, ray: str | None, dry_run: bool = False) -> Report:
    from geocolor import commands

    refuse_occupied(out, overwrite=True)
    left = pending(cells, out)
    if dry_run:
        return commands.say_expected(console, forecast_sweep(left), out)
    if left and ray is None and not any(cell["settings"]["preset"] == GEO_SHARING for cell in left):
        with contextlib.suppress(ValueError):  # a cell that cannot be run says so in its row
            commands.announce(out, lambda: forecast_sweep(left))
    rows = sweep(
        cells,
        compress_cell,
        out,
        ray=ray,
        say=lambda line: console.print(line, highlight=False, markup=False),
        failed=lambda cell, why: {**_asked(cell), "error": why},
    )
    console.print(sweep_table(rows))
    if all("error" in row for row in rows):
        raise ValueError(f"no cell of the sweep could be run; the last one said: {rows[-1]['error']}")
    console.print(f"  {out / 'results.jsonl'}", highlight=False, soft_wrap=True)
    return {"cells": len(rows), "rows": rows, "results": str(out / "results.jsonl")}


def sweep_table(rows: Sequence[Row]) -> Table:
    """One line for every row."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("preset", "solver", "keep", "kept", "FLOPs", "predicted", "divergence", "damage", "time"):
        table.add_column(heading, justify="left" if heading in ("preset", "solver") else "right", no_wrap=True)
    for row in rows:
        start = (row["preset"], row["solver_asked"], number(row["keep"]))
        if "error" in row:
            table.add_row(*start, "–", "–", "–", "–", "–", "–")
            continue
        flops = row["flops_per_position"] / row["flops_per_position_dense"]
        table.add_row(
            *start,
            percent(row["kept"]),
            percent(flops),
            number(row["damage_predicted"]),
            number(row["divergence"]),
            number(row["damage_measured"]),
            duration(sum(row["seconds"].values())),
        )
    return table


def absolute(source: str | None) -> str | None:
    """A file or folder by its whole path, so that it is found from any folder; other names as they are."""
    return str(Path(source).resolve()) if source is not None and Path(source).exists() else source
