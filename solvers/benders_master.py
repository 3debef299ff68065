"""The p-median problem as a linear program in the candidates alone, grown by Benders cuts.

Duran-Mateus, Ales & Elloumi, An efficient Benders decomposition for the p-median problem, EJOR 2023:
``min Σ_ℓ θ_ℓ`` over ``0 ≤ y ≤ 1``, ``Σ_{b ∈ g} y_b ≤ K_g``, where item ℓ pays at least, for any of its costs r,
``θ_ℓ ≥ r − Σ_b max(r − c_ℓb, 0) · y_b``: the next dearest than r is paid unless something cheaper is open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from solvers.medoid_core import Core
from solvers.medoid_relaxation import Floats, Indices, Mask


@dataclass(frozen=True)
class Answer:
    """What one run of the linear program says.

    Attributes:
        y: ``[F]`` how far each free candidate is open.
        theta: ``[L']`` what each item pays.
        u: ``[L']`` the multipliers that the dual prices of the cuts make: L(u) is at least the program's dual value,
            whatever the precision of the program.
        objective: the value, above the core's offset.
        iterations: of the simplex method.
        solved: False where it was cut short.
    """

    y: Floats
    theta: Floats
    u: Floats
    objective: float
    iterations: int
    solved: bool


class Master:
    """The linear program in HiGHS, kept warm between runs. Costs are scaled so that ``room`` is 10⁴.

    Attributes:
        items, rights: the item ℓ and the cost r of each cut.
        entries: how many entries the cuts had when they were added.
    """

    def __init__(self, core: Core, room: float, seed: int) -> None:
        import highspy

        self.core = core
        self.scale = 1e4 / room
        self.free, self.size = core.columns.shape
        self.items = np.zeros(0, dtype=np.intp)
        self.rights = np.zeros(0)
        self.infinity = highspy.kHighsInf
        self.basic = highspy.HighsBasisStatus.kBasic
        self.optimal = highspy.HighsModelStatus.kOptimal
        self.limited = (highspy.HighsModelStatus.kTimeLimit, highspy.HighsModelStatus.kIterationLimit)
        self.highs = highspy.Highs()
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("presolve", "off"),
            ("solver", "simplex"),
            ("random_seed", seed % 2**31),
        ):
            self.highs.setOptionValue(option, value)
        self.highs.addVars(self.free, np.zeros(self.free), np.ones(self.free))
        self.highs.addVars(self.size, np.zeros(self.size), np.full(self.size, self.infinity))
        theta = np.arange(self.free, self.free + self.size, dtype=np.int32)
        self.highs.changeColsCost(self.size, theta, np.ones(self.size))
        self.limits = self.entries = 0
        for code, limit in enumerate(core.limits):
            members = np.flatnonzero(core.label == code).astype(np.int32)
            if len(members) > limit:
                self.highs.addRow(-self.infinity, float(limit), len(members), members, np.ones(len(members)))
                self.limits += 1

    @property
    def rows(self) -> int:
        return self.limits + len(self.items)

    def cut(self, items: Indices, rights: Floats) -> None:
        """Add the cut of each item at cost r, both ``[n]``."""
        factors = np.maximum(rights[:, None] - self.core.columns[:, items].T, 0.0) * self.scale
        filled = factors > 1e-9
        lengths = filled.sum(axis=1) + 1
        ends = np.cumsum(lengths)
        columns = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.int32)
        values = np.empty(len(columns))
        rows, candidates = np.nonzero(filled)
        places = np.arange(len(rows)) + rows
        columns[places], values[places] = candidates, factors[filled]
        columns[ends - 1], values[ends - 1] = self.free + items, 1.0
        upper = np.full(len(items), self.infinity)
        self.highs.addRows(
            len(items), rights * self.scale, upper, len(columns), (ends - lengths).astype(np.int32), columns, values
        )
        self.entries += len(columns)
        self.items, self.rights = np.append(self.items, items), np.append(self.rights, rights)

    def solve(self, usable: Mask, always: Mask, seconds: float, most: int = 1_000_000) -> Answer:
        """Run the program with some candidates closed and some open, for so many seconds and iterations at most."""
        every = np.arange(self.free, dtype=np.int32)
        self.highs.changeColsBounds(self.free, every, always.astype(np.float64), usable.astype(np.float64))
        limit = self.highs.getRunTime() + max(seconds, 1e-3) if math.isfinite(seconds) else self.infinity
        self.highs.setOptionValue("time_limit", limit)
        self.highs.setOptionValue("simplex_iteration_limit", most)
        self.highs.run()
        if self.highs.getModelStatus() not in (self.optimal, *self.limited):  # numerical trouble: begin afresh
            self.highs.clearSolver()
            self.highs.run()
        solved = self.highs.getModelStatus() == self.optimal
        solution, info = self.highs.getSolution(), self.highs.getInfo()
        y, theta = np.zeros(self.free), np.zeros(self.size)
        u: Floats = np.zeros(self.size)
        if len(solution.col_value) == self.free + self.size:
            values = np.array(solution.col_value)
            y, theta = np.clip(values[: self.free], 0.0, 1.0), values[self.free :] / self.scale
        if len(solution.row_dual) == self.rows:
            weights = np.maximum(np.array(solution.row_dual)[self.limits :], 0.0)
            u = np.bincount(self.items, weights * self.rights, minlength=self.size).astype(np.float64)
        return Answer(
            y=y,
            theta=theta,
            u=np.minimum(u, self.core.cap),
            objective=float(info.objective_function_value) / self.scale,
            iterations=max(int(info.simplex_iteration_count), 0),
            solved=solved,
        )

    def separate(self, answer: Answer, tolerance: float) -> int:
        """Add the deepest cut of each item that pays too little by ``tolerance``, and return their number.

        The deepest is at the cost up to which the open shares, cheapest first, add up to one.
        """
        share = np.flatnonzero(answer.y > 1e-9)
        columns = self.core.columns[share]
        order = np.argsort(columns, axis=0, kind="stable")
        costs = np.take_along_axis(columns, order, axis=0)
        filled = np.cumsum(answer.y[share][order], axis=0) >= 1 - 1e-9
        served = filled.any(axis=0) if len(share) else np.zeros(self.size, bool)
        rights = self.core.cap.copy()
        if served.any():
            rights[served] = costs[filled.argmax(axis=0), np.arange(self.size)][served]
        due = rights - answer.y[share] @ np.maximum(rights - columns, 0.0)
        short = np.flatnonzero(due - answer.theta > tolerance)
        if len(short):
            self.cut(short, rights[short])
        return len(short)

    def forget(self) -> None:
        """Drop the cuts that do not bind, where they have become many."""
        status = self.highs.getBasis().row_status
        loose = np.array([row for row in range(self.limits, len(status)) if status[row] == self.basic], dtype=np.int32)
        if len(loose) > 2 * self.size + 200:
            self.highs.deleteRows(len(loose), loose)
            self.items = np.delete(self.items, loose - self.limits)
            self.rights = np.delete(self.rights, loose - self.limits)
