"""A budget met: kinds and ranks for a fixed coloring, by the price of a parameter and of an operation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from geocolor.graph import CostGraph
from geocolor.rate_distortion import Option

Group = tuple[int, ...]


#: Shares of operations in what a price is paid for, where both parameters and FLOPs are limited: prices of the two are
#: searched along these directions.
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class Limits:
    """The most parameters, and the most operations (None: as many as they come to) of a plan."""

    parameters: int
    operations: float | None = None

    def size(self, weight: float) -> float:
        """The most that a price is paid for, operations weighing `weight`."""
        assert self.operations is not None or weight == 0
        return (1 - weight) * self.parameters + weight * (self.operations or 0)

    def hold(self, parameters: int, operations: float) -> bool:
        """Whether so much is allowed; operations up to the rounding of their sums."""
        return parameters <= self.parameters and (self.operations is None or operations <= self.operations * ROUNDING)


@dataclass(frozen=True)
class Allocation:
    """Classes with the option chosen for each; `damage` is the aggregate `Σ φ(D)`.

    `price` is the `λ` it was found at, `weight` the share `θ` of operations in what it is paid for.
    """

    groups: tuple[Group, ...]
    options: tuple[Option, ...]
    price: float
    weight: float = 0.0

    @property
    def parameters(self) -> int:
        return sum(option.parameters for option in self.options)

    @property
    def operations(self) -> float:
        return math.fsum(option.operations for option in self.options)

    @property
    def damage(self) -> float:
        return math.fsum(option.damage for option in self.options)

    def within(self, limits: Limits) -> bool:
        return limits.hold(self.parameters, self.operations)


class UnreachableError(ValueError):
    """A budget below what a coloring can be squeezed to."""


def allocate(
    graph: CostGraph,
    groups: Sequence[Group],
    budget: int | Limits,
    bases: int | None = None,
    *,
    at_least: bool = False,
) -> Allocation:
    """Kinds and ranks for a fixed coloring: the least price that meets the budget (bisection), then the rest is spent.

    `budget` is the most parameters, or `Limits`. Under limits of both, the prices that the weights of the graph allow
    are searched one after the other, and the allocation of least damage is taken. With `at_least` the smallest that can
    be reached is given where the budget is below it; otherwise this raises `UnreachableError` with the least size.
    """
    limits = budget if isinstance(budget, Limits) else Limits(budget)
    groups = [tuple(group) for group in groups]
    found, unreachable = [], None
    for weight in (graph.weight,) if limits.operations is None else graph.weights:
        try:
            found.append(_at_weight(graph.weighed(weight), groups, limits, bases, at_least))
        except UnreachableError as error:
            unreachable = error
        if found and found[-1].price == 0.0:
            break
    if not found:
        assert unreachable is not None
        raise unreachable
    return min(found, key=lambda each: each.damage)


def _at_weight(
    graph: CostGraph, groups: Sequence[Group], limits: Limits, bases: int | None, at_least: bool
) -> Allocation:
    free = _choose(graph, groups, 0.0, bases)
    if free.within(limits):
        return free
    high = 1e-30
    chosen = _choose(graph, groups, high, bases)
    while not chosen.within(limits):
        if high > 1e30 and at_least:
            return chosen
        if high > 1e30:
            raise UnreachableError(_unreachable(graph, chosen, limits, bases))
        high *= 16
        chosen = _choose(graph, groups, high, bases)
    low = high / 16
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        trial = _choose(graph, groups, middle, bases)
        if trial.within(limits):
            high, chosen = middle, trial
        else:
            low = middle
    return _spend_rest(graph, chosen, limits)


def _unreachable(graph: CostGraph, chosen: Allocation, limits: Limits, bases: int | None) -> str:
    dense, with_bases = graph.parameters_dense, "" if bases is None else f" with {count_bases(bases)}"
    more = " or bases" if with_bases else ""
    if chosen.parameters > limits.parameters:
        return (
            f"{limits.parameters} of {dense} parameters cannot be reached{with_bases}: "
            f"the least found for these layers is keep={chosen.parameters / dense:.4g}; raise keep{more}"
        )
    return (
        f"{limits.operations:.0f} of {dense} multiplications per position cannot be reached{with_bases}: the least "
        f"found for these layers is max_flops={chosen.operations / dense:.4g}; raise max_flops{more}"
    )


def _choose(graph: CostGraph, groups: Sequence[Group], price: float, bases: int | None) -> Allocation:
    """The cheapest option of every class at a price; past `bases` layers that gain least from a basis stay dense."""
    hulls = [graph.hull(group) for group in groups]
    chosen = [hull[hull.at(price)] for hull in hulls]
    if bases is not None:
        owners = [k for k, option in enumerate(chosen) if option.kind != "dense"]
        if len(owners) > bases:
            regret = []
            for k in owners:
                if len(groups[k]) == 1:
                    layer, option = graph.layers[groups[k][0]], chosen[k]
                    load = graph.loads[layer.name]
                    more = (layer.parameters - option.parameters) * (1 - graph.weight + graph.weight * load)
                    dense = Option("dense", None, None, layer.parameters, 0.0, load * layer.parameters)
                    regret.append((price * more - option.damage, k, dense))
            for _, k, dense in sorted(regret, key=lambda each: each[:2])[: len(owners) - bases]:
                chosen[k] = dense
    return Allocation(tuple(groups), tuple(chosen), price, graph.weight)


def _spend_rest(graph: CostGraph, allocation: Allocation, limits: Limits) -> Allocation:
    """Raise ranks while the budget lasts: each time the class whose damage falls most."""
    chosen = list(allocation.options)
    all_options = [
        graph.options(group) if option.kind != "dense" else None
        for group, option in zip(allocation.groups, chosen, strict=True)
    ]
    while True:
        parameters, operations = sum(o.parameters for o in chosen), math.fsum(o.operations for o in chosen)
        best, where = 0.0, None
        for k, choices in enumerate(all_options):
            if choices is None:
                continue
            fits = choices.parameters <= limits.parameters - parameters + chosen[k].parameters
            if limits.operations is not None:
                fits &= choices.operations <= limits.operations * ROUNDING - operations + chosen[k].operations
            if not fits.any():
                continue
            index = int(np.where(fits, choices.damage, np.inf).argmin())
            gain = chosen[k].damage - float(choices.damage[index])
            if gain > best:
                best, where = gain, (k, choices[index])
        if where is None:
            return replace(allocation, options=tuple(chosen))
        chosen[where[0]] = where[1]


def count_bases(count: int) -> str:
    return "1 basis" if count == 1 else f"{count} bases"
