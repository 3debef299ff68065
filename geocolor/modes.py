"""Evaluation mode and gradients, taken for a while and given back."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*models: nn.Module | None, gradients: bool = False) -> Iterator[None]:
    """All models in evaluation mode, without gradients unless asked for; every module's mode is given back."""
    modes = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def differentiable(weights: Iterable[Tensor]) -> Iterator[None]:
    """The weights ask for gradients for a while."""
    asked = [(weight, weight.requires_grad) for weight in weights]
    try:
        for weight, _ in asked:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, before in asked:
            weight.requires_grad_(before)
