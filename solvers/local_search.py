"""Local search: improves any start, by greedy's when there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from solvers.group import GroupProblem
from solvers.group_search import search_groups
from solvers.medoid import MedoidProblem
from solvers.medoid_search import search_medoids
from solvers.pairwise import PairwiseProblem
from solvers.pairwise_search import search_pairs
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver


@dataclass(frozen=True)
class LocalSearch(Solver):
    """Move, swap, merge and split to a local optimum, then from disturbed copies of the best.

    Attributes:
        rounds: how many disturbances follow the first descent; None: 10 for medoids, 5 per
            item (100 at most) for pairs, 2 per item (20 at most) for groups.
        neighbours: group problems: in how many classes an item is tried.
        max_oracle_calls: group problems: how many classes may be priced beyond the start; None: 200 + 30 per item.
    """

    rounds: int | None = None
    neighbours: int = 8
    max_oracle_calls: int | None = None

    name: ClassVar[str] = "local_search"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem, GroupProblem)

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("neighbours", 1), ("max_oracle_calls", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")

    def run(self, problem: Problem, search: Search) -> None:
        if isinstance(problem, MedoidProblem):
            search_medoids(problem, search, rounds=10 if self.rounds is None else self.rounds)
        elif isinstance(problem, PairwiseProblem):
            search_pairs(problem, search, rounds=min(100, 5 * problem.size) if self.rounds is None else self.rounds)
        elif isinstance(problem, GroupProblem):
            calls = 200 + 30 * problem.size if self.max_oracle_calls is None else self.max_oracle_calls
            rounds = min(20, 2 * problem.size) if self.rounds is None else self.rounds
            search_groups(problem, search, rounds=rounds, neighbours=self.neighbours, max_oracle_calls=calls)
