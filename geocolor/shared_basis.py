"""The basis of a class as one module object, and how its layers avoid evaluating it twice (DESIGN §7)."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn


class SharedBasis(nn.Module):
    """One basis of a class: `x ↦ Bᵀx` on the input side, `c ↦ B c` on the output side.

    A single object of this type is registered in every layer of its class, so that tools which swap the linear map
    inside (quantizers, adapters) swap it for all of them. Layers that read the very same input tensor get one
    evaluation of `Bᵀx`, as long as nobody differentiates or traces; see `_Memo` for when that is safe.
    """

    #: Number of layers that this basis is part of.
    readers: int = 0

    def __init__(self, map: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.map = map
        self._memo = _Memo()

    def __setattr__(self, name: str, value: Any) -> None:
        """Tools may swap the map (quantizers do); an adapter (LoRA) on what several layers share is refused."""
        if name == "map" and self.readers > 1 and _is_adapter(value):
            raise ValueError(
                f"this basis is shared by {self.readers} layers, and an adapter on it would change them all: put "
                'adapters on the layers\' own coefficients, in peft with target_modules=["coefficients"]'
            )
        super().__setattr__(name, value)

    def forward(self, x: Tensor, reader: object = None) -> Tensor:
        """`reader` stands for the layer that asks; without it every call evaluates.

        It is an object that the layer owns, not the layer: accelerate moves every module that is passed to another one.
        """
        if reader is None or torch.compiler.is_compiling() or torch.is_grad_enabled() or not _is_plain(self.map, x):
            evaluated: Tensor = self.map(x)
            return evaluated
        return self._memo.evaluate(self.map, x, reader)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .to() and its kind give the weight another storage, perhaps at the old address.
        self._memo.held = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


@dataclass(frozen=True)
class _Evaluation:
    """`Bᵀx` and what it depended on. `readers` are the layers that have had it."""

    source: "weakref.ref[Tensor]"
    weight: "weakref.ref[Tensor]"
    key: tuple[object, ...]
    value: Tensor
    value_version: int
    readers: set[int]


@dataclass
class _Memo:
    """One slot: the last `Bᵀx`, dropped when `x` dies.

    It is handed out again only to another layer that passes the same tensor object, unchanged by version counter,
    address and shape, with the same weight, unchanged likewise, in the same autocast state and stream. A layer that
    asks a second time begins a new pass and evaluates anew, so edits through `.data`, which no counter sees, count from
    the next pass on. Tensors without a version counter (inference mode) are never remembered. Copies and pickles
    start empty.
    """

    held: _Evaluation | None = field(default=None, repr=False, compare=False)

    def evaluate(self, map: nn.Linear | nn.Conv2d, x: Tensor, reader: object) -> Tensor:
        key = _circumstances(map.weight, x)
        if key is None:
            direct: Tensor = map(x)
            return direct
        held = self.held
        if (
            held is not None
            and held.source() is x
            and held.weight() is map.weight
            and held.key == key
            and held.value._version == held.value_version
            and id(reader) not in held.readers
        ):
            held.readers.add(id(reader))
            return held.value
        value: Tensor = map(x)
        source, weight = weakref.ref(x, self._drop), weakref.ref(map.weight)
        self.held = _Evaluation(source, weight, key, value, value._version, {id(reader)})
        return value

    def _drop(self, dead: "weakref.ref[Tensor]") -> None:
        if self.held is not None and self.held.source is dead:
            self.held = None

    def __deepcopy__(self, memo: object) -> "_Memo":
        return _Memo()

    def __reduce__(self) -> tuple[type["_Memo"], tuple[()]]:
        return _Memo, ()


def each_linear_once() -> Callable[[nn.Module, str], bool]:
    """A filter for tools that change the linear maps of a model and meet a shared basis again in each of its layers.

    True for every nn.Linear on the first visit alone: `torchao.quantization.quantize_(model, config, once)`, with
    `once = each_linear_once()` made anew for each model.
    """
    seen: set[nn.Module] = set()

    def first(module: nn.Module, name: str = "") -> bool:
        if not isinstance(module, nn.Linear) or module in seen:
            return False
        seen.add(module)
        return True

    return first


def _circumstances(weight: Tensor, x: Tensor) -> tuple[object, ...] | None:
    """All that `Bᵀx` depends on beside the identity of the two; None where torch cannot tell whether it changed."""
    try:
        stamps = tuple(
            stamp
            for tensor in (weight, x)
            for stamp in (tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        )
    except RuntimeError:  # inference tensors have no version counter, wrapped ones (vmap) no address
        return None
    autocast = torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type)
    stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
    return (*stamps, autocast, stream)


def _is_adapter(map: object) -> bool:
    """Whether a module wraps another one and can be merged into it, as the layers of peft do."""
    return hasattr(type(map), "get_base_layer") and hasattr(type(map), "merge")


def _is_plain(map: nn.Module, x: object) -> bool:
    """Whether evaluating `map` is nothing but a linear map, so that skipping an evaluation changes nothing."""
    return (
        type(map) in (nn.Linear, nn.Conv2d)
        and "forward" not in map.__dict__
        and not (map._forward_hooks or map._forward_pre_hooks)
        and type(x) in (Tensor, nn.Parameter)
        and not torch.is_inference_mode_enabled()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )
