"""The one list of solvers."""

from __future__ import annotations

import difflib

from solvers.auto import Auto
from solvers.benders import Benders
from solvers.branch_and_cut import BranchAndCut
from solvers.branch_and_price import BranchAndPrice
from solvers.chromatic import Chromatic
from solvers.column_generation import ColumnGeneration
from solvers.cp_sat import CpSat
from solvers.dsatur_search import DsaturSearch
from solvers.exhaustive import Exhaustive
from solvers.greedy import Greedy
from solvers.habits import Adjacent, OneColor, Private, Random
from solvers.lagrangian import Lagrangian
from solvers.local_search import LocalSearch
from solvers.merging import MergeTwins
from solvers.plugins import Plugin, plugins
from solvers.problem import Problem
from solvers.runs import Runs
from solvers.solver import Solver
from solvers.spectral import Spectral
from solvers.subset_dp import SubsetDP
from solvers.symmetric_cp_sat import SymmetricCpSat
from solvers.tabu import Tabu
from solvers.tabucol import TabuCol

SOLVERS: tuple[type[Solver], ...] = (
    Auto,
    Exhaustive,
    SubsetDP,
    ColumnGeneration,
    Benders,
    Lagrangian,
    CpSat,
    SymmetricCpSat,
    MergeTwins,
    BranchAndCut,
    BranchAndPrice,
    Chromatic,
    DsaturSearch,
    TabuCol,
    LocalSearch,
    Tabu,
    Greedy,
    Spectral,
    Adjacent,
    Runs,
    OneColor,
    Private,
    Random,
)


def solver_kinds() -> tuple[type[Solver], ...]:
    """The classes of all solvers that have a name: ours and, after them, those of plug-ins (``solvers.plugins``)."""
    return SOLVERS + tuple(plugin.kind for plugin in _plugins() if plugin.kind is not None)


def solver_names(problem: Problem | None = None) -> tuple[str, ...]:
    """The names ``solve`` knows, all of them or those that support this problem with their default settings."""
    return tuple(kind.name for kind in solver_kinds() if problem is None or kind().supports(problem))


def find_solver(solver: str | Solver) -> Solver:
    """The solver of that name with its default settings; a solver object is returned as it is.

    Raises:
        ValueError: for a name that is not known; the sentence lists those that are, or says why a plug-in is broken.
        TypeError: for anything else, such as a solver's class.
    """
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type) and issubclass(solver, Solver):
        raise TypeError(f"pass a solver object, {solver.__name__}(), or the name {solver.name!r}, not the class")
    if not isinstance(solver, str):
        raise TypeError(f"a solver is a name or a Solver object, got {solver!r}")
    for kind in SOLVERS:  # before plug-ins, whose packages may take long to import
        if kind.name == solver:
            return kind()
    for plugin in _plugins():
        if solver == plugin.name and plugin.kind is not None:
            return plugin.kind()
        if solver == plugin.name:
            raise ValueError(plugin.fault)
    close = difflib.get_close_matches(solver, solver_names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"there is no solver {solver!r}; {hint}the solvers are {', '.join(solver_names())}")


def _plugins() -> tuple[Plugin, ...]:
    return plugins(frozenset(kind.name for kind in SOLVERS))
