"""The linear relaxation of clique partitioning, tightened by cutting planes, with bounds that hold whatever it says.

Variables: e(i, j) for each pair without a conflict, and k, the number of colors, where K binds or colors have a price.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from solvers.certificates import Inequalities, Inequality
from solvers.pair_cuts import Cut, class_counts, forest, odd_wheels, packed_triangles, stars, triangles
from solvers.pairwise import PairwiseProblem
from solvers.problem import round_up
from solvers.search import Search
from solvers.solution import OPTIMALITY_GAP

Floats = NDArray[np.float64]
Outcome = Literal["optimal", "infeasible", "stopped"]

SLICE = 2e7
"""Pivots go in slices of so many entries looked at, between which Ctrl-C and the clock are heard."""

TRIANGLE = np.array([1.0, 1.0, -1.0])


class PairLP:
    """One HiGHS model whose rows come and go. The dual simplex goes on from its last basis after every change.

    Costs are clipped to what could matter below ``upper``, the cost of a known coloring, and scaled to 1, so that a
    forbidding price beside small ones does not drown them. The bounds of ``lower_bound`` use the true costs.
    """

    def __init__(self, problem: PairwiseProblem, upper: float) -> None:
        import highspy

        self.problem, self.size = problem, problem.size
        self.ends = np.argwhere(np.triu(~problem.conflict, 1))
        self.pairs = len(self.ends)
        self.index = np.full((self.size, self.size), -1, dtype=np.int64)
        first, second = self.ends[:, 0], self.ends[:, 1]
        self.index[first, second] = self.index[second, first] = np.arange(self.pairs)
        self.counted = problem.opening != 0 or problem.limit < self.size
        self.attractive = (problem.weight < 0) & ~problem.conflict
        weights = problem.weight[first, second]
        self.costs = np.append(weights, problem.opening) if self.counted else weights
        self.low = np.zeros(len(self.costs))
        self.high = np.ones(len(self.costs))
        if self.counted:
            self.low[-1], self.high[-1] = 1.0, problem.limit
        base = float(np.minimum(self.costs * self.low, self.costs * self.high).sum())
        room = upper - base if math.isfinite(upper) and upper > base else math.inf
        clipped = np.clip(self.costs, -room, room)
        self.unit = float(np.abs(clipped).max(initial=0.0)) or 1.0
        self.cuts: list[Cut] = []
        self.columns: list[NDArray[np.int64]] = []
        self.values: list[Floats] = []
        self.right = np.zeros(0)
        self.dual = np.zeros(0)
        self.point = np.zeros(len(self.costs))

        self.highs = highspy.Highs()
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("primal_feasibility_tolerance", 1e-9),
            ("dual_feasibility_tolerance", 1e-9),
        ):
            self.highs.setOptionValue(option, value)
        number = len(self.costs)
        self.highs.addVars(number, self.low, self.high)
        self.highs.changeColsCost(number, np.arange(number, dtype=np.int32), clipped / self.unit)

    def restrict(self, low: Floats, high: Floats) -> None:
        """Other bounds of the columns."""
        number = len(self.costs)
        self.low, self.high = low, high
        self.highs.changeColsBounds(number, np.arange(number, dtype=np.int32), low, high)

    def add(self, cuts: Sequence[Cut]) -> None:
        rows = [self._row(cut) for cut in cuts]
        if not rows:
            return
        lengths = np.array([len(columns) for columns, _, _ in rows])
        columns = np.concatenate([columns for columns, _, _ in rows])
        values = np.concatenate([values for _, values, _ in rows])
        right = np.array([right for _, _, right in rows])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
        low = np.full(len(rows), -np.inf)
        self.highs.addRows(len(rows), low, right, len(columns), starts, columns.astype(np.int32), values)
        self.cuts += cuts
        self.columns += [columns for columns, _, _ in rows]
        self.values += [values for _, values, _ in rows]
        self.right = np.concatenate([self.right, right])
        self.dual = np.concatenate([self.dual, np.zeros(len(rows))])

    def _row(self, cut: Cut) -> tuple[NDArray[np.int64], Floats, float]:
        if len(cut.left) == 1 and len(cut.right) == 2 and cut.kind == "two_partition":  # most rows are triangles
            (j,), (i, k) = cut.left, cut.right
            three = np.array([self.index[j, i], self.index[j, k], self.index[i, k]])
            if three.min() >= 0:
                return three, TRIANGLE, 1.0
        left, right = np.array(cut.left), np.array(cut.right)
        if cut.kind == "two_partition":
            sides = [self.index[np.ix_(side, side)][np.triu_indices(len(side), 1)] for side in (left, right)]
            groups = [(self.index[np.ix_(left, right)].ravel(), 1.0), *((side, -1.0) for side in sides)]
            bound = float(min(len(left), len(right)))
        elif cut.kind == "odd_wheel":
            groups = [(self.index[left[0], right], 1.0), (self.index[right, np.roll(right, -1)], -1.0)]
            bound = (len(right) - 1) / 2
        elif cut.kind == "class_count":
            p = cut.right[0]
            inside = self.index[np.ix_(left, left)][np.triu_indices(len(left), 1)]
            groups = [(inside, -1.0), (np.array([self.pairs]), -p * (p + 1) / 2)]
            bound = -float(p * len(left))
        else:
            groups = [(self.index[left, right] if len(left) else np.zeros(0, np.int64), 1.0)]
            groups.append((np.array([self.pairs]), 1.0))
            bound = float(self.size)
        columns = np.concatenate([columns for columns, _ in groups])
        values = np.concatenate([np.full(len(columns), value) for columns, value in groups])
        return columns[columns >= 0], values[columns >= 0], bound

    def optimize(self, search: Search) -> Outcome:
        """Solve the LP, slice by slice; ``point`` and ``dual`` are then its primal and dual values."""
        import highspy

        states = highspy.HighsModelStatus
        effort = 4.0 * (len(self.costs) + len(self.cuts))
        while True:
            pivots = max(20, int(SLICE / effort))
            if search.deterministic:
                pivots = max(1, min(pivots, int(min(search.remaining() * 1e8 / effort, 1e9)) + 1))
            elif math.isfinite(search.time_limit):
                self.highs.setOptionValue("time_limit", self.highs.getRunTime() + max(search.remaining(), 0.001))
            self.highs.setOptionValue("simplex_iteration_limit", pivots)
            self.highs.run()
            status = self.highs.getModelStatus()
            done = max(self.highs.getInfo().simplex_iteration_count, 0)
            stop = search.expired(effort * (done + 1))
            if status != states.kIterationLimit or stop:
                break
        if status == states.kInfeasible:
            return "infeasible"
        solution = self.highs.getSolution()
        self.point = np.array(solution.col_value)
        self.dual = np.nan_to_num(np.maximum(-np.array(solution.row_dual), 0.0), posinf=0.0) * self.unit
        return "optimal" if status == states.kOptimal else "stopped"

    def matrix(self) -> Floats:
        """The point as ``E``, with a zero diagonal and zeros at conflicts."""
        E = np.zeros((self.size, self.size))
        E[self.ends[:, 0], self.ends[:, 1]] = np.clip(self.point[: self.pairs], 0.0, 1.0)
        return np.asarray(E + E.T)

    def reduced(self) -> Floats:
        """The true costs plus what the multipliers put on each column."""
        if not len(self.cuts):
            return self.costs.copy()
        lengths = [len(columns) for columns in self.columns]
        weights = np.concatenate(self.values) * np.repeat(self.dual, lengths)
        columns = np.concatenate(self.columns)
        return np.asarray(self.costs + np.bincount(columns, weights=weights, minlength=len(self.costs)))

    def lower_bound(self) -> float:
        """The dual bound within the bounds of the columns, by weak duality: it holds at any ``dual`` ≥ 0."""
        reduced = self.reduced()
        return float(np.where(reduced < 0, reduced * self.high, reduced * self.low).sum() - self.dual @ self.right)

    def evidence(self) -> Inequalities:
        used = np.flatnonzero(self.dual > 1e-12 * self.unit)
        return Inequalities(tuple(Inequality(*self.cuts[row], float(self.dual[row])) for row in used))

    def drop_slack(self) -> None:
        """Take out the rows that the point satisfies with room to spare; they are basic, so the basis stays one."""
        import highspy

        basic = highspy.HighsBasisStatus.kBasic
        values = np.array(self.highs.getSolution().row_value)
        free = (values < self.right - 1e-3) & (self.dual == 0)
        status = self.highs.getBasis().row_status
        gone = np.array([row for row in np.flatnonzero(free) if status[row] == basic], dtype=np.int32)
        if len(gone) < 50:
            return
        self.highs.deleteRows(len(gone), gone)
        kept = np.setdiff1d(np.arange(len(self.cuts)), gone)
        self.cuts = [self.cuts[row] for row in kept]
        self.columns = [self.columns[row] for row in kept]
        self.values = [self.values[row] for row in kept]
        self.right, self.dual = self.right[kept], self.dual[kept]

    def separate(self, E: Floats, search: Search) -> list[Cut]:
        """Violated inequalities, the cheap kinds first."""
        most = max(200, 40 * self.size)
        search.spend(float(self.size) ** 3 / 4)
        cuts = triangles(E, self.attractive, most)
        few = len(cuts) < self.size
        if few or self.attractive.mean() < 0.1:
            cuts += self._count_cuts(E)
        if few or len(cuts) < most / 2:
            search.spend(float(self.size) ** 3)
            extra = stars(E, max(50, 10 * self.size))
            if len(extra) < 10:
                extra += odd_wheels(E, max(50, self.size))
            cuts += extra
        return cuts

    def _count_cuts(self, E: Floats) -> list[Cut]:
        if not self.counted:
            return []
        k = float(self.point[-1])
        cuts = class_counts(E, self.problem.conflict, k, max(20, self.size))
        return cuts + (forest(E, k) if self.problem.opening < 0 else [])


def cut_root(lp: PairLP, search: Search, improve: Callable[[Floats], None] | None = None) -> bool:
    """Cutting planes until none is violated or the bound stalls, each bound with its certificate.

    Args:
        lp: a relaxation without rows.
        search: where bounds go, and when to stop.
        improve: told the fractional points of the first rounds, which lead to good colorings.

    Returns:
        Whether the relaxation is feasible, not yet closed, and branching may go on from here.
    """
    history = list[float]()
    weight = np.where(lp.problem.conflict, lp.problem.scale, lp.problem.weight)
    cuts = packed_triangles(weight, min(2 * lp.pairs, 20_000))
    search.spend(20.0 * lp.size * len(cuts))
    for turn in itertools.count():
        outcome = lp.optimize(search)
        if outcome == "infeasible":
            search.prove(math.inf, proof="the linear relaxation, which is infeasible")
            return False
        bound = lp.lower_bound()
        better = bound > max(history, default=-math.inf)
        if better:
            search.prove(rounded(min(bound, search.cost), search), lp.evidence())
        if outcome == "stopped" or search.bound >= target(search):
            return False
        if turn or not cuts:
            E = lp.matrix()
            if improve is not None and turn < 20:
                improve(E)
            cuts = lp.separate(E, search)
        if not cuts or search.expired() or _stalled([*history, bound], search.cost):
            return not search.cut_short
        if better:
            lp.drop_slack()
        history.append(bound)
        lp.add(cuts)
    raise AssertionError("unreachable")


def _stalled(history: list[float], cost: float) -> bool:
    """Eight rounds closed less than a fiftieth of the gap."""
    if len(history) < 12 or not math.isfinite(cost):
        return False
    return history[-1] - history[-9] < 0.02 * (cost - history[-9])


class Brief(Search):
    """A search of so many deterministic seconds and, where that is less, of so many of the clock's."""

    def __init__(self, problem: PairwiseProblem, seconds: float, wall: float) -> None:
        super().__init__(problem, time_limit=seconds, deterministic=True)
        self.wall = wall

    def expired(self, steps: float = 1e4) -> bool:
        self.cut_short |= self.seconds() >= self.wall
        return super().expired(steps) or self.cut_short


