"""The benchmark of the curvature's form: each form is what it is called, and a run goes on where it stopped."""

import pytest
import torch
from torch import Tensor, nn

import geocolor
from benchmarks.curvature_forms import (
    KRONECKER,
    WHOLE,
    Looked,
    Row,
    changes,
    first_order,
    levels_of,
    observe,
    run,
    whole,
)
from benchmarks.price_forms import markdown
from benchmarks.subjects import Subject
from geocolor.curvature import Curvature
from geocolor.curvature.exact import hessian_block
from geocolor.divergence import few
from geocolor.graph import CostGraph
from geocolor.layers import weight_of
from geocolor.losses import Classification
from geocolor.stand_ins import StandIn, replaced

Batches = list[tuple[Tensor, Tensor]]
LOSS = Classification()


@pytest.fixture
def deltas(network: nn.Module, graph: CostGraph) -> dict[str, Tensor]:
    smaller = geocolor.apply(network, geocolor.plan(graph, keep=0.6, solver="greedy"), graph.curvature)
    return changes(network, smaller, graph.layers)


def test_gradients_of_samples_are_those_of_autograd(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    observed = observe(network, batches[:1], LOSS, curvature)
    outputs = LOSS.forward(network, batches[0])
    pseudo, units = LOSS.sample(outputs, batches[0], torch.Generator().manual_seed(0))
    pseudo.backward()
    assert observed.units == units == 16
    for layer in curvature.layers:
        found = observed.gradients[layer.name]
        assert found.shape == (16, layer.m, layer.n)
        torch.testing.assert_close(found.sum(0), network.get_submodule(layer.name).weight.grad)


def test_eigenvalues_are_squares_of_gradients_in_the_eigenbasis(
    network: nn.Module, curvature: Curvature, batches: Batches
) -> None:
    observed = observe(network, batches, LOSS, curvature)
    layer = curvature.layers[2]
    own = observed.eigenvalues[layer.name]
    torch.testing.assert_close(own.U @ own.U.T, torch.eye(layer.m), atol=1e-5, rtol=0)
    direction = torch.outer(own.U[:, 3], own.V[:, 5])  # in the basis, the block has nothing else to say
    block = observed.block(layer.name, direction)
    assert block == pytest.approx(0.5 * float(own.samples[3, 5]) / observed.units, rel=1e-3)
    assert observed.corrected("samples", layer.name, direction) == pytest.approx(block, rel=1e-3)


def test_with_one_position_a_sample_both_eigenvalues_agree(network: nn.Module, batches: Batches) -> None:
    single = [(x[:, :1], labels) for x, labels in batches]
    observed = observe(network, single, LOSS, geocolor.measure(network, single))
    for own in observed.eigenvalues.values():
        torch.testing.assert_close(own.positions, own.samples, rtol=1e-3, atol=1e-6)


def test_the_whole_is_the_quadratic_form(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    layer = curvature.layers[1]
    delta = 0.1 * torch.randn(layer.m, layer.n, dtype=torch.float64)
    exact = hessian_block(network, layer, batches, LOSS).damage(layer.name, delta)
    assert whole(network, {layer.name: delta}, few(batches, LOSS, network), LOSS) == pytest.approx(exact, rel=0.02)


def test_the_divergence_has_no_slope_and_the_tasks_loss_has_one(
    network: nn.Module, batches: Batches, deltas: dict[str, Tensor]
) -> None:
    layers = [layer for layer in geocolor.find_layers(network) if layer.name in deltas]
    chosen = few(batches, LOSS, network)

    def rise(step: float) -> float:
        moved = [StandIn(layer, weight_of(network, layer) + step * deltas[layer.name]) for layer in layers]
        with replaced(network, moved):
            return sum(LOSS.value(network, batch)[0] for batch in chosen) / 64

    found = first_order(network, network, deltas, chosen, LOSS)
    assert found["gradient_of_divergence"] < 1e-5 * found["gradient_after_step"]
    assert found["slope_of_task"] == pytest.approx((rise(0.01) - rise(-0.01)) / 0.02, rel=0.02)
    assert found["rise_of_task"] == 0  # of the dense model itself


def test_after_looks_the_level_is_theirs_and_the_shape_the_forms(
    curvature: Curvature, deltas: dict[str, Tensor]
) -> None:
    plain = {name: curvature.damage(name, delta) for name, delta in deltas.items()}
    found = {KRONECKER: plain, "seven": {name: 7 * damage for name, damage in plain.items()}}
    seen = Looked(curvature.scaled({layer.name: 3.0 for layer in curvature.layers}), levels_of(found))
    assert seen.under(KRONECKER, deltas, found) == pytest.approx(3 * sum(plain.values()))
    assert seen.under("seven", deltas, found) == pytest.approx(3 * sum(plain.values()))
    elsewhere = found | {"seven": {name: 14 * damage for name, damage in plain.items()}}  # twice as bad as there
    assert seen.under("seven", deltas, elsewhere) == pytest.approx(6 * sum(plain.values()))


def test_a_run_goes_on_where_it_stopped(network: nn.Module, batches: Batches) -> None:
    subject = Subject("network", network, batches, batches, LOSS, "")
    rows = list[Row]()
    for row in run(subject, (0.7,), 11, 1, rows):
        rows.append(row)
        if len(rows) == 3:
            break
    rest = list(run(subject, (0.7,), 11, 1, rows))
    plans = [row["plan"] for row in [*rows, *rest]]
    assert 4 <= len(plans) == len(set(plans)) <= 12
    assert plans[-1] == "last"
    assert list(run(subject, (0.7,), 11, 1, [*rows, *rest])) == []
    row = rows[1]
    assert row["plan"] == "private, allocated"
    assert row["looks"][KRONECKER] == pytest.approx(row["measured"], rel=0.5)
    assert row["dense"].keys() == row["looks"].keys() >= {KRONECKER, WHOLE, "ekfac, samples"}
    table = markdown([*rows, *rest])
    assert "ekfac, positions" in table
    assert "⟨∇L, δ⟩" in table
