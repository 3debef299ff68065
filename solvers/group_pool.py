"""The classes of a group problem priced so far, and the search for cheaper ones under dual prices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from solvers.group import GroupProblem
from solvers.search import Search
from solvers.set_partitioning import Duals

Floats = NDArray[np.float64]
Class = tuple[int, ...]


class Pool:
    """All priced classes of finite cost as arrays that grow with the problem's memory.

    The reduced cost of a class is ``f(S) − Σ_{ℓ∈S} π_ℓ − σ``: what it would save if the duals were right.
    """

    def __init__(self, problem: GroupProblem) -> None:
        self.problem = problem
        self.seen = 0
        self.groups: list[Class] = []
        self._membership = np.zeros((64, problem.size), dtype=bool)
        self._prices = np.zeros(64)
        self.listed: list[Class] | None = None  # every allowed class, once listed with none left out
        self.refresh()

    @property
    def membership(self) -> NDArray[np.bool_]:
        return self._membership[: len(self.groups)]

    @property
    def prices(self) -> Floats:
        return self._prices[: len(self.groups)]

    def refresh(self) -> None:
        """Take in what has been priced since."""
        for items, price in itertools.islice(self.problem.priced.items(), self.seen, None):
            if math.isfinite(price):
                at = len(self.groups)
                if at == len(self._prices):
                    self._membership = np.concatenate([self._membership, np.zeros_like(self._membership)])
                    self._prices = np.concatenate([self._prices, np.zeros_like(self._prices)])
                self.groups.append(items)
                self._membership[at, list(items)] = True
                self._prices[at] = price
        self.seen = len(self.problem.priced)

    def reduced(self, duals: Duals) -> Floats:
        """``[n]``: the reduced cost of each class in the pool."""
        return np.asarray(self.prices - self.membership @ duals.values - duals.base)

    def improve(self, duals: Duals, search: Search, tiny: float, calls: int, seeds: int = 12, tries: int = 6) -> bool:
        """Grow, shrink and swap the classes of least reduced cost until nothing helps; whether one got below 0.

        At most ``calls`` new classes are priced.
        """
        most = self.problem.oracle_calls + calls
        reduced = self.reduced(duals)
        found = False
        for at in np.argsort(reduced, kind="stable")[:seeds].tolist():
            members, value = self.groups[at], float(reduced[at])
            better = True
            while better and self.problem.oracle_calls < most:
                better = False
                for changed in self._changes(members, duals, tries):
                    if search.expired() or self.problem.oracle_calls >= most:
                        break
                    new = self._value(changed, duals)
                    if new < value - tiny:
                        members, value, better = changed, new, True
                        break
            found |= value < -tiny
            if search.cut_short:
                break
        self.refresh()
        return found

    def _value(self, members: Class, duals: Duals) -> float:
        return self.problem.class_cost(members) - float(duals.values[list(members)].sum()) - duals.base

    def _changes(self, members: Class, duals: Duals, tries: int) -> Iterator[Class]:
        """The class with one item more, those that pay most first; with one less; with one for another."""
        inside = list(members)
        allowed = set(np.flatnonzero(self.problem.compatible[inside].all(axis=0)).tolist()) - set(inside)
        joining = [item for item in np.argsort(-duals.values, kind="stable").tolist() if item in allowed]
        for item in joining[:tries]:
            yield tuple(sorted((*members, item)))
        poorest = sorted(members, key=lambda item: duals.values[item])[:tries]
        if len(members) > 1:
            for item in poorest:
                yield tuple(i for i in members if i != item)
            for item, other in itertools.product(poorest[:3], range(self.problem.size)):
                rest = [i for i in members if i != item]
                if other not in members and self.problem.compatible[other, rest].all():
                    yield tuple(sorted((*rest, other)))

    def candidates(self, duals: Duals, threshold: float, most: int, search: Search) -> list[Class] | None:
        """Every allowed class whose reduced cost may be up to ``threshold``; None where that is more than ``most``.

        Classes are left out only where ``item_lower_bound`` or ``marginal_lower_bound`` shows that they and all larger
        ones cost more. For the latter the oracle is asked; without either these are all allowed classes.
        """
        if self.listed is not None:
            return self.listed
        problem, size, values = self.problem, self.problem.size, duals.values
        nothing = np.full(size, -np.inf)
        share = nothing if problem.item_lower_bound is None else problem.item_lower_bound - values
        added = nothing if problem.marginal_lower_bound is None else problem.marginal_lower_bound - values
        priced = problem.marginal_lower_bound is not None
        order = np.argsort(added if priced else share, kind="stable").tolist()
        slack, growth = share[order].tolist(), added[order].tolist()
        pairs = np.triu(problem.compatible[np.ix_(order, order)], 1)
        follows = [sum(1 << int(b) for b in np.flatnonzero(row)) for row in pairs]
        found: list[Class] = []
        looked = 0
        stack: list[tuple[Class, int, float]] = [((), (1 << size) - 1, -duals.base)]
        while stack:
            chosen, ahead, least = stack.pop()
            for at in _places(ahead):
                looked += 1
                if looked > (most if priced else 20 * most) or (looked % 256 == 0 and search.expired(2e5)):
                    return None
                members, follow = tuple(sorted((*chosen, order[at]))), ahead & follows[at]
                grown = exact = least + slack[at]
                if priced:
                    exact = self._value(members, duals)
                if exact <= threshold:
                    found.append(members)
                    if len(found) > most:
                        return None
                larger = max(_least(grown, slack, follow), _least(exact, growth, follow) if priced else -math.inf)
                if follow and larger <= threshold:
                    stack.append(((*chosen, order[at]), follow, grown))
        if problem.item_lower_bound is None and not priced:
            self.listed = found
        return found


def _least(value: float, slack: list[float], follow: int) -> float:
    """The least that a value comes to when any of the items that follow join."""
    return value + sum(min(slack[at], 0.0) for at in _places(follow))


def _places(mask: int) -> Iterator[int]:
    """The places of the bits that are set, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
