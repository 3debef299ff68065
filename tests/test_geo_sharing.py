"""Geo-Sharing: bases lent within a budget, carried out and saved like every other plan."""

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.axes_trust_region import axis_metric, fit_axes, own_basis
from geocolor.backend import factored_layers
from geocolor.curvature import LanczosCurvature, measure_axes
from geocolor.geo_sharing import geo_sharing, plan_geo_sharing, spread
from geocolor.layers import weight_of
from geocolor.losses import Classification
from geocolor.plans import parse_plan


class Stack(nn.Module):
    """Six square layers and two narrow ones; the last two squares are nearly copies of the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.squares = nn.ModuleList(nn.Linear(12, 12) for _ in range(6))
        self.down, self.up = nn.Linear(12, 8), nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)
        for copy, original in ((4, 0), (5, 1)):
            noise = 0.01 * torch.randn(12, 12)
            self.squares[copy].weight.data = self.squares[original].weight.data + noise  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        for square in self.squares:
            x = x + square(x).tanh()
        y: Tensor = self.head(x + self.up(self.down(x).tanh()))
        return y


pytestmark = pytest.mark.filterwarnings("ignore:.*cannot come within the trust region", "ignore:calibrated on")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Stack().double().eval()


@pytest.fixture(scope="module")
def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(20, 12, generator=generator).double(), torch.randint(0, 3, (20,), generator=generator))] * 2


@pytest.fixture(scope="module", params=["minor", "leading"])
def curvature(request, model, data) -> LanczosCurvature:
    return measure_axes(model, data, axes=10, which=request.param)


@pytest.mark.parametrize("keep", [0.9, 0.7, 0.5])
def test_a_plan_keeps_what_it_may_and_no_more(model, curvature, keep):
    plan = plan_geo_sharing(model, curvature, keep=keep, beta=None)
    smaller = geocolor.apply(model, plan, curvature)
    removed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in smaller.parameters())
    assert removed == plan.parameters_dense - plan.parameters
    assert keep - 0.06 < plan.kept <= keep
    assert parse_plan(plan.model_dump(mode="json"), "here") == plan


def test_near_copies_lend_to_each_other(model, curvature):
    plan = plan_geo_sharing(model, curvature, bases=6, rank_fraction=0.5, beta=None)
    assert plan.basis_count == 6
    classes = [set(cls.layers) for cls in plan.classes if len(cls.layers) > 1]
    assert {"squares.0", "squares.4"} in classes
    assert {"squares.1", "squares.5"} in classes
    assert plan.objective == pytest.approx(plan.lower_bound, rel=1e-6)


@pytest.mark.parametrize("mode", ["coefficients", "paper"])
def test_the_plans_damage_is_that_of_the_installed_factors(model, curvature, mode):
    plan = plan_geo_sharing(model, curvature, keep=0.7, beta=0.05, mode=mode)
    smaller = geocolor.apply(model, plan, curvature)
    factored = factored_layers(smaller)
    layers = {layer.name: layer for layer in plan.shareable_layers()}
    for cls in plan.classes:
        for name in cls.layers if cls.kind != "dense" else ():
            delta = factored[name].dense(torch.float64) - weight_of(model, layers[name])
            assert curvature.damage(name, delta) == pytest.approx(cls.damage[name], rel=1e-3, abs=1e-9)
            assert torch.linalg.matrix_rank(factored[name].dense(torch.float64)) <= cls.rank


def test_every_layer_takes_the_cheapest_of_the_lent_bases(model, curvature):
    plan = plan_geo_sharing(model, curvature, bases=4, rank_fraction=0.4, beta=0.1)
    layers = {layer.name: layer for layer in plan.shareable_layers()}
    lent = {cls.medoid: cls for cls in plan.classes}
    for cls in plan.classes:
        for name in cls.layers:
            metric = axis_metric(weight_of(model, layers[name]), curvature.axes[name])
            fits = {
                medoid: fit_axes(
                    metric, *(basis[:, : other.rank] for basis in own_basis(weight_of(model, layers[medoid]))), 0.1
                )
                for medoid, other in lent.items()
                if layers[medoid].in_side == layers[name].in_side and layers[medoid].out_side == layers[name].out_side
            }
            prices = {m: fit.sharp_damage if curvature.which == "minor" else fit.damage for m, fit in fits.items()}
            assert prices[cls.medoid] == pytest.approx(min(prices.values()), rel=1e-6)


def test_the_smaller_model_is_saved_and_loaded_like_every_other(model, curvature, data, tmp_path):
    plan = plan_geo_sharing(model, curvature, keep=0.7)
    smaller = geocolor.apply(model, plan, curvature)
    geocolor.save(smaller, tmp_path / "smaller")
    loaded = geocolor.load(Stack().double(), tmp_path / "smaller").eval()
    torch.testing.assert_close(loaded(data[0][0]), smaller(data[0][0]))


def test_a_plan_and_another_kind_of_curvature_do_not_go_together(model, curvature, data):
    plan = plan_geo_sharing(model, curvature, keep=0.7)
    kronecker = geocolor.measure(model, data)
    with pytest.raises(
        ValueError, match="made with the curvature 'lanczos' and cannot be carried out with 'kronecker'"
    ):
        geocolor.apply(model, plan, kronecker)
    other = geocolor.plan(geocolor.price(model, kronecker), 0.7, time_limit=2)
    with pytest.raises(ValueError, match="cannot be carried out with 'lanczos'"):
        geocolor.apply(model, other, curvature)


def test_one_call_measures_and_plans_and_the_same_seed_gives_the_same_plan(model, data):
    found = [geo_sharing(model, data, Classification(), keep=0.8, axes=6, samples=6)[0] for _ in range(2)]
    assert found[0].classes == found[1].classes
    assert found[0].curvature["samples"] == 6


def test_samples_are_spread_over_few_batches():
    batches = [torch.arange(10 * i, 10 * i + 10) for i in range(6)]
    chosen = [batch.tolist() for batch in spread(batches, 9)]
    assert chosen == [[10, 11, 12, 13, 14], [40, 41, 42, 43, 44]]
    assert [len(batch) for batch in spread(batches, 3)] == [3]


def test_budgets_that_make_no_sense_are_refused(model, curvature):
    for budget in ({}, {"keep": 0.5, "bases": 3}):
        with pytest.raises(ValueError, match="takes one budget"):
            plan_geo_sharing(model, curvature, **budget)
    with pytest.raises(ValueError, match="keep is the fraction"):
        plan_geo_sharing(model, curvature, keep=1.5)
    with pytest.raises(ValueError, match=r"keep=0\.01 cannot be reached by geo-sharing: the least it tries"):
        plan_geo_sharing(model, curvature, keep=0.01)
    with pytest.raises(ValueError, match="2 bases cannot serve 8 layers of 3 shapes"):
        plan_geo_sharing(model, curvature, bases=2)
    with pytest.raises(ValueError, match="beta, the trust region's radius relative to the weight, must be positive"):
        plan_geo_sharing(model, curvature, keep=0.5, beta=0.0)
