"""The cost graph: prices, the problems made of them, and its files."""

import json
import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph
from solvers import PairwiseProblem, formats


def test_the_price_of_a_class_is_the_least_over_its_options(graph: CostGraph) -> None:
    for group in ((0,), (0, 1), (0, 1, 2)):
        options = graph.options(group)
        for price in (0.0, 1e-6, 1e-3, 1.0):
            least = float(np.min(options.damage + price * options.parameters))
            assert graph.group_price(group, price) == pytest.approx(least, rel=1e-12)


def test_a_price_does_not_depend_on_the_order_of_the_layers(graph: CostGraph) -> None:
    assert graph.group_price((2, 0, 1), 1e-4) == graph.group_price((0, 1, 2), 1e-4)


def test_pairwise_weights_say_what_joining_two_layers_saves(graph: CostGraph) -> None:
    price = 1e-4
    weight = graph.pairwise_problem(price).weight
    alone = graph.group_price((0,), price) + graph.group_price((4,), price)
    assert weight[0, 4] == pytest.approx(graph.group_price((0, 4), price) - alone)
    assert weight[4, 0] == weight[0, 4]


def test_the_share_of_a_layer_is_never_above_what_classes_cost(graph: CostGraph) -> None:
    for price in (1e-6, 1e-4, 1e-2):
        share = graph.share_lower_bound(price)
        for group in ((0,), (3,), (0, 1), (0, 3, 5), (1, 2, 4, 5)):
            assert share[list(group)].sum() <= graph.group_price(group, price) * (1 + 1e-9)


def test_pairs_that_cost_far_more_than_apart_are_not_priced_again(network: nn.Module, curvature: Curvature) -> None:
    graph = geocolor.price(network, curvature)
    price = geocolor.plan(graph, 0.8, solver="private").price
    assert graph.promising(price) is None  # nothing is known of any pair
    graph.price_pairs()
    near = graph.promising(price)
    assert near is not None
    together = np.argwhere(np.triu(graph.priced_together(), 1)).tolist()
    hopeless = [pair for pair in together if pair not in near]
    assert hopeless
    for pair in together:
        apart = sum(graph.group_price((item,), price) for item in pair)
        assert (pair in hopeless) == (graph.group_price(pair, price) > 1.1 * apart)
    again = geocolor.price(network, curvature, near=near)
    again.price_pairs()
    assert {pair for pair in again.known if len(pair) == 2}.isdisjoint(map(tuple, hopeless))
    assert math.isinf(again.group_price(hopeless[0], price))


def test_lending_a_basis_costs_the_lender_least(graph: CostGraph) -> None:
    problem = graph.medoid_problem(2, rank_fraction=0.5)
    cost = problem.cost_matrix
    assert np.isfinite(cost).all()
    assert (cost.argmin(axis=1) == np.arange(len(cost))).all()


def test_layers_of_other_shapes_cannot_lend_a_basis() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    batches = [(torch.randn(16, 4), torch.randint(2, (16,)))]
    graph = geocolor.price(model, geocolor.measure(model, batches))
    cost = graph.medoid_problem(2).cost_matrix
    assert math.isinf(cost[0, 1])
    assert math.isinf(cost[1, 0])


def test_the_graph_is_exported_with_all_its_attributes(graph: CostGraph, tmp_path: Path) -> None:
    graph.write(tmp_path / "g.graphml", 1e-4)
    graph.write(tmp_path / "g.json", 1e-4)
    drawn = nx.read_graphml(tmp_path / "g.graphml")
    read = nx.node_link_graph(json.loads((tmp_path / "g.json").read_text()), edges="edges")
    assert set(drawn.nodes) == set(read.nodes) == {layer.name for layer in graph.layers}
    name, other = graph.layers[0].name, graph.layers[1].name
    assert read.nodes[name]["parameters"] == drawn.nodes[name]["parameters"] == 64
    assert read.edges[name, other]["weight"] == pytest.approx(drawn.edges[name, other]["weight"])
    problem, written = graph.pairwise_problem(1e-4), formats.read(tmp_path / "g.graphml")
    assert isinstance(written, PairwiseProblem)
    assert np.array_equal(written.weight, problem.weight)
    assert np.array_equal(written.conflict, problem.conflict)
    with pytest.raises(ValueError, match=r"\.graphml or \.json"):
        graph.write(tmp_path / "g.txt", 1e-4)


def test_weights_that_are_not_finite_are_refused_by_name(network: nn.Module, curvature: Curvature) -> None:
    network.get_submodule("blocks.1.k").weight.data[0, 0] = torch.nan  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match=r"blocks\.1\.k.*NaN"):
        geocolor.price(network, curvature)


def test_a_curvature_of_another_model_is_refused(curvature: Curvature) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({c: nn.Linear(9, 9) for c in "qko"}) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="another model"):
        geocolor.price(Other(), curvature)


def test_unknown_kinds_and_powers_are_refused(network: nn.Module, curvature: Curvature) -> None:
    with pytest.raises(ValueError, match="basis kinds are in, out, both"):
        geocolor.price(network, curvature, kinds=("left",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive"):
        geocolor.price(network, curvature, aggregate=0)
