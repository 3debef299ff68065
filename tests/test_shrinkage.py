"""Factors are drawn towards the identity by how far batches are apart; looks move prices by how far slopes are sure."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geocolor.calibration import certainty
from geocolor.curvature import Curvature, Sums, accumulate, finish, load_sums, measure
from geocolor.curvature.shrinkage import intensity, scatter
from geocolor.layers import find_layers
from geocolor.losses import Classification

Batches = Sequence[tuple[Tensor, Tensor]]


def by_definition(parts: Sequence[np.ndarray]) -> float:
    """Ledoit and Wolf's intensity of the mean of equally large parts, in their own words."""
    mean = np.mean(parts, 0)
    target = np.trace(mean) / len(mean) * np.eye(len(mean))
    noise = sum(np.sum((part - mean) ** 2) for part in parts) / (len(parts) * (len(parts) - 1))
    return float(min(noise / np.sum((mean - target) ** 2), 1.0))


def moments(rows: Tensor, batches: int) -> list[Tensor]:
    return [part.T @ part for part in rows.double().chunk(batches)]


def drawn(count: int, seed: int, heavy: bool = False) -> Tensor:
    """Rows of a distribution with a known covariance, `diag(1 … 12)`; `heavy`: a few of them are most of it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 12, generator=generator) * torch.arange(1, 13).sqrt()
    if heavy:
        weight = torch.where(torch.rand(count, generator=generator) < 0.05, 20**0.5, 0.0)
        rows = rows * weight[:, None]
    return rows


@pytest.mark.parametrize("heavy", [False, True])
def test_intensity_is_that_of_ledoit_and_wolf(heavy: bool) -> None:
    parts = moments(drawn(200, 3, heavy), 10)
    total = sum(parts) / 200
    said = intensity(total, 200, torch.stack([scatter(part, 20) for part in parts]).sum(0))
    assert said == pytest.approx(by_definition([part.numpy() / 20 for part in parts]), rel=1e-9)
    assert (said == 1) == heavy


def test_the_scale_of_the_moment_does_not_matter() -> None:
    """Gradients are divided by the units of the loss, of which there may be fewer than positions."""
    parts = moments(drawn(200, 3), 10)
    scattered = torch.stack([scatter(part, 20) for part in parts]).sum(0)
    assert intensity(sum(parts) / 50, 50, scattered) == pytest.approx(intensity(sum(parts) / 200, 200, scattered))


def test_little_and_uneven_data_is_drawn_far_and_much_data_hardly() -> None:
    def said(count: int, heavy: bool) -> float:
        rows = drawn(count, 5, heavy)
        parts = moments(rows, 16)
        return intensity(sum(parts) / count, count, torch.stack([scatter(p, count // 16) for p in parts]).sum(0))

    assert said(1_000_000, False) < 0.01
    assert said(1_000_000, False) < said(320, False) < said(320, True)


@pytest.mark.parametrize("heavy", [False, True])
def test_a_moment_that_was_drawn_in_is_nearer_to_the_true_one(heavy: bool) -> None:
    truth = torch.diag(torch.arange(1.0, 13.0)).double()
    plain, shrunk = 0.0, 0.0
    for seed in range(40):
        parts = moments(drawn(160, seed, heavy), 16)
        found = sum(parts) / 160
        rho = intensity(found, 160, torch.stack([scatter(part, 10) for part in parts]).sum(0))
        plain += float((found - truth).square().sum())
        shrunk += float(((1 - rho) * found + rho * found.diagonal().mean() * torch.eye(12) - truth).square().sum())
    assert shrunk < 0.85 * plain


def test_one_batch_says_nothing() -> None:
    part = moments(drawn(20, 1), 1)[0]
    assert intensity(part / 20, 20, scatter(part, 20)) == 0.0
    assert intensity(part / 20, 20, None) == 0.0
    assert intensity(torch.eye(3), 2, 2 * scatter(torch.eye(3), 1)) == 0.0  # nothing to draw it to


def classifier() -> tuple[nn.Module, Batches]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 4))
    x = torch.randn(80, 10)
    return model, list(zip(x.split(8), torch.randint(4, (80,)).split(8), strict=True))


def test_measuring_shrinks_as_far_as_asked() -> None:
    model, batches = classifier()
    layers = find_layers(model)
    each = [accumulate(model, [batch], Classification(), layers, first=i) for i, batch in enumerate(batches)]
    rho = by_definition([part.tensors["G/0"].numpy() for part in each])
    plain = measure(model, batches, shrinkage=0.0, damping=0.0).G["0"]
    assert rho > 0.02
    for fraction in (0.5, 1.0):
        found = measure(model, batches, shrinkage=fraction, damping=0.0).G["0"]
        eye = torch.eye(12).double() * plain.diagonal().mean()
        torch.testing.assert_close(found, (1 - fraction * rho) * plain + fraction * rho * eye)


def test_sums_of_parts_shrink_like_the_whole(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, batches = classifier()
    layers = find_layers(model)

    def part(first: int, last: int) -> Sums:
        return accumulate(model, batches[first:last], Classification(), layers, first=first)

    part(4, 10).save(tmp_path / "sums.safetensors")
    whole, both = part(0, 10), part(0, 4) + load_sums(tmp_path / "sums.safetensors")
    found: list[Curvature] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [finish(sums, damping=0.0) for sums in (whole, both)]
    for name in ("0", "2"):
        torch.testing.assert_close(found[0].G[name], found[1].G[name], rtol=1e-12, atol=0)
        torch.testing.assert_close(found[0].A[name], found[1].A[name], rtol=1e-12, atol=0)


def test_slopes_that_only_differ_by_noise_move_nothing() -> None:
    ratios, slopes = [2.0, 0.5, 1.5], [2.0, 0.5, 1.5]
    assert certainty(ratios, slopes, [0.0, 0.0, 0.0]) == 1.0
    assert certainty(ratios, slopes, [4.0, 0.25, 2.25]) == 0.0  # as far off as they are large
    some = certainty(ratios, slopes, [0.1, 0.01, 0.1])
    assert 0.5 < some < 1.0
    assert certainty([1.0, 1.0, 1.0], slopes, [0.1, 0.1, 0.1]) == 0.0
