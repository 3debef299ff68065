"""What a solver is: an immutable bag of settings with one method that searches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from solvers.problem import Problem
from solvers.search import Search


class Solver(ABC):
    """The one protocol of this package. A new solver is a frozen dataclass that derives from this and sets ``name``.

    ``run`` searches: it hands colorings to ``search.offer`` as it finds them, bounds to ``search.prove`` as it proves
    them, looks at ``search.expired()`` now and then, and returns when it is done. It draws all randomness from
    ``numpy.random.default_rng(search.seed)``. A solver that calls another one hands the same search on.

    Class attributes:
        name: what it is called in ``solve`` and in solutions.
        problems: the kinds of problem it takes.
        exact: whether it proves the optimum of every small problem it supports, given the time.
    """

    name: ClassVar[str]
    problems: ClassVar[tuple[type, ...]]
    exact: ClassVar[bool] = False

    def refusal(self, problem: Problem) -> str:
        """Why this problem is not for this solver, as a clause; empty when it is."""
        if isinstance(problem, self.problems):
            return ""
        known = " or ".join(kind.__name__ for kind in self.problems)
        return f"it takes a {known}, not a {type(problem).__name__}"

    def supports(self, problem: Problem) -> bool:
        return not self.refusal(problem)

    @abstractmethod
    def run(self, problem: Problem, search: Search) -> None:
        """Search until done or until the time is up."""
