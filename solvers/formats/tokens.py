"""Words of a text file that know where they stand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class FormatError(ValueError):
    """A file that is not what it should be: which file, where in it, what is wrong."""

    def __init__(self, path: Path, sentence: str, line: int = 0, column: int = 0) -> None:
        place = f", line {line}" if line else ""
        place += f", column {column}" if column else ""
        super().__init__(f"{path}{place}: {' '.join(sentence.split())}")  # one line, whatever a file holds
        self.path, self.line, self.column = path, line, column


@dataclass(frozen=True)
class Word:
    """One word of a file, with its line and column, both counted from 1."""

    text: str
    path: Path
    line: int
    column: int

    def error(self, sentence: str) -> FormatError:
        return FormatError(self.path, sentence, self.line, self.column)

    def integer(self, name: str, least: int | None = None, most: int | None = None) -> int:
        """The word as a whole number between ``least`` and ``most``. Raises ``FormatError`` otherwise."""
        try:
            value = int(self.text)
        except ValueError:
            raise self.error(f"{name} must be a whole number, got {self.text[:40]!r}") from None
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"between {least} and {most}"
            raise self.error(f"{name} must be {bounds}, got {value}")
        return value

    def number(self, name: str) -> float:
        """The word as a finite number. Raises ``FormatError`` otherwise."""
        try:
            value = float(self.text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(f"{name} must be a finite number, got {self.text[:40]!r}")
        return value


def read_lines(path: Path) -> Iterator[list[Word]]:
    """The words of each line that has any. Raises ``FormatError`` where the file is no text."""
    try:
        with path.open(encoding="utf-8", errors="strict") as file:
            for at, line in enumerate(file, start=1):
                words = [Word(found.group(), path, at, found.start() + 1) for found in re.finditer(r"\S+", line)]
                if words:
                    yield words
    except UnicodeDecodeError as error:
        raise FormatError(
            path, f"this is not a text file: byte {error.start} is {error.object[error.start]:#x}"
        ) from None


def exactly(words: list[Word], number: int, what: str) -> list[Word]:
    """The words, when there are so many. Raises ``FormatError`` at the first one missing or left over."""
    if len(words) < number:
        last = words[-1]
        end = Word("", last.path, last.line, last.column + len(last.text))
        raise end.error(f"the line ends early: {what} takes {number} words, here are {len(words)}")
    if len(words) > number:
        raise words[number].error(f"{words[number].text[:40]!r} is too much: {what} takes {number} words")
    return words
