"""The medoid problem with few allowed pairs: each item lists the candidates it may take, such as its nearest ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.budget import Ints
from solvers.coloring import Coloring
from solvers.medoid import MedoidCosts, MedoidProblem, candidate_labels, checked_penalty
from solvers.problem import checked_coloring, checked_matrix, inverse

Floats = NDArray[np.float64]
LARGEST_DENSE = 20_000
"""Matrices of all pairs of items are not made beyond so many items."""


@dataclass(frozen=True, eq=False, init=False)
class SparseMedoidProblem(MedoidCosts):
    """``L`` items, ``B`` candidates; item ℓ may take ``candidate[starts[ℓ]:starts[ℓ + 1]]`` at those ``costs`` alone.

    All else is as in ``MedoidProblem``, which ``dense()`` makes of it: a pair that is not listed is forbidden. Memory
    is that of the lists, so 100,000 items with 50 candidates each are no trouble. Where K candidates cannot serve every
    item, give penalties.

    >>> problem = SparseMedoidProblem([0, 2, 3, 5], [0, 1, 1, 0, 2], [0, 4, 0, 7, 0], candidates=3, K=2)
    >>> problem.cost(Coloring([0, 0, 1])), problem.representatives(Coloring([0, 0, 1]))
    (4.0, (1, 2))

    Attributes:
        starts, candidate, costs: ``[L + 1]``, ``[pairs]``, ``[pairs]``; each item's candidates from cheap to dear.
        candidates: B.
        K, penalty, group, label, limits: as in ``MedoidProblem``.

    Raises:
        ValueError: on lists that do not fit together, candidates out of range or listed twice for an item, and on what
            ``MedoidProblem`` refuses.
    """

    starts: NDArray[np.intp]
    candidate: NDArray[np.intp]
    costs: Floats
    candidates: int
    K: int | Mapping[Any, int]
    penalty: Floats | None = None
    group: tuple[Hashable, ...] | None = None
    label: Ints = field(repr=False, default_factory=lambda: np.zeros(0, dtype=np.int64))
    limits: Ints = field(repr=False, default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __init__(
        self,
        starts: ArrayLike,
        candidate: ArrayLike,
        costs: ArrayLike,
        *,
        candidates: int,
        K: int | Mapping[Any, int],
        penalty: ArrayLike | None = None,
        group: Sequence[Hashable] | None = None,
    ) -> None:
        begin = np.array(starts, dtype=np.intp).reshape(-1)
        taken = np.array(candidate, dtype=np.intp).reshape(-1)
        values = checked_matrix(costs, "costs", ndim=1)
        if not len(begin) or begin[0] != 0 or (np.diff(begin) < 0).any() or begin[-1] != len(taken):
            raise ValueError(f"starts must rise from 0 to the number of pairs, {len(taken)}, one entry more than items")
        if len(taken) != len(values):
            raise ValueError(f"there are {len(taken)} pairs, but {len(values)} costs")
        if len(taken) and not 0 <= taken.min() <= taken.max() < candidates:
            raise ValueError(
                f"the candidates are 0 to {candidates - 1}, but the lists name {taken.min()} and {taken.max()}"
            )
        size = len(begin) - 1
        leave_out = checked_penalty(penalty, size)
        item = np.repeat(np.arange(size), np.diff(begin))
        pairs = np.sort(item * candidates + taken)
        if (pairs[1:] == pairs[:-1]).any():
            twice, named = divmod(int(pairs[1:][pairs[1:] == pairs[:-1]][0]), candidates)
            raise ValueError(f"item {twice} lists candidate {named} twice")
        order = np.lexsort((taken, values, item))
        label, limits = candidate_labels(K, group, candidates)
        for name, value in (
            ("starts", begin),
            ("candidate", taken[order]),
            ("costs", values[order]),
            ("candidates", int(candidates)),
            ("K", dict(K) if isinstance(K, Mapping) else int(limits[0])),
            ("penalty", leave_out),
            ("group", None if group is None else tuple(group)),
            ("label", label),
            ("limits", limits),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def nearest(cls, problem: MedoidProblem, number: int, *, penalty: ArrayLike | None = None) -> SparseMedoidProblem:
        """The dense problem with each item's ``number`` cheapest candidates alone."""
        costs = problem.cost_matrix
        order = np.argsort(costs, axis=1, kind="stable")[:, :number]
        values = np.take_along_axis(costs, order, axis=1)
        allowed = np.isfinite(values)
        starts = np.append(0, np.cumsum(allowed.sum(axis=1)))
        leave_out = problem.penalty if penalty is None else penalty
        return cls(
            starts,
            order[allowed],
            values[allowed],
            candidates=problem.candidates,
            K=problem.K,
            penalty=leave_out,
            group=problem.group,
        )

    def dense(self) -> MedoidProblem:
        """The same problem with every pair, inf where it is not listed."""
        matrix = np.full((self.size, self.candidates), np.inf)
        matrix[self.item, self.candidate] = self.costs
        return MedoidProblem(matrix, self.K, penalty=self.penalty, group=self.group)

    @cached_property
    def item(self) -> NDArray[np.intp]:
        """``[pairs]``: the item of each pair."""
        return np.repeat(np.arange(self.size), np.diff(self.starts))

    @property
    def size(self) -> int:
        return len(self.starts) - 1

    def listed_costs(self) -> Floats:
        return self.costs

    def entry(self, item: int, candidate: int) -> float:
        """What an item pays for a candidate, inf where it does not list it."""
        listed = slice(self.starts[item], self.starts[item + 1])
        return float(self.costs[listed][self.candidate[listed] == candidate].min(initial=np.inf))

    def class_cost(self, items: Sequence[int]) -> float:
        colors = np.full(self.size, -1)
        colors[list(items)] = 0
        prices, _ = self._prices(colors, 1)
        return float(prices.min(initial=np.inf))

    def cost_of(self, coloring: Coloring) -> tuple[float, tuple[int, ...]]:
        checked_coloring(coloring, self.size)
        if self.size == 0:
            return 0.0, ()
        colors = np.fromiter(coloring, dtype=np.int64, count=self.size)
        number = coloring.number_of_colors
        prices, best = self._prices(colors, number)
        sizes = np.bincount(colors, minlength=number)
        some = np.zeros(number, dtype=np.int64)
        some[colors] = np.arange(self.size)
        leave_out = np.where(sizes == 1, self.penalties()[some], np.inf)
        return self.owners(prices, best, leave_out)

    def _prices(self, colors: Ints, number: int) -> tuple[Floats, Ints]:
        """``[C, G]``: what each class costs with its best candidate of each label, and which that is."""
        prices = np.full((number, len(self.limits)), np.inf)
        best = np.full((number, len(self.limits)), -1, dtype=np.int64)
        color = colors[self.item]
        kept = color >= 0
        keys = color[kept] * self.candidates + self.candidate[kept]
        order = np.argsort(keys, kind="stable")
        keys, costs = keys[order], self.costs[kept][order]
        begin = np.flatnonzero(np.diff(keys, prepend=-1))
        if not len(begin):
            return prices, best
        sizes = np.bincount(colors[colors >= 0], minlength=number)
        served = np.diff(np.append(begin, len(keys)))
        classes, names = np.divmod(keys[begin], self.candidates)
        sums = np.add.reduceat(costs, begin)
        full = served == sizes[classes]
        classes, names, sums = classes[full], names[full], sums[full]
        order = np.lexsort((names, sums, self.label[names], classes))
        groups = classes[order] * len(self.limits) + self.label[names[order]]
        firsts = order[np.flatnonzero(np.diff(groups, prepend=-1))]
        prices[classes[firsts], self.label[names[firsts]]] = sums[firsts]
        best[classes[firsts], self.label[names[firsts]]] = names[firsts]
        return prices, best

    def nearest_two(self, is_open: NDArray[np.bool_]) -> tuple[NDArray[np.intp], Floats, Floats, NDArray[np.intp]]:
        """Each item's cheapest open candidate (−1: none), its cost (inf), and the same of the second.

        Returns:
            nearest, first, second, next nearest, each ``[L]``.
        """
        nearest, following = np.full((2, self.size), -1, dtype=np.intp)
        first, second = np.full((2, self.size), np.inf)
        places = np.flatnonzero(is_open[self.candidate])
        items = self.item[places]
        begins = np.diff(items, prepend=-1) > 0
        at = places[begins]
        nearest[self.item[at]], first[self.item[at]] = self.candidate[at], self.costs[at]
        follows = np.flatnonzero(begins) + 1
        follows = follows[follows < len(places)]
        follows = follows[~begins[follows]]
        at = places[follows]
        following[self.item[at]], second[self.item[at]] = self.candidate[at], self.costs[at]
        return nearest, first, second, following

    def assign(self, medoids: Sequence[int]) -> Coloring:
        """The coloring in which each item takes its cheapest of these candidates, or stays out if that costs less."""
        is_open = np.zeros(self.candidates, bool)
        is_open[list(medoids)] = True
        nearest, first, _, _ = self.nearest_two(is_open)
        out = (self.penalties() < first) | (nearest < 0)
        return Coloring(np.where(out, -1 - np.arange(self.size), nearest).tolist())

    def compatibility(self) -> NDArray[np.bool_]:
        """Raises ``ValueError`` beyond ``LARGEST_DENSE`` items, where all pairs of them do not fit into memory."""
        if self.size > LARGEST_DENSE:
            raise ValueError(f"all pairs of {self.size} items are too many to hold; at most {LARGEST_DENSE} items")
        from scipy.sparse import csr_array

        listed = csr_array((np.ones(len(self.costs)), self.candidate, self.starts), shape=(self.size, self.candidates))
        listed.data[~np.isfinite(self.costs)] = 0
        together = (listed @ listed.T).toarray()
        return np.asarray(together > 0) | np.eye(self.size, dtype=bool)

    def permute(self, sigma: Sequence[int]) -> SparseMedoidProblem:
        order = inverse(sigma)
        lengths = np.diff(self.starts)[order]
        starts = np.append(0, np.cumsum(lengths))
        places = np.repeat(self.starts[:-1][order] - starts[:-1], lengths) + np.arange(len(self.costs))
        return SparseMedoidProblem(
            starts,
            self.candidate[places],
            self.costs[places],
            candidates=self.candidates,
            K=self.K,
            penalty=None if self.penalty is None else self.penalty[order],
            group=self.group,
        )

    def with_limit(self, K: int | Mapping[Any, int]) -> SparseMedoidProblem:
        """The same costs under another K."""
        return SparseMedoidProblem(
            self.starts,
            self.candidate,
            self.costs,
            candidates=self.candidates,
            K=K,
            penalty=self.penalty,
            group=self.group,
        )
