"""Branch and cut for clique partitioning: exact where the linear relaxation is tight, as with weights of both signs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.pair_lp import PairLP, cut_root, rounded, target
from solvers.pair_tree import Fixing, PairTree
from solvers.pairwise import PairwiseProblem
from solvers.pairwise_search import Painting, search_pairs
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.tabu import Tabu

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BranchAndCut(Solver):
    """A variable for each pair (Grötschel & Wakabayashi 1989): triangle, 2-partition and odd-wheel inequalities.

    K and the opening cost are met by one more variable, the number of colors, and inequalities that tie it to the
    pairs. The root's multipliers are a certificate; what branching adds to the bound is stated as trusted.

    Attributes:
        rounds: rounds of disturbed local search for the first incumbent.
        node_rounds: rounds of cutting planes at each node below the root.
    """

    rounds: int = 20
    node_rounds: int = 6

    name: ClassVar[str] = "branch_and_cut"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)
    exact: ClassVar[bool] = True
    largest: ClassVar[int] = 600

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, PairwiseProblem) and problem.size > self.largest:
            return f"its relaxation has a variable for each pair of up to {self.largest} items, not {problem.size:,}"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, PairwiseProblem)
        search_pairs(problem, search, rounds=self.rounds)
        if search.closed() or search.expired():
            return
        Tree(problem, search, self.node_rounds).run()


def offer_rounded(problem: PairwiseProblem, E: Floats, search: Search) -> None:
    """Join pairs by falling e while more than half, then descend."""
    label = np.arange(problem.size)
    apart = problem.conflict.copy()
    i, j = np.nonzero(np.triu(E > 0.5, 1))
    for at in np.argsort(-E[i, j], kind="stable"):
        a, b = int(label[i[at]]), int(label[j[at]])
        if a != b and not apart[a, b]:
            label[label == b] = a
            apart[a] |= apart[b]
            apart[:, a] |= apart[:, b]
    search.offer(Coloring(label.tolist()))
    state = Painting(problem, Coloring(label.tolist()))
    state.descend(search)
    search.offer(Coloring(state.colors.tolist()))


class Tree(PairTree):
    """A node is the pairs it fixes, with all that follows from them by transitivity."""

    method: ClassVar[str] = "branch and cut"

    def __init__(self, problem: PairwiseProblem, search: Search, node_rounds: int) -> None:
        super().__init__(search)
        self.problem, self.node_rounds = problem, node_rounds
        self.lp = PairLP(problem, search.cost)
        self.low, self.high = self.lp.low.copy(), self.lp.high.copy()

    def run(self) -> None:
        search = self.search
        if self.lp.pairs and not cut_root(self.lp, search, lambda E: offer_rounded(self.problem, E, search)):
            return
        Tabu(rounds=0, steps=20 * self.problem.size).run(self.problem, search)
        self.fix_by_reduced_cost()
        self.explore(search.bound)
        search.note(f"branch and cut: {self.nodes} nodes, {len(self.lp.cuts)} inequalities at the end")

    def fix_by_reduced_cost(self) -> None:
        """A pair whose reduced cost exceeds the gap keeps its value in every coloring better than the incumbent."""
        reduced, bound = self.lp.reduced(), self.lp.lower_bound()
        gap = self.search.cost - bound
        if math.isfinite(gap):
            pair = np.arange(len(reduced)) < self.lp.pairs
            self.high[pair & (reduced > gap) & (self.high == 1)] = 0.0
            self.low[pair & (reduced < -gap) & (self.high == 1)] = 1.0

    def visit(self, bound: float, fixings: tuple[Fixing, ...]) -> bool:
        """Bound the node and put its children in the heap; False when the time ran out before that."""
        lp, search = self.lp, self.search
        box = self.closure(fixings)
        if box is None:
            return True
        low, high = box
        lp.restrict(low, high)
        before = bound
        for turn in itertools.count():
            outcome = lp.optimize(search)
            if outcome == "infeasible":
                return True
            bound = max(bound, rounded(lp.lower_bound(), search))
            if bound >= target(search):
                self.close(bound)
                return True
            if outcome == "stopped":
                return False
            E = lp.matrix()
            cuts = lp.separate(E, search)
            if not cuts:
                break
            if turn >= self.node_rounds and bound - before < 0.05 * (search.cost - before):
                break
            if len(lp.cuts) > 5000 + 4 * lp.pairs:
                lp.drop_slack()
            if turn >= self.node_rounds:
                before = bound
            lp.add(cuts)
        if self.nodes % 10 == 1 or not cuts:
            offer_rounded(self.problem, E, search)
            if bound >= target(search):
                self.close(bound)
                return True
        free = low[: lp.pairs] < high[: lp.pairs]
        if not free.any():
            self.close(max(bound, self.settle(low)))
            return True
        at = self.choose(free)
        i, j = (int(item) for item in lp.ends[at])
        for together in (True, False):
            self.push(bound, (*fixings, (i, j, together)))
        return True

    def choose(self, free: NDArray[np.bool_]) -> int:
        """The pair to branch on: far from 0 and 1, and of weight."""
        value = np.clip(self.lp.point[: self.lp.pairs], 0.0, 1.0)
        weight = np.abs(self.lp.costs[: self.lp.pairs]) / self.lp.unit
        score = (0.5 - np.abs(value - 0.5)) * (0.05 + np.minimum(weight, 1.0)) + 1e-9 * (1 + weight / (1 + weight))
        return int(np.where(free, score, -1.0).argmax())

    def settle(self, low: Floats) -> float:
        """The price of the only coloring that a node without free pairs leaves."""
        E = np.zeros((self.problem.size, self.problem.size), bool)
        E[self.lp.ends[:, 0], self.lp.ends[:, 1]] = low[: self.lp.pairs] > 0.5
        joined = E | E.T | np.eye(self.problem.size, dtype=bool)
        return self.search.offer(Coloring(joined.argmax(axis=1).tolist()))

    def closure(self, fixings: tuple[Fixing, ...]) -> tuple[Floats, Floats] | None:
        """The columns' bounds once all that the fixings imply is fixed; None where they contradict one another."""
        lp, size = self.lp, self.problem.size
        apart = self.problem.conflict.copy()
        fixed_low, fixed_high = self.low[: lp.pairs] == 1, self.high[: lp.pairs] == 0
        joined = [tuple(pair) for pair in lp.ends[fixed_low].tolist()]
        for i, j in lp.ends[fixed_high].tolist():
            apart[i, j] = apart[j, i] = True
        for i, j, together in fixings:
            if together:
                joined.append((i, j))
            else:
                apart[i, j] = apart[j, i] = True
        label = np.arange(size)
        for i, j in joined:
            label[label == label[j]] = label[i]
        member = (label[:, None] == np.arange(size)[None, :]).astype(np.float64)
        between = member.T @ apart.astype(np.float64) @ member > 0
        if between.diagonal().any():
            return None
        apart = between[np.ix_(label, label)]
        low, high = self.low.copy(), self.high.copy()
        first, second = lp.ends[:, 0], lp.ends[:, 1]
        low[: lp.pairs] = label[first] == label[second]
        high[: lp.pairs] = ~apart[first, second]
        return low, high
