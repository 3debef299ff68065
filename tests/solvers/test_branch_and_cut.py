"""Branch and cut against brute force; its inequalities against every partition; its evidence against tampering."""

import itertools
import math
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import BranchAndCut, Inequalities, Inequality, MedoidProblem, PairwiseProblem, certify, solve
from solvers.pair_cuts import class_counts, forest, odd_wheels, stars, triangles
from solvers.pair_lp import PairLP
from solvers.search import Search
from solvers.testing import pairwise_problems
from tests.solvers.brute_force import optimum, partitions
from tests.solvers.interrupting import interrupted_in_highs


def gaussian(size, seed, **settings):
    weight = np.rint(100 * np.random.default_rng(seed).normal(size=(size, size)))
    return PairwiseProblem(weight + weight.T, **settings)


def modularity(graph):
    degree = np.array([d for _, d in graph.degree], dtype=float)
    edges = graph.number_of_edges()
    return PairwiseProblem(np.rint(np.outer(degree, degree) - 2 * edges * (nx.to_numpy_array(graph) > 0)))


@settings(deadline=None, max_examples=60)
@given(pairwise_problems(max_size=6))
def test_it_finds_and_proves_the_optimum_of_every_small_problem(problem):
    solution = solve(problem, BranchAndCut(rounds=0, node_rounds=1))
    best = optimum(problem)
    unit = 1e-6 * (problem.scale * max(problem.size, 1))
    assert solution.cost == best or abs(solution.cost - best) <= unit
    assert solution.lower_bound == best or abs(solution.lower_bound - best) <= unit
    assert certify(problem, solution).sound


def point(coloring):
    colors = np.array(coloring.colors)
    E = (colors[:, None] == colors[None, :]).astype(float)
    np.fill_diagonal(E, 0)
    return E, float(coloring.number_of_colors)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(4, 6))
def test_every_inequality_that_is_separated_holds_for_every_partition(seed, size):
    rng = np.random.default_rng(seed)
    E = np.round(rng.random((size, size)) * 4) / 4
    E = np.triu(E, 1) + np.triu(E, 1).T
    k, nothing = float(rng.uniform(1, size)), np.zeros((size, size), bool)
    cuts = triangles(E, ~nothing, 99) + stars(E, 99) + odd_wheels(E, 99)
    cuts += class_counts(E, nothing, k, 99) + forest(E, k)
    for cut in cuts:
        pairs, of_count, right = Inequality(*cut, 1.0).row(size)
        assert sum(a * E[i, j] for i, j, a in pairs) + of_count * k > right + 1e-9, f"{cut} is not violated"
        for coloring in partitions(size):
            whole, number = point(coloring)
            assert sum(a * whole[i, j] for i, j, a in pairs) + of_count * number <= right, f"{cut} cuts off {coloring}"


def test_an_odd_wheel_is_found_where_no_triangle_and_no_star_is_violated():
    size = 6
    E = np.zeros((size, size))
    E[0, 1:] = E[1:, 0] = 0.5
    for i, j in itertools.combinations(range(1, 6), 2):
        E[i, j] = E[j, i] = 0.0 if (j - i) % 5 in (1, 4) else 0.5
    assert not triangles(E, np.ones((size, size), bool), 99)
    cuts = odd_wheels(E, 99)
    assert cuts[0].kind == "odd_wheel"
    assert cuts[0].left == (0,)
    assert sorted(cuts[0].right) == [1, 2, 3, 4, 5]


def test_the_rows_of_the_relaxation_are_those_that_the_certificate_checks():
    problem = gaussian(7, 3, opening=5, K=3)
    lp, search = PairLP(problem, math.inf), Search(problem)
    for _ in range(4):
        assert lp.optimize(search) == "optimal"
        assert lp.evidence().bound(problem) == pytest.approx(lp.lower_bound())
        lp.add(lp.separate(lp.matrix(), search))
    for cut, columns, values, right in zip(lp.cuts, lp.columns, lp.values, lp.right, strict=True):
        pairs, of_count, same = Inequality(*cut, 1.0).row(7)
        row = np.zeros(len(lp.costs))
        for i, j, a in pairs:
            row[lp.index[i, j]] += a
        row[-1] += of_count
        assert right == same
        assert np.array_equal(np.bincount(columns, weights=values, minlength=len(row)), row)


@pytest.mark.parametrize("graph", [nx.karate_club_graph(), nx.florentine_families_graph()], ids=["karate", "families"])
def test_modularity_is_proven_at_the_root_with_evidence(graph):
    problem = modularity(graph)
    solution = solve(problem, "branch_and_cut")
    verdict = certify(problem, solution)
    assert solution.status == "optimal"
    assert verdict.sound
    assert not verdict.trusted


