"""Factored layers of one input, evaluated together: what `geocolor.fuse` puts in their place."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geocolor.factored_layers import BothLayer, FactoredLayer, InLayer, OutLayer, linear_map
from geocolor.few_positions import by_columns, product
from geocolor.layers import Layer, as_stored
from geocolor.shared_basis import SharedBasis


class FusedInput(nn.Module):
    """Factored layers that read one tensor `x`: all outputs from few products, computed when the first is asked for.

    `stacked` holds, one below the other, all that reads `x` and is read nowhere else: bases `Bᵀ` and coefficients of
    `out` layers; a basis that layers of other inputs read as well is an entry of `shared`. Behind each basis one
    product gives the coefficients `[C_q; C_k; C_v]` of all its layers. Outputs wait for the layers they belong to, and
    are given out once, to a call with the very same tensor; whoever finds nothing evaluates anew.
    """

    stacked: nn.Linear | None
    shared: nn.ModuleList
    coefficients: nn.ModuleList

    def __init__(self, layers: Sequence[FactoredLayer]) -> None:
        """`layers` in the order of `by_source`."""
        super().__init__()
        own, beyond = _sources(layers)
        self.widths = [_map(source).out_features for source in own]
        self.stacked = _stack([_map(source) for source in own]) if own else None
        self.shared = nn.ModuleList(source for source in beyond if isinstance(source, SharedBasis))
        self.coefficients = nn.ModuleList()
        self.heights: list[list[int]] = []
        for source in (*own, *beyond):
            if isinstance(source, SharedBasis):
                maps = [_linear(layer.coefficients) for layer in layers if getattr(layer, "right", None) is source]
                self.coefficients.append(by_columns(_stack(maps)))
                self.heights.append([map.out_features for map in maps])
            else:
                self.coefficients.append(nn.Identity())
                self.heights.append([source.out_features])
        self._waiting: tuple[Tensor, int, list[Tensor | None]] | None = None

    def forward(self, x: Tensor, slot: int) -> Tensor:
        """The output of layer number `slot`, before its left basis."""
        version = _version(x)
        waiting = self._waiting
        if waiting is not None and waiting[0] is x and waiting[1] == version:
            ready = waiting[2]
            y = ready[slot]
            if y is not None:
                ready[slot] = None
                if all(other is None for other in ready):
                    self._waiting = None
                return y
        outputs = self._evaluate(x)
        if len(outputs) == 1:
            return outputs[0]
        self._waiting = (x, version, [None if i == slot else y for i, y in enumerate(outputs)])
        return outputs[slot]

    def _evaluate(self, x: Tensor) -> list[Tensor]:
        parts = [] if self.stacked is None else list(self.stacked(x).split(self.widths, -1))
        parts += [basis.map(x) for basis in self.shared]  # type: ignore[operator]
        outputs: list[Tensor] = []
        for part, coefficients, heights in zip(parts, self.coefficients, self.heights, strict=True):
            outputs += product(coefficients, part).split(heights, -1)
        return outputs

    def bases(self) -> list[SharedBasis | None]:
        """For every layer its right basis, one object for all layers that share it; None for `out` layers."""
        made: list[SharedBasis | None] = []
        for unit, (coefficients, heights) in enumerate(zip(self.coefficients, self.heights, strict=True)):
            basis: SharedBasis | None = None
            if unit >= len(self.widths):
                basis = self.shared[unit - len(self.widths)]  # type: ignore[assignment]
            elif not isinstance(coefficients, nn.Identity):
                basis = SharedBasis(self._stacked_rows(unit))
            made += [basis] * len(heights)
        return made

    def coefficients_of(self, slot: int, bias: bool) -> nn.Linear:
        """The coefficients of one layer, copied; with their bias where it has one there."""
        units = [(unit, part) for unit, heights in enumerate(self.heights) for part in range(len(heights))]
        unit, part = units[slot]
        coefficients = self.coefficients[unit]
        if isinstance(coefficients, nn.Identity):
            return self._stacked_rows(unit)
        start = sum(self.heights[unit][:part])
        return _rows(_linear(coefficients), start, start + self.heights[unit][part], bias=bias)

    def _stacked_rows(self, unit: int) -> nn.Linear:
        assert self.stacked is not None
        start = sum(self.widths[:unit])
        return _rows(self.stacked, start, start + self.widths[unit], bias=False)


class FusedLayer(nn.Module):
    """A layer whose output a `FusedInput` computes along with those of the others that read its input.

    `left` and `bias` belong to kinds `out` and `both`; those of `in` are part of the coefficients.
    """

    bias: Tensor | None

    def __init__(self, factored: FactoredLayer, fused: FusedInput, slot: int) -> None:
        super().__init__()
        self.layer: Layer = factored.layer
        self.kind = factored.kind
        self.fused, self.slot = fused, slot
        self.has_bias = factored.bias is not None
        self.left: SharedBasis | None = getattr(factored, "left", None)
        if self.left is not None:
            by_columns(_linear(self.left.map))
        self.register_parameter("bias", None if self.left is None else factored.bias)  # type: ignore[arg-type]
        self.in_features, self.out_features = self.layer.n, self.layer.m
        if self.layer.form == "conv1d":
            self.nx, self.nf = self.layer.n, self.layer.m
        self.training = factored.training

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fused(x, self.slot)
        if self.left is not None:
            y = product(self.left.map, y)
        return y if self.bias is None else y + self.bias

    def unfused(self, right: SharedBasis | None) -> FactoredLayer:
        """The factored layer that this one was, its coefficients copied, on the given basis."""
        coefficients = self.fused.coefficients_of(self.slot, bias=self.has_bias and self.left is None)
        bias = self.bias if isinstance(self.bias, nn.Parameter) else None
        factored: FactoredLayer
        if self.left is None:
            assert right is not None
            factored = InLayer(self.layer, coefficients, right)
            return factored.train(self.training)
        self.left.map.weight.data = self.left.map.weight.data.contiguous()
        if right is None:
            factored = OutLayer(self.layer, coefficients, self.left, bias)
        else:
            factored = BothLayer(self.layer, coefficients, self.left, right, bias)
        return factored.train(self.training)

    @property
    def weight(self) -> Tensor:
        """As `FactoredLayer.weight`: what models that read `layer.weight` expect, multiplied out at every access."""
        fused, slot = self.fused, self.slot
        right = fused.bases()[slot]
        product = fused.coefficients_of(slot, bias=False).weight
        product = product if right is None else product @ right.map.weight
        return as_stored(self.layer, product if self.left is None else self.left.map.weight @ product)

    def extra_repr(self) -> str:
        return f"kind={self.kind}, {self.layer.m} × {self.layer.n}, slot {self.slot}"


def by_source(layers: Sequence[FactoredLayer]) -> list[FactoredLayer]:
    """The order in which a `FusedInput` numbers its layers: those of one basis next to each other."""
    ordered: list[FactoredLayer] = []
    for sources in _sources(layers):
        for source in sources:
            ordered += [layer for layer in layers if _source(layer) is source]
    return ordered


def _sources(
    layers: Sequence[FactoredLayer],
) -> tuple[list[SharedBasis | nn.Linear], list[SharedBasis | nn.Linear]]:
    """What reads the input, each once: first what only these layers read, then bases that others read as well."""
    sources = list(dict.fromkeys(_source(layer) for layer in layers))
    readers = [sum(_source(layer) is source for layer in layers) for source in sources]
    own = [
        not isinstance(source, SharedBasis) or source.readers == count
        for source, count in zip(sources, readers, strict=True)
    ]
    return (
        [source for source, alone in zip(sources, own, strict=True) if alone],
        [source for source, alone in zip(sources, own, strict=True) if not alone],
    )


def _source(layer: FactoredLayer) -> SharedBasis | nn.Linear:
    right: SharedBasis | None = getattr(layer, "right", None)
    return _linear(layer.coefficients) if right is None else right


def _map(source: SharedBasis | nn.Linear) -> nn.Linear:
    return _linear(source.map) if isinstance(source, SharedBasis) else source


def _linear(module: nn.Module) -> nn.Linear:
    assert isinstance(module, nn.Linear)
    return module


def _stack(maps: Sequence[nn.Linear]) -> nn.Linear:
    """One map with the rows of all, contiguous; where only some have a bias, the others' is zero."""
    first = maps[0].weight
    biased = any(map.bias is not None for map in maps)
    stacked = linear_map("linear", maps[0].in_features, sum(map.out_features for map in maps), bias=biased, like=first)
    with torch.no_grad():
        stacked.weight.copy_(torch.cat([map.weight for map in maps]))
        stacked.weight.requires_grad_(first.requires_grad)
        if stacked.bias is not None:
            zeros = (map.weight.new_zeros(map.out_features) for map in maps)
            stacked.bias.copy_(
                torch.cat([zero if map.bias is None else map.bias for zero, map in zip(zeros, maps, strict=True)])
            )
    return _linear(stacked)


def _rows(stacked: nn.Linear, start: int, stop: int, *, bias: bool) -> nn.Linear:
    """Some rows of a map, copied."""
    part = linear_map("linear", stacked.in_features, stop - start, bias=bias, like=stacked.weight)
    with torch.no_grad():
        part.weight.copy_(stacked.weight[start:stop])
        part.weight.requires_grad_(stacked.weight.requires_grad)
        if part.bias is not None:
            part.bias.copy_(stacked.bias[start:stop])
    return _linear(part)


def _version(x: Tensor) -> int:
    """Rises when `x` is written to; 0 where torch keeps no count. Compilers see no writes between layers that were
    measured to read the very same values."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version
