"""The whole job as one call."""

import copy

import pytest
import torch
from torch import Tensor, nn

import geocolor

Batches = list[tuple[Tensor, Tensor]]

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:.*rank ≤", "ignore:sharing was predicted")


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def test_one_call_does_what_the_steps_do(network: nn.Module, batches: Batches) -> None:
    before = copy.deepcopy(network.state_dict())
    smaller = geocolor.compress(network, iter(batches), 0.6, solver="greedy", rounds=0, aggregate=1.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    curvature = geocolor.measure(network, batches)
    plan = geocolor.plan(geocolor.price(network, curvature), 0.6, solver="greedy")
    expected, found = geocolor.apply(network, plan, curvature), geocolor.plan_of(smaller)
    assert found is not None
    assert found.classes == plan.classes
    assert parameters(smaller) == parameters(expected) < parameters(network)
    x = batches[0][0]
    assert torch.equal(smaller(x), expected(x))


def test_refinement_brings_it_nearer_and_presets_are_taken(network: nn.Module, batches: Batches) -> None:
    from geocolor.divergence import divergence_of
    from geocolor.losses import Classification

    steps = geocolor.RefineSettings(steps=40, learning_rate=1e-2, holdout=0)
    plain, refined = (
        geocolor.compress(network, batches, 0.5, preset="svd", loss=Classification(), refinement=refinement)
        for refinement in (None, steps)
    )
    assert parameters(plain) == parameters(refined)
    near, far = (divergence_of(network, each, batches, Classification()) for each in (refined, plain))
    assert near < far


def test_what_cannot_be_done_gets_a_sentence(network: nn.Module, batches: Batches) -> None:
    with pytest.raises(ValueError, match="how small should it become"):
        geocolor.compress(network, batches)
    with pytest.raises(ValueError, match="above 0 and at most 1; got 80"):
        geocolor.compress(network, batches, 80)
    with pytest.raises(ValueError, match="calibration data are empty"):
        geocolor.compress(network, [], 0.8)
    with pytest.raises(TypeError, match="'ranks'"):
        geocolor.compress(network, batches, 0.8, ranks=3)
    broken = copy.deepcopy(network)
    next(broken.parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="is nan, and 1 of its"):
        geocolor.compress(broken, batches, 0.8)
