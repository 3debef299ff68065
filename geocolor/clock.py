"""How long every step took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by step; `timer` is what they are read from, `time.process_time` where others use the machine too."""

    seconds: dict[str, float] = field(default_factory=dict)
    timer: Callable[[], float] = time.perf_counter

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = self.timer()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + self.timer() - started
