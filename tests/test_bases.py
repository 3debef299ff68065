"""Bases: every predicted damage is that of the factors it stands for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geocolor.bases import (
    REST,
    Known,
    Metric,
    Side,
    class_basis,
    damage_alone,
    damage_in_frame,
    factorize,
    frames,
    metric,
    one_sided_damage,
    root,
    square_root,
    two_sided_damage,
)
from geocolor.curvature.sketch import Sketch
from geocolor.layers import Layer
from geocolor.rate_distortion import options

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
    values = torch.linalg.svdvals(alone.G.root.T @ W @ alone.A.root).square()
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


def falling(seed: int, m: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A layer most of whose energy lies in few directions."""
    [(W, G, A)] = members(seed, m, n, 1)
    generator = torch.Generator().manual_seed(seed)
    W = W @ (torch.randn(n, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, n, dtype=torch.float64))
    return W + 1e-3 * torch.randn(m, n, generator=generator, dtype=torch.float64), G, A


@pytest.mark.parametrize(("m", "n"), [(24, 24), (24, 16), (16, 24)])
@pytest.mark.parametrize("side", ["in", "out"])
def test_what_is_leading_in_the_layers_prices_a_class_as_all_of_it_does(
    m: int, n: int, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    metrics = [metric(*falling(seed, m, n)) for seed in (1, 2)]
    width = n if side == "in" else m
    whole = frames(metrics, side, width - 1)
    monkeypatch.setattr("geocolor.bases.WIDE", 1)
    few = frames(metrics, side, width - 1)
    assert few[0].shape[1] < whole[0].shape[1]
    assert class_basis(metrics, side, width - 1).shape[1] == width - 1
    for each, leading, frame in zip(metrics, few, whole, strict=True):
        expected, found = damage_in_frame(each, frame, side), damage_in_frame(each, leading, side)
        torch.testing.assert_close(found, expected[: len(found)], rtol=0, atol=REST * each.energy)


def test_layers_of_one_input_share_a_basis_of_what_is_leading(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    known, [(W, G, A), (V, H, _)] = Known(), [falling(seed, 24, 24) for seed in (1, 2)]
    pair = [metric(W, G, A, known), metric(V, H, A, known)]
    assert pair[0].A is pair[1].A
    monkeypatch.setattr("geocolor.bases.WIDE", 1)
    one, other = frames(pair, "in", 5)
    assert one is other
    torch.testing.assert_close(one.T @ torch.linalg.solve(A, one), torch.eye(5, dtype=torch.float64))


def test_layers_of_one_input_have_one_frame_among_others() -> None:
    torch.manual_seed(0)
    known, [(W, G, A), (V, H, _)] = Known(), [falling(seed, 24, 24) for seed in (1, 2)]
    group = [metric(W, G, A, known), metric(*falling(3, 24, 24)), metric(V, H, A, known)]
    one, other, same = frames(group, "in", 5)
    assert one is same
    assert other is not one
    apart = frames([metric(W, G, A), group[1], metric(V, H, A.clone())], "in", 5)
    torch.testing.assert_close(torch.stack([one, other, same]), torch.stack(apart))


@pytest.mark.parametrize("side", ["in", "out"])
def test_past_what_is_leading_a_wide_layer_needs_only_the_eigenproblem_of_its_narrow_side(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    W, G, A = falling(1, 8, 40)
    layer = metric(W, G, A) if side == "in" else metric(W.T, A, G)
    assert layer.narrow.leading.shape[1] < 7
    expected = factorize(side, {"a": layer}, 7).dense("a")
    monkeypatch.setattr("geocolor.bases.WIDE", 16)
    monkeypatch.setattr("geocolor.bases._directions", lambda *_: pytest.fail("the wide eigenproblem"))
    torch.testing.assert_close(factorize(side, {"a": layer}, 7).dense("a"), expected)


def test_a_sketched_factor_prices_as_the_matrix_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("geocolor.bases.WIDE", 1)
    sketches = [Sketch(torch.randn(24, 4).double(), torch.rand(24).double() + 0.1) for _ in range(2)]
    layers = [falling(seed, 12, 24)[:2] for seed in (1, 2)]
    sketched = [metric(W, G, sketch) for (W, G), sketch in zip(layers, sketches, strict=True)]
    dense = [metric(W, G, sketch.dense()) for (W, G), sketch in zip(layers, sketches, strict=True)]
    for one, other in zip(sketched, dense, strict=True):
        assert one.energy == pytest.approx(other.energy)
        torch.testing.assert_close(one.spectrum, other.spectrum)
    for side in ("in", "out"):
        curves = [damage_in_frame(x, f, side) for x, f in zip(sketched, frames(sketched, side, 5), strict=True)]  # type: ignore[arg-type]
        expected = [damage_in_frame(x, f, side) for x, f in zip(dense, frames(dense, side, 5), strict=True)]  # type: ignore[arg-type]
        torch.testing.assert_close(torch.stack(curves), torch.stack(expected))


def test_no_root_is_taken_of_a_wide_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("geocolor.bases.WIDE", 1)
    wide = [metric(*falling(seed, 8, 24)) for seed in (1, 2)]
    for each in wide:
        damage_alone(each)
    for side in ("in", "out"):
        frames(wide, side, 5)  # type: ignore[arg-type]
        factorize(side, {"a": wide[0], "b": wide[1]}, 5)  # type: ignore[arg-type]
    assert all("root" not in each.A.__dict__ and "root" in each.G.__dict__ for each in wide)


def test_single_precision_prices_nearly_alike() -> None:
    torch.manual_seed(0)
    double = [metric(*part) for part in members(3, 40, 40, 2)]
    single = [metric(x.weight.float(), x.G.matrix.float(), x.A.matrix.float()) for x in double]
    for side in ("in", "out"):
        found = [damage_in_frame(x, f, side) for x, f in zip(single, frames(single, side, 30), strict=True)]  # type: ignore[arg-type]
        expected = [damage_in_frame(x, f, side) for x, f in zip(double, frames(double, side, 30), strict=True)]  # type: ignore[arg-type]
        for one, other, each in zip(found, expected, double, strict=True):
            assert one.dtype == torch.float64
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * each.energy)


def test_the_mirror_of_a_mirror_is_the_layer_itself() -> None:
    [part] = members(0, 5, 3, 1)
    layer = metric(*part)
    assert layer.mirror.mirror is layer
    assert layer.mirror.narrow is layer
    assert layer.mirror.energy == layer.energy


@pytest.mark.parametrize(("m", "n"), [(24, 24), (24, 16), (16, 24)])
def test_the_leading_basis_of_one_layer_is_its_best(m: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geocolor.bases.WIDE", 1)
    layer = metric(*falling(1, m, n))
    for side in ("in", "out"):
        curve = one_sided_damage(layer, class_basis([layer], side, 2), side)  # type: ignore[arg-type]
        torch.testing.assert_close(curve, damage_alone(layer)[:3], rtol=0, atol=1e-9 * layer.energy)


def test_layers_of_zeros_have_a_basis_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geocolor.bases.WIDE", 1)
    torch.manual_seed(0)
    identity = torch.eye(6, dtype=torch.float64)
    nothing = [metric(torch.zeros(6, 6, dtype=torch.float64), identity, identity) for _ in range(2)]
    assert frames(nothing, "in", 3)[0].shape[1] <= 3
    factors = factorize("in", {"a": nothing[0], "b": nothing[1]}, 3)
    assert factors.right is not None
    assert factors.right.shape == (6, 3)
    found = options([Layer(name, 6, 6, "linear") for name in "ab"], nothing, ("in", "out", "both"), (1.0,))[1.0, 0.0]
    assert all(found.damage == 0)
