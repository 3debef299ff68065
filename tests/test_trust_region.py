"""The trust region: clipped in coefficient space, the factor form kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geocolor.trust_region import EigenMetric, eigen_metric, fit


def case(seed: int, m: int = 6, n: int = 5) -> tuple[EigenMetric, Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W, rg, ra = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, n), (m, m), (n, n)))
    G, A = rg @ torch.diag(torch.logspace(0, -4, m, dtype=torch.float64)) @ rg.T, ra @ ra.T
    U = torch.linalg.qr(torch.randn(m, 3, generator=generator, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(n, 2, generator=generator, dtype=torch.float64))[0]
    return eigen_metric(W, G, A, flat_energy=0.2), W, G, A, U, V


def weighted_least_squares(eigen: EigenMetric, U: Tensor, V: Tensor, multiplier: float) -> Tensor:
    """The same problem as one dense least-squares system in vec(S): the twin."""
    root = (0.5 * eigen.curvature + multiplier * eigen.flat).sqrt()
    design = torch.kron((eigen.out_vectors.T @ U), (eigen.in_vectors.T @ V))
    solved = torch.linalg.lstsq(root.flatten()[:, None] * design, (root * eigen.weight).flatten()[:, None])
    return solved.solution.reshape(U.shape[1], V.shape[1])


def test_flat_directions_hold_no_more_than_their_share_of_the_trace() -> None:
    eigen = case(0)[0]
    held = float(eigen.curvature[eigen.flat].sum() / eigen.curvature.sum())
    assert 0 < held <= 0.2
    assert float(eigen.curvature[eigen.flat].max()) <= float(eigen.curvature[~eigen.flat].min())


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_without_a_radius_the_coefficients_are_the_kronecker_least_squares(seed: int) -> None:
    eigen, W, G, A, U, V = case(seed)
    result = fit(eigen, U, V)
    torch.testing.assert_close(result.coefficients, weighted_least_squares(eigen, U, V, 0.0), rtol=1e-5, atol=1e-6)
    delta = U @ result.coefficients @ V.T - W
    assert result.damage == pytest.approx(0.5 * float(torch.trace(G @ delta @ A @ delta.T)), rel=1e-8)
    assert result.sharp_damage <= result.damage


@given(seed=st.integers(0, 1000), beta=st.floats(0.05, 1.5))
@settings(max_examples=25, deadline=None)
def test_a_reachable_radius_is_kept_at_the_least_damage(seed: int, beta: float) -> None:
    eigen, W, _, _, U, V = case(seed)
    free, clipped = fit(eigen, U, V), fit(eigen, U, V, beta=beta)
    radius = beta * float(W.norm())
    nearest = U @ weighted_least_squares(eigen, U, V, 1e9 * float(eigen.curvature.mean())) @ V.T
    least = float((eigen.out_vectors.T @ (nearest - W) @ eigen.in_vectors)[eigen.flat].norm())
    if clipped.reached:
        assert clipped.flat_norm <= radius * (1 + 1e-5)
        assert clipped.damage >= free.damage - 1e-9
        if (
            clipped.multiplier > 0
        ):  # the constraint binds: a smaller multiplier breaks it, and this one solves its system
            twin = weighted_least_squares(eigen, U, V, clipped.multiplier)
            torch.testing.assert_close(clipped.coefficients, twin, rtol=1e-3, atol=1e-4)
            assert clipped.flat_norm >= 0.98 * radius
    else:
        assert least >= radius * (1 - 1e-3)


def test_both_modes_keep_the_rank_of_the_basis() -> None:
    eigen, _, _, _, U, V = case(3)
    for mode in ("coefficients", "paper"):
        result = fit(eigen, U, V, beta=0.1, mode=mode)  # type: ignore[arg-type]
        assert torch.linalg.matrix_rank(U @ result.coefficients @ V.T) <= 2


def test_a_wide_region_changes_nothing() -> None:
    eigen, _, _, _, U, V = case(4)
    torch.testing.assert_close(fit(eigen, U, V, beta=1e6).coefficients, fit(eigen, U, V).coefficients)


def test_one_sided_bases_take_the_other_side_as_it_is() -> None:
    eigen, W, _, _, _, V = case(5)
    assert fit(eigen, None, V).coefficients.shape == (W.shape[0], V.shape[1])
    assert fit(eigen, None, None).damage == pytest.approx(0.0, abs=1e-9)
