"""The journal of a run: what is read is what was recorded, and nothing of another run is taken for this one's."""

import json
import math
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.curvature import LanczosCurvature
from geocolor.digests import digest_of, digest_of_model
from geocolor.hull_files import as_tensors, from_tensors
from geocolor.journal import Journal, journal_folder, kept, refuse_output
from geocolor.pipeline import Pipeline
from geocolor.settings import Settings

Batches = list[tuple[Tensor, Tensor]]
BASIS, SETTINGS = {"model": "abc", "data": "def"}, {"keep": 0.5, "solver": "greedy"}


class KilledError(BaseException):
    """What stands for a kill where the process has to go on."""


def open_run(out: Path, basis: Mapping[str, Any] = BASIS, settings: Mapping[str, Any] = SETTINGS, **more: Any) -> None:
    """Begin a run and end it at once."""
    with kept(out, basis, settings, say=print, **more):
        pass


@contextmanager
def killed(out: Path, error: BaseException | None = None) -> Iterator[Journal]:
    """A run that never ends, or ends with an error."""
    error = error or KilledError()
    with suppress(type(error)), kept(out, BASIS, SETTINGS, say=print) as journal:
        yield journal
        raise error


def never() -> Any:
    pytest.fail("made again")


def test_values_are_given_back_to_the_last_bit(tmp_path: Path) -> None:
    value = [0.1 + 0.2, 1e-310, -math.inf, {"a": None, "b": [1, "ü\n"]}]
    with killed(tmp_path / "out") as journal:
        assert journal.value("x", lambda: value) == value
    with killed(tmp_path / "out") as journal:
        assert journal.value("x", never) == value
        assert math.isnan(journal.value("nan", lambda: math.nan))


def test_tensors_are_given_back_to_the_last_bit(tmp_path: Path) -> None:
    made = {"a": torch.randn(3, 4, dtype=torch.float64).T, "b": torch.arange(5)}
    with killed(tmp_path / "out") as journal:
        journal.tensors("factors-0", lambda: made)
    with killed(tmp_path / "out") as journal:
        found = journal.tensors("factors-0", never)
    assert found.keys() == made.keys()
    assert all(torch.equal(found[name], made[name]) and found[name].dtype == made[name].dtype for name in made)


def test_a_run_that_ends_leaves_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with kept(tmp_path / "out", BASIS, SETTINGS, say=said.append) as journal:
        journal.value("x", lambda: 1)
    assert not list(tmp_path.iterdir())
    assert not said


def test_what_a_run_was_killed_over_while_it_removed_its_journal_goes_with_the_next(tmp_path: Path) -> None:
    half = tmp_path / ".out.partial.abcd1234" / "old"
    half.mkdir(parents=True)
    (half / "ledger.jsonl").write_text("")
    open_run(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_before_anything_is_finished_leaves_nothing(tmp_path: Path) -> None:
    with killed(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_without_a_folder_everything_is_made() -> None:
    journal = Journal()
    assert journal.value("x", lambda: 1) == 1
    assert journal.value("x", lambda: 2) == 2
    assert not journal.part("file").there
    assert not journal.written


def test_half_a_line_is_cut_off_and_made_again(tmp_path: Path) -> None:
    with killed(tmp_path / "out") as journal:
        journal.value("x", lambda: 1)
        journal.value("y", lambda: 2)
    ledger = journal_folder(tmp_path / "out") / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-3])
    with killed(tmp_path / "out") as journal:
        assert journal.value("x", never) == 1
        assert journal.value("y", lambda: 3) == 3
    with killed(tmp_path / "out") as journal:
        assert journal.value("y", never) == 3


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    with killed(tmp_path / "out") as journal:
        journal.value("x", lambda: 1)
        journal.value("y", lambda: 2)
    ledger = journal_folder(tmp_path / "out") / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b": 1}", b": 7}"))
    with pytest.raises(ValueError, match=r"ledger.jsonl, line 1 is damaged: remove"):
        open_run(tmp_path / "out")


