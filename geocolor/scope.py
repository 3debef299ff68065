"""What of a model is left as it is, and why: every weight matrix that is not a layer in scope, in a sentence each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from geocolor.layers import Layer, is_offloaded, layers_in_scope, linear_maps, output_heads, tied_weights
from geocolor.unpacking import is_packed

TABLE = "a table, looked up and not multiplied"
TIED = "its weight is another module's too, and factors would untie them"
HEAD = "output head, out of scope unless its full name is in include"
EXCLUDED = "excluded"


@dataclass(frozen=True)
class LeftOut:
    """A module with weights out of scope: its dotted name, its type, how many parameters they hold, and the reason."""

    name: str
    type: str
    parameters: int
    reason: str


def left_out(
    model: nn.Module,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    layers: Iterable[Layer] | None = None,
) -> tuple[LeftOut, ...]:
    """All modules with weights of two dimensions or more that are not in scope, in the order of registration.

    The scope is that of `find_layers(model, include, exclude)`, or `layers`: those of a curvature or a plan, say, which
    lack the ones that the calibration data never reached.
    """
    found = {layer.name for layer in layers_in_scope(model, include, exclude)}
    inside = found if layers is None else {layer.name for layer in layers}
    maps = {layer.name for layer in linear_maps(model)}
    tied = tied_weights(model, maps)
    heads = output_heads(model, [layer.name for layer in linear_maps(model)]) - tied
    return tuple(
        LeftOut(name, type(module).__name__, sum(weights), _reason(name, module, maps, found, tied, heads))
        for name, module in model.named_modules()
        if name not in inside and (weights := [p.numel() for p in _own_weights(module)])
    )


def reasons(entries: Iterable[LeftOut], least: int = 0) -> list[str]:
    """A line for each reason, the most parameters first: "left out: 2 × LSTM (8,192 parameters), recurrent: ...".

    Not for tables, heads, tied weights and what the user excluded; nor for reasons with less than `least` parameters.
    """
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in entries:
        if entry.reason not in (TABLE, TIED, HEAD, EXCLUDED):
            by_reason.setdefault(entry.reason, []).append(entry)
    total = {reason: sum(entry.parameters for entry in group) for reason, group in by_reason.items()}
    lines = []
    for reason, group in sorted(by_reason.items(), key=lambda item: -total[item[0]]):
        types = Counter(entry.type for entry in group)
        named = ", ".join(f"{count} × {name}" for name, count in types.most_common(3))
        more = ", ..." if len(types) > 3 else ""
        if total[reason] >= least:
            lines.append(f"left out: {named}{more} ({total[reason]:,} parameters), {reason}")
    return lines


def _own_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in module.parameters(recurse=False) if p.ndim > 1)


def _reason(name: str, module: nn.Module, maps: set[str], found: set[str], tied: set[str], heads: set[str]) -> str:
    if name in found:
        return "the model never calls it as a module, or no gradient comes back from it"
    if name in tied:
        return TIED
    if name in heads:
        return HEAD
    if name in maps:
        return EXCLUDED
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return TABLE
    if is_offloaded(module):
        return "offloaded: its weight is elsewhere until the model calls it"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent: one fused kernel takes the weights of all steps as they are, and takes no factors"
    if is_packed(module):
        return "several matrices in one parameter: geocolor.unpack makes layers of them"
    if isinstance(module, nn.MultiheadAttention | NonDynamicallyQuantizableLinear):
        return "torch's attention reads this weight itself and never calls a layer: geocolor.unpack makes layers of it"
    if isinstance(module, ParametrizationList):
        return "its weight is computed by a parametrization: remove_parametrizations first"
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolution: its patches overlap in the output, which no basis here describes"
    if isinstance(module, _ConvNd):
        return _why_not_convolution(module)
    if not all(p.is_floating_point() for p in _own_weights(module)):
        return "quantized: factors need the floating-point weight"
    if isinstance(module, nn.Linear | Conv1D):
        return "its own forward does more than multiply, or nothing calls it as a module"
    if any(p.ndim == 3 and min(p.shape) > 1 for p in _own_weights(module)):
        return "matrices stacked in one parameter, which the module multiplies itself"
    return "a parameter that the module uses itself, without calling a layer"


def _why_not_convolution(module: _ConvNd) -> str:
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise convolution: one small filter a channel, nothing to share"
    if module.groups > 1:
        return f"grouped convolution (groups={module.groups}): each output reads a part of the input only"
    if not isinstance(module, nn.Conv2d):
        return "of the convolutions only those over images (nn.Conv2d) are supported"
    if module.padding_mode != "zeros":
        return f"its padding mode is {module.padding_mode!r}; only zero padding is supported"
    return "its padding is uneven, or its own forward does more than convolve"
