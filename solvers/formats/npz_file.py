"""Problems as numpy's compressed archive: small and quick; nothing in it is ever unpickled."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from solvers.formats.document import from_document, to_document
from solvers.formats.tokens import FormatError
from solvers.problem import Problem

MOST_BYTES = 1 << 32

UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    NotImplementedError,
    RuntimeError,  # an entry that asks for a password
    zipfile.BadZipFile,
    zlib.error,
)


def read(path: Path) -> Problem:
    document: dict[str, Any] = {}
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            document = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise FormatError(path, f"this is no npz archive that can be read: {error}") from None
    try:
        plain = json.loads(str(document.pop("plain", "")))
        if not isinstance(plain, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise FormatError(path, "the archive has no text 'plain' that says what problem it holds") from None
    try:
        return from_document(document | plain)
    except ValueError as error:
        raise FormatError(path, str(error)) from None


def _check_sizes(path: Path) -> None:
    """Raise ``ValueError`` where an array is larger than what is there, or all of them than may be, before any is read.

    A few bytes can announce an array of any size, and compressed zeros take next to none.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > MOST_BYTES:
            raise ValueError(f"its arrays take more than the {MOST_BYTES:,} bytes that are read")
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in header:
                    raise ValueError(f"{entry.filename!r:.80} is of a version of npy that no problem needs")
                shape, _, dtype = header[version](file)
            if math.prod(shape) * dtype.itemsize > entry.file_size or min(shape, default=0) < 0:
                raise ValueError(f"{entry.filename!r:.80} announces {shape} numbers, but the archive has fewer")


def write(problem: Problem, path: Path) -> None:
    document = to_document(problem)
    arrays = {name: value for name, value in document.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in document.items() if name not in arrays}
    with path.open("wb") as file:  # given a name, numpy would append its own suffix
        np.savez_compressed(file, plain=np.array(json.dumps(plain)), allow_pickle=False, **arrays)
