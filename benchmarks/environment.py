"""What rows of results say of how they were made."""

import platform
from importlib.metadata import version
from typing import Any


def environment(seed: int) -> dict[str, Any]:
    """The seed, and the versions that numbers depend on."""
    return {
        "seed": seed,
        "python": platform.python_version(),
        "torch": version("torch"),
        "geocolor": version("geocolor"),
    }
