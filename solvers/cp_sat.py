"""CP-SAT: exact where the model is complete, with the error of integer costs taken off its bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from solvers.bounds import strong_bound
from solvers.cp_models import Built, group_model, medoid_model, pairwise_model
from solvers.group import GroupProblem
from solvers.lagrangian import Lagrangian
from solvers.local_search import LocalSearch
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.representative_model import representative_model
from solvers.search import STEPS_PER_SECOND, Search
from solvers.solver import Solver
from solvers.tabu import Tabu

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True)
class CpSat(Solver):
    """Google's CP-SAT on one model for each kind of problem, begun from a local optimum.

    * Medoid: a Boolean for each item and candidate, but those too dear for any coloring better than the incumbent.
    * Pairwise: a Boolean for each item and color, colors in the order of their first use.
    * Group: set partitioning, over all classes with a price up to ``all_groups`` items (exact), and beyond over the
      classes priced so far (a heuristic: the best recombination of them; no bound is claimed).

    Attributes:
        workers: threads. More than one race each other, so a deterministic run uses one whatever is asked for.
        warm_start: begin with local search where no start is given.
        all_groups: group problems: up to how many items every class is priced.
        representatives: pairwise problems: name each class by its first item, not by a color.
        relaxed: pairwise problems: begin with a bound by cutting planes, which may leave nothing to search for.
    """

    workers: int = 1
    warm_start: bool = True
    all_groups: int = 12
    relaxed: bool = False
    representatives: bool = False

    name: ClassVar[str] = "cp_sat"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem, GroupProblem)
    exact: ClassVar[bool] = True
    largest_model: ClassVar[int] = 3_000_000

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be 1 or more, got {self.workers}")

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, PairwiseProblem):
            named = problem.size / 2 if self.representatives else problem.limit
            clauses = int(problem.size * (problem.size - 1) / 2 * named)
        elif isinstance(problem, MedoidProblem):
            clauses = problem.cost_matrix.size
        else:
            clauses = 0
        if clauses > self.largest_model:
            return f"its model would have about {clauses:,} constraints, more than {self.largest_model:,}"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        if self.warm_start and (search.best is None or isinstance(problem, MedoidProblem)):
            self.begin(problem).run(problem, search)
        if not search.closed():
            relaxed = self.relaxed or not isinstance(problem, PairwiseProblem)
            strong = strong_bound(problem, search.cost, search.clock_left() if relaxed else 0.0)
            search.prove(strong.value, strong.certificate)
        if search.closed() or search.expired():
            return
        built = self.build(problem, search)
        if built is not None:
            self.optimize(built, search)

    def begin(self, problem: Problem) -> Solver:
        """What finds the first incumbent, and for medoids the first bound too, which the model is then told.

        A descent is enough where all groups are in the model.
        """
        if isinstance(problem, MedoidProblem):
            return Lagrangian()
        complete = isinstance(problem, GroupProblem) and problem.size <= self.all_groups
        if isinstance(problem, PairwiseProblem) and self.representatives:
            return Tabu()
        return LocalSearch(rounds=0) if complete else LocalSearch()

    def build(self, problem: Problem, search: Search) -> Built | None:
        """The model; None when the time ran out while pricing."""
        if isinstance(problem, MedoidProblem):
            return medoid_model(problem, search)
        if isinstance(problem, PairwiseProblem):
            make = representative_model if self.representatives else pairwise_model
            return make(problem, search)
        assert isinstance(problem, GroupProblem)
        return group_model(problem, search, complete=problem.size <= self.all_groups)

    def engine(self, search: Search) -> cp_model.CpSolver:
        """CP-SAT with its settings but the time limit."""
        from ortools.sat.python import cp_model

        solver = cp_model.CpSolver()
        solver.parameters.random_seed = search.seed % 2**31
        solver.parameters.num_workers = 1 if search.deterministic else self.workers
        solver.parameters.linearization_level = 2  # the relaxation is what proves: 100 times quicker on medoids
        return solver

    def optimize(self, built: Built, search: Search) -> None:
        """Run CP-SAT; colorings go to the search as they are found, its bound at the end."""
        from ortools.sat.python import cp_model

        if search.expired():
            return
        solver = self.engine(search)
        limit = search.remaining()
        if math.isfinite(limit) and search.deterministic:
            solver.parameters.max_deterministic_time = limit
        elif math.isfinite(limit):
            solver.parameters.max_time_in_seconds = limit
        status = solver.solve(built.model, _watcher(built, search))
        search.spend(solver.response_proto.deterministic_time * STEPS_PER_SECOND)
        if status == cp_model.MODEL_INVALID:
            raise RuntimeError(f"CP-SAT refuses the model: {built.model.validate()}")
        stopped = status in (cp_model.UNKNOWN, cp_model.FEASIBLE)
        if built.complete and status == cp_model.INFEASIBLE:
            search.prove(math.inf, proof="CP-SAT's search, exhausted")
        elif built.complete and status != cp_model.UNKNOWN and math.isfinite(solver.best_objective_bound):
            search.prove(built.bound(solver.best_objective_bound), proof="CP-SAT's own bound")
        if stopped and not search.deterministic and search.remaining() > max(0.2, 0.05 * search.time_limit):
            raise KeyboardInterrupt  # with time left, only Ctrl-C stops CP-SAT, which swallows the signal
        search.cut_short |= stopped


def _watcher(built: Built, search: Search) -> cp_model.CpSolverSolutionCallback:
    """A callback that offers each solution. Its class is made here so that ortools is imported only when it is used."""
    from ortools.sat.python import cp_model

    def on_solution_callback(self: cp_model.CpSolverSolutionCallback) -> None:
        search.offer(built.decode(self.boolean_value))

    made = type("Watcher", (cp_model.CpSolverSolutionCallback,), {"on_solution_callback": on_solution_callback})
    watcher: cp_model.CpSolverSolutionCallback = made()
    return watcher