def test_other_settings_keep_what_was_measured_and_discard_the_rest(tmp_path: Path) -> None:
    with killed(tmp_path / "out") as journal:
        journal.part("measured-0-of-1.safetensors").write(lambda path: path.write_text("sums"))
        journal.value("x", lambda: 1)
        journal.writes_now()
    said: list[str] = []
    with kept(tmp_path / "out", BASIS, SETTINGS | {"keep": 0.7}, say=said.append) as journal:
        assert journal.part("measured-0-of-1.safetensors").there
        assert journal.value("x", lambda: 2) == 2
        assert not journal.written
    assert any(
        "had keep 0.5, not 0.7: what it measured is gone on with, the rest is discarded" in each for each in said
    )


def test_a_run_of_another_model_is_refused_unless_overwritten(tmp_path: Path) -> None:
    other = BASIS | {"model": "xyz"}
    with killed(tmp_path / "out") as journal:
        journal.value("x", lambda: 1)
    with pytest.raises(ValueError, match=r"unfinished run with model abc, not xyz: repeat the command .* --overwrite"):
        open_run(tmp_path / "out", other)
    with killed(tmp_path / "out") as journal:
        assert journal.value("x", never) == 1
    said: list[str] = []
    with kept(tmp_path / "out", other, SETTINGS, overwrite=True, say=said.append) as journal:
        assert journal.value("x", lambda: 2) == 2
    assert "discarded" in said[0]


def test_a_run_of_another_model_that_failed_is_discarded(tmp_path: Path) -> None:
    with killed(tmp_path / "out", ValueError("too small")) as journal:
        journal.value("x", lambda: 1)
    with killed(tmp_path / "out") as journal:
        assert journal.value("x", never) == 1
    with killed(tmp_path / "out", ValueError("other model")):
        pass
    with kept(tmp_path / "out", BASIS | {"model": "xyz"}, SETTINGS, say=print) as journal:
        assert journal.value("x", lambda: 2) == 2


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    folder = journal_folder(tmp_path / "out")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="is no unfinished run: move it away"):
        open_run(tmp_path / "out", overwrite=True)
    assert (folder / "mine").read_text() == "mine"


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with killed(tmp_path / "out"), pytest.raises(FileExistsError, match="another process is at work"):
        open_run(tmp_path / "out")


def test_an_output_is_refused_but_where_the_killed_run_has_put_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text("{}")
    with pytest.raises(FileExistsError):
        refuse_output(out, overwrite=False)
    with killed(out) as journal:
        journal.value("x", lambda: 1)
        journal.writes_now()
    refuse_output(out, overwrite=False)


def test_digests_tell_every_bit_and_survive_another_process(network: nn.Module, batches: Batches) -> None:
    before = digest_of_model(network)
    assert digest_of_model(network) == before
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1e-7
    assert digest_of_model(network) != before
    assert digest_of(batches) == digest_of([(x.clone(), y) for x, y in batches])
    assert digest_of(batches) != digest_of(batches[:-1])
    assert digest_of({"a": torch.zeros(2, 3)}) != digest_of({"a": torch.zeros(3, 2)})
    assert digest_of(print) == digest_of(print)


def test_hulls_are_given_back_as_they_were(network: nn.Module, curvature: geocolor.Curvature, tmp_path: Path) -> None:
    graph = geocolor.price(network, curvature, aggregate=(1.0, 2.0))
    graph.price_pairs()
    hulls = list(graph._hulls.values())
    which = list(hulls[0])
    for one, other in zip(hulls, from_tensors(as_tensors(hulls), which), strict=True):
        for key in which:
            assert vars(one[key]).keys() == vars(other[key]).keys()
            for a, b in zip(vars(one[key]).values(), vars(other[key]).values(), strict=True):
                assert (a == b).all() if hasattr(a, "all") else a == b


