import networkx as nx
import numpy as np
import pytest

from benchmarks.pairwise_instances import INSTANCES, communities, gaussian, modularity, repelling, signed
from solvers import Coloring


@pytest.mark.parametrize("name", INSTANCES)
def test_instances_are_whole_and_the_same_each_time(name):
    first, second = INSTANCES[name](), INSTANCES[name]()
    assert np.array_equal(first.weight, second.weight)
    assert first.grain >= 1


def test_another_seed_draws_another_instance():
    for draw in (lambda s: signed(12, 3, s), lambda s: repelling(12, 3, s), lambda s: gaussian(12, s)):
        assert not np.array_equal(draw(0).weight, draw(1).weight)
    assert not np.array_equal(communities([9], 0.5, 0, 0).weight, communities([9], 0.5, 0, 1).weight)


def test_signs_are_as_said():
    assert (signed(30, 4).weight < 0).any()
    assert (signed(30, 4).weight > 0).any()
    assert (repelling(30, 4, conflicts=0.2).weight >= 0).all()
    assert repelling(30, 4, conflicts=0.2).conflict.any()


def test_the_cost_is_the_modularity_up_to_scale_and_a_constant():
    graph = nx.karate_club_graph()
    problem = modularity(graph)
    edges = graph.number_of_edges()
    constant = sum(degree**2 for _, degree in graph.degree) / (2 * edges) ** 2
    coloring = Coloring([item % 3 for item in range(34)])
    classes = [set(members) for members in coloring.classes()]
    measured = nx.community.modularity(graph, classes, weight=None)
    assert -problem.cost(coloring) / (2 * edges**2) - constant == pytest.approx(measured)
