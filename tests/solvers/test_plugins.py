"""Solvers of other packages: found by their entry points, and a broken one is a sentence."""

import importlib
import sys
import warnings

import pytest

from solvers import MedoidProblem, find_solver, solve, solver_names
from solvers.plugins import plugins
from solvers.testing import check_solver

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar
from solvers import Coloring, GroupProblem, MedoidProblem, PairwiseProblem, Solver

@dataclass(frozen=True)
class Halves(Solver):
    """Two colors, the second from ``at`` on, or a color each."""
    at: int = 1
    name: ClassVar[str] = "halves"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem, GroupProblem)

    def run(self, problem, search):
        search.offer(Coloring(range(problem.size)))
        search.offer(Coloring([int(item >= self.at) for item in range(problem.size)]))

class Abstract(Solver):
    name = "abstract"
    problems = (MedoidProblem,)

class Nameless(Halves):
    name = None

class Usurper(Halves):
    name = "greedy"

@dataclass(frozen=True)
class Demanding(Halves):
    name: ClassVar[str] = "demanding"

    def __post_init__(self):
        raise RuntimeError("no licence found")

def function(problem):
    return None
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package on the path with the entry points given, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "halves_package.py").write_text(MODULE)

    def installed(**entries: str) -> None:
        metadata = tmp_path / "halves_package-1.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: halves-package\nVersion: 1.5\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[geocolor.solvers]", *lines, ""]))
        importlib.invalidate_caches()
        plugins.cache_clear()

    yield installed
    plugins.cache_clear()
    sys.modules.pop("halves_package", None)


def test_an_installed_solver_has_a_name(install):
    install(halves="halves_package:Halves")
    assert solver_names()[-1] == "halves"
    problem = MedoidProblem([[0, 5, 9], [1, 0, 9], [9, 9, 0]], K=2)
    assert "halves" in solver_names(problem)
    solution = solve(problem, "halves")
    assert solution.solver == "halves"
    assert solution.settings == {"at": 1}
    assert find_solver("halves") == type(find_solver("halves"))(at=1)


def test_an_installed_solver_is_held_to_the_contract_by_one_call(install):
    install(halves="halves_package:Halves")
    check_solver("halves", max_examples=4, max_size=3)


def test_the_command_line_lists_installed_solvers(install, capsys):
    from solvers.__main__ import main

    install(halves="halves_package:Halves")
    assert main(["--list"]) == 0
    assert "halves " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("halves_package:Absent", "loading it raised AttributeError"),
        ("no_such_package_at_all:Solver", "loading it raised ModuleNotFoundError"),
        ("halves_package:function", "not a class that derives from solvers.Solver"),
        ("halves_package:Abstract", "Abstract does not define run"),
        ("halves_package:Nameless", "Nameless.name must be a str"),
        ("halves_package:Usurper", "another solver of the name 'greedy'"),
        ("halves_package:Demanding", "raised RuntimeError: no licence found"),
    ],
)
def test_a_broken_one_is_a_sentence_and_the_rest_go_on(install, value, why):
    install(broken=value, halves="halves_package:Halves")
    with pytest.warns(
        RuntimeWarning, match=rf"the plug-in 'broken' of halves-package 1\.5 \({value}\) is left out: .*{why}"
    ):
        names = solver_names()
    assert "halves" in names
    assert "broken" not in names
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        with pytest.raises(ValueError, match=why):
            find_solver("broken")
        with pytest.raises(ValueError, match="there is no solver 'halvs'; did you mean 'halves'"):
            find_solver("halvs")


def test_solvers_of_ours_are_found_without_loading_any(install):
    install(broken="halves_package:Absent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_solver("greedy").name == "greedy"


def test_two_of_one_name_do_not_shadow_each_other(install):
    install(first="halves_package:Halves", second="halves_package:Halves")
    with pytest.warns(RuntimeWarning, match="'second'.*another solver of the name 'halves'"):
        assert solver_names().count("halves") == 1