def test_steps_gone_on_with_give_what_they_give_in_one_go(
    network: nn.Module, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(keep=0.5, solver="greedy", rounds=1)
    whole = Pipeline(network, batches, settings).prepared()
    with killed(tmp_path / "out") as journal:
        Pipeline(network, batches, settings, journal=journal).prepared()
    monkeypatch.setattr("geocolor.pipeline.plan", never)
    monkeypatch.setattr("geocolor.losses.Classification.sample", never)
    monkeypatch.setattr("geocolor.losses.Classification.divergence", never)
    with killed(tmp_path / "out") as journal:
        found = Pipeline(network, batches, settings, journal=journal).prepared()
    for name in whole.curvature.G:
        assert torch.equal(whole.curvature.G[name], found.curvature.G[name])
        assert torch.equal(whole.curvature.A[name], found.curvature.A[name])
    assert found.plan.model_copy(update={"seconds": 0.0}) == whole.plan.model_copy(update={"seconds": 0.0})


def test_axes_of_the_hessian_are_found_once(
    network: nn.Module, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(preset="geo-sharing", bases=2, axes=3, include=("blocks.0.*",))
    whole = Pipeline(network, batches, settings).prepared()
    with killed(tmp_path / "out") as journal:
        Pipeline(network, batches, settings, journal=journal).prepared()
    monkeypatch.setattr("geocolor.curvature.lanczos.layer_axes", never)
    monkeypatch.setattr("geocolor.geo_sharing.plan_geo_sharing", never)
    with killed(tmp_path / "out") as journal:
        found = Pipeline(network, batches, settings, journal=journal).prepared()
    assert isinstance(found.curvature, LanczosCurvature)
    assert isinstance(whole.curvature, LanczosCurvature)
    for name, axes in whole.curvature.axes.items():
        assert torch.equal(axes.vectors, found.curvature.axes[name].vectors)
        assert torch.equal(axes.values, found.curvature.axes[name].values)
        assert (axes.trace, axes.products) == (found.curvature.axes[name].trace, found.curvature.axes[name].products)
    assert found.curvature.units == whole.curvature.units
    assert found.plan.model_copy(update={"seconds": 0.0}) == whole.plan.model_copy(update={"seconds": 0.0})


@contextmanager
def full_disk() -> Iterator[None]:
    """What a full disk looks like: no file may grow past 4 KB (SIGXFSZ is ignored by Python)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("large", ["value", "tensors"])
def test_a_full_disk_is_told_and_what_was_recorded_is_kept(tmp_path: Path, large: str) -> None:
    said: list[str] = []
    sentence = r"cannot record what is finished in .*: free some space there and type the same command again"

    def fills_the_disk() -> None:
        with kept(tmp_path / "out", BASIS, SETTINGS, say=said.append) as journal, full_disk():
            assert journal.value("small", lambda: "x") == "x"
            if large == "value":
                journal.value("large", lambda: "x" * 10_000)
            journal.tensors("large-0", lambda: {"large": torch.zeros(10_000)})

    with pytest.raises(OSError, match=sentence):
        fills_the_disk()
    assert "what was finished is kept in" in said[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["out.partial"]
    with killed(tmp_path / "out") as journal:
        assert journal.value("small", never) == "x"
        assert journal.value("large", lambda: "y") == "y"
        assert journal.tensors("large-0", lambda: {"a": torch.zeros(1)}).keys() == {"a"}


def test_what_a_run_was_is_said_in_its_folder(tmp_path: Path) -> None:
    with killed(tmp_path / "out") as journal:
        journal.value("x", lambda: 1)
    run = json.loads((journal_folder(tmp_path / "out") / "run.json").read_text())
    assert run == {"format_version": 1, "basis": BASIS, "settings": SETTINGS}


def test_a_run_killed_before_it_has_said_what_it_is_begins_anew(tmp_path: Path) -> None:
    folder = journal_folder(tmp_path / "out")
    folder.mkdir()
    for name in ("lock", "ledger.jsonl", ".run.json.half"):
        (folder / name).touch()
    with kept(tmp_path / "out", {"model": "one"}, {}, say=print) as journal:
        assert journal.value("piece", lambda: 1) == 1
    assert not folder.exists()
