"""Tables for the terminal: a plan, its coloring as a grid, dense against compressed, a race of solvers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from geocolor.coloring_grid import Cell, ColoringGrid, coloring_grid, ink_on
from geocolor.forecast import Forecast
from geocolor.plans import Plan, PlannedClass
from geocolor.quantities import MISSING, change, count, duration, number, percent, size
from geocolor.races import entries
from geocolor.summary import CLOSED_GAP, damage_unit, plural, summary

_PRIVATE = "#1a1a1a on #d8d8d8"
_DENSE = "#1a1a1a on #ffffff"
_ANY_WIDTH = 100_000


def plan_table(plan: Plan) -> Table:
    """The classes of a plan: every shared one by its letter, private and dense layers summed up, and the whole."""
    grid = coloring_grid(plan)
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title="\n".join(" · ".join(phrases) for phrases in (summary(plan)[:2], summary(plan)[2:])),
        title_justify="left",
        title_style="bold",
        caption=f"damage: predicted, in {damage_unit(plan)}",
        caption_justify="left",
    )
    table.add_column("class", no_wrap=True)
    table.add_column("basis", no_wrap=True)
    table.add_column("layers", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("damage", justify="right", no_wrap=True)
    shared = {cell.planned.layers[0]: cell for _, _, cell in grid.cells() if cell.letter}
    for cell in sorted(shared.values(), key=lambda cell: (len(cell.letter or ""), cell.letter or "")):
        label = Text(f" {cell.letter} ", style=_style(cell))
        table.add_row(label, cell.ranks, _layers(grid, cell), *_sums(plan, [cell.planned]))
    for kinds, name in ((("in", "out", "both"), "private"), (("dense",), "dense")):
        classes = [cls for cls in plan.classes if len(cls.layers) == 1 and cls.kind in kinds]
        if classes:
            cell_style = _PRIVATE if name == "private" else _DENSE
            layers = plural(len(classes), "layer")
            table.add_row(Text(f" {name} ", style=cell_style), "", layers, *_sums(plan, classes))
    table.add_section()
    table.add_row("all", "", plural(len(plan.layers), "layer"), *_sums(plan, plan.classes), style="bold")
    return table


def forecast_table(expected: Forecast) -> Table:
    """Time by step, memory and disk that a command is expected to take."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("expected", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for step, seconds in expected.seconds.items():
        table.add_row(step, duration(seconds))
    table.add_section()
    within = f", {duration(expected.search)} of them for the search at most" if expected.search else ""
    table.add_row("time", f"{duration(expected.total)}{within}", style="bold")
    table.add_row("memory, at the peak", size(expected.memory), style="bold")
    table.add_row("disk, at most", size(expected.disk), style="bold")
    return table


def plan_grid(plan: Plan) -> "PlanGrid":
    """The coloring as a grid of block × matrix kind. Fits the terminal: ranks are left out where there is no room."""
    return PlanGrid(coloring_grid(plan))


@dataclass(frozen=True)
class PlanGrid:
    """A renderable of rich. Cells of a shared class carry its letter, so the grid reads without colors too."""

    grid: ColoringGrid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shapes: list[tuple[Callable[[Cell], str], bool]] = [
            (_one_line, False),
            (_two_lines, False),
            (_two_lines, True),
            (_letter, True),
        ]
        tables = [(self._table(write, numbered), numbered) for write, numbered in shapes]
        fitting = (pair for pair in tables if _width(console, pair[0]) <= options.max_width)
        table, numbered = next(fitting, tables[-1])
        yield table
        yield Text("same letter and color: one shared basis · grey: its own basis · white: dense", style="dim")
        if numbered:
            yield Text(" · ".join(f"{i} {kind}" for i, kind in enumerate(self.grid.kinds, start=1)), style="dim")

    def _table(self, write: Callable[[Cell], str], numbered: bool) -> Table:
        table = Table(box=None, padding=0, pad_edge=False)
        table.add_column("block " if self.grid.kinds else "", justify="right", no_wrap=True, header_style="bold")
        for index, kind in enumerate(self.grid.kinds or ("",), start=1):
            heading = str(index) if numbered and kind else kind.replace(".", ". \n ")
            table.add_column(Text(f" {heading} "), justify="center", vertical="bottom", no_wrap=True, header_style="")
        for row in self.grid.rows:
            cells = [_padded(cell, write) if cell else "" for cell in row.cells]
            table.add_row(Text(f"{row.label} "), *cells)
        return table


def _width(console: Console, table: Table) -> int:
    """Columns that the table would like to have."""
    return console.measure(table, options=console.options.update(width=_ANY_WIDTH)).maximum


