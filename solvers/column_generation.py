"""Column generation: set partitioning over a pool of priced classes that grows where the dual prices say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.certificates import DualPrices
from solvers.cp_models import group_model
from solvers.cp_sat import CpSat
from solvers.group import GroupProblem
from solvers.group_pool import Class, Pool
from solvers.local_search import LocalSearch
from solvers.problem import Problem
from solvers.search import Search
from solvers.set_partitioning import Duals, Master
from solvers.solver import Solver


@dataclass(frozen=True)
class ColumnGeneration(Solver):
    """A linear program over the classes priced so far, new classes by its duals, and CP-SAT over those that may matter.

    A descent fills the pool. Then classes of negative reduced cost are sought: in the pool, by growing, shrinking and
    swapping, at last by going through every class that the problem's bounds cannot rule out. If these are at most
    ``most_classes``, the program's value is a proven bound, and only classes whose reduced cost is within the gap can
    be part of a better coloring: CP-SAT over them settles the problem. Otherwise it only recombines the pool; local
    search then fills it more for a second pass, and nothing is proven (Barnhart et al. 1998).

    Attributes:
        rounds: of the local search between the two passes; None: as many as it makes by itself.
        most_classes: go through all classes that may matter where there are no more than this.
        max_oracle_calls: classes priced for their duals in each pass; None: 200 + 50 per item.
        recombined: classes of least reduced cost that are recombined where nothing is proven.
        workers: threads of CP-SAT.
    """

    rounds: int | None = None
    most_classes: int = 100_000
    max_oracle_calls: int | None = None
    recombined: int = 3000
    workers: int = 1

    name: ClassVar[str] = "column_generation"
    problems: ClassVar[tuple[type, ...]] = (GroupProblem,)
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (
            ("rounds", 0),
            ("most_classes", 0),
            ("max_oracle_calls", 0),
            ("recombined", 1),
            ("workers", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, GroupProblem)
        LocalSearch(rounds=0).run(problem, search)
        if search.cut_short or search.closed():
            return
        if search.best is None:
            pool, nothing = Pool(problem), Duals(np.zeros(problem.size), 0.0)
            if self._go_through(pool, nothing, math.inf, search):
                self._settle(problem, search, pool.groups, complete=True)
            return
        settled = self._pass(problem, search)
        if not settled and not search.expired():
            LocalSearch(rounds=self.rounds).run(problem, search)
            if not search.expired():
                self._pass(problem, search)

    def _pass(self, problem: GroupProblem, search: Search) -> bool:
        """Relax and recombine; whether that settles the problem or ends the search."""
        pool = Pool(problem)
        duals, bounded = self._relax(problem, pool, search)
        if duals is None or search.closed() or search.expired():
            return True
        if not bounded:
            value = math.fsum(duals.values.tolist()) + problem.limit * duals.base
            search.note(f"the linear program over the {len(pool.groups)} classes priced comes to {value:.6g}, no bound")
        room = search.cost - search.bound + problem.size * _tiny(search)
        proven = bounded and self._go_through(pool, duals, room, search)
        if search.cut_short:
            return True
        reduced = pool.reduced(duals)
        chosen = np.flatnonzero(reduced <= room) if proven else np.argsort(reduced, kind="stable")[: self.recombined]
        groups = {pool.groups[at] for at in chosen}
        assert search.best is not None
        groups.update(members for members in search.best.classes() if math.isfinite(problem.class_cost(members)))
        self._settle(problem, search, sorted(groups), complete=proven)
        return proven

    def _settle(self, problem: GroupProblem, search: Search, groups: list[Class], *, complete: bool) -> None:
        built = group_model(problem, search, complete=complete, among=groups)
        if built is not None:
            CpSat(workers=self.workers).optimize(built, search)

    def _relax(self, problem: GroupProblem, pool: Pool, search: Search) -> tuple[Duals | None, bool]:
        """The duals of the linear program, and whether no class at all has a negative reduced cost under them."""
        master = Master(problem, abs(search.cost) / problem.size or problem.scale or 1.0)
        tiny = _tiny(search)
        inside = np.zeros(0, dtype=bool)
        left = 200 + 50 * problem.size if self.max_oracle_calls is None else self.max_oracle_calls
        duals = None
        while True:
            pool.refresh()
            inside = np.append(inside, np.zeros(len(pool.groups) - len(inside), dtype=bool))
            wanted = self._wanted(pool, duals, inside, search, tiny)
            if len(wanted):
                master.add(pool.membership[wanted], pool.prices[wanted])
                inside[wanted] = True
                found = master.solve(search)
                if found is None:
                    return duals, False
                duals = found
                continue
            assert duals is not None
            before = problem.oracle_calls
            if left > 0 and pool.improve(duals, search, tiny, left):
                left -= max(problem.oracle_calls - before, 1)
                continue
            left = 0
            if search.cut_short or not self._go_through(pool, duals, -tiny, search):
                return duals, False
            if pool.reduced(duals)[len(inside) :].min(initial=0.0) >= -tiny:
                self._prove(problem, pool, duals, search)
                return duals, True

    def _wanted(
        self, pool: Pool, duals: Duals | None, inside: NDArray[np.bool_], search: Search, tiny: float
    ) -> NDArray[np.int64]:
        """Numbers of the classes to add: at first the incumbent's and the cheapest an item, then by reduced cost."""
        many = 50 + 5 * pool.problem.size
        if duals is None:
            assert search.best is not None
            chosen = set(search.best.classes())
            value = pool.prices / pool.membership.sum(axis=1)
            value[[at for at, members in enumerate(pool.groups) if members in chosen or len(members) == 1]] = -np.inf
            return np.argsort(value, kind="stable")[:many]
        value = np.where(inside, 0.0, pool.reduced(duals))
        wanted = np.argsort(value, kind="stable")[:many]
        return wanted[value[wanted] < -tiny]

    def _go_through(self, pool: Pool, duals: Duals, threshold: float, search: Search) -> bool:
        """Price every class whose reduced cost may be up to ``threshold``; False where they are too many."""
        classes = pool.candidates(duals, threshold, self.most_classes, search)
        if classes is None and not search.cut_short:
            search.note(f"more than {self.most_classes:,} classes may matter, too many to prove anything")
        for members in classes or ():
            if members not in pool.problem.priced:
                pool.problem.class_cost(members)
                if search.expired():
                    break
        pool.refresh()
        return classes is not None and not search.cut_short

    def _prove(self, problem: GroupProblem, pool: Pool, duals: Duals, search: Search) -> None:
        """The duals, lowered until no class costs less than its items pay, are a bound that anybody can check."""
        least = min(pool.reduced(duals).min(initial=0.0), float((problem.penalties() - duals.values).min(initial=0.0)))
        values = duals.values + min(least, -_tiny(search))
        bound = math.fsum([*values.tolist(), problem.limit * duals.base])
        search.prove(bound, DualPrices(tuple(values.tolist()), duals.base))


def _tiny(search: Search) -> float:
    """A reduced cost that counts as 0: small beside what a coloring costs in all."""
    return 1e-9 * abs(search.cost) / max(search.problem.size, 1) or 1e-9 * search.problem.scale
