"""What a run has finished, kept in a folder beside its output, so that a killed run goes on and ends bit-equal.

Steps ask the journal for each piece of their work: one that is there is read instead of made. Small pieces (a
verdict, a plan once found) are lines of a ledger, large ones files of their own, and everything read is exactly
what was used when it was recorded. A process killed at any moment leaves whole pieces and at most half a line, which is
cut off.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import Tensor

from geocolor.atomic import refuse_occupied, write_atomically
from geocolor.json_files import parse_json, read_json
from geocolor.tensor_files import read_tensors, write_tensors

RUN_FILE, LEDGER_FILE, LOCK_FILE, WRITTEN_FILE, FAILED_FILE = "run.json", "ledger.jsonl", "lock", "written", "failed"
MEASURED = "measured"
"""Files whose names begin with this depend on the model and the data alone, and outlive a change of settings."""

SHARE = 20
"""A file that is written over and over takes at most one in so many seconds."""

T = TypeVar("T")


class Journal:
    """Pieces of a run's work by name; without a folder nothing is kept and every piece is made.

    `say` is told in a sentence where work of an earlier process is gone on with.
    """

    def __init__(self, folder: Path | None = None, say: Callable[[str], None] = lambda sentence: None) -> None:
        self.folder = folder
        self.say = say
        self._known: dict[str, Any] = {}
        self._ledger: io.FileIO | None = None
        if folder is not None:
            self._known, self._ledger = _open_ledger(folder / LEDGER_FILE)

    def value(self, key: str, make: Callable[[], T]) -> T:
        """The value of that key: what JSON can hold, given back as JSON gives it (floats to the last bit)."""
        if self._ledger is None:
            return make()
        if key not in self._known:
            text = json.dumps({"key": key, "value": make()})
            line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
            with self._told():
                if self._ledger.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # half a line, cut off by the next run
            self._known[key] = json.loads(text)["value"]
        found: T = self._known[key]
        return found

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of that name, on the CPU where they come from the journal."""
        part = self.part(f"{name}.safetensors")
        if part.path is not None and part.there:
            return read_tensors(part.path, name.partition("-")[0])[0]
        made = make()
        part.write(lambda path: write_tensors(path, name.partition("-")[0], made, {}))
        return made

    def part(self, name: str) -> Part:
        """A file that a step writes itself, over and over as it goes on."""
        return Part(self, None if self.folder is None else self.folder / name)

    @property
    def written(self) -> bool:
        """Whether this run has begun to put its result in place, so that what is there may be its own."""
        return self.folder is not None and (self.folder / WRITTEN_FILE).exists()

    def writes_now(self) -> None:
        """Note that the result is about to be put in place."""
        self.part(WRITTEN_FILE).write(lambda path: path.touch())

    def contents(self) -> str:
        """What is there, in a few words; empty where nothing is."""
        kinds = Counter(key.partition("/")[0] for key in self._known)
        return ", ".join(f"{count} × {kind}" for kind, count in kinds.items())

    def finish(self) -> None:
        """Remove the folder: the result is in place."""
        self.close()
        if self.folder is not None:
            _remove(self.folder)

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"cannot record what is finished in {self.folder}: {getattr(error, 'strerror', None) or error}. "
                "What was recorded before is kept: free some space there and type the same command again"
            ) from error


class Part:
    """One file of a journal."""

    def __init__(self, journal: Journal, path: Path | None) -> None:
        self.path = path
        self._journal = journal
        self._due = 0.0

    @property
    def there(self) -> bool:
        return self.path is not None and self.path.is_file()

    def write(self, save: Callable[[Path], object]) -> None:
        """Let `save` fill a temporary file, then put it in place."""
        if self.path is None:
            return
        started = time.monotonic()
        with self._journal._told():
            write_atomically(self.path, save)
        self._due = time.monotonic() + SHARE * (time.monotonic() - started)

    def write_now_and_then(self, save: Callable[[Path], object]) -> None:
        """`write`, where that would not take more than its share of the time."""
        if time.monotonic() >= self._due:
            self.write(save)


def journal_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def refuse_output(out: Path, overwrite: bool, *sources: str | None) -> None:
    """`refuse_occupied`, but for what a killed run of the same command has put there just before it ended.

    Raises ValueError where the folder is, or holds, one of the `sources` that are read: it will be replaced.
    """
    if not out.name:
        raise ValueError(f"{str(out)!r} has no name of its own: choose a folder in it")
    for source in sources:
        if source is not None and Path(source).exists():
            place = Path(source).resolve()
            if out.resolve() in (place, *place.parents):
                raise ValueError(f"{out} would replace {source}, which is read: choose another output folder")
    begun = (journal_folder(out) / WRITTEN_FILE).exists()
    own = begun and any((out / name).exists() for name in ("plan.json", "curvature.safetensors"))
    refuse_occupied(out, overwrite or own)


