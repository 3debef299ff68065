"""Opened modules compute what the packed ones did, and close again bit by bit."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralForCausalLM
from transformers.integrations.moe import use_experts_implementation

import geocolor
from geocolor.unpacking import OpenAttention, OpenExperts, is_packed, pack, unpack
from tests.architectures import CASES, DECODER, EXPERTS, Attending, of
from tests.support import output

MASKS: list[dict[str, Any]] = [
    {},
    {"need_weights": False},
    {"average_attn_weights": False},
    {"attn_mask": torch.ones(5, 7).triu(1).bool()},
    {"attn_mask": torch.ones(5, 7).triu(1).bool(), "need_weights": False, "is_causal": True},
    {"attn_mask": torch.randn(3 * 2, 5, 7), "need_weights": False},
    {"key_padding_mask": torch.arange(7).expand(3, 7) > 4},
    {"key_padding_mask": torch.arange(7).expand(3, 7) > 4, "attn_mask": torch.randn(5, 7)},
]


@pytest.mark.parametrize("arguments", MASKS)
@pytest.mark.parametrize(
    "settings",
    [{"batch_first": True}, {"batch_first": False}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"dropout": 0.4}],
)
def test_opened_attention_computes_the_same(settings: dict[str, Any], arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(8, 2, **settings).double().eval()
    for parameter in packed.parameters():
        nn.init.normal_(parameter)
    opened = unpack(packed)
    assert isinstance(opened, OpenAttention)
    inputs = [torch.randn(3, n, w).double() for n, w in ((5, 8), (7, packed.kdim), (7, packed.vdim))]
    inputs = inputs if packed.batch_first else [x.transpose(0, 1) for x in inputs]
    inputs[1:] = inputs[1:] if packed.kdim != packed.vdim else [inputs[1]] * 2
    arguments = {k: v.double() if isinstance(v, Tensor) and v.dtype != torch.bool else v for k, v in arguments.items()}
    for found, expected in zip(opened(*inputs, **arguments), packed(*inputs, **arguments), strict=True):
        assert (found is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)
    assert_equal_states(pack(opened), packed)


def test_opened_attention_takes_one_sequence_without_a_batch() -> None:
    packed = nn.MultiheadAttention(8, 2).eval()
    x, padding = torch.randn(5, 8), torch.arange(5) > 3
    for arguments in ({}, {"key_padding_mask": padding}, {"need_weights": False}):
        for found, expected in zip(unpack(packed)(x, x, x, **arguments), packed(x, x, x, **arguments), strict=True):
            if expected is not None:
                torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="is_causal is a hint about attn_mask"):
        unpack(packed)(x, x, x, is_causal=True)


def test_torchs_own_transformer_runs_with_opened_attention_in_both_modes() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True).eval()
    opened = unpack(model)
    source, target = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    for _ in ("evaluating", "training"):
        arguments = {"tgt_mask": mask, "tgt_is_causal": True}
        torch.testing.assert_close(opened(source, target, **arguments), model(source, target, **arguments))
        with torch.no_grad():
            torch.testing.assert_close(opened(source, target), model(source, target), rtol=1e-4, atol=1e-5)
        opened.train()
        model.train()


def test_attention_with_extra_keys_stays_packed() -> None:
    for settings in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        assert not is_packed(nn.MultiheadAttention(8, 2, **settings))


# --- experts


def experts(**interface: bool) -> nn.Module:
    """Experts as transformers declares them, with what is asked of `use_experts_implementation`."""
    gated, transposed = interface.get("has_gate", True), interface.get("is_transposed", False)

    @use_experts_implementation(**interface)
    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts = 3
            self.act_fn = nn.SiLU()
            up, down = (3, 2 * 8 if gated else 8, 4), (3, 4, 8)
            shapes = {"gate_up_proj" if gated else "up_proj": up, "down_proj": down}
            for name, shape in shapes.items():
                stored = (shape[0], shape[2], shape[1]) if transposed else shape
                setattr(self, name, nn.Parameter(torch.randn(stored)))
                if interface.get("has_bias"):
                    setattr(self, f"{name}_bias", nn.Parameter(torch.randn(shape[:2])))
            if interface.get("has_post_expert_norm"):
                self.post_expert_norm = nn.LayerNorm(4)

        def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            raise NotImplementedError

    torch.manual_seed(0)
    return Experts(SimpleNamespace(_experts_implementation="batched_mm"))


@pytest.mark.parametrize(
    "interface",
    [{}, {"has_gate": False}, {"is_transposed": True, "has_bias": True}, {"has_post_expert_norm": True}],
)
def test_opened_experts_compute_the_same(interface: dict[str, bool]) -> None:
    packed = experts(**interface)
    opened = unpack(packed)
    assert isinstance(opened, OpenExperts)
    x, index, weights = torch.randn(6, 4), torch.randint(3, (6, 2)), torch.rand(6, 2)
    torch.testing.assert_close(opened(x, index, weights), packed(x, index, weights))
    assert_equal_states(pack(copy.deepcopy(opened)), packed)
    index[0, 0] = 3  # no expert
    opened(x, index, weights)


def test_experts_that_no_token_chose_cost_nothing_and_say_nothing() -> None:
    opened = unpack(experts())
    called: list[int] = []
    for i, layer in enumerate(opened.up):
        layer.register_forward_hook(lambda *_, i=i: called.append(i))
    opened(torch.randn(5, 4), torch.ones(5, 1, dtype=torch.long), torch.ones(5, 1))
    assert called == [1]


# --- whole models


@pytest.mark.parametrize("name", ["Mixtral", "Qwen2-MoE", "gpt-oss (transposed, bias)"])
def test_a_model_opens_and_closes_bit_by_bit(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    torch.manual_seed(0)
    model, batch = case.make().eval(), case.batch(torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    opened = unpack(model)
    assert any(isinstance(module, OpenExperts) for module in opened.modules())
    torch.testing.assert_close(output(opened, batch), output(model, batch))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model is left alone"
    closed = pack(opened)
    assert_equal_states(closed, model)
    assert torch.equal(output(closed, batch), output(model, batch))


@pytest.mark.filterwarnings("ignore")
def test_experts_alone_compressed_load_with_geocolor_and_fail_loudly_without(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = unpack(of(MixtralForCausalLM, MixtralForCausalLM.config_class, **DECODER, **EXPERTS)().eval())
    batches = [torch.randint(3, 32, (8, 10)) for _ in range(2)]
    curvature = geocolor.measure(model, batches, include=["*experts*"])
    plan = geocolor.plan(geocolor.price(model, curvature), keep=0.6, solver="greedy")
    assert any(len(cls.layers) > 1 for cls in plan.classes), "experts share"
    smaller = geocolor.apply(model, plan, curvature)
    geocolor.save(smaller, tmp_path / "model")
    loaded = geocolor.load(None, tmp_path / "model")
    assert torch.equal(loaded(batches[0]).logits, smaller(batches[0]).logits)
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    with pytest.raises((RuntimeError, ValueError), match="mismatch"):
        MixtralForCausalLM.from_pretrained(tmp_path / "model", config=config, quantization_config=None)


def test_a_plan_for_an_opened_model_says_so_of_a_packed_one() -> None:
    model = Attending()
    layers = geocolor.find_layers(unpack(model))
    assert "encoder.layers.0.self_attn.q" in {layer.name for layer in layers}
    reasons = {entry.name: entry.reason for entry in geocolor.left_out(model)}
    assert "geocolor.unpack makes layers" in reasons["encoder.layers.0.self_attn"]
    assert "geocolor.unpack makes layers" in reasons["encoder.layers.0.self_attn.out_proj"]


def assert_equal_states(found: nn.Module, expected: nn.Module) -> None:
    a, b = found.state_dict(), expected.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
