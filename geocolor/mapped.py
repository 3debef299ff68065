"""Weights that lie in files instead of memory: pages come in when they are touched, and the system may drop them.

transformers maps safetensors of the dtype that is asked for, and reads them when they are used. Those of another dtype
it converts in memory; here they are converted into files first, a tensor at a time.
"""

import copy
import ctypes
import math
import mmap
import shutil
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils.hub import cached_files

from geocolor.json_files import read_json
from geocolor.quantities import size
from geocolor.tensor_files import DTYPES, data_of, header_of
from solvers.atomic import writable_folder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MADV_PAGEOUT = 21
"""Of Linux since 5.4: take these pages back now; those that differ from their file stay."""

MAPS = Path("/proc/self/maps")

NAMED = {name: dtype for dtype, name in DTYPES.items()}


@contextmanager
def in_dtype(source: str | Path, dtype: torch.dtype, place: Path | None) -> Iterator[str | Path]:
    """A folder from which transformers reads the weights of `source` when they are used, for as long as it is loaded.

    Where they are of another floating dtype it is a copy in `place`, whose files live on without names as long as
    weights are mapped from them. It is `source` itself without a `place`, and for weights that are loaded in ways of
    their own. Raises `OSError` with a sentence where the disk is full.
    """
    folder = None if place is None else folder_of(source)
    shards = [] if folder is None else shards_to_convert(folder, dtype)
    if folder is None or place is None or not shards:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix=".weights.", dir=writable_folder(place)) as copy:
        try:
            _convert(folder, shards, Path(copy), dtype)
        except OSError as error:
            raise OSError(
                f"cannot convert the weights of {source} to {str(dtype).removeprefix('torch.')} in {place}: "
                f"{error.strerror or error}. They take {size(_bytes_in(shards, dtype))} there while the command runs: "
                "free some space, choose another output folder, or leave out --memory"
            ) from error
        yield copy


def folder_of(source: str | Path) -> Path | None:
    """Where the weights of a model lie: those of a hub name in transformers' cache, after a download where need be.

    None where there are none, or the hub does not give them: loading the model says so.
    """
    if Path(source).is_dir():
        return Path(source)
    if ":" in str(source):
        return None

    def found(*names: str) -> list[str]:
        return cached_files(str(source), list(names), _raise_exceptions_for_missing_entries=False) or []

    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        for config in found("config.json"):
            found("generation_config.json")
            for index in found(INDEX):
                found(*set(read_json(Path(index), "Download the model again")["weight_map"].values()))
                return Path(config).parent
            return Path(config).parent if found(WEIGHTS) else None
    return None


def shards_to_convert(folder: Path, dtype: torch.dtype) -> list[Path]:
    """The safetensors files of a model, where a tensor is of another floating dtype; none otherwise.

    None, too, where they cannot be read, or are quantized or compressed and loaded in ways of their own.
    """
    try:
        if read_json(folder / "config.json", "Download the model again").get("quantization_config") is not None:
            return []
        if (folder / INDEX).is_file():
            index = read_json(folder / INDEX, "Download the model again")
            shards = sorted({folder / name for name in index["weight_map"].values()})
        else:
            shards = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
        found = {kind for shard in shards for _, kind, _ in _tensors(shard)}
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    if not found <= NAMED.keys() or any(shard.parent != folder for shard in shards):
        return []
    return shards if any(NAMED[kind].is_floating_point and NAMED[kind] != dtype for kind in found) else []


def _tensors(shard: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of all tensors of a file."""
    with safe_open(shard, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return [(name, each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()]


def _bytes_in(shards: Iterable[Path], dtype: torch.dtype) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shard in shards for _, _, shape in _tensors(shard))


def _convert(folder: Path, shards: Sequence[Path], target: Path, dtype: torch.dtype) -> None:
    """A copy of the folder with all floating tensors of `shards` in `dtype`, one of them in memory at a time."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja"):
            shutil.copyfile(path, target / path.name)
    for shard in shards:
        shapes = {name: shape for name, _, shape in _tensors(shard)}
        dtypes = {name: NAMED[kind] for name, kind, _ in _tensors(shard)}
        dtypes = {name: dtype if each.is_floating_point else each for name, each in dtypes.items()}
        with safe_open(shard, framework="pt") as file, (target / shard.name).open("wb") as out:
            out.write(header_of(file.metadata() or {}, shapes, dtypes))
            for name in shapes:
                out.write(data_of(file.get_tensor(name).to(dtypes[name])))


@contextmanager
def telling_of_space(place: str | Path) -> Iterator[None]:
    """What the system says of a write that failed, with what to do about it."""
    try:
        yield
    except OSError as error:
        elsewhere = ", or name another place by TMPDIR" if str(place) == tempfile.gettempdir() else ""
        raise OSError(
            f"cannot keep in a file what memory is not to hold: {error.strerror or error}. Free some space in {place} "
            f"and type the same command again{elsewhere}"
        ) from error


