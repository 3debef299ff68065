"""From a cost graph to a plan: find the price of a parameter that meets the budget, and the coloring at that price.

A coloring is searched at a price `λ`; then, the coloring fixed, ranks are chosen again so that the budget is met, which
gives the next `λ`. Weak duality turns a solver's bound at `λ` into one at the budget: for every plan with at most `N`
parameters `Σ φ(D) ≥ min_α Σ f_λ − λN`, and for two budgets, whatever their weight, likewise with the size `N` that
both together allow.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from geocolor.budget import WEIGHTS, Allocation, Group, Limits, UnreachableError, allocate, count_bases
from geocolor.carry_out import factorize_class
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph, medoid_rank
from geocolor.journal import Journal
from geocolor.plans import Plan, PlannedClass, shapes_of
from geocolor.progress import countdown
from geocolor.rate_distortion import Option
from solvers import Coloring, ColumnGeneration, GroupProblem, LocalSearch, Solution, Solver, solve
from solvers.auto import choose

#: Of local search, where the solver is "auto".
DISTURBANCES = 2


def plan(
    graph: CostGraph,
    keep: float | None = None,
    bases: int | None = None,
    *,
    max_flops: float | None = None,
    solver: str | Solver = "auto",
    beta: float | None = None,
    flat_energy: float = 0.05,
    rank_fraction: float = 0.5,
    rounds: int = 4,
    time_limit: float = 60.0,
    seed: int = 0,
    progress: bool = False,
    journal: Journal | None = None,
) -> Plan:
    """Choose classes, kinds and ranks so that predicted damage is least within the budget.

    `keep` is the fraction of the parameters in scope that may remain, `max_flops` that of the FLOPs per position;
    `bases` the most colors that may own a basis. With `keep` or `max_flops` the rate–distortion price is searched, and
    the plan is never predicted worse than the best without sharing. With `bases` alone it is the paper's form: at most
    that many layers lend their own basis, of rank `rank_fraction · min(m, n)`, to the others. `beta` is the trust
    region's radius relative to the weight (DESIGN §7); `time_limit` is for all of the search, in seconds, once every
    pair has been priced. Raises `ValueError` for budgets that make no sense or cannot be met.
    """
    _check_budget(graph, keep, bases, max_flops)
    started = time.perf_counter()
    solution: Solution | None
    weight = 0.0
    if keep is None and max_flops is None:
        assert bases is not None
        classes, lent = _medoid_plan(graph, bases, rank_fraction, beta, flat_energy, solver, time_limit, seed, progress)
        price, private, solution = 0.0, None, lent
        objective, lower_bound = lent.cost, lent.lower_bound
    else:
        graph, budget = budgeted(graph, keep, max_flops), limits(graph, keep, max_flops)
        alone = _without_sharing(graph, budget, bases)
        if solver != "private" and (alone is None or alone.price > 0):
            graph.price_pairs(progress=progress, journal=journal)
        with countdown("searching a coloring", time_limit, wanted=progress):
            best, solution, lower_bound = _search(graph, alone, budget, bases, solver, rounds, time_limit, seed)
        classes = [_planned(graph, group, option) for group, option in zip(best.groups, best.options, strict=True)]
        price, objective, private = best.price, best.damage, alone.damage if alone else None
        weight = best.weight
    if beta is not None:
        classes = [_clipped(graph, cls, beta, flat_energy) for cls in classes]
    return Plan(
        **_header(graph, classes),
        keep=keep,
        bases=bases,
        max_flops=max_flops,
        price=price,
        flops_weight=weight,
        trust_region=beta,
        flat_energy=flat_energy if beta is not None or (keep is None and max_flops is None) else None,
        objective=objective,
        objective_without_sharing=private,
        lower_bound=lower_bound,
        gap=_gap(objective, lower_bound),
        solver=solution.solver if solution else "private",
        solver_settings=plain(solution.settings) if solution else {},
        seconds=time.perf_counter() - started,
    )


def fixed_plan(graph: CostGraph, groups: Sequence[Group], options: Sequence[Option], keep: float, name: str) -> Plan:
    """A plan that was not searched: the given classes (indices of `graph.layers`), each held as the given option.

    `name` stands where a plan names its solver. Raises `ValueError` where it holds more than `keep`.
    """
    classes = [_planned(graph, group, option) for group, option in zip(groups, options, strict=True)]
    damages = [damage**graph.aggregate for cls in classes for damage in cls.damage.values()]
    made = Plan(**_header(graph, classes), keep=keep, price=0.0, objective=math.fsum(damages), solver=name)
    if made.kept > keep:
        raise ValueError(f"{name}: ranks of at least 1 keep {made.kept:.4f} of the parameters, more than {keep}")
    return made


def _header(graph: CostGraph, classes: Sequence[PlannedClass]) -> dict[str, Any]:
    """What every plan says of its model, its curvature and its classes."""
    return {
        "fingerprint": graph.fingerprint,
        "layers": shapes_of(graph.layers),
        "classes": tuple(classes),
        "aggregate": graph.aggregate,
        "curvature": _measured(graph.curvature),
        "inputs": {name: first for name, first in graph.curvature.inputs.items() if name != first},
        "loads": {name: load for name, load in graph.loads.items() if load != 1.0},
    }


def limits(graph: CostGraph, keep: float | None, max_flops: float | None = None) -> Limits:
    """What the two fractions allow of the layers in scope."""
    dense = graph.parameters_dense
    return Limits(
        dense if keep is None else math.floor(keep * dense),
        None if max_flops is None else max_flops * dense,
    )


def budgeted(graph: CostGraph, keep: float | None, max_flops: float | None) -> CostGraph:
    """The graph with what is paid for under these budgets.

    Where all layers see the same positions, no class takes fewer operations than parameters, so that of two budgets
    the one on FLOPs alone counts where it is the smaller.
    """
    weights: tuple[float, ...] = (0.0,)
    if max_flops is not None:
        alone = keep is None or (max_flops <= keep and set(graph.loads.values()) == {1.0})
        weights = (1.0,) if alone else WEIGHTS
    return graph if graph.weights == weights else graph.weighing(weights)


def _check_budget(graph: CostGraph, keep: float | None, bases: int | None, max_flops: float | None) -> None:
    if keep is None and bases is None and max_flops is None:
        raise ValueError(
            "a plan needs a budget: keep (fraction of the parameters in scope), max_flops (of the FLOPs) and/or bases "
            "(their number)"
        )
    if max_flops is not None and not 0 < max_flops <= 1:
        raise ValueError(f"max_flops is the fraction of FLOPs that remain, above 0 and at most 1; got {max_flops:g}")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep is the fraction of parameters that remain, above 0 and at most 1; got {keep:g}")
    if bases is not None and bases < 1:
        raise ValueError(f"bases must be at least 1; got {bases}. To leave the model as it is, use keep=1")
    if bases is not None and bases > len(graph.layers):
        raise ValueError(
            f"bases={bases} is more than the {len(graph.layers)} layers in scope: each could own one; ask for fewer"
        )


def _without_sharing(graph: CostGraph, budget: Limits, bases: int | None) -> Allocation | None:
    """The best plan in which no basis is shared; None where only sharing meets the budget with so few bases."""
    try:
        return allocate(graph, [(i,) for i in range(len(graph.layers))], budget, bases)
    except UnreachableError:
        return None


def _search(
    graph: CostGraph,
    alone: Allocation | None,
    budget: Limits,
    bases: int | None,
    solver: str | Solver,
    rounds: int,
    time_limit: float,
    seed: int,
) -> tuple[Allocation, Solution | None, float]:
    """Alternate coloring at a price and price at the budget until the coloring stands; the best allocation met."""
    best, found, lower_bound = alone, None, -math.inf
    last: Coloring | None = None
    seen: set[Coloring] = set()
    weight = graph.weights[0]
    if alone is not None:
        price, weight = alone.price, alone.weight
        if price == 0.0:  # everything fits as it is
            return alone, None, 0.0
    else:  # so dear that the smallest coloring is the best one
        energies = [graph.metrics[layer.name].energy ** graph.aggregate for layer in graph.layers]
        price = 10 * math.fsum(energies)
    deadline = time.perf_counter() + time_limit
    for turn in range(rounds):
        left = max(deadline - time.perf_counter(), 0.0)
        if found is not None and left == 0.0:
            break
        problem = graph.weighed(weight).group_problem(price, bases)
        share = left / (rounds - turn)  # what one round leaves goes to the others
        solution = completed(solve(problem, _searcher(problem, solver), time_limit=share, seed=seed, start=last))
        lower_bound = max(lower_bound, solution.lower_bound - price * budget.size(weight))
        if solution.coloring is None or solution.coloring in seen:
            break
        last = solution.coloring
        seen.add(last)
        found = found or solution
        candidate = allocate(graph, last.classes(), budget, bases)
        price, weight = candidate.price, candidate.weight
        if best is None or candidate.damage < best.damage:
            best, found = candidate, solution
    if best is None:
        raise UnreachableError(f"{found.message if found else 'no coloring was found'}; raise keep, max_flops or bases")
    return best, found, max(lower_bound, 0.0)


def _searcher(problem: GroupProblem, solver: str | Solver) -> str | Solver:
    """What "auto" is here: a class costs eigenproblems, and the bounds of column generation do not close their gap.

    Local search found the same plans of stories260K and MiniLM in half the time. 0, 2 and 20 disturbances of its first
    answer come to the same plans of stories260K at keep 0.8 and 0.5, in 1 s, 2 s and 6 s.
    """
    if solver == "auto" and isinstance(choose(problem)[0], ColumnGeneration):
        return LocalSearch(rounds=DISTURBANCES)
    return solver


def completed(solution: Solution) -> Solution:
    """A plan is not made from a search that the user broke off."""
    if solution.interrupted:
        raise KeyboardInterrupt
    return solution


def _planned(graph: CostGraph, group: Group, option: Option) -> PlannedClass:
    return PlannedClass(
        kind=option.kind,
        layers=tuple(graph.layers[i].name for i in group),
        rank=option.rank,
        right_rank=option.right_rank,
        parameters=option.parameters,
        damage=graph.damage(group, option),
    )


def _medoid_plan(
    graph: CostGraph,
    bases: int,
    rank_fraction: float,
    beta: float | None,
    flat_energy: float,
    solver: str | Solver,
    time_limit: float,
    seed: int,
    progress: bool,
) -> tuple[list[PlannedClass], Solution]:
    if not 0 < rank_fraction < 1:
        raise ValueError(f"rank_fraction is between 0 and 1, both excluded; got {rank_fraction}")
    problem = graph.medoid_problem(
        bases, rank_fraction=rank_fraction, beta=beta, flat_energy=flat_energy, progress=progress
    )
    with countdown("searching bases to lend", time_limit, wanted=progress):
        solution = completed(solve(problem, solver, time_limit=time_limit, seed=seed))
    if solution.coloring is None:
        shapes = len({(layer.in_side, layer.out_side) for layer in graph.layers})
        raise ValueError(
            f"{count_bases(bases)} cannot serve layers of {shapes} different shapes: ask for at least {shapes}, "
            "leave layers out with exclude, or give keep as well, which may leave layers dense"
        )
    classes = []
    for group, medoid in zip(solution.coloring.classes(), solution.representatives, strict=True):
        layer = graph.layers[medoid]
        rank = medoid_rank(layer, rank_fraction)
        names = tuple(graph.layers[i].name for i in group)
        draft = PlannedClass(
            kind="both",
            layers=names,
            rank=rank,
            right_rank=rank,
            medoid=layer.name,
            parameters=(layer.m + layer.n) * rank + len(names) * rank * rank,
            damage=dict.fromkeys(names, 0.0),
        )
        classes.append(_clipped(graph, draft, beta, flat_energy))
    return classes, solution


def _clipped(graph: CostGraph, cls: PlannedClass, beta: float | None, flat_energy: float) -> PlannedClass:
    """The class with the damage of its coefficients as they will be fitted under the trust region."""
    if cls.kind == "dense":
        return cls
    _, fits = factorize_class(cls, graph.metrics, graph.curvature, beta, flat_energy)
    return cls.model_copy(update={"damage": {name: fit.damage for name, fit in fits.items()}})


def _gap(cost: float, bound: float) -> float:
    if not math.isfinite(bound):
        return math.inf
    return max(0.0, cost - bound) / max(abs(cost), 1e-300) if cost > bound else 0.0


def plain(settings: Any) -> dict[str, Any]:
    """A solver's settings as a plan states them: numbers, texts and truth values."""
    values = asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else dict(settings)
    return {key: value for key, value in values.items() if isinstance(value, (str, int, float, bool, type(None)))}


def _measured(curvature: Curvature) -> dict[str, Any]:
    names = ("estimate", "loss", "unit", "units", "samples", "damping", "draws", "seed", "rounds")
    return {name: getattr(curvature, name) for name in names}
