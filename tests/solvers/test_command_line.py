"""`python -m solvers`, run as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "solvers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture
def triangle(tmp_path):
    path = tmp_path / "triangle.col"
    path.write_text("p edge 4 3\ne 1 2\ne 2 3\ne 3 1\n")
    return path


def test_a_file_is_solved_checked_and_told(triangle, tmp_path):
    done = run(triangle, "--solver", "cp_sat", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert "PairwiseProblem of 4 items: optimal by cp_sat" in done.stdout
    assert "cost     3 in 3 classes" in done.stdout
    assert "both checked" in done.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["cost"], document["lower_bound"], document["verdict"]["faults"]) == (3, 3, [])
    assert len(set(document["coloring"])) == 3


def test_a_smaller_K_can_make_it_infeasible(triangle):
    done = run(triangle, "-K", 2)
    assert done.returncode == 1
    assert "infeasible" in done.stdout
    assert "3 items conflict with one another" in done.stdout


def test_mistakes_become_a_sentence(triangle):
    for arguments, sentence in [
        (["missing.col"], "error: missing.col: No such file"),
        ([triangle, "--seed", "-1"], "seed must be a whole number, 0 or more, got -1"),
        ([triangle, "--json", triangle.parent], "is a folder, not a file"),
        ([triangle, "--solver", "cpsat"], "there is no solver 'cpsat'; did you mean 'cp_sat'?"),
        ([triangle, "--time-limit", "-1"], "time_limit must be 0 seconds or more"),
        ([triangle, "--format", "json"], "line 1, column 1: this is no JSON"),
        ([triangle, "--json", "/proc/out.json"], "/proc"),
        ([], "name a file with a problem, or --list"),
    ]:
        done = run(*arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == "" or "/proc/out.json" in arguments


def test_solvers_are_listed_with_what_they_take():
    done = run("--list")
    assert "symmetric_cp_sat   medoid, pairwise · exact" in done.stdout
