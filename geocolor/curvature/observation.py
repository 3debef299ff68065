"""Watching a model run: the inputs of its layers on the way forward, the gradients of their outputs on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from geocolor.layers import Layer, Side
from geocolor.modes import evaluating

OnGradient = Callable[[Tensor], None]


class OnCall(Protocol):
    """Called when `layer` reads `x`; returns what to call with the gradient of the output, or None."""

    def __call__(self, layer: Layer, x: Tensor) -> OnGradient | None: ...


@contextmanager
def watched(model: nn.Module, layers: Sequence[Layer], on_call: OnCall, *, gradients: bool) -> Iterator[list[Tensor]]:
    """Within this context the model runs in evaluation mode and `on_call` sees every call of every layer.

    No parameter requires a gradient meanwhile, since only gradients of outputs are wanted: that saves a third of the
    work and the inputs' memory. The graph begins at the first outputs that `on_call` asks for; those leaves are
    collected in the list given, which the caller empties after each batch. Modes, `requires_grad` and hooks are put
    back as they were, also after an exception.
    """
    if torch.is_inference_mode_enabled() or any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "gradients do not pass what is made under torch.inference_mode(): build the model and measure it outside "
            "(torch.no_grad() does no harm)"
        )
    leaves: list[Tensor] = []
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    handles: list[RemovableHandle] = []
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for layer in layers:
            hook = _hook(layer, on_call, leaves)
            handles.append(model.get_submodule(layer.name).register_forward_hook(hook, with_kwargs=True))
        with evaluating(model, gradients=gradients):
            yield leaves
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in flags:
            parameter.requires_grad_(required)


def _hook(layer: Layer, on_call: OnCall, leaves: list[Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        on_gradient = on_call(layer, x)
        if on_gradient is None:
            return output
        if not output.requires_grad and torch.is_grad_enabled():
            leaves.append(output.requires_grad_())
            output = output.clone()  # so that a following in-place operation does not meet a leaf
        if output.requires_grad:
            output.register_hook(on_gradient)
        return output

    return hook


class InputGroups:
    """Which layers read the very same tensor on the same side, found by identity as the model runs.

    `inputs` maps each layer to the first layer of its group; only that one's inputs are summed. The first batch settles
    the groups; where a later call contradicts them, the sums already hold a mixture and an error is raised.
    """

    def __init__(self, inputs: dict[str, str], share: bool = True) -> None:
        """`inputs`: empty, or the groups that batches seen before have settled."""
        self.inputs = inputs
        self._share = share
        self._settled = bool(inputs)
        self.new_batch()

    def new_batch(self) -> None:
        self._alive: dict[tuple[int, Side], tuple[TensorWeakRef, int, int, str]] = {}
        self._reads: dict[str, list[int]] = {}
        self._count = 0

    def reads(self, layer: Layer, x: Tensor) -> bool:
        """Notes that `layer` reads `x`; true when the sums of its group must take `x` in, under its own name."""
        number, first = self._identify(layer, x)
        self._reads.setdefault(layer.name, []).append(number)
        group = self.inputs.setdefault(layer.name, self.inputs.get(first, layer.name) if self._share else layer.name)
        if group != layer.name and self._settled:
            self._check(layer.name, group, partly=True)
        return group == layer.name

    def settle(self) -> bool:
        """After the first batch: whether the groups were right for all of it.

        They are not where layers of a group have read some tensors in common but not all (an attention that projects
        its positions with the key's matrix too). Then they are split, and the batch has to be measured again.
        """
        if self._settled:
            return True
        self._settled = True
        firsts: dict[tuple[int, ...], str] = {}
        finer = {
            name: firsts.setdefault(tuple(numbers), name) if self._share else name
            for name, numbers in self._reads.items()
        }
        right = all(self.inputs[name] == first for name, first in finer.items())
        self.inputs.update(finer)
        return right

    def end_batch(self) -> None:
        for name, group in self.inputs.items():
            if group != name and (name in self._reads or group in self._reads):
                self._check(name, group, partly=False)

    def _identify(self, layer: Layer, x: Tensor) -> tuple[int, str]:
        """A number for tensor and side, equal for equal objects of equal version, and the first layer that read it.

        Convolutions of unlike windows read unlike patches of one tensor.
        """
        known = self._alive.get((id(x), layer.in_side))
        version = 0 if x.is_inference() else x._version
        if known is not None and known[0]() is x and known[1] == version:
            return known[2], known[3]
        self._count += 1
        self._alive[id(x), layer.in_side] = (TensorWeakRef(x), version, self._count, layer.name)
        return self._count, layer.name

    def _check(self, name: str, group: str, partly: bool) -> None:
        own, others = self._reads.get(name, []), self._reads.get(group, [])
        if own != (others[: len(own)] if partly else others):
            raise ValueError(
                f"layers {group!r} and {name!r} read the same input at first but not always: the model takes different "
                "paths for different data; measure with share_inputs=False"
            )
