"""Tabu search over colorings with pair weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.pairwise import PairwiseProblem
from solvers.pairwise_search import Painting, search_pairs
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.spectral import affinity, embed, kmeans, pair_changes


@dataclass(frozen=True)
class Tabu(Solver):
    """The best move of an item to another color, or swap of two items, that is not tabu, whether or not it pays.

    An item that left a color may not come back for some steps, unless that gives a new best (Glover 1989; for graph
    coloring Hertz & de Werra 1987). It starts from the best of an agglomerative coloring after rounds of disturbed
    descents and a spectral one after a descent; when nothing better was found for long, the search goes on from a
    disturbed copy of the best.

    Attributes:
        rounds: disturbed descents before the first step, from an agglomerative start.
        steps: how many steps to take; None: 100 for each item, 2,000 at least.
        patience: after so many steps without a new best it starts anew; None: 3 for each item, 50 at least.
        spectral: whether a spectral coloring is among the starts.
    """

    rounds: int = 100
    steps: int | None = None
    patience: int | None = None
    spectral: bool = True

    name: ClassVar[str] = "tabu"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("steps", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, PairwiseProblem)
        search_pairs(problem, search, rounds=self.rounds)
        if not problem.limit or problem.size < 2 or search.closed():
            return
        steps = max(2_000, 100 * problem.size) if self.steps is None else self.steps
        patience = max(50, 3 * problem.size) if self.patience is None else self.patience
        rng = np.random.default_rng(search.seed)
        if self.spectral and problem.size > 2:
            offer_spectral(problem, search, rng)
        walk(problem, search, rng, steps, patience)


def offer_spectral(problem: PairwiseProblem, search: Search, rng: np.random.Generator) -> None:
    """A spectral coloring in K colors, or in as many as the incumbent has, after a descent."""
    number = problem.limit
    if search.best is not None and math.isfinite(search.cost):
        number = min(number, search.best.number_of_colors)
    search.spend(10.0 * problem.size**3)
    rows = embed(affinity(pair_changes(problem, search), problem.compatibility()))[:, :number]
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    colors = kmeans(rows / np.where(norms > 0, norms, 1.0), number, rng, 2)
    state = Painting(problem, Coloring(colors.tolist()))
    state.descend(search)
    search.offer(Coloring(state.colors.tolist()))


def walk(problem: PairwiseProblem, search: Search, rng: np.random.Generator, steps: int, patience: int) -> None:
    """Tabu steps from the incumbent, or from every item on its own where there is none."""
    size, number = problem.size, problem.limit
    state = Painting(problem, search.best or Coloring(range(size)))
    state.descend(search)
    search.offer(Coloring(state.colors.tolist()))
    best, low, now = state.colors.copy(), 0.0, 0.0  # costs since the best known, conflicts included
    until = np.zeros((size, number), dtype=np.int64)
    idle = 0
    for step in range(steps):
        if search.expired(4.0 * size * (len(state.columns()) + 4)) or search.closed():
            return
        change, items = best_allowed(state, until > step, low - now, rng)
        if not items:
            idle = patience
        for item, color in items:
            until[item, state.colors[item]] = step + 6 + int(rng.integers(0, 6)) + int(0.3 * math.sqrt(size))
            state.move(item, color)
        now += change
        idle += 1
        if now < low - state.tiny:
            before = search.cost
            state.descend(search)  # merges and splits too
            if search.offer(Coloring(state.colors.tolist())) >= before and search.best is not None:
                state = Painting(problem, search.best)  # sums had drifted, or conflicts are left
            best, low, now, idle = state.colors.copy(), 0.0, 0.0, 0
        elif idle > patience:
            state = Painting(problem, Coloring(best.tolist()))
            state.disturb(rng, float(rng.choice([0.05, 0.1, 0.3])))
            state.descend(search)
            now, idle = excess(state, best), 0
            until[:] = 0
            if now < low - state.tiny:
                search.offer(Coloring(state.colors.tolist()))
                best, now = state.colors.copy(), 0.0


def excess(state: Painting, best: NDArray[np.int64]) -> float:
    """What the state costs more than another coloring, conflicts at their heavy weight."""
    costs = []
    for colors in (state.colors, best):
        same = colors[:, None] == colors[None, :]
        costs.append(state.weight.sum(where=same) / 2 + state.problem.opening * len(np.unique(colors)))
    return float(costs[0] - costs[1])


def best_allowed(
    state: Painting, tabu: NDArray[np.bool_], wanted: float, rng: np.random.Generator
) -> tuple[float, list[tuple[int, int]]]:
    """The best move, or swap where no move pays, of those not tabu or better than ``wanted``; ties by lot.

    Returns:
        The change of cost, and the items with their new colors; no items where everything is tabu.
    """
    change, columns = state.move_changes()
    change[tabu[:, columns] & (change >= wanted - state.tiny)] = np.inf
    value = float(change.min(initial=np.inf))
    items: list[tuple[int, int]] = []
    if value < np.inf:
        ties = np.flatnonzero(change <= value + state.tiny)
        item, at = divmod(int(rng.choice(ties)), len(columns))
        value, items = float(change[item, at]), [(item, int(columns[at]))]
    if value > -state.tiny:
        swaps = state.swap_changes()
        back = tabu[:, state.colors]
        swaps[(back | back.T) & (swaps >= wanted - state.tiny)] = np.inf
        first, second = divmod(int(swaps.argmin()), len(swaps))
        if swaps[first, second] < value - state.tiny:
            value = float(swaps[first, second])
            items = [(first, int(state.colors[second])), (second, int(state.colors[first]))]
    return value, items