def comparison_table(report: Mapping[str, Any]) -> Table:
    """Dense against compressed, and the change in percent.

    Keys, each optional: `parameters`, `model_parameters`, `bytes_on_disk`, `loss`, `perplexity`, `bits_per_byte`,
    `latency_seconds` and `accuracy` (fractions; their change is in points), each of the compressed model and with
    `_dense` at its end of the dense one; `damage_predicted`, `divergence` and `damage_measured`; `loss_unit`. What
    neither model has is left out. `metrics` and `metrics_dense` map further names to numbers.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("dense", "compressed", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    unit = report.get("loss_unit")
    loss = f"loss ({unit})" if unit else "loss"
    rows: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("parameters", "parameters in scope", count),
        ("model_parameters", "parameters of the model", count),
        ("bytes_on_disk", "size on disk", size),
        ("loss", loss, lambda value: number(value, 4)),
        ("perplexity", "perplexity", lambda value: number(value, 4)),
        ("bits_per_byte", "bits per byte", lambda value: number(value, 4)),
        ("accuracy", "accuracy", percent),
        ("latency_seconds", "time of a forward pass", duration),
    ]
    for key, name, write in rows:
        _add_pair(table, name, report.get(f"{key}_dense"), report.get(key), write, points=key == "accuracy")
    dense_metrics = report.get("metrics_dense") or {}
    for name, value in (report.get("metrics") or {}).items():
        _add_pair(table, name, dense_metrics.get(name), value, lambda value: number(value, 4))
    _add_damage(table, report)
    return table


def race_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Solvers by budget, the best cost of each K in bold.

    Every row is one run: `solver`, `K`, `cost` (inf or None: no coloring) and `seconds`; `lower_bound`, `gap`,
    `status` (shown where there is no cost) and `classes` where they are known.
    """
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("K", justify="right", no_wrap=True)
    table.add_column("solver", no_wrap=True)
    for heading in ("cost", "above\nbest", "lower\nbound", "gap", "classes", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    runs = sorted(entries(rows), key=lambda run: run.K)
    for K, group in groupby(runs, key=lambda run: run.K):
        table.add_section()
        for index, run in enumerate(sorted(group, key=lambda run: run.cost)):
            table.add_row(
                str(K) if index == 0 else "",
                run.solver,
                number(run.cost, 4) if math.isfinite(run.cost) else run.status.replace("_", " ") or MISSING,
                "best" if run.excess == 0 else percent(run.excess, signed=True),
                number(run.lower_bound, 4) if math.isfinite(run.lower_bound) else MISSING,
                _gap(run.gap) if math.isfinite(run.cost) else MISSING,
                MISSING if run.classes is None else str(run.classes),
                duration(run.seconds),
                style="bold" if run.excess == 0 else "",
            )
    return table


def _gap(gap: float) -> str:
    if not math.isfinite(gap):
        return MISSING
    return "optimal" if gap <= CLOSED_GAP else percent(gap)


def _sums(plan: Plan, classes: Iterable[PlannedClass]) -> tuple[str, str, str]:
    """Parameters that remain, the fraction of the dense ones that they are, and the damage predicted."""
    classes = list(classes)
    names = [name for cls in classes for name in cls.layers]
    dense = sum(plan.layers[name].m * plan.layers[name].n for name in names)
    kept = sum(cls.parameters for cls in classes)
    damage = math.fsum(value for cls in classes for value in cls.damage.values())
    return count(kept), percent(kept / dense), number(damage)


def _layers(grid: ColoringGrid, of: Cell) -> str:
    """The layers of a class, blocks run together: "blocks 0–2: q_proj, k_proj; block 1: o_proj"."""
    rows: dict[str, list[str]] = {}
    position = {row.label: index for index, row in enumerate(grid.rows)}
    alone = []
    for row, column, cell in grid.cells():
        if cell.planned is of.planned:
            if row.alone:
                alone.append(row.label)
            else:
                rows.setdefault(grid.kinds[column], []).append(row.label)
    kinds: dict[tuple[str, ...], list[str]] = {}
    for kind, blocks in rows.items():
        kinds.setdefault(tuple(blocks), []).append(kind)
    parts = [
        f"{'block' if len(blocks) == 1 else 'blocks'} {_ranges(blocks, position)}: {', '.join(names)}"
        for blocks, names in kinds.items()
    ]
    return "; ".join([*alone, *parts])


def _ranges(labels: Sequence[str], position: Mapping[str, int]) -> str:
    runs: list[list[str]] = []
    for label in labels:
        if runs and position[label] == position[runs[-1][-1]] + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _one_line(cell: Cell) -> str:
    return f"{cell.letter} {cell.ranks}" if cell.letter else cell.ranks


def _two_lines(cell: Cell) -> str:
    kind, _, rank = cell.ranks.partition(" ")
    return f"{cell.letter} {kind}\n{rank}" if cell.letter else f"{kind}\n{rank}"


def _letter(cell: Cell) -> str:
    return cell.letter or ("=" if cell.planned.kind == "dense" else "·")


def _padded(cell: Cell, write: Callable[[Cell], str]) -> Padding:
    return Padding(Text(write(cell), justify="center"), (0, 1), style=_style(cell))


def _style(cell: Cell) -> str:
    if cell.color:
        return f"{ink_on(cell.color)} on {cell.color}"
    return _DENSE if cell.planned.kind == "dense" else _PRIVATE


def _add_pair(
    table: Table,
    name: str,
    before: float | None,
    after: float | None,
    write: Callable[[float | None], str],
    *,
    points: bool = False,
) -> None:
    if before is None and after is None:
        return
    difference = change(before, after)
    if points and before is not None and after is not None:
        difference = percent(after - before, signed=True).replace("%", "points")
    table.add_row(name, write(before), write(after), difference)


def _add_damage(table: Table, report: Mapping[str, Any]) -> None:
    """How far the model moves: predicted, measured, and the latter relative to the former.

    The divergence from the dense model is what is predicted; where it is not known, the rise of the loss stands for it.
    """
    predicted, rise, distance = (report.get(key) for key in ("damage_predicted", "damage_measured", "divergence"))
    if predicted is None and rise is None and distance is None:
        return
    table.add_section()
    if predicted is not None:
        table.add_row("damage predicted", "", number(predicted), "")
    if distance is not None:
        table.add_row("damage measured", "", number(distance), _against(predicted, distance))
    if rise is not None:
        name = "damage measured" if distance is None else "  as rise of the loss"
        table.add_row(name, "", number(rise), _against(predicted, rise) if distance is None else "")


def _against(predicted: float | None, measured: float) -> str:
    if not predicted:
        return ""
    excess = measured / predicted - 1
    return f"{percent(abs(excess))} {'above' if excess >= 0 else 'below'} predicted"
