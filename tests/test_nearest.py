"""Many layers: only those that have something in common are priced together."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.bases import metric
from geocolor.curvature import Curvature
from geocolor.layers import Layer
from geocolor.nearest import connected, nearest

Batches = list[tuple[Tensor, Tensor]]


def test_layers_of_one_subspace_find_each_other() -> None:
    """Four families of layers, each with inputs that matter of its own: neighbours are of the family."""
    torch.manual_seed(0)
    layers, metrics = [], {}
    spans = [torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))[0][:, :3] for _ in range(4)]
    for i in range(20):
        layer = Layer(f"{i}", 10, 24, "linear")
        weight = torch.randn(10, 3, dtype=torch.float64) @ spans[i % 4].T
        weight += 0.1 * torch.randn(10, 24, dtype=torch.float64)
        layers.append(layer)
        metrics[layer.name] = metric(weight, torch.eye(10).double(), torch.eye(24).double())
    near = nearest(layers, metrics, ("in",), 4, {layer.name: layer.name for layer in layers})
    assert np.array_equal(near, near.T)
    for i in range(20):
        assert {j for j in range(20) if near[i, j]} == {j for j in range(20) if j % 4 == i % 4}
    outputs = nearest(layers, metrics, ("out",), 2, {layer.name: layer.name for layer in layers})
    assert not np.array_equal(outputs, near)


def test_readers_of_one_input_are_near(network: nn.Module, curvature: Curvature) -> None:
    graph = geocolor.price(network, curvature)
    names = [layer.name for layer in graph.layers]
    near = nearest(graph.layers, graph.metrics, ("out",), 1, curvature.inputs)
    assert near[names.index("blocks.0.q"), names.index("blocks.0.k")]


def test_groups_hang_together_by_steps() -> None:
    near = np.eye(5, dtype=bool)
    near[0, 1] = near[1, 0] = near[1, 3] = near[3, 1] = True
    assert connected(near, (2,))
    assert connected(near, (0, 1, 3))
    assert not connected(near, (0, 3))
    assert not connected(near, (0, 1, 4))


def test_what_is_not_near_is_not_priced(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    full, few = geocolor.price(network, curvature), geocolor.price(network, curvature, most_pairs=0)
    assert full.near is None
    assert few.near is not None
    few.near[:] = np.eye(6, dtype=bool)
    few.near[0, 1] = few.near[1, 0] = True
    assert few.group_price((0, 1), 1e-6) == full.group_price((0, 1), 1e-6)
    assert few.group_price((0, 3), 1e-6) == math.inf
    few.price_pairs()
    assert {group for group in few.known if len(group) > 1} == {(0, 1)}
    assert few.pairwise_problem(1e-6).conflict.sum() == 36 - 6 - 2
    plan = geocolor.plan(few, 0.4, solver="local_search")
    assert plan.kept <= 0.4
    assert all(len(cls.layers) == 1 or set(cls.layers) == {"blocks.0.q", "blocks.0.k"} for cls in plan.classes)
    geocolor.apply(network, plan, curvature)


def test_bounds_still_hold_where_not_all_is_priced(network: nn.Module, curvature: Curvature) -> None:
    few = geocolor.price(network, curvature, most_pairs=0)
    plan = geocolor.plan(few, 0.5, solver="greedy")
    assert plan.lower_bound is not None
    assert plan.objective is not None
    assert plan.lower_bound <= plan.objective * (1 + 1e-9)
    assert plan.objective == pytest.approx(geocolor.plan(geocolor.price(network, curvature), 0.5).objective, rel=0.2)
