"""What a solve hands back: a coloring, its price, a bound, and how they were come by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from solvers.certificates import Certificate
from solvers.coloring import Coloring

Status = Literal["optimal", "feasible", "infeasible", "time_limit", "unknown"]

OPTIMALITY_GAP = 1e-6
"""A relative gap up to this counts as optimal: integer-scaled costs and float sums allow no less."""


def relative_gap(cost: float, lower_bound: float) -> float:
    """``(cost − bound) / max(|cost|, |bound|)``; 0 where they are equal, inf where either is not finite."""
    if cost == lower_bound:
        return 0.0
    if not math.isfinite(cost) or not math.isfinite(lower_bound):
        return math.inf
    return max(0.0, cost - lower_bound) / max(abs(cost), abs(lower_bound))


@dataclass(frozen=True)
class Solution:
    """The answer of one solve. ``cost`` is always the problem's own price of ``coloring``, never a solver's claim.

    Attributes:
        coloring: the best coloring found; None when none was.
        representatives: the candidate of each class (medoid problems), −1 for a class that owns none.
        cost: its price, inf without a coloring.
        lower_bound: no coloring costs less; −inf when nothing is known, inf when it is proven that there is none.
        status: ``optimal`` (the gap is closed), ``feasible``, ``time_limit`` (stopped early, with a coloring or
            without), ``infeasible`` (it is proven that there is no coloring), or ``unknown`` (the solver was done and
            had found none, which proves nothing).
        seconds: wall time.
        trace: (seconds, cost of the incumbent, bound) at every improvement of either.
        solver: the name of the solver that ran, the one picked if it was "auto".
        settings: its settings.
        seed: the seed.
        oracle_calls: calls of ``group_cost`` that this solve made (group problems).
        interrupted: whether Ctrl-C ended it; whoever asks for several solves should stop too.
        certificate: evidence for a lower bound that ``solvers.certify`` checks without trusting any solver.
        proof: what ``lower_bound`` rests on where that is more than the certificate, such as an exhausted tree.
        message: what was picked and why, what stopped it, what to try.
    """

    coloring: Coloring | None
    representatives: tuple[int, ...]
    cost: float
    lower_bound: float
    status: Status
    seconds: float
    trace: tuple[tuple[float, float, float], ...] = field(repr=False)
    solver: str
    settings: Mapping[str, object]
    seed: int = 0
    oracle_calls: int = 0
    message: str = ""
    interrupted: bool = False
    certificate: Certificate | None = field(default=None, repr=False)
    proof: str = ""

    @property
    def gap(self) -> float:
        """The relative gap between cost and bound, see ``relative_gap``."""
        return relative_gap(self.cost, self.lower_bound)
