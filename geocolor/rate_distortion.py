"""What a class of layers can buy: every kind and rank as a point (size, damage), and the best one at a price.

The price of a class is the set function `f_λ(S) = min over kind, r of Σ_{ℓ∈S} φ(D_ℓ(r)) + λ·size_S(r)` (DESIGN §5),
`φ(D) = D^p`. The size is the parameters, or where FLOPs are a budget too `(1 − θ)·parameters + θ·operations`: two
multipliers `λ(1 − θ)` and `λθ`. Operations are multiplications with their additions, half the FLOPs, times the load of
the layer: how many positions it sees, relative to the others. Where all see the same, a dense layer takes as many as it
has parameters, and no class fewer. Only points on the lower convex hull can be the minimum at some `λ`, so the hull is
all that is kept: the eigenproblems of a class are solved once and serve every `λ`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from geocolor.bases import FactoredKind, Metric, Side, damage_alone, damage_in_frame, damage_in_frames, frames
from geocolor.layers import Layer
from geocolor.plans import Kind

#: A class of kind `both` has two ranks; of wide layers so many of each are priced.
MOST_RANKS = 256

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Option:
    """One way to hold a class: kind, rank(s), parameters, operations and the aggregate `Σ_ℓ φ(D_ℓ)`."""

    kind: Kind
    rank: int | None
    right_rank: int | None
    parameters: int
    damage: float
    operations: float


@dataclass(frozen=True)
class Options:
    """Points of a class, sizes rising and damage strictly falling; `rank = 0` marks dense, `weight` is `θ`."""

    parameters: Integers
    damage: Floats
    kind: NDArray[np.str_]
    rank: Integers
    right_rank: Integers
    operations: Floats
    weight: float = 0.0

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, index: int) -> Option:
        kind: Kind = str(self.kind[index])  # type: ignore[assignment]
        return Option(
            kind=kind,
            rank=None if kind == "dense" else int(self.rank[index]),
            right_rank=int(self.right_rank[index]) if kind == "both" else None,
            parameters=int(self.parameters[index]),
            damage=float(self.damage[index]),
            operations=float(self.operations[index]),
        )

    @cached_property
    def size(self) -> Floats:
        """What a price is paid for: `(1 − θ)·parameters + θ·operations`."""
        return (1 - self.weight) * self.parameters + self.weight * self.operations

    def at(self, price: float) -> int:
        """Index of the cheapest point at `λ = price`; of equals the smallest."""
        return int(np.argmin(self.damage + price * self.size))

    def take(self, index: Integers) -> "Options":
        return Options(
            self.parameters[index],
            self.damage[index],
            self.kind[index],
            self.rank[index],
            self.right_rank[index],
            self.operations[index],
            self.weight,
        )

    def hull(self) -> "Options":
        """The points that are cheapest at some price: the lower convex hull."""
        kept: list[int] = []
        x, y = self.size.tolist(), self.damage.tolist()
        for i in range(len(x)):
            while len(kept) > 1:
                a, b = kept[-2], kept[-1]
                if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                    break
                kept.pop()
            kept.append(i)
        return self.take(np.array(kept, dtype=np.int64))


def can_share(layers: Sequence[Layer], kind: FactoredKind) -> bool:
    """Whether all layers agree on the shared side(s) of a basis kind."""
    inputs = len({layer.in_side for layer in layers}) == 1
    outputs = len({layer.out_side for layer in layers}) == 1
    return {"in": inputs, "out": outputs, "both": inputs and outputs}[kind]


def compatible(layers: Sequence[Layer], kinds: Sequence[FactoredKind]) -> NDArray[np.bool_]:
    """L × L: whether two layers could share a basis of some kind."""
    allowed = np.eye(len(layers), dtype=bool)
    for i, one in enumerate(layers):
        for j, other in enumerate(layers[:i]):
            allowed[i, j] = allowed[j, i] = any(can_share((one, other), kind) for kind in kinds)
    return allowed


def options(
    layers: Sequence[Layer],
    members: Sequence[Metric],
    kinds: Sequence[FactoredKind],
    powers: Sequence[float],
    weights: Sequence[float] = (0.0,),
    loads: Sequence[float] | None = None,
    inputs: float | None = None,
) -> dict[tuple[float, float], Options]:
    """All Pareto-optimal ways to hold the class `layers` (a single one may also stay dense), for every `(p, θ)`.

    A layer alone does the same damage with an `in` as with an `out` basis, and `both` is never better. Ranks run from 1
    to below the width of the basis, as long as the class takes no more parameters than its layers do dense. Empty
    where the layers share no side. Bases are computed once for all. `loads` are those of the layers (1 by default),
    `inputs` the sum over the different tensors that they read (by default each its own): a basis is evaluated once for
    each.
    """
    loads = [1.0] * len(layers) if loads is None else loads
    inputs = sum(loads) if inputs is None else inputs
    if len(layers) > 1:
        points = _shared(layers, members, kinds, powers, loads, inputs)
    else:
        points = _alone(layers[0], members[0], kinds, loads[0])
        points = [(damage ** np.array(powers)[:, None], *rest) for damage, *rest in points]
    return {
        (power, weight): _pareto([(damage[index], *rest) for damage, *rest in points], weight)
        for index, power in enumerate(powers)
        for weight in weights
    }


def _pareto(points: Sequence["Points"], weight: float) -> Options:
    """The points that no other one beats in both size and damage."""
    whole = np.zeros(0, dtype=np.int64)
    if not points:
        return Options(whole, np.zeros(0), np.zeros(0, dtype="U5"), whole, whole, np.zeros(0), weight)
    damage, parameters, operations, rank, right_rank = (
        np.concatenate([np.asarray(p[column]) for p in points]) for column in (0, 1, 2, 4, 5)
    )
    kind = np.concatenate([np.full(len(p[0]), p[3], dtype="U5") for p in points])
    everything = Options(parameters, damage, kind, rank, right_rank, operations, weight)
    order = np.lexsort((damage, everything.size))
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], damage[order][:-1]]))
    return everything.take(order[damage[order] < best_before])


Points = tuple[Floats, Integers, Floats, Kind, Integers, Integers]
"""Damage (a row for every power where there are several), parameters, operations, kind, rank, right rank."""


def _alone(layer: Layer, member: Metric, kinds: Sequence[FactoredKind], load: float) -> list[Points]:
    one = np.ones(1, dtype=np.int64)
    whole = one * layer.parameters
    points: list[Points] = [(np.zeros(1), whole, whole.astype(np.float64) * load, "dense", one * 0, one * 0)]
    sides = [kind for kind in kinds if kind != "both"]
    if sides:
        per_rank = layer.m + layer.n
        most = min(min(layer.m, layer.n) - 1, layer.parameters // per_rank)
        damage = damage_alone(member).cpu().numpy()[1 : most + 1]
        rank = np.arange(1, len(damage) + 1, dtype=np.int64)
        parameters = rank * per_rank
        points.append((damage, parameters, parameters.astype(np.float64) * load, sides[0], rank, np.zeros_like(rank)))
    return points


def _shared(
    layers: Sequence[Layer],
    members: Sequence[Metric],
    kinds: Sequence[FactoredKind],
    powers: Sequence[float],
    loads: Sequence[float],
    inputs: float,
) -> list[Points]:
    """Points of two and more layers; the frames of `in` and `out` serve `both` as well."""
    first, dense, load = layers[0], sum(layer.parameters for layer in layers), sum(loads)
    points: list[Points] = []
    found: dict[Side, list[torch.Tensor]] = {}
    for side in _sides(layers, kinds):
        width = first.n if side == "in" else first.m
        own = sum(layer.m if side == "in" else layer.n for layer in layers)
        found[side] = frames(members, side, min(width - 1, dense // (width + own)))
        if side in kinds:
            curves = [damage_in_frame(member, frame, side) for member, frame in zip(members, found[side], strict=True)]
            total = _totals(curves, powers)[:, 1:]
            rank = np.arange(1, total.shape[1] + 1, dtype=np.int64)
            evaluated = inputs if side == "in" else load
            unshared = sum(
                each * (layer.m if side == "in" else layer.n) for each, layer in zip(loads, layers, strict=True)
            )
            operations = rank.astype(np.float64) * (evaluated * width + unshared)
            points.append((total, rank * (width + own), operations, side, rank, np.zeros_like(rank)))
    if "both" in kinds and len(found) == 2:
        pairs = zip(members, found["out"], found["in"], strict=True)
        left, right = (_ranks(found[side][0].shape[1]) for side in ("out", "in"))
        damages = (damage_in_frames(member, *both)[left][:, right] for member, *both in pairs)
        total = _totals(damages, powers)
        r, s = np.meshgrid(left, right, indexing="ij")
        parameters = first.m * r + first.n * s + len(members) * r * s
        worth = parameters <= dense
        operations = load * (first.m * r + r * s) + inputs * first.n * s
        points.append((total[:, worth], parameters[worth], operations[worth], "both", r[worth], s[worth]))
    return points


def _ranks(most: int) -> Integers:
    """Ranks of one side of `both`: all up to `most`, or `MOST_RANKS` of them at equal distances."""
    return np.arange(1, most + 1, max(1, -(-most // MOST_RANKS)), dtype=np.int64)


def _totals(damages: Iterable[torch.Tensor], powers: Sequence[float]) -> Floats:
    """`Σ_ℓ D_ℓ^p` for every power, along a new first axis; one layer's damage is in memory at a time."""
    totals: list[torch.Tensor] = []
    for damage in damages:
        parts = [damage if power == 1 else damage.pow(power) for power in powers]
        totals = [total + part for total, part in zip(totals, parts, strict=True)] if totals else parts
    return np.stack([total.cpu().numpy() for total in totals])


def _sides(layers: Sequence[Layer], kinds: Sequence[FactoredKind]) -> list[Side]:
    """Sides on which a basis is asked for and can be shared."""
    both = "both" in kinds and can_share(layers, "both")
    sides: tuple[Side, ...] = ("in", "out")
    return [side for side in sides if both or (side in kinds and can_share(layers, side))]


def damage_by_layer(members: Sequence[Metric], option: Option) -> list[float]:
    """Predicted `D_ℓ` of every layer of a class held as `option`."""
    if option.kind == "dense":
        return [0.0] * len(members)
    assert option.rank is not None
    if option.kind == "both":
        assert option.right_rank is not None
        pairs = zip(members, frames(members, "out", option.rank), frames(members, "in", option.right_rank), strict=True)
        return [float(damage_in_frames(member, left, right)[-1, -1]) for member, left, right in pairs]
    if len(members) == 1:
        curve = damage_alone(members[0])
        return [float(curve[min(option.rank, len(curve) - 1)])]
    found = zip(members, frames(members, option.kind, option.rank), strict=True)
    return [float(damage_in_frame(member, frame, option.kind)[-1]) for member, frame in found]
