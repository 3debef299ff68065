"""Lagrangian relaxation of the p-median problem: a bound with its certificate, and medoids on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from solvers.certificates import Multipliers
from solvers.medoid import MedoidProblem
from solvers.medoid_relaxation import (
    DenseCosts,
    Floats,
    Indices,
    Point,
    Relaxation,
    SparseCosts,
    cutoff_of,
)
from solvers.medoid_search import OpenSet, search_medoids
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.sparse_medoid import SparseMedoidProblem
from solvers.sparse_medoid_search import SparseOpenSet


@dataclass(frozen=True)
class Lagrangian(Solver):
    """Subgradient steps on the multipliers; the candidates that the relaxation opens begin swap local searches.

    The bound comes with its multipliers as evidence. It is often the optimum itself, but not always: ``benders`` goes
    on from here.

    Attributes:
        steps: subgradient steps at most.
    """

    steps: int = 600

    name: ClassVar[str] = "lagrangian"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, SparseMedoidProblem)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be 0 or more, got {self.steps}")

    def run(self, problem: Problem, search: Search) -> None:
        if isinstance(problem, SparseMedoidProblem):
            relax_sparse(problem, search, self.steps)
        else:
            assert isinstance(problem, MedoidProblem)
            relax(problem, search, self.steps)


def relax(problem: MedoidProblem, search: Search, steps: int) -> tuple[Relaxation, OpenSet]:
    """Search, bound and fix; the bound and the colorings go to the search."""
    state = OpenSet(problem)
    search_medoids(problem, search, rounds=0, state=state)
    relaxation = Relaxation(dense_costs(problem, state, search), _between(state), _upper(state, search))
    tried: set[frozenset[int]] = set()

    def improve(point: Point) -> float:
        for medoids in (point.chosen, np.argsort(-relaxation.share, kind="stable")):
            state.reopen(medoids.tolist())
            state.add_greedily(search)
            opened = frozenset(state.opened)
            if opened not in tried and state.value - search.cost < 0.05 * abs(search.cost):
                tried.add(opened)
                state.swap_until_stuck(search, likely_candidates(relaxation, point))
                if state.value < search.cost:
                    state.swap_until_stuck(search, np.flatnonzero(relaxation.usable))
                    search.offer(problem.assign(state.opened))
        return min(relaxation.upper, search.cost)

    relaxation.climb(search, steps, lambda: cutoff_of(search.cost, problem), improve)
    prove(problem, search, relaxation)
    return relaxation, state


def likely_candidates(relaxation: Relaxation, point: Point) -> Indices:
    """Those that the relaxation comes closest to opening, a few times as many as it opens, the best first."""
    usable = np.flatnonzero(relaxation.usable)
    return usable[np.argsort(point.rho[usable], kind="stable")[: 50 + 3 * len(point.chosen)]]


def prove(problem: MedoidProblem | SparseMedoidProblem, search: Search, relaxation: Relaxation) -> None:
    """Hand the bound to the search: what the multipliers show alone, and what fixed candidates add to it."""
    u = relaxation.best.u
    plain = Relaxation(relaxation.costs, u, relaxation.upper).best.value
    search.prove(plain, Multipliers(tuple(u.tolist())))
    fixed = int(relaxation.always.sum() + (~relaxation.usable).sum())
    value = min(relaxation.best.value, cutoff_of(search.cost, problem))
    if fixed and value > plain:
        search.prove(value, proof=f"reduced costs, which fix {fixed} of {problem.candidates} candidates")


def dense_costs(problem: MedoidProblem, state: OpenSet, search: Search) -> DenseCosts:
    """The costs, capped where a coloring no dearer than the best known cannot go."""
    costs = DenseCosts(state.columns[:-1], state.columns[-1], problem.label, problem.limits)
    room = _upper(state, search) - float(costs.low.sum())
    costs.cap = np.minimum(costs.cap, costs.low + max(room, 0.0) * (1 + 1e-9))
    return costs


def _upper(state: OpenSet, search: Search) -> float:
    return search.cost if math.isfinite(search.cost) else state.value


def _between(state: OpenSet) -> Floats:
    """Multipliers to begin with: half way from each item's cost to that of its second choice."""
    between: Floats = (state.first + np.minimum(state.second, 2 * state.first + state.problem.scale)) / 2
    return between


def relax_sparse(problem: SparseMedoidProblem, search: Search, steps: int) -> None:
    """Multipliers first: on large problems what the relaxation opens is a better beginning than greedy adding.

    Swaps, a few rounds of them now and then and as many as pay at the end, make a coloring of it.
    """
    state = SparseOpenSet(problem)
    costs = SparseCosts(state.candidate, state.item, state.cost, state.out, problem.label, problem.limits)
    rank = np.minimum(max(1, round(1.2 * problem.size / max(problem.limit, 1))), np.diff(problem.starts)) - 1
    known = rank >= 0
    u = state.out.copy()
    u[known] = np.minimum(problem.costs[(problem.starts[:-1] + rank)[known]], u[known])
    relaxation = Relaxation(costs, u, math.inf)
    relaxation.climb(search, steps // 3, lambda: math.inf)
    best = [math.inf]

    def improve(point: Point) -> float:
        for medoids in (point.chosen, np.argsort(-relaxation.share, kind="stable")[: len(point.chosen)]):
            state.reopen(medoids.tolist())
            state.add_greedily(search)
            if state.value < best[0] * (1 + 0.02 * np.sign(best[0])):
                state.swap_until_stuck(search, 3)
            if state.value < best[0]:
                best[0] = state.value
                search.offer(problem.assign(state.opened.tolist()))
        return min(relaxation.upper, search.cost)

    relaxation.upper = improve(relaxation.best)
    relaxation.climb(search, steps - steps // 3, lambda: cutoff_of(search.cost, problem), improve, size=0.5, every=80)
    prove(problem, search, relaxation)
    improve(relaxation.best)
    if search.best is not None:
        state.reopen([b for b in problem.representatives(search.best) if b >= 0])
        state.add_greedily(search)
    state.swap_until_stuck(search, least=1e-5)
    search.offer(problem.assign(state.opened.tolist()))
    rng = np.random.default_rng(search.seed)
    for _ in range(disturbances(problem.size)):  # close a tenth of them, fill up greedily, swap
        if search.closed() or search.expired() or not state.is_open.any():
            break
        value, before = state.value, state.opened
        state.reopen(before[rng.random(len(before)) < 0.9].tolist())
        state.add_greedily(search)
        state.swap_until_stuck(search, least=1e-5)
        if state.value < value:
            search.offer(problem.assign(state.opened.tolist()))
        else:
            state.reopen(before.tolist())
    if not search.closed() and math.isfinite(search.cost):
        relaxation.upper = search.cost
        relaxation.climb(search, steps // 3, lambda: cutoff_of(search.cost, problem), size=0.1)
        prove(problem, search, relaxation)


def disturbances(size: int) -> int:
    """How often a sparse problem's coloring is disturbed at the end: the more, the less each costs beside the steps."""
    return max(8, min(size // 10, 800_000 // size))