class Spool:
    """Tensors written one after the other into a file without a name, which is gone with the last of them."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="geocolor.")  # noqa: SIM115 - closed when nobody holds it

    def put(self, tensor: Tensor) -> "Spooled":
        place = self._file.seek(0, 2)
        with telling_of_space(tempfile.gettempdir()):
            self._file.write(data_of(tensor))
            self._file.flush()
        return Spooled(self, place, tuple(tensor.shape), tensor.dtype)

    def read(self, place: int, into: Tensor) -> None:
        self._file.seek(place)
        self._file.readinto(data_of(into))


@dataclass(frozen=True)
class Spooled:
    """Where a tensor lies in its file."""

    spool: Spool
    place: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The tensor on the CPU, anew each time."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.spool.read(self.place, tensor)
        return tensor


def put_in_files(
    parameters: Iterable[nn.Parameter], folder: Path, dtype: torch.dtype | None = None, *, written: bool = False
) -> None:
    """Let parameters lie in files of `folder` that have no names, gone with the last who uses them.

    With `dtype` those of floating dtypes are converted, one at a time. Changes of a parameter stay in memory, as with
    weights that transformers maps, or are `written` to its file. On other devices than the CPU, and where files that
    are open cannot be removed, nothing is put anywhere.
    """
    for parameter in parameters:
        held = parameter.detach()
        held = held if dtype is None or not held.is_floating_point() else held.to(dtype)
        parameter.data = in_file(held.contiguous(), folder, written) if mappable(parameter) else held


def made_in_memory(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that lie in no file, as far as the system tells."""
    files = _files_of(model.parameters())
    return [] if files is None else [each for each, file in files if file is None]


def unnamed_bytes(model: nn.Module) -> int:
    """Bytes on disk of the files without names in which parameters lie, as far as the system tells."""
    files = {file for _, file in _files_of(model.parameters()) or () if file is not None}
    return sum(file.size for file in files if file.deleted)


@dataclass(frozen=True)
class _File:
    """A file that is mapped: its device and inode, the bytes of it up to the last one that is mapped."""

    number: tuple[str, str]
    size: int
    deleted: bool


def _files_of(parameters: Iterable[nn.Parameter]) -> list[tuple[nn.Parameter, _File | None]] | None:
    """Every parameter with the file it lies in; None where the system does not tell."""
    try:
        lines = [line.split(maxsplit=5) for line in MAPS.read_text().splitlines()]
    except OSError:
        return None
    found: dict[tuple[str, str], _File] = {}
    spans: list[tuple[int, int, tuple[str, str]]] = []
    for span, _, offset, device, inode, *name in lines:
        if inode != "0":
            begin, end = (int(each, 16) for each in span.split("-"))
            number = (device, inode)
            size = max(int(offset, 16) + end - begin, found[number].size if number in found else 0)
            found[number] = _File(number, size, name[-1:] != [] and name[-1].endswith("(deleted)"))
            spans.append((begin, end, number))
    spans.sort()
    begins = [begin for begin, _, _ in spans]

    def file(parameter: nn.Parameter) -> _File | None:
        index = bisect_right(begins, parameter.data_ptr()) - 1
        return found[spans[index][2]] if index >= 0 and parameter.data_ptr() < spans[index][1] else None

    return [(each, file(each)) for each in parameters if not each.is_meta]


def copied(model: nn.Module, folder: Path | None, common: Iterable[Tensor] = ()) -> nn.Module:
    """A copy of a model, whose parameters lie in files of `folder` where one is given, as by `put_in_files`.

    Parameters in `common` are not copied: both models have them.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in common}
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter and parameter.is_contiguous()
        if folder is not None and plain and mappable(parameter) and id(parameter) not in memo:
            held = in_file(parameter.detach(), folder)
            memo[id(parameter)] = nn.Parameter(held, parameter.requires_grad)
    return copy.deepcopy(model, memo)


def converted(model: nn.Module, dtype: torch.dtype, folder: Path | None) -> nn.Module:
    """`model.to(dtype)`, in place; with a `folder` parameters of another floating dtype then lie in files there."""
    if folder is not None:
        put_in_files((each for each in model.parameters() if each.dtype != dtype), folder, dtype)
    return model.to(dtype)


def mappable(parameter: Tensor) -> bool:
    """Whether such a tensor can lie in a file."""
    return sys.platform != "win32" and parameter.device.type == "cpu" and parameter.numel() > 0


def let_go(weight: Tensor) -> None:
    """Have the system take back the pages of a weight that has been read from its file; nothing is lost."""
    if weight.device.type != "cpu" or sys.platform != "linux":
        return
    page, first = mmap.PAGESIZE, weight.data_ptr()
    start, end = -(-first // page) * page, (first + weight.nbytes) // page * page
    if end > start:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_PAGEOUT)


def in_file(tensor: Tensor, folder: Path, written: bool = False) -> Tensor:
    """A tensor like this contiguous one whose values lie in a file of `folder` without a name, gone with the tensor.

    Changes stay in memory, or are `written` to the file.
    """
    with telling_of_space(folder), tempfile.NamedTemporaryFile(prefix=".mapped.", dir=folder) as file:
        file.write(data_of(tensor))
        file.flush()
        try:
            storage = torch.UntypedStorage.from_file(file.name, written, tensor.nbytes)
        except RuntimeError as error:
            raise ValueError(
                f"cannot map a parameter from its file in {folder} ({error}): where the model has tens of thousands of "
                "them, a process needs more maps than vm.max_map_count allows; raise it, or leave out --memory"
            ) from error
    assert isinstance(storage, torch.UntypedStorage)
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())
