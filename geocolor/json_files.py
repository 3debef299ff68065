"""JSON from strangers: decoded within limits, or refused in a sentence that names the file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 28
MOST_DEPTH = 40


def read_json(file: Path, remedy: str) -> Any:
    """The document in `file`; `remedy` says what to do where there is none, "Write the plan again".

    Raises `FileNotFoundError` as `open` does, and `ValueError` for anything that is not whole JSON, is larger than
    256 MiB or nested more than 40 deep.
    """
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{file} holds {size:,} bytes, more than the {MOST_BYTES:,} that are read. {remedy}")
    return parse_json(file.read_bytes(), str(file), remedy)


def parse_json(text: str | bytes, source: str, remedy: str) -> Any:
    """The document in `text`; `source` names it in errors."""
    try:
        document = json.loads(text, object_pairs_hook=_each_once)
        deep = _deeper_than(document, MOST_DEPTH)
    except RecursionError:
        deep = True
    except ValueError as error:  # also numbers of thousands of digits, and text that is not UTF-8
        raise ValueError(f"{source} is not whole JSON ({error}): truncated? {remedy}") from error
    if deep:
        raise ValueError(f"{source} is nested more than {MOST_DEPTH} deep, which nothing here writes. {remedy}")
    return document


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


def _deeper_than(document: Any, most: int) -> bool:
    level = [document]
    for _ in range(most + 1):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True
