"""Problems as numpy's compressed archive: small and quick; nothing in it is ever unpickled."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from solvers.formats.document import from_document, to_document
from solvers.formats.tokens import FormatError
from solvers.problem import Problem


def read(path: Path) -> Problem:
    document: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            document = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(path, f"this is no npz archive that can be read: {error}") from None
    try:
        plain = json.loads(str(document.pop("plain", "")))
        if not isinstance(plain, dict):
            raise ValueError
    except ValueError:
        raise FormatError(path, "the archive has no text 'plain' that says what problem it holds") from None
    try:
        return from_document(document | plain)
    except ValueError as error:
        raise FormatError(path, str(error)) from None


def write(problem: Problem, path: Path) -> None:
    document = to_document(problem)
    arrays = {name: value for name, value in document.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in document.items() if name not in arrays}
    with path.open("wb") as file:  # given a name, numpy would append its own suffix
        np.savez_compressed(file, plain=np.array(json.dumps(plain)), allow_pickle=False, **arrays)
