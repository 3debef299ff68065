"""The benchmark of the price: its plans differ, meet the size, and what it calls predicted is what is installed."""

import math

import numpy as np
import pytest
from torch import nn

import geocolor
from benchmarks.fidelity import distorted, draw, figures, predicted, random_groups
from geocolor.backend import factored_layers
from geocolor.graph import CostGraph


def test_random_colorings_are_partitions_of_layers_that_can_share(graph: CostGraph) -> None:
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(12):
        groups = random_groups(graph, rng)
        assert sorted(i for group in groups for i in group) == list(range(len(graph.layers)))
        assert all(len(graph.hull(group)) for group in groups)
        seen.add(tuple(sorted(groups)))
    assert len(seen) > 4


def test_a_misjudged_allocation_meets_the_size_with_other_ranks(graph: CostGraph) -> None:
    groups, budget = [(i,) for i in range(len(graph.layers))], int(0.6 * graph.parameters_dense)
    right = distorted(graph, groups, budget, 0.0, np.random.default_rng(0))
    wrong = distorted(graph, groups, budget, 2.0, np.random.default_rng(0))
    assert max(right.parameters, wrong.parameters) <= budget
    assert right.options != wrong.options
    assert graph.hull((0,)) is graph.hull((0,))  # the graph itself keeps its own prices


def test_predicted_damage_is_that_of_the_factors_installed(network: nn.Module, graph: CostGraph) -> None:
    plan = geocolor.plan(graph, keep=0.6, solver="greedy")
    smaller = geocolor.apply(network, plan, graph.curvature)
    by_layer = predicted(network, smaller, graph.curvature)
    assert len(by_layer) == len(graph.layers)
    assert sum(by_layer) == pytest.approx(plan.predicted_damage, rel=1e-4)
    dense = [layer.name for layer in graph.layers if layer.name not in factored_layers(smaller)]
    assert all(by_layer[i] == 0 for i, layer in enumerate(graph.layers) if layer.name in dense)


def test_figures_say_how_far_off_predictions_are(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [
        {
            "model": "m",
            "keep": 0.5,
            "plan": f"greedy {k}" if k else "private",
            "predicted": 2.0 * k + 2,
            "measured": k + 1.0,
        }
        for k in range(5)
    ]
    assert figures(rows) == {("m", 0.5): (5, pytest.approx(1.0), pytest.approx(math.log(2)))}
    rows[0]["predicted"] = 100.0
    assert figures(rows)["m", 0.5][1] < 0.5
    draw(rows, tmp_path / "scatter.png")
    assert (tmp_path / "scatter.png").read_bytes().startswith(b"\x89PNG")
