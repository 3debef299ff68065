"""Probes set the scale of a layer's curvature by what the model really does."""

import math

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.budget import allocate
from geocolor.curvature import Curvature
from geocolor.losses import Classification, SquaredError
from geocolor.probes import calibrate, divergence_of, divergences, replacement, scaled, smoothed

Batches = list[tuple[Tensor, Tensor]]


def test_where_the_theory_is_exact_probes_change_little() -> None:
    """One linear layer under squared error: the quadratic is the truth, up to the batches that were sampled."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Identity()).double()
    x = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    batches = [(x, torch.zeros(2000, 6, dtype=torch.float64))]
    curvature = geocolor.measure(model, batches, SquaredError(), include=("0",), draws=50)
    after = calibrate(model, curvature, batches, SquaredError(), keep=0.7)
    assert float(after.G["0"].trace() / curvature.G["0"].trace()) == pytest.approx(1.0, rel=0.1)


def test_a_wrong_scale_is_put_right(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    wrong = scaled(curvature, {"blocks.0.q": 100.0, "blocks.1.o": 0.01})
    right, repaired = (calibrate(network, c, batches, keep=0.7, rounds=4) for c in (curvature, wrong))
    for name in ("blocks.0.q", "blocks.1.o"):
        ratio = float(repaired.G[name].trace() / right.G[name].trace())
        assert abs(math.log(ratio)) < math.log(3)


def test_the_model_is_left_as_it_was(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    calibrate(network, curvature, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_a_divergence_is_that_of_the_replaced_model(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    graph = geocolor.price(network, curvature)
    alone = allocate(graph, [(i,) for i in range(6)], int(0.6 * graph.parameters_dense))
    stand_ins = [replacement(graph, i, alone) for i in range(6) if alone.options[i].kind != "dense"]
    [measured] = divergences(network, [stand_ins], batches, Classification())
    plan = geocolor.plan(graph, 0.6, solver="private")
    smaller = geocolor.apply(network, plan, curvature)
    assert measured == pytest.approx(divergence_of(network, smaller, batches, Classification()), rel=1e-3)
    assert measured > 0


def test_calibrated_prices_predict_what_they_were_shown(
    network: nn.Module, curvature: Curvature, batches: Batches
) -> None:
    after = calibrate(network, curvature, batches, keep=0.7, rounds=4)
    assert after.probes == 4
    plan = geocolor.plan(geocolor.price(network, after), 0.7, solver="private")
    smaller = geocolor.apply(network, plan, after)
    measured = divergence_of(network, smaller, batches, Classification())
    assert plan.predicted_damage == pytest.approx(measured, rel=0.5)


def test_a_probe_that_cost_next_to_nothing_says_little() -> None:
    predicted, measured = [1.0, 2.0, 1e-9, 1.0], [10.0, 30.0, 1e-6, 5.0]
    first, second, nothing, fourth = smoothed(predicted, measured)
    assert fourth < first < second
    assert nothing == pytest.approx(11.25, rel=1e-3)  # all of them together, not 1,000
    assert [first, second, fourth] == pytest.approx([10, 15, 5], rel=0.15)
