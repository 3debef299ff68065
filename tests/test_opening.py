"""The command line opens packed modules by itself, says so, and what it saves loads on the packed model."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralForCausalLM

import geocolor
from geocolor import commands
from geocolor.opening import opened
from geocolor.settings import Settings
from geocolor.unpacking import OpenAttention, OpenExperts
from tests.architectures import DECODER, EXPERTS, of

QUICK = Settings(keep=0.6, solver="private", rounds=0, time_limit=5)


class Sentences(nn.Module):
    """A classifier on torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(x).mean(1))
        return y


def sentences() -> nn.Module:
    torch.manual_seed(0)
    return Sentences().eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, 16, generator=generator), torch.randint(5, (8,), generator=generator)) for _ in range(4)]


def experts() -> nn.Module:
    model: nn.Module = of(MixtralForCausalLM, MixtralForCausalLM.config_class, **DECODER, **EXPERTS)().eval()
    return model


def tokens() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 30, (8, 10), generator=generator) for _ in range(4)]


def test_compress_opens_attention_says_so_and_the_result_loads_on_the_packed_model(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    here = "tests.test_opening:"
    report = commands.compress(
        console, f"{here}sentences", f"{here}batches", None, tmp_path / "smaller", QUICK, 8, 8, None, False
    )
    assert "opened 2 packed modules (the first is encoder.layers.0.self_attn) into 8 layers in scope" in (
        console.export_text().replace("\n", " ")
    )
    assert report["kept"] <= 0.6
    plan = geocolor.read_plan(tmp_path / "smaller" / "plan.json")
    assert "encoder.layers.1.self_attn.k" in plan.layers
    loaded = geocolor.load(sentences(), tmp_path / "smaller")
    assert isinstance(loaded.get_submodule("encoder.layers.0.self_attn"), OpenAttention)
    x = batches()[0][0]
    torch.testing.assert_close(geocolor.merge_to_dense(loaded)(x), loaded(x), rtol=1e-4, atol=1e-5)


def test_a_plan_of_stacked_experts_is_applied_to_the_packed_model_and_loads_again(tmp_path: Path) -> None:
    experts().save_pretrained(tmp_path / "dense")
    console, dense = Console(record=True, width=200), str(tmp_path / "dense")
    commands.make_plan(
        console, dense, "tests.test_opening:tokens", tmp_path / "planned", QUICK, 8, 8, None, None, False
    )
    commands.carry_out(console, dense, tmp_path / "planned" / "plan.json", None, tmp_path / "smaller", False)
    assert console.export_text().count("opened 2 packed modules") == 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller")
    assert any(isinstance(module, OpenExperts) for module in loaded.modules())
    assert any(".up." in name for name, _ in loaded.named_modules() if name.endswith("coefficients"))
    assert torch.isfinite(loaded(tokens()[0])[0]).all()


def test_nothing_is_opened_where_it_would_bring_no_layer_into_scope() -> None:
    model, said = opened(sentences(), exclude=("*self_attn*",))
    assert said is None
    assert isinstance(model.get_submodule("encoder.layers.0.self_attn"), nn.MultiheadAttention)
    assert opened(nn.Sequential(nn.Linear(4, 4)))[1] is None


def test_a_model_that_is_itself_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="is itself a packed module \\(MultiheadAttention\\)"):
        opened(nn.MultiheadAttention(8, 2))
