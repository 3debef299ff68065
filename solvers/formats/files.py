"""Which format a file has, and the two functions that everybody calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from solvers.atomic import write_atomically
from solvers.formats import clique_partitioning, dimacs, graphml_file, json_file, npz_file, pmed
from solvers.formats.tokens import FormatError, read_lines
from solvers.problem import Problem


@dataclass(frozen=True)
class Format:
    """How files of one kind are named, read and written."""

    suffixes: tuple[str, ...]
    read: Callable[[Path], Problem]
    write: Callable[[Problem, Path], None]


FORMATS: dict[str, Format] = {
    "pmed": Format((".pmed",), pmed.read, pmed.write),
    "dimacs": Format((".col",), dimacs.read, dimacs.write),
    "clique_partitioning": Format((".cp",), clique_partitioning.read, clique_partitioning.write),
    "json": Format((".json",), json_file.read, json_file.write),
    "npz": Format((".npz",), npz_file.read, npz_file.write),
    "graphml": Format((".graphml", ".xml"), graphml_file.read, graphml_file.write),
}


def read(path: str | Path, format: str | None = None) -> Problem:
    """The problem in a file. The format is told by the suffix; of a ``.txt`` file by its first line.

    Raises:
        FormatError: a ``ValueError`` with file, line and column, or the key, and what is wrong there.
        OSError: where the file cannot be read.
        ValueError: for a suffix or a format that is not known.
    """
    path = Path(path)
    return _format(path, format).read(path)


def write(problem: Problem, path: str | Path, format: str | None = None) -> None:
    """Write a problem so that ``read`` gives it back exactly; the old file stays until the new one is whole.

    Raises:
        ValueError: where the format cannot hold this problem; the sentence names one that can.
    """
    path = Path(path)
    chosen = _format(path, format)
    write_atomically(path, lambda temporary: chosen.write(problem, temporary))


def _format(path: Path, name: str | None) -> Format:
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"there is no format {name!r}; the formats are {', '.join(FORMATS)}")
        return FORMATS[name]
    for known in FORMATS.values():
        if path.suffix.lower() in known.suffixes:
            return known
    if path.suffix.lower() == ".txt" and path.exists():
        first = list(itertools.islice(read_lines(path), 1))
        if not first:
            raise FormatError(path, "the file is empty", 1)
        return FORMATS["pmed" if len(first[0]) == 3 else "clique_partitioning"]
    suffixes = ", ".join(suffix for known in FORMATS.values() for suffix in known.suffixes)
    raise ValueError(f"{path}: the suffix tells the format, and must be one of {suffixes}; or name it as `format`")
