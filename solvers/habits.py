"""What people do without searching. They are solvers so that their loss is a number in every race."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.repair import offer_repaired
from solvers.search import Search
from solvers.solver import Solver

ANY: tuple[type, ...] = (MedoidProblem, PairwiseProblem, GroupProblem)


def in_order(kinds: Iterable[Hashable]) -> list[list[int]]:
    """The items of each kind, in their order."""
    queues: dict[Hashable, list[int]] = {}
    for item, kind in enumerate(kinds):
        queues.setdefault(kind, []).append(item)
    return list(queues.values())


def misfit(kinds: Sequence[Hashable] | None, problem: Problem) -> str:
    """Why these kinds are not for this problem; empty where they are."""
    if kinds is None or len(kinds) == problem.size:
        return ""
    return f"its kinds name {len(kinds)} items, but the problem has {problem.size}"


@dataclass(frozen=True)
class Adjacent(Solver):
    """Runs of neighbours share a class, as Basis Sharing does.

    Attributes:
        run_length: items in a run; None: 2, or as many as it takes to stay within the problem's K.
        kinds: a label for each item (say, the kind of matrix); neighbours are then the next of the same kind.
    """

    run_length: int | None = None
    kinds: tuple[Hashable, ...] | None = None

    name: ClassVar[str] = "adjacent"
    problems: ClassVar[tuple[type, ...]] = ANY

    def __post_init__(self) -> None:
        if self.run_length is not None and self.run_length < 1:
            raise ValueError(f"run_length must be 1 or more, got {self.run_length}")

    def refusal(self, problem: Problem) -> str:
        return super().refusal(problem) or misfit(self.kinds, problem)

    def run(self, problem: Problem, search: Search) -> None:
        queues = in_order(self.kinds or (None,) * problem.size)
        length = self.run_length or self._length(problem, [len(queue) for queue in queues])
        runs = [queue[at : at + length] for queue in queues for at in range(0, len(queue), length)]
        offer_repaired(problem, runs, search)

    def _length(self, problem: Problem, sizes: list[int]) -> int:
        if problem.limit >= problem.size:
            return 2
        for length in range(1, problem.size):
            if sum(-(-size // length) for size in sizes) <= problem.limit:
                return length
        return max(problem.size, 1)


@dataclass(frozen=True)
class OneColor(Solver):
    """Everything that may share one class does."""

    name: ClassVar[str] = "one_color"
    problems: ClassVar[tuple[type, ...]] = ANY

    def run(self, problem: Problem, search: Search) -> None:
        offer_repaired(problem, [range(problem.size)], search)


@dataclass(frozen=True)
class Private(Solver):
    """Nothing shares. Feasible only where K leaves a basis to each item, or a penalty stands for one."""

    name: ClassVar[str] = "private"
    problems: ClassVar[tuple[type, ...]] = ANY

    def run(self, problem: Problem, search: Search) -> None:
        search.offer(Coloring(range(problem.size)))


@dataclass(frozen=True)
class Random(Solver):
    """The best of ``draws`` random colorings, the number of colors drawn first."""

    draws: int = 1

    name: ClassVar[str] = "random"
    problems: ClassVar[tuple[type, ...]] = ANY

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be 1 or more, got {self.draws}")

    def run(self, problem: Problem, search: Search) -> None:
        rng = np.random.default_rng(search.seed)
        for _ in range(self.draws):
            number = int(rng.integers(1, max(problem.limit, 1) + 1))
            offer_repaired(problem, Coloring(rng.integers(number, size=problem.size).tolist()).classes(), search)
            if search.expired():
                break
