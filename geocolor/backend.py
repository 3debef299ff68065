"""A plan in the model's own layers: one basis module per class, shared as an object by all its layers (DESIGN §7)."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from geocolor import transformers_format
from geocolor.bases import FactoredKind, Factors
from geocolor.factored_layers import (
    BothLayer,
    FactoredLayer,
    InLayer,
    OutLayer,
    basis_rank,
    dense_module,
    inputs_of,
    linear_map,
)
from geocolor.fused_layers import FusedLayer
from geocolor.layers import Form, Layer, geometry_of
from geocolor.mapped import let_go, put_in_files
from geocolor.plans import Plan
from geocolor.shared_basis import SharedBasis
from geocolor.unpacking import pack, unpack_as_planned

#: Tables of a module that hold what users register on it.
_HOOKS = {
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
}


def install(
    model: nn.Module,
    layers: Sequence[Layer],
    factors: Iterable[Factors],
    *,
    inplace: bool = False,
    plan: Plan | None = None,
    one_by_one: bool = False,
    files: Path | None = None,
) -> nn.Module:
    """Put factored layers in the place of those that `factors` name, in the dtype and on the device of their weights.

    A copy is changed unless `inplace`. With `plan` the model remembers it, and a transformers model can then
    `save_pretrained` itself. `factors` may be made one after the other: each is let go of once it is in the model's
    dtype. Raises `ValueError` naming the layer, before any change, where factors do not fit; but `one_by_one` every
    class is put in place once it is made, so that its weights and all factors need not be in memory together. With a
    folder `files` its factors then lie in files there (`geocolor.mapped`), and the memory of its weights is given back.
    """
    target = model if inplace else copy.deepcopy(model)
    shapes = {layer.name: layer for layer in layers}
    built: dict[str, FactoredLayer] = {}
    for cls in factors:
        missing = [name for name in cls.layers if name not in shapes]
        if missing:
            raise ValueError(f"there are factors for layer {missing[0]!r}, which is not among the {len(shapes)} layers")
        left_rank = None if cls.left is None else cls.left.shape[1]
        right_rank = None if cls.right is None else cls.right.shape[1]
        members = {name: shapes[name] for name in cls.layers}
        made = _build_class(target, members, cls.kind, left_rank, right_rank)
        for name, factored in made.items():
            _fill(name, factored, cls)
        if one_by_one:
            for name, factored in made.items():
                weight = target.get_submodule(name).weight
                target.set_submodule(name, factored)
                if files is not None and isinstance(weight, Tensor):
                    let_go(weight)
            if files is not None:
                put_in_files(nn.ModuleList(made.values()).parameters(), files)
        else:
            built.update(made)
    for name, factored in built.items():
        target.set_submodule(name, factored)
    if plan is not None:
        attach_plan(target, plan)
    return target


def skeleton(model: nn.Module, plan: Plan, names: Mapping[str, str] | None = None) -> nn.Module:
    """Swap in, in place, factored layers with unset values, by the shapes of `plan` alone; works on the meta device.

    `names` maps layers of the plan to modules of this model (identity by default); layers it leaves out are skipped.
    """
    unpack_as_planned(model, plan.layers)
    resolved = names if names is not None else {name: name for name in plan.layers}
    built: dict[str, FactoredLayer] = {}
    for cls in plan.classes:
        present = [name for name in cls.layers if name in resolved]
        if cls.kind == "dense" or not present:
            continue
        members = {resolved[name]: Layer(name=resolved[name], **plan.layers[name].model_dump()) for name in present}
        left_rank = None if cls.kind == "in" else cls.rank
        right_rank = {"in": cls.rank, "out": None, "both": cls.right_rank}[cls.kind]
        built.update(_build_class(model, members, cls.kind, left_rank, right_rank))
    for name, factored in built.items():
        model.set_submodule(name, factored)
    return model


def merge_to_dense(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Multiply the factors out (in float64) into layers of the original type. The saving is then gone.

    What `unpack` opened is closed again, so that the result is a model like the one before it.

    Raises `ValueError` where a factor carries an adapter or is quantized.
    """
    target = model if inplace else copy.deepcopy(model)
    replaced = {name: dense_module(factored) for name, factored in factored_layers(target).items()}
    for name, module in replaced.items():
        target.set_submodule(name, module)
    detach_plan(target)
    return pack(target)


