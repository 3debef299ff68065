"""Tensors with their metadata in one safetensors file, written whole or not at all, and read only if intact."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from geocolor.atomic import write_atomically
from geocolor.json_files import parse_json

FORMAT_VERSION = 3
AGAIN = "Make it again"

#: Where the first tensor of a file begins is a multiple of it.
ALIGNED = 64

#: Names of dtypes in a safetensors header.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path,
    kind: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """One safetensors file whose header holds `metadata` as JSON with its kind and format version, and checksums.

    Tensors are asked for and written one by one. With `shapes` they are all float64 and asked for only once, so that
    `tensors` may make or read them when asked.
    """
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **metadata})
    dtypes = dict.fromkeys(tensors, torch.float64) if shapes else {name: each.dtype for name, each in tensors.items()}
    shapes = shapes or {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    digests = dict.fromkeys(shapes, "0" * 64)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(_header(text, digests, shapes, dtypes))
            for name in shapes:
                data = data_of(tensors[name])
                if data.nbytes != _size(shapes[name], dtypes[name]):
                    raise ValueError(f"tensor {name!r} is not {shapes[name]} of {dtypes[name]}")
                digests[name] = _digest(name, shapes[name], dtypes[name], data)
                file.write(data)
            file.seek(0)
            file.write(_header(text, digests, shapes, dtypes))

    write_atomically(path, write)


def read_tensors(path: Path, kind: str, again: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of this kind.

    Raises `FileNotFoundError`, or `ValueError` naming the file where it is damaged, of another kind or version, and
    saying `again`: what to do then.
    """
    file = TensorFile(path, kind, again)
    return {name: file[name] for name in file}, file.metadata


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file of this kind, each read and checked when asked for, and held by nobody but the caller.

    Raises, when it is made and when a tensor is read, `FileNotFoundError`, or `ValueError` naming the file where it is
    damaged, of another kind or version.
    """

    def __init__(self, path: Path, kind: str, again: str = AGAIN) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"no {kind} file at {path}")
        self.path, self._again = path, again
        with self._open() as file:
            header = file.metadata() or {}
            text, digests = header.get("geocolor", "{}"), header.get("digests", "{}")
            metadata = parse_json(text, f"the header of {path}", again)
            if not isinstance(metadata, dict) or metadata.pop("kind", None) != kind:
                raise ValueError(f"{path} is not a {kind} file of geocolor. {again}")
            version = metadata.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"{path} has format version {version!r:.40}, this geocolor reads {FORMAT_VERSION}. {again}"
                )
            self._digests = parse_json(digests, f"the header of {path}", again)
            names = set(file.keys())
        whole = set(header) == {"geocolor", "digests", "sha256"} and header["sha256"] == _whole(text, digests)
        if not whole or not isinstance(self._digests, dict) or set(self._digests) != names:
            raise ValueError(f"{path} is damaged: its checksum does not agree. {again}")
        self.metadata: dict[str, Any] = metadata
        self._intact: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._digests:
            raise KeyError(name)
        with self._open() as file:
            tensor: Tensor = file.get_tensor(name).clone()  # aligned, or products would differ in the last bit
            if name not in self._intact:
                if self._digests[name] != _digest(name, tuple(tensor.shape), tensor.dtype, data_of(tensor)):
                    raise ValueError(f"{self.path} is damaged: its checksum does not agree. {self._again}")
                self._intact.add(name)
            return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._digests

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the header states, without reading the tensor."""
        with self._open() as file:
            return tuple(file.get_slice(name).get_shape())

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError, KeyError, AttributeError) as error:  # the latter for dtypes that torch lacks
            raise ValueError(f"{self.path} is damaged or not a safetensors file ({error}). {self._again}") from error


def checksum(path: Path) -> str:
    """The checksum of metadata and tensors that a file states."""
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("sha256", ""))


def check_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float64,
) -> None:
    """Raise `ValueError` where tensors are missing, unknown, of another dtype or shape or not finite."""
    for name in dict.fromkeys([*shapes, *tensors]):
        if name not in shapes or name not in tensors:
            raise ValueError(f"{path} {'has no' if name in shapes else 'holds an unknown'} tensor {name!r}. {AGAIN}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != dtype:
            raise ValueError(
                f"{path}: {name!r} is {tuple(tensor.shape)} of {tensor.dtype}, not {shapes[name]} of {dtype}. {AGAIN}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: {name!r} holds NaN or infinite values. {AGAIN}")


def _header(
    text: str,
    digests: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
) -> bytes:
    """What a safetensors file begins with; as long whatever the digests are."""
    listed = json.dumps(digests)
    return header_of({"geocolor": text, "digests": listed, "sha256": _whole(text, listed)}, shapes, dtypes)


def header_of(
    metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]
) -> bytes:
    """What a safetensors file begins with; the tensors' data follow in this order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _size(shape, dtypes[name])
        entries[name] = {"dtype": DTYPES[dtypes[name]], "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % ALIGNED)
    return len(header).to_bytes(8, "little") + header


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def data_of(tensor: Tensor) -> memoryview:
    """Its bytes, as a file holds them."""
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def _whole(text: str, digests: str) -> str:
    return hashlib.sha256(f"{text}\0{digests}".encode()).hexdigest()


def _digest(name: str, shape: tuple[int, ...], dtype: torch.dtype, data: memoryview) -> str:
    digest = hashlib.sha256(f"{name}\0{dtype}\0{shape}\0".encode())
    digest.update(data)
    return digest.hexdigest()
