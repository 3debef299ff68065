"""A progress bar with time left, shown only for work that takes longer than a moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SILENT_SECONDS = 2.0
T = TypeVar("T")


@contextmanager
def bar(description: str, total: int | None = None, *, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each step. Nothing is drawn for the first two seconds, nor when not `wanted`."""
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = display.add_task(description, total=total)
    begin = time.monotonic()
    shown = False

    def advance() -> None:
        nonlocal shown
        if wanted and not shown and time.monotonic() - begin > SILENT_SECONDS:
            display.start()
            shown = True
        display.advance(task)

    try:
        yield advance
    finally:
        if shown:
            display.stop()


def track(items: Iterable[T], description: str, *, total: int | None = None, wanted: bool = True) -> Iterator[T]:
    """The items, one by one, with a bar that advances after each."""
    count = total if total is not None else len(items) if isinstance(items, Sized) else None
    with bar(description, count, wanted=wanted) as advance:
        for item in items:
            yield item
            advance()