def factored_layers(model: nn.Module) -> dict[str, FactoredLayer]:
    """The factored layers of a live model by dotted name, in the model's order.

    Raises `ValueError` where they are fused.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, FusedLayer):
            raise ValueError(f"layer {name!r} is fused, which is a form to run: take geocolor.unfuse(model)")
        if isinstance(module, FactoredLayer):
            found[name] = module
    return found


def shared_inputs(model: nn.Module) -> dict[str, str]:
    """For layers that read the very same tensor as others, the first of them; known from the plan."""
    plan = plan_of(model)
    if plan is None:
        return dict(getattr(model, "geocolor_inputs", {}))
    if not transformers_format.is_transformers_model(model):
        return dict(plan.inputs)
    names = transformers_format.names_in(model, plan)
    return {names[name]: names[first] for name, first in plan.inputs.items() if name in names and first in names}


def attach_plan(model: nn.Module, plan: Plan) -> None:
    """Let the model remember the plan it was built by, for `geocolor.save`.

    Raises `ValueError` where the live layers are not those of the plan.
    """
    if transformers_format.is_transformers_model(model):
        names = transformers_format.names_in(model, plan)
        check_live(model, plan, names)
        transformers_format.attach(model, plan, names)
    else:
        check_live(model, plan)
    model.geocolor_plan = plan  # type: ignore[assignment]


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a compressed model remembers."""
    plan = getattr(model, "geocolor_plan", None)
    return plan if isinstance(plan, Plan) else None


def detach_plan(model: nn.Module) -> None:
    """Forget the plan: the model is an ordinary one again."""
    for remembered in ("geocolor_plan", "geocolor_inputs"):
        if hasattr(model, remembered):
            delattr(model, remembered)
    if transformers_format.is_transformers_model(model):
        transformers_format.detach(model)


def check_live(model: nn.Module, plan: Plan, names: Mapping[str, str] | None = None) -> None:
    """Raise `ValueError` where kinds, ranks or sharing of the live modules differ from the plan's."""
    resolved = names if names is not None else {name: name for name in plan.layers}
    live = factored_layers(model)
    for cls in plan.classes:
        members = [resolved[name] for name in cls.layers if name in resolved]
        found = [live.pop(name, None) for name in members]
        if cls.kind == "dense":
            if any(layer is not None for layer in found):
                raise ValueError(f"layer {members[0]!r} is factored in the model and dense in the plan")
            continue
        ranks = {"left": cls.rank, "right": cls.rank if cls.kind == "in" else cls.right_rank}
        for name, layer in zip(members, found, strict=True):
            if layer is None or layer.kind != cls.kind:
                has = "dense" if layer is None else layer.kind
                raise ValueError(f"layer {name!r} is of kind {has!r} in the model and {cls.kind!r} in the plan")
            first = found[0]
            assert first is not None
            for side, basis in layer.bases().items():
                if basis is not first.bases()[side]:
                    raise ValueError(f"layers {members[0]!r} and {name!r} share a basis in the plan, not in the model")
                if (rank := basis_rank(basis.map, side)) != ranks[side]:
                    raise ValueError(f"layer {name!r} has rank {rank} in the model and {ranks[side]} in the plan")
    if live:
        raise ValueError(f"layer {next(iter(live))!r} is factored in the model and unknown to the plan")


def _build_class(
    model: nn.Module, members: Mapping[str, Layer], kind: FactoredKind, left_rank: int | None, right_rank: int | None
) -> dict[str, FactoredLayer]:
    """Factored layers of one class with unset values, bases shared; the model is only read."""
    originals = {name: _original(model, layer) for name, layer in members.items()}
    first_name, first = next(iter(originals.items()))
    for name, module in originals.items():
        for what, has, wants in (
            ("dtype", module.weight.dtype, first.weight.dtype),
            ("device", module.weight.device, first.weight.device),
        ):
            if has != wants:
                raise ValueError(
                    f"layers {first_name!r} and {name!r} cannot share a basis: {what} {wants} against {has}; "
                    f"bring the model to one {what}, or leave one of them out of the plan"
                )
    like = first.weight
    one = next(iter(members.values()))
    left = right = None
    if left_rank is not None:
        left = SharedBasis(linear_map(one.form, left_rank, one.m, like=like))
    if right_rank is not None:
        right = SharedBasis(linear_map(one.form, inputs_of(one), right_rank, one.geometry, like=like))
    built: dict[str, FactoredLayer] = {}
    for name, layer in members.items():
        _refuse_rank(layer, kind, left_rank, right_rank)
        bias = originals[name].bias
        outputs = layer.m if left_rank is None else left_rank
        geometry = layer.geometry if right_rank is None else ()
        inputs = inputs_of(layer) if right_rank is None else right_rank
        own_bias = left is None and bias is not None
        coefficients = linear_map(layer.form, inputs, outputs, geometry, bias=own_bias, like=like)
        factored: FactoredLayer
        if left is None:
            assert right is not None
            factored = InLayer(layer, coefficients, right)
            if bias is not None:
                coefficients.bias = _copy(bias)
        elif right is None:
            factored = OutLayer(layer, coefficients, left, _copy(bias))
        else:
            factored = BothLayer(layer, coefficients, left, right, _copy(bias))
        hand_over_hooks(originals[name], factored)
        built[name] = factored.train(originals[name].training)
    return built


