"""Prices follow what is seen from smaller models."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.calibration import calibrate, seen_from, shifted, smoothed
from geocolor.curvature import Curvature
from geocolor.divergence import divergence_of
from geocolor.journal import Journal
from geocolor.layers import weight_of
from geocolor.losses import Classification, SquaredError
from geocolor.stand_ins import StandIn, among_neighbours, planned, replaced, without_sharing

Batches = list[tuple[Tensor, Tensor]]


class Both(nn.Module):
    """Two layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x[:, :16]), self.right(x[:, 16:])], dim=1)


def halved(model: nn.Module, curvature: Curvature, fraction: float = 0.5) -> list[StandIn]:
    return [StandIn(layer, fraction * weight_of(model, layer)) for layer in curvature.layers]


def test_where_the_theory_is_exact_looking_changes_little() -> None:
    """One linear layer under squared error: the quadratic is the truth, up to the batches that were sampled."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Identity()).double()
    x = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    batches = [(x, torch.zeros(500, 6, dtype=torch.float64))]
    curvature = geocolor.measure(model, batches, SquaredError(), include=("0",), draws=50)
    after = calibrate(model, curvature, batches, SquaredError(), keep=0.7)
    assert float(after.G["0"].trace() / curvature.G["0"].trace()) == pytest.approx(1.0, rel=0.1)
    torch.testing.assert_close(after.A["0"], curvature.A["0"])


def test_a_slope_is_the_layers_own_damage_where_the_loss_is_quadratic() -> None:
    """Two layers side by side, so that damages add: a wrong scale is found and put right in one whole step."""
    model, x = Both().double(), torch.randn(300, 32, dtype=torch.float64)
    batches = [(x, torch.zeros(300, 32, dtype=torch.float64))]
    curvature = geocolor.measure(model, batches, SquaredError(), include=("left", "right"), draws=30, damping=0.0)
    wrong = curvature.scaled({"left": 5.0})
    stand_ins = halved(model, curvature)
    after = seen_from(model, stand_ins, wrong, batches, SquaredError(), step=1.0)
    for each in stand_ins:
        change = each.weight - weight_of(model, each.layer)
        measured = 0.5 * float((x[:, :16] if each.layer.name == "left" else x[:, 16:]).matmul(change.T).square().sum())
        assert after.damage(each.layer.name, change) == pytest.approx(measured / 300, rel=0.2)


def test_wrong_scales_cost_next_to_nothing_once_looked_at() -> None:
    """Where damages add, plans from wrong scales become as good as those from the right ones."""
    model, x = Both().double(), torch.randn(300, 32, dtype=torch.float64)
    batches = [(x, torch.zeros(300, 32, dtype=torch.float64))]
    curvature = geocolor.measure(model, batches, SquaredError(), include=("left", "right"), draws=30)

    def damage(curvature: Curvature) -> float:
        plan = geocolor.plan(geocolor.price(model, curvature), 0.5, solver="private")
        return divergence_of(model, geocolor.apply(model, plan, curvature), batches, SquaredError())

    wrong = curvature.scaled({"left": 0.2, "right": 2.0})
    repaired = calibrate(model, wrong, batches, SquaredError(), keep=0.5, rounds=6)
    assert damage(wrong) > 1.1 * damage(curvature)
    assert damage(repaired) < 1.01 * damage(curvature)


def test_inputs_become_those_of_the_smaller_model(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    stand_ins = halved(network, curvature, 0.1)
    whole = seen_from(network, stand_ins, curvature, batches, Classification(), step=1.0)
    half = seen_from(network, stand_ins, curvature, batches, Classification(), step=0.5)
    with replaced(network, stand_ins):
        there = geocolor.measure(network, batches, Classification(), layers=curvature.layers, estimate="activation")
    for layer in curvature.layers:
        torch.testing.assert_close(whole.A[layer.name], there.A[layer.name], rtol=1e-5, atol=1e-8)
        mean = (curvature.A[layer.name] + whole.A[layer.name]) / 2
        torch.testing.assert_close(half.A[layer.name], mean)
    assert whole.A["blocks.0.q"] is whole.A["blocks.0.k"]
    assert whole.rounds == curvature.rounds + 1
    assert not torch.allclose(whole.A["blocks.1.q"], curvature.A["blocks.1.q"], rtol=0.05)


def test_how_far_a_look_moved_prices_is_relative_to_all_layers(network: nn.Module, curvature: Curvature) -> None:
    stand_ins = halved(network, curvature, 0.1)
    assert shifted(network, stand_ins, curvature, curvature) == 0
    tripled = curvature.scaled({layer.name: 3.0 for layer in curvature.layers})
    assert shifted(network, stand_ins, curvature, tripled) == pytest.approx(0, abs=1e-9)
    first = stand_ins[0].layer.name
    damage = [curvature.damage(e.layer.name, e.weight - weight_of(network, e.layer).double()) for e in stand_ins]
    old = torch.tensor(damage, dtype=torch.float64)
    new = old * torch.tensor([2.0] + [1.0] * (len(old) - 1), dtype=torch.float64)
    logs = (new / new.sum() / (old / old.sum())).log()
    expected = float(((new / new.sum()) * logs**2).sum().sqrt())
    assert shifted(network, stand_ins, curvature, curvature.scaled({first: 2.0})) == pytest.approx(expected)
    assert expected > 0.1


def test_the_model_is_left_as_it_was(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    network.blocks[0].q.weight.requires_grad_(False)
    calibrate(network, curvature, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert [parameter.requires_grad for parameter in network.blocks[0].parameters()] == [False] + [True] * 4
    assert all(parameter.grad is None for parameter in network.parameters())


def test_vectors_are_looked_at_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1), nn.Linear(1, 3))
    data = [(torch.randn(64, 1), torch.randint(3, (64,)))]
    curvature = geocolor.measure(model, data)
    seen = calibrate(model, curvature, data, rounds=1)
    assert seen.rounds == curvature.rounds + 1
    plan = geocolor.plan(geocolor.price(model, seen), keep=0.7, solver="greedy")
    assert plan.kept <= 0.7


def test_batches_may_come_once_only(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    once, twice = (
        calibrate(network, curvature, iter(batches), rounds=1),
        calibrate(network, curvature, batches, rounds=1),
    )
    assert all(torch.equal(once.G[layer.name], twice.G[layer.name]) for layer in curvature.layers)
    with pytest.raises(ValueError, match="there are no calibration batches"):
        calibrate(network, curvature, [])


def test_stand_ins_of_a_plan_are_what_it_installs(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    graph = geocolor.price(network, curvature)
    plan = geocolor.plan(graph, 0.5, solver="greedy")
    smaller = geocolor.apply(network, plan, curvature)
    expected = divergence_of(network, smaller, batches, Classification())
    other = geocolor.merge_to_dense(smaller)
    stand_ins = planned(graph, plan)
    assert {each.layer.name for each in stand_ins} == {n for c in plan.classes if c.kind != "dense" for n in c.layers}
    with replaced(other, stand_ins):
        assert divergence_of(network, other, batches, Classification()) == pytest.approx(expected, rel=1e-3)
    private = geocolor.plan(graph, 0.5, solver="private")
    assert len(without_sharing(graph, 0.5)) == sum(cls.kind != "dense" for cls in private.classes)


def test_a_calibrated_price_predicts_what_was_seen(network: nn.Module, curvature: Curvature, batches: Batches) -> None:
    after = calibrate(network, curvature, batches, keep=0.7, rounds=4)
    assert after.rounds == 4
    plan = geocolor.plan(geocolor.price(network, after), 0.7, solver="private")
    smaller = geocolor.apply(network, plan, after)
    measured = divergence_of(network, smaller, batches, Classification())
    assert plan.predicted_damage == pytest.approx(measured, rel=0.5)


def test_an_estimate_without_moments_of_inputs_keeps_them(network: nn.Module, batches: Batches) -> None:
    curvature = geocolor.measure(network, batches, Classification(), estimate="identity")
    after = calibrate(network, curvature, batches, rounds=1)
    assert all(after.A[layer.name] is curvature.A[layer.name] for layer in curvature.layers)


def test_a_look_that_is_recorded_is_not_taken_again(
    network: nn.Module, curvature: Curvature, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = calibrate(network, curvature, batches, rounds=2, journal=Journal(tmp_path))
    monkeypatch.setattr("geocolor.calibration._slopes", lambda *_: pytest.fail("looked again"))
    again = calibrate(network, curvature, batches, rounds=2, journal=Journal(tmp_path))
    for layer in curvature.layers:
        assert torch.equal(first.A[layer.name], again.A[layer.name])
        assert torch.equal(first.G[layer.name], again.G[layer.name])


def test_a_slope_next_to_nothing_says_little() -> None:
    predicted, measured = [1.0, 2.0, 1e-9, 1.0], [10.0, 30.0, 1e-6, 5.0]
    first, second, nothing, fourth = smoothed(predicted, measured)
    assert fourth < first < second
    assert nothing == pytest.approx(1.0, rel=1e-3)  # that of all of them, not 1,000
    common = 45 / 4
    assert [first * common, second * common, fourth * common] == pytest.approx([10, 15, 5], rel=0.15)


class Narrow(nn.Module):
    """A residual block of which only some hidden units are used, others in every block."""

    def __init__(self, width: int, hidden: int, used: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        chosen = torch.zeros(hidden).index_fill(0, torch.randperm(hidden)[:used], 1.0)
        with torch.no_grad():
            self.up.weight.mul_(chosen[:, None])
            self.down.weight.mul_(chosen)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x))


@pytest.mark.parametrize(("used", "raised"), [(6, True), (16, False)])
def test_directions_that_only_look_free_are_damped(used: int, raised: bool) -> None:
    """What one layer writes where the next does not read looks free, and so does what that one reads there."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Narrow(16, 16, used) for _ in range(4)]).double()
    x = torch.randn(256, 16, dtype=torch.float64)
    batches = [(x, torch.zeros_like(x))]
    curvature = geocolor.measure(model, batches, SquaredError(), draws=8, shrinkage=0.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        after = calibrate(model, curvature, batches, SquaredError(), keep=0.5, rounds=2)
    assert any("times the damage predicted" in str(each.message) for each in said) == raised
    assert (after.damping > curvature.damping) == raised
    groups = among_neighbours(geocolor.price(model, after, kinds=("in", "out")), 0.5, 4)
    predicted = sum(after.damage(each.layer.name, each.weight - weight_of(model, each.layer)) for each in groups)
    with torch.no_grad(), replaced(model, groups):
        y = model(x)
    measured = 0.5 * float((y - model(x).detach()).square().sum()) / len(x)
    assert measured < 3 * predicted
