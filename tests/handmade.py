"""Plans written by hand and factors from a plain SVD: what backend and storage need, without curvature or solver."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geocolor.bases import Factors
from geocolor.layers import Layer, find_layers, weight_of
from geocolor.plans import Kind, Plan, PlannedClass, class_parameters, fingerprint
from geocolor.schema import LayerShape


def plan_of(model: nn.Module, classes: Sequence[tuple[Any, ...]]) -> Plan:
    """A plan in which the layers of `classes` are factored and all others stay dense."""
    layers = {layer.name: layer for layer in find_layers(model)}
    shapes = {
        name: LayerShape(m=layer.m, n=layer.n, form=layer.form, geometry=layer.geometry)
        for name, layer in layers.items()
    }
    planned = [planned_class(kind, names, shapes, *ranks) for kind, names, *ranks in classes]
    taken = {name for _, names, *_ in classes for name in names}
    planned += [planned_class("dense", [name], shapes) for name in layers if name not in taken]
    return Plan(
        fingerprint=fingerprint(model, layers.values()),
        layers=shapes,
        classes=tuple(planned),
        keep=0.5,
        price=0.0,
        objective=0.0,
        solver="by hand",
    )


def planned_class(
    kind: Kind,
    names: Sequence[str],
    shapes: Mapping[str, LayerShape],
    rank: int | None = None,
    right_rank: int | None = None,
    damage: Mapping[str, float] | None = None,
) -> PlannedClass:
    """A class with its parameters counted; it does no damage unless told."""
    layers = tuple(names)
    draft = PlannedClass.model_construct(kind=kind, layers=layers, rank=rank, right_rank=right_rank)
    return PlannedClass(
        kind=kind,
        layers=layers,
        rank=rank,
        right_rank=right_rank,
        parameters=class_parameters(draft, shapes),
        damage=dict(damage or dict.fromkeys(layers, 0.0)),
    )


def factors_of(model: nn.Module, plan: Plan) -> list[Factors]:
    """Singular vectors of the stacked weights of a class, and the projections of each layer on them."""
    layers = {layer.name: layer for layer in plan.shareable_layers()}
    made = []
    for cls in plan.classes:
        if cls.kind == "dense":
            continue
        assert cls.rank is not None
        weights = {name: weight_of(model, layers[name]) for name in cls.layers}
        left = right = None
        coefficients: dict[str, Tensor] = weights
        if cls.kind in ("out", "both"):
            left = torch.linalg.svd(torch.cat(list(weights.values()), 1), full_matrices=False)[0][:, : cls.rank]
            coefficients = {name: left.T @ value for name, value in coefficients.items()}
        if cls.kind in ("in", "both"):
            columns = cls.rank if cls.kind == "in" else cls.right_rank
            right = torch.linalg.svd(torch.cat(list(weights.values()), 0), full_matrices=False)[2][:columns].T
            coefficients = {name: value @ right for name, value in coefficients.items()}
        made.append(Factors(cls.kind, cls.layers, coefficients, left, right))
    return made


def layer_named(model: nn.Module, name: str) -> Layer:
    return next(layer for layer in find_layers(model) if layer.name == name)
