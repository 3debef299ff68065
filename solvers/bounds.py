"""Lower bounds that hold for every coloring, and the reasons why there is none at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.certificates import Certificate, Clique, ItemShares, Multipliers
from solvers.cliques import greedy_clique, maximum_clique
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pair_lp import relaxation_bound
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem

CLIQUE_NODES = 5_000
"""How far the search for a maximum clique goes for a bound worth a second."""
RELAXED_ITEMS = 250
"""Up to so many items cutting planes come to something within a second."""


@dataclass(frozen=True)
class Bound:
    """A proven lower bound with its evidence; inf with the reason when no coloring is allowed."""

    value: float
    certificate: Certificate | None = None
    reason: str = ""


def quick_bound(problem: Problem) -> Bound:
    """A bound that costs no more than reading the costs once; −inf for a kind of problem nothing is known of."""
    if problem.size == 0:
        return Bound(0.0)
    if isinstance(problem, MedoidProblem):
        return _row_minima(problem)
    if isinstance(problem, PairwiseProblem):
        return clique_bound(problem, greedy_clique(problem.conflict))
    if isinstance(problem, GroupProblem):
        return _item_shares(problem)
    return Bound(-math.inf)


def strong_bound(problem: Problem, upper: float, seconds: float = math.inf) -> Bound:
    """A bound worth a second at most; ``upper`` is the cost of a known coloring (inf: none), which guides the steps.

    ``seconds``: of the clock, where even fewer are left.
    """
    if isinstance(problem, MedoidProblem) and problem.size and problem.candidates:
        iterations = int(np.clip(2e7 / problem.cost_matrix.size, 20, 300))
        return lagrangian_bound(problem, upper, iterations)
    bound = quick_bound(problem)
    if isinstance(problem, PairwiseProblem) and problem.conflict.any():
        left = iter(range(CLIQUE_NODES))
        bound = clique_bound(problem, maximum_clique(problem.conflict, lambda steps: next(left, None) is None).items)
    if isinstance(problem, PairwiseProblem) and not problem.weightless and problem.size <= RELAXED_ITEMS:
        value, evidence = relaxation_bound(problem, upper, seconds)
        bound = Bound(value, evidence) if value > bound.value else bound
    return bound


def lagrangian_bound(problem: MedoidProblem, upper: float, iterations: int = 200) -> Bound:
    """The Lagrangian bound of the p-median problem, its assignment constraints relaxed, by subgradient steps.

    See ``certificates.Multipliers`` for the formula. The steps are Polyak's with deflection.
    """
    costs, penalties = problem.cost_matrix, problem.penalties()
    ordered = np.partition(np.column_stack([costs, penalties]), min(1, problem.candidates), axis=1)
    u = ordered[:, 0].copy()
    if not np.isfinite(u).all():
        return _row_minima(problem)
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
    return Bound(best, Multipliers(tuple(best_u.tolist())))


def _most_negative(gains: NDArray[np.float64], problem: MedoidProblem) -> NDArray[np.intp]:
    chosen = []
    for code, limit in enumerate(problem.limits):
        members = np.flatnonzero((problem.label == code) & (gains < 0))
        chosen.append(members[np.argsort(gains[members], kind="stable")[: int(limit)]])
    return np.concatenate(chosen)


def _row_minima(problem: MedoidProblem) -> Bound:
    usable = problem.limits[problem.label] > 0
    shares = np.minimum(problem.cost_matrix[:, usable].min(axis=1, initial=np.inf), problem.penalties())
    certificate = Multipliers(tuple(shares.tolist()))
    if np.isfinite(shares).all():
        return Bound(float(shares.sum()), certificate)
    item = int(np.flatnonzero(~np.isfinite(shares))[0])
    why = "K leaves no basis to take" if not problem.limit else "every candidate K leaves is forbidden to it"
    reason = f"item {item} must own or share a basis, but {why}; allow one or give it a penalty"
    return Bound(math.inf, certificate, reason)


def clique_bound(problem: PairwiseProblem, items: Sequence[int]) -> Bound:
    """What a clique of conflicts proves. The certificate is its own computation: no more than reading the weights."""
    certificate = Clique(tuple(items))
    value, number, limit = certificate.bound(problem), len(certificate.items), problem.limit
    reason = ""
    if limit == 0:
        reason = f"{problem.size} items need a color, but K is 0"
    elif number > limit:
        reason = f"{number} items conflict with one another, which takes {number} colors, but K is {limit}"
    elif value == math.inf:
        free = int((~problem.conflict).sum() - problem.size) // 2
        reason = f"{problem.size} items in {limit} colors share a color in more pairs than the {free} free of conflict"
    return Bound(value, certificate, reason)


def _item_shares(problem: GroupProblem) -> Bound:
    certificate = ItemShares()
    value, reason = certificate.bound(problem), ""
    if problem.limit == 0 and value == math.inf:
        item = int(np.flatnonzero(np.isinf(problem.penalties()))[0])
        reason = f"item {item} must own or share a basis, but K is 0; give it a penalty or raise K"
    elif value == math.inf:
        reason = "an item's lower bound is inf"
    return Bound(value, certificate, reason)
