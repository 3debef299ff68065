"""One run in progress: its clock, its incumbent, its bound, and the record of both."""

from __future__ import annotations

import math
import time

from solvers.coloring import Coloring
from solvers.problem import Problem
from solvers.solution import OPTIMALITY_GAP, relative_gap


class Search:
    """What a solver works with while it runs. It offers colorings and proves bounds; the best of both are kept here.

    A coloring is priced by the problem when it is offered, so nothing depends on a solver's own arithmetic. Because
    the incumbent lives here, an interrupted run still has one to return.

    Attributes:
        problem: the problem being solved.
        time_limit: seconds given to the run.
        seed: what all randomness of the run must come from.
        best, cost: the incumbent and its price (None and inf before the first).
        bound: the best proven lower bound.
        cut_short: set when the clock ran out before the solver was done.
        notes: sentences for ``Solution.message``.
    """

    def __init__(self, problem: Problem, *, time_limit: float = math.inf, seed: int = 0) -> None:
        self.problem = problem
        self.time_limit = time_limit
        self.seed = seed
        self.best: Coloring | None = None
        self.cost = math.inf
        self.bound = -math.inf
        self.cut_short = False
        self.notes: list[str] = []
        self.trace: list[tuple[float, float, float]] = []
        self._began = time.perf_counter()

    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    def remaining(self) -> float:
        return max(0.0, self.time_limit - self.elapsed())

    def expired(self) -> bool:
        """Whether the time is up; remembers that it was asked and was."""
        if self.elapsed() >= self.time_limit:
            self.cut_short = True
            return True
        return False

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

    def prove(self, bound: float) -> None:
        """Record that no coloring costs less than ``bound``; inf says that there is none at all."""
        if bound > self.bound:
            self.bound = bound
            self._record()

    def note(self, sentence: str) -> None:
        if sentence:
            self.notes.append(sentence)

    def _record(self) -> None:
        self.trace.append((self.elapsed(), self.cost, self.bound))
