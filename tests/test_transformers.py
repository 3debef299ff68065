"""Compressed transformers models: the Auto classes load them with `import geocolor`, and fail loudly without."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from geocolor.backend import FactoredLayer, factored_layers, install
from geocolor.data import load_model
from geocolor.manifest import MANIFEST_FILE
from geocolor.parameters import parameter_count
from geocolor.placement import check_placement
from geocolor.plans import Plan
from geocolor.storage import export_dense, load, save
from geocolor.transformers_format import GeocolorConfig
from geocolor.transformers_quantizer import register
from tests.handmade import factors_of, plan_of
from tests.test_backend import counted_evaluations
from tests.test_storage import sign_again

TOKENS = torch.tensor([[1, 5, 9, 2, 7, 3], [4, 4, 8, 0, 6, 1]])
Classes = list[tuple[Any, ...]]


def llama(tied: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=12,  # two-digit block numbers: block 1 must not be taken for block 11
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


LLAMA_CLASSES: Classes = [
    ("in", [f"model.layers.{i}.self_attn.{p}_proj" for i in (1, 11) for p in "qkv"], 10),
    ("in", ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"], 9),
    ("out", ["model.layers.2.self_attn.o_proj", "model.layers.10.mlp.down_proj"], 8),
    ("both", ["model.layers.3.mlp.gate_proj", "model.layers.4.mlp.up_proj"], 12, 11),
    ("in", ["model.layers.5.self_attn.q_proj"], 7),
]


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=24, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


GPT2_CLASSES: Classes = [
    ("in", ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn", "transformer.h.0.mlp.c_fc"], 10),
    ("out", ["transformer.h.0.mlp.c_proj", "transformer.h.1.attn.c_proj"], 8),
    ("both", ["transformer.h.1.mlp.c_fc"], 12, 11),
]

BERT_SIZES = {
    "vocab_size": 32,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**BERT_SIZES)).eval()


def bert_classes(prefix: str = "") -> Classes:
    def layer(block: int, name: str) -> str:
        return f"{prefix}encoder.layer.{block}.{name}"

    return [
        ("in", [layer(i, f"attention.self.{name}") for i in (0, 1) for name in ("query", "key")], 10),
        ("out", [layer(0, "output.dense"), layer(1, "attention.output.dense")], 9),
        ("both", [layer(1, "intermediate.dense")], 12, 8),
    ]


def compressed(model: PreTrainedModel, classes: Classes) -> PreTrainedModel:
    plan = plan_of(model, classes)
    smaller = install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan)
    assert isinstance(smaller, PreTrainedModel)
    return smaller


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS)[0]


def assert_sharing_is_intact(model: nn.Module, plan: Plan, prefix: str = "") -> None:
    """Layers of a class hold one basis object, hence one storage; the count of live parameters agrees."""
    for cls in plan.classes:
        layers = [model.get_submodule(name.removeprefix(prefix)) for name in cls.layers]
        if cls.kind == "dense":
            assert not isinstance(layers[0], FactoredLayer)
            continue
        for layer in layers:
            assert isinstance(layer, FactoredLayer)
            for side, basis in layer.bases().items():
                assert basis is layers[0].bases()[side]
                assert basis.map.weight.data_ptr() == layers[0].bases()[side].map.weight.data_ptr()
    named = dict(model.named_parameters(remove_duplicate=False))
    assert parameter_count(model) == sum({p.data_ptr(): p.numel() for p in named.values()}.values())


MODELS = [
    pytest.param(lambda: compressed(llama(), LLAMA_CLASSES), AutoModelForCausalLM, id="llama"),
    pytest.param(lambda: compressed(llama(tied=True), LLAMA_CLASSES), AutoModelForCausalLM, id="llama-tied"),
    pytest.param(lambda: compressed(gpt2(), GPT2_CLASSES), AutoModelForCausalLM, id="gpt2-conv1d"),
    pytest.param(lambda: compressed(bert(), bert_classes()), AutoModel, id="bert-encoder"),
]


# --- loading with the Auto classes


@pytest.mark.parametrize(("make", "auto"), MODELS)
def test_a_saved_model_loads_bit_equal_with_its_sharing_and_saves_again(
    make: Callable[[], PreTrainedModel], auto: Any, tmp_path: Path
) -> None:
    model = make()
    save(model, tmp_path / "one")
    loaded, info = auto.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(output(loaded), output(model))
    assert_sharing_is_intact(loaded, model.geocolor_plan)
    assert parameter_count(loaded) == parameter_count(model)
    assert loaded.geocolor_plan == model.geocolor_plan

    loaded.save_pretrained(tmp_path / "two")
    again = auto.from_pretrained(tmp_path / "two")
    assert torch.equal(output(again), output(model))
    assert_sharing_is_intact(again, model.geocolor_plan)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    by_us = load(None, tmp_path / "two")
    assert type(by_us) is type(model)
    assert torch.equal(output(by_us), output(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("make", "auto"), MODELS)
def test_half_precision_is_kept(
    make: Callable[[], PreTrainedModel], auto: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = make().to(dtype)
    save(model, tmp_path / "model")
    loaded = auto.from_pretrained(tmp_path / "model")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(output(loaded), output(model))


def test_from_pretrained_takes_a_dtype(tmp_path: Path) -> None:
    model = compressed(llama(), LLAMA_CLASSES)
    save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(output(loaded), output(copy.deepcopy(model).to(torch.bfloat16)))


def test_from_pretrained_takes_a_device_map(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = compressed(llama(), LLAMA_CLASSES)
    save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="cpu")
    assert torch.equal(output(loaded), output(model))


@pytest.mark.filterwarnings("ignore")
def test_blocks_on_disk_compute_the_same(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = compressed(llama(), LLAMA_CLASSES)
    save(model, tmp_path / "model")
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{block}": "disk" for block in range(12)}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    for _ in range(2):
        assert torch.equal(output(loaded), output(model))


@pytest.mark.parametrize(
    ("first", "others", "refused"),
    [
        ("cpu", "disk", True),
        ("disk", "cpu", True),
        (0, 1, True),
        ("cuda:0", "disk", True),
        ("cpu", "cuda:0", True),
        ("cuda:0", "cpu", False),
        (0, "cuda:0", False),
        ("disk", "disk", False),
    ],
)
def test_a_basis_has_one_place(first: Any, others: Any, refused: bool) -> None:
    model = compressed(llama(), LLAMA_CLASSES)
    places = {"": others} | {f"model.layers.{block}": first for block in range(11)}
    names = {name: name for name in model.geocolor_plan.layers}
    if not refused:
        check_placement(places, model.geocolor_plan, names)
        return
    told = (
        r"'model.layers.1.self_attn.q_proj' and 'model.layers.11.self_attn.q_proj' share a basis, .* on '(cpu|cuda:0|d)"
    )
    with pytest.raises(ValueError, match=told):
        check_placement(places, model.geocolor_plan, names)


def test_a_basis_on_disk_and_in_memory_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    save(compressed(llama(), LLAMA_CLASSES), tmp_path / "model")
    with pytest.raises(ValueError, match="share a basis, and device_map puts one on 'cpu', the other on 'disk'"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map={"": "cpu", "model.layers.11": "disk"}, offload_folder=tmp_path / "offloaded"
        )


def test_what_auto_makes_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    save(compressed(llama(), LLAMA_CLASSES), tmp_path / "model")
    made = {"": "cpu", "model.layers.11": "disk"}
    monkeypatch.setattr("transformers.integrations.accelerate.infer_auto_device_map", lambda *_, **__: made)
    with pytest.raises(ValueError, match="share a basis"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="auto", offload_folder=tmp_path / "off")


def test_a_model_in_shards_loads_bit_equal(tmp_path: Path) -> None:
    model = compressed(llama(), LLAMA_CLASSES)
    save(model, tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path / "model"), load(None, tmp_path / "model")):
        assert torch.equal(output(loaded), output(model))
        assert_sharing_is_intact(loaded, model.geocolor_plan)


def test_saving_without_geocolors_save_writes_the_same(tmp_path: Path) -> None:
    model = compressed(gpt2(), GPT2_CLASSES)
    model.save_pretrained(tmp_path / "theirs")
    save(model, tmp_path / "ours")
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "theirs" / file).read_bytes() == (tmp_path / "ours" / file).read_bytes()


@pytest.mark.parametrize("tied", [False, True])
def test_the_base_model_loads_from_a_model_with_head_and_saves_again(tmp_path: Path, tied: bool) -> None:
    model = compressed(llama(tied), LLAMA_CLASSES)
    save(model, tmp_path / "model")
    base = AutoModel.from_pretrained(tmp_path / "model")
    assert type(base) is LlamaModel
    assert torch.equal(output(base), output(model.model))
    assert_sharing_is_intact(base, model.geocolor_plan, prefix="model.")
    base.save_pretrained(tmp_path / "base")
    again = AutoModel.from_pretrained(tmp_path / "base")
    assert torch.equal(output(again), output(base))
    assert_sharing_is_intact(again, model.geocolor_plan, prefix="model.")
    assert torch.equal(output(load(LlamaModel, tmp_path / "model")), output(base))


def test_a_model_with_a_new_head_loads_from_the_base_model(tmp_path: Path) -> None:
    model = compressed(bert(), bert_classes())
    save(model, tmp_path / "model")
    classifier, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", num_labels=3, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(output(classifier.bert), output(model))
    assert classifier.bert.encoder.layer[0].attention.self.query.right is not None
    classifier.save_pretrained(tmp_path / "classifier")
    again = load(None, tmp_path / "classifier")
    assert type(again) is BertForSequenceClassification
    assert torch.equal(output(again), output(classifier))


def test_a_head_in_the_plan_is_compressed_and_is_not_missed_by_the_base_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(**BERT_SIZES, num_labels=3)
    model = BertForSequenceClassification(config).eval()
    plan = plan_of(model, bert_classes("bert."))
    document = plan.model_dump(mode="json")
    document["layers"]["classifier"] = {"m": 3, "n": 24, "form": "linear", "geometry": ()}
    head = {"kind": "in", "layers": ["classifier"], "rank": 2, "parameters": 54, "damage": {"classifier": 0.0}}
    plan = Plan.model_validate({**document, "classes": [*document["classes"], head]})
    smaller = install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan)
    save(smaller, tmp_path / "model")
    assert torch.equal(output(load(None, tmp_path / "model")), output(smaller))
    base = AutoModel.from_pretrained(tmp_path / "model")
    assert torch.equal(output(base), output(smaller.bert))


def test_the_dense_layers_of_the_model_are_untouched(tmp_path: Path) -> None:
    model = llama()
    smaller = compressed(model, LLAMA_CLASSES)
    save(smaller, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name, value in model.state_dict().items():
        if name in loaded:
            assert torch.equal(loaded[name], value)


def test_an_ordinary_model_still_loads_beside_a_compressed_one(tmp_path: Path) -> None:
    dense = llama()
    dense.save_pretrained(tmp_path / "dense")
    save(compressed(dense, LLAMA_CLASSES), tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(output(loaded), output(dense))
    assert not factored_layers(loaded)
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


# --- what a loaded model can do


def test_layers_that_read_one_input_evaluate_their_basis_once(tmp_path: Path) -> None:
    save(compressed(llama(), LLAMA_CLASSES), tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    mlp, attention = loaded.model.layers[0].mlp.gate_proj.right, loaded.model.layers[11].self_attn.q_proj.right
    with counted_evaluations(mlp) as of_mlp, counted_evaluations(attention) as of_attention:
        output(loaded)
        assert of_mlp() == 1, "gate and up of one block"
        assert of_attention() == 2, "q, k, v of two blocks"


@pytest.mark.parametrize(("make", "classes"), [(llama, LLAMA_CLASSES), (gpt2, GPT2_CLASSES)])
def test_a_loaded_model_generates_what_the_saved_one_did(
    make: Callable[[], PreTrainedModel], classes: Classes, tmp_path: Path
) -> None:
    model = compressed(make(), classes)
    save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    texts = [m.generate(TOKENS, max_new_tokens=6, min_new_tokens=6, do_sample=False) for m in (model, loaded)]
    assert texts[0].shape == (2, 12)
    assert torch.equal(*texts)


def test_a_loaded_model_casts_trains_and_copies_like_any_other(tmp_path: Path) -> None:
    model = compressed(llama(), LLAMA_CLASSES)
    save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    duplicate = copy.deepcopy(loaded)
    assert torch.equal(output(duplicate), output(loaded))
    assert_sharing_is_intact(duplicate, model.geocolor_plan)
    assert_sharing_is_intact(duplicate.half().float(), model.geocolor_plan)
    loss = loaded(TOKENS, labels=TOKENS).loss
    loss.backward()
    assert all(p.grad is not None for p in loaded.parameters())
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert loaded(TOKENS, labels=TOKENS).loss < loss
    save(loaded, tmp_path / "trained")
    assert torch.equal(output(load(None, tmp_path / "trained")), output(loaded))


def test_dequantize_gives_the_dense_model_back(tmp_path: Path) -> None:
    model = compressed(gpt2(), GPT2_CLASSES)
    save(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    save(loaded, tmp_path / "again")
    dense = loaded.dequantize()
    assert not factored_layers(dense)
    torch.testing.assert_close(output(dense), output(model))
    dense.save_pretrained(tmp_path / "dense")
    assert torch.equal(output(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")), output(dense))


def test_models_that_read_the_dtype_of_a_weight_work() -> None:
    """T5 casts to `wo.weight.dtype` before it calls `wo`."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    names = [f"encoder.block.{i}.layer.1.DenseReluDense.wo" for i in (0, 1)]
    smaller = compressed(model, [("out", names, 9)])
    with torch.no_grad():
        assert smaller(TOKENS, decoder_input_ids=TOKENS).logits.isfinite().all()


