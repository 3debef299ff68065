"""Axes of Hessian blocks by Lanczos' method, held against the dense blocks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2Config, GPT2LMHeadModel

from geocolor.curvature import load_curvature
from geocolor.curvature.exact import hessian_block
from geocolor.curvature.lanczos import Axes, hessian_product, load_axes, measure_axes
from geocolor.layers import Layer, find_layers, weight_of
from geocolor.losses import Classification, NextToken, SquaredError


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()


def samples(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(count, 4).double(), torch.randint(0, 3, (count,)))]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))[:, 0])
        return y


@pytest.mark.parametrize("kind", ["gauss-newton", "hessian"])
@pytest.mark.parametrize("which", ["minor", "leading"])
def test_axes_are_the_eigenvectors_of_the_exact_block(kind, which):
    model, data, loss = network(), samples(), Classification()
    layer = find_layers(model)[0]
    exact = hessian_block(model, layer, data, loss, kind=kind).hessian
    measured = measure_axes(model, data, loss, axes=5, which=which, kind=kind, layers=[layer], tolerance=1e-9)
    axes = measured.axes["0"]
    values, vectors = torch.linalg.eigh(exact)
    chosen = slice(0, 5) if which == "minor" else slice(-5, None)
    expected = values[chosen] if which == "minor" else values[chosen].flip(0)
    torch.testing.assert_close(axes.values, expected, rtol=1e-6, atol=1e-8 * float(values.abs().max()))
    if kind == "hessian" or which == "leading":  # minor axes of a singular block are any basis of its null space
        projector = vectors[:, chosen] @ vectors[:, chosen].T
        found = axes.vectors.flatten(1).double()
        torch.testing.assert_close(found.T @ found, projector, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gauss-newton", "hessian"])
def test_products_of_attention_transposed_and_convolution_layers_agree_with_the_exact_blocks(kind):
    config = GPT2Config(n_embd=4, n_layer=1, n_head=2, n_inner=6, vocab_size=7, n_positions=8)
    convolution = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    image, labels = (torch.randn(3, 2, 3, 3).double(), torch.tensor([0, 2, 1]))
    cases = [
        (GPT2LMHeadModel(config).double().eval(), "mlp.c_fc", [torch.randint(0, 7, (2, 5))], NextToken()),
        (Attention().double().eval(), "k", [(torch.randn(3, 5, 4).double(), labels)], Classification()),
        (convolution.double().eval(), "0", [(image, labels)], Classification()),
    ]
    for model, name, data, loss in cases:
        layer = next(layer for layer in find_layers(model) if layer.name.endswith(name))
        exact = hessian_block(model, layer, data, loss, kind=kind).hessian
        change = torch.randn(layer.m, layer.n).double()
        with hessian_product(model, layer, data, loss, kind=kind) as (product, _):
            torch.testing.assert_close(product(change).flatten(), exact @ change.flatten(), rtol=1e-6, atol=1e-9)


def test_splitting_the_batches_or_holding_no_graph_changes_nothing():
    model, [(x, y)], loss = network(), samples(), Classification()
    layer = find_layers(model)[0]
    found = [
        measure_axes(model, data, loss, axes=4, which="leading", layers=[layer], tolerance=1e-9, hold=hold).axes["0"]
        for data, hold in (([(x, y)], True), ([(x[:5], y[:5]), (x[5:], y[5:])], True), ([(x, y)], False))
    ]
    for other in found[1:]:
        torch.testing.assert_close(other.values, found[0].values, rtol=1e-7, atol=0)
        torch.testing.assert_close(other.vectors, found[0].vectors, rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_axes_and_the_model_is_given_back_as_it_was():
    model, data = network().train(), samples()
    model[2].weight.requires_grad_(False)
    first, second = (measure_axes(model, data, axes=3).axes["0"] for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(first.values, second.values)
    assert model.training
    assert model[0].weight.requires_grad
    assert not model[2].weight.requires_grad
    assert model[0].weight.grad is None


def test_hutchinsons_trace_is_within_its_error_and_fewer_axes_hold_less_of_it():
    model, data, loss = network(), samples(), Classification()
    layer = find_layers(model)[0]
    exact = hessian_block(model, layer, data, loss).hessian
    axes = measure_axes(model, data, loss, axes=6, which="leading", layers=[layer], trace_probes=64).axes["0"]
    assert axes.trace_error is not None
    assert axes.trace == pytest.approx(float(exact.trace()), abs=4 * axes.trace_error + 1e-12)
    assert 0 < axes.first(2).share < axes.share <= 1 + 1e-6
    left = float(torch.linalg.eigvalsh(exact)[:-6].mean())
    assert axes.rest == pytest.approx(left, rel=0.5)


def test_the_predicted_damage_is_exact_inside_the_leading_axes():
    model, data, loss = network(), samples(), Classification()
    layer = find_layers(model)[0]
    exact = hessian_block(model, layer, data, loss)
    curvature = measure_axes(model, data, loss, axes=6, which="leading", layers=[layer], tolerance=1e-9)
    axes = curvature.axes["0"]
    inside = axes.project(torch.randn(6, 4).double())
    assert curvature.damage("0", inside) == pytest.approx(exact.damage("0", inside), rel=1e-4)
    torch.testing.assert_close(axes.project(inside), inside, rtol=1e-5, atol=1e-6)


def test_a_projector_of_few_axes_sees_a_share_of_an_arbitrary_change_that_is_no_larger_than_theirs():
    layer = Layer("x", 20, 30, "linear")
    vectors = torch.linalg.qr(torch.randn(600, 12))[0].T.reshape(12, 20, 30)
    axes = Axes(layer, "minor", vectors, torch.zeros(12).double(), 1.0, 0.0, 0)
    changes = torch.randn(200, 20, 30)
    seen = sum(float(axes.project(change).square().sum() / change.square().sum()) for change in changes) / 200
    assert seen == pytest.approx(12 / 600, rel=0.2)


def test_axes_are_saved_and_read_again(tmp_path):
    measured = measure_axes(network(), samples(), axes=3, which="leading")
    measured.save(tmp_path / "axes.safetensors")
    read = load_axes(tmp_path / "axes.safetensors")
    delta = torch.randn(6, 4).double()
    assert read.damage("0", delta) == measured.damage("0", delta)
    assert (read.layers, read.which, read.samples) == (measured.layers, "leading", 12)
    assert read.axes["0"].trace_error == measured.axes["0"].trace_error
    with pytest.raises(ValueError, match="is not a curvature file of geocolor"):
        load_curvature(tmp_path / "axes.safetensors")


def test_bad_input_gets_a_sentence():
    model, data = network(), samples()
    with pytest.raises(ValueError, match=r"layer '0': 24 axes are asked for, its block has 24; ask for fewer"):
        measure_axes(model, data, axes=24)
    with pytest.raises(ValueError, match="at least one is needed"):
        measure_axes(model, data, axes=0)
    with pytest.raises(ValueError, match="there are no calibration batches"):
        measure_axes(model, [], axes=2)
    with pytest.raises(ValueError, match="layer '0' has no curvature on this calibration data: its input is always"):
        measure_axes(model, [(torch.zeros(3, 4).double(), torch.tensor([0, 1, 2]))], axes=2)
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer '0': a product of its Hessian holds NaN"):
        measure_axes(model, data, axes=2)


class Fused(nn.Module):
    """Calls a fused attention kernel by its name, past torch's choice of a backend."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(1, 1, -1, 4)
        y: Tensor = self.head(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0].view(-1, 4))
        return y


def test_a_model_that_cannot_be_differentiated_twice_is_told_what_to_do():
    model, data = Fused().double(), samples()
    with pytest.raises(ValueError, match=r'layer .q.*attn_implementation="eager"'):
        measure_axes(model, data, axes=2, kind="hessian", layers=find_layers(model)[:1])


def test_an_unreached_layer_is_named():
    model, data = Attention().double(), [(torch.randn(3, 5, 4).double(), torch.tensor([0, 1, 2]))]
    model.forward = lambda x: model.head(model.v(x)[:, 0])
    with pytest.raises(ValueError, match="layer 'q' is not reached"):
        measure_axes(model, data, Classification(), axes=2)


def test_half_precision_is_measured_in_a_float32_copy():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).bfloat16()
    data = [(torch.randn(6, 4), torch.randn(6, 2))]
    measured = measure_axes(model, data, SquaredError(), axes=2, which="leading")
    assert model[0].weight.dtype == torch.bfloat16
    assert weight_of(model, measured.layers[0]).shape == measured.axes["0"].vectors.shape[1:]
