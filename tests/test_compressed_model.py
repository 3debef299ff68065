"""A compressed model is a model like any other to the tools that its users reach for."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import geocolor
from geocolor.backend import factored_layers, merge_to_dense, skeleton
from geocolor.layers import find_layers
from geocolor.parameters import parameter_bytes
from geocolor.shared_basis import SharedBasis, each_linear_once
from geocolor.storage import save
from tests.compressed import MODELS, assert_shared, llama, result
from tests.test_transformers import TOKENS, output

# --- generation and training


def test_generation_with_a_cache_writes_what_it_writes_without() -> None:
    model = llama()
    wanted = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)}
    cached = model.generate(TOKENS, use_cache=True, **wanted)
    assert cached.shape == (2, 14)
    assert torch.equal(cached, model.generate(TOKENS, use_cache=False, **wanted))
    assert torch.equal(cached, merge_to_dense(model).generate(TOKENS, use_cache=True, **wanted))


def test_one_token_at_a_time_gives_the_logits_of_the_whole_sequence() -> None:
    model, cache = llama(), DynamicCache()
    with torch.no_grad():
        logits = [model(token, past_key_values=cache, use_cache=True).logits for token in TOKENS.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(logits, 1), output(model), rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, checkpointed = llama().train(), llama().train()
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        model(TOKENS, use_cache=False)[0].square().sum().backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# --- copies


@pytest.mark.parametrize(("make", "x"), MODELS)
def test_copies_and_pickles_compute_the_same_and_share_among_themselves(
    make: Callable[[], nn.Module], x: Tensor, tmp_path: Path
) -> None:
    model = make()
    torch.save(model, tmp_path / "model.pt")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert torch.equal(result(other, x), result(model, x))
        assert_shared(other, model)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}
        assert other.geocolor_plan == model.geocolor_plan


@pytest.mark.parametrize(("make", "x"), MODELS)
def test_a_state_dict_fills_a_skeleton_and_keeps_the_sharing(
    make: Callable[[], nn.Module], x: Tensor, tmp_path: Path
) -> None:
    model = make()
    empty = skeleton(merge_to_dense(model), model.geocolor_plan)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    empty.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(result(empty, x), result(model, x))
    assert_shared(empty, model)
    assert (tmp_path / "state.pt").stat().st_size < parameter_bytes(model) + 60_000  # a name takes a few hundred bytes


# --- placed by accelerate


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_a_device_map_is_compressed_and_keeps_its_hooks() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    dense = merge_to_dense(llama())
    batches = [torch.randint(3, 32, (8, 10)) for _ in range(2)]
    placed = copy.deepcopy(dense)
    hooks.attach_execution_device_hook(placed, "cpu")  # as dispatch_model does where there are several devices
    assert [layer.name for layer in find_layers(placed)] == [layer.name for layer in find_layers(dense)]
    smaller = []
    for model in (dense, placed):
        curvature = geocolor.measure(model, batches)
        plan = geocolor.plan(geocolor.price(model, curvature), keep=0.7, solver="greedy")
        smaller.append(geocolor.apply(model, plan, curvature))
    assert torch.equal(output(smaller[1]), output(smaller[0]))
    replaced = list(factored_layers(smaller[1]).values())
    assert replaced
    assert all(isinstance(layer._hf_hook, hooks.AlignDevicesHook) for layer in replaced)


def test_offloaded_weights_are_told() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(merge_to_dense(llama()), torch.device("cpu"))
    with pytest.raises(ValueError, match="weights are offloaded, so none can be measured or replaced"):
        find_layers(model)


# --- adapters


def test_lora_trains_on_coefficients_and_merges_exactly(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = llama().double()
    before = output(model)
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["coefficients"]))
    assert torch.equal(output(adapted), before), "a new adapter changes nothing"
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    learned = output(adapted)
    assert not torch.allclose(learned, before, atol=1e-4)
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter")
    torch.testing.assert_close(output(again), learned)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(output(merged), learned, rtol=1e-12, atol=1e-12)
    assert_shared(merged, model)
    save(merged, tmp_path / "merged")


def test_lora_is_refused_on_a_shared_basis_and_merges_on_a_private_one() -> None:
    peft = pytest.importorskip("peft")
    model = llama().double()
    for targets in (["map"], "all-linear"):
        with pytest.raises(ValueError, match=r"shared by 6 layers.*put adapters on the layers' own coefficients"):
            peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=targets))
    private = ["model.layers.0.self_attn.o_proj.right.map"]
    config = peft.LoraConfig(r=2, target_modules=private, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    learned = output(adapted)
    torch.testing.assert_close(output(adapted.merge_and_unload()), learned, rtol=1e-12, atol=1e-12)


# --- quantization


def test_a_tool_that_walks_by_names_comes_to_a_shared_basis_once() -> None:
    model = llama()
    first = each_linear_once()
    visited = [module for name, module in model.named_modules(remove_duplicate=False) if first(module, name)]
    assert len(visited) == len({id(module) for module in visited})
    assert {id(m) for m in visited} == {id(m) for m in model.modules() if isinstance(m, nn.Linear)}


@pytest.mark.filterwarnings("ignore")
def test_int8_factors_keep_the_sharing(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = llama()
    quantized = copy.deepcopy(model)
    quantize_(quantized, Int8WeightOnlyConfig(), filter_fn=each_linear_once())
    attention = quantized.model.layers[0].self_attn
    assert isinstance(attention.q_proj.right, SharedBasis)
    assert type(attention.q_proj.right.map.weight).__name__ == "Int8Tensor"
    assert attention.q_proj.right is quantized.model.layers[1].self_attn.v_proj.right
    torch.testing.assert_close(output(quantized), output(model), rtol=0, atol=0.02 * float(output(model).abs().max()))
    expected = model.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(attention.q_proj.weight, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    with pytest.raises(ValueError, match="is a Int8Tensor, which this format cannot hold: save the model before"):
        save(quantized, tmp_path / "model")
