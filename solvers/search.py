"""One run in progress: its clock, its incumbent, its bound, and the record of both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from solvers.certificates import Certificate
from solvers.coloring import Coloring
from solvers.problem import Problem, round_up
from solvers.solution import OPTIMALITY_GAP, relative_gap

STEPS_PER_SECOND = 1e8
"""How many elementary steps a deterministic clock takes for a second."""


class Search:
    """What a solver works with while it runs. It offers colorings and proves bounds; the best of both are kept here.

    A coloring is priced by the problem when it is offered, so nothing depends on a solver's own arithmetic. Because
    the incumbent lives here, an interrupted run still has one to return.

    A deterministic run counts steps instead of seconds against its time limit, so that it ends at the same place on
    any machine: solvers say what they do with ``expired(steps)`` or ``spend(steps)``, a step being about one entry of
    an array looked at.

    Attributes:
        problem: the problem being solved.
        time_limit: seconds given to the run (``STEPS_PER_SECOND`` steps each when deterministic).
        seed: what all randomness of the run must come from.
        deterministic: whether the clock counts steps.
        best, cost: the incumbent and its price (None and inf before the first).
        bound: the best proven lower bound.
        certificate, checkable: the best evidence that can be checked without trusting a solver, and the bound it gives.
        proof: what ``bound`` rests on where that is more than the certificate.
        cut_short: set when the clock ran out before the solver was done.
        notes: sentences for ``Solution.message``.
    """

    def __init__(
        self, problem: Problem, *, time_limit: float = math.inf, seed: int = 0, deterministic: bool = False
    ) -> None:
        self.problem = problem
        self.time_limit = time_limit
        self.seed = seed
        self.deterministic = deterministic
        self.best: Coloring | None = None
        self.cost = math.inf
        self.bound = -math.inf
        self.certificate: Certificate | None = None
        self.checkable = -math.inf
        self.proof = ""
        self.cut_short = False
        self.notes: list[str] = []
        self.trace: list[tuple[float, float, float]] = []
        self._began = time.perf_counter()
        self._steps = 0.0

    def seconds(self) -> float:
        """Wall time since the run began."""
        return time.perf_counter() - self._began

    def elapsed(self) -> float:
        """How much of ``time_limit`` is used: wall time, or the steps of a deterministic run as seconds."""
        return self._steps / STEPS_PER_SECOND if self.deterministic else self.seconds()

    def remaining(self) -> float:
        return max(0.0, self.time_limit - self.elapsed())

    def clock_left(self) -> float:
        """Seconds of the clock until the time is up; inf for a deterministic run, which no clock may disturb."""
        return math.inf if self.deterministic else self.remaining()

    def spend(self, steps: float) -> None:
        """Move a deterministic clock on."""
        self._steps += steps

    def expired(self, steps: float = 1e4) -> bool:
        """Whether the time is up; remembers that it was asked and was. ``steps``: what was done since it was asked."""
        self._steps += steps
        if self.elapsed() >= self.time_limit:
            self.cut_short = True
            return True
        return False

    def counted(self, times: int) -> Callable[[float], bool]:
        """``expired`` for a part of the run that ends after it was asked so many times."""
        left = iter(range(times))
        return lambda steps: self.expired(steps) or next(left, None) is None

    def closed(self) -> bool:
        """Whether the incumbent is proven optimal."""
        return relative_gap(self.cost, self.bound) <= OPTIMALITY_GAP

    def offer(self, coloring: Coloring) -> float:
        """Price a coloring, keep it if it is the best yet, and return its price."""
        cost = self.problem.cost(coloring)
        if cost < self.cost:
            self.best, self.cost = coloring, cost
            self._record()
        return cost

    def prove(self, bound: float, certificate: Certificate | None = None, proof: str = "") -> None:
        """Record that no coloring costs less than ``bound``; inf says that there is none at all.

        The bound is rounded up to the problem's ``grain``.

        ``certificate`` is evidence that ``solvers.certify`` can check; ``proof`` says in a few words what the bound
        rests on where there is none, such as an exhausted search tree.
        """
        if certificate is not None and bound > self.checkable:
            self.certificate, self.checkable = certificate, bound
        bound = round_up(bound, self.problem.grain)
        if bound > self.bound:
            self.bound, self.proof = bound, "" if certificate is not None else proof
            self._record()

    def note(self, sentence: str) -> None:
        if sentence:
            self.notes.append(sentence)

    def _record(self) -> None:
        self.trace.append((self.seconds(), self.cost, self.bound))
