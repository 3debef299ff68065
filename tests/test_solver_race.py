"""The race as its users run it: processes, records that survive a stop, tables and a figure. No test judges time."""

import json
from pathlib import Path

import pytest

from benchmarks.race_instances import FAMILIES, RACERS, Instance, instances, mycielski
from benchmarks.race_report import best_costs, markdown
from benchmarks.solver_race import Task, main, perform, racers, read_runs
from solvers.race import Run

COMMAND = ["--small", "--family", "graphs", "--solver", "greedy", "cp_sat", "networkx_greedy", "--time-limit", "120"]


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("race") / "runs.jsonl"
    assert main([*COMMAND, "--workers", "2", "-o", str(output)]) == 0
    return output


def test_a_race_leaves_records_tables_and_a_figure(raced: Path) -> None:
    runs = read_runs(raced)
    small = [each for each in instances(None) if each.family == "graphs" and each.small]
    assert {run.key for run in runs} == {
        (each.name, solver, 0, 120.0) for each in small for solver in ("greedy", "cp_sat", "networkx_greedy")
    }
    best = best_costs(runs, small)
    assert [best[each.name] for each in small] == [each.best for each in small]
    assert all(run.proven for run in runs if run.solver == "cp_sat")
    assert "`cp_sat`" in raced.with_suffix(".md").read_text()
    assert "*networkx_greedy*" in raced.with_suffix(".md").read_text()
    assert raced.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_goes_on_where_it_was_stopped(raced: Path, tmp_path: Path) -> None:
    lines = raced.read_text().splitlines(keepends=True)
    output = tmp_path / "runs.jsonl"
    output.write_text("".join(lines[:-1]) + lines[-1][:40])  # killed while it wrote the last line
    assert main([*COMMAND, "-o", str(output)]) == 0
    assert output.read_text().splitlines()[: len(lines) - 1] == [line.rstrip("\n") for line in lines[:-1]]
    assert {run.key for run in read_runs(output)} == {run.key for run in read_runs(raced)}


def test_a_line_that_is_no_record_is_named(raced: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs.jsonl"
    output.write_text('{"instance": "mycielski-4"}\n' + raced.read_text())
    with pytest.raises(ValueError, match=r"line 1: no record of a run"):
        read_runs(output)


def test_a_solver_that_fails_loses_only_its_own_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Run:
        raise MemoryError("too large")

    monkeypatch.setattr("benchmarks.solver_race.run_once", broken)
    run = perform(Task("mycielski-4", "greedy", 0, 1.0), None)
    assert (run.status, run.message, run.proven) == ("crashed", "MemoryError: too large", False)
    assert Run.from_json(json.loads(json.dumps(run.to_json()))) == run
    assert "crashed" in markdown([run], [Instance("mycielski-4", "graphs", lambda: mycielski(4), 4.0)])


def test_bad_arguments_get_a_sentence(tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "runs.jsonl")]
    with pytest.raises(SystemExit, match="no folder"):
        main(["--data", str(tmp_path / "absent"), *output])
    with pytest.raises(SystemExit, match="no instance is called 'zachary'"):
        main(["--instance", "zachary", *output])
    with pytest.raises(SystemExit, match="--workers must be 1 or more"):
        main(["--workers", "0", *output])
    with pytest.raises(SystemExit, match="no runs to report"):
        main(["--report-only", *output])


def test_every_made_instance_has_a_name_of_its_own_and_can_be_made() -> None:
    made = list(instances(None))
    assert len({each.name for each in made}) == len(made)
    assert {each.family for each in made} == {each.family for each in made if each.small}
    assert all(each.load().size for each in made if each.small)


def test_every_family_has_racers_that_there_are() -> None:
    assert set(RACERS) == set(FAMILIES)
    assert {name for names in RACERS.values() for name in names} <= set(racers())


def test_an_instance_without_its_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pmed").mkdir()
    (tmp_path / "pmed" / "optima.csv").write_text("instance,optimum\npmed1,5819\n")
    [stored] = [each for each in instances(tmp_path) if each.family == "pmed"]
    with pytest.raises(FileNotFoundError, match="'pmed1'"):
        stored.load()
