"""Agglomerative merging: start with every item alone and join the two classes that gain most."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.pairwise import PairwiseProblem


def merge_pairwise(problem: PairwiseProblem, start: Coloring | None = None) -> Coloring:
    """Merge while a merge pays, and on while there are more than K colors and two of them may still be joined.

    The gain of a merge is the sum of the weights between two classes less ``opening``, so a merge adds two rows: O(L²)
    for each merge and nothing is priced twice.
    """
    classes = [list(c) for c in (start or Coloring(range(problem.size))).classes()]
    number = len(classes)
    member = np.zeros((number, problem.size))
    for color, items in enumerate(classes):
        member[color, items] = 1.0
    change = member @ problem.weight @ member.T - problem.opening
    change[(member @ problem.conflict @ member.T) > 0] = np.inf
    np.fill_diagonal(change, np.inf)
    left, tiny = number, 1e-12 * problem.scale
    while left > 1:
        a, b = divmod(int(change.argmin()), number)
        if not (change[a, b] < -tiny or (left > problem.limit and math.isfinite(change[a, b]))):
            break
        classes[a] += classes[b]
        classes[b] = []
        change[a] += change[b] + problem.opening
        change[:, a] = change[a]
        change[b] = change[:, b] = change[a, a] = np.inf
        left -= 1
    return Coloring.from_classes([c for c in classes if c], problem.size)


def merge_groups(problem: GroupProblem, stop: Callable[[], bool], start: Coloring | None = None) -> Coloring:
    """The same for set functions: each merge asks the oracle only about pairs with the new class.

    Items whose penalty is below their own price begin out of every basis. While more than K classes own one, the
    cheapest step is taken even if it costs: a merge, or an item that gives its basis up. Stops early, with what there
    is, when ``stop()`` says so.
    """
    state = _Merging(problem, stop, start)
    while not stop():
        gain, pair = state.best_merge()
        if state.owners > problem.limit:
            loss, item = state.cheapest_exit()
            if min(gain, loss) == math.inf:
                break
            if loss <= gain:
                state.leave(item)
            else:
                state.merge(*pair)
        elif gain < -1e-12 * problem.scale:
            state.merge(*pair)
        else:
            break
    return Coloring.from_classes([c for c in state.classes if c], problem.size)


class _Merging:
    """Classes, their prices and the change of cost of every merge of two of them, kept up to date merge by merge."""

    def __init__(self, problem: GroupProblem, stop: Callable[[], bool], start: Coloring | None) -> None:
        self.problem, self.stop = problem, stop
        self.penalties = problem.penalties()
        self.classes: list[tuple[int, ...]] = list((start or Coloring(range(problem.size))).classes())
        self.price = np.array([problem.class_cost(c) for c in self.classes], dtype=np.float64)
        self.exit = np.array([self.penalties[c[0]] if len(c) == 1 else math.inf for c in self.classes])
        self.out = self.exit < self.price
        number = len(self.classes)
        self.change: NDArray[np.float64] = np.full((number, number), np.inf)
        self._prefilter()
        for a in range(number):
            if stop():
                break
            for b in np.flatnonzero(self.may_join[a, a + 1 :]) + a + 1:
                self._price_merge(a, int(b))

    def _prefilter(self) -> None:
        """Merges that a conflicting pair rules out are never priced."""
        clash = ~self.problem.compatible
        member = np.zeros((len(self.classes), self.problem.size), dtype=np.float32)
        for color, items in enumerate(self.classes):
            member[color, list(items)] = 1
        self.may_join = (member @ clash.astype(np.float32) @ member.T) == 0
        np.fill_diagonal(self.may_join, False)

    @property
    def owners(self) -> int:
        return sum(bool(c) for c in self.classes) - int(self.out.sum())

    def current(self, a: int) -> float:
        return float(self.exit[a] if self.out[a] else self.price[a])

    def best_merge(self) -> tuple[float, tuple[int, int]]:
        """The best merge that K allows: beyond K only one that saves a basis, at K none that takes another."""
        if not self.change.size:
            return math.inf, (0, 0)
        owns = (~self.out).astype(np.int64)
        owners_after = self.owners + 1 - owns[:, None] - owns[None, :]
        room = max(self.problem.limit, self.owners - 1)
        change = np.where(owners_after <= room, self.change, np.inf)
        a, b = divmod(int(change.argmin()), len(self.classes))
        return float(change[a, b]), (a, b)

    def cheapest_exit(self) -> tuple[float, int]:
        owned = np.array([bool(c) for c in self.classes]) & ~self.out & np.isfinite(self.exit)
        if not owned.any():
            return math.inf, 0
        loss = np.where(owned, self.exit - np.where(np.isfinite(self.price), self.price, 0.0), np.inf)
        loss[owned & np.isinf(self.price)] = -np.inf
        return float(loss.min()), int(loss.argmin())

    def leave(self, a: int) -> None:
        self.out[a] = True
        for b in np.flatnonzero(self.may_join[a]):
            self._price_merge(a, int(b))

    def merge(self, a: int, b: int) -> None:
        self.classes[a] = tuple(sorted(self.classes[a] + self.classes[b]))
        self.classes[b] = ()
        self.price[a] = self.problem.class_cost(self.classes[a])
        self.exit[a] = math.inf
        self.out[a] = self.out[b] = False
        self.may_join[a] &= self.may_join[b]
        self.may_join[:, a] = self.may_join[a]
        self.may_join[b] = self.may_join[:, b] = False
        for dead in (a, b):
            self.change[dead] = self.change[:, dead] = np.inf
        for c in np.flatnonzero(self.may_join[a]):
            if self.stop():
                break
            self._price_merge(a, int(c))

    def _price_merge(self, a: int, b: int) -> None:
        """inf − inf must not become NaN: a class without a price gains everything by being joined."""
        joint = self.problem.class_cost(self.classes[a] + self.classes[b])
        apart = self.current(a) + self.current(b)
        self.change[a, b] = self.change[b, a] = joint - apart if math.isfinite(joint) else math.inf
