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
from solvers.medoid_relaxation import DenseCosts, Relaxation
from solvers.pair_lp import relaxation_bound
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search
from solvers.sparse_medoid import SparseMedoidProblem

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
    if isinstance(problem, SparseMedoidProblem):
        return _listed_minima(problem)
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
        iterations = int(np.clip(1e9 / problem.cost_matrix.size, 60, 300))
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

    See ``certificates.Multipliers`` for the formula and ``medoid_relaxation`` for the steps.
    """
    first = _row_minima(problem)
    if not math.isfinite(first.value) or not problem.candidates:
        return first
    costs = DenseCosts.of(problem)
    second = np.partition(costs.columns, min(1, problem.candidates - 1), axis=0)[min(1, problem.candidates - 1)]
    relaxation = Relaxation(costs, (costs.low + np.minimum(second, costs.low + problem.scale)) / 2, upper)
    relaxation.climb(Search(problem), iterations, lambda: upper)
    best = relaxation.best
    return Bound(best.value, Multipliers(tuple(best.u.tolist()))) if best.value > first.value else first


def _row_minima(problem: MedoidProblem) -> Bound:
    usable = problem.limits[problem.label] > 0
    return _minima(problem, problem.cost_matrix[:, usable].min(axis=1, initial=np.inf))


def _listed_minima(problem: SparseMedoidProblem) -> Bound:
    usable = problem.limits[problem.label] > 0
    return _minima(problem, problem.nearest_two(usable)[1])


def _minima(problem: MedoidProblem | SparseMedoidProblem, cheapest: NDArray[np.float64]) -> Bound:
    shares = np.minimum(cheapest, problem.penalties())
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
