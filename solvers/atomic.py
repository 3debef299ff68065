"""A file that is either the old one or the new one, never half of either."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary sibling of ``path``, flush it to disk, then rename it onto ``path``.

    A killed run, a full disk or an exception in ``write`` leaves ``path`` as it was and no temporary behind (a kill may
    leave one, its name begins with a dot). Raises ``OSError`` with a sentence where the folder cannot be written.
    """
    path = Path(path)
    refuse_folder(path)
    folder = writable_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=folder)
    except (FileNotFoundError, PermissionError) as error:
        raise type(error)(f"cannot write {path}: nothing can be made in {folder}; choose another place") from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        flush(temporary)
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_folder(path: Path) -> None:
    """Raise IsADirectoryError where a folder lies at the place of a file."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file: choose another name")


def writable_folder(folder: Path) -> Path:
    """The folder, made where it is missing. Raises ``OSError`` with a sentence where nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"cannot create the folder {folder}: {error.strerror}; choose another place") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write in {folder}: choose another output folder")
    return folder


def flush(path: Path) -> None:
    """Have the system put the file's contents on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def umask() -> int:
    """The process's mask of permissions, which a temporary file does not heed by itself."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
