"""Ctrl-C: a sentence and exit status 130, at any moment, without a traceback.

While a command works, Ctrl-C is the exception `KeyboardInterrupt`, so that half-written files are cleared away. While
modules load, and when the work is done, an exception could be swallowed or printed by code that is not ours, and there
is nothing to clear away: the process ends at once.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 130
SENTENCE = "stopped; what was written before is whole, what was being written is gone"


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process immediately, unless it is ignored (nohup) or somebody else's."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def raising() -> Iterator[None]:
    """Within this context Ctrl-C raises `KeyboardInterrupt` where it would end the process at once."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _leave)


def _leave(*_: object) -> None:
    clear_line_and_show_cursor = "\r\x1b[2K\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{clear_line_and_show_cursor}{SENTENCE}\n".encode())
    os._exit(STATUS)
