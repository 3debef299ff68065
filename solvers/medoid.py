"""The medoid problem: choose at most K candidate bases, and every item takes its cheapest (p-median)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.budget import Ints, checked_limit, choose_owners
from solvers.coloring import Coloring
from solvers.problem import checked_coloring, checked_matrix, common_grain, finite_scale, inverse


class MedoidCosts(ABC):
    """What a medoid problem is beside the way in which it holds its costs."""

    K: int | Mapping[Any, int]
    penalty: NDArray[np.float64] | None
    limits: Ints

    @property
    @abstractmethod
    def size(self) -> int:
        """L, the number of items."""

    @abstractmethod
    def listed_costs(self) -> NDArray[np.float64]:
        """The costs as they are held, in any shape."""

    @abstractmethod
    def cost_of(self, coloring: Coloring) -> tuple[float, tuple[int, ...]]:
        """The price of a coloring, inf where no choice of candidates allows it, and each class's representative."""

    @property
    def limit(self) -> int:
        return min(self.size, int(np.minimum(self.limits, self.size).sum()))

    @property
    def scale(self) -> float:
        return finite_scale(self.listed_costs(), self.penalties())

    @cached_property
    def grain(self) -> float:
        return common_grain(self.listed_costs(), self.penalties())

    def penalties(self) -> NDArray[np.float64]:
        """``[L]``: the penalty of each item, inf where there is none."""
        return np.full(self.size, np.inf) if self.penalty is None else self.penalty

    def cost(self, coloring: Coloring) -> float:
        return self.cost_of(coloring)[0]

    def representatives(self, coloring: Coloring) -> tuple[int, ...]:
        return self.cost_of(coloring)[1]

    def owners(
        self, prices: NDArray[np.float64], best: Ints, leave_out: NDArray[np.float64]
    ) -> tuple[float, tuple[int, ...]]:
        """``cost_of`` from ``[C, G]`` the price of each class with each label and the candidate that gives it."""
        total, choice = choose_owners(prices, self.limits, leave_out)
        if not best.shape[1]:  # no candidate has a label, because there is none
            return total, (-1,) * len(best)
        chosen = np.where(choice >= 0, best[np.arange(len(best)), np.maximum(choice, 0)], -1)
        return total, tuple(chosen.tolist())


