"""Weights lie in files: they are read when they are used, factors are written as they are made, values are the same."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import geocolor
from geocolor import data
from geocolor.digests import digest_of_model
from geocolor.mapped import converted, copied, let_go, put_in_files, shards_to_convert, unnamed_bytes
from geocolor.opening import opened
from geocolor.storage import load, save
from geocolor.unpacking import pack, unpack
from geocolor.updating import update_coefficients
from tests.compressed import llama

linux = pytest.mark.skipif(sys.platform != "linux", reason="what lies in files is told as Linux does")


def in_files(model: nn.Module) -> set[str]:
    """Parameters whose first byte is of a mapped file."""
    files = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        if inode != "0":
            files.append(tuple(int(end, 16) for end in span.split("-")))
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    return {name for name, at in addresses.items() if any(start <= at < end for start, end in files)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32
    )
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "saved", max_shard_size="5KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    return tmp_path / "saved"


@linux
def test_weights_of_the_dtype_asked_for_are_read_from_their_files(folder: Path) -> None:
    model, _ = data.load_model(folder, torch.bfloat16)
    assert in_files(model) == {name for name, _ in model.named_parameters()}


@linux
def test_weights_of_another_dtype_are_read_from_files_without_names(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "made" / "here"
    plain, _ = data.load_model(folder)
    mapped, _ = data.load_model(folder, mapped=place)
    assert in_files(plain) == set()
    assert in_files(mapped) == {name for name, _ in mapped.named_parameters()}
    assert list(place.iterdir()) == []
    assert digest_of_model(mapped) == digest_of_model(plain)
    assert mapped.name_or_path == plain.name_or_path == str(folder)
    files = 4 * sum(each.numel() for each in plain.parameters())
    assert files <= unnamed_bytes(mapped) < files + 100_000  # headers, and what is left of pages
    assert unnamed_bytes(plain) == unnamed_bytes(data.load_model(folder, torch.bfloat16)[0]) == 0
    assert {parameter.data_ptr() % 64 for parameter in mapped.parameters()} == {0}
    ids = torch.arange(16).reshape(2, 8)
    assert torch.equal(mapped(ids).logits, plain(ids).logits)


def test_what_need_not_or_cannot_be_converted_is_left_to_transformers(folder: Path, tmp_path: Path) -> None:
    assert len(shards_to_convert(folder, torch.float32)) == len(list(folder.glob("*.safetensors")))
    assert shards_to_convert(folder, torch.bfloat16) == []
    assert shards_to_convert(tmp_path, torch.float32) == []
    assert shards_to_convert(Path("no/such-model"), torch.float32) == []
    save(llama().bfloat16(), tmp_path / "compressed")
    assert shards_to_convert(tmp_path / "compressed", torch.float32) == []
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    assert shards_to_convert(folder, torch.float32) == []
    with pytest.raises(ValueError, match=r"cannot be read .*truncated or damaged"):
        data.load_model(folder, mapped=tmp_path)


@linux
def test_ties_and_packed_experts_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers stacks the experts of a file into one tensor, in memory; one that holds them so is only read."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        num_local_experts=3,
        tie_word_embeddings=True,
    )
    made, ids = transformers.MixtralForCausalLM(config).half(), torch.arange(16).reshape(2, 8)
    made.save_pretrained(tmp_path / "apart")
    made.save_pretrained(tmp_path / "stacked", save_original_format=False)
    plain, _ = data.load_model(tmp_path / "apart")
    monkeypatch.setattr("geocolor.data.MUCH", 1000)
    for saved in ("apart", "stacked"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            mapped, _ = data.load_model(tmp_path / saved, mapped=tmp_path)
        assert ["save_original_format=False" in str(each.message) for each in said] == [True] * (saved == "apart")
        assert mapped.lm_head.weight is mapped.model.embed_tokens.weight
        assert in_files(mapped) == {name for name, _ in mapped.named_parameters()}
        assert digest_of_model(mapped) == digest_of_model(plain)
        found, line = opened(mapped, files=tmp_path)
        assert line is not None
        assert in_files(found) == {name for name, _ in found.named_parameters()}
        assert torch.equal(found(ids).logits, unpack(plain)(ids).logits)
    assert in_files(pack(found, tmp_path)) == {name for name, _ in plain.named_parameters()}
    assert digest_of_model(found) == digest_of_model(plain)


def test_a_full_disk_is_said_with_what_would_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("geocolor.mapped._convert", full)
    with pytest.raises(OSError, match=r"No space left on device.*kB there.*leave out --memory"):
        data.load_model(folder, mapped=tmp_path / "place")
    assert list((tmp_path / "place").iterdir()) == []


@linux
def test_parameters_put_in_files_keep_their_values_and_can_be_trained(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(300, 70), nn.Linear(70, 3).to(torch.bfloat16))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    put_in_files(model.parameters(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert in_files(model) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    let_go(model[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model[0].weight[0] = 7
    let_go(model[0].weight)
    assert bool((model[0].weight[0] == 7).all())
    assert torch.equal(model[0].weight[1:], before["0.weight"][1:])
    optimizer = torch.optim.SGD(model[:1].parameters(), lr=0.1)
    model[0](torch.ones(300)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model[0].bias, before["0.bias"] - 0.1)


@linux
def test_a_system_that_maps_no_more_is_said_with_what_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("unable to mmap 64 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refused)
    with pytest.raises(ValueError, match=r"Cannot allocate memory.*raise it, or leave out --memory"):
        put_in_files(nn.Linear(2, 2).parameters(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_copy_in_files_has_the_values_and_the_ties(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(30, 30), "b": nn.Linear(30, 30), "c": nn.Conv2d(2, 3, 3).bfloat16()})
    model["b"].weight = model["a"].weight
    model["c"].weight.requires_grad_(False)
    copy = copied(model, tmp_path, [model["a"].bias])
    assert in_files(copy) == {"a.weight", "b.bias", "c.weight", "c.bias"}
    assert copy["b"].weight is copy["a"].weight is not model["a"].weight
    assert copy["a"].bias is model["a"].bias
    assert [each.requires_grad for each in copy.parameters()] == [each.requires_grad for each in model.parameters()]
    assert digest_of_model(copy) == digest_of_model(model)
    assert in_files(converted(copy, torch.float64, tmp_path)) == {name for name, _ in copy.named_parameters()}
    assert digest_of_model(copy) == digest_of_model(converted(model, torch.float64, None))
    assert in_files(model) == {"a.bias"}  # both have it
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.parametrize("plain", [True, False])
def test_updated_saved_and_loaded_from_files_a_model_is_the_same(
    plain: bool, network: nn.Module, batches: list[Any], folder: Path, tmp_path: Path
) -> None:
    model = network if plain else data.load_model(folder)[0]
    batches = batches if plain else [torch.randint(32, (4, 8)) for _ in range(2)]
    curvature = geocolor.measure(model, batches, damping=0.1)
    plan = geocolor.plan(geocolor.price(model, curvature), 0.5, solver="greedy")
    digests = set()
    for files in (None, tmp_path):
        smaller = geocolor.apply(model, plan, curvature, files=files)
        update_coefficients(smaller, model, batches, curvature, files=files)
        everything = {name for name, _ in smaller.named_parameters()}
        assert in_files(smaller) == (set() if files is None else everything)
        save(smaller, tmp_path / f"saved in {files is None}")
        loaded = load(model if plain else None, tmp_path / f"saved in {files is None}", files=files)
        assert in_files(loaded) == (set() if plain and files is None else everything)
        digests |= {digest_of_model(smaller), digest_of_model(loaded)}
    assert len(digests) == 1


SCRIPT = """
import re
from pathlib import Path
import geocolor
from geocolor import data
from geocolor.memory import give_back

