"""Geo-Sharing (Zhang et al. 2025, arXiv:2511.06786): layers lend their own bases, priced by the Hessian's axes.

    curvature = geocolor.curvature.measure_axes(model, batches)
    plan = plan_geo_sharing(model, curvature, keep=0.8)
    smaller = geocolor.apply(model, plan, curvature)

Layer `b` offers the leading singular vectors `U_b`, `V_b` of its weight. What it costs layer ℓ to take them is the
energy of `δ = U_b S V_bᵀ − W_ℓ` in the directions of high curvature, `S` being the best within the trust region
(`geocolor.axes_trust_region`). At most `K` layers lend, each layer takes the cheapest: a p-median problem.

With minor axes the high curvature is everything outside them. With leading axes it would be they alone, and `r²`
coefficients meet the `t` conditions of so few axes exactly: any basis would be free. There the cost is the whole
predicted damage, the mean curvature of the other directions included.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from geocolor.axes_trust_region import axis_metric, fit_ranks, own_basis
from geocolor.budget import UnreachableError, count_bases
from geocolor.curvature.exact import Kind
from geocolor.curvature.lanczos import LanczosCurvature, Which, measure_axes
from geocolor.graph import medoid_rank
from geocolor.journal import Journal
from geocolor.layers import Layer, weight_of
from geocolor.losses import Batch, Loss, device_of, head, loss_for, move
from geocolor.modes import evaluating
from geocolor.planning import completed, plain
from geocolor.plans import Plan, PlannedClass, fingerprint, shapes_of
from geocolor.progress import bar
from geocolor.trust_region import Fit, Mode
from solvers import MedoidProblem, Solver, solve

#: Ranks that are tried for all layers of a shape, as fractions of `min(m, n)`, and layers per basis.
RANK_FRACTIONS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
LAYERS_PER_BASIS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

#: Defaults: axes of each layer, samples and units of the loss (tokens) behind them, radius of the trust region. A
#: product of the Hessian is about three forward passes, and every layer takes some `2t + 20` of them.
AXES, SAMPLES, UNITS, BETA = 25, 8, 512, 1e-2

Group = tuple[int, ...]


def geo_sharing(
    model: nn.Module,
    calibration: Sequence[Batch],
    loss: Loss | None = None,
    *,
    keep: float | None = None,
    bases: int | None = None,
    rank_fraction: float = 0.5,
    axes: int = AXES,
    which: Which = "minor",
    kind: Kind = "gauss-newton",
    samples: int = SAMPLES,
    units: int = UNITS,
    layers: Sequence[Layer] | None = None,
    beta: float | None = BETA,
    mode: Mode = "coefficients",
    solver: str | Solver = "auto",
    time_limit: float = 60.0,
    seed: int = 0,
    progress: bool = False,
    journal: Journal | None = None,
) -> tuple[Plan, LanczosCurvature]:
    """`measure_axes` on a few calibration samples, spread over some batches, and `plan_geo_sharing`.

    At most `samples`, fewer where they hold more than `units` of the loss (tokens) together, at least one. What the
    `journal` holds is not done again.
    """
    journal = journal or Journal()
    loss = loss_for(model, calibration[0], loss)
    one = move(head(calibration[0], 1), device_of(model))
    with evaluating(model):
        counted = loss.units(loss.forward(model, one), one)
    samples = max(1, min(samples, units // max(counted, 1)))
    curvature = measure_axes(
        model,
        spread(calibration, samples),
        loss,
        axes=axes,
        which=which,
        kind=kind,
        layers=layers,
        seed=seed,
        progress=progress,
        journal=journal,
    )

    def planned() -> dict[str, Any]:
        return plan_geo_sharing(
            model,
            curvature,
            keep=keep,
            bases=bases,
            rank_fraction=rank_fraction,
            beta=beta,
            mode=mode,
            solver=solver,
            time_limit=time_limit,
            seed=seed,
            progress=progress,
        ).model_dump(mode="json")

    return Plan.model_validate(journal.value("plan", planned)), curvature


def plan_geo_sharing(
    model: nn.Module,
    curvature: LanczosCurvature,
    *,
    keep: float | None = None,
    bases: int | None = None,
    rank_fraction: float = 0.5,
    beta: float | None = BETA,
    mode: Mode = "coefficients",
    solver: str | Solver = "auto",
    time_limit: float = 60.0,
    seed: int = 0,
    progress: bool = False,
) -> Plan:
    """Which layers lend their bases to which others, so that the high-curvature energy of the change is least.

    With `bases` at most that many layers lend one of rank `rank_fraction · min(m, n)`. With `keep`, the fraction of
    the parameters in scope that may remain, numbers of bases and ranks are chosen for every shape of layer (a shape
    whose factors would hold more than its weights stays dense), then ranks of single classes rise until nothing more
    fits. `beta` is the trust region's radius relative to the weight (None: none), `mode` how it is kept, see
    `fit_axes`; `time_limit` is for all searches together, in seconds.

    Raises `ValueError` unless exactly one of `keep` and `bases` is given, where it makes no sense or cannot be met,
    and for weights that are not finite.
    """
    started = time.perf_counter()
    if (keep is None) == (bases is None):
        raise ValueError("geo-sharing takes one budget: keep (fraction of the parameters in scope) or bases")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep is the fraction of parameters that remain, above 0 and at most 1; got {keep:g}")
    if not 0 < rank_fraction <= 1:
        raise ValueError(f"rank_fraction is above 0 and at most 1; got {rank_fraction:g}")
    if beta is not None and not beta > 0:
        raise ValueError(f"beta, the trust region's radius relative to the weight, must be positive; got {beta:g}")
    lenders = _Lenders(model, curvature, beta, mode)
    if bases is not None:
        drafts, lower_bound, settings = _with_bases(
            lenders, bases, rank_fraction, solver, time_limit, seed, progress=progress
        )
    else:
        assert keep is not None
        drafts, lower_bound, settings = _within(lenders, keep, solver, time_limit, seed, progress=progress)
    objective = math.fsum(lenders.class_cost(draft) for draft in drafts)
    return Plan(
        fingerprint=fingerprint(model, curvature.layers),
        layers=shapes_of(curvature.layers),
        classes=tuple(lenders.planned(draft) for draft in drafts),
        keep=keep,
        bases=bases,
        price=0.0,
        trust_region=beta,
        objective=objective,
        lower_bound=lower_bound,
        gap=max(0.0, objective - lower_bound) / objective if objective > 0 else 0.0,
        solver="geo-sharing",
        solver_settings=settings,
        seconds=time.perf_counter() - started,
        curvature={
            "estimate": curvature.estimate,
            "which": curvature.which,
            "kind": curvature.kind,
            "axes": max(len(each.values) for each in curvature.axes.values()),
            "mode": mode,
            "loss": curvature.loss,
            "unit": curvature.unit,
            "units": curvature.units,
            "samples": curvature.samples,
            "seed": curvature.seed,
        },
    )


def spread(batches: Sequence[Batch], samples: int, most: int = 8) -> list[Batch]:
    """`samples` samples (more where they do not divide), up to `most` from each of a few batches, evenly spread."""
    count = min(-(-samples // most), len(batches))
    chosen = ((np.arange(count) + 0.5) * len(batches) / count).astype(int).tolist()
    return [head(batches[i], -(-samples // count)) for i in chosen]


@dataclass(frozen=True)
class _Draft:
    """A class: layers, who lends the basis and its rank; rank 0 stands for dense."""

    group: Group
    medoid: int
    rank: int


class _Lenders:
    """Layers, what each of them could lend, and what taking it costs the others."""

    def __init__(self, model: nn.Module, curvature: LanczosCurvature, beta: float | None, mode: Mode) -> None:
        self.layers, self.curvature, self.beta, self.mode = curvature.layers, curvature, beta, mode
        self.weights = [weight_of(model, layer) for layer in self.layers]
        self.bases = [own_basis(weight) for weight in self.weights]

    @cached_property
    def shapes(self) -> list[Group]:
        """Layers that could lend to each other, by shape."""
        sides = [(layer.in_side, layer.out_side) for layer in self.layers]
        return [tuple(i for i, own in enumerate(sides) if own == side) for side in dict.fromkeys(sides)]

    def fits(self, item: int, lenders: Group, ranks: Sequence[int]) -> list[list[Fit]]:
        """Layer `item` in the bases of some layers, at some ranks: a list for each lender."""
        metric = axis_metric(self.weights[item], self.curvature.axes[self.layers[item].name])
        return [fit_ranks(metric, *self.bases[b], ranks, self.beta, self.mode) for b in lenders]

    def costs(self, item: int, lenders: Group, ranks: Sequence[int]) -> NDArray[np.float64]:
        """What `fits` cost, lenders × ranks."""
        return np.array([[*map(self.price, found)] for found in self.fits(item, lenders, ranks)])

    def class_fits(self, draft: _Draft) -> list[Fit]:
        return [self.fits(i, (draft.medoid,), (draft.rank,))[0][0] for i in draft.group]

    def price(self, fit: Fit) -> float:
        return fit.sharp_damage if self.curvature.which == "minor" else fit.damage

    def class_cost(self, draft: _Draft) -> float:
        return math.fsum(map(self.price, self.class_fits(draft))) if draft.rank else 0.0

    def parameters(self, draft: _Draft) -> int:
        layer, size = self.layers[draft.group[0]], len(draft.group)
        factored = (layer.m + layer.n) * draft.rank + size * draft.rank**2
        return factored if draft.rank else size * layer.parameters

    def planned(self, draft: _Draft) -> PlannedClass:
        names = tuple(self.layers[i].name for i in draft.group)
        if not draft.rank:
            return PlannedClass(
                kind="dense", layers=names, parameters=self.parameters(draft), damage=dict.fromkeys(names, 0.0)
            )
        damages = [fit.damage for fit in self.class_fits(draft)]
        return PlannedClass(
            kind="both",
            layers=names,
            rank=draft.rank,
            right_rank=draft.rank,
            medoid=self.layers[draft.medoid].name,
            parameters=self.parameters(draft),
            damage=dict(zip(names, damages, strict=True)),
        )


def _with_bases(
    lenders: _Lenders,
    bases: int,
    rank_fraction: float,
    solver: str | Solver,
    time_limit: float,
    seed: int,
    *,
    progress: bool,
) -> tuple[list[_Draft], float, dict[str, Any]]:
    size, shapes = len(lenders.layers), lenders.shapes
    if not len(shapes) <= bases <= size:
        raise ValueError(
            f"{count_bases(bases)} cannot serve {size} layers of {len(shapes)} shapes: ask for {len(shapes)} to {size},"
            " or leave layers out with exclude"
        )
    cost = np.full((size, size), np.inf)
    ranks = [medoid_rank(layer, rank_fraction) for layer in lenders.layers]
    with bar("pricing layers in every basis", size, wanted=progress) as advance:
        for group in shapes:
            for i in group:
                cost[i, list(group)] = lenders.costs(i, group, (ranks[i],))[:, 0]
                advance()
    solution = completed(solve(MedoidProblem(cost, K=bases), solver, time_limit=time_limit, seed=seed))
    assert solution.coloring is not None
    drafts = [
        _Draft(tuple(group), medoid, ranks[medoid])
        for group, medoid in zip(solution.coloring.classes(), solution.representatives, strict=True)
    ]
    return drafts, solution.lower_bound, {"solver": solution.solver, **plain(solution.settings)}


def _within(
    lenders: _Lenders, keep: float, solver: str | Solver, time_limit: float, seed: int, *, progress: bool
) -> tuple[list[_Draft], float, dict[str, Any]]:
    """Options of every shape, the best of their combinations within the budget, then single ranks raised."""
    budget = math.floor(keep * sum(layer.parameters for layer in lenders.layers))
    front: list[tuple[int, float, list[_Draft]]] = [(0, 0.0, [])]
    with bar("pricing layers in every basis", len(lenders.layers), wanted=progress) as advance:
        for group in lenders.shapes:
            share = time_limit * len(group) / len(lenders.layers)
            own = _options(lenders, group, solver, share, seed, advance)
            sums = [(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in itertools.product(front, own)]
            front = _pareto(sums)
    within = [each for each in front if each[0] <= budget]
    if not within:
        least = min(each[0] for each in front) * keep / budget if budget else 0.0
        raise UnreachableError(
            f"keep={keep:g} cannot be reached by geo-sharing: the least it tries for these layers is keep={least:.4g}; "
            "raise keep, or give bases and rank_fraction"
        )
    drafts = _raised(lenders, within[-1][2], budget)
    return drafts, -math.inf, {"solver": solver if isinstance(solver, str) else solver.name}


Choice = tuple[int, float, list[_Draft]]
"""Parameters, cost and classes of the layers of one shape, or of several."""


def _pareto(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no smaller one equals or beats, parameters rising and cost falling."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda each: each[:2]):
        if not kept or choice[1] < kept[-1][1]:
            kept.append(choice)
    return kept


def _options(
    lenders: _Lenders, group: Group, solver: str | Solver, time_limit: float, seed: int, advance: Any
) -> list[Choice]:
    """Every rank with every number of bases for the layers of one shape, and all of them dense."""
    size, layer = len(group), lenders.layers[group[0]]
    ranks = sorted({medoid_rank(layer, fraction) for fraction in RANK_FRACTIONS})
    cost: NDArray[np.float64] = np.zeros((len(ranks), size, size))
    for row, i in enumerate(group):
        cost[:, row] = lenders.costs(i, group, ranks).T
        advance()
    dense = [_Draft((i,), i, 0) for i in group]
    options: list[Choice] = [(size * layer.parameters, 0.0, dense)]
    numbers = sorted({-(-size // each) for each in LAYERS_PER_BASIS if each <= size} | {1})
    wanted = [
        (k, bases)
        for k, rank in enumerate(ranks)
        for bases in numbers
        if bases * rank * (layer.m + layer.n) + size * rank**2 < size * layer.parameters
    ]
    for k, bases in wanted:
        problem = MedoidProblem(cost[k], K=bases)
        solution = completed(solve(problem, solver, time_limit=time_limit / len(wanted), seed=seed))
        assert solution.coloring is not None
        drafts = [
            _Draft(tuple(group[j] for j in members), group[medoid], ranks[k])
            for members, medoid in zip(solution.coloring.classes(), solution.representatives, strict=True)
        ]
        options.append((sum(map(lenders.parameters, drafts)), solution.cost, drafts))
    return _pareto(options)


def _raised(lenders: _Lenders, drafts: list[_Draft], budget: int) -> list[_Draft]:
    """Ranks raised by one, where a parameter gains most, until no class's next rank fits."""
    drafts = list(drafts)
    left = budget - sum(map(lenders.parameters, drafts))
    gains: dict[_Draft, tuple[float, int, _Draft]] = {}
    while True:
        best: tuple[float, int, _Draft] | None = None
        where = -1
        for k, draft in enumerate(drafts):
            layer = lenders.layers[draft.group[0]]
            if not draft.rank or draft.rank + 1 >= min(layer.m, layer.n):
                continue
            if draft not in gains:
                wider = _Draft(draft.group, draft.medoid, draft.rank + 1)
                more = lenders.parameters(wider) - lenders.parameters(draft)
                if more > left:
                    continue
                gains[draft] = (lenders.class_cost(draft) - lenders.class_cost(wider), more, wider)
            gain, more, _ = gains[draft]
            if more <= left and (best is None or gain / more > best[0] / best[1]):
                best, where = gains[draft], k
        if best is None:
            return drafts
        drafts[where], left = best[2], left - best[1]
