"""Exact dynamic programming over subsets, for set functions of up to 16 linked items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.local_search import LocalSearch
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK = 10
"""So many items are convolved by one table: 3^10 pairs of disjoint subsets fit a processor's cache."""


@dataclass(frozen=True)
class SubsetDP(Solver):
    """``V_k[M] = min over S ⊆ M with the last item of M of f(S) + V_{k−1}[M − S]``; V_k owns at most k bases.

    Items that no chain of compatible pairs links are solved apart, then the bases are dealt out among the parts, so
    that 16 items limit the largest part only. Every class of compatible items is priced once. Then it takes 3^L / 2
    additions in numpy, and K times as many where K binds.
    """

    name: ClassVar[str] = "subset_dp"
    problems: ClassVar[tuple[type, ...]] = (GroupProblem,)
    exact: ClassVar[bool] = True
    largest: ClassVar[int] = 16

    def refusal(self, problem: Problem) -> str:
        why = super().refusal(problem)
        if not why:
            most = max(map(len, linked_parts(problem.compatibility())), default=0)
            if most > self.largest:
                return f"it prices all subsets and refuses more than {self.largest} linked items, not {most}"
        return why

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, GroupProblem)
        if search.best is None:
            LocalSearch().run(problem, search)  # pricing all subsets may outlast the time: leave something to return
        parts = linked_parts(problem.compatible)
        tables = []
        for part in parts:
            prices = price_subsets(problem, part, search)
            if prices is None:
                return
            tables.append(_Table(prices, problem.penalties()[part], search))
        bases: Sequence[int | None] = [None] * len(parts)
        if not all(table.extend(None) for table in tables):
            return
        if sum(table.owners() for table in tables) > problem.limit:
            most = [min(problem.limit, len(part)) for part in parts]
            if not all(table.extend(k) for table, top in zip(tables, most, strict=True) for k in range(top + 1)):
                return
            costs = [[table.cost(k) for k in range(top + 1)] for table, top in zip(tables, most, strict=True)]
            bases = deal(costs, problem.limit)
        cost = math.fsum(table.cost(k) for table, k in zip(tables, bases, strict=True))
        if math.isfinite(cost):
            found = [
                [[part[at] for at in members] for members in table.classes(k)]
                for part, table, k in zip(parts, tables, bases, strict=True)
            ]
            cost = search.offer(
                Coloring.from_classes([members for classes in found for members in classes], problem.size)
            )
        search.prove(cost, proof=f"dynamic programming over all {problem.oracle_calls} classes priced")


def linked_parts(compatible: NDArray[np.bool_]) -> list[list[int]]:
    """The items that chains of compatible pairs link, each part ascending, by their first items."""
    left, parts = set(range(len(compatible))), []
    while left:
        part, ahead = set[int](), {min(left)}
        while ahead:
            part |= ahead
            ahead = set(np.flatnonzero(compatible[sorted(ahead)].any(axis=0)).tolist()) - part
        left -= part
        parts.append(sorted(part))
    return parts


def price_subsets(problem: GroupProblem, part: Sequence[int], search: Search) -> Floats | None:
    """``[2^|part|]``: the class cost of the items in the bit mask, inf unless all are compatible. None: time is up."""
    allowed = [sum(1 << at for at, j in enumerate(part) if problem.compatible[i, j]) for i in part]
    prices = np.full(1 << len(part), np.inf)
    cliques = [0]
    for top, mask in enumerate(allowed):
        new = [clique | 1 << top for clique in cliques if clique & mask == clique]
        for clique in new:
            prices[clique] = problem.class_cost([item for at, item in enumerate(part) if clique >> at & 1])
            if search.expired():
                return None
        cliques += new
    return prices


def deal(costs: Sequence[Sequence[float]], limit: int) -> list[int]:
    """How many bases each part gets so that ``Σ costs[part][bases]`` is least, at most ``limit`` in all."""
    total, choices = np.zeros(limit + 1), []
    for cost in costs:
        table = np.full((len(cost), limit + 1), np.inf)
        for k, value in enumerate(cost):
            table[k, k:] = value + total[: limit + 1 - k]
        choices.append(table.argmin(axis=0))
        total = table.min(axis=0)
    dealt, left = [], limit
    for choice in reversed(choices):
        dealt.append(int(choice[left]))
        left -= dealt[-1]
    return dealt[::-1]


class _Table:
    """The best partition of every subset of one part, by the number of bases; ``None``: without a limit."""

    def __init__(self, prices: Floats, penalties: Floats, search: Search) -> None:
        self.prices, self.penalties, self.search = prices, penalties, search
        self.size = len(penalties)
        self.values: dict[int | None, Floats] = {}

    def extend(self, k: int | None) -> bool:
        """Fill in ``V_k`` for all subsets; False when the time is up."""
        values = self.values.setdefault(k, np.zeros(1 << self.size))
        for top in range(self.size):
            low, high = slice(0, 1 << top), slice(1 << top, 2 << top)
            left_out = self.penalties[top] + values[low]
            if k == 0:
                values[high] = left_out
                continue
            before = values if k is None else self.values[k - 1]
            if self.search.expired(3**top):
                return False
            joined = convolve(self.prices[high], before[low])
            values[high] = np.minimum(joined, left_out)
        return True

    def cost(self, k: int | None) -> float:
        return float(self.values[k][-1])

    def owners(self) -> int:
        """How many bases the best partition without a limit takes, as far as penalties do not save them."""
        return sum(len(m) > 1 or self.prices[1 << m[0]] < self.penalties[m[0]] for m in self.classes(None))

    def classes(self, k: int | None) -> list[list[int]]:
        """The partition that ``V_k`` stands for, found again from the values."""
        found, left = [], (1 << self.size) - 1
        while left:
            top = left.bit_length() - 1
            rest = left ^ (1 << top)
            joining = np.arange(1 << top)
            joining = joining[joining & rest == joining]
            best, chosen = self.penalties[top] + self.values[k][rest], 0
            if k != 0:
                before = self.values[None if k is None else k - 1]
                costs = self.prices[joining + (1 << top)] + before[rest ^ joining]
                if costs.min() < best:
                    chosen = int(joining[costs.argmin()])
                    k = None if k is None else k - 1
            members = chosen | 1 << top
            found.append([item for item in range(self.size) if members >> item & 1])
            left ^= members
        return found


def convolve(a: Floats, b: Floats) -> Floats:
    """``c[M] = min over S ⊆ M of a[S] + b[M − S]``: the min-plus subset convolution of two arrays of 2^n entries."""
    if not np.isfinite(a).any() or not np.isfinite(b).any():
        return np.full(len(a), np.inf)
    items = len(a).bit_length() - 1
    if items > BLOCK:
        half = len(a) // 2
        low = convolve(a[:half], b[:half])
        high = np.minimum(convolve(a[half:], b[:half]), convolve(a[:half], b[half:]))
        return np.concatenate([low, high])
    first, second = _disjoint(items)
    sums = a[first] + b[second]
    for item in range(items):  # three cases for the item, in neither or in one of the two, become two
        cases = sums.reshape(1 << item, 3, -1)
        sums = np.stack([cases[:, 0], np.minimum(cases[:, 1], cases[:, 2])], axis=1)
    result: Floats = sums.reshape(-1)
    return result


@cache
def _disjoint(items: int) -> tuple[Integers, Integers]:
    """All pairs of disjoint subsets as two arrays of ``3^items`` bit masks; the highest item varies slowest."""
    first, second = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for item in range(items):
        first = np.concatenate([first, first | 1 << item, first])
        second = np.concatenate([second, second, second | 1 << item])
    return first, second
