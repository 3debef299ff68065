"""What a command is expected to take, against what it takes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from geocolor import demo
from geocolor.curvature import Curvature
from geocolor.forecast import (
    Forecast,
    forecast,
    forecast_applying,
    forecast_measuring,
    forecast_refinement,
    lacking,
    typical,
)
from geocolor.forecast_runs import LATENCY_PASSES, forecast_evaluation, forecast_race
from geocolor.layers import Layer
from geocolor.mapped import put_in_files, unnamed_bytes
from geocolor.pace import positions_in
from geocolor.pipeline import Pipeline
from geocolor.refinement import RefineSettings
from geocolor.settings import Settings
from geocolor.tables import forecast_table

Batches = list[tuple[Tensor, Tensor]]

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import torch
from torch import nn
from geocolor.forecast import forecast
from geocolor.journal import kept
from geocolor.memory import peak
from geocolor.compression import compress_into
from geocolor.pipeline import Pipeline
from geocolor.settings import Settings

torch.manual_seed(0)
model = nn.Sequential(*(part for _ in range(5) for part in (nn.Linear(320, 320), nn.Tanh())), nn.Linear(320, 4)).eval()
batches = [(torch.randn(512, 320), torch.randint(4, (512,))) for _ in range(4)]
settings = Settings(keep=0.8, solver="greedy", aggregate=1.0, rounds=1)
expected = forecast(model, batches, settings, test=batches)
out, over = Path(sys.argv[1]), threading.Event()
most = 0

def watch():
    global most
    while not over.wait(0.01):
        sizes = []
        for file in out.parent.rglob("*"):
            try:
                sizes.append(file.stat().st_size if file.is_file() else 0)
            except OSError:
                pass
        most = max(most, sum(sizes))

thread = threading.Thread(target=watch)
thread.start()
with kept(out, {}, {}, say=print) as journal:
    compress_into(out, Pipeline(model, batches, settings, journal=journal), batches)
over.set()
thread.join()
print(json.dumps({"expected": expected.report(), "memory": peak(), "disk": most}))  # not that of who started us
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are counted in kilobytes on Linux")
def test_memory_and_disk_are_foreseen_within_a_factor_of_one_and_a_half(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for what in ("memory", "disk"):
        assert 1 / 1.5 < found["expected"][f"{what}_bytes"] / found[what] < 1.5, found


def test_every_step_of_a_run_is_foreseen(network: nn.Module, batches: Batches) -> None:
    settings, refinement = Settings(keep=0.5, time_limit=7.0), RefineSettings(steps=10)
    expected = forecast(network, batches, settings, test=batches, refinement=refinement)
    steps = [
        "measure",
        "calibrate",
        "price",
        "plan",
        "verify",
        "apply",
        "update",
        "refine",
        "save and load",
        "evaluate",
    ]
    assert list(expected.seconds) == steps
    assert all(seconds > 0 for seconds in expected.seconds.values())
    assert expected.search <= 7.0
    assert expected.total == pytest.approx(sum(expected.seconds.values()))
    run = Pipeline(network, batches, settings)
    prepared = run.prepared()
    smaller = run.carried_out(prepared)
    assert set(run.clock.seconds) <= set(steps)
    assert isinstance(prepared.curvature, Curvature)
    applied = forecast_applying(network, prepared.plan, prepared.curvature)
    assert list(applied.seconds) == ["apply", "save"]
    assert applied.memory > 0
    again = forecast_refinement(smaller, network, batches, refinement, batches)
    assert list(again.seconds) == ["refine", "save and load", "evaluate"]


def test_measuring_alone_is_foreseen(network: nn.Module, batches: Batches) -> None:
    expected = forecast_measuring(network, batches, Settings(keep=0.8))
    assert list(expected.seconds) == ["measure", "calibrate", "price"]
    assert expected.search == 0
    assert forecast_measuring(network, batches, Settings(keep=0.8), pairs=False).disk < expected.disk


def test_evaluating_is_foreseen_in_proportion_to_the_data(network: nn.Module, batches: Batches) -> None:
    ticks = iter(range(10**6))
    # the clock is asked before, between and after a pass and what is computed of it
    alone = forecast_evaluation(network, batches, timer=lambda: float(next(ticks)))
    assert alone.seconds == {"evaluate": LATENCY_PASSES + 2.0 * len(batches)}
    both = forecast_evaluation(network, batches * 2, reference=network, timer=lambda: float(next(ticks)))
    assert both.seconds["evaluate"] == LATENCY_PASSES + 4.0 * len(batches)
    assert alone.memory > 0
    assert alone.disk == 0


def test_a_race_is_foreseen_with_all_of_its_time_limits(network: nn.Module, batches: Batches) -> None:
    settings = Settings(keep=0.8, time_limit=5.0, rounds=1)
    for form in ("group", "medoid", "pairwise"):
        expected = forecast_race(network, batches, settings, form, 6)
        assert list(expected.seconds) == ["measure", "calibrate", "price", "race"]
        assert expected.search == 30.0 < expected.seconds["race"]


def test_the_demo_is_foreseen_with_the_writing_at_its_end(
    network: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(demo, "sequences", lambda split, count: batches)
    monkeypatch.setattr(demo.data, "load_model", lambda source: (network, None))
    monkeypatch.setattr(demo, "complete", lambda model, tokenizer, prompt, tokens: written.append(tokens))
    expected = demo.forecast_demo(0.8)
    assert [*expected.seconds][-2:] == ["evaluate", "write"]
    assert expected.disk < forecast(network, batches, demo.settings_for(0.8), test=batches).disk, (
        "no statistics lie there"
    )
    assert written == [1, demo.TOKENS // 10]


def test_windows_are_measured_one_by_one(network: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(layers: list[Layer], *_: object) -> list[tuple[list[Layer], dict[str, int]]]:
        return [([layer], {}) for layer in layers]

    monkeypatch.setattr("geocolor.pace.windows", one_by_one)
    ticks = iter(range(10**6))
    bounded = Settings(keep=0.8, memory=10**12)
    whole = forecast(network, batches, Settings(keep=0.8), timer=lambda: next(ticks))
    windows = forecast(network, batches, bounded, timer=lambda: next(ticks))
    assert windows.seconds["measure"] == pytest.approx(6 * whole.seconds["measure"])
    assert windows.seconds["price"] == whole.seconds["price"]


def test_bounded_memory_is_foreseen_and_a_smaller_model_beside_the_dense_one(
    network: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**6))

    def foreseen(**changed: Any) -> int:
        return forecast_measuring(network, batches, Settings(keep=0.8, **changed), timer=lambda: next(ticks)).memory

    free = foreseen()
    assert foreseen(memory=10**12) <= free + 10**6  # what the process holds is part of it
    monkeypatch.setattr("geocolor.forecast.POINT", 10**6)  # as if there were very many classes
    assert foreseen() > free + 10**8
    assert foreseen(memory=free + 10**6) <= free + 10**6


@pytest.mark.skipif(sys.platform != "linux", reason="what lies in files is told as Linux does")
def test_weights_put_in_files_are_part_of_the_disk_that_is_expected(
    network: nn.Module, batches: Batches, tmp_path: Path
) -> None:
    settings = Settings(keep=0.6, memory=10**12)
    before = forecast(network, batches, settings)
    put_in_files(network.parameters(), tmp_path)
    after, carried_out = (forecast(network, batches, settings, test=test) for test in (None, batches))
    size = sum(each.nbytes for each in network.parameters())
    assert before.written == 0
    assert size <= after.written == unnamed_bytes(network)
    assert after.disk == before.disk + after.written
    unbounded = forecast(network, batches, Settings(keep=0.6), test=batches)
    assert carried_out.disk > unbounded.disk + 2 * 0.6 * size
    full = Forecast({}, 0.0, memory=1, disk=10**18, written=10**18 - 5)
    assert lacking(full, tmp_path / "out") == []


def test_of_too_many_pairs_only_near_ones_are_foreseen(
    network: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**6))
    every = forecast_measuring(network, batches, Settings(keep=0.8), timer=lambda: next(ticks))
    monkeypatch.setattr("geocolor.pace.MOST_PAIRS", 3)
    monkeypatch.setattr("geocolor.graph.NEAREST", 1)
    near = forecast_measuring(network, batches, Settings(keep=0.8), timer=lambda: next(ticks))
    assert near.seconds["price"] < every.seconds["price"]
    assert near.seconds["measure"] == every.seconds["measure"]


def test_a_preset_is_foreseen_without_search(network: nn.Module, batches: Batches) -> None:
    expected = forecast(network, batches, Settings(keep=0.5, preset="svd-llm"))
    assert list(expected.seconds) == ["measure", "price", "plan", "save"]
    assert expected.search == 0
    with pytest.raises(ValueError, match="geo-sharing takes cannot be foreseen"):
        forecast(network, batches, Settings(keep=0.5, preset="geo-sharing"))


def test_a_forecast_leaves_the_model_and_the_random_numbers_alone(network: nn.Module, batches: Batches) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    forecast(network, batches, Settings(keep=0.8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_more_data_takes_longer_to_measure(network: nn.Module, batches: Batches) -> None:
    ticks = iter(range(10**6))
    once = forecast(network, batches, Settings(keep=0.8), timer=lambda: next(ticks))
    thrice = forecast(network, batches * 3, Settings(keep=0.8), timer=lambda: next(ticks))
    assert thrice.seconds["measure"] == pytest.approx(3 * once.seconds["measure"])
    assert thrice.seconds["price"] == once.seconds["price"]


def test_many_draws_are_foreseen_from_few(network: nn.Module, batches: Batches) -> None:
    def seconds(draws: int) -> float:
        settings = Settings(keep=0.8, draws=draws, solver="private", rounds=0)
        return forecast_measuring(network, batches, settings, pairs=False, timer=time.process_time).seconds["measure"]

    few = seconds(4)
    assert 50 * few < seconds(4_000) < 20_000 * few, "a thousand times as many, which nobody waits for"


def test_what_the_machine_lacks_is_told(tmp_path: Path) -> None:
    assert lacking(Forecast({}, 0.0, memory=1, disk=1), tmp_path / "a" / "out") == []
    disk, memory = lacking(Forecast({}, 0.0, memory=10**18, disk=10**18), tmp_path / "a" / "out")
    assert f"free in {tmp_path}: free some, or choose another output folder" in disk
    assert "bound the measuring with --memory" in memory


def test_the_batch_that_is_timed_is_of_the_usual_size() -> None:
    batches = [torch.zeros(1, 2), torch.zeros(4, 10), torch.zeros(3, 20), {"input_ids": torch.zeros(2, 17)}]
    assert positions_in(batches) == 2 + 40 + 60 + 34
    assert typical(batches) is batches[3]


def test_the_table_names_time_memory_and_disk(network: nn.Module, batches: Batches) -> None:
    console = Console(width=100, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(forecast_table(forecast(network, batches, Settings(keep=0.8))))
    text = console.export_text()
    for word in ("measure", "verify", "time", "memory, at the peak", "disk, at most"):
        assert word in text
