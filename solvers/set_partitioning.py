"""The linear program of set partitioning in HiGHS, over classes that come one after another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.group import GroupProblem
from solvers.search import Search

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Duals:
    """``values[ℓ]`` is what item ℓ pays, ``base`` ≤ 0 what each basis pays because there are only K."""

    values: Floats
    base: float


class Master:
    """``min Σ f(S) x_S + Σ penalty_ℓ o_ℓ``, each item in one class or out, at most K classes, ``x, o ≥ 0``.

    Costs are scaled by ``unit``. Numerical trouble can only make duals worse: bounds are recomputed from them.
    """

    def __init__(self, problem: GroupProblem, unit: float) -> None:
        import highspy

        self.problem, self.unit = problem, unit
        self.limited = problem.limit < problem.size
        self.highs = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("presolve", "off"), ("solver", "simplex")):
            self.highs.setOptionValue(option, value)
        nothing: tuple[int, list[int], list[float]] = (0, [], [])
        for _ in range(problem.size):
            self.highs.addRow(1.0, 1.0, *nothing)
        if self.limited:
            self.highs.addRow(-highspy.kHighsInf, float(problem.limit), *nothing)
        self.infinity = highspy.kHighsInf
        self.optimal = highspy.HighsModelStatus.kOptimal
        self.columns = 0
        for item in np.flatnonzero(np.isfinite(problem.penalties())).tolist():
            self.highs.addCol(float(problem.penalties()[item]) / unit, 0.0, self.infinity, 1, [item], [1.0])

    def add(self, membership: NDArray[np.bool_], prices: Floats) -> None:
        """More classes: their items ``[n, L]`` and their prices ``[n]``."""
        for inside, price in zip(membership, prices, strict=True):
            rows = np.flatnonzero(inside).tolist()
            if self.limited:
                rows.append(self.problem.size)
            self.highs.addCol(float(price) / self.unit, 0.0, self.infinity, len(rows), rows, [1.0] * len(rows))
            self.columns += 1

    def solve(self, search: Search) -> Duals | None:
        """Optimal duals; None where the program has no solution or the time ran out."""
        if not search.deterministic and math.isfinite(search.time_limit):
            self.highs.setOptionValue("time_limit", self.highs.getRunTime() + max(search.remaining(), 1e-3))
        self.highs.run()
        pivots = max(int(self.highs.getInfo().simplex_iteration_count), 0)
        if search.expired(float(pivots + 1) * (self.columns + 100)) or self.highs.getModelStatus() != self.optimal:
            return None
        solution = self.highs.getSolution()
        dual = np.array(solution.row_dual) * self.unit
        base = min(float(dual[-1]), 0.0) if self.limited else 0.0
        return Duals(dual[: self.problem.size], base)
