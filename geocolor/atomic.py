"""Files and folders that are either the old ones or the new ones, never half of either."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from solvers.atomic import flush, umask, writable_folder, write_atomically

__all__ = ["check_place", "refuse_occupied", "replace_directory", "write_atomically"]


def replace_directory(target: Path, write: Callable[[Path], object], overwrite: bool = False) -> None:
    """Let `write` fill a temporary sibling folder, then rename it onto `target`.

    A `target` that already holds something is refused with `FileExistsError`, before any work, unless `overwrite`;
    then it is put aside first and removed only once the new one stands in its place.
    """
    target = Path(target)
    refuse_occupied(target, overwrite)
    parent = writable_folder(target.absolute().parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    try:
        write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~umask())
                flush(file)
        temporary.chmod(0o777 & ~umask())
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
