"""The group problem: the price of a class is a set function, known only by asking for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.budget import checked_limit, choose_owners
from solvers.coloring import Coloring
from solvers.problem import checked_coloring, checked_matrix, finite_scale, inverse

GroupCost = Callable[[tuple[int, ...]], float]


@dataclass(frozen=True, eq=False, init=False)
class GroupProblem:
    """Partition ``size`` items into classes; a class costs ``group_cost(items)``, ``items`` an ascending tuple.

    An oracle call may be slow, so each class is asked for once and remembered: ``oracle_calls`` counts the calls made,
    ``priced`` shows the answers. ``compatible[i, j] = False`` says that no class with both i and j is allowed; such
    classes are priced inf without a call. ``K`` bounds the number of classes that own a basis. ``penalty[ℓ]`` is the
    cost of item ℓ left out of every basis (a class of its own that counts for no K). ``item_lower_bound[ℓ]``, where
    known, is a share of every class's cost: ``group_cost(S) ≥ Σ_{ℓ∈S} item_lower_bound[ℓ]``. ``marginal_lower_bound``,
    where known, is what each item adds at least to any class that it joins (0 where larger classes never cost less):
    ``group_cost(S ∪ {ℓ}) ≥ group_cost(S) + marginal_lower_bound[ℓ]``; with it exact solvers need not price every class.

    >>> problem = GroupProblem(3, lambda items: 1.0 + 0.25 * len(items) ** 2)
    >>> problem.cost(Coloring([0, 0, 1])), problem.oracle_calls
    (3.25, 2)

    Raises:
        ValueError: on NaN or −inf in the arrays or from the oracle (naming the index or class), wrong shapes, a bad K.
    """

    size: int
    group_cost: GroupCost
    compatible: NDArray[np.bool_]
    K: int | None = None
    penalty: NDArray[np.float64] | None = None
    item_lower_bound: NDArray[np.float64] | None = None
    marginal_lower_bound: NDArray[np.float64] | None = None
    _prices: dict[tuple[int, ...], float] = field(repr=False, default_factory=dict)
    _allowed: tuple[int, ...] = field(repr=False, default=())

    def __init__(
        self,
        size: int,
        group_cost: GroupCost,
        *,
        compatible: ArrayLike | None = None,
        K: int | None = None,
        penalty: ArrayLike | None = None,
        item_lower_bound: ArrayLike | None = None,
        marginal_lower_bound: ArrayLike | None = None,
    ) -> None:
        if size < 0:
            raise ValueError(f"size must be 0 or more, got {size}")
        pairs = np.ones((size, size), bool) if compatible is None else np.array(compatible, dtype=bool)
        pairs = pairs.reshape(size, size) if pairs.size == 0 == size else pairs
        if pairs.shape != (size, size):
            raise ValueError(f"compatible must be a square matrix of {size} rows, got shape {pairs.shape}")
        np.fill_diagonal(pairs, True)
        uneven = np.argwhere(pairs != pairs.T)
        if len(uneven):
            i, j = (int(x) for x in uneven[0])
            raise ValueError(f"compatible must be symmetric, but [{i}, {j}] and [{j}, {i}] differ")
        pairs.setflags(write=False)
        object.__setattr__(self, "size", int(size))
        object.__setattr__(self, "group_cost", group_cost)
        object.__setattr__(self, "compatible", pairs)
        object.__setattr__(self, "K", None if K is None else checked_limit(K, "GroupProblem"))
        for name, values in (
            ("penalty", penalty),
            ("item_lower_bound", item_lower_bound),
            ("marginal_lower_bound", marginal_lower_bound),
        ):
            array = None if values is None else checked_matrix(values, name, ndim=1)
            if array is not None and array.shape != (size,):
                raise ValueError(f"{name} has {array.size} entries for {size} items; give one for each item")
            object.__setattr__(self, name, array)
        object.__setattr__(self, "_prices", {})
        masks = tuple(int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little") for row in pairs)
        object.__setattr__(self, "_allowed", masks)

    @property
    def limit(self) -> int:
        return self.size if self.K is None else min(self.K, self.size)

    @property
    def scale(self) -> float:
        return finite_scale(np.fromiter(self._prices.values(), dtype=np.float64), self.penalties())

    @property
    def grain(self) -> float:
        return 0.0

    @property
    def oracle_calls(self) -> int:
        """How often ``group_cost`` was called: once for each class ever asked for."""
        return len(self._prices)

    @property
    def priced(self) -> Mapping[tuple[int, ...], float]:
        """Every class priced so far; read-only."""
        return MappingProxyType(self._prices)

    def penalties(self) -> NDArray[np.float64]:
        """``[L]``: the penalty of each item, inf where there is none."""
        return np.full(self.size, np.inf) if self.penalty is None else self.penalty

    def allows(self, items: Sequence[int]) -> bool:
        """Whether all pairs of the items are compatible."""
        mask = sum(1 << item for item in items)
        return all(mask & self._allowed[item] == mask for item in items)

    def class_cost(self, items: Sequence[int]) -> float:
        key = tuple(sorted(items))
        known = self._prices.get(key)
        if known is not None:
            return known
        if not self.allows(key):
            return math.inf
        price = float(self.group_cost(key))
        if math.isnan(price) or price == -math.inf:
            raise ValueError(f"group_cost({key}) is {price}; a class must cost a number, or inf where it is forbidden")
        self._prices[key] = price
        return price

    def cost(self, coloring: Coloring) -> float:
        checked_coloring(coloring, self.size)
        return self.cost_of_classes(coloring.classes())

    def cost_of_classes(self, classes: Sequence[Sequence[int]]) -> float:
        """The price of the partition into these classes; inf when more than K of them need a basis."""
        penalties = self.penalties()
        if len(classes) <= self.limit:
            return math.fsum(self._alone(m[0], penalties) if len(m) == 1 else self.class_cost(m) for m in classes)
        prices = np.array([[self.class_cost(members)] for members in classes]).reshape(len(classes), 1)
        leave_out = np.array([penalties[m[0]] if len(m) == 1 else math.inf for m in classes], dtype=np.float64)
        return choose_owners(prices, np.array([self.limit]), leave_out)[0]

    def _alone(self, item: int, penalties: NDArray[np.float64]) -> float:
        return min(self.class_cost((item,)), float(penalties[item]))

    def representatives(self, coloring: Coloring) -> tuple[int, ...]:
        checked_coloring(coloring, self.size)
        return ()

    def compatibility(self) -> NDArray[np.bool_]:
        return self.compatible

    def permute(self, sigma: Sequence[int]) -> GroupProblem:
        order = inverse(sigma)
        return GroupProblem(
            self.size,
            lambda items: self.class_cost([int(order[item]) for item in items]),
            compatible=self.compatible[np.ix_(order, order)],
            K=self.K,
            penalty=None if self.penalty is None else self.penalty[order],
            item_lower_bound=None if self.item_lower_bound is None else self.item_lower_bound[order],
            marginal_lower_bound=None if self.marginal_lower_bound is None else self.marginal_lower_bound[order],
        )

    def with_limit(self, K: int | None) -> GroupProblem:
        """The same prices, those already known included, under another K."""
        return GroupProblem(
            self.size,
            self.class_cost,
            compatible=self.compatible,
            K=K,
            penalty=self.penalty,
            item_lower_bound=self.item_lower_bound,
            marginal_lower_bound=self.marginal_lower_bound,
        )
