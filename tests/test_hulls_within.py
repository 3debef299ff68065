"""Hulls of classes within a bound of memory are the hulls that were set, bit by bit."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

import geocolor
from geocolor.graph import CostGraph
from geocolor.hull_files import Hulls
from geocolor.hulls_within import HullsWithin, bytes_of
from geocolor.journal import Journal
from geocolor.metrics import MetricsWithin

COLUMNS = ("parameters", "damage", "kind", "rank", "right_rank", "operations")


@pytest.fixture
def graph(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> CostGraph:
    graph = geocolor.price(network, geocolor.measure(network, batches), aggregate=(1.0, 2.0))
    for size in (1, 2, 3):
        for group in combinations(range(len(graph.layers)), size):
            graph.hull(group)
    return graph


def same(one: Hulls, other: Hulls) -> bool:
    assert one.keys() == other.keys()
    return all(
        len(one[which]) == len(other[which])
        and one[which].weight == other[which].weight
        and all(
            getattr(one[which], name).dtype == getattr(other[which], name).dtype
            and np.array_equal(getattr(one[which], name), getattr(other[which], name))
            for name in COLUMNS
        )
        for which in one
    )


def test_what_was_set_is_read_again_and_the_bound_is_kept(graph: CostGraph) -> None:
    known = dict(graph.known)
    assert {kind for hulls in known.values() for hull in hulls.values() for kind in hull.kind} > {"in", "out"}
    known[0, 99] = {which: hull.take(np.zeros(0, dtype=np.int64)) for which, hull in known[0,].items()}
    memory = sum(map(bytes_of, known.values())) // 5
    assert max(map(bytes_of, known.values())) < memory
    within = HullsWithin(memory)
    for group, hulls in known.items():
        within[group] = hulls
        assert sum(map(bytes_of, within._kept.values())) == within._held <= memory
    assert list(within) == list(known)
    for _ in range(2):
        for group, hulls in known.items():
            assert same(within[group], hulls)
            assert within._held <= memory
    within.set_aside()
    assert not within._kept
    assert within._held == 0
    assert all(same(within[group], hulls) for group, hulls in known.items())


def test_a_class_set_again_is_the_new_one_and_a_removed_one_is_gone(graph: CostGraph) -> None:
    within, first, other = HullsWithin(0), graph.known[0,], graph.known[1,]
    within[0,] = first
    within[1,] = other
    assert len(within._kept) == 1
    within[0,] = other
    within.set_aside()
    assert same(within[0,], other)
    del within[0,]
    assert (0,) not in within
    assert list(within) == [(1,)]
    with pytest.raises(KeyError):
        within[0,]


def test_prices_within_a_bound_are_those_without(graph: CostGraph, network: nn.Module, tmp_path: Path) -> None:
    """Also through a journal, after everything has been set aside, and for other weights of operations."""
    bounded = geocolor.price(network, graph.curvature, aggregate=(1.0, 2.0), memory=40_000)
    assert isinstance(bounded._hulls, HullsWithin)
    assert isinstance(bounded.metrics, MetricsWithin)
    bounded.price_pairs(journal=Journal(tmp_path))
    assert len(bounded._hulls._kept) < len(bounded.known)
    bounded.set_aside()
    assert not bounded._hulls._kept
    assert not bounded.metrics._kept
    for group, hulls in graph.known.items():
        bounded.hull(group)
        assert same(bounded.known[group], hulls)
    weighing = bounded.weighing((0.0, 0.5))
    assert isinstance(weighing._hulls, HullsWithin)
    assert not weighing.known
    assert bounded.known
