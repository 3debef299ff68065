"""The benchmark at the size of LLaMA-7B, run small: every step is timed and the model gets smaller."""

import json
from pathlib import Path

import pytest

from benchmarks.seven_billion import Arguments, llama, main, measured, tokens
from geocolor.curvature.sketch import rank_of

SMALL = Arguments(
    device="cpu",
    blocks=2,
    width=32,
    vocabulary=64,
    sequences=3,
    length=24,
    window=1,
    time_limit=2.0,
    memory="100MB",
)

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:.*rank ≤", "ignore:second moments")


def test_every_step_is_timed_and_the_model_gets_smaller(tmp_path: Path) -> None:
    report = main(Arguments(**(vars(SMALL) | {"output": tmp_path / "report.json"})))
    assert list(report["seconds"]) == ["make", "measure", "price", "plan", "apply"]
    assert report["layers"] == 14
    assert report["kept"] <= SMALL.keep
    assert report["model_parameters"] < report["model_parameters_dense"]
    assert json.loads((tmp_path / "report.json").read_text())["kept"] == report["kept"]


def test_what_is_wider_than_the_model_is_sketched_and_readers_of_one_input_share_it() -> None:
    model = llama(SMALL)
    curvature = measured(model, tokens(SMALL), SMALL)
    sketched = {layer.name for layer in curvature.layers if rank_of(curvature.A, layer.name) is not None}
    assert sketched == {f"model.layers.{block}.mlp.down_proj" for block in range(2)}
    assert rank_of(curvature.G, "model.layers.1.mlp.up_proj") == 8
    assert curvature.inputs["model.layers.1.self_attn.v_proj"] == "model.layers.1.self_attn.q_proj"