def private():
    give_back()
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

data.load_model("warm", mapped=Path("place"))
for source, options in (("saved", {}), ("saved", {"mapped": Path("place")}), ("some/model", {"mapped": Path("place")})):
    before = private()
    model, _ = data.load_model(source, **options)
    assert model.name_or_path == source
    print("RISE", private() - before)
    del model
"""


END = """
import re, sys
from pathlib import Path
import torch
from torch import nn
from geocolor.carry_out import apply
from geocolor.memory import forget_peak, hold_no_free, peak
from geocolor.clock import Clock
from geocolor.compression import delivered, write_model
from geocolor.pipeline import Pipeline
from geocolor.settings import Settings
from geocolor.updating import updated_where_nearer

files = Path.cwd() if sys.argv[1] == "files" else None
hold_no_free()

def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def run(width, depth):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 4))
    batches = [(torch.randn(64, width), torch.randint(4, (64,)))]
    prepared = Pipeline(model, batches, Settings(keep=0.5, preset="svd")).prepared()
    smaller = apply(model, prepared.plan, prepared.curvature, files=files)
    forget_peak()
    before = peak()
    smaller = updated_where_nearer(smaller, model, batches, prepared.curvature, files=files)
    print("RISE", peak() - before)
    write_model(smaller, Path(f"out {width}"), prepared.plan)
    del smaller
    forget_peak()
    held = private()
    _, loaded = delivered(model, prepared.plan, batches, Path(f"out {width}"), clock=Clock(), files=files)
    forget_peak()
    print("RISE", private() - held)

run(16, 2)
run(256, 32)
"""


def rises(script: str, folder: Path, *arguments: str) -> list[int]:
    """What a process prints of bytes that it held beyond those before."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(part.split()[0]) for part in done.stdout.split("RISE")[1:]]


@linux
def test_the_end_of_a_run_holds_no_second_model(tmp_path: Path) -> None:
    """32 layers of 256 × 256 become factors of 4 MB; all second moments of their inputs would be 17 MB."""
    *_, updating, loaded = rises(END, tmp_path, "files")
    assert updating < 22_000_000  # pages of two smaller models among it
    assert loaded < 2_000_000


@linux
def test_a_model_of_another_dtype_takes_no_memory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """17 million parameters in bfloat16 are 67 MB in float32."""
    for name, width in (("warm", 16), ("saved", 1024)):
        config = transformers.LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=4096,
            tie_word_embeddings=False,
        )
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        model.save_pretrained(tmp_path / name)
    cached = tmp_path / "hub" / "models--some--model"
    for where in ("refs", "snapshots"):
        (cached / where).mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).symlink_to(tmp_path / "saved")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plain, mapped, from_hub = rises(SCRIPT, tmp_path)
    assert plain > 60_000_000
    assert mapped < 12_000_000
    assert from_hub < 12_000_000