def relaxation_bound(problem: PairwiseProblem, upper: float, wall: float = math.inf) -> tuple[float, Inequalities]:
    """The bound of about a second of cutting planes, or of ``wall`` seconds of the clock where that is less, and why.

    ``upper`` is the cost of a known coloring, inf where there is none.
    """
    search = Brief(problem, 1.0, wall)
    search.cost = upper
    lp = PairLP(problem, upper)
    if lp.pairs and wall > 0:
        cut_root(lp, search)
    evidence = search.certificate if isinstance(search.certificate, Inequalities) else Inequalities()
    return evidence.bound(problem), evidence


def rounding(search: Search) -> float:
    """How far apart two sums of the same costs may come out."""
    return 1e-12 * search.problem.scale * max(search.problem.size, 1)


def target(search: Search) -> float:
    """From this bound on the incumbent counts as optimal."""
    if not math.isfinite(search.cost):
        return math.inf
    return search.cost - max(OPTIMALITY_GAP / 2 * abs(search.cost), rounding(search))


def rounded(bound: float, search: Search) -> float:
    """A bound as strong as the grain of the costs allows; one below the incumbent by rounding counts as its cost."""
    bound = round_up(bound, search.problem.grain)
    return search.cost if abs(bound - search.cost) <= rounding(search) else bound