@contextmanager
def kept(
    out: Path,
    basis: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    say: Callable[[str], None],
) -> Iterator[Journal]:
    """The journal of the run that makes `out`, in `OUT.partial`; removed at the end, kept where something is raised.

    `basis` and `settings` are all that decides the result. An unfinished run with other settings leaves what was
    measured, the rest of it is discarded; one of another basis is refused with `ValueError`, or discarded where
    `overwrite`, or where it ended by itself with an error: then there is nothing to wait for.
    """
    folder = journal_folder(out)
    run = json.loads(json.dumps({"format_version": 1, "basis": dict(basis), "settings": dict(settings)}))
    with _locked(folder) as fresh:
        _clear_halves(folder)
        if not fresh:
            _clear_temporaries(folder, out)
            _keep_what_fits(folder, run, overwrite or (folder / FAILED_FILE).exists(), say)
            (folder / FAILED_FILE).unlink(missing_ok=True)
        if not (folder / RUN_FILE).exists():
            Journal(folder).part(RUN_FILE).write(lambda path: path.write_text(json.dumps(run, indent=1) + "\n"))
        journal = Journal(folder, say)
        try:
            if journal.contents():
                say(f"going on with the unfinished run in {folder} ({journal.contents()})")
            yield journal
        except BaseException as error:
            journal.close()
            failed = isinstance(error, Exception) and not isinstance(error, OSError)
            if failed:
                (folder / FAILED_FILE).touch()
            if {file.name for file in folder.iterdir() if file.stat().st_size} <= {RUN_FILE}:
                _remove(folder)
            else:
                which = "a command with other settings" if failed else "the same command"
                say(f"what was finished is kept in {folder}, and {which} goes on from there")
            raise
        journal.finish()


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder for this process; gives whether it is a new one."""
    fresh = not folder.exists()
    if not fresh and not (folder.is_dir() and _is_journal(folder)):
        raise FileExistsError(f"{folder} is no unfinished run: move it away, or choose another output folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # pragma: no cover - no such locks on this system
            pass
        except BlockingIOError as error:
            raise FileExistsError(
                f"another process is at work in {folder}: wait for it, or choose another output folder"
            ) from error
        except OSError as error:  # pragma: no cover - nor on this file system
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield fresh


def _is_journal(folder: Path) -> bool:
    """Whether a run began there, if only just."""
    names = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
    return RUN_FILE in names or names <= {LOCK_FILE, LEDGER_FILE}


def _keep_what_fits(folder: Path, run: Mapping[str, Any], discard: bool, say: Callable[[str], None]) -> None:
    """Discard what another run has left, as far as it cannot serve this one."""
    if not (folder / RUN_FILE).exists():
        return
    found = read_json(folder / RUN_FILE, f"Remove {folder} to begin anew")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("basis", "settings")):
        found = {"basis": {}, "settings": {}}
    other, unlike = difference(found["basis"], run["basis"]), difference(found["settings"], run["settings"])
    if other and not discard:
        raise ValueError(
            f"{folder} holds an unfinished run with {other}: repeat the command that it was made by, choose another "
            "output folder, or pass --overwrite to begin anew"
        )
    if other or unlike:
        said = f"the unfinished run in {folder} had {other or unlike}"
        say(f"{said}: discarded" if other else f"{said}: what it measured is gone on with, the rest is discarded")
        for file in folder.iterdir():  # that run's name stays until nothing of it could be taken for this one's
            if file.name not in (LOCK_FILE, RUN_FILE) and (other or not file.name.startswith(MEASURED)):
                file.unlink()
        (folder / RUN_FILE).unlink()


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first entry in which the two differ, in words; empty where none does."""
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            values = [side.get(key) for side in (found, wanted)]
            short = all(value is None or isinstance(value, str | int | float) for value in values)
            short = short and all(len(str(value)) < 40 for value in values)
            return f"{key} {values[0]}, not {values[1]}" if short else f"another {key}"
    return ""


def _open_ledger(path: Path) -> tuple[dict[str, Any], io.FileIO]:
    """Values by key, and the file to append to. Half a line at the end is cut off.

    Raises `ValueError` for a damaged line that is not the last.
    """
    known: dict[str, Any] = {}
    whole = 0
    if path.exists():
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            checksum, _, text = line[:-1].partition(b" ")
            if checksum != f"{zlib.crc32(text):08x}".encode():
                raise ValueError(f"{path}, line {number} is damaged: remove {path.parent} to begin anew")
            entry = parse_json(text, f"{path}, line {number}", f"Remove {path.parent} to begin anew")
            if not isinstance(entry, dict) or set(entry) != {"key", "value"} or not isinstance(entry["key"], str):
                raise ValueError(f"{path}, line {number} is no entry of a journal: remove {path.parent} to begin anew")
            known[entry["key"]] = entry["value"]
            whole += len(line)
    ledger = io.FileIO(path, "a")
    ledger.truncate(whole)
    return known, ledger


def _clear_temporaries(folder: Path, out: Path) -> None:
    """Remove what a killed process was just writing."""
    for file in folder.glob(".*"):
        file.unlink()
    _clear_halves(out)


def _clear_halves(folder: Path) -> None:
    """Remove what a process was killed over while it made the folder, or removed it."""
    for half in folder.parent.glob(f".{escape(folder.name)}.????????"):
        if half.is_dir():
            shutil.rmtree(half, ignore_errors=True)


def _remove(folder: Path) -> None:
    """As one step: what is left if that is killed has a name that begins with a dot."""
    with suppress(OSError):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        folder.rename(aside / "old")
        shutil.rmtree(aside, ignore_errors=True)
