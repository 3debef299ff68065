"""Evidence for lower bounds, as plain data: each kind says how the bound follows from the problem's own costs.

Nothing here shares code with the solvers that make certificates; ``solvers.certify`` puts them to use. Sums are exact
(``math.fsum``), so a bound is right up to the rounding of single subtractions, about 1e-16 of the largest cost an item.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem


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
        gains = [math.fsum(np.minimum(column - u, 0.0).tolist()) for column in costs.T]
        labels = problem.label[usable]
        for code, limit in enumerate(problem.limits):
            ordered = sorted(gain for gain, label in zip(gains, labels, strict=True) if label == code)
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
        size, limit = problem.size, problem.limit
        if size == 0:
            return 0.0
        if limit == 0 or len(self.items) > limit:
            return math.inf
        full, rest = divmod(size, limit)
        forced = limit * full * (full - 1) // 2 + rest * full
        weights = np.sort(problem.weight[np.triu(~problem.conflict, 1)])
        if len(weights) < forced:
            return math.inf
        taken = weights[: max(forced, int((weights < 0).sum()))]
        colors = max(len(self.items), 1) if problem.opening >= 0 else limit
        return math.fsum([problem.opening * colors, *taken.tolist()])


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
