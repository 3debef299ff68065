"""Evidence for lower bounds, as plain data: each kind says how the bound follows from the problem's own costs.

Nothing here shares code with the solvers that make certificates; ``solvers.certify`` puts them to use. Sums are exact
(``math.fsum``), so a bound is right up to the rounding of single subtractions, about 1e-16 of the largest cost an item.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.sparse_medoid import SparseMedoidProblem


class Certificate(ABC):
    """A claim about all colorings of a problem that anybody can recompute."""

    @abstractmethod
    def bound(self, problem: Problem) -> float:
        """The lower bound that this evidence proves, recomputed from the problem; inf where it proves infeasibility.

        Raises:
            ValueError: when it does not fit the problem.
        """


@dataclass(frozen=True)
class Multipliers(Certificate):
    """Lagrange multipliers of a medoid problem's assignment constraints, one for each item.

    ``L(u) = Σ u_ℓ + Σ_g (the K_g smallest of min(ρ_b, 0)) + Σ min(penalty_ℓ − u_ℓ, 0)`` with
    ``ρ_b = Σ_ℓ min(c_ℓb − u_ℓ, 0)`` holds at any finite ``u`` (Cornuéjols, Fisher & Nemhauser 1977). An infinite
    multiplier claims that the item has no basis to take and no penalty.
    """

    values: tuple[float, ...]

    def bound(self, problem: Problem) -> float:
        if isinstance(problem, SparseMedoidProblem) and len(self.values) == problem.size:
            return _sparse_lagrangian(problem, np.array(self.values, dtype=np.float64))
        if not isinstance(problem, MedoidProblem) or len(self.values) != problem.size:
            raise ValueError(f"{len(self.values)} multipliers do not fit {problem!r:.60}")
        usable = problem.limits[problem.label] > 0
        costs, penalties = problem.cost_matrix[:, usable], problem.penalties()
        u = np.array(self.values, dtype=np.float64)
        if np.isinf(u).any():
            item = int(np.flatnonzero(np.isinf(u))[0])
            if u[item] > 0 and np.isinf(penalties[item]) and np.isinf(costs[item]).all():
                return math.inf
            raise ValueError(f"the multiplier of item {item} is {u[item]}, but the item has a basis or a penalty")
        terms = [*u.tolist(), *np.minimum(penalties - u, 0.0).tolist()]
        gains = [math.fsum((column[column < u] - u[column < u]).tolist()) for column in costs.T]
        labels = problem.label[usable]
        for code, limit in enumerate(problem.limits):
            ordered = sorted(gain for gain, label in zip(gains, labels, strict=True) if label == code)
            terms.extend(ordered[: int(limit)])
        return math.fsum(terms)


def _sparse_lagrangian(problem: SparseMedoidProblem, u: NDArray[np.float64]) -> float:
    """L(u) of a problem that lists its pairs."""
    penalties, usable = problem.penalties(), problem.limits[problem.label[problem.candidate]] > 0
    if np.isinf(u).any():
        item = int(np.flatnonzero(np.isinf(u))[0])
        listed = usable & (problem.item == item) & np.isfinite(problem.costs)
        if u[item] > 0 and np.isinf(penalties[item]) and not listed.any():
            return math.inf
        raise ValueError(f"the multiplier of item {item} is {u[item]}, but the item has a basis or a penalty")
    gains: dict[int, list[float]] = {}
    reduced = problem.costs - u[problem.item]
    near = np.flatnonzero(usable & (reduced < 0))
    for candidate, value in zip(problem.candidate[near].tolist(), reduced[near].tolist(), strict=True):
        gains.setdefault(candidate, []).append(value)
    terms = [*u.tolist(), *np.minimum(penalties - u, 0.0).tolist()]
    for code, limit in enumerate(problem.limits):
        ordered = sorted(math.fsum(values) for candidate, values in gains.items() if problem.label[candidate] == code)
        terms.extend(ordered[: int(limit)])
    return math.fsum(terms)


@dataclass(frozen=True)
class Clique(Certificate):
    """Items of a pairwise problem that all conflict with one another: each of them needs a color of its own.

    Besides, L items in K colors make at least so many same-color pairs (Turán), at best the cheapest ones there are;
    with no items this is all the evidence.
    """

    items: tuple[int, ...] = ()

    def bound(self, problem: Problem) -> float:
        if not isinstance(problem, PairwiseProblem):
            raise ValueError(f"a clique of conflicts says nothing about {problem!r:.60}")
        for i, j in itertools.combinations(self.items, 2):
            if i == j or not problem.conflict[i, j]:
                raise ValueError(f"items {i} and {j} of the clique do not conflict")
        return _cost_of_colors(problem, len(self.items))


@dataclass(frozen=True)
class ItemWeights(Certificate):
    """Whole weights of a pairwise problem's items of which no set without a conflict holds more than ``most``.

    A color can take such a set, so Σ weights / ``most`` colors are needed at least. (The best weights there are give
    the fractional chromatic number; those of a clique are 1.) That no set weighs more is searched through again here,
    which takes a moment where there are many.
    """

    weights: tuple[int, ...]
    most: int

    def bound(self, problem: Problem) -> float:
        if not isinstance(problem, PairwiseProblem) or len(self.weights) != problem.size:
            raise ValueError(f"weights of {len(self.weights)} items do not fit {problem!r:.60}")
        if self.most < 1 or min(self.weights, default=0) < 0:
            raise ValueError("weights of items must be 0 or more, and the most that a set weighs 1 or more")
        found = _heavier_set(problem.conflict, self.weights, self.most)
        if found:
            raise ValueError(f"the items {found} do not conflict and weigh more than {self.most}")
        return _cost_of_colors(problem, -(-sum(self.weights) // self.most))


def _cost_of_colors(problem: PairwiseProblem, number: int) -> float:
    """The least cost of a coloring that needs so many colors: theirs, and the cheapest pairs that K forces together."""
    size, limit = problem.size, problem.limit
    if size == 0:
        return 0.0
    if limit == 0 or number > limit:
        return math.inf
    full, rest = divmod(size, limit)
    forced = limit * full * (full - 1) // 2 + rest * full
    weights = np.sort(problem.weight[np.triu(~problem.conflict, 1)])
    if len(weights) < forced:
        return math.inf
    taken = weights[: max(forced, int((weights < 0).sum()))]
    colors = max(number, 1) if problem.opening >= 0 else limit
    return math.fsum([problem.opening * colors, *taken.tolist()])


def _heavier_set(conflict: NDArray[np.bool_], weights: tuple[int, ...], most: int) -> list[int]:
    """Items without a conflict that weigh more than ``most`` together; empty where there are none.

    Branch and bound: the items that may join fall into cliques, and each clique adds no more than its heaviest item.
    """
    items = [item for item in np.argsort(conflict.sum(axis=1), kind="stable").tolist() if weights[item]]
    rows = conflict[np.ix_(items, items)].tolist()
    clashes = [sum(1 << j for j, clash in enumerate(row) if clash) for row in rows]
    stack = [((1 << len(items)) - 1, 0, 0)]  # what may join, what has joined, its weight
    while stack:
        left, joined, weight = stack.pop()
        if weight > most:
            return sorted(items[i] for i in range(len(items)) if joined >> i & 1)
        unsorted, bounds, reach = left, list[tuple[int, int]](), weight
        while unsorted:
            clique, heaviest = unsorted, 0
            while clique:
                i = (clique & -clique).bit_length() - 1
                heaviest = max(heaviest, weights[items[i]])
                bounds.append((reach + heaviest, i))
                unsorted ^= 1 << i
                clique &= clashes[i]
            reach += heaviest
        for highest, i in sorted(bounds, reverse=True):
            if highest <= most:
                break
            left ^= 1 << i
            stack.append((left & ~clashes[i], joined | 1 << i, weight + weights[items[i]]))
    return []


@dataclass(frozen=True)
class ItemShares(Certificate):
    """What a group problem says each item costs at least, whatever its class: ``item_lower_bound``, or its penalty."""

    def bound(self, problem: Problem) -> float:
        if not isinstance(problem, GroupProblem):
            raise ValueError(f"item shares say nothing about {problem!r:.60}")
        penalties = problem.penalties()
        if problem.limit == 0 and np.isinf(penalties).any():
            return math.inf
        if problem.item_lower_bound is None:
            return -math.inf if problem.size else 0.0
        return math.fsum(np.minimum(problem.item_lower_bound, penalties).tolist())


@dataclass(frozen=True)
class DualPrices(Certificate):
    """Dual prices of set partitioning: π, one for each item, and σ ≤ 0 for each class that owns a basis.

    Where no class S costs less than ``Σ_{ℓ∈S} π_ℓ + σ`` and no item's penalty less than its π, no coloring costs less
    than ``Σ π + K σ``. If some class costs less, by v at most, all π are lowered by v, after which none does. The check
    walks through all compatible classes but those that ``item_lower_bound`` or ``marginal_lower_bound`` shows to cost
    enough, and prices them.
    """

    values: tuple[float, ...]
    base: float = 0.0
    most_classes: ClassVar[int] = 1_000_000

    def bound(self, problem: Problem) -> float:
        if not isinstance(problem, GroupProblem) or len(self.values) != problem.size:
            raise ValueError(f"{len(self.values)} dual prices do not fit {problem!r:.60}")
        if not (self.base <= 0 and all(map(math.isfinite, (*self.values, self.base)))):
            raise ValueError("dual prices must be finite, and that of a basis at most 0")
        if not problem.size:
            return 0.0
        prices = np.array(self.values, dtype=np.float64)
        unknown, known = np.full(problem.size, -np.inf), problem.marginal_lower_bound is not None
        spare = (unknown if problem.item_lower_bound is None else problem.item_lower_bound - prices).tolist()
        added = (unknown if problem.marginal_lower_bound is None else problem.marginal_lower_bound - prices).tolist()
        order = sorted(range(problem.size), key=lambda item: (added[item], spare[item]))
        worst = float(np.min(problem.penalties() - prices, initial=0.0))
        classes: list[tuple[tuple[int, ...], list[int], float, float]]
        classes, looked = [((), order, -self.base, -math.inf)], 0
        while classes:
            inside, ahead, share, before = classes.pop()
            for at, item in enumerate(ahead):
                looked += 1
                if looked > self.most_classes:
                    raise ValueError(f"more than {self.most_classes:,} classes would have to be priced to check it")
                members, least = (*inside, item), max(share + spare[item], before + added[item] if known else -math.inf)
                if least >= worst:
                    exact = least
                else:
                    terms = [problem.class_cost(members), -self.base, *(-self.values[i] for i in members)]
                    exact = math.fsum(terms)
                    worst = min(worst, exact)
                others = [j for j in ahead[at + 1 :] if problem.compatible[item, j]]
                hope = share + spare[item] + sum(min(spare[j], 0.0) for j in others)
                if known:
                    hope = max(hope, exact + sum(min(added[j], 0.0) for j in others))
                if others and hope < worst:
                    classes.append((members, others, share + spare[item], exact))
        return math.fsum([*self.values, problem.limit * self.base, problem.size * worst])


class Inequality(NamedTuple):
    """An inequality that holds for every coloring, and its multiplier ≥ 0.

    With e(i, j) = 1 where i and j share a color and k the number of colors, it is, by its kind,

    * ``two_partition``: Σ e(left, right) − Σ e(left) − Σ e(right) ≤ min(|left|, |right|), which for one item on the
      left and two on the right is the triangle inequality (Grötschel & Wakabayashi 1990);
    * ``odd_wheel``: Σ e(hub, rim) − Σ e along the rim ≤ (|rim| − 1) / 2, the hub on the left, an odd rim on the right
      (Chopra & Rao 1993);
    * ``class_count``: Σ e(left) + p(p + 1)/2 · k ≥ p · |left|, p on the right: a class of s items holds s(s − 1)/2 ≥
      ps − p(p + 1)/2 pairs (with k ≤ K the clique inequality of Chopra & Rao 1993);
    * ``forest``: k + Σ e(left[n], right[n]) ≤ L, those pairs being a forest: each of them joins two classes or none.
    """

    kind: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    multiplier: float

    def row(self, size: int) -> tuple[list[tuple[int, int, float]], float, float]:
        """``Σ a(i, j) e(i, j) + b k ≤ c`` as ``([(i, j, a), …], b, c)``.

        Raises:
            ValueError: when it is not an inequality of its kind.
        """
        items = self.left if self.kind == "class_count" else self.left + self.right
        if any(not 0 <= item < size for item in items):
            raise ValueError(f"{self.kind} names an item that the problem does not have: {items}")
        if self.kind != "forest" and len(set(items)) < len(items):
            raise ValueError(f"{self.kind} names an item twice: {items}")
        if self.kind == "two_partition" and self.left and self.right:
            pairs = [(i, j, 1.0) for i in self.left for j in self.right]
            for side in (self.left, self.right):
                pairs += [(i, j, -1.0) for i, j in itertools.combinations(side, 2)]
            return pairs, 0.0, float(min(len(self.left), len(self.right)))
        if self.kind == "odd_wheel" and len(self.left) == 1 and len(self.right) >= 3 and len(self.right) % 2:
            rim = zip(self.right, self.right[1:] + self.right[:1], strict=True)
            pairs = [(self.left[0], j, 1.0) for j in self.right] + [(i, j, -1.0) for i, j in rim]
            return pairs, 0.0, (len(self.right) - 1) / 2
        if self.kind == "class_count" and len(self.right) == 1 and self.right[0] >= 1:
            p = self.right[0]
            pairs = [(i, j, -1.0) for i, j in itertools.combinations(self.left, 2)]
            return pairs, -p * (p + 1) / 2, -float(p * len(self.left))
        if self.kind == "forest" and len(self.left) == len(self.right):
            tree = list(range(size))
            for i, j in zip(self.left, self.right, strict=True):
                if tree[i] == tree[j]:
                    raise ValueError(f"the pairs of the forest close a cycle at {i} and {j}")
                tree = [tree[i] if root == tree[j] else root for root in tree]
            return [(i, j, 1.0) for i, j in zip(self.left, self.right, strict=True)], 1.0, float(size)
        raise ValueError(f"{self.kind} of {self.left} and {self.right} is no inequality known to hold")


@dataclass(frozen=True)
class Inequalities(Certificate):
    """Valid inequalities of a pairwise problem with dual multipliers: weak duality gives the bound.

    ``Σ min(0, w(i, j) + Σ y a(i, j)) + min over 1 ≤ k ≤ K of k (opening + Σ y b) − Σ y c`` over the pairs that do not
    conflict holds at any multipliers y ≥ 0; e and k range between their bounds.
    """

    rows: tuple[Inequality, ...] = ()

    def bound(self, problem: Problem) -> float:
        if not isinstance(problem, PairwiseProblem):
            raise ValueError(f"inequalities between pairs say nothing about {problem!r:.60}")
        if not problem.size or not problem.limit:
            return math.inf if problem.size else 0.0
        reduced: dict[tuple[int, int], list[float]] = {
            (i, j): [float(problem.weight[i, j])] for i, j in np.argwhere(np.triu(~problem.conflict, 1)).tolist()
        }
        count, terms = [problem.opening], list[float]()
        for inequality in self.rows:
            y = inequality.multiplier
            if not 0 <= y < math.inf:
                raise ValueError(f"the multiplier {y} of a {inequality.kind} inequality is not 0 or more")
            pairs, of_count, right = inequality.row(problem.size)
            for i, j, coefficient in pairs:
                key = (i, j) if i < j else (j, i)
                if key in reduced:
                    reduced[key].append(coefficient * y)
            count.append(of_count * y)
            terms.append(-right * y)
        terms.extend(min(0.0, math.fsum(parts)) for parts in reduced.values())
        price = math.fsum(count)
        return math.fsum([*terms, min(price, price * problem.limit)])


@dataclass(frozen=True)
class ClassPrices(Certificate):
    """A price for each item of a pairwise problem without negative costs: what a class may cost for what it holds.

    ``Σ π + K · min(0, opening + min over classes S of Σ_{pairs} w − Σ_S π)`` holds at any π ≥ 0, for at most K classes
    cost less than their items are priced at. The least class is found anew here, item by item with the dearest price
    first; a partial class is left where what its later items could still save is not enough.
    """

    prices: tuple[float, ...]
    largest: ClassVar[int] = 2_000_000

    def bound(self, problem: Problem) -> float:
        if not isinstance(problem, PairwiseProblem) or len(self.prices) != problem.size:
            raise ValueError(f"{len(self.prices)} prices of items do not fit {problem!r:.60}")
        if any(not 0 <= price < math.inf for price in self.prices):
            raise ValueError("a price of an item is not a number of 0 or more")
        if problem.opening < 0 or (problem.weight < 0).any():
            raise ValueError("prices of items say nothing where a weight or the opening is negative")
        if not problem.size or not problem.limit:
            return math.inf if problem.size else 0.0
        least = self._least_class(problem)
        return math.fsum([*self.prices, problem.limit * min(0.0, problem.opening + least)])

    def _least_class(self, problem: PairwiseProblem) -> float:
        order = sorted(range(problem.size), key=lambda item: -self.prices[item])
        weight = np.where(problem.conflict, np.inf, problem.weight)[np.ix_(order, order)]
        start = -np.array([self.prices[item] for item in order], dtype=np.float64)
        tail = np.zeros(problem.size + 1)  # the least value of a class of items from here on, or 0
        visited = 0
        for first in reversed(range(problem.size)):
            low = float(tail[first + 1])
            stack = [(float(start[first]), first, start + weight[first])]
            while stack:
                value, last, change = stack.pop()
                visited += 1
                if visited > self.largest:
                    raise ValueError(f"more than {self.largest:,} classes would have to be looked at")
                low = min(low, value)
                for item in range(last + 1, problem.size):
                    saved = float(np.minimum(change[item:], 0.0).sum())
                    if value + max(saved, float(tail[item])) >= low:
                        break
                    if change[item] < 0:
                        stack.append((value + float(change[item]), item, change + weight[item]))
            tail[first] = min(float(tail[first + 1]), low)
        return float(min(tail[0], start.min()))
