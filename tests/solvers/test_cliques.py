import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Coloring
from solvers.cliques import greedy_clique, maximum_clique, members, neighbour_sets
from solvers.conflict_kernel import conflict_kernel
from tests.solvers.brute_force import partitions

GRAPHS = st.builds(nx.gnp_random_graph, st.integers(1, 12), st.floats(0, 1), seed=st.integers(0, 1000))
SMALL_GRAPHS = st.builds(nx.gnp_random_graph, st.integers(1, 7), st.floats(0, 1), seed=st.integers(0, 1000))


def never(steps):
    return False


def matrix(graph):
    return nx.to_numpy_array(graph) > 0


def proper(conflict, colors):
    same = np.equal.outer(colors, colors)
    return not (same & conflict).any()


def chromatic_number(conflict):
    found = (c.number_of_colors for c in partitions(len(conflict)) if proper(conflict, np.array(c.colors)))
    return min(found, default=0)


@given(GRAPHS)
def test_the_maximum_clique_is_the_largest_of_all_subsets(graph):
    conflict = matrix(graph)
    found = maximum_clique(conflict, never)
    assert found.maximum
    assert all(graph.has_edge(a, b) for a, b in itertools.combinations(found.items, 2))
    assert len(found.items) == max(len(clique) for clique in nx.find_cliques(graph))
    assert len(greedy_clique(conflict)) <= len(found.items)


@pytest.mark.parametrize(("size", "density"), [(60, 0.5), (40, 0.8), (120, 0.2)])
def test_the_maximum_clique_of_larger_random_graphs(size, density):
    for seed in range(3):
        graph = nx.gnp_random_graph(size, density, seed=seed)
        expected = max(len(clique) for clique in nx.find_cliques(graph))
        assert len(maximum_clique(matrix(graph), never).items) == expected


def test_a_clique_search_that_is_stopped_returns_a_clique_without_a_claim():
    graph = nx.gnp_random_graph(80, 0.5, seed=1)
    asked = []
    found = maximum_clique(matrix(graph), lambda steps: asked.append(steps) or len(asked) > 5)
    assert not found.maximum
    assert all(graph.has_edge(a, b) for a, b in itertools.combinations(found.items, 2))
    assert len(asked) == 6


def test_a_clique_given_as_a_start_is_kept_when_none_is_larger():
    conflict = matrix(nx.disjoint_union(nx.complete_graph(3), nx.complete_graph(3)))
    assert maximum_clique(conflict, never, [3, 4, 5]).items == (3, 4, 5)


def test_cliques_of_graphs_with_nothing_in_them():
    assert greedy_clique(np.zeros((0, 0), bool)) == []
    assert maximum_clique(np.zeros((0, 0), bool), never).items == ()
    assert maximum_clique(np.zeros((3, 3), bool), never).items == (0,)
    assert len(greedy_clique(matrix(nx.complete_graph(1500)))) == 1500


@given(GRAPHS)
def test_bit_sets_hold_the_neighbours(graph):
    rows = neighbour_sets(matrix(graph))
    assert [set(members(row)) for row in rows] == [set(graph[item]) for item in range(len(graph))]


@settings(deadline=None, max_examples=150)
@given(SMALL_GRAPHS, st.integers(1, 7))
def test_a_kernel_has_a_coloring_with_so_many_colors_exactly_when_the_graph_has(graph, number):
    conflict = matrix(graph)
    kernel = conflict_kernel(conflict, number)
    needed = [chromatic_number(conflict[np.ix_(part, part)]) for part in kernel.parts]
    assert (max(needed, default=0) <= number) == (chromatic_number(conflict) <= number)


@settings(deadline=None, max_examples=150)
@given(GRAPHS, st.integers(1, 12), st.randoms(use_true_random=False))
def test_colorings_of_a_kernel_lift_to_proper_colorings_with_no_more_colors(graph, number, random):
    conflict = matrix(graph)
    kernel = conflict_kernel(conflict, number)
    colors = np.full(len(conflict), -7)
    most = 0
    for part in kernel.parts:
        for item in random.sample(part, len(part)):
            shown = {int(colors[other]) for other in graph[item] if other in part}
            colors[item] = min(c for c in range(len(part)) if c not in shown)
        most = max(most, *(int(colors[item]) + 1 for item in part))
    lifted = kernel.lift(colors)
    assert proper(conflict, lifted)
    assert (lifted >= 0).all()
    assert Coloring(lifted.tolist()).number_of_colors <= max(number, most)


@given(GRAPHS, st.integers(1, 12))
def test_parts_and_what_was_set_aside_are_all_items(graph, number):
    kernel = conflict_kernel(matrix(graph), number)
    everything = [item for part in kernel.parts for item in part] + [item for item, _ in kernel.aside]
    assert sorted(everything) == list(range(len(graph)))
    for first, second in itertools.combinations(kernel.parts, 2):
        assert not any(graph.has_edge(a, b) for a in first for b in second)


def test_what_any_coloring_extends_to_is_set_aside():
    assert conflict_kernel(matrix(nx.balanced_tree(2, 5)), 2).parts == ()
    assert conflict_kernel(matrix(nx.complete_bipartite_graph(5, 6)), 2).parts == ()
    assert conflict_kernel(matrix(nx.cycle_graph(7)), 2).parts == (tuple(range(7)),)
    two = nx.disjoint_union(nx.cycle_graph(5), nx.cycle_graph(7))
    assert conflict_kernel(matrix(two), 2).parts == (tuple(range(5, 12)), tuple(range(5)))
