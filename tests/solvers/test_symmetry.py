import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import GroupProblem, MedoidProblem, PairwiseProblem, SymmetricCpSat, automorphisms, solve
from solvers.permutation_group import group_order, orbits
from solvers.symmetry import binned, deviation
from solvers.testing import (
    medoid_problems,
    pairwise_problems,
    planted_medoid_problems,
    planted_pairwise_problems,
)


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


def test_a_search_cut_off_late_counts_the_group_it_found():
    """Basic orbits of what was found do not multiply to its order then, so the generators are composed."""
    graph = nx.hypercube_graph(3)
    for nodes in range(1, 12):
        found = automorphisms(as_weights(graph), max_nodes=nodes)
        assert len(generated(found.generators, 8)) == found.order


DIRECTED = [
    ("cycle", nx.cycle_graph(7, create_using=nx.DiGraph), 7),
    ("tournament of quadratic residues", nx.paley_graph(11), 55),
    ("transitive tournament", nx.DiGraph([(i, j) for i in range(6) for j in range(i)]), 1),
    ("out-star", nx.DiGraph([(0, i) for i in range(1, 6)]), 120),
    ("two directed triangles", nx.disjoint_union(*[nx.cycle_graph(3, create_using=nx.DiGraph)] * 2), 18),
    ("Cayley graph of S3", nx.DiGraph([(a, b) for a in range(6) for b in (a // 2 * 2 + 1 - a % 2, (a + 2) % 6)]), 6),
]


@pytest.mark.parametrize(("graph", "order"), [g[1:] for g in DIRECTED], ids=[g[0] for g in DIRECTED])
def test_groups_of_known_digraphs(graph, order):
    costs = nx.to_numpy_array(graph)
    found = automorphisms(costs)
    assert found.order == order == group_order(found.generators, len(costs))
    assert automorphisms(costs.T).order == order


def test_the_diagonal_of_a_matrix_tells_items_apart():
    costs = np.ones((4, 4))
    assert automorphisms(costs).order == 24
    costs[0, 0] = 2
    assert automorphisms(costs).order == 6
    assert automorphisms(costs).orbits == ((0,), (1, 2, 3))


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones(3)])
def test_only_square_matrices_have_symmetries_of_items(bad):
    with pytest.raises(ValueError, match=r"must be square|must have 2 axes"):
        automorphisms(bad)


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_a_tolerance_is_a_finite_number(bad):
    with pytest.raises(ValueError, match=r"tolerance must be a finite number of 0 or more.*got"):
        automorphisms(np.ones((2, 2)), tolerance=bad)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), st.floats(0, 2))
def test_bins_are_no_wider_than_the_tolerance_and_ordered(values, tolerance):
    values = np.array(values)
    lowest = binned(values, tolerance)
    assert ((values - lowest >= 0) & (values - lowest <= tolerance)).all()
    assert (np.diff(lowest[np.argsort(values)]) >= 0).all()
    if tolerance == 0:
        assert (lowest == values).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1e-9, 1e-3]), st.booleans())
def test_noise_within_the_tolerance_hides_no_symmetry(seed, tolerance, directed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 3, (9, 9)).astype(float)
    base[6:, :] = base[:, 6:] = np.kron(rng.integers(0, 3), 1.0)  # three items that nothing tells apart
    base = base if directed else base + base.T
    np.fill_diagonal(base, 0)
    noisy = base + rng.uniform(0, tolerance, base.shape)
    exact, found = automorphisms(base), automorphisms(noisy, tolerance=tolerance)
    assert found.order == exact.order >= 6
    assert found.orbits == exact.orbits
    assert found.deviation <= tolerance
    colors = np.zeros(9, dtype=np.int64)
    np.fill_diagonal(noisy, 0)
    assert found.deviation == max(deviation(noisy, colors, g) for g in found.generators)
    for element in generated(found.generators, 9) if found.order < 100 else ():
        assert deviation(noisy, colors, element) <= tolerance
    assert automorphisms(noisy).order == 1


def test_values_too_close_together_make_no_false_symmetry():
    """A chain of values each within the tolerance of the next: what changes a pair by more is never a symmetry."""
    weight = np.zeros((8, 8))
    weight[np.triu_indices(8, 1)] = np.linspace(0, 1, 28)
    found = automorphisms(PairwiseProblem(weight + weight.T), tolerance=0.2)
    assert found.deviation <= 0.2
    for element in generated(found.generators, 8) if found.order < 1000 else found.generators:
        assert deviation(weight + weight.T, np.zeros(8, dtype=np.int64), element) <= 0.2


@pytest.mark.parametrize("size", [0, 1, 5, 7])
def test_the_order_of_a_symmetric_and_a_cyclic_group(size):
    cycle = tuple((i + 1) % size for i in range(size)) if size else ()
    swap = (1, 0, *range(2, size)) if size > 1 else cycle
    assert group_order([cycle, swap], size) == math.factorial(size)
    assert group_order([cycle], size) == max(size, 1)
    assert group_order([], size) == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.permutations(range(6)), max_size=3))
def test_schreier_sims_counts_the_group_generated(generators):
    assert group_order(generators, 6) == len(generated([tuple(g) for g in generators], 6))


