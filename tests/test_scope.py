"""What is out of scope is named with a reason, and nothing with weights goes unmentioned."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from geocolor.layers import find_layers
from geocolor.scope import left_out, reasons
from tests.conftest import Network


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.matrices = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.matrices[0]


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Embedding(5, 4), "a table, looked up"),
        (nn.Conv1d(4, 4, 3), r"only those over images \(nn.Conv2d\)"),
        (nn.ConvTranspose2d(4, 4, 3), "transposed convolution"),
        (nn.Conv2d(4, 8, 3, groups=2), r"grouped convolution \(groups=2\)"),
        (nn.Conv2d(4, 4, 3, groups=4), "depthwise convolution"),
        (nn.Conv2d(4, 4, 3, padding_mode="reflect"), "padding mode is 'reflect'"),
        (nn.Conv2d(4, 4, 2, padding="same"), "its padding is uneven"),
        (nn.LSTM(4, 4), "recurrent: one fused kernel"),
        (nn.GRUCell(4, 4), "recurrent: one fused kernel"),
        (nn.MultiheadAttention(4, 2), "torch's attention reads this weight itself"),
        (Scaled(4, 4), "its own forward does more than multiply"),
        (weight_norm(nn.Linear(4, 4)), "computed by a parametrization"),
        (Stacked(), "matrices stacked in one parameter"),
        (nn.Bilinear(4, 4, 4), "matrices stacked in one parameter"),
    ],
)
def test_every_kind_of_module_out_of_scope_has_its_reason(module: nn.Module, reason: str) -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([module, nn.Linear(4, 4)])})
    entries = left_out(model)
    assert entries
    assert any(re.search(reason, entry.reason) for entry in entries), entries
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    layers = find_layers(model)
    assert sum(entry.parameters for entry in entries) + sum(layer.parameters for layer in layers) == weights


def test_a_choice_of_the_user_and_layers_that_data_never_reached_are_told_apart() -> None:
    model = Network()
    reasons = {entry.name: entry.reason for entry in left_out(model, exclude=["blocks.0.q"])}
    assert reasons == {
        "blocks.0.q": "excluded",
        "head": "output head, out of scope unless its full name is in include",
    }
    reached = [layer for layer in find_layers(model) if layer.name != "blocks.1.o"]
    assert "never calls it" in {entry.name: entry.reason for entry in left_out(model, layers=reached)}["blocks.1.o"]


def test_a_model_of_nothing_but_what_is_left_out_says_why() -> None:
    model = nn.LSTM(4, 4)
    assert [entry.type for entry in left_out(model)] == ["LSTM"]
    for one in (model, nn.ModuleDict({"recurrent": model, "head": nn.Linear(4, 2)})):
        with pytest.raises(ValueError, match=r"left out: 1 × LSTM \(128 parameters\), recurrent: one fused kernel"):
            find_layers(one)


def test_reasons_are_counted_the_largest_first_and_what_every_model_leaves_out_is_not_said() -> None:
    blocks = nn.ModuleList([nn.Linear(4, 4), nn.Conv2d(4, 4, 3, groups=4), nn.LSTM(4, 4), nn.GRU(4, 4), nn.LSTM(4, 4)])
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "blocks": blocks, "head": nn.Linear(4, 2)})
    lines = reasons(left_out(model))
    assert [line.split(",")[0] for line in lines] == [
        "left out: 2 × LSTM",
        "left out: 1 × Conv2d (36 parameters)",
    ]
    assert "1 × GRU (352 parameters), recurrent" in lines[0]
    assert reasons(left_out(model), least=100) == lines[:1]
    assert not reasons(left_out(Network(), exclude=["blocks.0.q"]))


def test_tied_weights_are_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    model["b"].weight = model["a"].weight
    assert [entry.name for entry in left_out(model) if "another module's too" in entry.reason] == ["a", "b"]


def test_a_layer_whose_forward_was_replaced_is_left_alone() -> None:
    model = Network()
    layer = model.blocks[0].q
    layer.forward = lambda x: 3 * nn.Linear.forward(layer, x)
    assert "blocks.0.q" not in {found.name for found in find_layers(model)}
    assert "its own forward" in {entry.name: entry.reason for entry in left_out(model)}["blocks.0.q"]