@dataclass(frozen=True, eq=False, init=False)
class MedoidProblem(MedoidCosts):
    """``L`` items, ``B`` candidate bases, ``cost_matrix[ℓ, b]`` the cost of item ℓ in candidate b.

    A class of a coloring takes the candidate that is cheapest for its members together. At most ``K`` classes own a
    candidate; with ``group`` (a label for each candidate) ``K`` maps each label to its own limit, which is how "K bases
    per shape" is said. ``penalty[ℓ]``, where given, is what item ℓ costs when it is left out of every basis: it is then
    a class of its own with representative −1 and counts for no K (facility location with penalties; inf: not allowed).

    Costs may be asymmetric, negative, or inf for a forbidden pair.

    >>> problem = MedoidProblem([[0, 5], [1, 0], [9, 1]], K=1)
    >>> problem.cost(Coloring([0, 0, 0])), problem.representatives(Coloring([0, 0, 0]))
    (6.0, (1,))

    Raises:
        ValueError: on NaN or −inf (naming the index), on a K that is no whole number ≥ 0, on labels without a limit.
    """

    cost_matrix: NDArray[np.float64]
    K: int | Mapping[Any, int]
    penalty: NDArray[np.float64] | None = None
    group: tuple[Hashable, ...] | None = None
    label: Ints = field(repr=False, default_factory=lambda: np.zeros(0, dtype=np.int64))
    limits: Ints = field(repr=False, default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __init__(
        self,
        cost: ArrayLike,
        K: int | Mapping[Any, int],
        *,
        penalty: ArrayLike | None = None,
        group: Sequence[Hashable] | None = None,
    ) -> None:
        matrix = checked_matrix(cost, "cost", ndim=2)
        if matrix.ndim < 2:
            matrix = matrix.reshape(len(matrix), 0)
        size, candidates = matrix.shape
        leave_out = checked_penalty(penalty, size)
        label, limits = candidate_labels(K, group, candidates)
        object.__setattr__(self, "cost_matrix", matrix)
        object.__setattr__(self, "K", dict(K) if isinstance(K, Mapping) else int(limits[0]))
        object.__setattr__(self, "penalty", leave_out)
        object.__setattr__(self, "group", None if group is None else tuple(group))
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "limits", limits)

    @property
    def size(self) -> int:
        return int(self.cost_matrix.shape[0])

    @property
    def candidates(self) -> int:
        """B, the number of candidate bases."""
        return int(self.cost_matrix.shape[1])

    def listed_costs(self) -> NDArray[np.float64]:
        return self.cost_matrix

    def entry(self, item: int, candidate: int) -> float:
        """What an item pays for a candidate."""
        return float(self.cost_matrix[item, candidate])

    def class_cost(self, items: Sequence[int]) -> float:
        return float(self.cost_matrix[list(items)].sum(axis=0).min(initial=np.inf))

    def cost_of(self, coloring: Coloring) -> tuple[float, tuple[int, ...]]:
        checked_coloring(coloring, self.size)
        if self.size == 0:
            return 0.0, ()
        colors = np.fromiter(coloring, dtype=np.int64, count=self.size)
        number = coloring.number_of_colors
        order = np.argsort(colors, kind="stable")
        starts = np.searchsorted(colors[order], np.arange(number))
        sums = np.add.reduceat(self.cost_matrix[order], starts, axis=0)
        prices = np.full((number, len(self.limits)), np.inf)
        best = np.full((number, len(self.limits)), -1, dtype=np.int64)
        for code in range(len(self.limits)):
            members = np.flatnonzero(self.label == code)
            if len(members):
                best[:, code] = members[sums[:, members].argmin(axis=1)]
                prices[:, code] = sums[np.arange(number), best[:, code]]
        leave_out = np.where(np.bincount(colors) == 1, self.penalties()[order[starts]], np.inf)
        return self.owners(prices, best, leave_out)

    def assign(self, medoids: Sequence[int]) -> Coloring:
        """The coloring in which each item takes its cheapest of these candidates, or stays out if that costs less."""
        if not len(medoids):
            return Coloring(range(self.size))
        open_costs = self.cost_matrix[:, list(medoids)]
        nearest = open_costs.argmin(axis=1)
        out = self.penalties() < open_costs.min(axis=1)
        return Coloring(np.where(out, -1 - np.arange(self.size), nearest).tolist())

    def compatibility(self) -> NDArray[np.bool_]:
        finite = np.isfinite(self.cost_matrix).astype(np.float32)
        return np.asarray((finite @ finite.T) > 0) | np.eye(self.size, dtype=bool)

    def permute(self, sigma: Sequence[int]) -> MedoidProblem:
        order = inverse(sigma)
        moved = None if self.penalty is None else self.penalty[order]
        return MedoidProblem(self.cost_matrix[order], self.K, penalty=moved, group=self.group)

    def with_limit(self, K: int | Mapping[Any, int]) -> MedoidProblem:
        """The same costs under another K."""
        return MedoidProblem(self.cost_matrix, K, penalty=self.penalty, group=self.group)


def checked_penalty(penalty: ArrayLike | None, size: int) -> NDArray[np.float64] | None:
    """The penalties of so many items, None where there are none.

    Raises:
        ValueError: on NaN or −inf, or on another number of entries.
    """
    if penalty is None:
        return None
    values = checked_matrix(penalty, "penalty", ndim=1)
    if values.shape != (size,):
        raise ValueError(f"penalty has {values.size} entries for {size} items; give one for each item")
    return values


def candidate_labels(
    K: int | Mapping[Any, int], group: Sequence[Hashable] | None, candidates: int
) -> tuple[Ints, Ints]:
    """``[B]`` the code of each candidate's label, and ``[G]`` the limit of each code.

    Raises:
        ValueError: on limits and labels that do not fit together.
    """
    if group is None:
        if isinstance(K, Mapping):
            raise ValueError("K is a mapping of labels to limits, but no `group` says which candidate has which label")
        return np.zeros(candidates, dtype=np.int64), np.array([checked_limit(K, "MedoidProblem")], dtype=np.int64)
    if not isinstance(K, Mapping):
        raise ValueError("`group` gives the candidates labels, so K must map each label to its limit")
    if len(group) != candidates:
        raise ValueError(f"group has {len(group)} labels for {candidates} candidates; give one for each candidate")
    missing = [name for name in dict.fromkeys(group) if name not in K]
    if missing:
        raise ValueError(f"label {missing[0]!r} of candidate {list(group).index(missing[0])} has no limit in K")
    codes = {name: code for code, name in enumerate(K)}
    limits = [checked_limit(limit, f"MedoidProblem, label {name!r}") for name, limit in K.items()]
    return np.array([codes[name] for name in group], dtype=np.int64), np.array(limits, dtype=np.int64)
