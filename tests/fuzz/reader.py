"""A reader of files from strangers, with a good file: what fuzzers change, and what must come of it."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Json = Any


@dataclass(frozen=True)
class Reader:
    """`write` makes a good file (or folder) at a path; `read` reads it into something that `==` compares.

    `document` is the file's content as JSON, and `sign` writes such a content, changed or not, with checksums that fit
    again, as a stranger would who means harm. `files` are the names of the files in a folder, empty where the path is
    the file itself. What is not `checked` has no checksums: other bytes may give another value. A refusal names the
    file, or at least the folder where not `named`.
    """

    name: str
    write: Callable[[Path], object] = field(repr=False)
    read: Callable[[Path], object] = field(repr=False)
    document: Callable[[Path], Json] = field(repr=False)
    sign: Callable[[Path, Json], object] = field(repr=False)
    files: tuple[str, ...] = ()
    suffix: str = ""
    checked: bool = True
    named: bool = True

    def place(self, folder: Path) -> Path:
        return folder / f"file{self.suffix}"

    def accepts(self, told: str | None, name: str, path: Path, read: object, good: object) -> bool:
        """Whether this may come of a change of the file `name`: the good value, or a sentence that names the file."""
        if told is not None:
            return str(path / name if name and self.named else path) in told and "\n" not in told.strip()
        return not self.checked or read == good


def good(reader: Reader, path: Path) -> tuple[dict[str, bytes], object]:
    """Write a good file or folder: the bytes of its files by name ("" for the path itself), and what is read of it."""
    with quietly():
        reader.write(path)
    names = reader.files or ("",)
    return {name: (path / name if name else path).read_bytes() for name in names}, reader.read(path)


def sentence(reader: Reader, path: Path) -> tuple[str | None, object]:
    """None and what was read, or the sentence of the refusal; every other exception goes through."""
    try:
        with quietly():
            return None, reader.read(path)
    except (ValueError, FileNotFoundError) as error:
        return str(error), None


def values_of(thing: object) -> object:
    """Nested tuples of plain values; tensors as their bytes."""
    if isinstance(thing, Tensor):
        return str(thing.dtype), tuple(thing.shape), thing.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(thing, nn.Module):
        return values_of(thing.state_dict()), thing.geocolor_plan.model_dump_json()  # type: ignore[operator,union-attr]
    if isinstance(thing, Mapping):
        return tuple((key, values_of(value)) for key, value in thing.items())
    if isinstance(thing, list | tuple):
        return tuple(map(values_of, thing))
    return thing


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
