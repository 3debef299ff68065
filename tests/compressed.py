"""Small compressed models of several kinds, and whether another model shares what they share."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from geocolor.backend import factored_layers, install
from geocolor.parameters import parameter_count
from tests.architectures import residual_network
from tests.handmade import factors_of, plan_of
from tests.test_transformers import GPT2_CLASSES, TOKENS, bert, bert_classes, gpt2
from tests.test_transformers import compressed as compressed_of

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def llama() -> PreTrainedModel:
    """Every kind of basis, shared across blocks and inside of one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    classes: list[tuple[Any, ...]] = [
        ("in", [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkv"], 10),
        ("out", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"], 8),
        ("both", ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.up_proj"], 12, 11),
        ("in", ["model.layers.0.self_attn.o_proj"], 6),
    ]
    return compressed_of(LlamaForCausalLM(config).eval(), classes)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = residual_network().eval()
    classes: list[tuple[Any, ...]] = [("both", ["1.conv2"], 5, 7), ("in", ["2.conv1"], 6), ("out", ["2.conv2"], 9)]
    plan = plan_of(model, classes)
    return install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan)


MODELS: list[Any] = [
    pytest.param(llama, TOKENS, id="llama"),
    pytest.param(lambda: compressed_of(gpt2(), GPT2_CLASSES), TOKENS, id="gpt2"),
    pytest.param(lambda: compressed_of(bert(), bert_classes()), TOKENS, id="bert"),
    pytest.param(network, IMAGES, id="cnn"),
]


def arguments(model: nn.Module) -> dict[str, bool]:
    """A cache is no tensor, and no part of what is compared."""
    return {"use_cache": False} if isinstance(model, PreTrainedModel) and model.can_generate() else {}


def result(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x, **arguments(model))
    return y if isinstance(y, Tensor) else y[0]


def assert_shared(model: nn.Module, original: nn.Module) -> None:
    """The same layers share the same bases, as objects."""

    def partition(of: nn.Module) -> list[list[str]]:
        readers: dict[int, list[str]] = {}
        for name, layer in factored_layers(of).items():
            for side, basis in layer.bases().items():
                readers.setdefault(id(basis), []).append(f"{name}.{side}")
        return sorted(readers.values())

    assert partition(model) == partition(original)
    assert parameter_count(model) == parameter_count(original)
