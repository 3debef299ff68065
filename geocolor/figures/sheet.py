"""A sheet to draw on, measured in inches from its top left corner, and the file it goes to."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, NullFormatter

from geocolor.atomic import write_atomically

DPI = 150
MOST_PIXELS = 30_000
POINTS = 72
LINE_HEIGHT = 1.35
#: Glyphs fitted to pixels take up to this much more room than their outlines.
HINTING = 1.05

# Points
TEXT = 8.0
SMALL = 7.5

INK = "#1a1a1a"
QUIET_INK = "#666666"
RULE = "#c4c4c4"
BAND = "#f4f4f4"
PRIVATE = "#e3e3e3"
PRIVATE_BAR = "#9a9a9a"
KEPT = "#3c4650"
SERIES_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#1a1a1a")
SERIES_MARKERS = "osD^vPX*<>hp"

_FORMATS = (".png", ".svg", ".pdf")


def check_suffix(path: Path) -> None:
    """Raise `ValueError` before any work where the suffix names no format of ours."""
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"cannot draw {path}: a figure's name ends in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")


def write_figure(figure: Figure, path: Path) -> None:
    """PNG, SVG or PDF by suffix; the old file stays until the new one is whole."""
    check_suffix(path)
    form = path.suffix.lower().removeprefix(".")
    metadata: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
    dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=dpi, metadata=metadata))


class Sheet:
    """A figure of `width` × `height` inches and a layer over all of it for text, in inches from the top left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white")
        self.surface = self.figure.add_axes((0, 0, 1, 1), zorder=5)
        self.surface.set(xlim=(0, width), ylim=(height, 0))
        self.surface.axis("off")
        self.surface.patch.set_visible(False)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes with quiet spines; the box is that of the data, ticks and labels lie outside of it."""
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(RULE)
        axes.tick_params(labelsize=8, labelcolor=INK, color=RULE)
        axes.set_axisbelow(True)
        return axes

    def text(self, left: float, top: float, text: str, size: float = 9, **style: Any) -> None:
        """One line of text; its box begins at `top` unless `va` says otherwise."""
        style = {"va": "top", "ha": "left", "color": INK} | style
        self.surface.text(left, top, text, fontsize=size, parse_math=False, **style)

    def centered(self, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
        """One line of text around a point."""
        self.text(x, y, text, size, color=color, ha="center", va="center_baseline", **style)

    def paragraph(self, left: float, top: float, lines: Sequence[str], size: float = 9, **style: Any) -> float:
        """Lines below each other; returns where the next could begin."""
        for line in lines:
            self.text(left, top + size / POINTS, line, size, va="baseline", **style)
            top += line_height(size)
        return top


def line_height(size: float) -> float:
    """Inches from one line of text to the next."""
    return size * LINE_HEIGHT / POINTS


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Inches that a line of text takes."""
    font = FontProperties(size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / POINTS * HINTING


def wrap(text: str, width: float, size: float, *, after: str = " ") -> list[str]:
    """Break after the given separator so that no line is wider than `width` inches, where the parts allow it."""
    parts = [part + after for part in text.split(after)]
    parts[-1] = parts[-1].removesuffix(after)
    lines = [""]
    for part in parts:
        if lines[-1] and text_width((lines[-1] + part).rstrip(), size) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def join(items: Sequence[str], width: float, size: float) -> list[str]:
    """Lines of items with a dot between them; breaks only between items."""
    lines = [items[0]]
    for item in items[1:]:
        longer = f"{lines[-1]}   ·   {item}"
        if text_width(longer, size) > width:
            lines.append(item)
        else:
            lines[-1] = longer
    return lines


def plain_ticks(axis: Any, label: Callable[[float], str]) -> None:
    """Tick labels by a function of the value; minor ticks stay without."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)
