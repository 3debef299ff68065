"""Predicted against measured damage, on logarithmic axes with the diagonal and a band of 25 % around it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from geocolor.figures.sheet import (
    INK,
    QUIET_INK,
    RULE,
    SERIES_COLORS,
    SERIES_MARKERS,
    SMALL,
    TEXT,
    Sheet,
    check_suffix,
    line_height,
    plain_ticks,
    text_width,
    write_figure,
)
from geocolor.quantities import short

MARGIN = 0.3
SIDE = 4.6
GUTTER = 0.8
BAND_WIDTH = 0.25


def draw_scatter(points: Sequence[Mapping[str, Any]], path: str | Path, unit: str = "units of the loss") -> None:
    """Draw predicted against measured damage to a .png, .svg or .pdf file.

    Every point has `predicted` and `measured`, in `unit`, and may have `series` (named in the key) and `label` (written
    beside the point). Points that are not above 0 have no place on logarithmic axes: their number is written below.
    Raises `ValueError` where no point can be drawn, and for another suffix.
    """
    path = Path(path)
    check_suffix(path)
    write_figure(scatter_figure(points, unit).figure, path)


def scatter_figure(points: Sequence[Mapping[str, Any]], unit: str) -> Sheet:
    """The sheet of `draw_scatter`, not yet written."""
    drawn = [point for point in points if _positive(point["predicted"]) and _positive(point["measured"])]
    if not drawn:
        raise ValueError(
            f"none of the {len(points)} points has a predicted and a measured damage above 0, which logarithmic axes "
            "need; compress further or measure on more data"
        )
    series = list(dict.fromkeys(str(point.get("series") or "") for point in drawn))
    named = [name for name in series if name]
    key_lines = len(named) + 2
    key_width = 0.4 + max(text_width(line, TEXT + 1) for line in [*named, "measured = predicted", "within ±25 %"])
    top = MARGIN + line_height(14) + 0.15
    height = top + max(SIDE, key_lines * 0.25) + 0.7 + MARGIN
    sheet = Sheet(2 * MARGIN + GUTTER + SIDE + 0.25 + key_width, height)
    sheet.paragraph(MARGIN, MARGIN, ["Predicted and measured damage"], 14, weight="bold")
    axes = sheet.axes(MARGIN + GUTTER, top, SIDE, SIDE)
    _draw_points(axes, drawn, series)
    axes.set_xlabel(f"predicted damage, {unit}", fontsize=TEXT + 1, color=INK, parse_math=False)
    axes.set_ylabel(f"measured damage, {unit}", fontsize=TEXT + 1, color=INK, parse_math=False)
    _draw_key(sheet, named, MARGIN + GUTTER + SIDE + 0.25, top)
    left_out = len(points) - len(drawn)
    if left_out:
        note = f"not drawn: {left_out} {'point' if left_out == 1 else 'points'} with a damage that is not above 0"
        sheet.text(MARGIN, height - MARGIN, note, SMALL, va="bottom", color=QUIET_INK)
    return sheet


def _draw_points(axes: Axes, points: Sequence[Mapping[str, Any]], series: list[str]) -> None:
    values = [float(point[side]) for point in points for side in ("predicted", "measured")]
    low, high = min(values) / 1.6, max(values) * 1.6
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ends = [low, high]
    axes.fill_between(
        ends,
        [(1 - BAND_WIDTH) * end for end in ends],
        [(1 + BAND_WIDTH) * end for end in ends],
        color="#ececec",
        zorder=0,
    )
    axes.plot(ends, ends, color=QUIET_INK, linewidth=0.9, zorder=1)
    for index, name in enumerate(series):
        own = [point for point in points if str(point.get("series") or "") == name]
        axes.plot(
            [point["predicted"] for point in own],
            [point["measured"] for point in own],
            linestyle="none",
            marker=SERIES_MARKERS[index % len(SERIES_MARKERS)],
            color=SERIES_COLORS[index % len(SERIES_COLORS)],
            markersize=5,
            zorder=3,
        )
    for point in points:
        if point.get("label"):
            axes.annotate(
                str(point["label"]),
                (point["predicted"], point["measured"]),
                (6, -3),
                textcoords="offset points",
                fontsize=SMALL,
                color=QUIET_INK,
                parse_math=False,
            )
    few = math.log10(high / low) < 2.5
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=12))
        plain_ticks(axis, short)
    axes.grid(color=RULE, linewidth=0.4)


def _draw_key(sheet: Sheet, named: list[str], left: float, top: float) -> None:
    def line(text: str) -> None:
        nonlocal top
        sheet.text(left + 0.3, top + (TEXT + 1) / 72, text, TEXT + 1, va="baseline")
        top += line_height(TEXT + 1) + 0.04

    for index, name in enumerate(named):
        place = ([left + 0.1], [top + 0.085])
        sheet.surface.plot(
            *place,
            marker=SERIES_MARKERS[index % len(SERIES_MARKERS)],
            color=SERIES_COLORS[index % len(SERIES_COLORS)],
            markersize=5,
        )
        line(name)
    sheet.surface.plot([left, left + 0.2], [top + 0.085] * 2, color=QUIET_INK, linewidth=0.9)
    line("measured = predicted")
    sheet.surface.fill_between([left, left + 0.2], top + 0.03, top + 0.14, color="#ececec")
    line(f"within ±{100 * BAND_WIDTH:.0f} %")


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
