"""Peers of the benchmarks are configurations of the pipeline: every plan is within its budget, and carried out."""

import pytest
import torch
from torch import nn

from benchmarks.kwt1 import KeywordTransformer, accuracy
from benchmarks.peers import METHODS, Budget, Method, neighbours, private, scaled_activation, uniform
from geocolor.carry_out import apply
from geocolor.curvature import Curvature, measure
from geocolor.graph import CostGraph, price
from geocolor.layers import find_layers
from geocolor.losses import Classification
from geocolor.parameters import parameter_count

KEEP = 0.7
Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def keyword_model() -> nn.Module:
    torch.manual_seed(0)
    return KeywordTransformer(mfcc=5, frames=6, classes=4, width=8, hidden=16, blocks=4).eval()


@pytest.fixture(scope="module")
def keyword_clips() -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(32, 6, 5, generator=generator), torch.randint(4, (32,), generator=generator)) for _ in range(2)
    ]


@pytest.fixture(scope="module")
def curvatures(keyword_model: nn.Module, keyword_clips: Batches) -> dict[str, Curvature]:
    names = ("identity", "diagonal", "activation", "kronecker")
    found = {name: measure(keyword_model, keyword_clips, Classification(), estimate=name) for name in names}
    return found | {
        "scaled activation": scaled_activation(found["activation"]),
        "probed": found["kronecker"],
    }


@pytest.fixture(scope="module")
def graphs(keyword_model: nn.Module, curvatures: dict[str, Curvature]) -> dict[str, CostGraph]:
    return {name: price(keyword_model, curvature) for name, curvature in curvatures.items()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_peer_keeps_no_more_than_it_may_and_runs(
    method: Method, keyword_model: nn.Module, keyword_clips: Batches, graphs: dict[str, CostGraph]
) -> None:
    graph = graphs[method.estimate]
    plan = method.make(graph, Budget(KEEP, unshared=("*.o", "*.fc2"), solver="greedy"))
    smaller = apply(keyword_model, plan, graph.curvature)
    freed = parameter_count(keyword_model) - parameter_count(smaller)
    assert freed == plan.parameters_dense - plan.parameters
    assert plan.kept <= KEEP
    assert 0 <= accuracy(smaller, keyword_clips) <= 1
    assert not torch.equal(smaller(keyword_clips[0][0]), keyword_model(keyword_clips[0][0]))


def test_the_uniform_rank_is_the_largest_that_fits(graphs: dict[str, CostGraph]) -> None:
    graph = graphs["activation"]
    for groups in (private(graph.layers), neighbours(graph.layers)):
        for group, option in zip(groups, uniform(graph, groups, KEEP), strict=True):
            dense = sum(graph.layers[i].parameters for i in group)
            per_rank = graph.layers[group[0]].n + sum(graph.layers[i].m for i in group)
            assert option.parameters <= KEEP * dense < option.parameters + per_rank


def test_plain_svd_is_the_truncated_svd_of_every_weight(graphs: dict[str, CostGraph]) -> None:
    graph = graphs["identity"]
    plan = METHODS[0].make(graph, Budget(KEEP))
    for cls in plan.classes:
        [name] = cls.layers
        values = torch.linalg.svdvals(graph.metrics[name].weight)
        assert cls.rank is not None
        assert cls.damage[name] == pytest.approx(0.5 * float(values[cls.rank :].square().sum()), rel=1e-6)


def test_neighbours_join_the_same_matrix_of_consecutive_blocks(keyword_model: nn.Module) -> None:
    layers = find_layers(keyword_model)
    names = [[layers[i].name for i in group] for group in neighbours(layers, unshared=("*.o", "*.fc2"))]
    assert ["layers.0.q", "layers.1.q"] in names
    assert ["layers.2.fc1", "layers.3.fc1"] in names
    assert ["layers.0.o"] in names
    assert ["proj"] in names
    assert sorted(name for group in names for name in group) == sorted(layer.name for layer in layers)


def test_an_odd_block_out_stays_alone(keyword_model: nn.Module) -> None:
    layers = [layer for layer in find_layers(keyword_model) if not layer.name.startswith("layers.3.")]
    names = [[layers[i].name for i in group] for group in neighbours(layers)]
    assert ["layers.2.q"] in names


def test_a_searched_coloring_is_predicted_no_worse_than_the_same_allocation_without_sharing(
    graphs: dict[str, CostGraph],
) -> None:
    by_name = {method.name: method for method in METHODS}
    graph, budget = graphs["kronecker"], Budget(KEEP, solver="greedy")
    coloring = by_name["coloring"].make(graph, budget).predicted_damage
    alone = by_name["Kronecker, private"].make(graph, budget).predicted_damage
    assert coloring <= alone * (1 + 1e-9)


def test_a_peer_that_cannot_meet_the_budget_says_so(graphs: dict[str, CostGraph]) -> None:
    with pytest.raises(ValueError, match="keep"):
        METHODS[0].make(graphs["identity"], Budget(0.01))
