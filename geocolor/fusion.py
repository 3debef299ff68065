"""A form to run: factored layers that read one tensor evaluated together, and back."""

import copy
from typing import Any

import torch
from torch import nn

from geocolor.backend import factored_layers, hand_over_hooks, shared_inputs
from geocolor.factored_layers import FactoredLayer
from geocolor.fused_layers import FusedInput, FusedLayer, by_source


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """A form to run, not to save: factored layers that read one input become few products, as `FusedInput` says.

    q, k and v on a shared basis take two products instead of six, on bases of their own four. Which layers read one
    tensor is known from the plan (it was seen when the model was measured). On a CPU, coefficients are laid out for few
    positions at a time (`few_positions`), those of layers that read an input alone too. Outputs agree up to rounding,
    gradients flow, the number of parameters stays. `unfuse` undoes it; save the model before it is fused. Convolutions
    and layers that carry adapters or are quantized stay as they are.
    """
    target = model if inplace else copy.deepcopy(model)
    layers = {name: layer for name, layer in factored_layers(target).items() if _is_plain(layer)}
    place = {layer: name for name, layer in layers.items()}
    inputs = shared_inputs(target)
    readers: dict[str, list[FactoredLayer]] = {}
    for name, layer in layers.items():
        readers.setdefault(inputs.get(name, name), []).append(layer)
    for group in readers.values():
        for alike in _alike(group):
            ordered = by_source(alike)
            fused = FusedInput(ordered)
            for slot, layer in enumerate(ordered):
                _swap(target, place[layer], FusedLayer(layer, fused, slot))
    for layer in place:
        if isinstance(target.get_submodule(place[layer]), FusedLayer):
            for basis in layer.bases().values():
                basis.readers -= 1
    if any(isinstance(module, FusedLayer) for module in target.modules()) and hasattr(target, "save_pretrained"):
        target.save_pretrained = _refuse_to_save  # type: ignore[assignment]
    return target


def unfuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Undo `fuse`: every layer holds its own factors again, on bases that are shared as before. Bit-equal weights."""
    target = model if inplace else copy.deepcopy(model)
    bases: dict[FusedInput, list[Any]] = {}
    for name, layer in [entry for entry in target.named_modules() if isinstance(entry[1], FusedLayer)]:
        assert isinstance(layer, FusedLayer)
        if layer.fused not in bases:
            bases[layer.fused] = layer.fused.bases()
        _swap(target, name, layer.unfused(bases[layer.fused][layer.slot]))
    target.__dict__.pop("save_pretrained", None)
    return target


def _swap(model: nn.Module, name: str, module: nn.Module) -> None:
    hand_over_hooks(model.get_submodule(name), module)
    model.set_submodule(name, module)


def _is_plain(layer: FactoredLayer) -> bool:
    """Whether all factors are plain linear maps, so that stacking them changes nothing."""
    maps = [layer.coefficients, *(basis.map for basis in layer.bases().values())]
    return all(
        type(map) is nn.Linear
        and type(map.weight) is nn.Parameter
        and "forward" not in map.__dict__
        and not (map._forward_hooks or map._forward_pre_hooks)
        for map in maps
    )


def _alike(layers: list[FactoredLayer]) -> list[list[FactoredLayer]]:
    """Groups of one dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[FactoredLayer]] = {}
    for layer in layers:
        weight = layer.coefficients.weight
        groups.setdefault((weight.dtype, weight.device), []).append(layer)
    return list(groups.values())


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise ValueError("this model is fused, a form to run: save it before fusing, or save geocolor.unfuse(model)")
