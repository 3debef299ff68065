"""Low-rank matrices put in the place of weights for a while: a smaller model tried without being built."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from geocolor.bases import factorize
from geocolor.budget import Group, allocate
from geocolor.carry_out import factorize_class
from geocolor.graph import CostGraph
from geocolor.habits import neighbours
from geocolor.layers import Layer, as_stored
from geocolor.mapped import Spool, Spooled, in_file, mappable
from geocolor.plans import Plan
from geocolor.rate_distortion import Option


@dataclass(frozen=True)
class StandIn:
    """What stands for a layer's weight, in memory or, where that is bounded, in a file."""

    layer: Layer
    held: Tensor | Spooled
    _mapped: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @property
    def weight(self) -> Tensor:
        """m × n, float64."""
        return self.held if isinstance(self.held, Tensor) else self.held.read()

    def stored(self, parameter: Tensor) -> Tensor:
        """As the layer's `parameter` is stored; on a CPU it, too, lies in a file where memory is bounded."""
        if self._mapped:
            return self._mapped[0]
        weight = as_stored(self.layer, self.weight).to(parameter).contiguous()
        if isinstance(self.held, Spooled) and mappable(weight):
            self._mapped[:] = [weight := in_file(weight, Path(tempfile.gettempdir()))]
        return weight


def without_sharing(graph: CostGraph, keep: float, *, every: bool = False) -> list[StandIn]:
    """Those of the best allocation in which no basis is shared, or of the smallest where `keep` cannot be reached.

    With `every` layers that it leaves dense have one too, of the rank they would take next, if there is one.
    """
    groups = [(i,) for i in range(len(graph.layers))]
    alone = allocate(graph, groups, int(keep * graph.parameters_dense), at_least=True)
    options = list(alone.options)
    for index, option in enumerate(options):
        if option.kind == "dense" and every:
            hull = graph.hull((index,))
            factored = hull.take((hull.kind != "dense").nonzero()[0])
            if len(factored):  # none of a vector, or of the smallest matrices: factors would be no smaller
                options[index] = factored[factored.at(alone.price)]
    return _factored(graph, groups, options)


def among_neighbours(graph: CostGraph, keep: float, size: int) -> list[StandIn]:
    """Those of the best allocation in which `size` consecutive blocks share; none where there are no such blocks."""
    groups: list[Group] = []
    for group in neighbours(graph.layers, size):
        groups += [group] if len(graph.hull(group)) else [(i,) for i in group]
    if all(len(group) == 1 for group in groups):
        return []
    return _factored(graph, groups, allocate(graph, groups, int(keep * graph.parameters_dense), at_least=True).options)


def _factored(graph: CostGraph, groups: Sequence[Group], options: Sequence[Option]) -> list[StandIn]:
    """What stands for the layers of every class that is not left dense."""
    found, hold = [], _holding(graph)
    for group, option in zip(groups, options, strict=True):
        if option.kind != "dense":
            assert option.rank is not None
            layers = [graph.layers[i] for i in group]
            metrics = {layer.name: graph.metrics[layer.name] for layer in layers}
            factors = factorize(option.kind, metrics, option.rank)
            found += [StandIn(layer, hold(factors.dense(layer.name))) for layer in layers]
    return found


def _holding(graph: CostGraph) -> Callable[[Tensor], Tensor | Spooled]:
    """How stand-ins are held: as they are, or in one file where memory is bounded."""
    return Spool().put if graph.bounded else lambda weight: weight


def planned(graph: CostGraph, plan: Plan) -> list[StandIn]:
    """Those of a plan that was made from `graph`."""
    layers = {layer.name: layer for layer in graph.layers}
    found, hold = [], _holding(graph)
    for cls in plan.classes:
        if cls.kind != "dense":
            flat_energy = plan.flat_energy or 0.05
            factors, _ = factorize_class(
                cls, graph.metrics, graph.curvature, plan.trust_region, flat_energy, graph.factors
            )
            found += [StandIn(layers[name], hold(factors.dense(name))) for name in cls.layers]
    return found


def parameter(model: nn.Module, layer: Layer) -> nn.Parameter:
    """The weight itself."""
    weight = model.get_submodule(layer.name).weight
    assert isinstance(weight, nn.Parameter)
    return weight


@contextmanager
def replaced(model: nn.Module, stand_ins: Sequence[StandIn]) -> Iterator[None]:
    """The model with its weights replaced in place, and given back afterwards."""
    old: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for each in stand_ins:
            weight = parameter(model, each.layer)
            old.append((weight, weight.data))
            weight.data = each.stored(weight)
        yield
    finally:
        for weight, data in old:
            weight.data = data
