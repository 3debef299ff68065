"""A budget met: kinds and ranks for a fixed coloring, by the price of a parameter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from geocolor.graph import CostGraph
from geocolor.rate_distortion import Option

Group = tuple[int, ...]


@dataclass(frozen=True)
class Allocation:
    """Classes with the option chosen for each; `damage` is the aggregate `Σ φ(D)`, `price` the `λ` it was found at."""

    groups: tuple[Group, ...]
    options: tuple[Option, ...]
    price: float

    @property
    def parameters(self) -> int:
        return sum(option.parameters for option in self.options)

    @property
    def damage(self) -> float:
        return math.fsum(option.damage for option in self.options)


class UnreachableError(ValueError):
    """A budget below what a coloring can be squeezed to."""


def allocate(
    graph: CostGraph,
    groups: Sequence[Group],
    budget: int,
    bases: int | None = None,
    *,
    at_least: bool = False,
) -> Allocation:
    """Kinds and ranks for a fixed coloring: the least price that meets the budget (bisection), then the rest is spent.

    With `at_least` the smallest that can be reached is given where the budget is below it; otherwise this
    raises `UnreachableError` with the least size.
    """
    groups = [tuple(group) for group in groups]
    free = _choose(graph, groups, 0.0, bases)
    if free.parameters <= budget:
        return free
    high = 1e-30
    chosen = _choose(graph, groups, high, bases)
    while chosen.parameters > budget:
        if high > 1e30 and at_least:
            return chosen
        if high > 1e30:
            least = chosen.parameters / graph.parameters_dense
            with_bases = "" if bases is None else f" with {count_bases(bases)}"
            raise UnreachableError(
                f"{budget} of {graph.parameters_dense} parameters cannot be reached{with_bases}: "
                f"the least found for these layers is keep={least:.4g}; raise keep{' or bases' if with_bases else ''}"
            )
        high *= 16
        chosen = _choose(graph, groups, high, bases)
    low = high / 16
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        trial = _choose(graph, groups, middle, bases)
        if trial.parameters <= budget:
            high, chosen = middle, trial
        else:
            low = middle
    return _spend_rest(graph, chosen, budget)


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
                    parameters = graph.layers[groups[k][0]].parameters
                    option = chosen[k]
                    regret.append((price * (parameters - option.parameters) - option.damage, k, parameters))
            for _, k, parameters in sorted(regret)[: len(owners) - bases]:
                chosen[k] = Option("dense", None, None, parameters, 0.0)
    return Allocation(tuple(groups), tuple(chosen), price)


def _spend_rest(graph: CostGraph, allocation: Allocation, budget: int) -> Allocation:
    """Raise ranks while parameters are left: each time the class whose damage falls most."""
    chosen = list(allocation.options)
    all_options = [
        graph.options(group) if option.kind != "dense" else None
        for group, option in zip(allocation.groups, chosen, strict=True)
    ]
    while True:
        slack = budget - sum(option.parameters for option in chosen)
        best, where = 0.0, None
        for k, choices in enumerate(all_options):
            if choices is None:
                continue
            index = int((choices.parameters <= chosen[k].parameters + slack).nonzero()[0][-1])
            gain = chosen[k].damage - float(choices.damage[index])
            if gain > best:
                best, where = gain, (k, choices[index])
        if where is None:
            return Allocation(allocation.groups, tuple(chosen), allocation.price)
        chosen[where[0]] = where[1]


def count_bases(count: int) -> str:
    return "1 basis" if count == 1 else f"{count} bases"
