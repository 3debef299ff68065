"""Peers as configurations of the one pipeline: a curvature estimate, a fixed coloring, and a rule for ranks.

| peer | estimate | coloring | ranks |
| --- | --- | --- | --- |
| SVD | identity | private | uniform |
| FWSVD (arXiv:2207.00112) | diagonal | private | uniform |
| ASVD-like (arXiv:2312.05821) | scaled activation | private | uniform |
| SVD-LLM (arXiv:2403.07378) | activation | private | uniform |
| Basis Sharing (arXiv:2410.03765) | activation | neighbours in pairs | uniform |
| Kronecker, private | kronecker | private | allocated as ours |
| Kronecker, neighbours | kronecker | neighbours in pairs | allocated as ours |
| coloring | kronecker | searched | allocated |
| probed, private | probed | private | allocated |
| probed, coloring | probed | searched | allocated |

`probed` is what `geocolor compress` does by default: Kronecker factors whose scales were set by `geocolor.calibrate`.

Every plan is carried out by `geocolor.apply` within the same fraction `keep` of the parameters in scope. Coefficients
are the best for each layer's own statistics, which Basis Sharing itself does not do: it gains a little by it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch

from geocolor.budget import allocate
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph
from geocolor.layers import Layer
from geocolor.planning import plan
from geocolor.plans import LayerShape, Plan, PlannedClass
from geocolor.rate_distortion import Option

Group = tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """What every peer is given: `keep`, patterns of layers that stay unshared among neighbours, search settings."""

    keep: float
    unshared: tuple[str, ...] = ()
    solver: str = "auto"
    time_limit: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """One way to plan: `make(graph, budget)` on a graph priced with the curvature `estimate`."""

    name: str
    estimate: str
    make: Callable[[CostGraph, Budget], Plan]


def private(layers: Sequence[Layer]) -> list[Group]:
    """Every layer a class of its own."""
    return [(i,) for i in range(len(layers))]


def neighbours(layers: Sequence[Layer], unshared: Sequence[str] = (), size: int = 2) -> list[Group]:
    """Classes of `size` consecutive blocks: layers whose names differ in their first integer component alone.

    Layers that match a pattern of `unshared`, or that stand outside the repeated blocks, are classes of their own.
    """
    series: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for i, layer in enumerate(layers):
        parts = layer.name.split(".")
        place = next((k for k, part in enumerate(parts) if part.isdigit()), None)
        if place is None or any(fnmatchcase(layer.name, pattern) for pattern in unshared):
            series[(i,)] = [(0, i)]
        else:
            kind = (*parts[:place], None, *parts[place + 1 :], layer.m, layer.n)
            series.setdefault(kind, []).append((int(parts[place]), i))
    groups = []
    for members in series.values():
        ordered = [i for _, i in sorted(members)]
        groups += [tuple(ordered[k : k + size]) for k in range(0, len(ordered), size)]
    return sorted(groups)


def uniform(graph: CostGraph, groups: Sequence[Group], keep: float) -> list[Option]:
    """An `in` basis for every class, of the rank at which the class alone meets `keep`: `⌊keep·n·Σm / (n + Σm)⌋`."""
    chosen = []
    for group in groups:
        n, m = graph.layers[group[0]].n, sum(graph.layers[i].m for i in group)
        rank = min(max(1, int(keep * n * m / (n + m))), n - 1)
        chosen.append(Option(kind="in", rank=rank, right_rank=None, parameters=rank * (n + m), damage=math.nan))
    return chosen


def fixed_plan(graph: CostGraph, groups: Sequence[Group], options: Sequence[Option], keep: float, name: str) -> Plan:
    """A plan that was not searched: the given classes, held as the given options.

    Raises `ValueError` where it holds more than `keep`.
    """
    classes = []
    for group, option in zip(groups, options, strict=True):
        classes.append(
            PlannedClass(
                kind=option.kind,
                layers=tuple(graph.layers[i].name for i in group),
                rank=option.rank,
                right_rank=option.right_rank,
                parameters=option.parameters,
                damage=graph.damage(group, option),
            )
        )
    made = Plan(
        fingerprint=graph.fingerprint,
        layers={
            layer.name: LayerShape(m=layer.m, n=layer.n, form=layer.form, geometry=layer.geometry)
            for layer in graph.layers
        },
        classes=tuple(classes),
        keep=keep,
        price=0.0,
        aggregate=graph.aggregate,
        objective=math.fsum(damage**graph.aggregate for cls in classes for damage in cls.damage.values()),
        solver=name,
        curvature={"estimate": graph.curvature.estimate},
    )
    if made.kept > keep:
        raise ValueError(f"{name}: ranks of at least 1 keep {made.kept:.4f} of the parameters, more than {keep}")
    return made


def _uniform_private(name: str, estimate: str) -> Method:
    def make(graph: CostGraph, budget: Budget) -> Plan:
        groups = private(graph.layers)
        return fixed_plan(graph, groups, uniform(graph, groups, budget.keep), budget.keep, name)

    return Method(name, estimate, make)


def _basis_sharing(graph: CostGraph, budget: Budget) -> Plan:
    groups = neighbours(graph.layers, budget.unshared)
    return fixed_plan(graph, groups, uniform(graph, groups, budget.keep), budget.keep, "Basis Sharing")


def _allocated(graph: CostGraph, groups: Sequence[Group], budget: Budget, name: str) -> Plan:
    allocation = allocate(graph, groups, math.floor(budget.keep * graph.parameters_dense))
    return fixed_plan(graph, allocation.groups, allocation.options, budget.keep, name)


def _private_allocated(graph: CostGraph, budget: Budget) -> Plan:
    return _allocated(graph, private(graph.layers), budget, "private")


def _neighbours_allocated(graph: CostGraph, budget: Budget) -> Plan:
    return _allocated(graph, neighbours(graph.layers, budget.unshared), budget, "neighbours")


def _coloring(graph: CostGraph, budget: Budget) -> Plan:
    return plan(graph, budget.keep, solver=budget.solver, time_limit=budget.time_limit, seed=budget.seed)


#: In the order of the tables.
METHODS: tuple[Method, ...] = (
    _uniform_private("SVD", "identity"),
    _uniform_private("FWSVD", "diagonal"),
    _uniform_private("ASVD-like", "scaled activation"),
    _uniform_private("SVD-LLM", "activation"),
    Method("Basis Sharing", "activation", _basis_sharing),
    _uniform_private("Kronecker, uniform", "kronecker"),
    Method("Kronecker, neighbours", "kronecker", _neighbours_allocated),
    Method("Kronecker, private", "kronecker", _private_allocated),
    Method("coloring", "kronecker", _coloring),
    Method("probed, private", "probed", _private_allocated),
    Method("probed, coloring", "probed", _coloring),
)


def scaled_activation(activation: Curvature, exponent: float = 0.5) -> Curvature:
    """ASVD's diagonal scaling of the inputs, by the root mean square to the power `exponent`, as a curvature.

    `A = diag(A)^exponent` scales column j by `rms_j^exponent`; the original takes the mean absolute value for the rms.
    """
    return replace(
        activation,
        A={name: torch.diag(A.diagonal().pow(exponent)) for name, A in activation.A.items()},
        estimate="scaled activation",
    )
