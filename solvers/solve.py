"""The one entry point: a problem and a solver in, a solution that can be trusted out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from numbers import Integral

from solvers.auto import Auto, choose
from solvers.bounds import quick_bound, strong_bound
from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.problem import Problem, checked_coloring
from solvers.registry import find_solver, solver_names
from solvers.search import Search
from solvers.solution import OPTIMALITY_GAP, Solution, Status, relative_gap
from solvers.solver import Solver


def solve(
    problem: Problem,
    solver: str | Solver = "auto",
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    start: Iterable[int] | None = None,
    deterministic: bool = False,
) -> Solution:
    """Search for the cheapest coloring of a problem.

    Args:
        problem: a ``MedoidProblem``, ``PairwiseProblem`` or ``GroupProblem``.
        solver: a name (see ``solver_names``) or a solver object with its settings.
        time_limit: seconds; inf for none. A solver that has time to finish gives the same answer for the same seed.
        seed: where all randomness comes from.
        start: a coloring to begin from, or its colors; the answer is never worse.
        deterministic: count steps instead of wall time against the limit, so that a run cut short ends at the same
            place on any machine and with any number of workers; the wall time it takes is then only roughly the limit.

    Returns:
        A solution whose cost is ``problem.cost`` of its coloring and whose bound holds for every coloring. Ctrl-C ends
        the search early with the incumbent, where there is one.

    Raises:
        ValueError: for an unknown solver, one that does not support the problem (the sentence names those that do), a
            negative time limit or seed, or a start of the wrong length.
        TypeError: for what is no problem at all.
        RuntimeError: when a solver claims a bound above the cost of a coloring: a defect of that solver.
    """
    chosen = find_solver(solver)
    if math.isnan(time_limit) or time_limit < 0:
        raise ValueError(f"time_limit must be 0 seconds or more, got {time_limit}")
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number, 0 or more, got {seed!r}")
    if not isinstance(problem, Problem):
        raise TypeError(f"solve takes a problem, such as MedoidProblem(cost, K), not a {type(problem).__name__}")
    _check_support(chosen, problem)
    picked = ""
    if isinstance(chosen, Auto):
        chosen, reason = choose(problem)
        picked = f"auto picked {chosen.name}: {reason}"
    search = Search(problem, time_limit=time_limit, seed=seed, deterministic=deterministic)
    search.note(picked)
    calls = _oracle_calls(problem)
    first = quick_bound(problem)
    search.prove(first.value, first.certificate)
    if start is not None:
        search.offer(checked_coloring(Coloring(start), problem.size))
    interrupted = False
    if first.value == math.inf:
        search.note(first.reason)
    elif problem.size == 0:
        search.offer(Coloring([]))
    else:
        try:
            chosen.run(problem, search)
        except KeyboardInterrupt:
            if search.best is None:
                raise
            interrupted = True
            search.note(f"interrupted after {search.seconds():.1f} s; this is the best coloring found until then")
        if not interrupted and not search.closed() and search.remaining() > 0 and search.bound < math.inf:
            strong = strong_bound(problem, search.cost, search.clock_left())
            search.prove(strong.value, strong.certificate)
    solution = _finish(problem, chosen, search, _oracle_calls(problem) - calls)
    return replace(solution, interrupted=interrupted)


def _check_support(solver: Solver, problem: Problem) -> None:
    why = solver.refusal(problem)
    if why:
        others = [name for name in solver_names(problem) if name != solver.name]
        known = f"solvers that do: {', '.join(others)}" if others else "no solver does"
        raise ValueError(f"solver {solver.name!r} does not support this problem: {why}; {known}")


def _oracle_calls(problem: Problem) -> int:
    return problem.oracle_calls if isinstance(problem, GroupProblem) else 0


def _finish(problem: Problem, solver: Solver, search: Search, oracle_calls: int) -> Solution:
    """Price the incumbent once more, hold the bound against it, and say what came out."""
    coloring = search.best
    cost = math.inf if coloring is None else problem.cost(coloring)
    slack = 1e-9 * (abs(cost) + problem.scale * problem.size) if coloring is not None else 0.0
    if coloring is not None and search.bound > cost + slack:
        raise RuntimeError(
            f"solver {solver.name!r} claims that no coloring costs less than {search.bound!r}, but its own coloring "
            f"{coloring} costs {cost!r}; this is a defect of the solver"
        )
    status: Status
    if coloring is None:
        status = "time_limit" if search.cut_short else "unknown"
        if search.bound == math.inf:
            status = "infeasible"
        search.note(_why_nothing(solver, search))
    elif relative_gap(cost, min(search.bound, cost)) <= OPTIMALITY_GAP:
        status = "optimal"
    else:
        status = "time_limit" if search.cut_short else "feasible"
    return Solution(
        coloring=coloring,
        representatives=() if coloring is None else problem.representatives(coloring),
        cost=cost,
        lower_bound=search.bound if coloring is None else min(search.bound, cost),
        status=status,
        seconds=search.seconds(),
        trace=tuple(search.trace),
        solver=solver.name,
        settings={f.name: getattr(solver, f.name) for f in fields(solver)} if is_dataclass(solver) else {},
        seed=search.seed,
        oracle_calls=oracle_calls,
        message=". ".join(search.notes),
        certificate=search.certificate,
        proof=search.proof,
    )


def _why_nothing(solver: Solver, search: Search) -> str:
    if search.bound == math.inf:
        return "no coloring is allowed, which is proven" if not search.notes else ""
    if search.cut_short:
        return f"{solver.name} found no allowed coloring within {search.time_limit:g} s; give it more time"
    return (
        f"{solver.name} found no allowed coloring, which proves nothing; try an exact solver, a larger K or penalties"
    )
