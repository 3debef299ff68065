import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import solvers
from solvers import (
    Coloring,
    Exhaustive,
    GroupProblem,
    LocalSearch,
    MedoidProblem,
    PairwiseProblem,
    Search,
    Solver,
    relative_gap,
    solve,
    solver_names,
)


@pytest.fixture
def medoids():
    costs = np.random.default_rng(3).random((9, 9)) + 1 - np.eye(9)
    return MedoidProblem(costs, K=3)


@dataclass(frozen=True)
class Scripted(Solver):
    """Offers private and then does what the test says."""

    name: ClassVar[str] = "scripted"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, GroupProblem)
    then: object = None
    offers: bool = True

    def run(self, problem, search):
        if self.offers:
            search.offer(Coloring([0] * problem.size))
        self.then(search)


def interrupt(search: Search) -> None:
    raise KeyboardInterrupt


def test_a_solution_says_how_it_was_come_by(medoids):
    solution = solve(medoids, LocalSearch(rounds=2), seed=7)
    assert solution.solver == "local_search"
    assert solution.seed == 7
    assert solution.settings == {"rounds": 2, "neighbours": 8, "max_oracle_calls": None}
    assert len(solution.representatives) == solution.coloring.number_of_colors == 3
    assert solution.cost == medoids.cost(solution.coloring)
    assert solution.gap == relative_gap(solution.cost, solution.lower_bound)


def test_the_trace_falls_towards_the_answer_and_its_bound_rises(medoids):
    solution = solve(medoids, "local_search")
    seconds, costs, bounds = zip(*solution.trace, strict=True)
    assert list(seconds) == sorted(seconds)
    assert seconds[-1] <= solution.seconds
    assert list(costs) == sorted(costs, reverse=True)
    assert costs[-1] == solution.cost
    assert list(bounds) == sorted(bounds)


def test_auto_says_what_it_picked_and_why(medoids):
    solution = solve(medoids)
    assert solution.solver == "benders"
    assert solution.status == "optimal"
    assert "auto picked benders: multipliers settle most medoid problems" in solution.message


@pytest.mark.parametrize(
    ("problem", "picked"),
    [
        (MedoidProblem(np.arange(400.0).reshape(20, 20), 2), "benders"),
        (MedoidProblem(np.ones((20, 20)), 2), "merge_twins"),
        (PairwiseProblem(np.zeros((20, 20))), "chromatic"),
        (PairwiseProblem(np.zeros((80, 80))), "chromatic"),
        (GroupProblem(14, lambda items: 1.0), "subset_dp"),
        (GroupProblem(15, lambda items: 1.0), "column_generation"),
        (GroupProblem(201, lambda items: 1.0), "local_search"),
    ],
)
def test_auto_goes_by_kind_and_size(problem, picked):
    assert solvers.auto.choose(problem)[0].name == picked


def test_an_unknown_solver_is_answered_with_the_list_and_the_closest_name(medoids):
    with pytest.raises(
        ValueError, match=r"no solver .localsearch.; did you mean .local_search.. the solvers are auto, "
    ):
        solve(medoids, "localsearch")
    with pytest.raises(TypeError, match=r"pass a solver object, Exhaustive\(\), or the name 'exhaustive'"):
        solve(medoids, Exhaustive)
    with pytest.raises(TypeError, match="a solver is a name or a Solver object, got 3"):
        solve(medoids, 3)


def test_an_unsupported_problem_is_answered_with_the_solvers_that_support_it():
    with pytest.raises(
        ValueError, match=r"'exhaustive' does not support this problem: .*12 items, not 13; solvers that do: auto"
    ):
        solve(MedoidProblem(np.ones((13, 13)), 2), "exhaustive")
    with pytest.raises(
        ValueError, match=r"takes a MedoidProblem or PairwiseProblem, not a GroupProblem; .*local_search"
    ):
        solve(GroupProblem(3, lambda items: 1.0), "symmetric_cp_sat")


def test_solver_names_are_those_that_support_the_problem():
    large = GroupProblem(13, lambda items: 1.0)
    assert {"auto", "local_search", "greedy"} <= set(solver_names(large)) < set(solver_names())
    assert not {"exhaustive", "symmetric_cp_sat"} & set(solver_names(large))
    pairs = set(solver_names(PairwiseProblem(np.zeros((300, 300)))))
    assert "auto" in pairs
    assert not {"exhaustive", "subset_dp", "runs", "cp_sat", "symmetric_cp_sat"} & pairs


def test_a_bound_above_the_cost_raises(medoids):
    with pytest.raises(RuntimeError, match=r"'scripted' claims that no coloring costs less than 99.*its own coloring"):
        solve(medoids, Scripted(lambda search: search.prove(99.0)))


def test_a_bound_above_the_cost_by_rounding_only_is_taken_down_to_it(medoids):
    cost = medoids.cost(Coloring([0] * 9))
    solution = solve(medoids, Scripted(lambda search: search.prove(cost * (1 + 1e-14))))
    assert solution.lower_bound == solution.cost
    assert solution.status == "optimal"


def test_an_interrupt_returns_the_incumbent(medoids):
    solution = solve(medoids, Scripted(interrupt))
    assert solution.coloring == Coloring([0] * 9)
    assert solution.status == "feasible"
    assert "interrupted after" in solution.message


def test_an_interrupt_before_any_incumbent_goes_on():
    with pytest.raises(KeyboardInterrupt):
        solve(GroupProblem(2, lambda items: 1.0), Scripted(interrupt, offers=False))


