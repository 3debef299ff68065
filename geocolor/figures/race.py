"""A race of solvers as a picture: cost above the best found, and time, for every budget K."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from geocolor.figures.sheet import (
    BAND,
    INK,
    QUIET_INK,
    RULE,
    SERIES_COLORS,
    SERIES_MARKERS,
    TEXT,
    Sheet,
    check_suffix,
    line_height,
    plain_ticks,
    text_width,
    write_figure,
)
from geocolor.quantities import duration, number, percent, short
from geocolor.races import Entry, entries

MARGIN = 0.3
PANEL_HEIGHT = 2.9
GUTTER = 0.75
#: Percent below which the scale of the cost is linear.
LINEAR_BELOW = 0.1


def draw_race(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw solvers × K to a .png, .svg or .pdf file: above, how much dearer than the best found; below, seconds.

    Every row is one run: `solver`, `K`, `cost` (inf or None: no coloring), `seconds`, and `lower_bound` where one is
    proven; others are left aside.
    Raises `ValueError` without rows or for another suffix.
    """
    path = Path(path)
    check_suffix(path)
    write_figure(race_figure(rows).figure, path)


@dataclass(frozen=True)
class _Lane:
    """A solver's look and its place within the slot of a K."""

    solver: str
    color: str
    marker: str
    shift: float


def race_figure(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """The sheet of `draw_race`, not yet written."""
    runs = entries(rows)
    budgets = sorted({run.K for run in runs})
    solvers = list(dict.fromkeys(run.solver for run in runs))
    lanes = [
        _Lane(
            solver,
            SERIES_COLORS[i % len(SERIES_COLORS)],
            SERIES_MARKERS[i % len(SERIES_MARKERS)],
            0.8 * ((i + 0.5) / len(solvers) - 0.5),
        )
        for i, solver in enumerate(solvers)
    ]
    key_width = 0.35 + max(text_width(solver, TEXT + 1) for solver in [*solvers, "× no coloring"])
    panel = max(4.5, len(budgets) * max(0.9, 0.13 * len(solvers)))
    below = 3.5 * line_height(TEXT)
    height = MARGIN + line_height(14) + 0.45 + 2 * PANEL_HEIGHT + 0.55 + below + MARGIN
    sheet = Sheet(2 * MARGIN + GUTTER + panel + 0.25 + key_width, height)
    sheet.paragraph(MARGIN, MARGIN, ["Race of the solvers"], 14, weight="bold")

    top = MARGIN + line_height(14) + 0.45
    sheet.text(MARGIN, top - 0.1, "Cost above the best found (lower is better)", TEXT + 1, va="bottom", weight="bold")
    cost = sheet.axes(MARGIN + GUTTER, top, panel, PANEL_HEIGHT)
    missing = _draw_costs(cost, runs, budgets, lanes)
    _slots(cost, budgets)
    cost.set_xticks([])

    top += PANEL_HEIGHT + 0.55
    sheet.text(MARGIN, top - 0.1, "Time to solve", TEXT + 1, va="bottom", weight="bold")
    clock = sheet.axes(MARGIN + GUTTER, top, panel, PANEL_HEIGHT)
    _draw_times(clock, runs, budgets, lanes)
    _slots(clock, budgets)
    clock.set_xticks(range(len(budgets)), [_slot_label(runs, K) for K in budgets], fontsize=TEXT)
    clock.tick_params(axis="x", length=0)

    _draw_key(sheet, lanes, MARGIN + GUTTER + panel + 0.25, missing)
    return sheet


def _draw_costs(axes: Axes, runs: Sequence[Entry], budgets: list[int], lanes: list[_Lane]) -> bool:
    """Dots joined by a thin line for each solver; whether any run found no coloring."""
    found = [100 * run.excess for run in runs if run.excess is not None]
    highest = max([*found, LINEAR_BELOW])
    ceiling = highest * (3 if highest > LINEAR_BELOW else 1.3)
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.5)
    axes.set_ylim(-0.2 * LINEAR_BELOW, ceiling * (2 if highest > LINEAR_BELOW else 1.1))
    axes.axhline(0, color=QUIET_INK, linewidth=0.8, zorder=1)
    decades = range(round(math.log10(LINEAR_BELOW)), math.floor(math.log10(ceiling)) + 1)
    axes.yaxis.set_major_locator(FixedLocator([0, *(10.0**power for power in decades)]))
    plain_ticks(axes.yaxis, lambda value: "best" if value == 0 else f"+{short(value)} %")
    missing = False
    for lane in lanes:
        own = [run for run in runs if run.solver == lane.solver]
        solved = sorted((budgets.index(run.K), run.excess) for run in own if run.excess is not None)
        _draw_lane(axes, lane, [(slot, 100 * excess) for slot, excess in solved])
        for run in own:
            if run.excess is None:
                missing = True
                slot = budgets.index(run.K) + lane.shift
                axes.plot([slot], [ceiling], marker="x", color=lane.color, markersize=6, linestyle="none")
    return missing