def test_a_large_group_is_counted_exactly():
    """Rubik's cube, its six turns as permutations of 48 stickers."""
    turns = [
        [(1, 3, 8, 6), (2, 5, 7, 4), (9, 33, 25, 17), (10, 34, 26, 18), (11, 35, 27, 19)],
        [(9, 11, 16, 14), (10, 13, 15, 12), (1, 17, 41, 40), (4, 20, 44, 37), (6, 22, 46, 35)],
        [(17, 19, 24, 22), (18, 21, 23, 20), (6, 25, 43, 16), (7, 28, 42, 13), (8, 30, 41, 11)],
        [(25, 27, 32, 30), (26, 29, 31, 28), (3, 38, 43, 19), (5, 36, 45, 21), (8, 33, 48, 24)],
        [(33, 35, 40, 38), (34, 37, 39, 36), (3, 9, 46, 32), (2, 12, 47, 29), (1, 14, 48, 27)],
        [(41, 43, 48, 46), (42, 45, 47, 44), (14, 22, 30, 38), (15, 23, 31, 39), (16, 24, 32, 40)],
    ]
    generators = []
    for cycles in turns:
        image = list(range(48))
        for cycle in cycles:
            for a, b in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
                image[a - 1] = b - 1
        generators.append(image)
    assert group_order(generators, 48) == 43_252_003_274_489_856_000


def as_colored_graph(costs):
    """Each ordered pair whose cost is not the commonest is a path i – a – b – j, a and b colored by the cost."""
    size = len(costs)
    known, names = np.unique(costs, return_inverse=True)
    names = names.reshape(size, size)
    off = ~np.eye(size, dtype=bool)
    common = np.bincount(names[off]).argmax()
    colors, edges = list(names.diagonal()), []
    for i, j in np.argwhere(off & (names != common)).tolist():
        a = len(colors)
        colors += [len(known) * (1 + side) + int(names[i, j]) for side in (0, 1)]
        edges += [(i, a), (a, a + 1), (a + 1, j)]
    return [int(c) for c in colors], edges


def planted_digraphs():
    rng = np.random.default_rng(3)
    for size in (6, 10, 16):
        base = rng.integers(0, 3, (size // 2, size // 2)).astype(float)
        yield np.kron(base, np.ones((2, 2)))  # twins
        yield np.kron(np.ones((2, 2)), base)  # two blocks that may change places
        yield np.kron(np.eye(2), base)
        yield rng.integers(0, 2, (size, size)).astype(float)
        circulant = rng.integers(0, 2, size).astype(float)
        yield np.array([np.roll(circulant, i) for i in range(size)])
    for _, graph, *_ in GROUPS:
        yield nx.to_numpy_array(graph)


def test_bliss_finds_the_same_groups():
    igraph = pytest.importorskip("igraph")
    for costs in planted_digraphs():
        if len(costs) > 20:
            continue
        colors, edges = as_colored_graph(costs)
        graph = igraph.Graph(len(colors), edges)
        found = automorphisms(costs)
        assert found.order == int(graph.count_automorphisms(color=colors))
        theirs = [tuple(g[: len(costs)]) for g in graph.automorphism_group(color=colors)]
        assert orbits(theirs, len(costs)) == found.orbits
        assert group_order(theirs, len(costs)) == found.order


def test_nauty_finds_the_same_groups():
    pynauty = pytest.importorskip("pynauty")
    for costs in planted_digraphs():
        colors, edges = as_colored_graph(costs)
        adjacency = {}
        for a, b in edges:
            adjacency.setdefault(a, []).append(b)
        cells = [{v for v, c in enumerate(colors) if c == color} for color in sorted(set(colors))]
        graph = pynauty.Graph(len(colors), adjacency_dict=adjacency, vertex_coloring=cells)
        generators, mantissa, exponent, *_ = pynauty.autgrp(graph)
        found = automorphisms(costs)
        assert found.order == pytest.approx(mantissa * 10**exponent)
        theirs = [tuple(g[: len(costs)]) for g in generators]
        assert orbits(theirs, len(costs)) == found.orbits


def test_a_thousand_items_take_few_looks():
    """Counted in refinements, not seconds: a budget of three for each generator is enough where structure is simple."""
    rng = np.random.default_rng(0)
    base, kinds = rng.random((200, 200)), rng.integers(0, 200, 1000)
    block = rng.random((20, 20))
    blocks = np.kron(np.eye(50), block) + np.kron(1 - np.eye(50), np.full((20, 20), 0.5))
    twins, exchanged = base[np.ix_(kinds, kinds)], blocks
    assert automorphisms(twins, max_nodes=0).complete
    found = automorphisms(exchanged, max_nodes=150)
    assert found.complete
    assert found.order == math.factorial(50)
    assert len(found.orbits) == 20


def test_a_set_function_has_no_matrix_to_read_symmetries_from():
    with pytest.raises(TypeError, match="which a GroupProblem does not have"):
        automorphisms(GroupProblem(2, float))


def planted_twins(kinds, copies, seed):
    """A pairwise problem of interchangeable items: copies of a few kinds."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-3, 5, (kinds, kinds)).astype(float)
    return np.kron(base + base.T, np.ones((copies, copies)))


@settings(deadline=None, max_examples=40)
@given(planted_pairwise_problems(6) | planted_medoid_problems(5), st.tuples(*[st.booleans()] * 4))
def test_every_way_to_break_symmetry_keeps_the_optimum(problem, ways):
    merge, value_precedence, twins, generators = ways
    solver = SymmetricCpSat(
        warm_start=False, merge=merge, value_precedence=value_precedence, twins=twins, generators=generators
    )
    broken = solve(problem, solver)
    assert broken.cost == pytest.approx(solve(problem, "exhaustive").cost)
    assert broken.lower_bound == pytest.approx(broken.cost)


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
