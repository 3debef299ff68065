"""The embedded model: a small language model of Python source that this project trained (benchmarks/embedded)."""

from pathlib import Path

#: Folder in transformers format.
MODEL = Path(__file__).parent / "model"
