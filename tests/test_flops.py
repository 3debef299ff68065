"""FLOPs are those that torch counts on the live model, and no merged model costs more than the dense one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import geocolor
from geocolor.backend import factored_layers, install
from geocolor.curvature import Curvature
from geocolor.flops import flops, merge_slow, plan_flops, plan_flops_dense, slow_layers
from geocolor.graph import CostGraph
from geocolor.plans import Plan
from geocolor.storage import save
from geocolor.timed_forms import PAIRS
from tests.architectures import ListedExperts, residual_network
from tests.conftest import Network
from tests.handmade import factors_of, plan_of


def compressed(model: nn.Module, classes: list[tuple[Any, ...]]) -> tuple[nn.Module, Plan]:
    plan = plan_of(model, classes)
    return install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan), plan


def counted(model: nn.Module, x: torch.Tensor) -> int:
    """What torch counts, gradients on: then no evaluation of a basis is reused."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())


EXPERTS: list[tuple[Any, ...]] = [
    ("in", [f"experts.{i}.0" for i in range(4)], 12),  # 12·(16 + 32) > 16·32: slower than the matrices
    ("both", ["experts.0.2", "experts.1.2"], 5, 7),
    ("out", ["experts.2.2"], 6),
]


def test_flops_of_a_plan_and_of_the_live_model_are_those_that_torch_counts() -> None:
    model = ListedExperts().eval()
    smaller, plan = compressed(model, EXPERTS)
    x = torch.randn(3, 5, 16)
    assert counted(smaller, x) - counted(model, x) == 15 * (sum(plan_flops(plan).values()) - plan_flops_dense(plan))
    live, planned = flops(smaller), plan_flops(plan)
    assert live == {name: planned[name] for name in factored_layers(smaller)}


def test_flops_of_convolutions_count_an_output_pixel() -> None:
    model = residual_network().eval()
    x = torch.randn(1, 3, 12, 12)
    for classes in ([("in", ["1.conv2"], 5)], [("out", ["1.conv2"], 5)], [("both", ["1.conv2"], 3, 4)]):
        smaller, plan = compressed(model, classes)
        saved = counted(model, x) - counted(smaller, x)
        assert saved == 12 * 12 * (2 * 8 * 72 - plan_flops(plan)["1.conv2"])


def test_a_basis_that_layers_evaluate_once_is_counted_once() -> None:
    torch.manual_seed(0)
    model = Network().eval()
    classes: list[tuple[Any, ...]] = [
        ("in", ["blocks.0.q", "blocks.0.k"], 5),
        ("both", ["blocks.1.q", "blocks.1.k"], 3, 4),
    ]
    apart, plan = compressed(model, classes)
    once = plan.model_copy(update={"inputs": {"blocks.0.k": "blocks.0.q", "blocks.1.k": "blocks.1.q"}})
    assert sum(plan_flops(plan).values()) - sum(plan_flops(once).values()) == 2 * 8 * (5 + 4)
    assert slow_layers(plan) == ["blocks.0.q", "blocks.0.k", "blocks.1.q", "blocks.1.k"]
    assert slow_layers(once) == []
    apart.geocolor_plan = once
    x = torch.randn(1, 8)
    with torch.no_grad():
        assert counted(apart, x[None]) - counted(model, x[None]) == sum(plan_flops(once).values()) - plan_flops_dense(
            plan
        )
    assert len(factored_layers(merge_slow(apart))) == 4
    apart.geocolor_plan = plan
    assert len(factored_layers(merge_slow(apart))) == 0


def test_a_plan_knows_which_layers_read_one_input(network: nn.Module, curvature: Curvature, graph: CostGraph) -> None:
    plan = geocolor.plan(graph, 0.6)
    assert plan.inputs == {"blocks.0.k": "blocks.0.q", "blocks.1.k": "blocks.1.q"}
    smaller = geocolor.apply(network, plan, curvature)
    x = torch.randn(1, 1, 8)
    with torch.no_grad():
        saved = counted(network, x) - counted(smaller, x)
    assert saved == plan_flops_dense(plan) - sum(plan_flops(plan).values())


def test_slow_layers_are_named_and_merged_and_nothing_else_is() -> None:
    model = ListedExperts().eval()
    smaller, plan = compressed(model, EXPERTS)
    x = torch.randn(2, 5, 16)
    assert slow_layers(plan) == [f"experts.{i}.0" for i in range(4)]
    merged = merge_slow(smaller)
    assert set(factored_layers(merged)) == {"experts.0.2", "experts.1.2", "experts.2.2"}
    assert len(factored_layers(smaller)) == 7, "the compressed model is left alone"
    torch.testing.assert_close(merged(x), smaller(x), rtol=1e-4, atol=1e-5)
    assert counted(merged, x) < min(counted(smaller, x), counted(model, x))


def test_a_merged_model_is_to_run_and_not_to_save(tmp_path: Any) -> None:
    smaller, _ = compressed(ListedExperts(), EXPERTS)
    with pytest.raises(ValueError, match="holds no geocolor plan"):
        save(merge_slow(smaller), tmp_path / "model")


def test_where_nothing_is_slow_nothing_changes() -> None:
    smaller, plan = compressed(ListedExperts(), [("in", ["experts.0.0"], 3)])
    merged = merge_slow(smaller)
    assert not slow_layers(plan)
    assert list(factored_layers(merged)) == ["experts.0.0"]
    assert merged.geocolor_plan == plan


def test_what_takes_longer_as_factors_is_merged_too_where_that_is_timed() -> None:
    """By a clock of the test's own, two readings a timing: both forms to warm up, then factors and matrices in turn."""
    model = Network().eval()
    classes: list[tuple[Any, ...]] = [("in", ["blocks.0.q", "blocks.0.k"], 2), ("in", ["blocks.1.q"], 1)]
    smaller, plan = compressed(model, classes)
    smaller.geocolor_plan = plan.model_copy(update={"inputs": {"blocks.0.k": "blocks.0.q"}})
    assert merge_slow(smaller).geocolor_plan == smaller.geocolor_plan

    def clock(factors: list[float]) -> Callable[[], float]:
        """Matrices take a second; factors of each combination of shapes and positions as long as is said."""
        readings, now = list[float](), 0.0
        for seconds in factors:
            for length in (1.0, seconds, *(length for _ in range(PAIRS) for length in (seconds, 1.0))):
                readings += [now, now + length]
                now += length
        return iter(readings).__next__

    x = torch.randn(1, 3, 8)
    for positions, factors, left in (
        ((1,), [0.9, 0.9], ["blocks.0.q", "blocks.0.k", "blocks.1.q"]),
        ((1,), [1.1, 0.9], ["blocks.1.q"]),
        ((1, 5), [0.9, 1.1, 0.9, 0.9], ["blocks.1.q"]),
        ((1, 5), [0.9, 0.9, 1.1], ["blocks.0.q", "blocks.0.k"]),
    ):
        merged = merge_slow(smaller, positions=positions, timer=clock(factors))
        assert list(factored_layers(merged)) == left
        torch.testing.assert_close(merged(x), smaller(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="positions holds 0"):
        merge_slow(smaller, positions=(1, 0))
    by_a_real_clock = merge_slow(smaller, positions=(1, 4))
    torch.testing.assert_close(by_a_real_clock(x), smaller(x), rtol=1e-4, atol=1e-5)
