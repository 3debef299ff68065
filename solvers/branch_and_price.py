"""Branch and price for clique partitioning: exact where weights are not negative and classes are few items each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.certificates import ClassPrices
from solvers.coloring import Coloring
from solvers.pair_lp import rounded, target
from solvers.pair_tree import Fixing, PairTree
from solvers.pairwise import PairwiseProblem
from solvers.pairwise_search import Painting
from solvers.pricing import cheapest_set, improved_sets, values_of
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.tabu import Tabu

Floats = NDArray[np.float64]
Sets = NDArray[np.bool_]
CHECKABLE = 20_000
"""Prices are a certificate where pricing looks at no more partial sets than that, so that a check takes seconds."""


@dataclass(frozen=True)
class BranchAndPrice(Solver):
    """Set partitioning over all classes, those that matter generated as they are needed (Mehrotra & Trick 1998).

    Each item must be in a class, at most K classes are taken, a class costs its pairs and the opening. Pricing is a
    local search on smoothed prices (Wentges 1997) and, where that finds nothing, branch and bound. Branching is Ryan &
    Foster's: two items share a class, and become one, or conflict.

    Attributes:
        steps: steps of tabu search for the first incumbent.
        smoothing: the weight of the best prices known in those that are priced at.
    """

    steps: int = 1_000
    smoothing: float = 0.5

    name: ClassVar[str] = "branch_and_price"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {self.smoothing}")

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, PairwiseProblem) and (problem.opening < 0 or (problem.weight < 0).any()):
            return "it takes weights and an opening of 0 or more"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, PairwiseProblem)
        Tabu(rounds=20, steps=self.steps).run(problem, search)
        if problem.limit and not search.closed() and not search.expired():
            _Tree(problem, search, self.smoothing).run()


@dataclass
class _Node:
    """The problem with items joined: ``member[i, g]`` says that item i is in the joined item g."""

    member: Floats
    inside: Floats
    weight: Floats
    apart: NDArray[np.bool_]


class _Tree(PairTree):
    method: ClassVar[str] = "branch and price"

    def __init__(self, problem: PairwiseProblem, search: Search, smoothing: float) -> None:
        super().__init__(search)
        self.problem, self.smoothing = problem, smoothing
        self.size = problem.size
        total = float(np.triu(problem.weight).sum()) + problem.opening * self.size
        self.dear = min(search.cost, total)
        # a pair dearer than any coloring worth having is a conflict; smaller costs then keep their digits
        self.conflict = problem.conflict | (problem.weight > self.dear)
        self.unit = max(float(np.where(self.conflict, 0.0, problem.weight).max()), problem.opening, 1e-300)
        self.columns: Sets = np.eye(self.size, dtype=bool)
        if search.best is not None:
            self.remember(np.array([np.isin(range(self.size), c) for c in search.best.classes()]))

    def remember(self, sets: Sets) -> None:
        self.columns = np.unique(np.concatenate([self.columns, sets]), axis=0)

    def run(self) -> None:
        search = self.search
        self.explore(max(search.bound, 0.0))
        search.note(f"branch and price: {self.nodes} nodes, {len(self.columns)} classes")

    def join(self, fixings: tuple[Fixing, ...]) -> _Node | None:
        """The problem under the fixings; None where they contradict one another."""
        label, apart = np.arange(self.size), self.conflict.copy()
        for i, j, together in fixings:
            if together:
                label[label == label[j]] = label[i]
            else:
                apart[i, j] = apart[j, i] = True
        names = np.unique(label, return_inverse=True)[1]
        member = (names[:, None] == np.arange(names.max() + 1)[None, :]).astype(np.float64)
        between = member.T @ apart.astype(np.float64) @ member > 0
        if between.diagonal().any():
            return None
        weight = member.T @ np.where(self.conflict, 0.0, self.problem.weight) @ member
        inside = weight.diagonal() / 2
        np.fill_diagonal(weight, 0.0)
        return _Node(member, inside, np.where(between, np.inf, weight), between)

    def visit(self, bound: float, fixings: tuple[Fixing, ...]) -> bool:
        """Generate columns, and put the children in the heap; False when the time ran out before that."""
        node = self.join(fixings)
        if node is None:
            return True
        generation = _Generation(self, node, bound)
        if not generation.run(root=not fixings):
            return False
        bound = generation.bound
        if bound >= target(self.search) or bound > 2 * self.dear + self.unit:
            self.close(max(bound, self.search.cost) if bound > 2 * self.dear else bound)
            return True
        self.round(generation)
        if bound >= target(self.search):
            self.close(bound)
            return True
        pair = generation.pair_to_branch()
        if pair is None:  # nothing left to decide: all joined items conflict or every choice is whole
            self.close(bound)
            return True
        for together in (True, False):
            self.push(bound, (*fixings, (*pair, together)))
        return True

    def round(self, generation: _Generation) -> None:
        """The classes by falling value, what is left of each; the rest where it costs least."""
        colors = np.full(self.size, -1)
        number = 0
        for at in np.argsort(-generation.value, kind="stable"):
            items = (generation.node.member @ generation.sets[at] > 0) & (colors < 0)
            if generation.value[at] > 1e-6 and items.any() and number < self.problem.limit:
                colors[items] = number
                number += 1
        alone = np.flatnonzero(colors < 0)
        colors[alone] = np.arange(number, number + len(alone))
        self.search.offer(Coloring(colors.tolist()))
        state = Painting(self.problem, Coloring(colors.tolist()))
        state.descend(self.search)
        before = self.search.cost
        if self.search.offer(Coloring(state.colors.tolist())) < before and self.search.best is not None:
            self.remember(np.array([np.isin(range(self.size), c) for c in self.search.best.classes()]))


class _Generation:
    """Column generation at one node."""

    def __init__(self, tree: _Tree, node: _Node, bound: float) -> None:
        import highspy

        self.tree, self.node, self.bound = tree, node, bound
        self.limit, self.opening = tree.problem.limit, tree.problem.opening
        self.number = len(node.inside)
        self.dear = 10 * (2 * tree.dear + tree.unit)
        self.sets: Sets = np.zeros((0, self.number), dtype=bool)
        self.value = np.zeros(0)
        self.known: set[bytes] = set()
        self.best_prices = np.zeros(self.number)
        self.highs = highspy.Highs()
        self.highs.setOptionValue("output_flag", False)
        self.highs.setOptionValue("threads", 1)
        self.highs.setOptionValue("presolve", "off")
        empty = np.zeros(0)
        for _ in range(self.number):
            self.highs.addRow(1.0, np.inf, 0, empty.astype(np.int32), empty)
        self.highs.addRow(-np.inf, float(self.limit), 0, empty.astype(np.int32), empty)
        rows = np.arange(self.number, dtype=np.int32)
        self.highs.addCol(self.dear / tree.unit, 0.0, np.inf, self.number, rows, np.ones(self.number))
        joined = tree.columns @ node.member
        whole = ((joined == 0) | (joined == node.member.sum(axis=0))).all(axis=1)
        sets = (joined > 0)[whole]
        self.add(sets[((sets @ node.apart) & sets).sum(axis=1) == 0])
        self.add(np.eye(self.number, dtype=bool))

    def add(self, sets: Sets) -> int:
        fresh = [row for row in sets if row.tobytes() not in self.known]
        if not fresh:
            return 0
        matrix = np.array(fresh)
        self.known |= {row.tobytes() for row in matrix}
        costs = (values_of(self.node.inside, self.node.weight, matrix) + self.opening) / self.tree.unit
        for row, cost in zip(matrix, costs.tolist(), strict=True):
            rows = np.append(np.flatnonzero(row), self.number).astype(np.int32)
            self.highs.addCol(cost, 0.0, np.inf, len(rows), rows, np.ones(len(rows)))
        self.sets = np.concatenate([self.sets, matrix])
        return len(matrix)

    def run(self, *, root: bool) -> bool:
        """Until no class prices out; ``bound`` is then the node's. False when the time ran out."""
        search, node, unit = self.tree.search, self.node, self.tree.unit
        while not search.expired(200.0 * (self.number + len(self.sets))):
            if not search.deterministic and math.isfinite(search.time_limit):
                self.highs.setOptionValue("time_limit", self.highs.getRunTime() + max(search.remaining(), 0.001))
            self.highs.run()
            solution = self.highs.getSolution()
            self.value = np.array(solution.col_value)[1:]
            dual = np.array(solution.row_dual) * unit
            prices, of_color = np.maximum(dual[:-1], 0.0), min(float(dual[-1]), 0.0)
            share = self.tree.smoothing if self.best_prices.any() else 0.0
            threshold = of_color - self.opening - 1e-9 * unit
            found = 0
            for at in (share * self.best_prices + (1 - share) * prices, prices):
                sets = improved_sets(node.inside - at, node.weight)
                search.spend(20.0 * self.number**2)
                reduced = values_of(node.inside - prices, node.weight, sets)
                found = self.add(sets[reduced < threshold])
                if found:
                    break
            if found:
                continue
            priced = cheapest_set(node.inside - prices, node.weight, np.inf, search.expired)
            if priced.value == -math.inf:
                return False
            self.learn(prices, priced.value, priced.nodes, root)
            if self.bound >= target(search):
                break
            reduced = values_of(node.inside - prices, node.weight, priced.sets)
            if not self.add(priced.sets[reduced < threshold]):
                break
        self.tree.remember(self.sets @ node.member.T.astype(bool))
        return not search.cut_short

    def learn(self, prices: Floats, least: float, nodes: int, root: bool) -> None:
        """``Σ π + K · min(0, opening + the least value)``: at most K classes cost less than their prices say."""
        bound = float(prices.sum()) + self.limit * min(0.0, self.opening + least)
        if bound > self.bound or not self.best_prices.any():
            self.best_prices = prices
        search = self.tree.search
        if root:
            honest = rounded(min(bound, search.cost), search)
            if nodes <= CHECKABLE:
                search.prove(honest, ClassPrices(tuple(prices.tolist())))
            else:
                search.prove(honest, proof="prices of items at which no class is cheaper, by branch and bound")
        self.bound = max(self.bound, rounded(bound, search))

    def pair_to_branch(self) -> tuple[int, int] | None:
        """Two joined items, by an item of each, that share a class to about a half."""
        used = self.value > 1e-9
        member = self.sets[used].astype(np.float64)
        share = member.T @ (self.value[used][:, None] * member)
        free = np.triu(~self.node.apart, 1)
        if not free.any():
            return None
        score = np.where(free, 0.5 - np.abs(np.clip(share, 0.0, 1.0) - 0.5), -1.0)
        first, second = divmod(int(score.argmax()), self.number)
        items = self.node.member.argmax(axis=0)
        return int(items[first]), int(items[second])
