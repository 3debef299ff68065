"""Commands killed at any moment: typed again they go on, and end with the same files, byte for byte."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from geocolor.embedded import MODEL

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SOURCE = ["--data", "text.txt", "--sequence", "16", "--batch-size", "4", "--samples", "24"]
SEARCH = ["--keep", "0.5", "--solver", "greedy", "--probes", "1"]
TIMES = {"seconds", "checksum", "latency_seconds", "latency_seconds_dense"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny language model and a text."""
    place = tmp_path_factory.mktemp("resuming")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(place / "llama")
    for file in MODEL.glob("tokenizer*"):
        shutil.copy(file, place / "llama")
    (place / "text.txt").write_text("def f(x, y):\n    return [x for _ in range(y)]\n\n" * 20)
    return place


def killed(place: Path, out: str, moments: list[str], *arguments: str) -> str:
    """What the command says when it is killed at each of the moments in turn, and at last may end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", out, *moments, "--", *arguments, "-o", out],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert not (place / f"{out}.partial").exists()
    assert not list(place.glob(f".{out}.*"))
    return done.stdout


def same_files(one: Path, other: Path) -> None:
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    for name in names:
        a, b = (folder / name for folder in (one, other))
        if name == "geocolor_manifest.json":  # checksums of files that hold times
            continue
        if name.endswith(".json"):
            assert untimed(json.loads(a.read_text()), one) == untimed(json.loads(b.read_text()), other), name
        else:
            assert a.read_bytes() == b.read_bytes(), name


def untimed(value: Any, folder: Path) -> Any:
    """A document without what clocks said, and without its own place."""
    if isinstance(value, dict):
        return {key: untimed(entry, folder) for key, entry in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [untimed(entry, folder) for entry in value]
    return value.replace(folder.name, "out") if isinstance(value, str) else value


LEDGER = "ledger.jsonl"
STAGES = [
    "run.json",
    "measured-0-of-1.safetensors",
    f"{LEDGER}:probe/1/0/3",
    f"{LEDGER}:probe/1/2/1",
    f"{LEDGER}:scale/1",
    f"{LEDGER}:plan/0.001/1",
    f"{LEDGER}:verdict",
    "factors-0.safetensors",
    "update-2.safetensors",
    f"{LEDGER}:update/before",
    "refinement.safetensors",
    "written",
]


def test_compress_killed_at_every_stage(place: Path) -> None:
    command = ["compress", "llama", *SOURCE, *SEARCH, "--refine", "8"]
    killed(place, "whole", [], *command)
    said = killed(place, "stages", STAGES, *command)
    same_files(place / "whole", place / "stages")
    assert "going on with the unfinished run in stages.partial" in said
    assert "going on: measured" in said
    draw = random.Random(0)
    killed(place, "delays", [f"{draw.uniform(0.1, 2.5):.3f}" for _ in range(6)], *command)
    same_files(place / "whole", place / "delays")
