"""Is a plan stable? The bootstrap over parts of the calibration data says whether less of it would have done.

Sums add, so curvature need not be measured again for a resample: parts are drawn with replacement from those measured
(Efron & Tibshirani 1993, ch. 6). If plans of resamples hardly cost more than the plan of the whole, the data suffices.
"""

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, pairwise

import numpy as np
from torch import Tensor, nn

from geocolor.carry_out import factorize_plan
from geocolor.curvature import Curvature, Sums, accumulate, finish
from geocolor.graph import KINDS, price
from geocolor.layers import Layer, weight_of
from geocolor.losses import Batch, Loss, loss_for
from geocolor.planning import plan
from geocolor.plans import Plan

Change = dict[str, Tensor]
"""`δ = Ŵ − W` of every factored layer, m × n."""


@dataclass(frozen=True)
class Stability:
    """How plan and predicted damage vary with the data, an entry for every resample.

    `damage` is what is predicted for `plan`, that of all the data; `damages` what resamples predict for the very same
    factors. `regrets` is by what fraction the plans that resamples make are worse than `plan`, both judged by all the
    data: negative where one is better. `agreements` is the Jaccard index of the pairs of layers that share a basis.
    """

    plan: Plan
    damage: float
    damages: tuple[float, ...]
    regrets: tuple[float, ...]
    agreements: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Standard error of the predicted damage, relative to it."""
        return float(np.std(self.damages, ddof=1)) / self.damage if self.damage else 0.0

    @property
    def stable(self) -> bool:
        """Whether nine in ten resamples make a plan that is within 5 % of the one of all the data."""
        return float(np.mean(np.array(self.regrets) <= 0.05)) >= 0.9

    def __str__(self) -> str:
        verdict = "the plan is stable" if self.stable else "the plan is not stable: measure on more data"
        return (
            f"predicted damage {self.damage:.4g} ± {100 * self.spread:.1f} %; plans of {len(self.damages)} resamples "
            f"are {100 * float(np.mean(self.regrets)):+.1f} % from it (90 % below "
            f"{100 * float(np.quantile(self.regrets, 0.9)):+.1f} %) and agree with {np.mean(self.agreements):.2f} of "
            f"its pairs: {verdict}"
        )


def parts(
    model: nn.Module,
    batches: Sequence[Batch],
    layers: Sequence[Layer],
    loss: Loss | None = None,
    *,
    count: int = 8,
    draws: int = 1,
    seed: int = 0,
) -> list[Sums]:
    """Sums of `count` parts of the data, or as many as there are batches; together they are those of the whole."""
    if count < 2 or len(batches) < 2:
        raise ValueError(f"a bootstrap needs 2 parts or more, here are {min(count, len(batches))}: pass more batches")
    loss = loss_for(model, batches[0], loss)
    edges = np.linspace(0, len(batches), min(count, len(batches)) + 1).round().astype(int).tolist()
    return [
        accumulate(model, batches[first:last], loss, layers, draws=draws, seed=seed, first=first)
        for first, last in pairwise(edges)
    ]


def bootstrap(
    model: nn.Module,
    shards: Sequence[Sums],
    keep: float,
    *,
    resamples: int = 20,
    solver: str = "greedy",
    damping: float = 1e-3,
    aggregate: float = 1.0,
    time_limit: float = 10.0,
    seed: int = 0,
) -> Stability:
    """Plan with all shards, and with as many drawn from them with replacement, again and again.

    Nothing is calibrated, since that looks at the model and not at the sums. A resample costs a price and a search.
    """
    generator = np.random.default_rng(seed)

    def planned(curvature: Curvature) -> Plan:
        graph = price(model, curvature, kinds=KINDS, aggregate=aggregate)
        return plan(graph, keep, solver=solver, time_limit=time_limit, seed=seed)

    whole = _finished(shards, damping)
    chosen = planned(whole)
    change = changes(model, chosen, whole)
    damage = predicted(change, whole)
    damages, regrets, agreements = [], [], []
    for _ in range(resamples):
        times = generator.multinomial(len(shards), np.full(len(shards), 1 / len(shards)))
        drawn = _finished([shard.times(int(n)) for shard, n in zip(shards, times, strict=True) if n], damping)
        other = planned(drawn)
        damages.append(predicted(change, drawn))
        regrets.append(predicted(changes(model, other, drawn), whole) / damage - 1 if damage else 0.0)
        agreements.append(agreement(chosen, other))
    return Stability(chosen, damage, tuple(damages), tuple(regrets), tuple(agreements))


def agreement(one: Plan, other: Plan) -> float:
    """Of the pairs of layers that share a basis in either plan, the fraction that does in both; 1 where none does."""
    ours, theirs = _pairs(one), _pairs(other)
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def changes(model: nn.Module, plan: Plan, curvature: Curvature) -> Change:
    """What carrying out a plan does to the weights, float64."""
    layers = {layer.name: layer for layer in curvature.layers}
    return {
        name: factors.dense(name) - weight_of(model, layers[name])
        for factors in factorize_plan(model, plan, curvature)
        for name in factors.layers
    }


def predicted(change: Change, curvature: Curvature) -> float:
    """`Σ ½ tr(G δ A δᵀ)` over the layers that change."""
    return sum(curvature.damage(name, delta) for name, delta in change.items())


def _finished(shards: Iterable[Sums], damping: float) -> Curvature:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that data is scarce is what this is about
        return finish(reduce(operator.add, shards), damping=damping)


def _pairs(plan: Plan) -> set[tuple[str, str]]:
    return {pair for cls in plan.classes for pair in combinations(sorted(cls.layers), 2)}
