import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import GroupProblem, MedoidProblem, PairwiseProblem, SymmetricCpSat, automorphisms, solve
from solvers.symmetry import orbits
from solvers.testing import medoid_problems, pairwise_problems


def as_weights(graph):
    return PairwiseProblem(nx.to_numpy_array(graph))


def composed(first, second):
    return tuple(second[i] for i in first)


def generated(generators, size):
    """The whole group, by closing it."""
    group, frontier = {tuple(range(size))}, [tuple(range(size))]
    while frontier:
        frontier = [g for g in {composed(a, g) for a in frontier for g in generators} if g not in group]
        group |= set(frontier)
    return group


GROUPS = [
    ("cycle", nx.cycle_graph(9), 18, 1),
    ("path", nx.path_graph(6), 2, 3),
    ("complete", nx.complete_graph(8), math.factorial(8), 1),
    ("empty", nx.empty_graph(5), 120, 1),
    ("Petersen", nx.petersen_graph(), 120, 1),
    ("cube", nx.hypercube_graph(3), 48, 1),
    ("tesseract", nx.hypercube_graph(4), 384, 1),
    ("K(3,3)", nx.complete_bipartite_graph(3, 3), 72, 1),
    ("K(2,4)", nx.complete_bipartite_graph(2, 4), 48, 2),
    ("star", nx.star_graph(6), 720, 2),
    ("Paley 13", nx.Graph(nx.paley_graph(13)), 78, 1),
    ("dodecahedron", nx.dodecahedral_graph(), 120, 1),
    ("Frucht", nx.frucht_graph(), 1, 12),
    ("Heawood", nx.heawood_graph(), 336, 1),
    ("two triangles", nx.disjoint_union(nx.complete_graph(3), nx.complete_graph(3)), 72, 1),
    ("Hoffman-Singleton", nx.hoffman_singleton_graph(), 252_000, 1),
]


@pytest.mark.parametrize(("graph", "order", "number_of_orbits"), [g[1:] for g in GROUPS], ids=[g[0] for g in GROUPS])
def test_groups_of_known_graphs(graph, order, number_of_orbits):
    found = automorphisms(as_weights(graph))
    assert found.complete
    assert found.order == order
    assert len(found.orbits) == number_of_orbits


@settings(deadline=None, max_examples=60)
@given(pairwise_problems(max_size=5))
def test_the_generators_of_a_pairwise_problem_generate_all_its_symmetries(problem):
    costs = np.where(problem.conflict, np.inf, problem.weight)
    every = {
        s
        for s in itertools.permutations(range(problem.size))
        if (costs[np.ix_(s, s)] == costs).all() or not problem.size
    }
    found = automorphisms(problem)
    assert generated(found.generators, problem.size) == every
    assert found.order == len(every)
    assert set(found.orbits) == set(orbits(list(every), problem.size))


@settings(deadline=None, max_examples=60)
@given(medoid_problems(max_size=4))
def test_the_generators_of_a_medoid_problem_generate_all_its_symmetries(problem):
    items, candidates = range(problem.size), range(problem.candidates)
    penalties = problem.penalties()
    every = {
        (*s, *(problem.size + b for b in t))
        for s in itertools.permutations(items)
        for t in itertools.permutations(candidates)
        if (problem.cost_matrix[np.ix_(s, t)] == problem.cost_matrix).all()
        and (penalties[list(s)] == penalties).all()
        and (problem.label[list(t)] == problem.label).all()
    }
    found = automorphisms(problem)
    joint = [
        (*g, *(problem.size + b for b in h)) for g, h in zip(found.generators, found.candidate_generators, strict=True)
    ]
    assert generated(joint, problem.size + problem.candidates) == every
    assert found.order == len(every)


def test_costs_that_differ_in_the_last_bit_are_different():
    weight = np.ones((3, 3))
    weight[0, 1] = weight[1, 0] = np.nextafter(1.0, 2.0)
    found = automorphisms(PairwiseProblem(weight))
    assert found.order == 2
    assert found.twins == ((0, 1),)


def test_twins_are_told_with_their_columns():
    base = np.random.default_rng(0).random((3, 3))
    copies = [0, 0, 1, 2, 2, 2]
    found = automorphisms(MedoidProblem(base[np.ix_(copies, copies)], K=2))
    assert found.twins == ((0, 1), (3, 4, 5)) == found.candidate_twins
    assert found.order == (2 * 6) ** 2


def test_a_planted_group_of_a_large_problem_is_found():
    """Forty layers in four blocks that may be exchanged, each block without symmetry."""
    block = np.random.default_rng(1).random((10, 10))
    weight = np.kron(np.eye(4), block + block.T) + np.kron(1 - np.eye(4), np.full((10, 10), 0.5))
    found = automorphisms(PairwiseProblem(weight))
    assert found.order == 24
    assert len(found.orbits) == 10


def test_a_search_cut_off_says_so_and_still_gives_true_symmetries():
    problem = as_weights(nx.petersen_graph())
    found = automorphisms(problem, max_nodes=3)
    assert not found.complete
    assert 120 % found.order == 0
    assert found.order < 120
    assert len(generated(found.generators, 10)) == found.order


def test_a_set_function_has_no_matrix_to_read_symmetries_from():
    with pytest.raises(TypeError, match="which a GroupProblem does not have"):
        automorphisms(GroupProblem(2, float))


def planted_twins(kinds, copies, seed):
    """A pairwise problem of interchangeable items: copies of a few kinds."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-3, 5, (kinds, kinds)).astype(float)
    return np.kron(base + base.T, np.ones((copies, copies)))


@pytest.mark.parametrize("seed", range(4))
def test_breaking_symmetry_keeps_the_optimum(seed):
    pairwise = PairwiseProblem(planted_twins(4, 2, seed), opening=1, K=3)
    medoid = MedoidProblem(planted_twins(4, 2, seed) + 7, K=3, penalty=np.repeat(np.arange(4) + 5.0, 2))
    for problem in (pairwise, medoid):
        best = solve(problem, "exhaustive").cost
        broken = solve(problem, SymmetricCpSat(warm_start=False))
        assert broken.cost == pytest.approx(best)
        assert broken.status == "optimal"


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([g for g in GROUPS if len(g[1]) <= 10]), st.integers(1, 4), st.booleans())
def test_breaking_the_symmetry_of_graphs_keeps_the_optimum(named, K, coloring):
    adjacency = nx.to_numpy_array(named[1]) > 0
    weight = np.zeros(adjacency.shape) if coloring else np.where(adjacency, 1.0, -0.25)
    problem = PairwiseProblem(weight, adjacency if coloring else None, opening=1.0, K=K)
    plain, broken = solve(problem, "cp_sat"), solve(problem, SymmetricCpSat(warm_start=False))
    assert broken.cost == plain.cost
    assert broken.status == plain.status


def test_symmetry_is_told_in_the_message():
    solution = solve(PairwiseProblem(planted_twins(3, 3, 0), opening=1, K=3), "symmetric_cp_sat")
    assert "classes of twins" in solution.message
    assert solution.status == "optimal"
