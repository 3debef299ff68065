"""Every partition there is, as restricted growth strings. The oracle of the tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from solvers.coloring import Coloring
from solvers.greedy import Greedy
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver

Prices = list[list[float]]


@dataclass(frozen=True)
class Exhaustive(Solver):
    """Prices every subset once, then walks all partitions; refuses more than 12 items (4 million partitions).

    An item's choices are: a class that is already there, a new class (of each label, while its K allows), or to stay
    out of every basis where it has a penalty. Nothing is pruned but classes with an incompatible pair.
    """

    name: ClassVar[str] = "exhaustive"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem, GroupProblem)
    exact: ClassVar[bool] = True
    largest: ClassVar[int] = 12

    def refusal(self, problem: Problem) -> str:
        why = super().refusal(problem)
        if not why and problem.size > self.largest:
            return f"it walks through all partitions and refuses more than {self.largest} items, not {problem.size}"
        return why

    def run(self, problem: Problem, search: Search) -> None:
        if isinstance(problem, GroupProblem):
            Greedy().run(problem, search)  # pricing all subsets may outlast the time: leave something to return
        prices = subset_prices(problem, search)
        if prices is None:
            return
        walk = _Walk(problem, search, prices)
        walk.visit(0)
        if not search.cut_short:
            search.prove(search.cost, proof=f"all {walk.leaves} partitions priced")


def subset_prices(problem: Problem, search: Search) -> Prices | None:
    """``prices[label][mask]``: the class cost of the items in the bit mask. None when the time ran out meanwhile."""
    size = problem.size
    if isinstance(problem, MedoidProblem):
        sums = np.zeros((1 << size, problem.candidates))
        for item in range(size):
            sums[1 << item : 2 << item] = sums[: 1 << item] + problem.cost_matrix[item]
        labels = range(len(problem.limits))
        return [sums[:, problem.label == code].min(axis=1, initial=np.inf).tolist() for code in labels]
    pairs = problem.compatibility()
    allowed = [sum(1 << int(j) for j in np.flatnonzero(row)) for row in pairs]
    prices = [math.inf] * (1 << size)
    cliques = [True] * (1 << size)
    for mask in range(1, 1 << size):
        top = mask.bit_length() - 1
        rest = mask ^ (1 << top)
        cliques[mask] = cliques[rest] and rest & allowed[top] == rest
        if cliques[mask]:
            prices[mask] = problem.class_cost([item for item in range(size) if mask >> item & 1])
            if search.expired():
                return None
    return [prices]


class _Walk:
    """Depth first through the restricted growth strings; classes are bit masks."""

    def __init__(self, problem: Problem, search: Search, prices: Prices) -> None:
        self.size, self.search, self.prices = problem.size, search, prices
        pairs = problem.compatibility()
        self.clash = [sum(1 << int(j) for j in np.flatnonzero(~row)) for row in pairs]
        if isinstance(problem, MedoidProblem):
            self.left = [int(limit) for limit in problem.limits]
            self.penalties = problem.penalties().tolist()
        else:
            self.left = [problem.limit]
            out = problem.penalties() if isinstance(problem, GroupProblem) else np.full(problem.size, np.inf)
            self.penalties = out.tolist()
        self.classes: list[tuple[int, int]] = []  # (label, mask)
        self.out: list[int] = []
        self.lowest = math.inf
        self.leaves = 0

    def visit(self, item: int) -> None:
        if self.search.cut_short:
            return
        if item == self.size:
            self.judge()
            return
        bit, clash = 1 << item, self.clash[item]
        for at, (label, mask) in enumerate(self.classes):
            if not mask & clash:
                self.classes[at] = (label, mask | bit)
                self.visit(item + 1)
                self.classes[at] = (label, mask)
        for label, left in enumerate(self.left):
            if left:
                self.left[label] -= 1
                self.classes.append((label, bit))
                self.visit(item + 1)
                self.classes.pop()
                self.left[label] += 1
        if self.penalties[item] < math.inf:
            self.out.append(item)
            self.visit(item + 1)
            self.out.pop()

    def judge(self) -> None:
        total = sum(self.prices[label][mask] for label, mask in self.classes)
        total += sum(self.penalties[item] for item in self.out)
        if total < self.lowest:
            self.lowest = total
            members = [[i for i in range(self.size) if mask >> i & 1] for _, mask in self.classes]
            self.search.offer(Coloring.from_classes(members, self.size))
        self.leaves += 1
        if self.leaves % 4096 == 0:
            self.search.expired()