def test_an_interrupt_inside_the_oracle_returns_the_incumbent():
    def cost(items):
        if len(items) > 1:
            raise KeyboardInterrupt
        return 1.0

    solution = solve(GroupProblem(5, cost), "local_search")
    assert solution.coloring == Coloring(range(5))


def test_an_interrupt_inside_native_code_returns_the_incumbent():
    """A real signal, sent once CP-SAT is at work on a problem that it cannot settle."""
    program = """
import os, signal, threading
import numpy as np
from ortools.sat.python import cp_model
import solvers

native = cp_model.CpSolver.solve

def solve_and_signal(self, *arguments):
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    return native(self, *arguments)

cp_model.CpSolver.solve = solve_and_signal
weight = np.random.default_rng(0).normal(size=(40, 40))
solution = solvers.solve(solvers.PairwiseProblem(weight + weight.T, opening=1, K=8), "cp_sat", time_limit=600)
print(solution.coloring is not None, "interrupted" in solution.message, solution.seconds < 500)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr


@pytest.mark.parametrize("solver", solver_names())
def test_without_time_a_solver_still_comes_back_with_its_word(solver, medoids):
    for problem in (medoids, PairwiseProblem(np.ones((9, 9))), GroupProblem(9, lambda items: 1.0 + len(items))):
        if solver in solver_names(problem):
            solution = solve(problem, solver, time_limit=0)
            assert solution.status in ("time_limit", "feasible", "unknown") or solution.gap == 0
            assert solution.coloring is not None or "found no allowed coloring" in solution.message


def test_a_search_cut_short_says_so_and_keeps_the_start(medoids):
    start = Coloring([0] * 9)
    solution = solve(medoids, "exhaustive", time_limit=0, start=start)
    assert solution.status in ("time_limit", "optimal")
    assert solution.cost <= medoids.cost(start)
    assert solve(medoids, "exhaustive", time_limit=0, start=[7] * 9).cost == solution.cost


@pytest.mark.parametrize(
    "problem",
    [
        MedoidProblem([[1, math.inf], [math.inf, math.inf]], 1),
        MedoidProblem([[1.0]], 0),
        PairwiseProblem(np.zeros((3, 3)), 1 - np.eye(3), K=2),
        GroupProblem(2, lambda items: 1.0, K=0),
    ],
    ids=["no candidate", "no basis", "triangle", "no class"],
)
def test_what_cannot_be_is_proven_infeasible_with_a_reason(problem):
    for solver in solver_names(problem):
        solution = solve(problem, solver)
        assert (solution.coloring, solution.cost, solution.lower_bound) == (None, math.inf, math.inf)
        assert solution.status == "infeasible"
        assert "item" in solution.message


def test_failing_to_find_is_told_from_there_being_none():
    solution = solve(MedoidProblem(np.ones((3, 3)), K=2), "private")
    assert solution.coloring is None
    assert solution.status == "unknown"
    assert solution.lower_bound < math.inf
    assert "private found no allowed coloring, which proves nothing; try an exact solver" in solution.message


@pytest.mark.parametrize("solver", solver_names())
def test_nothing_to_color_costs_nothing(solver):
    for problem in (
        MedoidProblem(np.zeros((0, 0)), 1),
        PairwiseProblem(np.zeros((0, 0)), opening=5),
        GroupProblem(0, lambda items: 1.0),
    ):
        if solvers.find_solver(solver).supports(problem):
            solution = solve(problem, solver)
            assert (solution.cost, solution.status, solution.coloring) == (0, "optimal", Coloring([]))


def test_bad_arguments_are_refused(medoids):
    with pytest.raises(ValueError, match="time_limit must be 0 seconds or more, got -1"):
        solve(medoids, time_limit=-1)
    with pytest.raises(ValueError, match="the coloring has 2 items, the problem 9"):
        solve(medoids, start=Coloring([0, 1]))
    for seed in (-1, 1.5):
        with pytest.raises(ValueError, match=f"seed must be a whole number, 0 or more, got {seed}"):
            solve(medoids, seed=seed)
    with pytest.raises(TypeError, match=r"solve takes a problem, such as MedoidProblem\(cost, K\), not a ndarray"):
        solve(medoids.cost_matrix)
    with pytest.raises(ValueError, match="workers must be 1 or more"):
        solvers.CpSat(workers=0)
    with pytest.raises(ValueError, match="rounds must be 0 or more, got -1"):
        LocalSearch(rounds=-1)
    with pytest.raises(ValueError, match="starts must be 1 or more"):
        solvers.Spectral(starts=0)
    with pytest.raises(ValueError, match="draws must be 1 or more"):
        solvers.Random(draws=0)


def test_solutions_and_solvers_are_immutable_and_comparable(medoids):
    assert LocalSearch() == LocalSearch() != LocalSearch(rounds=3)
    with pytest.raises(AttributeError):
        LocalSearch().rounds = 4
    with pytest.raises(AttributeError):
        solve(medoids, "private").cost = 0


@pytest.mark.parametrize(
    ("cost", "bound", "gap"),
    [(2, 1, 0.5), (0, 0, 0), (math.inf, math.inf, 0), (1, -math.inf, math.inf), (-1, -2, 0.5), (0, -1, 1), (1, 2, 0)],
)
def test_the_gap_is_relative_to_the_larger(cost, bound, gap):
    assert relative_gap(cost, bound) == gap