def _draw_times(axes: Axes, runs: Sequence[Entry], budgets: list[int], lanes: list[_Lane]) -> None:
    axes.set_yscale("log")
    for lane in lanes:
        own = sorted((budgets.index(run.K), run.seconds) for run in runs if run.solver == lane.solver)
        _draw_lane(axes, lane, [(slot, seconds) for slot, seconds in own if seconds > 0])
    times = [run.seconds for run in runs if run.seconds > 0] or [1.0]
    axes.set_ylim(10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(1.2 * max(times))))
    plain_ticks(axes.yaxis, lambda value: duration(value).replace(".00", "").replace(".0", ""))


def _draw_lane(axes: Axes, lane: _Lane, points: list[tuple[int, float]]) -> None:
    places, values = [slot + lane.shift for slot, _ in points], [value for _, value in points]
    axes.plot(places, values, color=lane.color, linewidth=0.7, alpha=0.45, zorder=2)
    axes.plot(places, values, color=lane.color, linestyle="none", marker=lane.marker, markersize=6, clip_on=False)


def _slots(axes: Axes, budgets: list[int]) -> None:
    for slot in range(1, len(budgets), 2):
        axes.axvspan(slot - 0.5, slot + 0.5, color=BAND, zorder=0, linewidth=0)
    axes.grid(axis="y", color=RULE, linewidth=0.5)
    axes.set_xlim(-0.5, len(budgets) - 0.5)


def _slot_label(runs: Sequence[Entry], K: int) -> str:
    """The budget, the best cost, and how far below it the best bound lies."""
    here = [run for run in runs if run.K == K]
    best = min(run.cost for run in here)
    if not math.isfinite(best):
        return f"K = {K}\nno\ncoloring"
    bound = max(run.lower_bound for run in here)
    if not math.isfinite(bound):
        proof = "no bound"
    elif bound >= best - 1e-6 * abs(best):
        proof = "optimal"
    else:
        proof = f"gap {percent((best - bound) / max(abs(best), abs(bound)))}"
    return f"K = {K}\nbest {number(best)}\n{proof}"


def _draw_key(sheet: Sheet, lanes: list[_Lane], left: float, missing: bool) -> None:
    top = MARGIN + line_height(14) + 0.45
    for lane in lanes:
        baseline = top + (TEXT + 1) / 72
        sheet.surface.plot([left + 0.08], [baseline - 0.04], marker=lane.marker, color=lane.color, markersize=6)
        sheet.text(left + 0.22, baseline, lane.solver, TEXT + 1, va="baseline")
        top += line_height(TEXT + 1) + 0.04
    if missing:
        sheet.text(left, top + (TEXT + 1) / 72, "×  no coloring", TEXT + 1, va="baseline", color=INK)
