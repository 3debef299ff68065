"""Coefficients where curvature is known along a few axes, held against dense least squares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geocolor.axes_trust_region import AxisMetric, fit_axes
from geocolor.curvature.lanczos import Which


def case(seed: int, which: Which, m: int = 6, n: int = 5, t: int = 4) -> tuple[AxisMetric, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    random = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((m, n), (m * n, t), (m, 3), (n, 3))]
    vectors = torch.linalg.qr(random[1])[0].T.reshape(t, m, n)
    values = torch.logspace(-3, -2, t) if which == "minor" else torch.logspace(1, 0, t)
    metric = AxisMetric(random[0], vectors, values.double(), 0.3, which == "minor")
    return metric, torch.linalg.qr(random[2])[0], torch.linalg.qr(random[3])[0]


def block(metric: AxisMetric, multiplier: float = 0.0) -> Tensor:
    """½H + μP∥, dense."""
    Q = metric.vectors.flatten(1)
    spanned, other = Q.T @ Q, torch.eye(Q.shape[1], dtype=torch.float64) - Q.T @ Q
    half = 0.5 * (Q.T @ torch.diag(metric.values) @ Q + metric.rest * other)
    return half + multiplier * (spanned if metric.minor else other)


def dense_solution(metric: AxisMetric, U: Tensor, V: Tensor, multiplier: float) -> Tensor:
    design, weights = torch.kron(U, V), block(metric, multiplier)
    S: Tensor = torch.linalg.solve(design.T @ weights @ design, design.T @ weights @ metric.weight.flatten())
    return S.view(U.shape[1], V.shape[1])


@given(seed=st.integers(0, 1000), which=st.sampled_from(["minor", "leading"]))
@settings(max_examples=30, deadline=None)
def test_without_a_radius_the_coefficients_are_the_least_squares_of_the_model(seed: int, which: Which) -> None:
    metric, U, V = case(seed, which)
    found = fit_axes(metric, U, V)
    torch.testing.assert_close(found.coefficients, dense_solution(metric, U, V, 0.0), rtol=1e-5, atol=1e-6)
    delta = (U @ found.coefficients @ V.T - metric.weight).flatten()
    assert found.damage == pytest.approx(float(delta @ block(metric) @ delta), rel=1e-8)
    assert found.damage <= metric.energy * (1 + 1e-9)


@given(seed=st.integers(0, 1000), which=st.sampled_from(["minor", "leading"]), beta=st.floats(0.02, 1.0))
@settings(max_examples=40, deadline=None)
def test_a_reachable_radius_is_kept_at_the_least_damage(seed: int, which: Which, beta: float) -> None:
    metric, U, V = case(seed, which)
    free, clipped = fit_axes(metric, U, V), fit_axes(metric, U, V, beta)
    nearest = fit_axes(metric, U, V, 1e-9)
    radius = beta * float(metric.weight.norm())
    if clipped.reached:
        assert clipped.flat_norm <= radius * (1 + 1e-6)
        assert clipped.damage >= free.damage - 1e-9
        if clipped.multiplier > 0:
            twin = dense_solution(metric, U, V, clipped.multiplier)
            torch.testing.assert_close(clipped.coefficients, twin, rtol=1e-4, atol=1e-5)
            assert clipped.flat_norm >= 0.97 * radius
    else:
        assert nearest.flat_norm >= radius * (1 - 1e-3)


@pytest.mark.parametrize("which", ["minor", "leading"])
def test_the_flat_part_is_the_projection_of_the_change(which: Which) -> None:
    metric, U, V = case(3, which)
    found = fit_axes(metric, U, V, beta=0.1)
    delta, Q = (U @ found.coefficients @ V.T - metric.weight).flatten(), metric.vectors.flatten(1)
    spanned = Q.T @ (Q @ delta)
    flat = spanned if which == "minor" else delta - spanned
    assert found.flat_norm == pytest.approx(float(flat.norm()), rel=1e-6)
    sharp = delta - flat
    assert found.sharp_damage == pytest.approx(float(sharp @ block(metric) @ sharp), rel=1e-6)


@pytest.mark.parametrize("which", ["minor", "leading"])
def test_the_papers_clip_keeps_the_rank_of_the_basis_and_narrows_the_flat_part(which: Which) -> None:
    metric, U, V = case(5, which)
    free, clipped = fit_axes(metric, U, V), fit_axes(metric, U, V, 0.02, mode="paper")
    assert torch.linalg.matrix_rank(U @ clipped.coefficients @ V.T) <= 3
    assert clipped.flat_norm < free.flat_norm


def test_a_wide_region_changes_nothing() -> None:
    metric, U, V = case(4, "minor")
    assert torch.equal(fit_axes(metric, U, V, beta=1e6).coefficients, fit_axes(metric, U, V).coefficients)
