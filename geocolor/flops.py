"""FLOPs of a plan and of a live model, and the form to run where factors cost more of them than the matrix.

A multiplication with its addition counts as two. All numbers are per position: token, patch or output pixel; where
layers see different numbers of them, those of a plan are times the layer's load (`Plan.loads`). Layers of a class that
read the very same input evaluate its basis once (`Plan.inputs` knows which do): the first of them pays.
"""

import copy
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from geocolor.backend import detach_plan, factored_layers, shared_inputs
from geocolor.factored_layers import FactoredLayer, basis_rank, dense_module
from geocolor.plans import Plan
from geocolor.timed_forms import Timer, slower_as_factors


@dataclass(frozen=True)
class _Form:
    """A layer as it is held: ranks, and what tells one evaluation of its input basis from another."""

    m: int
    n: int
    left: int | None
    right: int | None
    evaluation: Hashable

    def products(self, evaluated: bool) -> list[tuple[int, int]]:
        """Heights and widths of the matrices; `evaluated`: another layer has paid for the input basis."""
        ranks = [rank for rank in (self.left, self.right) if rank is not None]
        all_of_them = list(pairwise([self.m, *ranks, self.n]))
        return all_of_them[:-1] if evaluated and self.right is not None else all_of_them

    def cost(self, evaluated: bool) -> int:
        """FLOPs."""
        return 2 * sum(a * b for a, b in self.products(evaluated))


def flops(model: nn.Module) -> dict[str, int]:
    """FLOPs per position of every factored layer of a live model, by name."""
    return _costs(_live(model))


def plan_flops(plan: Plan) -> dict[str, int]:
    """FLOPs per position of every layer of a plan, times its load.

    `2r(m + n)`, `2(mr + rr' + r'n)` for `both`, `2mn` dense.
    """
    return {name: round(plan.loads.get(name, 1.0) * cost) for name, cost in _costs(_planned(plan)).items()}


def plan_flops_dense(plan: Plan) -> int:
    """FLOPs per position of all layers in scope as they were."""
    return sum(round(plan.loads.get(name, 1.0) * 2 * shape.m * shape.n) for name, shape in plan.layers.items())


def plan_products(plan: Plan) -> list[tuple[int, int, float]]:
    """Height, width and load of all matrices that a position is multiplied with, a basis once for each input."""
    seen: set[Hashable] = set()
    found: list[tuple[int, int, float]] = []
    for name, form in _planned(plan).items():
        found += [(m, n, plan.loads.get(name, 1.0)) for m, n in form.products(form.evaluation in seen)]
        seen.add(form.evaluation)
    return found


def plan_products_dense(plan: Plan) -> list[tuple[int, int, float]]:
    """Height, width and load of all matrices in scope as they were."""
    return [(shape.m, shape.n, plan.loads.get(name, 1.0)) for name, shape in plan.layers.items()]


def slow_layers(plan: Plan) -> list[str]:
    """Layers that cost more FLOPs as factors than as matrices; sharing can save parameters and still cost time."""
    return _slow(_planned(plan))


def merge_slow(
    model: nn.Module, inplace: bool = False, positions: Sequence[int] = (), timer: Timer = time.perf_counter
) -> nn.Module:
    """A form to run, not to save: layers that cost more FLOPs as factors than as a matrix become matrices again.

    With `positions` also those that are no faster as factors on this machine (`slower_as_factors`) at any of so many
    positions at once: (1,) for a token at a time, (1, 512) for prompts too. What is then left as factors is no slower
    than it was, at these.

    Outputs agree up to rounding. The saving in memory of these layers is gone, so the model holds no plan any more:
    save the compressed one, and merge again after loading.
    """
    target = model if inplace else copy.deepcopy(model)
    _merge(target, _slow(_live(target)))
    if positions:
        _merge(target, slower_as_factors(target, positions, timer))
    return target


def _merge(model: nn.Module, slow: Sequence[str]) -> None:
    if not slow:
        return
    layers, inputs = factored_layers(model), shared_inputs(model)
    for name in slow:
        model.set_submodule(name, dense_module(layers[name]))
    detach_plan(model)
    model.geocolor_inputs = inputs  # type: ignore[assignment]


def _planned(plan: Plan) -> dict[str, _Form]:
    forms = {}
    for number, cls in enumerate(plan.classes):
        left, right = (None, cls.rank) if cls.kind == "in" else (cls.rank, cls.right_rank)
        for name in cls.layers:
            shape = plan.layers[name]
            forms[name] = _Form(shape.m, shape.n, left, right, (number, plan.inputs.get(name, name)))
    return {name: forms[name] for name in plan.layers}


def _live(model: nn.Module) -> dict[str, _Form]:
    inputs = shared_inputs(model)
    return {name: _form(name, layer, inputs) for name, layer in factored_layers(model).items()}


def _form(name: str, layer: FactoredLayer, inputs: Mapping[str, str]) -> _Form:
    ranks = {side: basis_rank(basis.map, side) for side, basis in layer.bases().items()}
    evaluation = (id(layer.bases().get("right")), inputs.get(name, name))
    return _Form(layer.layer.m, layer.layer.n, ranks.get("left"), ranks.get("right"), evaluation)


def _costs(forms: Mapping[str, _Form]) -> dict[str, int]:
    seen: set[Hashable] = set()
    costs = {}
    for name, form in forms.items():
        costs[name] = form.cost(form.evaluation in seen)
        seen.add(form.evaluation)
    return costs


def _slow(forms: Mapping[str, _Form]) -> list[str]:
    """All layers of every evaluation that costs more than the matrices of its layers."""
    costs = _costs(forms)
    groups: dict[Hashable, list[str]] = {}
    for name, form in forms.items():
        groups.setdefault(form.evaluation, []).append(name)

    def is_slow(group: Iterable[str]) -> bool:
        return sum(costs[name] - 2 * forms[name].m * forms[name].n for name in group) > 0

    slow = {name for group in groups.values() if is_slow(group) for name in group}
    return [name for name in forms if name in slow]
