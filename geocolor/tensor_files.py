"""Tensors with their metadata in one safetensors file, written whole or not at all, and read only if intact."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geocolor.atomic import write_atomically
from geocolor.json_files import parse_json

FORMAT_VERSION = 2
AGAIN = "Make it again"


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """One safetensors file whose header holds `metadata` as JSON with its kind and format version, and a checksum."""
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **metadata})
    saved: dict[str, Tensor] = {}
    for name, tensor in tensors.items():  # safetensors refuses tensors that share memory, such as one identity for all
        shared = any(tensor is other for other in saved.values())
        saved[name] = tensor.clone() if shared else tensor.contiguous()
    header = {"geocolor": text, "sha256": _digest(text, saved)}
    write_atomically(path, lambda temporary: save_file(saved, temporary, metadata=header))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of this kind.

    Raises `FileNotFoundError`, or `ValueError` naming the file where it is damaged, of another kind or version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            text = header.get("geocolor", "{}")
            metadata = parse_json(text, f"the header of {path}", AGAIN)
            if not isinstance(metadata, dict) or metadata.pop("kind", None) != kind:
                raise ValueError(f"{path} is not a {kind} file of geocolor. {AGAIN}")
            version = metadata.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ValueError(f"{path} has format version {version}, this geocolor reads {FORMAT_VERSION}. {AGAIN}")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, AttributeError) as error:  # the latter for dtypes that torch lacks
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}). {AGAIN}") from error
    if set(header) != {"geocolor", "sha256"} or header["sha256"] != _digest(text, tensors):
        raise ValueError(f"{path} is damaged: its checksum does not agree. {AGAIN}")
    return tensors, metadata


def check_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float64,
) -> None:
    """Raise `ValueError` where tensors are missing, unknown, of another dtype or shape or not finite."""
    for name in [*shapes, *tensors]:
        if name not in shapes or name not in tensors:
            raise ValueError(f"{path} {'has no' if name in shapes else 'holds an unknown'} tensor {name!r}. {AGAIN}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != dtype:
            raise ValueError(
                f"{path}: {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, not {shapes[name]} of {dtype}. {AGAIN}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: {name!r} holds NaN or infinite values. {AGAIN}")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
