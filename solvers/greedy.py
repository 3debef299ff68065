"""Greedy construction, by the kind of problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from solvers.agglomerative import merge_groups, merge_pairwise
from solvers.coloring import Coloring
from solvers.dsatur import dsatur
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.medoid_search import greedy_medoids
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver


@dataclass(frozen=True)
class Greedy(Solver):
    """Greedy adding of medoids; agglomerative merging of groups and of weighted pairs; DSATUR for pure conflicts.

    Deterministic: the seed plays no part.
    """

    name: ClassVar[str] = "greedy"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem, GroupProblem)

    def run(self, problem: Problem, search: Search) -> None:
        if isinstance(problem, MedoidProblem):
            greedy_medoids(problem, search)
        elif isinstance(problem, PairwiseProblem):
            greedy_pairs(problem, search)
        elif isinstance(problem, GroupProblem):
            search.offer(Coloring(range(problem.size)))
            search.offer(merge_groups(problem, search.expired))


def greedy_pairs(problem: PairwiseProblem, search: Search) -> None:
    if problem.weightless:
        search.offer(dsatur(problem.conflict))
    if not problem.weightless or search.best is None:
        search.offer(Coloring(range(problem.size)))
        cost = search.offer(merge_pairwise(problem))
        if math.isinf(cost):  # merging ran into conflicts above K: proper coloring first, joining second
            search.offer(merge_pairwise(problem, dsatur(problem.conflict)))
