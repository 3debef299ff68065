"""Files and folders that are either the old ones or the new ones, never half of either."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary sibling of `path`, flush it to disk, then rename it onto `path`.

    A killed run, a full disk or an exception in `write` leaves `path` as it was and no temporary behind (a kill may
    leave one, its name begins with a dot). Raises `OSError` with a sentence where the folder cannot be written.
    """
    path = Path(path)
    folder = _writable_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_directory(target: Path, write: Callable[[Path], object], overwrite: bool = False) -> None:
    """Let `write` fill a temporary sibling folder, then rename it onto `target`.

    A `target` that already holds something is refused with `FileExistsError`, before any work, unless `overwrite`;
    then it is put aside first and removed only once the new one stands in its place.
    """
    target = Path(target)
    refuse_occupied(target, overwrite)
    parent = _writable_folder(target.absolute().parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    try:
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())
                _flush(file)
        temporary.chmod(0o777 & ~_umask())
        if target.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=parent))
            target.rename(aside / "old")
            try:
                temporary.rename(target)
            except OSError:
                (aside / "old").rename(target)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_occupied(target: Path, overwrite: bool = False) -> None:
    """Raise where `target` cannot become an output folder: a file, a folder that holds something, a read-only place.

    Call it before long work, so that the answer does not come at the end of it.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file, not a folder: choose another output folder")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{target} already holds something: choose another output folder, or pass overwrite (--overwrite)"
        )
    check_place(target)


def check_place(target: Path) -> None:
    """Raise PermissionError or NotADirectoryError where nothing can be made at `target`.

    A folder is made there for a moment: permissions alone do not tell (root may write in /proc, /proc disagrees).
    """
    place = Path(target).absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, so {target} cannot be made below it: choose another place")
    try:
        with tempfile.TemporaryDirectory(prefix=".geocolor.", dir=place):
            pass
    except OSError as error:
        raise PermissionError(f"cannot write {target}: nothing can be made in {place}; choose another place") from error


def _writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"cannot create the folder {folder}: {error.strerror}; choose another place") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write in {folder}: choose another output folder")
    return folder


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
