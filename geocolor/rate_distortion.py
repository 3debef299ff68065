"""What a class of layers can buy: every kind and rank as a point (parameters, damage), and the best one at a price.

The price of a class is the set function `f_λ(S) = min over kind, r of Σ_{ℓ∈S} φ(D_ℓ(r)) + λ·params_S(r)` (DESIGN §5),
`φ(D) = D^p`. Only points on the lower convex hull can be the minimum at some `λ`, so the hull is all that is kept: the
eigenproblems of a class are solved once and serve every `λ`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from geocolor.bases import FactoredKind, Metric, class_basis, one_sided_damage, two_sided_damage
from geocolor.layers import Layer
from geocolor.plans import Kind

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Option:
    """One way to hold a class: kind, rank(s), parameters and the aggregate `Σ_ℓ φ(D_ℓ)`."""

    kind: Kind
    rank: int | None
    right_rank: int | None
    parameters: int
    damage: float


@dataclass(frozen=True)
class Options:
    """Points of a class, parameters rising and damage strictly falling; `rank = 0` marks dense."""

    parameters: Integers
    damage: Floats
    kind: NDArray[np.str_]
    rank: Integers
    right_rank: Integers

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
        )

    def at(self, price: float) -> int:
        """Index of the cheapest point at `λ = price`; of equals the one with the fewest parameters."""
        return int(np.argmin(self.damage + price * self.parameters))

    def take(self, index: Integers) -> "Options":
        return Options(
            self.parameters[index], self.damage[index], self.kind[index], self.rank[index], self.right_rank[index]
        )

    def hull(self) -> "Options":
        """The points that are cheapest at some price: the lower convex hull."""
        kept: list[int] = []
        x, y = self.parameters, self.damage
        for i in range(len(self)):
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


def options(layers: Sequence[Layer], members: Sequence[Metric], kinds: Sequence[FactoredKind], power: float) -> Options:
    """All Pareto-optimal ways to hold the class `layers` (a single one may also stay dense).

    A `both` basis of one layer is never better than `in` with the same span, so it is tried for two and more.
    Ranks run from 1 to below the width of the basis. Empty where the layers share no side.
    """
    points: list[tuple[Floats, Integers, str, Integers, Integers]] = []
    first = layers[0]
    if len(layers) == 1:
        one = np.ones(1, dtype=np.int64)
        points.append((np.zeros(1), one * first.parameters, "dense", one * 0, one * 0))
    if "in" in kinds and can_share(layers, "in"):
        basis = class_basis(members, "in")[:, : first.n - 1]
        points.append(_one_sided(members, basis, "in", first.n + sum(layer.m for layer in layers), power))
    if "out" in kinds and can_share(layers, "out"):
        basis = class_basis(members, "out")[:, : first.m - 1]
        points.append(_one_sided(members, basis, "out", first.m + sum(layer.n for layer in layers), power))
    if "both" in kinds and len(layers) > 1 and can_share(layers, "both"):
        points.append(_two_sided(members, first, power))
    if not points:
        return Options(
            *(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype="U5")), *[np.zeros(0, np.int64)] * 2
        )
    damage = np.concatenate([p[0] for p in points])
    parameters = np.concatenate([p[1] for p in points])
    kind = np.concatenate([np.full(len(p[0]), p[2], dtype="U5") for p in points])
    rank = np.concatenate([p[3] for p in points])
    right_rank = np.concatenate([p[4] for p in points])
    order = np.lexsort((damage, parameters))
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], damage[order][:-1]]))
    pareto = order[damage[order] < best_before]
    return Options(parameters, damage, kind, rank, right_rank).take(pareto)


def _one_sided(
    members: Sequence[Metric], basis: torch.Tensor, side: FactoredKind, per_rank: int, power: float
) -> tuple[Floats, Integers, str, Integers, Integers]:
    assert side != "both"
    total = torch.stack([one_sided_damage(member, basis, side) for member in members]).pow(power).sum(0)[1:]
    rank = np.arange(1, len(total) + 1, dtype=np.int64)
    return total.numpy(), rank * per_rank, side, rank, np.zeros_like(rank)


def _two_sided(
    members: Sequence[Metric], first: Layer, power: float
) -> tuple[Floats, Integers, str, Integers, Integers]:
    left = class_basis(members, "out")[:, : first.m - 1]
    right = class_basis(members, "in")[:, : first.n - 1]
    total = torch.zeros(left.shape[1] + 1, right.shape[1] + 1, dtype=left.dtype)
    for member in members:
        total += two_sided_damage(member, left, right).pow(power)
    r, s = np.meshgrid(np.arange(1, left.shape[1] + 1), np.arange(1, right.shape[1] + 1), indexing="ij")
    parameters = first.m * r + first.n * s + len(members) * r * s
    return total[1:, 1:].flatten().numpy(), parameters.ravel(), "both", r.ravel(), s.ravel()


def damage_by_layer(members: Sequence[Metric], option: Option) -> list[float]:
    """Predicted `D_ℓ` of every layer of a class held as `option`."""
    if option.kind == "dense":
        return [0.0] * len(members)
    assert option.rank is not None
    if option.kind == "both":
        assert option.right_rank is not None
        left = class_basis(members, "out")[:, : option.rank]
        right = class_basis(members, "in")[:, : option.right_rank]
        return [float(two_sided_damage(member, left, right)[-1, -1]) for member in members]
    basis = class_basis(members, option.kind)[:, : option.rank]
    return [float(one_sided_damage(member, basis, option.kind)[-1]) for member in members]
