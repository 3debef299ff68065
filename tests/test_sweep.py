"""A sweep has one row for every cell, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from geocolor.settings import Settings
from geocolor.sweep import TRIALS, Cell, Row, digest, sweep
from geocolor.sweep_grid import absolute, grid, run_sweep

CELLS: list[Cell] = [{"number": number} for number in range(5)]


def results(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def squared(cell: Cell) -> Row:
    return {"number": cell["number"], "square": cell["number"] ** 2}


def test_every_cell_has_one_row_in_the_order_of_the_grid(tmp_path: Path) -> None:
    said: list[str] = []
    rows = sweep([*CELLS, CELLS[0]], squared, tmp_path, say=said.append)
    assert rows == results(tmp_path) == [squared(cell) for cell in CELLS]
    assert said[-1] == "5 of 5: done"


def test_a_sweep_goes_on_where_it_was_stopped_and_does_nothing_twice(tmp_path: Path) -> None:
    calls: list[int] = []

    def stopped(cell: Cell) -> Row:
        calls.append(cell["number"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return squared(cell)

    with pytest.raises(KeyboardInterrupt):
        sweep(CELLS, stopped, tmp_path)
    assert results(tmp_path) == [squared(cell) for cell in CELLS[:2]]
    assert sweep(CELLS, stopped, tmp_path) == [squared(cell) for cell in CELLS]
    assert Counter(calls) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1}
    sweep(CELLS, stopped, tmp_path)
    assert len(calls) == 6


def test_a_process_killed_in_the_middle_leaves_whole_rows_and_the_next_one_completes_them(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom geocolor.sweep import sweep\n"
        "def work(cell):\n    (folder / 'begun').open('a').write(f\"{cell['number']}\\n\")\n    time.sleep(0.2)\n"
        "    return {'number': cell['number']}\n"
        "folder = Path(sys.argv[1])\nsweep([{'number': n} for n in range(200)], work, folder)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment)
    begun = tmp_path / "begun"
    while process.poll() is None and (not begun.exists() or len(begun.read_text().split()) < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = results(tmp_path)
    assert 1 <= len(done) < 200
    cells: list[Cell] = [{"number": number} for number in range(len(done) + 2)]
    rows = sweep(cells, lambda cell: {"number": cell["number"]}, tmp_path)
    assert [row["number"] for row in rows] == list(range(len(cells)))
    assert results(tmp_path) == rows


def test_a_cell_that_said_no_is_a_row_and_is_asked_again(tmp_path: Path) -> None:
    answers: list[Row] = [{"error": "keep cannot be reached"}, {"kept": 0.5}]
    assert sweep(CELLS[:1], lambda _: answers.pop(0), tmp_path) == [{"error": "keep cannot be reached"}]
    assert sweep(CELLS[:1], lambda _: answers.pop(0), tmp_path) == results(tmp_path) == [{"kept": 0.5}]


def test_a_larger_grid_keeps_the_rows_there_are(tmp_path: Path) -> None:
    sweep(CELLS[:2], squared, tmp_path)
    sweep(CELLS[1:3], squared, tmp_path)
    assert [row["number"] for row in results(tmp_path)] == [1, 2, 0]


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    sweep(CELLS[:1], squared, tmp_path)
    file = tmp_path / "cells" / f"{digest(CELLS[0])}.json"
    for damaged in ("[]", "{", file.read_text().replace('"square": 0', '"square": 1')):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=file.name):
            sweep(CELLS[:1], squared, tmp_path)


def test_the_digest_is_of_what_is_asked_and_not_of_its_order() -> None:
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


# --- the grid


def test_published_methods_have_one_cell_whatever_the_solvers() -> None:
    cells = grid({"model": "m"}, Settings(), (0.8, 0.6), ("greedy", "local_search"), ("geocolor", "svd-llm"))
    chosen = [(cell["settings"]["preset"], cell["settings"]["keep"], cell["settings"]["solver"]) for cell in cells]
    assert chosen == [
        ("geocolor", 0.8, "greedy"),
        ("geocolor", 0.8, "local_search"),
        ("geocolor", 0.6, "greedy"),
        ("geocolor", 0.6, "local_search"),
        ("svd-llm", 0.8, "auto"),
        ("svd-llm", 0.6, "auto"),
    ]


@pytest.mark.parametrize(
    ("keep", "solver", "preset", "sentence"),
    [(1.2, "auto", "geocolor", "--keep"), (0.5, "magic", "geocolor", "magic"), (0.5, "auto", "magic", "magic")],
)
def test_cells_that_no_model_can_meet_are_refused_before_anything_runs(
    keep: float, solver: str, preset: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        grid({}, Settings(), (0.8, keep), (solver,), (preset,))


def test_a_grid_without_a_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="--keep names nothing, so the sweep has no cell"):
        grid({}, Settings(), (), ("auto",), ("svd",))


def test_names_of_files_become_absolute_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").touch()
    assert absolute("text") == str(tmp_path / "text")
    assert absolute("module:function") == "module:function"
    assert absolute(None) is None


COMMON: dict[str, Any] = {
    "model": "tests.test_opening:sentences",
    "data": "tests.test_opening:batches",
    "test_data": None,
    "sequence": 8,
    "batch_size": 8,
    "samples": None,
    "refine": 0,
}


def test_cells_are_compressed_and_a_budget_out_of_reach_is_a_row(tmp_path: Path) -> None:
    console = Console(record=True, width=150)
    settings = Settings(rounds=0, time_limit=5)
    cells = grid(COMMON, settings, (0.6, 0.0001), ("private",), ("geocolor",)) + grid(
        COMMON, Settings(), (0.6,), ("auto",), ("svd",)
    )
    report = run_sweep(console, cells, tmp_path, None)
    searched, unreachable, svd = report["rows"]
    assert searched["kept"] <= 0.6
    assert svd["kept"] <= 0.6
    assert searched["solver_asked"] == "private"
    assert "cannot be reached" in unreachable["error"]
    assert results(tmp_path) == json.loads(json.dumps(report["rows"]))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert "svd" in console.export_text()


def test_a_sweep_of_which_no_cell_runs_is_an_error_and_has_its_rows(tmp_path: Path) -> None:
    cells = grid(COMMON, Settings(), (0.0001,), ("auto",), ("svd",))
    with pytest.raises(ValueError, match=r"no cell of the sweep could be run.*ranks of 1 keep"):
        run_sweep(Console(quiet=True), cells, tmp_path / "sweep", None)
    assert [row["preset"] for row in results(tmp_path / "sweep")] == ["svd"]
    with pytest.raises(FileExistsError, match=r"results\.jsonl is a file, not a folder"):
        run_sweep(Console(quiet=True), cells, tmp_path / "sweep" / "results.jsonl", None)


def test_a_dry_run_foresees_the_cells_that_are_left_and_writes_nothing(tmp_path: Path) -> None:
    cells = grid(COMMON, Settings(), (0.6, 0.8), ("auto",), ("svd", "svd-llm"))
    sweep(cells[:1], lambda _: {"kept": 0.6}, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    expected = run_sweep(Console(quiet=True), cells, tmp_path, None, dry_run=True)
    assert list(expected["seconds"]) == ["1 × svd", "2 × svd-llm"]
    assert 0 < expected["total_seconds"] == sum(expected["seconds"].values())
    assert expected["memory_bytes"] > expected["disk_bytes"] > 0
    assert sorted(tmp_path.rglob("*")) == before


# --- machines


def test_without_ray_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'geocolor\[ray\]'"):
        sweep(CELLS, squared, tmp_path, ray="local")


def test_a_node_that_is_killed_in_the_middle_loses_and_doubles_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    begun = tmp_path / "begun"
    begun.mkdir()

    def work(cell: Cell) -> Row:
        (begun / f"{cell['number']}-{os.getpid()}").touch()
        if cell["number"] < 0:
            os._exit(9)
        time.sleep(0.5)
        return {"number": cell["number"]}

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
        cells: list[Cell] = [{"number": number} for number in range(6)]
        killed: list[Any] = []

        def kill_one(_: str) -> None:
            if not killed:
                killed.append(nodes[0])
                cluster.remove_node(nodes[0], allow_graceful=False)

        rows = sweep(cells, work, tmp_path / "sweep", ray=cluster.address, say=kill_one)
        assert killed
        assert rows == results(tmp_path / "sweep") == [{"number": number} for number in range(6)]
        assert len(list((tmp_path / "sweep" / "cells").iterdir())) == 6
        assert len({file.name.split("-")[0] for file in begun.iterdir()}) == 6
        assert sweep(cells, work, tmp_path / "sweep", ray=cluster.address) == rows, "nothing is left to do"
        deadly, good = sweep([{"number": -1}, {"number": 7}], work, tmp_path / "deadly", ray=cluster.address)
        assert f"ended {TRIALS + 1} times" in deadly["error"]
        assert good == {"number": 7}
        assert len(list(begun.glob("-1-*"))) == TRIALS + 1
    finally:
        cluster.shutdown()
