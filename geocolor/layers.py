"""Layers: the linear maps of a network that may share a basis, found by type and shape, never by name."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, unfold
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from geocolor import processes

Form = Literal["linear", "conv1d", "conv2d"]
Side = tuple[str | int, ...]


@dataclass(frozen=True)
class Layer:
    """One linear map `y = W x` of a model, `W` of shape m × n (out × in).

    `form` tells how the module stores it: "linear" as m × n, "conv1d" (transformers' Conv1D) as n × m, "conv2d" as
    m × channels × kh × kw, which is m × n with `n = channels·kh·kw` and `x` the unfolded patches.
    `geometry` is empty except for "conv2d": kernel, stride, padding and dilation, each height then width.
    """

    name: str
    m: int
    n: int
    form: Form
    geometry: tuple[int, ...] = ()

    @property
    def parameters(self) -> int:
        return self.m * self.n

    @property
    def in_side(self) -> Side:
        """Layers may share an `in` basis iff this is equal."""
        if self.form == "conv2d":
            return ("conv2d", self.n // (self.geometry[0] * self.geometry[1]), *self.geometry)
        return ("linear", self.n)

    @property
    def out_side(self) -> Side:
        """Layers may share an `out` basis iff this is equal."""
        return ("conv2d" if self.form == "conv2d" else "linear", self.m)


def find_layers(model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> tuple[Layer, ...]:
    """The layers in scope, in the order of registration.

    `include` and `exclude` are fnmatch patterns on dotted names. Found are nn.Linear (and subclasses with its forward),
    transformers' Conv1D, and nn.Conv2d with groups = 1 and zero padding. Left alone are tied weights, embeddings and
    the output head: for a transformers model its output embeddings and everything outside its base model, for any other
    module the last layer, unless its name has an integer component (then it belongs to a repeated block).
    A pattern of `include` that is exactly the name of a head brings it back.

    Raises ValueError when nothing is in scope, when a pattern matches nothing, and for a model compressed already,
    whose factors are layers too.
    """
    found = layers_in_scope(model, include, exclude)
    if not found:
        from geocolor.scope import left_out, reasons  # which looks for layers itself

        told = reasons(left_out(model, include, exclude))
        raise ValueError("; ".join([_nothing_found(model), *told]))
    return found


def layers_in_scope(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """What `find_layers` finds, perhaps nothing."""
    _refuse_compressed(model)
    candidates = {layer.name: layer for layer in linear_maps(model)}
    tied = tied_weights(model, candidates)
    heads = output_heads(model, list(candidates)) - tied
    for pattern in include:
        _check_include(pattern, candidates, heads, tied)
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ValueError(f"exclude pattern {pattern!r} matches no layer; {_examples(candidates)}")
    return tuple(
        layer
        for name, layer in candidates.items()
        if name not in tied
        and (name in include or (name not in heads and any(fnmatchcase(name, pattern) for pattern in include)))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    )


def weight_of(model: nn.Module, layer: Layer, dtype: torch.dtype = torch.float64) -> Tensor:
    """A copy of the weight as an m × n matrix. Raises ValueError when it holds NaN or infinite values."""
    stored = model.get_submodule(layer.name).weight
    assert isinstance(stored, Tensor)
    stored = processes.whole(stored)
    weight = as_matrix(layer, stored.detach().to(dtype=dtype, copy=True)).contiguous()
    if weight.shape != (layer.m, layer.n):
        raise ValueError(
            f"layer {layer.name!r} is {weight.shape[0]} × {weight.shape[1]} in this model, not {layer.m} × {layer.n}: "
            "this is another model than the one measured or planned; measure and plan it anew"
        )
    bad = ~torch.isfinite(weight)
    if bad.any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"layer {layer.name!r}: {int(bad.sum())} of {weight.numel()} weights are NaN or infinite, the first at "
            f"row {row}, column {column}; repair the model or leave the layer out with exclude"
        )
    return weight


def as_matrix(layer: Layer, stored: Tensor) -> Tensor:
    """What is stored in the shape of the layer's weight, such as its gradient, as an m × n matrix."""
    return stored.T if layer.form == "conv1d" else stored.flatten(1)


def as_stored(layer: Layer, matrix: Tensor) -> Tensor:
    """The m × n matrix in the shape in which the layer's module stores its weight; inverse of `as_matrix`."""
    if layer.form == "conv1d":
        return matrix.T
    if layer.form == "conv2d":
        return matrix.reshape(layer.m, -1, layer.geometry[0], layer.geometry[1])
    return matrix


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """What `W` multiplies: [..., n]; for "conv2d" the patches [batch, positions, n] of `x` [batch, channels, h, w]."""
    if layer.form != "conv2d":
        return x
    kernel, stride, padding, dilation = (layer.geometry[i : i + 2] for i in (0, 2, 4, 6))
    images = x if x.ndim == 4 else x.unsqueeze(0)
    return unfold(images, kernel, dilation=dilation, padding=padding, stride=stride).transpose(1, 2)


def output_rows(layer: Layer, y: Tensor) -> Tensor:
    """The outputs (or their gradients) as [..., m], in the order of `input_rows`."""
    if layer.form != "conv2d":
        return y
    images = y if y.ndim == 4 else y.unsqueeze(0)
    return images.flatten(2).transpose(1, 2)


def storage_key(tensor: Tensor) -> tuple[str, int]:
    """Equal for two tensors iff they start at the same place in memory (by identity where there is no memory)."""
    address = 0 if tensor.is_meta else tensor.data_ptr()
    return (str(tensor.device), address) if address else ("object", id(tensor))


def _refuse_compressed(model: nn.Module) -> None:
    factored = [name for name, module in model.named_modules() if isinstance(getattr(module, "layer", None), Layer)]
    if factored:
        raise ValueError(
            f"this model is compressed already: {_list(factored)} {'is' if len(factored) == 1 else 'are'} factored. "
            "Compress the original instead, or multiply the factors out first (geocolor.merge_to_dense, export_dense)"
        )


def linear_maps(model: nn.Module) -> Iterator[Layer]:
    """Every module that multiplies by its weight and does nothing else, whether or not it is in scope."""
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # absent where a parametrization computes the weight
        if not name or weight is None or not weight.is_floating_point() or _replaced(module) or is_offloaded(module):
            continue
        kind: Any = type(module)
        forward = kind.forward
        if isinstance(module, nn.Linear) and (forward is nn.Linear.forward or _multiplies(kind)):
            # nn.MultiheadAttention reads the weight of this one and never calls it
            if not isinstance(module, NonDynamicallyQuantizableLinear):
                yield Layer(name, module.out_features, module.in_features, "linear")
        elif isinstance(module, Conv1D) and forward is Conv1D.forward:
            yield Layer(name, weight.shape[1], weight.shape[0], "conv1d")
        elif isinstance(module, nn.Conv2d) and forward is nn.Conv2d.forward:
            geometry = geometry_of(module)
            if geometry is not None and module.groups == 1 and module.padding_mode == "zeros":
                yield Layer(name, weight.shape[0], weight[0].numel(), "conv2d", geometry)


@functools.cache
def _multiplies(kind: type[nn.Linear]) -> bool:
    """Whether a class of its own `forward`, and no state of its own, computes what nn.Linear does (Falcon's does)."""
    if kind.__init__ is not nn.Linear.__init__:
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        x = torch.randn(2, 4, 3, dtype=torch.float64, device="cpu")
        for bias, training in product((True, False), repeat=2):
            small = kind(3, 5, bias=bias, device="cpu", dtype=torch.float64).train(training)
            try:
                y = small(x)
            except Exception:  # it asks for more than an input
                return False
            if not isinstance(y, Tensor) or not torch.allclose(y, linear(x, small.weight, small.bias)):
                return False
    return True


def _replaced(module: nn.Module) -> bool:
    """Whether somebody gave this very object another forward; accelerate does, around the module's own."""
    return "forward" in module.__dict__ and not hasattr(module, "_hf_hook")


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps this module's weights elsewhere until it is called."""
    return hasattr(module, "_hf_hook") and any(parameter.is_meta for parameter in module.parameters(recurse=False))


def geometry_of(module: nn.Conv2d) -> tuple[int, ...] | None:
    """Kernel, stride, padding, dilation; None where "same" padding is uneven, which `unfold` cannot express."""
    padding = module.padding
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if padding == "same" and any(t % 2 for t in total):
            return None
        padding = tuple(t // 2 for t in total) if padding == "same" else (0, 0)
    return tuple(int(i) for i in (*module.kernel_size, *module.stride, *padding, *module.dilation))


def tied_weights(model: nn.Module, candidates: Iterable[str]) -> set[str]:
    """Candidates whose weight is registered a second time: as the same module, parameter or memory."""
    uses = Counter(
        storage_key(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module._parameters.values()
        if parameter is not None
    )
    keys = {name: storage_key(model.get_submodule(name)._parameters["weight"]) for name in candidates}  # type: ignore[arg-type]
    return {name for name, key in keys.items() if uses[key] > 1}


def output_heads(model: nn.Module, names: list[str]) -> set[str]:
    """Of the linear maps `names`, those that are outputs rather than parts of the body."""
    if isinstance(model, PreTrainedModel):
        modules = {id(module): name for name, module in model.named_modules()}
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        heads = {modules[id(head)]} if id(head) in modules else set()
        if model.base_model is not model:
            base = modules[id(model.base_model)] + "."
            heads |= {name for name in names if not name.startswith(base)}
        return heads & set(names)
    repeated = names and any(part.isdigit() for part in names[-1].split("."))
    return set() if not names or repeated else {names[-1]}


def _check_include(pattern: str, candidates: dict[str, Layer], heads: set[str], tied: set[str]) -> None:
    if pattern == "*":
        return  # the default; an empty result is reported once, by find_layers
    matched = {name for name in candidates if fnmatchcase(name, pattern)}
    if not matched:
        raise ValueError(f"include pattern {pattern!r} matches no layer; {_examples(candidates)}")
    if matched <= tied:
        raise ValueError(
            f"include pattern {pattern!r} matches only tied weights ({_list(matched)}), which are left alone"
        )
    if matched <= heads | tied and pattern not in heads:
        raise ValueError(
            f"include pattern {pattern!r} matches only the output head ({_list(matched & heads)}), which is out of "
            "scope by default; give its full name to bring it in"
        )


def _nothing_found(model: nn.Module) -> str:
    candidates = [layer.name for layer in linear_maps(model)]
    if not candidates and any(is_offloaded(module) for module in model.modules()):
        return (
            "the model's weights are offloaded, so none can be measured or replaced: load it with a "
            "device_map that puts no module on another device than it runs on"
        )
    if not candidates:
        types = Counter(type(module).__name__ for module in model.modules() if not list(module.children()))
        seen = ", ".join(f"{count} × {kind}" for kind, count in types.most_common(8))
        return (
            "the model has no layer that can share a basis: found no submodule of type nn.Linear, transformers' Conv1D "
            f"or nn.Conv2d (groups=1, zero padding); its leaves are {seen}"
        )
    tied = tied_weights(model, candidates)
    heads = output_heads(model, candidates) - tied
    reasons = [f"{_list(heads)} (output head)"] if heads else []
    reasons += [f"{_list(tied)} (tied weights)"] if tied else []
    rest = set(candidates) - heads - tied
    reasons += [f"{_list(rest)} (excluded)"] if rest else []
    return f"no layer is in scope: left out are {'; '.join(reasons)}; give the full name of a head in include"


def _examples(candidates: dict[str, Layer]) -> str:
    return f"the layers are named like {_list(candidates)}" if candidates else "the model has no layer at all"


def _list(names: Iterable[str], most: int = 3) -> str:
    ordered = sorted(names) if isinstance(names, set) else list(names)
    quoted = ", ".join(repr(name) for name in ordered[:most])
    return quoted if len(ordered) <= most else f"{quoted} and {len(ordered) - most} more"
