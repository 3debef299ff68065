"""The embedded model: what it is, and that the price predicts on it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor import data, demo
from geocolor.divergence import divergence_of
from geocolor.embedded import MODEL
from geocolor.embedded.corpus import corpus, modules, split_of
from geocolor.losses import NextToken
from geocolor.pipeline import Pipeline
from geocolor.settings import Settings

LOG = Path(__file__).parent.parent / "benchmarks" / "embedded" / "train.log"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return data.load_model(MODEL)[0]


@pytest.fixture(scope="module")
def held_out() -> list[Tensor]:
    return demo.sequences("test", 64)


def test_a_module_is_in_one_part_on_every_version_of_python() -> None:
    assert (split_of("json.decoder"), split_of("argparse"), split_of("tarfile")) == ("train", "test", "calibration")
    assert {split_of(name) for name in modules()} == {"train", "calibration", "test"}


def test_parts_do_not_overlap_and_texts_end_with_nul() -> None:
    texts = {part: corpus(part) for part in ("train", "calibration", "test")}  # type: ignore[arg-type]
    assert sum(text.count(b"\0") for text in texts.values()) >= len(modules())
    assert all(text.endswith(b"\0") for text in texts.values())


def test_it_is_small_and_of_the_stated_size(model: nn.Module) -> None:
    assert sum(file.stat().st_size for file in MODEL.glob("*.safetensors")) <= 8_000_000
    assert 2_000_000 <= sum(p.numel() for p in model.parameters()) <= 4_000_000


def test_its_tokens_are_bytes() -> None:
    tokenizer = data.load_model(MODEL)[1]
    assert tokenizer is not None
    text = "def f(x):\n\treturn 'é' # π"
    ids = tokenizer(text)["input_ids"]
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


def test_it_writes_python_it_has_never_seen_in_under_1_9_bits_per_byte(
    model: nn.Module, held_out: list[Tensor]
) -> None:
    result = geocolor.evaluate(model, held_out, bytes_per_unit=1.0, repeats=0)
    assert result.bits_per_byte is not None
    assert result.bits_per_byte < 1.9


def test_predicted_damage_is_that_measured_on_held_out_text_within_a_quarter(
    model: nn.Module, held_out: list[Tensor]
) -> None:
    """At keep 0.95. Damage is the divergence from the dense model: the loss itself also falls and rises by chance."""
    settings = Settings(keep=0.95, solver="greedy", aggregate=1.0, kinds=("in", "out"))
    prepared = Pipeline(model, demo.sequences("calibration", 64), settings).prepared()
    smaller = geocolor.apply(model, prepared.plan, prepared.curvature)
    measured = divergence_of(model, smaller, held_out, NextToken())
    assert prepared.plan.predicted_damage == pytest.approx(measured, rel=0.25)


def test_it_keeps_its_function_when_all_is_kept(model: nn.Module, held_out: list[Tensor]) -> None:
    curvature = geocolor.measure(model, held_out[:2])
    smaller = geocolor.apply(model, geocolor.plan(geocolor.price(model, curvature), 1.0), curvature)
    with torch.no_grad():
        torch.testing.assert_close(smaller(held_out[0]).logits, model(held_out[0]).logits, rtol=1e-5, atol=1e-5)


def test_the_log_tells_how_it_was_trained() -> None:
    lines = LOG.read_text().splitlines()
    assert '"test_bits_per_byte"' in lines[-1]
    assert sum('"held_out"' in line for line in lines) > 10