def hand_over_hooks(original: nn.Module, factored: nn.Module) -> None:
    """What a user hung on the layer goes on; the very same tables, so that their handles still remove them."""
    for table, hooks in vars(original).items():
        if hooks and table in _HOOKS:
            object.__setattr__(factored, table, hooks)
    if original._backward_hooks:
        factored._is_full_backward_hook = original._is_full_backward_hook
    if hasattr(original, "_hf_hook"):  # accelerate moves inputs to where the layer is
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(factored, original._hf_hook)


def _copy(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)


def _fill(name: str, layer: FactoredLayer, factors: Factors) -> None:
    sides = {"right": factors.right, "left": factors.left}
    values = [(layer.coefficients.weight, factors.coefficients[name], "coefficients")]
    for side, basis in layer.bases().items():
        matrix = sides[side]
        assert matrix is not None
        values.append((basis.map.weight, matrix.T if side == "right" else matrix, f"{side} basis"))
    for parameter, value, what in values:
        if value.numel() != parameter.numel() or value.shape[0] != parameter.shape[0]:
            raise ValueError(
                f"layer {name!r}: {what} of shape {tuple(value.shape)} do not fit its "
                f"{layer.layer.m} × {layer.layer.n} weight"
            )
        with torch.no_grad():
            parameter.copy_(value.reshape(parameter.shape))
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"layer {name!r}: {what} hold values that {str(parameter.dtype).removeprefix('torch.')} cannot; "
                "raise the damping of the curvature, or use a wider dtype"
            )


def _refuse_rank(layer: Layer, kind: str, left_rank: int | None, right_rank: int | None) -> None:
    """A full rank saves nothing; worse, coefficients as large as the weight would load where factors are unknown."""
    for side, rank, width in (("left", left_rank, layer.m), ("right", right_rank, layer.n)):
        if rank is not None and not 1 <= rank < width:
            raise ValueError(
                f"layer {layer.name!r}: {side} rank {rank} of kind {kind!r} must be at least 1 and below the width "
                f"{width}; keep the layer dense instead"
            )


def _original(model: nn.Module, layer: Layer) -> nn.Linear | nn.Conv2d:
    """The module that `layer` names, checked to be of its form and shape."""
    try:
        module = model.get_submodule(layer.name) if layer.name else None
    except AttributeError:
        module = None
    if module is None:
        raise ValueError(f"the model has no layer {layer.name!r}: the plan or the factors are for another model")
    form: Form | None
    if isinstance(module, nn.Linear):
        form, m, n = "linear", module.out_features, module.in_features
    elif isinstance(module, nn.Conv2d):
        form, m, n = "conv2d", module.out_channels, module.in_channels * math.prod(module.kernel_size)
    elif isinstance(module, Conv1D):
        form, m, n = "conv1d", module.nf, module.nx
    else:
        form, m, n = None, 0, 0
    if (form, m, n) != (layer.form, layer.m, layer.n):
        found = type(module).__name__ + (f" of {m} × {n}" if form else "")
        raise ValueError(
            f"layer {layer.name!r} is a {found} in this model, not a {layer.form} of {layer.m} × {layer.n}: "
            "the plan or the factors are for another model"
        )
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or geometry_of(module) != layer.geometry):
        raise ValueError(
            f"layer {layer.name!r} slides otherwise in this model (kernel, stride, padding and dilation are "
            f"{geometry_of(module)}, groups={module.groups}) than {layer.geometry}: the plan is for another model"
        )
    return cast("nn.Linear | nn.Conv2d", module)
