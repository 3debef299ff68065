"""Progress: with time left on a terminal, nothing at all elsewhere."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from geocolor import progress
from geocolor.progress import bar, countdown, track, waiting


class AtOnce:
    """A timer that has run out when it is started."""

    def __init__(self, _seconds: float, action: Callable[[], None]) -> None:
        self.start = action

    def cancel(self) -> None: ...

    def join(self) -> None: ...


class Never(AtOnce):
    """A timer that has not run out by the time it is cancelled."""

    def __init__(self, _seconds: float, _action: Callable[[], None]) -> None:
        super().__init__(_seconds, lambda: None)


Terminal = Callable[..., io.StringIO]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal or as a file; gives what is written to it."""

    def on(*, terminal: bool, timer: type[AtOnce] = AtOnce) -> io.StringIO:
        written = io.StringIO()
        console = Console(file=written, force_terminal=terminal, width=120, color_system=None)
        monkeypatch.setattr(progress, "Console", lambda **_: console)
        monkeypatch.setattr(progress, "Timer", timer)
        return written

    return on


def long_steps() -> None:
    assert list(track(["a", "b"], "taking steps")) == ["a", "b"]
    with countdown("searching", 1000.0):
        pass
    with waiting("loading"):
        pass
    with bar("training", 2) as advance:
        advance("loss 0.5")


def test_names_in_brackets_are_shown_as_they_are(on: Terminal) -> None:
    written = on(terminal=True)
    with waiting("loading a[/b]:x:"):
        pass
    assert "loading a[/b]:x:" in written.getvalue()


def test_a_terminal_is_shown_steps_and_time_left(on: Terminal) -> None:
    written = on(terminal=True)
    long_steps()
    text = written.getvalue()
    assert "taking steps" in text
    assert "2/2" in text
    assert "at most 1000 s left" in text
    assert "loading" in text
    assert "1/2" in text
    assert "loss 0.5" in text


def test_a_file_or_pipe_is_shown_nothing(on: Terminal) -> None:
    written = on(terminal=False)
    long_steps()
    assert written.getvalue() == ""


def test_what_is_quick_or_not_wanted_is_not_shown(on: Terminal) -> None:
    written = on(terminal=True)
    with bar("hidden", 3, wanted=False) as advance:
        advance()
    written = on(terminal=True, timer=Never)
    long_steps()
    assert written.getvalue() == ""


def test_an_error_ends_the_bar(on: Terminal) -> None:
    written = on(terminal=True)
    with pytest.raises(ZeroDivisionError), bar("dividing", 3):
        1 / 0  # noqa: B018
    with bar("again", 1) as advance:  # a display left running would refuse a second one
        advance()
    assert "1/1" in written.getvalue()
