"""FLOPs of a plan and of a live model, and the form to run where factors cost more of them than the matrix.

A multiplication with its addition counts as two. All numbers are per position: token, patch or output pixel. A basis is
counted for every layer that reads it, though layers with one input evaluate it once.
"""

import copy
from collections.abc import Mapping

from torch import nn

from geocolor.backend import detach_plan, factored_layers
from geocolor.factored_layers import FactoredLayer, basis_rank, dense_module
from geocolor.plans import Plan


def flops(model: nn.Module) -> dict[str, int]:
    """FLOPs per position of every factored layer of a live model, by name."""
    return {name: _factored(layer) for name, layer in factored_layers(model).items()}


def plan_flops(plan: Plan) -> Mapping[str, int]:
    """FLOPs per position of every layer of a plan: `2r(m + n)`, `2(mr + rr' + r'n)` for `both`, `2mn` dense."""
    found = {}
    for cls in plan.classes:
        for name in cls.layers:
            shape = plan.layers[name]
            found[name] = _cost(shape.m, shape.n, cls.rank, cls.right_rank)
    return found


def plan_flops_dense(plan: Plan) -> int:
    """FLOPs per position of all layers in scope as they were."""
    return 2 * plan.parameters_dense


def slow_layers(plan: Plan) -> list[str]:
    """Layers that cost more FLOPs as factors than as a matrix; sharing can save parameters and still cost time."""
    cost = plan_flops(plan)
    return [name for name, shape in plan.layers.items() if cost[name] > 2 * shape.m * shape.n]


def merge_slow(model: nn.Module, inplace: bool = False) -> nn.Module:
    """A form to run, not to save: layers that cost more FLOPs as factors than as a matrix become matrices again.

    Outputs agree up to rounding, and no layer costs more than it did before compression. The saving in memory of these
    layers is gone, so the model holds no plan any more: save the compressed one, and merge again after loading.
    """
    target = model if inplace else copy.deepcopy(model)
    slow = {
        name: layer for name, layer in factored_layers(target).items() if _factored(layer) > 2 * layer.layer.parameters
    }
    for name, layer in slow.items():
        target.set_submodule(name, dense_module(layer))
    if slow:
        detach_plan(target)
    return target


def _factored(layer: FactoredLayer) -> int:
    ranks = [basis_rank(basis.map, side) for side, basis in layer.bases().items()]
    right, left = (ranks[0], ranks[-1]) if len(ranks) == 2 else (None, ranks[0])
    return _cost(layer.layer.m, layer.layer.n, left, right)


def _cost(m: int, n: int, rank: int | None, right_rank: int | None) -> int:
    if rank is None:
        return 2 * m * n
    if right_rank is None:
        return 2 * rank * (m + n)
    return 2 * (m * rank + rank * right_rank + right_rank * n)
