"""One run of a race, as a record that can be written down, and the measures by which races are judged.

>>> import solvers
>>> problem = solvers.MedoidProblem([[0, 4, 9], [3, 0, 8], [9, 7, 0]], K=2)
>>> run = run_once(problem, "exhaustive", instance="three")
>>> run.cost, run.proven, primal_integral(run, best=3.0) < 0.5
(3.0, True, True)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.certify import certify
from solvers.problem import Problem
from solvers.solution import relative_gap
from solvers.solve import solve
from solvers.solver import Solver

MOST_TRACE = 200
"""A record keeps so many points of the trace at most, the first and the last among them."""


@dataclass(frozen=True)
class Run:
    """What came out of one solver on one instance.

    Attributes:
        instance: the name of the instance.
        kind: medoid, pairwise or group.
        size: its number of items.
        solver: the solver that ran; what "auto" picked is in ``message``.
        seed, time_limit: as given to ``solve``.
        cost: inf without a coloring.
        lower_bound: −inf where nothing is known.
        certified: the bound that an independent check finds from the certificate alone.
        status: as in ``Solution``; "crashed" or "killed" where there is none.
        seconds: wall time.
        trace: (seconds, cost, bound) at every improvement.
        message: the solution's message, or what went wrong.
    """

    instance: str
    kind: str
    size: int
    solver: str
    seed: int
    time_limit: float
    cost: float
    lower_bound: float
    certified: float
    status: str
    seconds: float
    trace: tuple[tuple[float, float, float], ...] = ()
    message: str = ""

    @property
    def gap(self) -> float:
        return relative_gap(self.cost, self.lower_bound)

    @property
    def proven(self) -> bool:
        """Whether the optimum was found and proven, or that there is none."""
        return self.status in ("optimal", "infeasible")

    @property
    def key(self) -> tuple[str, str, int, float]:
        """What tells one run of a race from all others."""
        return self.instance, self.solver, self.seed, self.time_limit

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ±inf as texts."""
        record: dict[str, Any] = _plain(asdict(self))
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Run:
        """The inverse of ``to_json``. Raises ``ValueError`` naming a field that is missing or unknown."""
        known = {field.name for field in fields(cls)}
        odd = sorted(set(record) ^ known)
        if odd:
            raise ValueError(
                f"a run's record has the fields {', '.join(sorted(known))}; {odd[0]!r} is missing or unknown"
            )
        values = {name: _number(value) for name, value in record.items()}
        values["trace"] = tuple(tuple(_number(entry) for entry in point) for point in record["trace"])
        return cls(**values)


def run_once(
    problem: Problem,
    solver: str | Solver,
    *,
    instance: str,
    seed: int = 0,
    time_limit: float = 60.0,
    deterministic: bool = False,
) -> Run:
    """Solve and check; whatever ``solve`` refuses is raised."""
    name = solver if isinstance(solver, str) else solver.name
    solution = solve(problem, solver, seed=seed, time_limit=time_limit, deterministic=deterministic)
    verdict = certify(problem, solution)
    if not verdict.sound:
        raise RuntimeError(f"{name} on {instance}: {verdict}")
    return Run(
        instance=instance,
        kind=type(problem).__name__.removesuffix("Problem").lower(),
        size=problem.size,
        solver=name,
        seed=seed,
        time_limit=time_limit,
        cost=solution.cost,
        lower_bound=solution.lower_bound,
        certified=verdict.bound,
        status=solution.status,
        seconds=solution.seconds,
        trace=thinned(solution.trace),
        message=solution.message,
    )


def primal_gap(cost: float, best: float) -> float:
    """``|cost − best| / max(|cost|, |best|)``, 0 where both are equal, 1 without a coloring or with another sign."""
    if cost == best:
        return 0.0
    if not math.isfinite(cost) or cost * best < 0:
        return 1.0
    return min(1.0, abs(cost - best) / max(abs(cost), abs(best)))


def primal_integral(run: Run, best: float) -> float:
    """The mean of the primal gap over the time limit, 0 to 1 (Berthold 2013, "Measuring the impact of primal
    heuristics"): low for those that are early near ``best``."""
    if not math.isfinite(run.time_limit):
        raise ValueError("a primal integral needs a finite time limit")
    total, since, gap = 0.0, 0.0, 1.0
    for seconds, cost, _ in run.trace:
        at = min(seconds, run.time_limit)
        total += gap * (at - since)
        since, gap = at, primal_gap(cost, best)
    return (total + gap * max(run.time_limit - since, 0.0)) / run.time_limit


def time_to_target(run: Run, target: float) -> float:
    """Seconds until the incumbent cost at most ``target``; inf where it never did."""
    return next((seconds for seconds, cost, _ in run.trace if cost <= target), math.inf)


def time_to_proof(run: Run) -> float:
    """Seconds until the answer was proven; inf where it was not."""
    return run.seconds if run.proven else math.inf


def shifted_geometric_mean(values: ArrayLike, shift: float = 1.0) -> float:
    """``exp(mean(log(v + shift))) − shift``: neither the hardest nor the easiest values rule it (Achterberg 2007)."""
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        raise ValueError("there is no mean of no values")
    return float(np.exp(np.log(numbers + shift).mean()) - shift)


def performance_profile(
    times: Mapping[str, Sequence[float]],
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each solver ``ρ(τ)``, the fraction of instances it settles within τ times the quickest's time.

    Dolan & Moré 2002. ``times[solver][i]`` is its time on instance i, inf for a failure; instances that nobody settles
    stay in the denominator. Returned are the steps: ratios in ascending order and the fraction reached at each.
    """
    names = list(times)
    table = np.array([list(times[name]) for name in names], dtype=np.float64)
    if table.ndim != 2:
        raise ValueError("every solver needs a time for every instance")
    quickest = np.maximum(table.min(axis=0, initial=np.inf), 1e-3)  # what takes under a millisecond is equal
    profiles = {}
    for name, row in zip(names, table, strict=True):
        ratios = np.sort(np.maximum(row, 1e-3)[np.isfinite(row)] / quickest[np.isfinite(row)])
        profiles[name] = (ratios, np.arange(1, len(ratios) + 1) / max(table.shape[1], 1))
    return profiles


def thinned(trace: Sequence[tuple[float, float, float]]) -> tuple[tuple[float, float, float], ...]:
    """At most ``MOST_TRACE`` points of a trace, the first and the last among them."""
    if len(trace) <= MOST_TRACE:
        return tuple(trace)
    chosen = np.unique(np.linspace(0, len(trace) - 1, MOST_TRACE).round().astype(int))
    return tuple(trace[at] for at in chosen)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return repr(value) if isinstance(value, float) and math.isinf(value) else value


def _number(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf") else value
