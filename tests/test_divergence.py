"""What looks and comparisons cost: the dense model's outputs are computed once."""

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.calibration import seen_from
from geocolor.curvature import Curvature
from geocolor.divergence import dense_outputs, divergence_of, few
from geocolor.losses import Batch, Classification
from geocolor.stand_ins import planned
from geocolor.verification import verified

Batches = list[tuple[Tensor, Tensor]]


class Counting(Classification):
    """Notes every model that it runs."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "ran", [])

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        self.ran.append(model)
        return super().forward(model, batch)

    ran: list[nn.Module]


def test_outputs_of_few_batches_are_those_of_the_dense_model(network: nn.Module, batches: Batches) -> None:
    loss = Classification()
    chosen = few(batches, loss, network)
    for index, batch in enumerate(chosen):
        expected = dense_outputs(network, list(chosen), index, loss)
        assert torch.equal(dense_outputs(network, chosen, index, loss), expected)
        assert torch.equal(expected, loss.forward(network.eval(), batch))


def test_a_comparison_runs_the_dense_model_no_more(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    loss, graph = Counting(), geocolor.price(network, curvature)
    chosen = few(batches, loss, network)
    plan = geocolor.plan(graph, 0.6, solver="greedy")
    loss.ran.clear()
    found = verified(network, graph, [plan], chosen, loss)
    assert loss.ran
    assert network not in loss.ran
    smaller = geocolor.apply(network, found.plan, curvature)
    assert found.damage == pytest.approx(divergence_of(network, smaller, list(chosen), loss), rel=1e-5)


def test_a_look_runs_the_smaller_model_once(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    """For the inputs of its layers and the slopes; where the dense model's outputs are not known, once for each."""
    loss, graph = Counting(), geocolor.price(network, curvature)
    chosen = few(batches, loss, network)
    stand_ins = planned(graph, geocolor.plan(graph, 0.6, solver="greedy"))
    loss.ran.clear()
    asked = [parameter.requires_grad for parameter in network.parameters()]
    at_once = seen_from(network, stand_ins, curvature, chosen, loss)
    assert len(loss.ran) == len(chosen)
    assert [parameter.requires_grad for parameter in network.parameters()] == asked
    loss.ran.clear()
    apart = seen_from(network, stand_ins, curvature, list(chosen), loss)
    assert len(loss.ran) == 3 * len(chosen)
    for layer in curvature.layers:
        torch.testing.assert_close(at_once.A[layer.name], apart.A[layer.name])
        torch.testing.assert_close(at_once.G[layer.name], apart.G[layer.name])


def test_outputs_that_do_not_fit_are_computed_each_time(
    network: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geocolor.divergence.KEPT_OUTPUTS", 8)
    loss = Counting()
    chosen = few(batches, loss, network)
    loss.ran.clear()
    assert divergence_of(network, network, chosen, loss) == 0
    assert not chosen.outputs
    assert len(loss.ran) == 2 * len(chosen)
