"""Lower bounds that hold for every coloring, and the reasons why there is none at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem


@dataclass(frozen=True)
class Bound:
    """A proven lower bound; inf with the reason when no coloring is allowed."""

    value: float
    reason: str = ""


def quick_bound(problem: Problem) -> Bound:
    """A bound that costs no more than reading the costs once; −inf for a kind of problem nothing is known of."""
    if problem.size == 0:
        return Bound(0.0)
    if isinstance(problem, MedoidProblem):
        return _row_minima(problem)
    if isinstance(problem, PairwiseProblem):
        return _smallest_pairs(problem)
    if isinstance(problem, GroupProblem):
        return _item_shares(problem)
    return Bound(-math.inf)


def strong_bound(problem: Problem, upper: float) -> float:
    """A bound worth a second at most; ``upper`` is the cost of a known coloring (inf: none), which guides the steps."""
    if isinstance(problem, MedoidProblem) and problem.size and problem.candidates:
        iterations = int(np.clip(2e7 / problem.cost_matrix.size, 20, 300))
        return lagrangian_bound(problem, upper, iterations)
    return quick_bound(problem).value


def lagrangian_bound(problem: MedoidProblem, upper: float, iterations: int = 200) -> float:
    """The Lagrangian bound of the p-median problem, its assignment constraints relaxed, by subgradient steps.

    ``L(u) = Σ u_ℓ + Σ_g (the K_g smallest of min(ρ_b, 0)) + Σ min(penalty_ℓ − u_ℓ, 0)``, where
    ``ρ_b = Σ_ℓ min(c_ℓb − u_ℓ, 0)``, holds at any ``u`` (Cornuéjols, Fisher & Nemhauser 1977).
    The steps are Polyak's with deflection.
    """
    costs, penalties = problem.cost_matrix, problem.penalties()
    ordered = np.partition(np.column_stack([costs, penalties]), min(1, problem.candidates), axis=1)
    u = ordered[:, 0].copy()
    if not np.isfinite(u).all():
        return math.inf
    second = ordered[:, min(1, problem.candidates)]
    u = np.where(np.isfinite(second), (u + second) / 2, u)
    best, best_u, previous = -math.inf, u, np.zeros_like(u)
    step, stalled = 1.5, 0
    for _ in range(iterations):
        reduced = np.minimum(costs - u[:, None], 0.0)
        gains = reduced.sum(axis=0)
        chosen = _most_negative(gains, problem)
        out = np.minimum(penalties - u, 0.0)
        value = float(u.sum() + gains[chosen].sum() + out.sum())
        if value > best:
            stalled = 0 if value > best + 1e-5 * abs(best) else stalled + 1
            best, best_u = value, u
        else:
            stalled += 1
        slope = 1.0 - (reduced[:, chosen] < 0).sum(axis=1) - (out < 0)
        direction = slope + 0.3 * previous
        previous = direction
        length = float(direction @ direction)
        target = upper if math.isfinite(upper) else best + 0.05 * abs(best) + problem.scale
        if length == 0 or not slope.any() or step < 1e-4 or value >= upper:
            break
        if stalled >= 15:
            step, stalled, u = step * 0.6, 0, best_u
        u = u + step * max(target - value, 0.0) / length * direction
    return best


def _most_negative(gains: NDArray[np.float64], problem: MedoidProblem) -> NDArray[np.intp]:
    chosen = []
    for code, limit in enumerate(problem.limits):
        members = np.flatnonzero((problem.label == code) & (gains < 0))
        chosen.append(members[np.argsort(gains[members], kind="stable")[: int(limit)]])
    return np.concatenate(chosen)


def _row_minima(problem: MedoidProblem) -> Bound:
    usable = problem.limits[problem.label] > 0
    shares = np.minimum(problem.cost_matrix[:, usable].min(axis=1, initial=np.inf), problem.penalties())
    if np.isfinite(shares).all():
        return Bound(float(shares.sum()))
    item = int(np.flatnonzero(~np.isfinite(shares))[0])
    why = "K leaves no basis to take" if not problem.limit else "every candidate K leaves is forbidden to it"
    return Bound(math.inf, f"item {item} must own or share a basis, but {why}; allow one or give it a penalty")


def _smallest_pairs(problem: PairwiseProblem) -> Bound:
    """L items in K colors make at least so many same-color pairs (Turán); at best they are the cheapest ones."""
    size, limit = problem.size, problem.limit
    clique = len(greedy_clique(problem.conflict))
    if clique > limit:
        return Bound(
            math.inf, f"{clique} items conflict with one another, which takes {clique} colors, but K is {limit}"
        )
    full, rest = divmod(size, limit)
    forced = limit * full * (full - 1) // 2 + rest * full
    weights = np.sort(problem.weight[~problem.conflict & np.triu(np.ones((size, size), bool), 1)])
    if len(weights) < forced:
        return Bound(
            math.inf,
            f"{size} items in {limit} colors share a color in {forced} pairs at least, "
            f"but only {len(weights)} pairs are free of conflict",
        )
    taken = max(forced, int((weights < 0).sum()))
    colors = clique if problem.opening >= 0 else limit
    return Bound(float(weights[:taken].sum()) + problem.opening * colors)


def _item_shares(problem: GroupProblem) -> Bound:
    needs = np.flatnonzero(np.isinf(problem.penalties()))
    if problem.limit == 0 and len(needs):
        return Bound(math.inf, f"item {needs[0]} must own or share a basis, but K is 0; give it a penalty or raise K")
    if problem.item_lower_bound is None:
        return Bound(-math.inf)
    total = float(np.minimum(problem.item_lower_bound, problem.penalties()).sum())
    return Bound(total, "an item's lower bound is inf" if total == math.inf else "")


def greedy_clique(conflict: NDArray[np.bool_]) -> list[int]:
    """Items that all conflict with one another, gathered greedily by degree; their number is a bound on the colors."""
    if not len(conflict):
        return []
    degree = conflict.sum(axis=1)
    best: list[int] = []
    for first in np.argsort(-degree, kind="stable")[:20]:
        clique, common = [int(first)], conflict[first].copy()
        while common.any():
            members = np.flatnonzero(common)
            inside = conflict[np.ix_(members, members)].sum(axis=1)
            chosen = int(members[inside.argmax()])
            clique.append(chosen)
            common &= conflict[chosen]
        if len(clique) > len(best):
            best = clique
    return best
