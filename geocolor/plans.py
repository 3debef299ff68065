"""A plan: which layers share which basis at which rank, as data. `plan.json` is its file."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Field, PlainSerializer, model_validator

from geocolor import processes
from geocolor.atomic import write_atomically
from geocolor.json_files import read_json
from geocolor.layers import Layer, layers_in_scope, weight_of
from geocolor.schema import Frozen, Size, Text, validated
from geocolor.schema import LayerShape as LayerShape
from solvers import Coloring

FORMAT_VERSION = 1

Kind = Literal["dense", "in", "out", "both"]


def _not_nan(x: float) -> float:
    if math.isnan(x):
        raise ValueError("NaN is no bound")
    return x


#: JSON has no infinity: written as text, read back as a float.
Bound = Annotated[
    float,
    AllowInfNan(True),
    PlainSerializer(lambda x: x if math.isfinite(x) else str(x), when_used="json"),
    BeforeValidator(lambda x: float(x) if x in ("inf", "-inf") else x),
    AfterValidator(_not_nan),
]


class Fingerprint(Frozen):
    """Tells the model a plan was made for from every other: SHA-256 over names, shapes and weights in scope."""

    sha256: Text
    dtype: Text


class PlannedClass(Frozen):
    """One color: the layers that share a basis, its kind and rank.

    `rank` is `r` (for `both` the left rank), `right_rank` is `r'` of `both`. `medoid` names the layer whose own basis
    the class takes; without it the basis is the class's own eigenproblem. `damage` is the predicted `ΔJ` by layer.
    """

    kind: Kind
    layers: tuple[Text, ...] = Field(min_length=1)
    rank: Size | None = None
    right_rank: Size | None = None
    medoid: Text | None = None
    parameters: int = Field(ge=0)
    damage: dict[Text, float]

    @model_validator(mode="after")
    def _consistent(self) -> "PlannedClass":
        first = self.layers[0]
        if self.kind == "dense" and (len(self.layers) > 1 or self.rank is not None):
            raise ValueError(f"class of {first!r}: a dense class holds one layer and has no rank")
        if self.kind != "dense" and self.rank is None:
            raise ValueError(f"class of {first!r}: kind {self.kind!r} needs a rank")
        if (self.right_rank is not None) != (self.kind == "both"):
            raise ValueError(f"class of {first!r}: right_rank belongs to kind 'both' and to it alone")
        if set(self.damage) != set(self.layers):
            raise ValueError(f"class of {first!r}: damage names other layers than the class")
        return self


class Plan(Frozen):
    """A coloring with kinds and ranks, what it is predicted to cost, and for which model it was made.

    `price` is `λ`, the price of one parameter in units of the loss (to the power `aggregate`), under which the coloring
    was searched; with `max_flops`, a budget on the FLOPs per position, that of one parameter times `1 − flops_weight`
    and of one multiplication with its addition times `flops_weight`; `objective` the aggregate `Σ_ℓ D_ℓ^p` that was
    minimised, `lower_bound` a proven bound on it over all colorings at this budget, `gap` = (objective − lower_bound) /
    |objective|. `inputs` names, for a layer that reads the very same tensor as others, the first of them; `loads`, for
    layers that do not all see as many positions, how many each sees relative to the mean over all parameters.
    """

    format_version: Literal[1] = 1
    fingerprint: Fingerprint
    layers: dict[Text, LayerShape] = Field(max_length=1_000_000)
    classes: tuple[PlannedClass, ...]
    keep: float | None = Field(default=None, gt=0, le=1)
    bases: Size | None = None
    max_flops: float | None = Field(default=None, gt=0, le=1)
    price: float = Field(ge=0)
    flops_weight: float = Field(default=0.0, ge=0, le=1)
    aggregate: float = Field(default=1.0, gt=0)
    trust_region: float | None = Field(default=None, gt=0)
    flat_energy: float | None = Field(default=None, gt=0, lt=1)
    objective: float
    objective_without_sharing: float | None = None
    lower_bound: Bound = -math.inf
    gap: Bound = math.inf
    solver: Text
    solver_settings: dict[str, Any] = Field(default_factory=dict)
    seconds: float = Field(default=0.0, ge=0)
    curvature: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[Text, Text] = Field(default_factory=dict)
    loads: dict[Text, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _partition(self) -> "Plan":
        planned = [name for cls in self.classes for name in cls.layers]
        twice = [name for name, count in Counter(planned).items() if count > 1]
        if twice:
            raise ValueError(f"layer {min(twice)!r} is in two classes")
        missing, unknown = set(self.layers) - set(planned), set(planned) - set(self.layers)
        if missing:
            raise ValueError(f"layer {sorted(missing)[0]!r} is in no class")
        if unknown:
            raise ValueError(f"layer {sorted(unknown)[0]!r} has a class but no shape under 'layers'")
        for cls in self.classes:
            _check_sides(cls, self.layers)
            stated, counted = cls.parameters, class_parameters(cls, self.layers)
            if stated != counted:
                raise ValueError(f"class of {cls.layers[0]!r} states {stated} parameters, its ranks make {counted}")
        return self

    @property
    def parameters(self) -> int:
        return sum(cls.parameters for cls in self.classes)

    @property
    def parameters_dense(self) -> int:
        return sum(shape.m * shape.n for shape in self.layers.values())

    @property
    def kept(self) -> float:
        """Fraction of the parameters in scope that remain."""
        return self.parameters / self.parameters_dense

    @property
    def predicted_damage(self) -> float:
        """`Σ_ℓ D_ℓ` in units of the loss."""
        return math.fsum(damage for cls in self.classes for damage in cls.damage.values())

    @property
    def basis_count(self) -> int:
        """Colors that own a basis; a dense layer owns none."""
        return sum(cls.kind != "dense" for cls in self.classes)

    @property
    def factored_layers(self) -> list[str]:
        """Names of the layers that do not stay as they are."""
        return [name for cls in self.classes if cls.kind != "dense" for name in cls.layers]

    def class_of(self, name: str) -> PlannedClass:
        return next(cls for cls in self.classes if name in cls.layers)

    def rescaled(self, factor: float) -> "Plan":
        """The same plan with every damage, objective and bound in a unit `factor` times as large: a common scale."""
        classes = tuple(
            cls.model_copy(update={"damage": {name: factor * value for name, value in cls.damage.items()}})
            for cls in self.classes
        )
        common, alone = factor**self.aggregate, self.objective_without_sharing
        return self.model_copy(
            update={
                "classes": classes,
                "price": common * self.price,
                "objective": common * self.objective,
                "objective_without_sharing": None if alone is None else common * alone,
                "lower_bound": common * self.lower_bound,
            }
        )

    def coloring(self) -> Coloring:
        """Colors in the order of `layers`."""
        color = {name: index for index, cls in enumerate(self.classes) for name in cls.layers}
        return Coloring(color[name] for name in self.layers)

    def check(self, model: torch.nn.Module) -> None:
        """Raise `ValueError` where the plan was made for another model."""
        modules = dict(model.named_modules())
        for name, shape in self.layers.items():
            if name not in modules:
                raise ValueError(
                    f"the plan was made for another model: this one has no layer {name!r}; plan this model anew, "
                    "or pass geocolor.unpack(model) if that is what was planned"
                )
            weight_of(model, Layer(name=name, **shape.model_dump()))
        layers = self.shareable_layers()
        place = {name: index for index, name in enumerate(modules)}
        registered = sorted(layers, key=lambda layer: place[layer.name])  # a transformers config sorts them by name
        if all(fingerprint(model, each).sha256 != self.fingerprint.sha256 for each in (layers, registered)):
            unknown = [layer.name for layer in layers_in_scope(model) if layer.name not in self.layers]
            agrees = f"it does not know layer {unknown[0]!r}" if unknown else "names and shapes agree"
            raise ValueError(
                f"the plan was made for other weights: {agrees}, and the hash of the weights is another "
                "(trained further, or another dtype?); plan this model anew"
            )

    def shareable_layers(self) -> tuple[Layer, ...]:
        return tuple(Layer(name=name, **shape.model_dump()) for name, shape in self.layers.items())


def shapes_of(layers: Iterable[Layer]) -> dict[str, LayerShape]:
    """What a plan says of its layers, by name."""
    return {layer.name: LayerShape(m=layer.m, n=layer.n, form=layer.form, geometry=layer.geometry) for layer in layers}


def class_parameters(cls: PlannedClass, layers: dict[str, LayerShape]) -> int:
    """Parameters of a class (DESIGN §4): `mn` dense, `nr + Σ m_ℓ r` in, `mr + Σ n_ℓ r` out, `mr + nr' + g·rr'` both."""
    shapes = [layers[name] for name in cls.layers]
    r, s = cls.rank or 0, cls.right_rank or 0
    if cls.kind == "dense":
        return shapes[0].m * shapes[0].n
    if cls.kind == "in":
        return r * (shapes[0].n + sum(shape.m for shape in shapes))
    if cls.kind == "out":
        return r * (shapes[0].m + sum(shape.n for shape in shapes))
    return shapes[0].m * r + shapes[0].n * s + len(shapes) * r * s


def _check_sides(cls: PlannedClass, layers: dict[str, LayerShape]) -> None:
    shapes = {name: Layer(name=name, **layers[name].model_dump()) for name in cls.layers}
    first = next(iter(shapes.values()))
    for layer in shapes.values():
        if cls.kind in ("in", "both") and layer.in_side != first.in_side:
            raise ValueError(
                f"layers {first.name!r} and {layer.name!r} cannot share an input basis: their inputs differ"
            )
        if cls.kind in ("out", "both") and layer.out_side != first.out_side:
            raise ValueError(f"layers {first.name!r} and {layer.name!r} cannot share an output basis: outputs differ")
    limit = {"in": first.n, "out": first.m, "both": first.m, "dense": None}[cls.kind]
    if limit is not None and cls.rank is not None and cls.rank >= limit:
        raise ValueError(f"class of {first.name!r}: rank {cls.rank} must be below the width {limit} of its basis")
    if cls.right_rank is not None and cls.right_rank >= first.n:
        raise ValueError(f"class of {first.name!r}: right rank {cls.right_rank} must be below the width {first.n}")


def fingerprint(model: torch.nn.Module, layers: Iterable[Layer]) -> Fingerprint:
    """SHA-256 over name, shape and float32 bytes of every layer in scope, and the dtype they are held in."""
    digest = hashlib.sha256()
    dtypes = set()
    for layer in layers:
        parameter = model.get_submodule(layer.name).weight
        assert isinstance(parameter, torch.Tensor)
        dtypes.add(str(parameter.dtype).removeprefix("torch."))
        digest.update(f"{layer.name} {layer.m}x{layer.n}\n".encode())
        digest.update(processes.whole(parameter).detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return Fingerprint(sha256=digest.hexdigest(), dtype=",".join(sorted(dtypes)))


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write `plan.json` with a checksum; the old file stays until the new one is whole."""
    document = plan.model_dump(mode="json")
    text = json.dumps({**document, "checksum": _checksum(document)}, indent=1)
    write_atomically(Path(path), lambda temporary: temporary.write_text(text + "\n"))


def read_plan(path: str | Path) -> Plan:
    """Read `plan.json`. Raises `ValueError` saying what is wrong: truncated, damaged, edited by hand, another version.

    One without a checksum, written by hand or by another program, is taken if its schema fits.
    """
    path = Path(path)
    try:
        document = read_json(path, "Write the plan again")
    except FileNotFoundError:
        raise FileNotFoundError(f"no plan at {path}: `geocolor plan` writes one") from None
    checked = isinstance(document, dict) and "checksum" in document
    stated = document.pop("checksum") if checked else None
    plan = parse_plan(document, str(path))
    if checked and stated != _checksum(document):
        raise ValueError(
            f"{path}: its checksum does not agree: damaged, or edited by hand? Write the plan again, or delete the "
            "entry 'checksum' if you meant to change it"
        )
    return plan


def _checksum(document: Any) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def parse_plan(document: Any, source: str) -> Plan:
    """A plan from decoded JSON; `source` names it in errors."""
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{source}: plan format {version!r:.80} is not one this geocolor reads ({FORMAT_VERSION}); "
            "write the plan again, or install the geocolor that wrote it"
        )
    return validated(Plan, document, source, "the plan", "edited by hand? Write the plan again")
