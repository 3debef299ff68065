"""A plan as a picture: the coloring as a grid, parameters kept beside it, predicted damage below."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from geocolor.coloring_grid import PALETTE, Cell, ColoringGrid, coloring_grid, ink_on, parameters_by_layer
from geocolor.figures.damage import DamagePanel
from geocolor.figures.sheet import (
    INK,
    KEPT,
    POINTS,
    PRIVATE,
    QUIET_INK,
    RULE,
    SMALL,
    TEXT,
    Sheet,
    check_suffix,
    join,
    line_height,
    plain_ticks,
    text_width,
    wrap,
    write_figure,
)
from geocolor.plans import Plan
from geocolor.quantities import percent, short_count
from geocolor.summary import summary

MARGIN = 0.3
LEAST_WIDTH = 9.0
ROW_HEIGHT = 0.29
GAP = 0.4
BARS_WIDTH = 2.6

_SHAPE = "for a weight W of m outputs × n inputs"
#: What is written in a cell of each kind, and what it says.
_FORMS = {
    "in": ("in r", f"basis on the input side, rank r:  W ≈ C·Bᵀ, B is n×r, {_SHAPE}"),
    "out": ("out r", f"basis on the output side, rank r:  W ≈ B·C, B is m×r, {_SHAPE}"),
    "both": ("both r×s", f"bases on both sides, ranks r and s:  W ≈ U·S·Vᵀ, U is m×r, V is n×s, {_SHAPE}"),
}


def draw_plan(plan: Plan, path: str | Path) -> None:
    """Draw a plan to a .png, .svg or .pdf file.

    The grid of block × matrix kind shows who shares with whom, kind and rank written in; to its right parameters kept
    of the dense ones by row; below it the predicted damage of every layer in the order of the grid.
    Raises `ValueError` for another suffix and `OSError` where the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    write_figure(plan_figure(plan).figure, path)


