"""SHA-256 of what decides the result of a run: weights and data, in memory."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geocolor import processes

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest_of(value: Any) -> str:
    """Equal for equal tensors (name, dtype, shape, every bit), also nested in mappings, lists and tuples."""
    digest = hashlib.sha256()
    _take_in(digest, value)
    return digest.hexdigest()


def digest_of_model(model: nn.Module) -> str:
    """Parameters, buffers, modules by name and type, and the configuration of a transformers model."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__}\n".encode())
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_json_string"):
        digest.update(config.to_json_string().encode())
    _take_in(digest, dict(model.named_parameters()))
    _take_in(digest, dict(model.named_buffers()))
    return digest.hexdigest()


def _take_in(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        if not value.is_meta:  # where accelerate has offloaded weights, only names and shapes tell
            held = processes.whole(value).detach().cpu().contiguous().reshape(-1)
            digest.update(held.view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping of {len(value)}\n".encode())
        for key in value:
            digest.update(f"{key!r}\n".encode())
            _take_in(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"sequence of {len(value)}\n".encode())
        for entry in value:
            _take_in(digest, entry)
    else:
        digest.update(_ADDRESS.sub("", repr(value)).encode())
