"""Swaps for sparse medoid problems: all of them priced at once, and many that do not meet carried out together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from solvers.search import Search
from solvers.sparse_medoid import SparseMedoidProblem

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


class SparseOpenSet:
    """The open candidates, each item's nearest and second nearest among those it lists, and pairs by candidate.

    An item that nothing open serves pays its penalty, or without one a price above all that allowed costs differ by.

    Attributes:
        candidate, item, cost: ``[pairs]``, candidate by candidate; forbidden pairs are left out.
        nearest, following: ``[L]`` candidates, −1 for "left out".
        first, second: ``[L]`` their costs.
    """

    def __init__(self, problem: SparseMedoidProblem) -> None:
        self.problem = problem
        order = np.argsort(problem.candidate, kind="stable")
        order = order[np.isfinite(problem.costs[order])]
        self.candidate, self.item, self.cost = problem.candidate[order], problem.item[order], problem.costs[order]
        out = problem.penalties()
        listed = np.isfinite(out)
        top = np.where(listed, out, 0.0)
        np.maximum.at(top, self.item, self.cost)
        low = np.where(listed, np.minimum(out, 0.0), 0.0)
        np.minimum.at(low, self.item, self.cost)
        self.forbidden = 1.0 + 2.0 * float((top - low).sum() + np.abs(low).sum())
        self.out = np.where(listed, out, self.forbidden)
        self.is_open = np.zeros(problem.candidates, bool)
        self.reopen(())

    def reopen(self, opened: Iterable[int]) -> None:
        """Open these candidates and no others; those beyond their label's limit stay closed."""
        names = np.fromiter(opened, dtype=np.intp)
        labels = self.problem.label[names]
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=len(self.problem.limits))
        rank = np.arange(len(names)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.is_open[:] = False
        self.is_open[names[order][rank < self.problem.limits[labels[order]]]] = True
        self._rank()

    @property
    def opened(self) -> Indices:
        return np.flatnonzero(self.is_open)

    @property
    def value(self) -> float:
        return float(self.first.sum())

    @property
    def left(self) -> NDArray[np.int64]:
        """How many more candidates of each label may open."""
        used = np.bincount(self.problem.label[self.is_open], minlength=len(self.problem.limits))
        return self.problem.limits - used

    def _rank(self) -> None:
        nearest, first, second, following = self.problem.nearest_two(self.is_open)
        stays_out = self.out < first
        self.second = np.where(stays_out, first, np.minimum(second, self.out))
        self.following = np.where(stays_out, nearest, np.where(second <= self.out, following, -1))
        self.nearest, self.first = np.where(stays_out, -1, nearest), np.minimum(first, self.out)

    def add_greedily(self, search: Search) -> None:
        """Open candidates that gain most, many at a time where they gain at different items."""
        while not search.expired(3 * len(self.cost)):
            left = self.left
            gain = np.minimum(self.cost - self.first[self.item], 0.0)
            gains = np.bincount(self.candidate, gain, minlength=self.problem.candidates)
            gains[self.is_open] = 0.0
            gains[left[self.problem.label] <= 0] = 0.0
            order = np.argsort(gains, kind="stable")
            order = order[gains[order] < -1e-12 * np.abs(self.first).sum()][: 4 * max(int(left.sum()), 0) + 100]
            if not len(order):
                return
            starts = np.searchsorted(self.candidate, np.arange(self.problem.candidates + 1))
            taken = np.zeros(self.problem.size, bool)
            for name in order.tolist():
                if left[self.problem.label[name]] <= 0:
                    continue
                pairs = slice(starts[name], starts[name + 1])
                items = self.item[pairs][gain[pairs] < 0]
                if not taken[items].any():
                    taken[items] = True
                    self.is_open[name] = True
                    left[self.problem.label[name]] -= 1
            self._rank()

    def swap_until_stuck(self, search: Search, rounds: int = 100, least: float = 0.0) -> None:
        """Rounds of swaps until none pays, or a round gains less than ``least`` of the value."""
        for _ in range(rounds):
            value = self.value
            if search.expired(20 * len(self.cost)) or not self._swap_many() or value - self.value <= least * abs(value):
                return

    def _swap_many(self) -> bool:
        """Price every swap; carry out those that pay, the best first, if no item notices two. False: none pays."""
        number, label = self.problem.candidates, self.problem.label
        tiny = 1e-12 * float(np.abs(self.first).sum())
        inside = np.flatnonzero(self.cost < self.second[self.item])
        candidate, item, cost = self.candidate[inside], self.item[inside], self.cost[inside]
        gains = np.bincount(candidate, np.minimum(cost - self.first[item], 0.0), minlength=number)
        served = self.nearest >= 0
        losses = np.bincount(self.nearest[served], (self.second - self.first)[served], minlength=number)
        # what a candidate saves of the loss of each candidate that it may replace
        kept = self.nearest[item] >= 0
        keys = candidate[kept] * number + self.nearest[item[kept]]
        saved = np.maximum(cost[kept], self.first[item[kept]]) - self.second[item[kept]]
        order = np.argsort(keys, kind="stable")
        begin = np.flatnonzero(np.diff(keys[order], prepend=-1))
        opens, closes = np.divmod(keys[order[begin]], number)
        changes = np.add.reduceat(saved[order], begin) + gains[opens] + losses[closes] if len(begin) else np.zeros(0)
        for code in range(len(self.problem.limits)):  # besides, the one that is missed least
            members = np.flatnonzero(self.is_open & (label == code))
            if len(members):
                worst = members[losses[members].argmin()]
                names = np.flatnonzero((label == code) & (gains < 0))
                opens = np.append(opens, names)
                closes = np.append(closes, np.full(len(names), worst))
                changes = np.append(changes, gains[names] + losses[worst])
        pays = (changes < -tiny) & ~self.is_open[opens] & (label[opens] == label[closes])
        opens, closes, changes = opens[pays], closes[pays], changes[pays]
        best = np.argsort(changes, kind="stable")
        starts = np.searchsorted(candidate, np.arange(number + 1))
        by_medoid = np.argsort(self.nearest, kind="stable")
        medoid_starts = np.searchsorted(self.nearest[by_medoid], np.arange(number + 1))
        locked = np.zeros(number + 1, bool)  # the last place is "left out", which many may change
        swaps = []
        for at in best.tolist():
            opened, closed = int(opens[at]), int(closes[at])
            if locked[opened] or locked[closed]:
                continue
            near = item[starts[opened] : starts[opened + 1]]
            lost = by_medoid[medoid_starts[closed] : medoid_starts[closed + 1]]
            touched = np.concatenate([self.nearest[near], self.following[near], self.following[lost], [opened, closed]])
            locked[-1] = False
            if locked[touched].any():
                continue
            locked[touched] = True
            swaps.append((opened, closed))
        while swaps:
            value, before = self.value, self.is_open.copy()
            self.is_open[[closed for _, closed in swaps]] = False
            self.is_open[[opened for opened, _ in swaps]] = True
            self._rank()
            if self.value < value:
                return True
            self.is_open = before  # they met after all: fewer of them
            self._rank()
            swaps = swaps[: len(swaps) // 2]
        return False
