"""Figures of several panels."""

from typing import Any

ACROSS = 3


def panels(count: int, width: float, height: float, margin: float) -> tuple[Any, list[Any]]:
    """A figure and its axes, at most `ACROSS` a line; sizes in inches, `margin` is added below and above them all."""
    from matplotlib.figure import Figure

    columns = min(count, ACROSS)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines + margin), facecolor="white", layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]
