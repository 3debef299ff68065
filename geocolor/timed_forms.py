"""Which layers are slower as factors than as matrices on the machine at hand, found by timing both forms.

FLOPs do not tell: thin matrices are read and multiplied at a lower rate than large ones, how much lower depends on the
machine, the dtype and the number of positions.
"""

import copy
import time
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from geocolor.backend import factored_layers, shared_inputs
from geocolor.factored_layers import FactoredLayer, basis_rank, linear_map
from geocolor.fused_layers import FusedInput, FusedLayer, by_source

Timer = Callable[[], float]

#: Pairs of timings of the two forms, and bytes that are read before each, so that weights come from memory as they do
#: in a model and not from a cache.
PAIRS, FLUSHED = 7, 2**26

#: Factors that take more than this part of their matrices' time are not worth what a clock may be wrong by.
MARGIN = 0.95


def slower_as_factors(model: nn.Module, positions: Sequence[int], timer: Timer = time.perf_counter) -> list[str]:
    """Layers that, fused with all that read their input, are no faster than their matrices at any of these `positions`.

    Layers of one input stay together: they are fast or slow as one. Each combination of shapes is timed once. Left out
    are convolutions, and layers that carry adapters, are quantized or are not in memory.

    Raises `ValueError` for numbers of positions below 1.
    """
    if min(positions, default=1) < 1:
        raise ValueError(f"positions holds {min(positions)}; it says how many are computed at once, as (1, 512)")
    layers, inputs = factored_layers(model), shared_inputs(model)
    groups: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer.layer.form != "conv2d" and _is_plain(layer):
            groups.setdefault(inputs.get(name, name), []).append(name)
    verdicts: dict[Hashable, bool] = {}
    slow: set[str] = set()
    for group in groups.values():
        members = [layers[name] for name in group]
        kind = _kind(members)
        if kind not in verdicts:
            verdicts[kind] = any(_is_slower(members, count, timer) for count in positions)
        if verdicts[kind]:
            slow.update(group)
    return [name for name in layers if name in slow]


def _is_plain(layer: FactoredLayer) -> bool:
    maps = [layer.coefficients, *(basis.map for basis in layer.bases().values())]
    return all(type(map) is nn.Linear and type(map.weight) is nn.Parameter and not map.weight.is_meta for map in maps)


def _kind(group: Sequence[FactoredLayer]) -> Hashable:
    """The same for groups that take the same products."""
    seen: dict[int, int] = {}
    return tuple(
        (
            (layer.kind, layer.layer.m, layer.layer.n, layer.bias is None, layer.coefficients.weight.dtype),
            layer.coefficients.weight.device,
            tuple(
                (side, basis_rank(basis.map, side), seen.setdefault(id(basis), len(seen)))
                for side, basis in layer.bases().items()
            ),
        )
        for layer in group
    )


@torch.no_grad()
def _is_slower(group: Sequence[FactoredLayer], positions: int, timer: Timer) -> bool:
    weight = group[0].coefficients.weight
    dense = [_matrix(layer) for layer in group]
    apart = list(copy.deepcopy(nn.ModuleList(group)))
    fused_input = FusedInput(ordered := by_source(apart))  # type: ignore[arg-type]
    factors = [FusedLayer(layer, fused_input, slot) for slot, layer in enumerate(ordered)]
    x = weight.new_ones(positions, group[0].layer.n)
    memory = torch.ones(FLUSHED // 4, device=weight.device)

    def timed(layers: Sequence[nn.Module]) -> float:
        memory.sum()
        _wait(x)
        started = timer()
        for layer in layers:
            layer(x)
        _wait(x)
        return timer() - started

    for form in (dense, factors):
        timed(form)
    pairs = [(timed(factors), timed(dense)) for _ in range(PAIRS)]
    return min(pair[0] for pair in pairs) > MARGIN * min(pair[1] for pair in pairs)


def _matrix(layer: FactoredLayer) -> nn.Module:
    """Of the layer's shape: times do not depend on values."""
    like = layer.coefficients.weight
    matrix = linear_map("linear", layer.layer.n, layer.layer.m, bias=layer.bias is not None, like=like)
    nn.init.zeros_(matrix.weight)
    return matrix


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
