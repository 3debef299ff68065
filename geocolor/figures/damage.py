"""The panel of a plan's predicted damage: one bar for every layer, in the order of the grid."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from geocolor.coloring_grid import ColoringGrid
from geocolor.figures.sheet import (
    BAND,
    PRIVATE_BAR,
    QUIET_INK,
    RULE,
    SMALL,
    TEXT,
    Sheet,
    line_height,
    plain_ticks,
    text_width,
    wrap,
)
from geocolor.plans import Plan
from geocolor.quantities import short
from geocolor.summary import damage_unit

HEADING = 0.32
BARS = 2.0
GUTTER = 0.65
WIDEST_BAR = 0.6
#: Largest over smallest damage from which the scale is logarithmic.
LOGARITHMIC_FROM = 20


@dataclass(frozen=True)
class DamagePanel:
    """Bars `width` inches wide in all; dense layers, which take no damage, have none."""

    plan: Plan
    grid: ColoringGrid
    width: float

    @property
    def height(self) -> float:
        return HEADING + BARS + self._ticks.room + len(self._note) * line_height(SMALL)

    def draw(self, sheet: Sheet, left: float, top: float) -> None:
        damage = {name: value for cls in self.plan.classes for name, value in cls.damage.items()}
        cells = [cell for _, _, cell in self.grid.cells()]
        shown = [
            (place, damage[cell.layer], cell.color or PRIVATE_BAR)
            for place, cell in enumerate(cells)
            if damage[cell.layer] > 0
        ]
        values = [value for _, value, _ in shown]
        logarithmic = bool(values) and max(values) / min(values) > LOGARITHMIC_FROM
        heading = f"Predicted damage by layer, in {damage_unit(self.plan)}"
        sheet.text(left, top, heading, TEXT + 1, weight="bold")
        remarks = ["logarithmic scale"] * logarithmic + ["dense layers have none"] * (0 < len(values) < len(cells))
        if remarks:
            remark = f"({'; '.join(remarks)})"
            sheet.text(left + text_width(heading, TEXT + 1, bold=True) + 0.1, top, remark, TEXT + 1)
        axes = sheet.axes(left + GUTTER, top + HEADING, self.width - GUTTER, BARS)
        axes.set_xlim(-0.6, len(cells) - 0.4)
        if not values:
            sheet.centered(left + self.width / 2, top + HEADING + BARS / 2, "none is predicted", 9, QUIET_INK)
            axes.set_yticks([])
        bottom = min(values) / 2 if logarithmic else 0.0
        axes.bar(
            [place for place, _, _ in shown],
            [value - bottom for value in values],
            width=min(0.8, WIDEST_BAR / self._slot) if self._slot > 0.06 else 1.0,
            bottom=bottom,
            color=[color for _, _, color in shown],
        )
        if logarithmic:
            _logarithmic(axes, bottom, max(values) * 1.3)
        elif values:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        plain_ticks(axes.yaxis, short)
        axes.grid(axis="y", color=RULE, linewidth=0.5)
        self._draw_ticks(axes)
        sheet.paragraph(left, top + HEADING + BARS + self._ticks.room, self._note, SMALL, color=QUIET_INK)

    def _draw_ticks(self, axes: Axes) -> None:
        for index, (start, end) in enumerate(_spans(self.grid)):
            if index % 2:
                axes.axvspan(start - 0.5, end - 0.5, color=BAND, zorder=0, linewidth=0)
        ticks = self._ticks
        axes.tick_params(axis="x", length=0)
        axes.set_xticks(ticks.places, ticks.labels, rotation=ticks.rotation, fontsize=SMALL, parse_math=False)

    @property
    def _slot(self) -> float:
        """Inches for each layer."""
        return (self.width - GUTTER) / sum(1 for _ in self.grid.cells())

    @cached_property
    def _ticks(self) -> "_Ticks":
        return _layer_ticks(self.grid, self._slot) or _row_ticks(self.grid, self._slot)

    @cached_property
    def _note(self) -> list[str]:
        return wrap(self._ticks.note, self.width, SMALL) if self._ticks.note else []


@dataclass(frozen=True)
class _Ticks:
    """Labels below the bars: where (in layers), what, turned by how much, the inches they take, a note below them."""

    places: list[float]
    labels: list[str]
    rotation: int
    room: float
    note: str = ""


def _layer_ticks(grid: ColoringGrid, slot: float) -> _Ticks | None:
    """Every layer by name; None where `slot` inches for each do not suffice."""
    line = line_height(SMALL)
    if slot < 0.95 * line:
        return None
    names = [row.label if row.alone else f"{row.label} {grid.kinds[column]}" for row, column, _ in grid.cells()]
    widest = max(text_width(name, SMALL) for name in names)
    upright = widest + 0.1 < slot
    room = 0.1 + (line if upright else widest + 0.05)
    return _Ticks([float(place) for place in range(len(names))], names, 0 if upright else 90, room)


def _row_ticks(grid: ColoringGrid, slot: float) -> _Ticks:
    """Rows of the grid, as many as fit."""
    line = line_height(SMALL)
    upright = all(text_width(row.label, SMALL) < 0.3 for row in grid.rows)
    places, labels, free = [], [], -math.inf
    for row, (start, end) in zip(grid.rows, _spans(grid), strict=True):
        middle = (start + end - 1) / 2
        wide = text_width(row.label, SMALL) + 0.06 if upright else line
        if middle * slot - wide / 2 >= free:
            places.append(middle)
            labels.append(row.label)
            free = middle * slot + wide / 2
    room = 0.1 + (line if upright else max(text_width(label, SMALL) for label in labels) + 0.05)
    kinds = f"; in each, from left to right: {', '.join(grid.kinds)}" if grid.kinds else ""
    return _Ticks(places, labels, 0 if upright else 90, room, f"{'block' if grid.kinds else 'layer'}{kinds}")


def _spans(grid: ColoringGrid) -> list[tuple[int, int]]:
    """First layer of every row and the one after its last, in the order of the grid."""
    ends = list(accumulate(len(row.present()) for row in grid.rows))
    return list(zip([0, *ends], ends, strict=False))


def _logarithmic(axes: Axes, bottom: float, top: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    decades = math.log10(top / bottom)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0), numticks=8))
