"""The p-median problem with its assignment constraints relaxed: bounds, likely medoids, candidates that can be fixed.

With a multiplier ``u_ℓ`` for "item ℓ takes one candidate" the problem falls apart by candidates (Cornuéjols, Fisher &
Nemhauser 1977): ``L(u) = Σ u_ℓ + Σ_g (the K_g smallest of ρ_b)``, ``ρ_b = Σ_ℓ min(c_ℓb − u_ℓ, 0)``. Only pairs with
``c_ℓb < u_ℓ`` count, a few for each item near the best multipliers, so only those are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from solvers.medoid import MedoidProblem
from solvers.problem import Problem
from solvers.search import Search

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of item and candidate, candidate by candidate.

    Attributes:
        candidates: those that have any pair, ascending.
        starts: ``[len(candidates) + 1]``, where the pairs of each begin; the last entry is their number.
        items, costs: ``[pairs]``.
    """

    candidates: Indices
    starts: Indices
    items: Indices
    costs: Floats

    @classmethod
    def of(cls, candidate: Indices, items: Indices, costs: Floats) -> Pairs:
        """``candidate``: of each pair, ascending."""
        starts = np.flatnonzero(np.diff(candidate, prepend=-1))
        return cls(candidate[starts], np.append(starts, len(items)), items, costs)

    def of_candidates(self, places: Indices) -> Indices:
        """The positions of the pairs of these candidates, given by their places in ``candidates``."""
        begin = self.starts[places]
        lengths = self.starts[places + 1] - begin
        ends = np.cumsum(lengths)
        return np.repeat(begin - ends + lengths, lengths) + np.arange(int(ends[-1]) if len(ends) else 0)


class Costs(Protocol):
    """What the relaxation asks of a medoid problem, be it dense or sparse.

    Attributes:
        low, cap: ``[L]``; item ℓ costs at least ``low`` and, in any coloring of interest, at most ``cap``: its penalty,
            or a price above all that matters. Multipliers above it would prove nothing more.
        label, limits: as in ``MedoidProblem``.
    """

    low: Floats
    cap: Floats
    label: Labels
    limits: Labels

    def below(self, reach: Floats, usable: Mask) -> Pairs:
        """The pairs of usable candidates that cost less than ``reach`` of their item."""


class DenseCosts:
    """Costs held as ``columns[b, ℓ]``, finite, as in ``medoid_search.OpenSet``."""

    def __init__(self, columns: Floats, cap: Floats, label: Labels, limits: Labels) -> None:
        self.columns, self.cap, self.label, self.limits = columns, cap, label, limits
        self.low = np.minimum(columns[limits[label] > 0].min(axis=0, initial=math.inf), cap)

    @classmethod
    def of(cls, problem: MedoidProblem) -> DenseCosts:
        """A forbidden pair, or an item left out without a penalty, costs more than all allowed pairs can differ by."""
        columns = np.vstack([problem.cost_matrix.T, problem.penalties()])
        finite = np.isfinite(columns)
        top, low = columns.max(axis=0, initial=0.0, where=finite), columns.min(axis=0, initial=0.0, where=finite)
        columns[~finite] = 1.0 + 2.0 * float((top - low).sum() + np.abs(low).sum())
        return cls(columns[:-1], columns[-1], problem.label, problem.limits)

    def below(self, reach: Floats, usable: Mask) -> Pairs:
        chosen = np.flatnonzero(usable)
        columns = self.columns if len(chosen) == len(self.columns) else self.columns[chosen]
        near = columns < reach
        rows, items = np.nonzero(near)
        return Pairs.of(chosen[rows], items, columns[near])


