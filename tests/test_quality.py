"""The benchmark of quality: it runs, resumes, keeps to the size, and says what it measured."""

from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.kwt1 import KeywordTransformer, accuracy
from benchmarks.quality import METHODS, OURS, Arguments, Bench, Losses, draw, markdown, read_rows, run
from benchmarks.resnet56 import ResNet
from benchmarks.subjects import SUBJECTS, Subject
from geocolor.layers import find_layers
from geocolor.losses import Classification
from geocolor.refinement import RefineSettings

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:layer '", "ignore:sharing was predicted")


def small(_: Path | None = None) -> Subject:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    clips = [(torch.randn(16, 6, 5, generator=generator), torch.randint(4, (16,), generator=generator)) for _ in "abcd"]
    return Subject(
        name="kwt1",
        model=KeywordTransformer(mfcc=5, frames=6, classes=4, width=8, hidden=16, blocks=2).eval(),
        calibration=clips[:2],
        test=clips[2:],
        loss=Classification(),
        description="random",
        refinement=RefineSettings(steps=2),
    )


def test_rows_are_measured_once_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUBJECTS, "kwt1", small)  # type: ignore[misc]
    methods = (OURS, "svd", "basis-sharing")
    arguments = Arguments(
        data=tmp_path, only=("kwt1",), keep=(0.7,), methods=methods, rows=tmp_path / "rows.jsonl", time_limit=2
    )
    run(arguments, Console(quiet=True))
    rows = read_rows(arguments.rows)
    assert {(row["method"], row["stage"]) for row in rows} == {
        (method, stage) for method in methods for stage in ("one shot", "refined")
    }
    assert all(row["kept"] <= 0.7 for row in rows)
    run(arguments, Console(quiet=True))
    assert read_rows(arguments.rows) == rows
    text = markdown(rows)
    assert "## kwt1, refined" in text
    assert "**" in text
    draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_line_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"model": "kwt1"}\n{"model": "kw')
    assert read_rows(path) == [{"model": "kwt1"}]


def test_losses_are_those_of_the_model(tmp_path: Path) -> None:
    subject = small()
    bench = Bench(subject, Arguments(rows=tmp_path / "rows.jsonl"), Console(quiet=True))
    found = bench.figures(subject.model)
    assert found["divergence"] == pytest.approx(0, abs=1e-9)
    assert found["damage"] == found["error"] == 0
    assert found["accuracy"] == accuracy(subject.model, list(subject.test))


def test_the_error_of_damage_is_that_of_the_mean_of_batches() -> None:
    dense = Losses(total=[1.0, 2.0, 3.0, 4.0], units=[10] * 4)
    smaller = Losses(total=[3.0, 3.0, 7.0, 4.0], units=[10] * 4)
    rises = torch.tensor([0.2, 0.1, 0.4, 0.0], dtype=torch.float64)
    damage, error = smaller.rise_from(dense)
    assert damage == pytest.approx(float(rises.mean()))
    assert error == pytest.approx(float(rises.std()) / 2)


def test_every_preset_is_among_the_methods() -> None:
    assert {"svd", "fwsvd", "asvd", "svd-llm", "svd-llm-update", "basis-sharing", "d-rank", "two-sided"} < set(METHODS)


def test_the_residual_network_is_all_convolutions_but_its_head() -> None:
    model = ResNet(blocks=1, width=4).eval()
    layers = find_layers(model)
    assert len(layers) == 7
    assert {layer.form for layer in layers} == {"conv2d"}
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
