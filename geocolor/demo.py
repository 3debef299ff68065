"""The main job on the embedded model, with samples of both models' writing: what `make demo` shows."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from torch import Tensor, nn

from geocolor import data
from geocolor.atomic import refuse_occupied
from geocolor.compression import compress_into
from geocolor.embedded import MODEL
from geocolor.embedded.corpus import Split, corpus
from geocolor.forecast import Forecast, forecast
from geocolor.forecast_runs import without_journal
from geocolor.pipeline import Pipeline
from geocolor.progress import waiting
from geocolor.report import Report, weight_bytes
from geocolor.settings import Settings
from geocolor.tables import comparison_table

CALIBRATION_SEQUENCES = 128
TEST_SEQUENCES = 256
TOKENS = 160
PROMPT = "def read_lines(path):\n"


def run(
    console: Console,
    keep: float,
    out: Path,
    announce: Callable[[Callable[[], Forecast]], object] = lambda expecting: None,
) -> Report:
    """Compress the embedded model to `keep`, print how it compares, and say where everything lies.

    `announce` is given what makes the forecast. A folder that holds something else than a former demo is refused.
    """
    former = out.is_dir() and (out / "report.json").exists() and (out / "plan.json").exists()
    refuse_occupied(out, overwrite=former)
    console.print(Text("geocolor demo", "bold") + f": the embedded language model of Python source, keep = {keep:g}")
    model, tokenizer = data.load_model(str(MODEL))
    calibration, test = sequences("calibration", CALIBRATION_SEQUENCES), sequences("test", TEST_SEQUENCES)
    announce(lambda: _forecast(model, tokenizer, calibration, test, settings_for(keep)))
    report, smaller = compress_into(
        out,
        Pipeline(model, calibration, settings_for(keep), progress=True),
        test,
        tokenizer=tokenizer,
        save_dtype=torch.float16,
        bytes_per_unit=1.0,
        overwrite=former,
    )
    report["bytes_on_disk_dense"] = weight_bytes(MODEL)
    console.print(comparison_table(report))
    for title, writer in (("dense", model), ("compressed", smaller)):
        with waiting(f"letting the {title} model write"):
            written = complete(writer, tokenizer, PROMPT)
        console.print(Panel(Text(written), title=f"{title}, asked to go on", width=100))
    for key in ("plan", "model", "figure"):
        console.print(f"{key:>8}  {report[key]}", highlight=False, soft_wrap=True)
    return report


def settings_for(keep: float) -> Settings:
    return Settings(keep=keep, solver="greedy", aggregate=1.0, rounds=1, time_limit=40)


def forecast_demo(keep: float, timer: Callable[[], float] = time.perf_counter) -> Forecast:
    """What the demo will take."""
    model, tokenizer = data.load_model(str(MODEL))
    calibration, test = sequences("calibration", CALIBRATION_SEQUENCES), sequences("test", TEST_SEQUENCES)
    return _forecast(model, tokenizer, calibration, test, settings_for(keep), timer)


def _forecast(
    model: nn.Module,
    tokenizer: Any,
    calibration: list[Tensor],
    test: list[Tensor],
    settings: Settings,
    timer: Callable[[], float] = time.perf_counter,
) -> Forecast:
    expected = forecast(model, calibration, settings, test=test, timer=timer)
    complete(model, tokenizer, PROMPT, 1)
    started = timer()
    complete(model, tokenizer, PROMPT, TOKENS // 10)
    assert settings.keep is not None
    return without_journal(expected, model, settings.keep, {"write": 2 * 10 * (timer() - started)})


def sequences(split: Split, count: int, length: int = 256, batch_size: int = 8) -> list[Tensor]:
    """Batches of byte sequences, spread evenly over one part of the standard library."""
    text = torch.frombuffer(bytearray(corpus(split)), dtype=torch.uint8).long()
    available = len(text) // length
    chosen = torch.linspace(0, available - 1, min(count, available)).long()
    return list(text[: available * length].view(available, length)[chosen].split(batch_size))


def complete(model: nn.Module, tokenizer: Any, prompt: str, tokens: int = TOKENS) -> str:
    """A continuation, sampled at a low temperature from a fixed seed (greedily, small models fall into loops)."""
    inputs = tokenizer(prompt, return_tensors="pt")
    generate: Any = model.generate
    with torch.random.fork_rng():
        torch.manual_seed(0)
        written = generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=True, temperature=0.5)
    text: str = tokenizer.decode(written[0], skip_special_tokens=True)
    return text
