"""Progress with time left, shown on a terminal only, and only for work that takes longer than a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from threading import Timer
from typing import Protocol, TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SILENT_SECONDS = 2.0
T = TypeVar("T")


class Advance(Protocol):
    """To call after each step, with what is to stand beside the bar."""

    def __call__(self, beside: str = "") -> None: ...


@contextmanager
def bar(description: str, total: int | None = None, *, wanted: bool = True) -> Iterator[Advance]:
    """Gives a function to call after each step. Nothing is drawn for the first two seconds, nor when not `wanted`."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    last = (TimeRemainingColumn(), TextColumn("{task.fields[beside]}", markup=False))
    display = Progress(*columns, *last, console=Console(stderr=True), transient=True)
    task = display.add_task(description, total=total, beside="")
    with _shown(display, wanted):
        yield lambda beside="": display.update(task, advance=1, beside=beside)


def track(items: Iterable[T], description: str, *, total: int | None = None, wanted: bool = True) -> Iterator[T]:
    """The items, one by one, with a bar that advances after each."""
    count = total if total is not None else len(items) if isinstance(items, Sized) else None
    with bar(description, count, wanted=wanted) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def countdown(description: str, seconds: float, *, wanted: bool = True) -> Iterator[None]:
    """A bar that runs by itself, for one long step that takes at most so many seconds."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), _AtMost())
    display = _Clock(*columns, console=Console(stderr=True), transient=True)
    display.add_task(description, total=seconds)
    with _shown(display, wanted):
        yield


@contextmanager
def waiting(description: str, *, wanted: bool = True) -> Iterator[None]:
    """A sign of life for one long step of unknown length."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    display = Progress(*columns, console=Console(stderr=True), transient=True)
    display.add_task(description, total=None)
    with _shown(display, wanted):
        yield


@contextmanager
def _shown(display: Progress, wanted: bool) -> Iterator[None]:
    """The display from the third second on, where standard error is a terminal."""
    if not (wanted and display.console.is_terminal):
        yield
        return
    timer = Timer(SILENT_SECONDS, display.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        display.stop()


class _Clock(Progress):
    """What its tasks count is seconds."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            task.completed = min(task.elapsed or 0.0, task.total or 0.0)
        return super().get_renderables()


class _AtMost(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = max((task.total or 0.0) - (task.elapsed or 0.0), 0.0)
        return Text(f"at most {left:.0f} s left", style="progress.remaining")
