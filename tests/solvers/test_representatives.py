"""CP-SAT with classes named by their first items, against brute force and the model of colors."""

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Coloring, CpSat, PairwiseProblem, SymmetricCpSat, solve
from solvers.representative_model import clique_cover, representative_model
from solvers.search import Search
from solvers.testing import check_solver, pairwise_problems
from tests.solvers.brute_force import optimum, partitions


@settings(deadline=None, max_examples=40)
@given(pairwise_problems(max_size=5))
def test_it_finds_and_proves_the_optimum_of_every_small_problem(problem):
    solution = solve(problem, CpSat(representatives=True, warm_start=False))
    best = optimum(problem)
    unit = 1e-6 * (problem.scale * max(problem.size, 1))
    assert solution.cost == best or abs(solution.cost - best) <= unit
    assert solution.lower_bound == best or abs(solution.lower_bound - best) <= unit


def test_the_contract_holds():
    check_solver(CpSat(representatives=True), max_examples=3, max_size=3)


@settings(deadline=None, max_examples=30)
@given(pairwise_problems(max_size=4))
def test_each_allowed_coloring_is_one_solution(problem):
    from ortools.sat.python import cp_model

    if not problem.size or not problem.limit:
        return
    built = representative_model(problem, Search(problem))
    built.model.clear_objective()
    seen = []

    class Collect(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self):
            seen.append(built.decode(self.boolean_value))

    solver = cp_model.CpSolver()
    solver.parameters.enumerate_all_solutions = True
    solver.solve(built.model, Collect())
    assert len(seen) == len(set(seen))
    assert set(seen) == {c for c in partitions(problem.size) if np.isfinite(problem.cost(c))}


@given(st.integers(2, 9), st.floats(0, 1), st.integers(0, 1000))
def test_a_clique_cover_holds_every_conflict_and_cliques_only(size, density, seed):
    graph = nx.gnp_random_graph(size, density, seed=seed)
    cliques = clique_cover(nx.to_numpy_array(graph) > 0)
    covered = {pair for clique in cliques for pair in itertools.combinations(clique, 2)}
    assert covered == set(graph.edges)


def test_chromatic_numbers_are_proven():
    conflict = nx.to_numpy_array(nx.mycielski_graph(4)) > 0
    problem = PairwiseProblem(np.zeros(conflict.shape), conflict, opening=1)
    solution = solve(problem, CpSat(representatives=True), start=Coloring(range(11)))
    assert (solution.cost, solution.status) == (4, "optimal")


def test_symmetries_are_broken_on_colors_only():
    with pytest.raises(ValueError, match="representatives must be left False"):
        SymmetricCpSat(representatives=True)