class SparseCosts:
    """Costs listed pair by pair, ``candidate`` ascending; ``out[ℓ]`` is what item ℓ pays when nothing serves it."""

    def __init__(
        self, candidate: Indices, item: Indices, cost: Floats, out: Floats, label: Labels, limits: Labels
    ) -> None:
        self.candidate, self.item, self.cost, self.cap = candidate, item, cost, out
        self.label, self.limits = label, limits
        self.low = out.copy()
        listed = limits[label[candidate]] > 0
        np.minimum.at(self.low, item[listed], cost[listed])

    def below(self, reach: Floats, usable: Mask) -> Pairs:
        near = np.flatnonzero((self.cost < reach[self.item]) & usable[self.candidate])
        return Pairs.of(self.candidate[near], self.item[near], self.cost[near])


@dataclass(frozen=True)
class Point:
    """The relaxation at one vector of multipliers.

    Attributes:
        u: ``[L]`` the multipliers.
        rho: ``[B]`` ρ_b ≤ 0 of each candidate (0 for those that are closed).
        chosen: the candidates that the relaxation opens.
        value: L(u), a lower bound under the candidates fixed so far.
    """

    u: Floats
    rho: Floats
    chosen: Indices
    value: float


class Relaxation:
    """Lagrange multipliers, improved by subgradient steps, and the candidates that they fix.

    Attributes:
        costs: the problem.
        usable: ``[B]`` False for candidates that no better coloring opens.
        always: ``[B]`` True for candidates that every better coloring opens.
        best: the point with the largest value so far.
        upper: the cost of the best coloring known.
        share: ``[B]`` how often the relaxation opened each candidate of late: nearly its primal solution.
    """

    def __init__(self, costs: Costs, u: Floats, upper: float) -> None:
        self.costs = costs
        self.usable = costs.limits[costs.label] > 0
        self.always = np.zeros(len(self.usable), bool)
        self.upper = upper
        u = np.minimum(u, costs.cap)
        self._gather(u)
        self.best = self.at(u)
        self.share = np.zeros(len(self.usable))

    def _gather(self, u: Floats) -> None:
        """The pairs that multipliers near ``u`` may need."""
        spread = float(np.mean(u - self.costs.low)) if len(u) else 0.0
        self.reach = np.minimum(u + 0.25 * abs(spread), self.costs.cap)
        self.pairs = self.costs.below(self.reach, self.usable)

    def at(self, u: Floats) -> Point:
        """L(u). Multipliers above ``reach`` need ``_gather`` first."""
        rho = np.zeros(len(self.usable))
        if len(self.pairs.items):
            under = self.pairs.costs - u[self.pairs.items]
            np.minimum(under, 0.0, out=under)
            rho[self.pairs.candidates] = np.add.reduceat(under, self.pairs.starts[:-1])
        chosen = choose(rho, self.costs.label, self.costs.limits, self.always)
        return Point(u, rho, chosen, float(u.sum() + rho[chosen].sum()))

    def slope(self, point: Point) -> Floats:
        """A subgradient of L: one minus how many chosen candidates each item takes."""
        places = np.searchsorted(self.pairs.candidates, point.chosen)
        places = places[places < len(self.pairs.candidates)]
        places = places[np.isin(self.pairs.candidates[places], point.chosen)]
        positions = self.pairs.of_candidates(places)
        items = self.pairs.items[positions]
        taken = items[self.pairs.costs[positions] < point.u[items]]
        number: Floats = np.bincount(taken, minlength=len(point.u)).astype(np.float64)
        return 1.0 - number

    def climb(
        self,
        search: Search,
        steps: int,
        cutoff: Callable[[], float],
        improve: Callable[[Point], float] | None = None,
        *,
        size: float = 1.5,
        patience: int = 15,
        every: int = 20,
    ) -> None:
        """Subgradient steps after Polyak, deflected by the previous direction (Camerini, Fratta & Maffioli 1975).

        Args:
            search: whose clock is kept.
            steps: how many at most; it ends before when steps have become tiny or the bound reaches the cutoff.
            cutoff: a bound of this or more leaves no better coloring.
            improve: called now and then with a point; makes a coloring of it and returns the best cost known.
            size: of the first step, as a share of Polyak's.
            patience: steps without a better bound before they become smaller.
            every: after how many steps ``improve`` is called again.
        """
        point, previous, stalled = self.best, np.zeros_like(self.best.u), 0
        self._gather(point.u)
        gathered = 0
        for step in range(steps):
            if search.expired(5 * len(self.pairs.items) + 10 * len(point.u)) or self.best.value >= cutoff():
                return
            slope = self.slope(point)
            slope[(slope > 0) & (point.u >= self.costs.cap)] = 0.0
            direction = slope + 0.3 * previous
            previous = direction
            length = float(direction @ direction)
            goal = self.upper if math.isfinite(self.upper) else self.best.value + 0.1 * abs(self.best.value) + 1e-300
            gap = max(goal - point.value, 1e-9 * abs(goal))
            if not slope.any() or length == 0 or size < 1e-3:
                return
            u = np.minimum(point.u + size * gap / length * direction, self.costs.cap)
            over = u > self.reach
            if step - gathered >= 30 or np.count_nonzero(over) > 0.02 * len(u):
                self._gather(u)
                gathered = step
            else:
                np.minimum(u, self.reach, out=u)
            point = self.at(u)
            self.share *= 0.95
            self.share[point.chosen] += 0.05
            if point.value > self.best.value:
                stalled = 0 if point.value > self.best.value + 1e-4 * (goal - self.best.value) else stalled + 1
                self.best = point
            else:
                stalled += 1
            if stalled >= patience:
                size, stalled, point = size * 0.7, 0, self.best
            if improve is not None and step % every == every // 2:
                self.upper = improve(point)
                self.fix(self.best, cutoff())

    def fix(self, point: Point, cutoff: float) -> None:
        """Close the candidates whose opening, and open those whose closing, would raise the bound to the cutoff.

        The bound under "b is open" is L(u) + ρ_b less the dearest candidate that makes room for b, and the other way
        round; a coloring better than the incumbent stays below the cutoff.
        """
        labels = self.costs.label, self.costs.limits
        close, keep = fixable(point.value, point.rho, point.chosen, *labels, self.usable, self.always, cutoff)
        self.usable &= ~close
        self.always |= keep


