"""Problems as JSON: readable, and exact, for a float is written in as many digits as it takes; ``"inf"`` is a text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from solvers.formats.document import from_document, to_document
from solvers.formats.tokens import FormatError
from solvers.problem import Problem


def read(path: Path) -> Problem:
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        raise FormatError(path, f"this is no JSON: {error.msg}", error.lineno, error.colno) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, numbers of thousands of digits
        raise FormatError(path, f"this is no JSON that can be read: {error}") from None
    if not isinstance(document, dict):
        raise FormatError(path, f"a problem is a JSON object, not a {type(document).__name__}", 1, 1)
    try:
        return from_document(document)
    except ValueError as error:
        raise FormatError(path, str(error)) from None


def write(problem: Problem, path: Path) -> None:
    fields = {name: _plain(value) for name, value in to_document(problem).items()}
    lines = [f"{json.dumps(name)}: {_rows(value)}" for name, value in fields.items()]
    path.write_text("{" + ",\n ".join(lines) + "}\n", encoding="utf-8")


class _ConstantError(ValueError):
    pass


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise ValueError(f"{twice!r:.80} is there twice")
    return found


def _refuse(constant: str) -> float:
    raise _ConstantError(f'{constant} is not JSON; infinity is written "inf", and a cost cannot be NaN')


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a label must be a text or a whole number to be written, got {value!r:.60}")


def _rows(value: Any) -> str:
    """Matrices a row a line."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[" + ",\n  ".join(json.dumps(row) for row in value) + "]"
    return json.dumps(value)
