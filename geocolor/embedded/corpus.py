"""The text of Python's own standard library, split by module name: every machine that runs us has it."""

import hashlib
import sysconfig
from pathlib import Path
from typing import Literal

Split = Literal["train", "calibration", "test"]

#: Left out: test suites (some distributions drop them), generated tables, and files that differ per machine.
_EXCLUDED_PARTS = {"test", "tests", "idlelib", "idle_test", "lib2to3", "encodings", "pydoc_data", "site-packages"}
_EXCLUDED_PREFIXES = ("_sysconfigdata", "config-", "lib-dynload", "__phello__")


def split_of(module: str) -> Split:
    """The part a module belongs to: two tenths test, one tenth calibration, the rest train, by SHA-256 of its name.

    The name alone decides, so a module that was held out in training is held out on every Python version.
    """
    bucket = hashlib.sha256(module.encode()).digest()[0] % 10
    return "test" if bucket < 2 else "calibration" if bucket == 2 else "train"


def modules() -> dict[str, Path]:
    """Dotted name and source file of every standard-library module in the corpus, in the order of names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _EXCLUDED_PARTS.intersection(parts) or any(part.startswith(_EXCLUDED_PREFIXES) for part in parts):
            continue
        found[".".join(part for part in parts if part != "__init__")] = path
    return dict(sorted(found.items()))


def corpus(split: Split) -> bytes:
    """Source of all modules of one part, each followed by a NUL byte (the model's end-of-text).

    Raises `FileNotFoundError` where the interpreter carries no sources of its standard library.
    """
    texts = [path.read_bytes() for name, path in modules().items() if split_of(name) == split]
    if not texts:
        root = sysconfig.get_paths()["stdlib"]
        raise FileNotFoundError(
            f"no standard-library sources below {root}: this Python ships without them; "
            "pass a text of your own with --data and --test-data"
        )
    return b"".join(text.replace(b"\r\n", b"\n") + b"\0" for text in texts)