def choose(rho: Floats, label: Labels, limits: Labels, always: Mask) -> Indices:
    """The candidates that are always open, and those of the least ρ < 0 up to each label's limit."""
    chosen = [np.flatnonzero(always)]
    for code, limit in enumerate(limits):
        free = np.flatnonzero((label == code) & (rho < 0) & ~always)
        left = int(limit) - int((always & (label == code)).sum())
        if len(free) > left:
            free = free[np.argpartition(rho[free], left - 1)[:left]] if left > 0 else free[:0]
        chosen.append(free)
    return np.concatenate(chosen)


def fixable(
    value: float,
    rho: Floats,
    chosen: Indices,
    label: Labels,
    limits: Labels,
    usable: Mask,
    always: Mask,
    cutoff: float,
) -> tuple[Mask, Mask]:
    """Which free candidates may be closed, and which opened for good, see ``Relaxation.fix``."""
    close, keep, is_chosen = np.zeros(len(rho), bool), np.zeros(len(rho), bool), np.zeros(len(rho), bool)
    is_chosen[chosen] = True
    for code, limit in enumerate(limits):
        mine = usable & (label == code)
        free = np.flatnonzero(mine & is_chosen & ~always)
        others = np.flatnonzero(mine & ~is_chosen)
        full = int((mine & is_chosen).sum()) >= limit
        dearest = float(rho[free].max(initial=-math.inf)) if full else 0.0
        next_best = float(rho[others].min(initial=0.0))
        close[others[value + rho[others] - dearest >= cutoff]] = True
        keep[free[value - rho[free] + next_best >= cutoff]] = True
    return close, keep


def cutoff_of(cost: float, problem: Problem) -> float:
    """A lower bound of so much leaves no coloring that is worth more than a rounding error below ``cost``."""
    if not math.isfinite(cost):
        return cost
    if problem.grain and abs(cost) <= 1e9 * problem.grain:
        return cost - problem.grain * (1 - 2e-6)
    return cost - 1e-7 * abs(cost)
