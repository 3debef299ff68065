"""Keyword Transformer KWT-1 (Berg et al. 2021, arXiv:2104.00769) as a plain `nn.Module` that knows no transformers.

Twelve identical post-norm blocks, width 64, one head, FFN 256; features are 98 frames of 40 MFCCs.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """One encoder block: `x = ln1(x + o(attention))`, `x = ln2(x + fc2(gelu(fc1 x)))`; q, k, v have no bias."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.o = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.ln2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x + self.o(scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))))
        out: Tensor = self.ln2(x + self.fc2(gelu(self.fc1(x), approximate="tanh")))
        return out


class KeywordTransformer(nn.Module):
    """Features [batch, frames, mfcc] to logits [batch, classes], read off a class token."""

    def __init__(
        self, mfcc: int = 40, frames: int = 98, classes: int = 12, width: int = 64, hidden: int = 256, blocks: int = 12
    ) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.zeros(1, frames + 1, width))
        self.proj = nn.Linear(mfcc, width)
        self.layers = nn.ModuleList(Block(width, hidden) for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(features), -1, -1), self.proj(features)], 1) + self.pos
        for block in self.layers:
            x = block(x)
        logits: Tensor = self.head(x[:, 0])
        return logits


def load_kwt1(folder: Path) -> KeywordTransformer:
    """The trained model from `kwt1.safetensors`, in evaluation mode."""
    model = KeywordTransformer()
    model.load_state_dict(load_file(folder / "kwt1.safetensors"))
    return model.eval()


def clips(folder: Path, part: str, *, spoken: bool, batch_size: int) -> list[Batch]:
    """Batches (features, label) of `features_{part}.npz`; `spoken` leaves out the clips of silence."""
    with np.load(folder / f"features_{part}.npz") as archive:
        features = torch.from_numpy(archive["x"].astype(np.float32))
        labels = torch.from_numpy(archive["y"].astype(np.int64))
    if spoken:
        silence = (folder / "labels.txt").read_text().split().index("_silence_")
        features, labels = features[labels != silence], labels[labels != silence]
    return list(zip(features.split(batch_size), labels.split(batch_size), strict=True))


def accuracy(model: nn.Module, batches: list[Batch]) -> float:
    """Fraction of clips whose likeliest class is the right one."""
    with torch.no_grad():
        right = sum(int((model(features).argmax(-1) == labels).sum()) for features, labels in batches)
    return right / sum(len(labels) for _, labels in batches)
