"""Options of a class, and the hull that serves every price."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geocolor.bases import metric
from geocolor.graph import CostGraph
from geocolor.layers import Layer
from geocolor.rate_distortion import Options, can_share, options


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 100)), min_size=1, max_size=40), st.floats(0, 50))
@settings(deadline=None)
def test_the_hull_holds_the_cheapest_point_at_every_price(points: list[tuple[int, float]], price: float) -> None:
    best = {}
    for parameters, damage in sorted(points):
        if not best or damage < min(best.values()):
            best[parameters] = damage
    zeros = np.zeros(len(best), dtype=np.int64)
    options = Options(
        np.array(list(best), dtype=np.int64),
        np.array(list(best.values())),
        np.full(len(best), "in", dtype="U5"),
        zeros + 1,
        zeros,
        zeros,
    )
    hull = options.hull()
    chosen = hull[hull.at(price)]
    cheapest = min(d + price * p for p, d in best.items())
    assert chosen.damage + price * chosen.parameters == pytest.approx(cheapest, rel=1e-9, abs=1e-9)


def test_options_are_pareto_optimal_and_a_single_layer_may_stay_dense(graph: CostGraph) -> None:
    options = graph.options((0,))
    assert (np.diff(options.parameters) > 0).all()
    assert (np.diff(options.damage) < 0).all()
    assert options[len(options) - 1].kind == "dense"
    assert options[len(options) - 1].damage == 0.0
    assert "dense" not in graph.options((0, 1)).kind


def test_kinds_are_limited_to_sides_that_agree() -> None:
    q, v, conv = Layer("q", 8, 4, "linear"), Layer("v", 3, 4, "linear"), Layer("c", 8, 4, "conv2d", (1, 1) * 4)
    assert can_share((q, v), "in")
    assert not can_share((q, v), "out")
    assert not can_share((q, v), "both")
    assert not can_share((q, conv), "in")


def test_of_wide_layers_some_ranks_of_both_sides_are_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = [Layer(name, 12, 10, "linear") for name in "ab"]
    identity = [torch.eye(size, dtype=torch.float64) for size in (12, 10)]
    members = [metric(torch.randn(12, 10, dtype=torch.float64), *identity) for _ in layers]
    every = options(layers, members, ("both",), (1.0,))[1.0, 0.0]
    monkeypatch.setattr("geocolor.rate_distortion.MOST_RANKS", 3)
    some = options(layers, members, ("both",), (1.0,))[1.0, 0.0]
    known = {(each.rank, each.right_rank): each.damage for each in (every[i] for i in range(len(every)))}
    assert 0 < len(some) < len(every)
    assert {each.rank for each in (some[i] for i in range(len(some)))} <= {1, 4, 7, 10}
    for each in (some[i] for i in range(len(some))):
        assert known.get((each.rank, each.right_rank), each.damage) == pytest.approx(each.damage)
