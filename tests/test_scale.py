"""The benchmark of scale: its statistics are what it says, and every setting is a row and a bar."""

import json
from pathlib import Path

import torch

from benchmarks.scale import OUTSIDE, Arguments, main, model_of, settings, statistics_of


def test_statistics_are_drawn_alike_each_time_and_follow_a_stream() -> None:
    model = model_of(3, 32)
    curvature, again = statistics_of(model, 32), statistics_of(model, 32)
    names = [layer.name for layer in curvature.layers]
    assert len(names) == 21
    for name in reversed(names):
        assert torch.equal(curvature.A[name], again.A[name])
    inputs = [curvature.A[f"{block}.self_attn.q_proj"].flatten() for block in range(3)]
    alike = [torch.cosine_similarity(inputs[0], other, dim=0) for other in inputs]
    assert 1 > alike[1] > alike[2] > 0.5
    for name, factor in curvature.A.items():
        assert float(torch.linalg.eigvalsh(factor)[0]) > 0
        assert curvature.layer(name).n == len(factor)
    rest = curvature.A.sketch(names[0])  # type: ignore[attr-defined]
    assert float(rest.diagonal.sum() / rest.dense().trace()) - OUTSIDE < 1e-9


def test_every_setting_is_measured_once_in_a_process_of_its_own(tmp_path: Path) -> None:
    arguments = Arguments(
        output=tmp_path / "scale.json",
        figure=tmp_path / "scale.png",
        blocks=(1,),
        narrow=32,
        widths=(32,),
        few=1,
        largest=(0, 0),
        time_limit=2.0,
        memory=100_000,
    )
    assert settings(arguments) == [(1, 32)]
    assert settings(Arguments(blocks=(4, 2), narrow=8, widths=(16,), few=1)) == [(2, 8), (1, 16), (4, 8), (32, 2048)]
    main(arguments)
    before = (tmp_path / "scale.json").read_bytes()
    rows = json.loads(before)["rows"]
    assert [row["layers"] for row in rows] == [7]
    assert all(0 < row["damage_relative_to_no_sharing"] <= 1 and row["peak"] > 0 for row in rows)
    main(arguments)
    assert (tmp_path / "scale.json").read_bytes() == before
    assert (tmp_path / "scale.png").stat().st_size > 10_000
