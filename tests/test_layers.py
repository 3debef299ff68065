"""Layers are found by type and shape, and their weights are what multiplies the inputs."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from geocolor.layers import Layer, as_stored, find_layers, input_rows, output_rows, weight_of

LLAMA = LlamaConfig(
    vocab_size=17,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=False,
)
BERT = BertConfig(
    vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_labels=3
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def names(model: nn.Module, **scope: tuple[str, ...]) -> list[str]:
    return [layer.name for layer in find_layers(model, **scope)]


def test_layers_come_in_the_order_of_registration_with_their_shapes():
    found = find_layers(Network())
    assert [(layer.name, layer.m, layer.n, layer.form) for layer in found] == [
        ("blocks.0.up", 6, 4, "linear"),
        ("blocks.0.down", 4, 6, "linear"),
        ("blocks.1.up", 6, 4, "linear"),
        ("blocks.1.down", 4, 6, "linear"),
    ]
    assert found[0].parameters == 24


def test_a_last_layer_outside_repeated_blocks_is_a_head_and_its_exact_name_brings_it_back():
    assert "head" not in names(Network())
    assert names(Network(), include=("*", "head"))[-1] == "head"
    assert names(Network(), include=("head",)) == ["head"]
    assert names(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))) == ["0", "2"]


def test_patterns_choose_layers_and_a_pattern_that_matches_nothing_is_named():
    assert names(Network(), include=("*.up",)) == ["blocks.0.up", "blocks.1.up"]
    assert names(Network(), exclude=("blocks.0.*",)) == ["blocks.1.up", "blocks.1.down"]
    with pytest.raises(ValueError, match=r"include pattern '\*\.query' matches no layer.*'blocks.0.up'"):
        find_layers(Network(), include=("*.query",))
    with pytest.raises(ValueError, match=r"exclude pattern 'embed\*' matches no layer"):
        find_layers(Network(), exclude=("embed*",))
    with pytest.raises(ValueError, match=r"'hea\*' matches only the output head \('head'\).*full name"):
        find_layers(Network(), include=("hea*",))


def test_a_model_without_layers_is_refused_with_what_was_seen():
    with pytest.raises(ValueError, match=r"no layer that can share a basis.*1 × Embedding, 1 × GELU"):
        find_layers(nn.Sequential(nn.Embedding(3, 4), nn.GELU()))
    with pytest.raises(ValueError, match=r"left out are 'head' \(output head\).*'blocks.0.up'.*excluded"):
        find_layers(Network(), exclude=("blocks.*",))


def test_heads_of_transformers_models_are_out_of_scope():
    assert len(names(LlamaForCausalLM(LLAMA))) == 14
    assert names(LlamaForCausalLM(LLAMA), include=("lm_head",)) == ["lm_head"]
    classifier = BertForSequenceClassification(BERT)
    assert all(name.startswith("bert.") for name in names(classifier))
    assert "classifier" in names(classifier, include=("*", "classifier"))
    assert len(names(BertModel(BERT))) == 7


def test_tied_weights_are_left_alone():
    tied = Network()
    tied.blocks[1].up.weight = tied.blocks[0].up.weight
    assert names(tied) == ["blocks.0.down", "blocks.1.down"]
    with pytest.raises(ValueError, match=r"only tied weights \('blocks.0.up', 'blocks.1.up'\)"):
        find_layers(tied, include=("*.up",))
    views = Network()
    views.blocks[1].up.weight.data = views.blocks[0].up.weight.data
    assert names(views) == ["blocks.0.down", "blocks.1.down"]
    twice = Network()
    twice.blocks[1] = twice.blocks[0]
    with pytest.raises(ValueError, match="no layer is in scope"):
        find_layers(twice)
    with pytest.raises(ValueError, match="tied"):
        find_layers(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)), include=("lm_head",))


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    pass


class Spelled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Dropping(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class Asking(nn.Linear):
    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * super().forward(x)


def test_a_class_of_its_own_forward_is_a_layer_where_it_only_multiplies():
    model = nn.Sequential(Spelled(4, 4), Dropping(4, 4), Asking(4, 4), Doubled(4, 4), Spelled(4, 4, bias=False))
    assert names(model) == ["0", "4"]


def test_layers_whose_weight_is_not_simply_multiplied_are_left_alone():
    model = nn.Sequential(
        Doubled(4, 4),
        weight_norm(nn.Linear(4, 4)),
        nn.MultiheadAttention(4, 2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.Linear(4, 4, dtype=torch.float64).to(torch.float16),
        Renamed(4, 4),
    )
    assert names(model) == ["6", "7"]


def test_conv1d_weights_are_transposed():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    layer = next(layer for layer in find_layers(model) if layer.name.endswith("mlp.c_fc"))
    assert (layer.m, layer.n, layer.form) == (32, 8, "conv1d")
    module, x = model.get_submodule(layer.name), torch.randn(5, 8)
    torch.testing.assert_close(module(x), x @ weight_of(model, layer, torch.float32).T + module.bias)
    assert torch.equal(as_stored(layer, weight_of(model, layer, torch.float32)), module.weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "dilation": 2, "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
    ],
)
def test_a_convolution_is_its_matrix_times_its_patches(settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, **settings))
    (layer,) = find_layers(model)
    assert layer.form == "conv2d"
    x = torch.randn(2, 3, 8, 9)
    expected = output_rows(layer, model(x))
    matrix = weight_of(model, layer, torch.float32)
    torch.testing.assert_close(input_rows(layer, x) @ matrix.T + model[0].bias, expected)
    torch.testing.assert_close(output_rows(layer, model(x[0])), expected[:1])
    assert torch.equal(as_stored(layer, matrix), model[0].weight)


def test_sides_are_equal_exactly_where_a_basis_can_be_shared():
    linear, conv1d = Layer("a", 3, 4, "linear"), Layer("b", 5, 4, "conv1d")
    assert linear.in_side == conv1d.in_side
    assert linear.out_side != conv1d.out_side
    small = Layer("c", 3, 4, "conv2d", (1, 1, 1, 1, 0, 0, 1, 1))
    strided = Layer("d", 3, 4, "conv2d", (1, 1, 2, 2, 0, 0, 1, 1))
    large = Layer("e", 3, 36, "conv2d", (3, 3, 1, 1, 1, 1, 1, 1))
    assert len({linear.in_side, small.in_side, strided.in_side, large.in_side}) == 4
    assert small.out_side == strided.out_side == large.out_side != linear.out_side


def test_weights_that_are_not_finite_are_refused_by_name_place_and_count():
    model = Network()
    model.blocks[1].down.weight.data[2, 5] = float("nan")
    model.blocks[1].down.weight.data[3, 0] = float("inf")
    layer = find_layers(model)[3]
    with pytest.raises(ValueError, match=r"'blocks.1.down': 2 of 24 weights are NaN or infinite.*row 2, column 5"):
        weight_of(model, layer)


def test_weight_of_copies():
    model = Network()
    layer = find_layers(model)[0]
    weight_of(model, layer, torch.float32).zero_()
    assert model.blocks[0].up.weight.abs().sum() > 0
    assert weight_of(model, layer).dtype == torch.float64
