"""Where theory says that Kronecker and exact curvature agree, they do.

Sampling is replaced by a design with the same second moment, one point per draw, so that equality is not statistical.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from geocolor.curvature import Curvature, hessian_block, measure
from geocolor.layers import find_layers
from geocolor.losses import Classification, Embedding, NextToken, SquaredError


class EveryDirection(SquaredError):  # noqa: N818
    """Draw k takes `v = √d e_k`: over d draws the mean of `v vᵀ` is the identity."""

    def sample(self, outputs, batch, generator):
        k = generator.initial_seed() % 1_009  # the number of the draw
        return outputs[:, k].sum() * outputs.shape[1] ** 0.5, len(outputs)


class EveryLabel(Classification):
    """Draw k takes label k with the weight `√(c p_k)`: over c draws the mean of `g gᵀ` is its expectation."""

    def sample(self, outputs, batch, generator):
        k, classes = generator.initial_seed() % 1_009, outputs.shape[1]
        each = cross_entropy(outputs, torch.full((len(outputs),), k), reduction="none")
        return (each * (classes * outputs.detach().softmax(-1)[:, k]).sqrt()).sum(), len(outputs)


def quiet(*args, **kwargs) -> Curvature:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure(*args, damping=0.0, shrinkage=0.0, **kwargs)


def double_network(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules).double()


def kronecker(curvature: Curvature, name: str) -> torch.Tensor:
    return torch.kron(curvature.G[name], curvature.A[name])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_kronecker_is_the_hessian_of_a_deep_linear_network_under_squared_error(index):
    model = double_network(nn.Linear(3, 4), nn.Linear(4, 2, bias=False), nn.Linear(2, 3))
    data = [(torch.randn(7, 3).double(), torch.randn(7, 3).double()) for _ in range(2)]
    layer = find_layers(model)[index]
    curvature = quiet(model, data, EveryDirection(), draws=3)
    exact = hessian_block(model, layer, data, SquaredError(), kind="hessian")
    torch.testing.assert_close(kronecker(curvature, layer.name), exact.hessian, rtol=1e-9, atol=1e-12)


def test_kronecker_is_the_hessian_of_a_softmax_layer_on_a_single_input():
    model = double_network(nn.Linear(4, 3))
    x = torch.randn(1, 4).double().expand(6, 4).clone()
    data = [(x, torch.tensor([0, 1, 2, 0, 1, 1]))]
    (layer,) = find_layers(model)
    curvature = quiet(model, data, EveryLabel(), draws=3)
    for kind in ("hessian", "gauss-newton"):
        exact = hessian_block(model, layer, data, Classification(), kind=kind)
        torch.testing.assert_close(kronecker(curvature, "0"), exact.hessian, rtol=1e-9, atol=1e-12)


def test_on_several_inputs_a_softmax_layer_keeps_its_trace_by_input_only_approximately():
    """The test above can fail: with inputs that differ, G ⊗ A is no longer the Hessian."""
    model = double_network(nn.Linear(4, 3))
    data = [(3 * torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 1]))]
    (layer,) = find_layers(model)
    exact = hessian_block(model, layer, data, Classification()).hessian
    assert (kronecker(quiet(model, data, EveryLabel(), draws=3), "0") - exact).norm() > 0.05 * exact.norm()


def test_kronecker_is_exact_for_a_layer_behind_a_nonlinearity_on_a_single_input():
    model = double_network(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    data = [(torch.randn(1, 3).double(), torch.tensor([2]))]
    curvature = quiet(model, data, EveryLabel(), draws=3)
    for layer in find_layers(model):
        exact = hessian_block(model, layer, data, Classification(), kind="gauss-newton")
        torch.testing.assert_close(kronecker(curvature, layer.name), exact.hessian, rtol=1e-9, atol=1e-12)


def test_a_convolution_on_single_patches_equals_its_exact_block():
    model = double_network(nn.Conv2d(2, 3, 2), nn.Flatten())
    x = torch.randn(1, 2, 2, 2).double().expand(5, 2, 2, 2).clone()
    data = [(x, torch.tensor([0, 1, 2, 2, 1]))]
    (layer,) = find_layers(model)
    exact = hessian_block(model, layer, data, Classification())
    curvature = quiet(model, data, EveryLabel(), draws=3)
    torch.testing.assert_close(kronecker(curvature, "0"), exact.hessian, rtol=1e-9, atol=1e-12)


def test_sampled_labels_approach_the_exact_block():
    model = double_network(nn.Linear(4, 3))
    x = torch.randn(1, 4).double().expand(1_000, 4).clone()
    data = [(x, torch.zeros(1_000, dtype=torch.long))]
    (layer,) = find_layers(model)
    exact = hessian_block(model, layer, [(x[:1], torch.tensor([0]))], Classification()).hessian
    estimated = kronecker(quiet(model, data, draws=20), "0")
    assert (estimated - exact).norm() < 0.05 * exact.norm()


def test_the_exact_block_predicts_small_changes_of_the_loss():
    model = double_network(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    data = [(torch.randn(9, 3).double(), torch.randint(0, 3, (9,)))]
    layer, loss = find_layers(model)[0], Classification()
    exact = hessian_block(model, layer, data, loss, kind="hessian")
    delta, weight = 1e-3 * torch.randn(5, 3).double(), model[0].weight.data
    before = loss.value(model, data[0])[0] / 9
    model[0].weight.data = weight + delta
    after = loss.value(model, data[0])[0] / 9
    predicted = (exact.gradient * delta).sum().item() + exact.damage("0", delta)
    assert after - before == pytest.approx(predicted, rel=1e-4)


def test_the_exact_block_of_a_transposed_weight_has_its_rows_by_output():
    config = GPT2Config(n_embd=4, n_layer=1, n_head=2, n_inner=6, vocab_size=7, n_positions=8)
    model = GPT2LMHeadModel(config)
    tokens = torch.randint(0, 7, (2, 5))
    layer = next(layer for layer in find_layers(model) if layer.name.endswith("mlp.c_fc"))
    exact = hessian_block(model, layer, [tokens], NextToken())
    twin = model.double().eval()
    loss = twin(tokens, labels=tokens).loss
    loss.backward()
    torch.testing.assert_close(exact.gradient, twin.get_submodule(layer.name).weight.grad.T, rtol=1e-6, atol=1e-10)
    assert torch.linalg.eigvalsh(exact.hessian)[0] > -1e-10


def test_the_embedding_loss_has_no_gradient_at_the_reference_and_a_curvature_that_sampling_finds():
    config = BertConfig(vocab_size=9, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2)
    model = BertModel(config).double().eval()
    batch = {"input_ids": torch.tensor([[3]]).expand(400, 1).clone()}  # one token: one position per sentence
    layer = next(layer for layer in find_layers(model) if layer.name.endswith("intermediate.dense"))
    exact = hessian_block(model, layer, [{"input_ids": batch["input_ids"][:1]}], Embedding())
    assert exact.gradient.abs().max() < 1e-12
    estimated = quiet(model, [batch], draws=10)
    assert (kronecker(estimated, layer.name) - exact.hessian).norm() < 0.05 * exact.hessian.norm()


def test_a_block_too_large_to_be_dense_is_refused():
    model = nn.Sequential(nn.Linear(100, 100))
    with pytest.raises(ValueError, match=r"the exact block of 10000 weights takes 0.7 GiB.*estimate='kronecker'"):
        hessian_block(model, find_layers(model)[0], [], SquaredError())


def test_a_rotation_of_a_layers_input_or_output_leaves_its_damage_as_it_is():
    """W → P W Qᵀ with x → Q x and the next layer absorbing Pᵀ: the same function, the same price."""
    model = double_network(nn.Linear(4, 5, bias=False), nn.Linear(5, 3))
    x, y = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    Q, P = (torch.linalg.qr(torch.randn(size, size).double())[0] for size in (4, 5))
    delta = torch.randn(5, 4).double()
    before = quiet(model, [(x, y)], Classification()).damage("0", delta)
    model[0].weight.data = P @ model[0].weight.data @ Q.T
    model[1].weight.data = model[1].weight.data @ P.T
    after = quiet(model, [(x @ Q.T, y)], Classification()).damage("0", P @ delta @ Q.T)
    assert after == pytest.approx(before, rel=1e-9)
