"""What every problem is: items to be partitioned into classes, and an exact price for every coloring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.coloring import Coloring


@runtime_checkable
class Problem(Protocol):
    """The seam between problems and solvers: all a solver may rely on without knowing the kind of problem.

    ``cost`` is the judge: whatever a solver claims, its coloring is priced here before anyone sees it.
    """

    @property
    def size(self) -> int:
        """The number of items, L."""

    @property
    def limit(self) -> int:
        """At most so many classes may own a basis; L where nothing binds."""

    @property
    def scale(self) -> float:
        """The largest finite cost known, in absolute value: the unit of rounding errors."""

    @property
    def grain(self) -> float:
        """A number of which every coloring's cost is a whole multiple, so that bounds may be rounded up; 0: unknown."""

    def class_cost(self, items: Sequence[int]) -> float:
        """What the items cost as one class that owns a basis; inf where they may not be one. K plays no part."""

    def cost(self, coloring: Coloring) -> float:
        """The price of a coloring; inf where it is not allowed."""

    def representatives(self, coloring: Coloring) -> tuple[int, ...]:
        """The chosen candidate of each class, −1 for a class that owns none; empty where the problem has none."""

    def compatibility(self) -> NDArray[np.bool_]:
        """``[L, L]``: False where two items can share no class of finite cost. Necessary, not sufficient."""

    def permute(self, sigma: Sequence[int]) -> Problem:
        """The same problem after item ``i`` is renamed ``sigma[i]``."""


def checked_matrix(values: ArrayLike, name: str, *, ndim: int) -> NDArray[np.float64]:
    """A read-only float64 copy.

    Raises:
        ValueError: on a wrong number of axes, or on NaN or −inf; the sentence names the index.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be an array of numbers with {ndim} axes: {error}") from error
    if array.ndim != ndim and not (array.size == 0 and array.ndim <= ndim):
        raise ValueError(f"{name} must have {ndim} axes, got an array of shape {array.shape}")
    bad = np.isnan(array) | (array == -np.inf)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        shown = ", ".join(map(str, index))
        raise ValueError(
            f"{name}[{shown}] is {array[index]}; every cost must be a number, or inf for what is forbidden "
            f"({int(bad.sum())} such entries)"
        )
    array.setflags(write=False)
    return array


def checked_coloring(coloring: Coloring, size: int) -> Coloring:
    """The coloring, when it colors ``size`` items.

    Raises:
        ValueError: otherwise.
    """
    if len(coloring) != size:
        raise ValueError(f"the coloring has {len(coloring)} items, the problem {size}")
    return coloring


def inverse(sigma: Sequence[int]) -> NDArray[np.intp]:
    """The inverse permutation: ``inverse(s)[s[i]] = i``.

    Raises:
        ValueError: when ``sigma`` is not a permutation.
    """
    order = np.asarray(sigma, dtype=np.intp).reshape(-1)
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        raise ValueError(f"sigma must be a permutation of 0 to {len(order) - 1}, got {list(sigma)}")
    return np.argsort(order)


def finite_scale(*arrays: NDArray[np.float64]) -> float:
    """The largest finite absolute value in the arrays, 0 where there is none."""
    return max((float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) for a in arrays), default=0.0)


def common_grain(*arrays: NDArray[np.float64]) -> float:
    """The greatest common divisor of all finite entries where they are whole and sum up exactly, else 0."""
    finite = np.concatenate([a[np.isfinite(a)].ravel() for a in arrays]) if arrays else np.zeros(0)
    if not finite.size or not (np.rint(finite) == finite).all() or np.abs(finite).sum() >= 2.0**53:
        return 0.0
    return float(np.gcd.reduce(np.abs(finite).astype(np.int64)))


def round_up(bound: float, grain: float) -> float:
    """The least multiple of ``grain`` that a cost above ``bound`` can be; a bound below it by rounding counts as it."""
    if not grain or not math.isfinite(bound) or abs(bound) > 1e9 * grain:
        return bound
    return max(bound, math.ceil(bound / grain - 1e-6) * grain)