# --- without geocolor


WITHOUT_GEOCOLOR = """
import json, sys, torch, transformers
assert "geocolor" not in sys.modules
tokens = torch.tensor([[1, 5, 9, 2, 7, 3], [4, 4, 8, 0, 6, 1]])
told = {}
for folder, auto in json.loads(sys.argv[1]).items():
    try:
        model = getattr(transformers, auto).from_pretrained(folder)
    except Exception as error:
        told[folder] = f"{type(error).__name__}: {error}"
    else:
        told[folder] = model(tokens)[0].tolist()
print(json.dumps(told))
"""


def load_without_geocolor(folders: dict[Path, str]) -> tuple[dict[str, Any], str]:
    """In a process of its own: for each folder its output or its error; and what was written to stderr."""
    asked = json.dumps({str(folder): auto for folder, auto in folders.items()})
    done = subprocess.run([sys.executable, "-c", WITHOUT_GEOCOLOR, asked], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def test_without_geocolor_loading_fails_loudly_and_a_dense_export_loads(tmp_path: Path) -> None:
    folders = {}
    for entry in MODELS:
        make, auto = entry.values
        save(make(), tmp_path / str(entry.id))
        folders[tmp_path / str(entry.id)] = auto.__name__
    model = compressed(gpt2(), GPT2_CLASSES)
    message = export_dense(model, tmp_path / "dense")
    assert "saving is gone" in message
    told, stderr = load_without_geocolor({**folders, tmp_path / "dense": "AutoModelForCausalLM"})
    for folder in folders:
        assert "RuntimeError" in told[str(folder)]
        assert "mismatched" in told[str(folder)]
    assert "Unknown quantization type, got geocolor" in stderr
    exported = torch.tensor(told[str(tmp_path / "dense")])
    torch.testing.assert_close(exported, output(model), rtol=1e-4, atol=1e-5)


def test_a_dense_export_has_the_original_layers_and_leaves_the_compressed_model_alone(tmp_path: Path) -> None:
    model = compressed(gpt2(), GPT2_CLASSES)
    export_dense(model, tmp_path / "dense")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert type(exported.transformer.h[0].attn.c_attn) is Conv1D
    assert parameter_count(exported) == parameter_count(gpt2())
    assert factored_layers(model)
    save(model, tmp_path / "model")


# --- damaged or foreign files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(compressed(gpt2(), GPT2_CLASSES), tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def quantization(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda document: change(document["quantization_config"]))


def smaller_rank(config: Any) -> None:
    cls = config["plan"]["classes"][2]
    cls.update(rank=5, parameters=5 * 96 + 11 * 24 + 5 * 11)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder / "model.safetensors", 3000), "model.safetensors cannot be read .*truncated"),
        (lambda folder: (folder / "model.safetensors").unlink(), "are missing: copy the whole folder"),
        (lambda folder: truncate(folder / "config.json", 900), "config.json is not whole JSON .*truncated"),
        (quantization(lambda c: c.update(format_version=7)), "geocolor format 7, this geocolor reads 1; install"),
        (quantization(lambda c: c["plan"].update(format_version=7)), "plan format 7 is not one this geocolor reads"),
        (quantization(lambda c: c["plan"]["classes"].pop()), "config.json.*edited by hand"),
        (quantization(lambda c: c.pop("plan")), "config.json.*plan format None"),
        (quantization(smaller_rank), "do not fit their config.json"),
        (lambda folder: edit(folder, lambda c: c.pop("quantization_config")), "that geocolor did not write"),
        (lambda folder: edit(folder, lambda c: c.update(architectures=["Nonesuch"])), "has no class 'Nonesuch'"),
        (lambda folder: edit(folder, lambda c: c.update(n_layer=1)), "has no layer 'transformer.h.1.attn.c_attn'"),
    ],
)
def test_damaged_files_are_told_with_what_where_and_what_to_try(
    saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved)
    sign_again(saved)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(None, saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_flipped_bit_is_told_by_geocolor_and_by_the_auto_classes(saved: Path, name: str) -> None:
    file = saved / name
    whole = file.read_bytes()
    at = whole.index(b'"quant_method": "geocolor"') - 3 if name == "config.json" else len(whole) // 2
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for loader in (lambda: load(None, saved), lambda: AutoModelForCausalLM.from_pretrained(saved)):
        with pytest.raises((ValueError, OSError), match=re.escape(name)):
            loader()


def test_shards_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    save(compressed(gpt2(), GPT2_CLASSES), tmp_path / "model", max_shard_size="20KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"][next(iter(document["weight_map"]))] = "../elsewhere.safetensors"
    index.write_text(json.dumps(document))
    sign_again(tmp_path / "model")
    with pytest.raises(ValueError, match=r"names '../elsewhere.safetensors', which is no safetensors file of this"):
        load(None, tmp_path / "model")


def test_a_config_that_announces_layers_without_end_is_refused_before_they_are_built(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    name = next(name for name in ("n_layer", "num_hidden_layers") if name in config)
    (saved / "config.json").write_text(json.dumps(config | {name: 10**9}))
    sign_again(saved)
    with pytest.raises(ValueError, match=rf"config.json: '{name}' is 1000000000, but the weights hold only"):
        load(None, saved)

    (saved / MANIFEST_FILE).unlink()
    with pytest.raises(ValueError, match=rf"config.json: '{name}' is 1000000000, but the weights hold only"):
        load_model(str(saved))
    for loader in (AutoModelForCausalLM, GPT2LMHeadModel):
        with pytest.raises(ValueError, match=rf"config.json: '{name}' is 1000000000, but the plan has only 8 layers"):
            loader.from_pretrained(saved)


LOADERS = [
    pytest.param(lambda folder: load(None, folder), id="ours"),
    pytest.param(AutoModelForCausalLM.from_pretrained, id="theirs"),
    pytest.param(lambda folder: load_model(str(folder)), id="command line"),
]


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickle_in_place_of_the_weights_is_not_read(saved: Path, loader: Callable[[Path], object]) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"model.safetensors is missing|only pytorch_model.bin"):
        loader(saved)
    sign_again(saved)
    with pytest.raises(ValueError, match=r"only pytorch_model.bin\. Pickles are not read"):
        loader(saved)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_file_that_is_missing_or_not_in_the_manifest_is_named(saved: Path, loader: Callable[[Path], object]) -> None:
    (saved / "generation_config.json").rename(saved / "kept.json")
    with pytest.raises(FileNotFoundError, match=r"generation_config.json is missing\. Copy the whole folder"):
        loader(saved)
    (saved / "kept.json").rename(saved / "generation_config.json")
    loader(saved)
    (saved / "model.safetensors").rename(saved.parent / "kept")
    sign_again(saved)
    (saved.parent / "kept").rename(saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is not in geocolor_manifest.json"):
        loader(saved)


def test_in_a_cache_of_the_hub_only_what_was_asked_for_is_there(saved: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--someone--something" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    saved.rename(snapshot)
    (snapshot / "generation_config.json").unlink()
    AutoModelForCausalLM.from_pretrained(snapshot)


def test_a_lost_tensor_is_told(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("right.map.weight"))
    del tensors[lost]
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    sign_again(saved)
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of the model"):
        load(None, saved)


def test_a_lost_shard_is_told(tmp_path: Path) -> None:
    save(compressed(gpt2(), GPT2_CLASSES), tmp_path / "model", max_shard_size="20KB")
    next((tmp_path / "model").glob("model-00002-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-.* is missing. Copy the whole folder"):
        load(None, tmp_path / "model")


def test_a_loaded_model_that_was_changed_is_not_saved(saved: Path) -> None:
    loaded = load(None, saved)
    loaded.transformer.h[0].mlp.c_proj = Conv1D(24, 96)
    with pytest.raises(ValueError, match=r"'transformer.h.0.mlp.c_proj' is of kind 'dense' in the model"):
        save(loaded, saved.parent / "again")
    assert not (saved.parent / "again").exists()


def test_the_auto_classes_tell_a_damaged_plan_too(saved: Path) -> None:
    quantization(lambda c: c["plan"]["classes"].pop())(saved)
    with pytest.raises(ValueError, match="edited by hand"):
        AutoModelForCausalLM.from_pretrained(saved)


def test_a_dense_checkpoint_cannot_be_quantized_on_the_fly(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="load it without quantization_config, apply"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "dense", quantization_config=GeocolorConfig(plan_of(model, GPT2_CLASSES))
        )


def test_the_plan_in_the_config_is_the_plan(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved)
    assert set(config.quantization_config) == {"quant_method", "format_version", "plan"}
    assert GeocolorConfig.from_dict(config.quantization_config).plan == plan_of(gpt2(), GPT2_CLASSES)


def test_registering_twice_changes_nothing() -> None:
    register()
    register()
