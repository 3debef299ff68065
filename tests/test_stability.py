"""The bootstrap over parts of the data: sums resampled are sums measured, and it tells little data from enough."""

import operator
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.budget import allocate
from geocolor.curvature import finish
from geocolor.planning import fixed_plan
from geocolor.stability import agreement, bootstrap, parts

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:.*rank ≤")

Batches = list[tuple[Tensor, Tensor]]


def many(count: int) -> Batches:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, 6, 8, generator=generator), torch.randint(5, (8,), generator=generator)) for _ in range(count)
    ]


def test_parts_add_up_to_the_whole_and_multiples_to_what_repeating_would_give(
    network: nn.Module, batches: Batches
) -> None:
    layers = geocolor.find_layers(network)
    shards = parts(network, batches, layers, count=3)
    whole = geocolor.measure(network, batches)
    together = finish(reduce(operator.add, shards))
    twice, added = shards[0].times(2), shards[0] + shards[0]
    for name in whole.A:
        torch.testing.assert_close(together.A[name], whole.A[name])
        torch.testing.assert_close(together.G[name], whole.G[name])
    assert all(torch.equal(twice.tensors[key], added.tensors[key]) for key in added.tensors)
    assert vars(twice).keys() == vars(added).keys()
    assert (twice.positions, twice.units, twice.sampled) == (added.positions, added.units, added.sampled)


def test_equal_parts_make_equal_plans(network: nn.Module, batches: Batches) -> None:
    [shard, _] = parts(network, batches[:2], geocolor.find_layers(network), count=2)
    found = bootstrap(network, [shard] * 4, 0.6, resamples=3)
    assert found.stable
    np.testing.assert_allclose(found.damages, found.damage, rtol=1e-9)
    np.testing.assert_allclose(found.regrets, 0, atol=1e-9)
    assert found.agreements == (1.0, 1.0, 1.0)


def test_more_data_narrows_the_spread(network: nn.Module) -> None:
    layers = geocolor.find_layers(network)
    few, enough = (bootstrap(network, parts(network, many(n), layers), 0.6, resamples=12) for n in (8, 128))
    assert enough.spread < 0.5 * few.spread
    assert np.mean(enough.regrets) < np.mean(few.regrets)
    assert "predicted damage" in str(enough)
    again = bootstrap(network, parts(network, many(8), layers), 0.6, resamples=12)
    assert again.damages == few.damages


def test_agreement_counts_the_pairs_that_share(network: nn.Module, graph: geocolor.CostGraph) -> None:
    colorings = [[(0, 1, 2), (3, 4), (5,)], [(0, 1), (2,), (3, 4, 5)], [(i,) for i in range(6)]]
    budget = round(0.7 * graph.parameters_dense)
    plans = [fixed_plan(graph, groups, allocate(graph, groups, budget).options, 0.7, "by hand") for groups in colorings]
    assert [agreement(plan, plan) for plan in plans] == [1.0, 1.0, 1.0]
    assert agreement(plans[0], plans[1]) == agreement(plans[1], plans[0]) == 2 / 6
    assert agreement(plans[0], plans[2]) == 0.0


def test_too_few_parts_are_refused(network: nn.Module, batches: Batches) -> None:
    with pytest.raises(ValueError, match="2 parts or more"):
        parts(network, batches[:1], geocolor.find_layers(network))
