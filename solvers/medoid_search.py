"""Search over sets of open candidates: greedy adding, and swaps evaluated for all removals at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.medoid import MedoidProblem
from solvers.search import Search

Medoids = list[int]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

BLOCK = 1 << 16
"""Entries of the cost matrix that are looked at together: they stay in a processor's cache."""


class OpenSet:
    """The open candidates of a medoid problem, each item's nearest and second nearest among them.

    Row b of ``columns`` holds what candidate b costs each item. Row B is "left out": the item's penalty, always open,
    never removed. Where an item has no penalty it holds a price above any difference that allowed costs can make, and
    forbidden pairs cost the same. So every set of candidates has a finite value, and it is at least ``forbidden``
    exactly when some item is not served.

    Attributes:
        opened: the open candidates; a place in this list is their position, and position ``len(opened)`` is left out.
        left: how many more candidates of each label may open.
        nearest, first, next_nearest, second: positions and costs of each item's nearest two.
    """

    def __init__(self, problem: MedoidProblem, opened: Iterable[int] = ()) -> None:
        self.problem = problem
        self.columns = np.empty((problem.candidates + 1, problem.size))
        self.columns[:-1] = problem.cost_matrix.T
        self.columns[-1] = problem.penalties()
        finite = np.isfinite(self.columns)
        top = self.columns.max(axis=0, initial=0.0, where=finite)
        low = self.columns.min(axis=0, initial=0.0, where=finite)
        self.forbidden = 1.0 + 2.0 * float((top - low).sum() + np.abs(low).sum())
        if not finite.all():
            self.columns[~finite] = self.forbidden
        self.label, self.limits = problem.label, problem.limits
        self.reopen(opened)

    def reopen(self, opened: Iterable[int]) -> None:
        """Open these candidates and no others; those beyond their label's limit stay closed."""
        self.opened: Medoids = []
        self.left = self.limits.copy()
        self._is_open = np.zeros(self.problem.candidates, bool)
        for candidate in opened:
            if self.left[self.label[candidate]] > 0:
                self._open(candidate)
        self._rank()

    @property
    def value(self) -> float:
        return float(self.first.sum())

    @property
    def tiny(self) -> float:
        """Differences up to this are rounding errors."""
        return 1e-12 * float(np.abs(self.first).sum())

    def _open(self, candidate: int) -> None:
        self.opened.append(candidate)
        self._is_open[candidate] = True
        self.left[self.label[candidate]] -= 1

    def _rank(self, items: Indices | None = None) -> None:
        """Look up the nearest two of these items anew, of all when None."""
        self._grouped: tuple[Indices, Indices, Indices, Floats, Floats] | None = None
        rows = np.array([*self.opened, len(self.columns) - 1])
        costs = self.columns[rows] if items is None else self.columns[np.ix_(rows, items)]
        each = np.arange(costs.shape[1])
        nearest = costs.argmin(axis=0)
        first = costs[nearest, each]
        costs[nearest, each] = np.inf
        following = costs.argmin(axis=0)
        second = costs[following, each]
        if items is None:
            self.nearest, self.first, self.next_nearest, self.second = nearest, first, following, second
        else:
            self.nearest[items], self.first[items] = nearest, first
            self.next_nearest[items], self.second[items] = following, second

    def add_greedily(self, search: Search, among: NDArray[np.bool_] | None = None) -> None:
        """Open the candidate that lowers the value most, one after another, while a limit allows it and it helps.

        What each candidate would gain is kept up to date: only the items that come by a cheaper basis change it.
        """
        best = self.first.copy()
        usable = np.ones(self.problem.candidates, bool) if among is None else among.copy()
        usable[self.opened] = False
        if not (usable & (self.left[self.label] > 0)).any():
            return
        gains, exact = self._gains(best, search), True
        while not search.expired(len(gains)):
            free = np.flatnonzero(usable & (self.left[self.label] > 0))
            if not len(free):
                break
            candidate = int(free[gains[free].argmax()])
            if gains[candidate] <= 1e-12 * float(np.abs(best).sum()):
                break
            self._open(candidate)
            usable[candidate] = False
            changed = np.flatnonzero(self.columns[candidate] < best)
            lower = self.columns[candidate, changed]
            unserved = bool((best[changed] >= self.forbidden).any())
            for begin in range(0, len(changed), 1 + 16 * BLOCK // (len(gains) + 1)):
                part = slice(begin, begin + 1 + 16 * BLOCK // (len(gains) + 1))
                costs = self.problem.cost_matrix[changed[part]]
                gains -= np.maximum(best[changed[part], None] - costs, 0.0).sum(axis=0)
                gains += np.maximum(lower[part, None] - costs, 0.0).sum(axis=0)
            search.spend(2 * len(changed) * len(gains))
            best[changed] = lower
            exact = exact and not unserved
            if not exact and not (best >= self.forbidden).any():  # large prices are gone: rid the gains of their errors
                gains, exact = self._gains(best, search), True
        self._rank()

    def _gains(self, best: Floats, search: Search) -> Floats:
        step = 1 + BLOCK // (len(best) + 1)
        gains = np.zeros(self.problem.candidates)
        for begin in range(0, len(gains), step):
            rows = self.columns[begin : min(begin + step, len(gains))]
            gains[begin : begin + step] = np.maximum(best - rows, 0.0).sum(axis=1)
            search.spend(rows.size)
        return gains

    def swap_until_stuck(self, search: Search, order: Indices) -> None:
        """Open candidates, close those that are missed least, as long as that pays (FasterPAM's eager swap).

        Schubert & Rousseeuw 2021: the loss of each removal is kept, and what a candidate changes about it is summed up
        for all removals at once; here for a block of candidates at once, whose best exchange is carried out. With
        limits by label only candidates of one label are exchanged, and a candidate is added without closing any where
        its label has bases to spare.
        """
        step = 1 + BLOCK // (self.problem.size + 1)
        blocks = [
            members[begin : begin + step]
            for code in np.flatnonzero(self.limits > 0)
            for members in (order[self.label[order] == code],)
            for begin in range(0, len(members), step)
        ]
        since = position = 0
        while since < len(blocks):
            block = blocks[position]
            if search.expired(4 * len(block) * self.problem.size):
                return
            position, since = (position + 1) % len(blocks), since + 1
            if self._improve(block):
                since = 0

    def _improve(self, block: Indices) -> bool:
        """Carry out the best exchange that opens one of these candidates, all of one label; whether there was one."""
        code = self.label[block[0]]
        if self.left[code] > 0:
            gains = np.minimum(self.columns[block] - self.first, 0.0).sum(axis=1)
            gains[self._is_open[block]] = 0.0
            at = int(gains.argmin())
            if gains[at] >= -self.tiny:
                return False
            self._open(int(block[at]))
            self._rank()
            return True
        if self._grouped is None:
            order = np.argsort(self.nearest, kind="stable")
            starts = np.flatnonzero(np.diff(self.nearest[order], prepend=-1))
            # the positions that are nearest to someone: closing another costs nothing
            self._grouped = order, starts, self.nearest[order[starts]], self.first[order], self.second[order]
        order, starts, served, first, second = self._grouped
        costs = self.columns[np.ix_(block, order)]
        gains = np.minimum(costs - first, 0.0).sum(axis=1)
        np.minimum(costs, second, out=costs)
        np.maximum(costs, first, out=costs)
        costs -= first
        losses = np.zeros((len(block), len(self.opened) + 1))
        losses[:, served] = np.add.reduceat(costs, starts, axis=1)
        losses[:, -1] = np.inf
        if len(self.limits) > 1:
            losses[:, :-1][:, self.label[self.opened] != code] = np.inf
        losses += gains[:, None]
        losses[self._is_open[block]] = np.inf
        at, closed = divmod(int(losses.argmin()), losses.shape[1])
        return bool(losses[at, closed] < -self.tiny) and self._exchange(closed, int(block[at]))

    def _exchange(self, closed: int, candidate: int) -> bool:
        """Put a candidate in the place of another; undone where rounding errors were all that it gained."""
        before = (self.opened[closed], self.nearest, self.first, self.next_nearest, self.second)
        value, cost = self.value, self.columns[candidate]
        lost = np.flatnonzero((self.nearest == closed) | (self.next_nearest == closed))
        self.opened[closed] = candidate
        self._is_open[[before[0], candidate]] = False, True
        wins, follows = cost < self.first, cost < self.second
        self.second = np.where(wins, self.first, np.where(follows, cost, self.second))
        self.next_nearest = np.where(wins, self.nearest, np.where(follows, closed, self.next_nearest))
        self.first, self.nearest = np.where(wins, cost, self.first), np.where(wins, closed, self.nearest)
        self._rank(lost)
        if self.value < value:
            return True
        self.opened[closed], self.nearest, self.first, self.next_nearest, self.second = before
        self._is_open[[before[0], candidate]] = True, False
        self._grouped = None
        return False

    def disturb(self, rng: np.random.Generator, share: float) -> None:
        """Close a random share of the open candidates, two at least; greedy adding then fills the gaps differently."""
        number = min(len(self.opened), max(2, round(share * len(self.opened))))
        for position in sorted(rng.choice(len(self.opened), number, replace=False).tolist(), reverse=True):
            closed = self.opened.pop(position)
            self._is_open[closed] = False
            self.left[self.label[closed]] += 1
        for _ in range(number // 2):
            free = np.flatnonzero(self.left[self.label] > 0)
            free = free[~self._is_open[free]]
            if len(free):
                self._open(int(rng.choice(free)))
        self._rank()


def medoids_of(problem: MedoidProblem, search: Search) -> Medoids:
    """The open candidates of the incumbent."""
    chosen: Sequence[int] = problem.representatives(search.best) if search.best is not None else ()
    return list(dict.fromkeys(b for b in chosen if b >= 0))


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


def search_medoids(problem: MedoidProblem, search: Search, *, rounds: int, state: OpenSet | None = None) -> None:
    """Swaps from the incumbent (or greedy), then ``rounds`` restarts from disturbed incumbents.

    ``state`` is an open set of the problem to work with, where there is one already.
    """
    rng = np.random.default_rng(search.seed)
    state = OpenSet(problem) if state is None else state
    state.reopen(medoids_of(problem, search))
    state.add_greedily(search)
    search.offer(problem.assign(state.opened))
    best, best_value = list(state.opened), np.inf
    for turn in range(rounds + 1):
        if turn:
            if search.expired() or not best:
                break
            state.reopen(best)
            state.disturb(rng, 0.3)
            state.add_greedily(search)
        state.swap_until_stuck(search, rng.permutation(problem.candidates))
        if state.value < best_value:
            best, best_value = list(state.opened), state.value
            search.offer(problem.assign(best))
