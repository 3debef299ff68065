"""The oracle over many plans: its table ranks by what is measured, its picture shows methods beside plans."""

import io
from pathlib import Path

from rich.console import Console

from benchmarks.candidates import draw, table

ROWS = [
    {"model": "m", "keep": 0.5, "plan": plan, "predicted": said, "one shot": before, "refined": after}
    for plan, said, before, after in (
        ("greedy, p=1", 1.0, 2.0, 0.71),
        ("private, p=1", 2.0, 3.0, 0.70),
        ("random 3", 4.0, 5.0, 0.79),
    )
]
METHODS = [
    {"model": "m", "keep": 0.5, "method": method, "stage": stage, "damage": damage}
    for method, damages in (("geocolor", (2.0, 0.70)), ("svd-llm", (3.5, 0.80)))
    for stage, damage in zip(("one shot", "refined"), damages, strict=True)
]


def test_the_table_names_the_plan_that_ends_best() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(ROWS))
    text = console.export_text()
    for expected in ("private, p=1", "0.7 – 0.79", "2 – 5", "0.50"):
        assert expected in text, text


def test_the_picture_shows_methods_that_are_there_before_and_after(tmp_path: Path) -> None:
    rows = [row | {"model": "stories260K"} for row in ROWS]
    methods = [row | {"model": "stories260K"} for row in METHODS]
    draw(rows, methods, tmp_path / "candidates.png")
    assert (tmp_path / "candidates.png").read_bytes().startswith(b"\x89PNG")
