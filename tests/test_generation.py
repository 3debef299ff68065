"""Compressed models of every family that writes text write with a cache what they write without."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import geocolor
from geocolor.backend import factored_layers, install, merge_to_dense
from geocolor.layers import find_layers
from tests.architectures import CASES, Case
from tests.handmade import factors_of, plan_of

NEW, RANK = 4, 3


def writes(case: Case) -> bool:
    with torch.device("meta"):
        model = case.make()
    return isinstance(model, PreTrainedModel) and model.can_generate()


WRITERS = [case for case in CASES if writes(case)]


def test_decoders_encoder_decoders_experts_and_state_spaces_are_among_them() -> None:
    names = {case.name for case in WRITERS}
    assert {"LLaMA", "GPT-2 (Conv1D)", "Mixtral", "Mamba", "T5", "Whisper"} <= names


@pytest.mark.parametrize("case", WRITERS, ids=lambda case: case.name)
def test_it_writes_with_a_cache_what_it_writes_without(case: Case) -> None:
    torch.manual_seed(0)
    dense = geocolor.unpack(case.make().eval())
    pairs: dict[tuple[int, int, str], list[str]] = {}
    for layer in find_layers(dense):
        if min(layer.m, layer.n) > RANK:
            pairs.setdefault((layer.m, layer.n, layer.form), []).append(layer.name)
    plan = plan_of(dense, [("in", names[:2], RANK) for names in pairs.values()])
    model: Any = install(dense, plan.shareable_layers(), factors_of(dense, plan), plan=plan)
    assert factored_layers(model)
    batch = case.batch(torch.Generator().manual_seed(1))
    inputs = {key: value[:2] for key, value in batch.items() if key != "labels"}
    wanted: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    written = model.generate(**inputs, use_cache=True, **wanted)
    assert written.shape[-1] >= NEW
    assert torch.equal(written, model.generate(**inputs, use_cache=False, **wanted))
    merged: Any = merge_to_dense(model)
    assert torch.equal(written, merged.generate(**inputs, use_cache=True, **wanted))
