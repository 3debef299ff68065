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
SEARCH = ["--keep", "0.5", "--solver", "greedy", "--rounds", "1"]
TIMES = ("seconds", "checksum", "latency", "roofline")


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


LEDGER = "ledger.jsonl"
STAGES = [
    "run.json",
    "measured-0-of-1.safetensors",
    f"{LEDGER}:look/0.001/0",
    "pairs-1-0.safetensors",
    f"{LEDGER}:plan/1/2",
    f"{LEDGER}:verdict/1",
    f"{LEDGER}:look/0.001/1",
    f"{LEDGER}:verdict/2",
    "factors-0.safetensors",
    "update-2.safetensors",
    f"{LEDGER}:update/before",
    "refinement.safetensors",
    "written",
]


def at_random(count: int, longest: float) -> list[str]:
    """Seconds, the shortest first: a fast machine is killed once at least."""
    draw = random.Random(0)
    return [f"{seconds:.3f}" for seconds in sorted(draw.uniform(0, longest) for _ in range(count))]


@pytest.fixture(scope="module")
def said(place: Path) -> dict[str, str]:
    """What all the runs below said, killed and gone on with in one process, by their output folder."""
    compress = ["compress", "llama", *SOURCE, *SEARCH, "--refine", "8"]
    plan = ["plan", "llama", *SOURCE, *SEARCH]
    apply = ["apply", "llama", "planned-whole/plan.json"]
    refine = ["refine", "applied-whole", "llama", *SOURCE, "--steps", "12", "--checkpoint-every", "2"]
    runs: list[tuple[str, list[str], list[str]]] = [
        ("compressed-whole", compress, []),
        ("compressed-killed", compress, STAGES),
        ("compressed-random", compress, at_random(8, 1.5)),
        ("planned-whole", plan, []),
        ("planned-killed", plan, [*STAGES[2:5], "written"]),
        ("applied-whole", apply, []),
        ("applied-killed", apply, ["run.json", "factors-1.safetensors", "factors-4.safetensors", "written"]),
        ("refined-whole", refine, []),
        ("refined-killed", refine, ["refinement.safetensors", *at_random(2, 1), "written"]),
    ]
    documents = [dict(zip(("out", "arguments", "moments"), each, strict=True)) for each in runs]
    (place / "runs.json").write_text(json.dumps(documents))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", "runs.json"],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return {part.partition("\n")[0]: part for part in done.stdout.split("=== ")[1:]}


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
        return {key: untimed(entry, folder) for key, entry in value.items() if not key.startswith(TIMES)}
    if isinstance(value, list):
        return [untimed(entry, folder) for entry in value]
    return value.replace(folder.name, "out") if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("whole", "killed"),
    [
        ("compressed-whole", "compressed-killed"),
        ("compressed-whole", "compressed-random"),
        ("planned-whole", "planned-killed"),
        ("applied-whole", "applied-killed"),
        ("refined-whole", "refined-killed"),
    ],
)
def test_a_killed_command_typed_again_ends_with_the_same_files(
    place: Path, said: dict[str, str], whole: str, killed: str
) -> None:
    same_files(place / whole, place / killed)
    assert said[killed].count(": killed") >= 1
    assert not (place / f"{killed}.partial").exists()
    halves = [each.name for each in place.glob(f".{killed}.*")]
    assert all(name.startswith(f".{killed}.partial.") for name in halves), halves  # killed over removing the journal


def test_every_stage_was_killed_and_what_is_gone_on_with_is_said(said: dict[str, str]) -> None:
    assert said["compressed-killed"].count(": killed") == len(STAGES)
    assert "going on: measured" in said["compressed-killed"]
    assert "going on with the unfinished run in compressed-killed.partial" in said["compressed-killed"]
    assert "going on" not in said["compressed-whole"]
