"""Functions that numba compiles while the solver goes on, so that its time limit holds on the first call too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from solvers.search import Search

Kernel = Callable[..., Any]

GLANCE = 0.02
"""Seconds between two looks at the search's clock."""


class Compilation:
    """One function being compiled in a thread of its own, or done.

    The machine code is cached on disk, beside the source or else in the user's cache folder: to compile takes seconds,
    to load it a fraction of one, most of which is numba's import. The interpreter waits for the thread when it ends.
    """

    def __init__(self, function: Kernel, signature: str) -> None:
        self.function, self.signature = function, signature
        self.kernel: Kernel | None = None
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._compile, name=f"compile {function.__name__}")
        self.thread.start()

    def _compile(self) -> None:
        try:
            from numba import njit

            try:
                self.kernel = njit(self.signature, cache=True)(self.function)
            except RuntimeError:  # no folder for the cache can be written to
                self.kernel = njit(self.signature)(self.function)
        except Exception as error:  # raised where the kernel is asked for
            self.error = error

    def wait(self, search: Search) -> Kernel | None:
        """The compiled function; None when the time ran out before. A deterministic clock stands still meanwhile."""
        while self.thread.is_alive():
            if search.expired(0.0):
                return None
            self.thread.join(min(GLANCE, search.clock_left()))
        if self.error is not None:
            raise self.error
        return self.kernel


@cache
def compilation(function: Kernel, signature: str) -> Compilation:
    """Begin to compile, on the first call with a function."""
    return Compilation(function, signature)
