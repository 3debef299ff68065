"""The habit of sharing among neighbours at its best: dynamic programming over runs of items in their order."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.habits import in_order, misfit
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.subset_dp import deal

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Runs(Solver):
    """The best partition into runs of neighbours: ``V_k[j] = min over i of f(i … j) + V_{k−1}[i]``.

    It is the best that the habit of ``Adjacent`` can come to, and no bound. An item left out for its penalty ends no
    basis but does end a run.

    Attributes:
        kinds: a label for each item (say, the kind of matrix); neighbours are then the next of the same kind. None:
            both all items in their order and those that are compatible with the same others are tried.
        longest: items in a run at most; None: any number.
    """

    kinds: tuple[Hashable, ...] | None = None
    longest: int | None = None

    name: ClassVar[str] = "runs"
    problems: ClassVar[tuple[type, ...]] = (GroupProblem,)

    def __post_init__(self) -> None:
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"longest must be 1 or more, got {self.longest}")

    def refusal(self, problem: Problem) -> str:
        return super().refusal(problem) or misfit(self.kinds, problem)

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, GroupProblem)
        search.offer(Coloring(range(problem.size)))
        alike = [row.tobytes() for row in problem.compatible]
        for kinds in (self.kinds,) if self.kinds is not None else (alike, [0] * problem.size):
            self._best_runs(problem, search, in_order(kinds))

    def _best_runs(self, problem: GroupProblem, search: Search, queues: list[list[int]]) -> None:
        penalties = problem.penalties()
        lines = [_Line(_price_runs(problem, queue, self.longest, search), penalties[queue]) for queue in queues]
        bases: Sequence[int | None] = [None] * len(queues)
        if sum(line.solve(None)[1] for line in lines) > problem.limit:
            costs = [[line.solve(k)[0] for k in range(min(problem.limit, line.size) + 1)] for line in lines]
            bases = deal(costs, problem.limit)
        found = []
        for line, queue, k in zip(lines, queues, bases, strict=True):
            if math.isinf(line.solve(k)[0]):
                return
            found += [queue[begin:end] for begin, end in line.runs(k)]
        search.offer(Coloring.from_classes(found, problem.size))


def _price_runs(problem: GroupProblem, queue: Sequence[int], longest: int | None, search: Search) -> Floats:
    """``[L, L + 1]``: the price of the run from ``begin`` to before ``end``; inf unless all its items are compatible.

    Short runs come first, so that there is something to choose from when the time runs out.
    """
    size = len(queue)
    prices = np.full((size, size + 1), np.inf)
    begins: Sequence[int] = range(size)
    for length in range(1, min(size, longest or size) + 1):
        begins_left = []
        for begin in begins:
            members = queue[begin : begin + length]
            if len(members) == length and problem.allows(members):
                if length > 1 and search.expired():
                    return prices
                prices[begin, begin + length] = problem.class_cost(members)
                begins_left.append(begin)
        begins = begins_left
    return prices


class _Line:
    """One queue of items: the best runs of every beginning of it, by the number of bases; None: without a limit."""

    def __init__(self, prices: Floats, penalties: Floats) -> None:
        self.prices, self.penalties, self.size = prices, penalties, len(penalties)
        self.tables: dict[int | None, tuple[Floats, list[int], list[int]]] = {}
        self._fill(None)

    def solve(self, k: int | None) -> tuple[float, int]:
        """The least cost with at most ``k`` bases, and how many it takes."""
        if k not in self.tables:
            self._fill(k)
        values, _, owners = self.tables[k]
        return float(values[-1]), owners[-1]

    def runs(self, k: int | None) -> list[tuple[int, int]]:
        found, end = [], self.size
        while end:
            begin = self.tables[k][1][end]
            owned = begin >= 0
            begin = begin if owned else end - 1
            found.append((begin, end))
            end = begin
            k = k - 1 if owned and k is not None else k
        return found[::-1]

    def _fill(self, k: int | None) -> None:
        """``begins[end]`` is where the last run begins, −1 where the last item is left out."""
        values, begins, owners = np.zeros(self.size + 1), [-1] * (self.size + 1), [0] * (self.size + 1)
        for end in range(1, self.size + 1):
            values[end] = self.penalties[end - 1] + values[end - 1]
            owners[end] = owners[end - 1]
            if k == 0:
                continue
            before, _, used = (values, begins, owners) if k is None else self.tables[k - 1]
            costs = before[:end] + self.prices[:end, end]
            begin = int(costs.argmin())
            if costs[begin] < values[end]:
                values[end], begins[end], owners[end] = costs[begin], begin, used[begin] + 1
        self.tables[k] = values, begins, owners