def plan_figure(plan: Plan) -> Sheet:
    """The sheet of `draw_plan`, not yet written."""
    grid = coloring_grid(plan)
    layout = _layout(plan, grid)
    sheet = Sheet(layout.width, layout.height)
    top = sheet.paragraph(MARGIN, MARGIN, ["Which layers share a basis"], 14, weight="bold")
    top = sheet.paragraph(MARGIN, top + 0.02, layout.summary, 9.5)
    _draw_legend(sheet, layout, top + 0.12)
    _draw_grid(sheet, layout, grid)
    _draw_parameters(sheet, layout, plan, grid)
    layout.damage.draw(sheet, MARGIN, layout.damage_top)
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Where everything lies, in inches."""

    width: float
    height: float
    summary: list[str]
    legend: list[tuple[str, list[str]]]
    headers: list[list[str]]
    header_top: float
    grid_left: float
    grid_top: float
    cell_width: float
    bars_left: float
    bars_width: float
    damage_top: float
    damage: DamagePanel

    @property
    def inner(self) -> float:
        return self.width - 2 * MARGIN


def _layout(plan: Plan, grid: ColoringGrid) -> _Layout:
    columns = max(1, len(grid.kinds))
    cells = [cell for _, _, cell in grid.cells()]
    label_width = max(text_width(row.label, TEXT) for row in grid.rows)
    label_width = max(label_width, text_width("block", TEXT, bold=True)) + 0.12
    widest = max(text_width(cell.ranks, TEXT) for cell in cells)
    letter = max((text_width(cell.letter, TEXT, bold=True) + 0.12 for cell in cells if cell.letter), default=0)
    words = [word for kind in grid.kinds for word in wrap(kind, 0, TEXT, after=".")]
    cell_width = max(0.6, widest + letter + 0.16, *(text_width(word, TEXT) + 0.08 for word in words), 0)
    headers = [wrap(kind, cell_width - 0.04, TEXT, after=".") for kind in grid.kinds]

    spare = LEAST_WIDTH - (2 * MARGIN + label_width + columns * cell_width + GAP + BARS_WIDTH)
    if spare > 0:
        wider = min(cell_width + spare / columns, max(1.3, cell_width))
        spare -= columns * (wider - cell_width)
        cell_width = wider
    grid_left = MARGIN + label_width
    bars_left = grid_left + columns * cell_width + GAP
    bars_width = BARS_WIDTH + max(0.0, spare)
    width = bars_left + bars_width + MARGIN
    inner = width - 2 * MARGIN

    lines = join(summary(plan), inner, 9.5)
    legend = [(swatch, wrap(text, inner - 0.85, 9)) for swatch, text in _legend(grid)]
    top = MARGIN + line_height(14) + 0.02 + len(lines) * line_height(9.5) + 0.12
    top += sum(len(text) * line_height(9) + 0.05 for _, text in legend) + 0.12
    header_lines = max([2, *map(len, headers)])
    grid_top = top + (header_lines * line_height(TEXT)) + 0.05
    damage_top = grid_top + len(grid.rows) * ROW_HEIGHT + 0.62

    damage = DamagePanel(plan, grid, inner)
    height = damage_top + damage.height + MARGIN
    return _Layout(
        width=width,
        height=height,
        summary=lines,
        legend=legend,
        headers=headers,
        header_top=top,
        grid_left=grid_left,
        grid_top=grid_top,
        cell_width=cell_width,
        bars_left=bars_left,
        bars_width=bars_width,
        damage_top=damage_top,
        damage=damage,
    )


def _legend(grid: ColoringGrid) -> list[tuple[str, str]]:
    """What each look of a cell means, for the looks that occur."""
    cells = [cell for _, _, cell in grid.cells()]
    lines = []
    if any(cell.letter for cell in cells):
        lines.append(
            ("shared", "same color and letter: these layers share one basis; each keeps coefficients of its own")
        )
    if any(not cell.letter and cell.planned.kind != "dense" for cell in cells):
        lines.append(("private", "grey: low rank with a basis of its own, shared with no other layer"))
    if any(cell.planned.kind == "dense" for cell in cells):
        lines.append(("dense", "white: left dense, as it is"))
    if any(cell is None for row in grid.rows for cell in row.cells):
        lines.append(("", "no cell: the model has no such layer (in scope)"))
    lines += [_FORMS[kind] for kind in _FORMS if any(cell.planned.kind == kind for cell in cells)]
    return lines


def _draw_legend(sheet: Sheet, layout: _Layout, top: float) -> None:
    high, wide = 0.15, 0.22
    for look, lines in layout.legend:
        baseline = top + 9 / POINTS
        y = baseline - 0.35 * 9 / POINTS - high / 2
        if look == "shared":
            for i, (letter, color) in enumerate(zip("abc", PALETTE, strict=False)):
                left = MARGIN + i * (wide + 0.02)
                sheet.surface.add_patch(Rectangle((left, y), wide, high, facecolor=color, edgecolor="none"))
                sheet.centered(left + wide / 2, y + high / 2, letter, SMALL, ink_on(color), weight="bold")
        elif look in ("private", "dense"):
            face, edge = (PRIVATE, "none") if look == "private" else ("white", RULE)
            sheet.surface.add_patch(Rectangle((MARGIN, y), 3 * wide + 0.04, high, facecolor=face, edgecolor=edge))
        elif look:
            middle = MARGIN + (3 * wide + 0.04) / 2
            sheet.text(middle, baseline, look, TEXT, ha="center", va="baseline")
        top = sheet.paragraph(MARGIN + 0.85, top, lines, 9) + 0.05


def _draw_grid(sheet: Sheet, layout: _Layout, grid: ColoringGrid) -> None:
    columns = max(1, len(grid.kinds))
    bottom_of_header = layout.grid_top - 0.05
    if grid.kinds:
        sheet.text(layout.grid_left - 0.1, bottom_of_header, "block", TEXT, ha="right", va="bottom", weight="bold")
    for column, lines in enumerate(layout.headers):
        x = layout.grid_left + (column + 0.5) * layout.cell_width
        for i, line in enumerate(reversed(lines)):
            sheet.text(x, bottom_of_header - i * line_height(TEXT), line, TEXT, ha="center", va="bottom")
    for index, row in enumerate(grid.rows):
        top = layout.grid_top + index * ROW_HEIGHT
        sheet.text(layout.grid_left - 0.1, top + ROW_HEIGHT / 2, row.label, TEXT, ha="right", va="center_baseline")
        for column, cell in enumerate(row.cells):
            if cell is not None:
                left = layout.grid_left + column * layout.cell_width
                _draw_cell(sheet, cell, left, top, layout.cell_width * (columns if row.alone else 1))


def _draw_cell(sheet: Sheet, cell: Cell, left: float, top: float, width: float) -> None:
    inset = 0.015
    dense = cell.planned.kind == "dense"
    face = cell.color or ("white" if dense else PRIVATE)
    sheet.surface.add_patch(
        Rectangle(
            (left + inset, top + inset),
            width - 2 * inset,
            ROW_HEIGHT - 2 * inset,
            facecolor=face,
            edgecolor=RULE if dense else "none",
            linewidth=0.8,
        )
    )
    ink = ink_on(cell.color) if cell.color else QUIET_INK
    middle = top + ROW_HEIGHT / 2
    if cell.letter:
        sheet.text(left + 0.08, middle, cell.letter, TEXT, color=ink, weight="bold", va="center_baseline")
        room = text_width(cell.letter, TEXT, bold=True) + 0.08
        sheet.centered(left + (width + room) / 2, middle, cell.ranks, TEXT, ink)
    else:
        sheet.centered(left + width / 2, middle, cell.ranks, TEXT, ink)


def _draw_parameters(sheet: Sheet, layout: _Layout, plan: Plan, grid: ColoringGrid) -> None:
    kept = parameters_by_layer(plan)
    dense = {name: shape.m * shape.n for name, shape in plan.layers.items()}
    rows = [[cell.layer for cell in row.present()] for row in grid.rows]
    after, before = ([sum(of[name] for name in row) for row in rows] for of in (kept, dense))
    high = len(rows) * ROW_HEIGHT
    axes = sheet.axes(layout.bars_left, layout.grid_top, layout.bars_width, high)
    places = range(len(rows))
    axes.barh(places, before, height=0.66, color=PRIVATE)
    axes.barh(places, after, height=0.66, color=KEPT)
    room = text_width("100.0 %", TEXT) + 0.15
    reach = max(before) / (1 - room / layout.bars_width)
    for place, (left, of) in enumerate(zip(after, before, strict=True)):
        axes.annotate(
            percent(left / of),
            (of, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=TEXT,
            color=INK,
        )
    axes.set(xlim=(0, reach), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    plain_ticks(axes.xaxis, short_count)
    bottom = layout.grid_top - 0.05
    what = "block" if grid.kinds else "layer"
    sheet.text(
        layout.bars_left,
        bottom - line_height(TEXT),
        f"Parameters by {what}",
        TEXT + 1,
        va="bottom",
        weight="bold",
    )
    left = layout.bars_left
    for color, word in ((KEPT, "kept"), (PRIVATE, "removed")):
        sheet.surface.add_patch(Rectangle((left, bottom - 0.12), 0.16, 0.1, facecolor=color, edgecolor="none"))
        sheet.text(left + 0.21, bottom, word, TEXT, va="bottom")
        left += 0.21 + text_width(word, TEXT) + 0.2
    if any(len(cls.layers) > 1 for cls in plan.classes):
        note = "shared bases are split evenly among their layers"
        sheet.text(layout.bars_left, layout.grid_top + high + 0.28, note, SMALL, color=QUIET_INK)
