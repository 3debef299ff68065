"""Solvers of other packages, which make themselves known by entry points of the group ``geocolor.solvers``.

A package names its solver in its ``pyproject.toml``; once it is installed, ``solve(problem, "mine")``, the command
line, comparisons and races know it:

    [project.entry-points."geocolor.solvers"]
    mine = "my_package.my_module:MySolver"

``MySolver`` is a ``Solver`` that can be made without arguments. ``solvers.testing.check_solver(MySolver())`` holds it
to the contract that every solver here keeps.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import warnings
from dataclasses import dataclass
from functools import cache

from solvers.solver import Solver

GROUP = "geocolor.solvers"


@dataclass(frozen=True)
class Plugin:
    """One entry point: the solver's class, or why it cannot be used (``fault``, a sentence; empty where it can)."""

    entry: str
    kind: type[Solver] | None = None
    fault: str = ""

    @property
    def name(self) -> str:
        """The solver's name; the entry point's where it could not be loaded."""
        return self.entry if self.kind is None else self.kind.name


@cache
def plugins(taken: frozenset[str]) -> tuple[Plugin, ...]:
    """All plug-ins, in the order of their entry points' names; loaded once. One that is broken is warned of.

    Args:
        taken: names of solvers that a plug-in may not have.
    """
    found: dict[str, Plugin] = {}
    entries = importlib.metadata.entry_points(group=GROUP)
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        plugin = _load(entry, taken | found.keys())
        if plugin.fault:
            warnings.warn(plugin.fault, RuntimeWarning, stacklevel=4)
        found.setdefault(plugin.name, plugin)
    return tuple(found.values())


def _load(entry: importlib.metadata.EntryPoint, taken: frozenset[str]) -> Plugin:
    package = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    where = f"the plug-in {entry.name!r}{package} ({entry.value})"

    def broken(why: str) -> Plugin:
        return Plugin(entry.name, fault=f"{where} is left out: {why}")

    try:
        kind = entry.load()
    except Exception as error:  # whatever another package raises while it is imported
        return broken(f"loading it raised {type(error).__name__}: {error}; repair or uninstall that package")
    if not (isinstance(kind, type) and issubclass(kind, Solver)):
        return broken(f"it is {kind!r}, not a class that derives from solvers.Solver")
    if inspect.isabstract(kind):
        return broken(f"{kind.__name__} does not define {', '.join(sorted(kind.__abstractmethods__))}")
    for attribute, expected in (("name", str), ("problems", tuple)):
        if not isinstance(getattr(kind, attribute, None), expected):
            return broken(f"the class attribute {kind.__name__}.{attribute} must be a {expected.__name__}")
    if kind.name in taken:
        return broken(f"there is another solver of the name {kind.name!r}; call it differently")
    try:
        kind()
    except Exception as error:
        return broken(f"{kind.__name__}() raised {type(error).__name__}: {error}; every setting needs a default")
    return Plugin(entry.name, kind)
