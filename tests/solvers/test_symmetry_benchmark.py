"""The benchmark of symmetry breaking runs, tells its table and draws its figure; nothing is judged by time."""

import json

import pytest

from benchmarks.symmetry import CAYLEY, FAMILIES, WAYS, main, table
from solvers import automorphisms, merge_twins


def test_the_planted_symmetries_are_there():
    spread, blocks = FAMILIES["spreading twins"].make(15, 0), FAMILIES["blocks"].make(12, 0)
    assert automorphisms(spread).order % 6**5 == 0
    assert merge_twins(spread) is None
    assert automorphisms(blocks).order % 6 == 0
    assert automorphisms(blocks).twins == ()
    assert merge_twins(FAMILIES["duplicated layers"].make(40, 1)).problem.size == 10
    assert merge_twins(FAMILIES["priced layers"].make(40, 0)).problem.size < 20
    for size in CAYLEY:
        assert len(automorphisms(FAMILIES["Cayley graphs"].make(size, 0)).orbits) == 1


def test_a_small_run_writes_its_measurements_and_its_figure(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "results" / "symmetry.json", tmp_path / "docs" / "symmetry.png"
    families = ["duplicated layers", "Cayley graphs"]
    few = ["--family", *families, "--seeds", "1", "--sizes", "1", "--limit", "0.2"]
    main([*few, "--out", str(out), "--figure", str(figure)])
    records = json.loads(out.read_text())["records"]
    assert [r["way"] for r in records] == list(WAYS) * 2
    assert {r["family"] for r in records} == set(families)
    assert all(r["bound"] <= r["cost"] for r in records)
    merged = next(r for r in records if r["family"] == "duplicated layers" and r["way"].endswith("merged"))
    assert merged["proven"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert table(records) in capsys.readouterr().out
    main(["--from", str(out)])
    assert table(records) in capsys.readouterr().out