@pytest.mark.parametrize("settings", [{}, {"K": 3}, {"opening": 150.0}, {"opening": -150.0}, {"K": 4, "opening": 70.0}])
def test_it_agrees_with_cp_sat_where_branching_is_needed(settings):
    problem = gaussian(11, 1, **settings)
    solution = solve(problem, BranchAndCut(rounds=0))
    assert solution.status == "optimal"
    assert solution.cost == solve(problem, "cp_sat").cost


def test_more_items_that_conflict_than_colors_are_refuted_without_a_clique():
    odd = nx.to_numpy_array(nx.cycle_graph(7)) > 0
    weight = np.ones((7, 7))
    solution = solve(PairwiseProblem(weight, odd, K=2), "branch_and_cut")
    assert (solution.status, solution.lower_bound) == ("infeasible", math.inf)
    assert solve(PairwiseProblem(weight, odd, K=3), "branch_and_cut").status == "optimal"


def test_costs_of_very_different_size_do_not_drown_one_another():
    weight = np.array([[0, 1e12, 1e-12, 2], [1e12, 0, 3, -1], [1e-12, 3, 0, -2e-12], [2, -1, -2e-12, 0]])
    problem = PairwiseProblem(weight, K=2)
    solution = solve(problem, "branch_and_cut")
    assert solution.cost == optimum(problem)
    assert solution.lower_bound >= solution.cost - 1e-6


def certified():
    problem = gaussian(14, 5, K=4, opening=20.0)
    solution = solve(problem, "branch_and_cut")
    assert isinstance(solution.certificate, Inequalities)
    return problem, solution


def test_evidence_that_was_tampered_with_is_refused():
    problem, solution = certified()
    assert certify(problem, solution).sound
    rows = solution.certificate.rows
    first = rows[0]

    def faults(*changed, keep=rows[1:]):
        tampered = replace(solution, certificate=Inequalities((*changed, *keep)), proof="")
        return str(certify(problem, tampered))

    assert "is not 0 or more" in faults(first._replace(multiplier=-1.0))
    assert "is not 0 or more" in faults(first._replace(multiplier=math.nan))
    assert "no inequality known to hold" in faults(first._replace(kind="wish"))
    assert "names an item twice" in faults(Inequality("two_partition", (1,), (2, 1), 1.0))
    assert "that the problem does not have" in faults(Inequality("two_partition", (1,), (2, 14), 1.0))
    assert "no inequality known" in faults(Inequality("odd_wheel", (0,), (1, 2, 3, 4), 1.0))
    assert "no inequality known" in faults(Inequality("class_count", (0, 1, 2), (0,), 1.0))
    assert "no inequality known" in faults(Inequality("two_partition", (), (1, 2), 1.0))
    assert "close a cycle" in faults(Inequality("forest", (0, 1, 2), (1, 2, 0), 1.0))
    assert "said to follow from the certificate" in faults(first._replace(multiplier=first.multiplier + 1e4))
    assert "said to follow from the certificate" in faults()
    with pytest.raises(ValueError, match="inequalities between pairs say nothing about MedoidProblem"):
        solution.certificate.bound(MedoidProblem([[1.0]], 1))


def test_without_inequalities_the_evidence_is_the_sum_of_what_attracts():
    problem = PairwiseProblem([[0, -2, 3], [-2, 0, -1], [3, -1, 0]], opening=4, K=2)
    assert Inequalities().bound(problem) == -3 + 4
    assert Inequalities().bound(PairwiseProblem(np.zeros((0, 0)))) == 0
    assert Inequalities().bound(problem.with_limit(0)) == math.inf


@pytest.mark.parametrize("limit", [0.02, 0.3])
def test_a_deterministic_run_that_is_cut_short_repeats_itself(limit):
    problem = gaussian(40, 2)
    first, second = (solve(problem, "branch_and_cut", time_limit=limit, deterministic=True) for _ in range(2))
    assert (first.coloring, first.lower_bound, first.status) == (second.coloring, second.lower_bound, second.status)
    assert certify(problem, first).sound


def test_too_many_items_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="a variable for each pair of up to 600 items, not 700"):
        solve(PairwiseProblem(np.ones((700, 700))), "branch_and_cut")


def test_an_interrupt_inside_the_simplex_returns_the_incumbent():
    program = """
weight = np.random.default_rng(0).normal(size=(70, 70))
solver = solvers.BranchAndCut(rounds=0)
solution = solvers.solve(solvers.PairwiseProblem(weight + weight.T), solver, time_limit=600)
print(solution.coloring is not None, solution.interrupted, solution.seconds < 300)
"""
    done = interrupted_in_highs(program)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr
