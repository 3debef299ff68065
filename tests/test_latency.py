"""Predicted times follow the roofline; the probe finds rates that a machine can have."""

from typing import Any

import pytest

import geocolor
from geocolor.flops import plan_flops, plan_flops_dense, plan_products, plan_products_dense
from geocolor.graph import CostGraph
from geocolor.latency import Roofline, predicted, probe, sentence
from tests.architectures import ListedExperts
from tests.handmade import plan_of

ROOF = Roofline(flops_per_second=1e9, bytes_per_second=1e8, value_bytes=4)


def test_a_product_takes_the_longer_of_compute_and_memory() -> None:
    assert ROOF.seconds([(100, 50, 1.0)], 1) == pytest.approx((100 * 50 + 150) * 4 / 1e8)
    assert ROOF.seconds([(1000, 1000, 0.5)], 20_000) == pytest.approx(2 * 10_000 * 1e6 / 1e9)
    assert ROOF.seconds([(8, 4, 1.0), (4, 8, 1.0)], 3) == 2 * ROOF.seconds([(8, 4, 1.0)], 3)


def test_the_products_of_a_plan_are_its_flops(graph: CostGraph) -> None:
    classes: list[tuple[Any, ...]] = [
        ("in", ["experts.0.0", "experts.1.0"], 3),
        ("both", ["experts.0.2", "experts.1.2"], 5, 7),
        ("out", ["experts.2.2"], 6),
    ]
    for plan in (geocolor.plan(graph, 0.5), plan_of(ListedExperts(), classes)):
        assert sum(2 * k * n for k, n, _ in plan_products(plan)) == sum(plan_flops(plan).values())
        assert sum(2 * k * n for k, n, _ in plan_products_dense(plan)) == plan_flops_dense(plan)
    assert plan_products(plan).count((3, 16, 1.0)) == 2
    assert (5, 7, 1.0) in plan_products(plan)


def test_where_compute_binds_the_prediction_is_the_fraction_of_flops(graph: CostGraph) -> None:
    plan = geocolor.plan(graph, 0.5)
    found = predicted(plan, Roofline(1.0, 1e30, 4), 512)
    kept = sum(plan_flops(plan).values()) / plan_flops_dense(plan)
    assert found["latency_predicted"] / found["latency_predicted_dense"] == pytest.approx(kept)
    line = sentence(found)
    assert f"({kept:.2f} × dense) for 512 at once" in line
    assert "for one position" in line


def test_a_probe_measures_rates() -> None:
    found = probe(repeats=1)
    assert found.value_bytes == 4
    assert 1e6 < found.flops_per_second < 1e17
    assert 1e6 < found.bytes_per_second < 1e15


def test_a_probe_keeps_to_a_memory() -> None:
    found = probe(repeats=1, memory=2_000_000)
    assert found.flops_per_second > 0
    assert found.bytes_per_second > 0
