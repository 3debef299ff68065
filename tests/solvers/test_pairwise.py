import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Coloring, PairwiseProblem, solve
from solvers.cliques import greedy_clique
from solvers.dsatur import dsatur
from solvers.testing import colorings, pairwise_problems


def coloring_problem(graph, K=None):
    return PairwiseProblem(np.zeros((len(graph),) * 2), nx.to_numpy_array(graph) > 0, opening=1, K=K)


@settings(deadline=None)
@given(pairwise_problems(), st.data())
def test_a_coloring_costs_its_pairs_and_its_colors(problem, data):
    coloring = data.draw(colorings(problem.size))
    together = [(i, j) for i, j in itertools.combinations(range(problem.size), 2) if coloring[i] == coloring[j]]
    allowed = not any(problem.conflict[pair] for pair in together) and coloring.number_of_colors <= problem.limit
    expected = sum(problem.weight[pair] for pair in together) + problem.opening * coloring.number_of_colors
    assert problem.cost(coloring) == pytest.approx(expected if allowed else math.inf)


@settings(deadline=None)
@given(pairwise_problems(), st.data())
def test_classes_priced_one_by_one_add_up(problem, data):
    coloring = data.draw(colorings(problem.size))
    total = sum(problem.class_cost(members) for members in coloring.classes())
    within = coloring.number_of_colors <= problem.limit
    assert problem.cost(coloring) == pytest.approx(total if within else math.inf)


def test_an_infinite_weight_is_a_conflict_and_the_diagonal_counts_for_nothing():
    problem = PairwiseProblem([[math.nan, math.inf], [math.inf, 5.0]])
    assert problem.conflict.tolist() == [[False, True], [True, False]]
    assert problem.cost(Coloring([0, 0])) == math.inf
    assert problem.cost(Coloring([0, 1])) == 0


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        ([[0, 1], [2, 0]], r"weight\[0, 1\] is 1.0, weight\[1, 0\] is 2.0; pass \(w \+ w.T\) / 2"),
        ([[0, math.nan], [math.nan, 0]], r"weight\[0, 1\] is nan"),
        ([[0, -math.inf], [-math.inf, 0]], r"weight\[0, 1\] is -inf"),
        ([[0, 1]], "weight must be square"),
        ([0, 1], "weight must have 2 axes"),
    ],
)
def test_bad_weights_are_refused_in_a_sentence(weight, sentence):
    with pytest.raises(ValueError, match=sentence):
        PairwiseProblem(weight)


def test_bad_conflicts_opening_and_K_are_refused_in_a_sentence():
    zero = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"conflict\[0, 1\] is True, conflict\[1, 0\] is False"):
        PairwiseProblem(zero, [[0, 1], [0, 0]])
    with pytest.raises(ValueError, match="conflict must be square"):
        PairwiseProblem(zero, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="opening must be a finite number"):
        PairwiseProblem(zero, opening=math.inf)
    with pytest.raises(ValueError, match="PairwiseProblem: K must be a whole number"):
        PairwiseProblem(zero, K=-2)


@pytest.mark.parametrize(
    ("graph", "chromatic"),
    [
        (nx.petersen_graph(), 3),
        (nx.cycle_graph(7), 3),
        (nx.cycle_graph(8), 2),
        (nx.complete_graph(6), 6),
        (nx.mycielski_graph(4), 4),
        (nx.grotzsch_graph() if hasattr(nx, "grotzsch_graph") else nx.mycielski_graph(4), 4),
        (nx.queen_graph(5) if hasattr(nx, "queen_graph") else nx.complete_graph(5), 5),
        (nx.empty_graph(5), 1),
        (nx.disjoint_union(nx.complete_graph(4), nx.cycle_graph(5)), 4),
    ],
)
@pytest.mark.parametrize("solver", ["cp_sat", "symmetric_cp_sat"])
def test_chromatic_numbers_are_found_and_proven(graph, chromatic, solver):
    solution = solve(coloring_problem(graph), solver)
    assert (solution.cost, solution.status) == (chromatic, "optimal")
    if chromatic > 1:
        assert solve(coloring_problem(graph, K=chromatic - 1), solver).status == "infeasible"


@given(st.integers(1, 14), st.floats(0, 1), st.integers(0, 1000))
def test_dsatur_colors_properly_and_a_clique_needs_its_size(size, density, seed):
    graph = nx.gnp_random_graph(size, density, seed=seed)
    conflict = nx.to_numpy_array(graph) > 0
    coloring = dsatur(conflict)
    assert all(coloring[a] != coloring[b] for a, b in graph.edges)
    clique = greedy_clique(conflict)
    assert all(graph.has_edge(a, b) for a, b in itertools.combinations(clique, 2))
    assert len(clique) <= coloring.number_of_colors <= max(dict(graph.degree).values()) + 1


@given(st.integers(1, 7), st.integers(1, 7))
def test_dsatur_is_exact_on_complete_bipartite_graphs(left, right):
    conflict = nx.to_numpy_array(nx.complete_bipartite_graph(left, right)) > 0
    assert dsatur(conflict).number_of_colors == 2


def test_modularity_of_a_small_graph_is_maximised_exactly():
    graph = nx.barbell_graph(5, 0)
    degree = np.array([d for _, d in graph.degree], dtype=float)
    edges = graph.number_of_edges()
    weight = -(nx.to_numpy_array(graph) - np.outer(degree, degree) / (2 * edges)) / edges
    solution = solve(PairwiseProblem((weight + weight.T) / 2), "cp_sat")
    classes = [set(members) for members in solution.coloring.classes()]
    assert classes == [set(range(5)), set(range(5, 10))]
    constant = (degree**2).sum() / (2 * edges) ** 2
    assert -solution.cost - constant == pytest.approx(nx.community.modularity(graph, classes))


def test_local_search_mends_a_start_with_conflicts():
    problem = coloring_problem(nx.cycle_graph(10), K=2)
    solution = solve(problem, "local_search", start=Coloring([0] * 10))
    assert solution.cost == 2
