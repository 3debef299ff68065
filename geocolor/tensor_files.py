"""Tensors with their metadata in one safetensors file, written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geocolor.atomic import write_atomically

FORMAT_VERSION = 1


def write_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """One safetensors file whose header holds `metadata` as JSON, with its kind and format version."""
    header = {"geocolor": json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **metadata})}
    saved: dict[str, Tensor] = {}
    for name, tensor in tensors.items():  # safetensors refuses tensors that share memory, such as one identity for all
        shared = any(tensor is other for other in saved.values())
        saved[name] = tensor.clone() if shared else tensor.contiguous()
    write_atomically(path, lambda temporary: save_file(saved, temporary, metadata=header))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("geocolor")
            metadata = json.loads(header) if header else {}
            if metadata.pop("kind", None) != kind:
                raise ValueError(f"{path} is not a {kind} file of geocolor; measure again and save it anew")
            version = metadata.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"{path} has format version {version}, this geocolor reads {FORMAT_VERSION}; measure again"
                )
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}); measure again") from error
    return tensors, metadata
