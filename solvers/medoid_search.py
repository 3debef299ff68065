"""Search over sets of open candidates: greedy adding, and swaps evaluated for all removals at once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from solvers.medoid import MedoidProblem
from solvers.search import Search

Medoids = list[int]


class OpenSet:
    """The open candidates of a medoid problem, each item's nearest and second nearest among them.

    Column B of ``costs`` is "left out": the item's penalty, always open, never removed. Where an item has no penalty it
    holds a price above any difference that allowed costs can make, and forbidden pairs cost the same. So every set of
    candidates has a finite value, and it is at least ``forbidden`` exactly when some item is not served.
    """

    def __init__(self, problem: MedoidProblem, opened: Iterable[int] = ()) -> None:
        self.problem = problem
        costs = np.column_stack([problem.cost_matrix, problem.penalties()])
        finite = np.isfinite(costs)
        top = np.where(finite, costs, -np.inf).max(axis=1, initial=0.0)
        low = np.where(finite, costs, np.inf).min(axis=1, initial=0.0)
        self.forbidden = 1.0 + 2.0 * float((top - low).sum() + np.abs(low).sum())
        self.costs = np.where(finite, costs, self.forbidden)
        self.label, self.limits = problem.label, problem.limits
        self.tiny = 1e-12 * problem.scale
        self.opened: Medoids = []
        self.left = self.limits.copy()
        for candidate in opened:
            if self.left[self.label[candidate]] > 0:
                self.opened.append(candidate)
                self.left[self.label[candidate]] -= 1
        self._rank()

    @property
    def value(self) -> float:
        return float(self.first.sum())

    def _rank(self) -> None:
        """Nearest open column of each item (position in ``opened``; K: left out), its cost, and the second cost."""
        columns = self.costs[:, [*self.opened, -1]]
        rows = np.arange(len(columns))
        self.nearest = columns.argmin(axis=1)
        self.first = columns[rows, self.nearest]
        columns[rows, self.nearest] = np.inf
        self.second = columns.min(axis=1)

    def add_greedily(self, search: Search, among: NDArray[np.bool_] | None = None) -> None:
        """Open the candidate that lowers the value most, one after another, while a limit allows it and it helps."""
        best = self.costs[:, [*self.opened, -1]].min(axis=1)
        usable = np.ones(self.problem.candidates, bool) if among is None else among.copy()
        usable[self.opened] = False
        while not search.expired():
            free = np.flatnonzero(usable & (self.left[self.label] > 0))
            if not len(free):
                break
            values = np.minimum(self.costs[:, free], best[:, None]).sum(axis=0)
            candidate = int(free[values.argmin()])
            if values.min() >= best.sum() - self.tiny:
                break
            best = np.minimum(best, self.costs[:, candidate])
            self.opened.append(candidate)
            self.left[self.label[candidate]] -= 1
            usable[candidate] = False
        self._rank()

    def swap_until_stuck(self, search: Search, order: NDArray[np.intp]) -> None:
        """Open each candidate in turn, close the one that is missed least, keep what pays (FasterPAM's eager swap).

        Schubert & Rousseeuw 2021. With limits by label only candidates of one label are exchanged, and a candidate is
        added without closing any where its label has bases to spare.
        """
        is_open = np.zeros(self.problem.candidates, bool)
        is_open[self.opened] = True
        since = position = 0
        while since < len(order) and not search.expired():
            candidate = int(order[position])
            position, since = (position + 1) % len(order), since + 1
            code = self.label[candidate]
            if is_open[candidate] or not self.limits[code]:
                continue
            cost = self.costs[:, candidate]
            gain = float(np.minimum(cost - self.first, 0.0).sum())
            if self.left[code] > 0:
                if gain < -self.tiny:
                    self.opened.append(candidate)
                    self.left[code] -= 1
                    is_open[candidate] = True
                    self._rank()
                    since = 0
                continue
            missed = np.minimum(self.second, cost) - np.minimum(self.first, cost)
            loss = np.bincount(self.nearest, weights=missed, minlength=len(self.opened) + 1)[: len(self.opened)]
            loss[self.label[self.opened] != code] = np.inf
            closed = int(loss.argmin())
            if gain + loss[closed] < -self.tiny:
                is_open[self.opened[closed]] = False
                is_open[candidate] = True
                self.opened[closed] = candidate
                self._rank()
                since = 0

    def disturb(self, rng: np.random.Generator, share: float) -> None:
        """Close a random share of the open candidates, two at least; greedy adding then fills the gaps differently."""
        number = min(len(self.opened), max(2, round(share * len(self.opened))))
        for position in sorted(rng.choice(len(self.opened), number, replace=False).tolist(), reverse=True):
            self.left[self.label[self.opened.pop(position)]] += 1
        for _ in range(number // 2):
            free = np.flatnonzero(self.left[self.label] > 0)
            free = free[~np.isin(free, self.opened)]
            if len(free):
                candidate = int(rng.choice(free))
                self.opened.append(candidate)
                self.left[self.label[candidate]] -= 1
        self._rank()


def greedy_medoids(problem: MedoidProblem, search: Search, among: Iterable[int] | None = None) -> None:
    """Greedy adding, offered to the search. ``among`` restricts the first round; all others may fill what it leaves."""
    state = OpenSet(problem)
    if among is not None:
        allowed = np.zeros(problem.candidates, bool)
        allowed[list(among)] = True
        state.add_greedily(search, allowed)
        search.offer(problem.assign(state.opened))
    state.add_greedily(search)
    search.offer(problem.assign(state.opened))


def search_medoids(problem: MedoidProblem, search: Search, *, rounds: int) -> None:
    """Swaps from the incumbent (or greedy), then ``rounds`` restarts from disturbed incumbents."""
    rng = np.random.default_rng(search.seed)
    if search.best is None:
        greedy_medoids(problem, search)
    seeds = [b for b in problem.representatives(search.best) if b >= 0] if search.best is not None else []
    state = OpenSet(problem, dict.fromkeys(seeds))
    state.add_greedily(search)
    best, best_value = list(state.opened), np.inf
    for turn in range(rounds + 1):
        if turn:
            if search.expired() or not best:
                break
            state = OpenSet(problem, best)
            state.disturb(rng, 0.3)
            state.add_greedily(search)
        state.swap_until_stuck(search, rng.permutation(problem.candidates))
        if state.value < best_value - state.tiny:
            best, best_value = list(state.opened), state.value
            search.offer(problem.assign(best))
