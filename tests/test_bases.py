"""Bases: every predicted damage is that of the factors it stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geocolor.bases import (
    Metric,
    class_basis,
    factorize,
    metric,
    one_sided_damage,
    root,
    square_root,
    two_sided_damage,
)

sizes = st.integers(2, 6)
seeds = st.integers(0, 2**16)


def positive_definite(size: int, generator: torch.Generator) -> Tensor:
    root = torch.randn(size, size + 2, generator=generator, dtype=torch.float64)
    return root @ root.T / size + 1e-3 * torch.eye(size, dtype=torch.float64)


def members(seed: int, m: int, n: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(m, n, generator=generator, dtype=torch.float64),
            positive_definite(m, generator),
            positive_definite(n, generator),
        )
        for _ in range(count)
    ]


def damage(delta: Tensor, G: Tensor, A: Tensor) -> float:
    return 0.5 * float(torch.trace(G @ delta @ A @ delta.T))


@given(seed=seeds, m=sizes, n=sizes, count=st.integers(1, 3), side=st.sampled_from(["in", "out"]))
@settings(max_examples=40, deadline=None)
def test_one_sided_damage_is_that_of_the_factors_at_every_rank(
    seed: int, m: int, n: int, count: int, side: str
) -> None:
    parts = members(seed, m, n, count)
    metrics = [metric(*part) for part in parts]
    basis = class_basis(metrics, side)  # type: ignore[arg-type]
    for rank in range(1, (n if side == "in" else m) + 1):
        factors = factorize(side, {str(i): each for i, each in enumerate(metrics)}, rank)  # type: ignore[arg-type]
        for i, (W, G, A) in enumerate(parts):
            predicted = float(one_sided_damage(metrics[i], basis, side)[rank])  # type: ignore[arg-type]
            assert predicted == pytest.approx(damage(factors.dense(str(i)) - W, G, A), abs=1e-7 * metrics[i].energy)


@given(seed=seeds, m=sizes, n=sizes, count=st.integers(1, 3), r=st.integers(1, 6), s=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_two_sided_damage_is_that_of_the_factors(seed: int, m: int, n: int, count: int, r: int, s: int) -> None:
    parts = members(seed, m, n, count)
    metrics = [metric(*part) for part in parts]
    r, s = min(r, m), min(s, n)
    factors = factorize("both", {str(i): each for i, each in enumerate(metrics)}, r, s)
    left, right = class_basis(metrics, "out"), class_basis(metrics, "in")
    for i, (W, G, A) in enumerate(parts):
        predicted = float(two_sided_damage(metrics[i], left, right)[r, s])
        assert predicted == pytest.approx(damage(factors.dense(str(i)) - W, G, A), abs=1e-7 * metrics[i].energy)


@given(seed=seeds, m=sizes, n=sizes)
@settings(max_examples=30, deadline=None)
def test_a_layer_alone_does_as_little_damage_as_any_matrix_of_its_rank_can(seed: int, m: int, n: int) -> None:
    [(W, G, A)] = members(seed, m, n, 1)
    alone = metric(W, G, A)
    values = torch.linalg.svdvals(alone.whitened).square()
    for side, width in (("in", n), ("out", m)):
        curve = one_sided_damage(alone, class_basis([alone], side), side)  # type: ignore[arg-type]
        for rank in range(width + 1):
            assert float(curve[rank]) == pytest.approx(0.5 * float(values[rank:].sum()), abs=1e-8 * alone.energy)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_no_other_coefficients_do_less_damage(seed: int) -> None:
    parts = members(seed, 5, 4, 2)
    metrics = {str(i): metric(*part) for i, part in enumerate(parts)}
    generator = torch.Generator().manual_seed(seed)
    for kind, ranks in (("in", (2, None)), ("out", (2, None)), ("both", (3, 2))):
        factors = factorize(kind, metrics, *ranks)  # type: ignore[arg-type]
        for i, (W, G, A) in enumerate(parts):
            best = damage(factors.dense(str(i)) - W, G, A)
            S = factors.coefficients[str(i)]
            for _ in range(3):
                other = S + 0.1 * torch.randn(S.shape, generator=generator, dtype=S.dtype)
                moved = factors.left @ other if factors.left is not None else other
                moved = moved @ factors.right.T if factors.right is not None else moved
                assert damage(moved - W, G, A) >= best - 1e-9


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_orthogonal_changes_of_basis_of_input_or_output_leave_every_price_as_it_is(seed: int) -> None:
    """x → Qx, W → WQᵀ, A → QAQᵀ on the input all layers share, and its mirror image: the function is unchanged."""
    m, n = 5, 4
    parts = members(seed, m, n, 3)
    generator = torch.Generator().manual_seed(seed + 1)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    P = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))[0]
    before = [metric(*part) for part in parts]
    after = [metric(P @ W @ Q.T, P @ G @ P.T, Q @ A @ Q.T) for W, G, A in parts]
    for old, new in zip(damages(before), damages(after), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-6, atol=1e-8)


def damages(metrics: list[Metric]) -> list[Tensor]:
    left, right = class_basis(metrics, "out"), class_basis(metrics, "in")
    found = [one_sided_damage(each, right, "in") for each in metrics]
    found += [one_sided_damage(each, left, "out") for each in metrics]
    return found + [two_sided_damage(each, left, right) for each in metrics]


def test_swapping_two_layers_of_a_class_leaves_the_basis_as_it_is() -> None:
    first, second = (metric(*part) for part in members(0, 5, 4, 2))
    for side in ("in", "out"):
        one = class_basis([first, second], side)[:, :2]  # type: ignore[arg-type]
        other = class_basis([second, first], side)[:, :2]  # type: ignore[arg-type]
        projector = [b @ torch.linalg.pinv(b) for b in (one, other)]
        torch.testing.assert_close(projector[0], projector[1])


def test_singular_factors_give_finite_bases() -> None:
    W = torch.randn(4, 5, dtype=torch.float64)
    x = torch.randn(5, 1, dtype=torch.float64)
    singular = metric(W, torch.zeros(4, 4, dtype=torch.float64), x @ x.T)
    factors = factorize("in", {"a": singular, "b": singular}, 2)
    assert all(torch.isfinite(c).all() for c in factors.coefficients.values())
    assert torch.isfinite(one_sided_damage(singular, class_basis([singular, singular], "in"), "in")).all()


def test_a_square_root_squared_is_the_matrix() -> None:
    matrix = positive_definite(6, torch.Generator().manual_seed(0))
    torch.testing.assert_close(square_root(matrix) @ square_root(matrix), matrix)


def test_a_root_is_triangular_and_gives_the_matrix_back_even_where_that_is_singular() -> None:
    matrix = positive_definite(6, torch.Generator().manual_seed(0))
    singular = matrix[:, :3] @ matrix[:, :3].T
    for each in (matrix, singular, torch.zeros(4, 4, dtype=torch.float64) + 1e-30):
        lower = root(each)
        assert torch.equal(lower, lower.tril())
        torch.testing.assert_close(lower @ lower.T, each, atol=1e-9 * float(each.abs().max()), rtol=1e-9)
    assert float(root(singular).diagonal().abs().min()) > 0
