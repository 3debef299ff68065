"""The pairwise problem: every two items of one color cost their weight, every color an opening price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.budget import checked_limit
from solvers.coloring import Coloring
from solvers.problem import checked_coloring, checked_matrix, common_grain, finite_scale, inverse


@dataclass(frozen=True, eq=False, init=False)
class PairwiseProblem:
    """``Σ weight[i, j]`` over the pairs i < j of one color, plus ``opening`` for each color, at most ``K`` colors.

    With weights of both signs this is clique partitioning (correlation clustering); with zero weights and conflicts it
    is proper graph coloring, and ``opening = 1`` counts the colors. ``conflict[i, j]`` forbids a common color, and so
    does ``weight[i, j] = inf``. The diagonal of both matrices is ignored.

    >>> triangle = PairwiseProblem(np.zeros((3, 3)), conflict=np.ones((3, 3)), opening=1)
    >>> triangle.cost(Coloring([0, 1, 2])), triangle.cost(Coloring([0, 0, 1]))
    (3.0, inf)

    Raises:
        ValueError: on NaN or −inf, on a matrix that is not square or not symmetric (naming the index), on a bad K.
    """

    weight: NDArray[np.float64]
    conflict: NDArray[np.bool_]
    opening: float = 0.0
    K: int | None = None

    def __init__(
        self, weight: ArrayLike, conflict: ArrayLike | None = None, opening: float = 0.0, K: int | None = None
    ) -> None:
        matrix = np.array(weight, dtype=np.float64)
        size = len(matrix)
        if size == 0:
            matrix, conflict = np.zeros((0, 0)), None
        if matrix.ndim == 2:
            np.fill_diagonal(matrix, 0.0)
        matrix = checked_matrix(matrix, "weight", ndim=2).copy()
        forbidden = np.zeros((size, size), bool) if conflict is None else np.array(conflict, dtype=bool)
        for name, array in (("weight", matrix), ("conflict", forbidden)):
            if array.shape != (size, size):
                raise ValueError(f"{name} must be square, one row and column for each item, got shape {array.shape}")
            uneven = np.argwhere(array != array.T)
            if len(uneven):
                i, j = (int(x) for x in uneven[0])
                raise ValueError(
                    f"{name} must be symmetric: {name}[{i}, {j}] is {array[i, j]}, {name}[{j}, {i}] is {array[j, i]}; "
                    "pass (w + w.T) / 2 when both orders of a pair should count"
                )
        if not np.isfinite(opening):
            raise ValueError(f"opening must be a finite number, got {opening}")
        forbidden = forbidden | np.isinf(matrix)
        np.fill_diagonal(forbidden, False)
        matrix[forbidden] = 0.0
        matrix.setflags(write=False)
        forbidden.setflags(write=False)
        object.__setattr__(self, "weight", matrix)
        object.__setattr__(self, "conflict", forbidden)
        object.__setattr__(self, "opening", float(opening))
        object.__setattr__(self, "K", None if K is None else checked_limit(K, "PairwiseProblem"))

    @property
    def size(self) -> int:
        return len(self.weight)

    @property
    def limit(self) -> int:
        return self.size if self.K is None else min(self.K, self.size)

    @property
    def scale(self) -> float:
        return max(finite_scale(self.weight), abs(self.opening))

    @cached_property
    def grain(self) -> float:
        return common_grain(self.weight, np.array([self.opening]))

    @property
    def weightless(self) -> bool:
        """Whether every allowed pair is free, so that only conflicts and the number of colors matter."""
        return not self.weight.any()

    def class_cost(self, items: Sequence[int]) -> float:
        members = np.ix_(list(items), list(items))
        if self.conflict[members].any():
            return np.inf
        return float(self.weight[members].sum() / 2 + self.opening)

    def cost(self, coloring: Coloring) -> float:
        checked_coloring(coloring, self.size)
        if coloring.number_of_colors > self.limit:
            return np.inf
        colors = np.fromiter(coloring, dtype=np.int64, count=self.size)
        same = colors[:, None] == colors[None, :]
        if (same & self.conflict).any():
            return np.inf
        return float(self.weight.sum(where=same) / 2 + self.opening * coloring.number_of_colors)

    def representatives(self, coloring: Coloring) -> tuple[int, ...]:
        checked_coloring(coloring, self.size)
        return ()

    def compatibility(self) -> NDArray[np.bool_]:
        return ~self.conflict

    def permute(self, sigma: Sequence[int]) -> PairwiseProblem:
        moved = np.ix_(inverse(sigma), inverse(sigma))
        return PairwiseProblem(self.weight[moved], self.conflict[moved], self.opening, self.K)

    def with_limit(self, K: int | None) -> PairwiseProblem:
        """The same weights under another K."""
        return PairwiseProblem(self.weight, self.conflict, self.opening, K)
