"""Wide models are priced in single precision and by what is leading in their layers: all that follows still runs."""

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.pipeline import Pipeline
from geocolor.presets import PRESETS
from geocolor.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:.*rank ≤", "ignore:sharing was predicted")

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def everything_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geocolor.graph.WIDE", 1)
    monkeypatch.setattr("geocolor.graph.SINGLE", 1)
    monkeypatch.setattr("geocolor.bases.WIDE", 1)


@pytest.mark.parametrize(
    "asked",
    [
        {"keep": 0.6},
        {"keep": 0.5, "trust_region": 0.05},
        {"bases": 4},
        {"bases": 4, "trust_region": 0.05},
        {"max_flops": 0.7, "keep": 0.8},
        {"keep": 0.6, "estimate": "activation"},
        *({"keep": 0.6, "preset": name} for name in PRESETS),
    ],
    ids=str,
)
def test_every_budget_makes_a_smaller_model(asked: dict[str, object], network: nn.Module, batches: Batches) -> None:
    settings = Settings(**{"rounds": 1, "time_limit": 1.0, "solver": "greedy"} | asked)  # type: ignore[arg-type]
    run = Pipeline(network, batches, settings)
    prepared = run.prepared()
    if prepared.graph is not None:
        assert all(metric.weight.dtype == torch.float32 for metric in prepared.graph.metrics.values())
    smaller = run.carried_out(prepared)
    size = sum(each.numel() for each in smaller.parameters())
    assert size < sum(each.numel() for each in network.parameters())
    assert torch.isfinite(smaller(batches[0][0])).all()


def test_prices_are_nearly_those_of_double_precision(network: nn.Module, batches: Batches) -> None:
    curvature = geocolor.measure(network, batches)
    single = geocolor.price(network, curvature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geocolor.graph.SINGLE", 1024)
        patch.setattr("geocolor.bases.WIDE", 512)
        double = geocolor.price(network, curvature)
        expected = [double.group_price(group, 1e-5) for group in ((0,), (0, 1), (0, 3), (2, 4, 5))]
    found = [single.group_price(group, 1e-5) for group in ((0,), (0, 1), (0, 3), (2, 4, 5))]
    assert found == pytest.approx(expected, rel=1e-3)
