"""Which classes of a coloring own a basis when only so many bases may be had."""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def checked_limit(K: object, where: str) -> int:
    """``K`` as an int.

    Raises:
        ValueError: when it is not a whole number ≥ 0; ``where`` opens the sentence.
    """
    try:
        limit = operator.index(K)  # type: ignore[arg-type]
    except TypeError:
        limit = -1
    if not 0 <= limit < 2**63 or isinstance(K, bool):
        raise ValueError(f"{where}: K must be a whole number of bases, 0 or more, got {K!r:.40}")
    return limit


def choose_owners(prices: Floats, limits: Ints, penalties: Floats) -> tuple[float, Ints]:
    """The cheapest way to give each class a basis of some label, or none, within the limits.

    Args:
        prices: ``[C, G]``, what class c costs with its best basis of label g; inf where it has none.
        limits: ``[G]``, how many bases of each label may be had.
        penalties: ``[C]``, what the class costs with no basis; inf where it needs one.

    Returns:
        The total (inf where no choice fits) and the label of each class, −1 where it owns no basis.
    """
    number, labels = prices.shape
    if number == 0:
        return 0.0, np.zeros(0, dtype=np.int64)
    if labels == 0:
        return float(penalties.sum()), np.full(number, -1, dtype=np.int64)
    choice = prices.argmin(axis=1).astype(np.int64)
    best = prices.min(axis=1)
    choice[penalties < best] = -1
    best = np.minimum(best, penalties)
    if not np.isfinite(best).all():
        return math.inf, choice
    used = np.bincount(choice[choice >= 0], minlength=labels)
    if (used <= limits).all():
        return float(best.sum()), choice
    if (np.isfinite(prices).sum(axis=1) <= 1).all():
        return _give_up_cheapest(prices, limits, penalties, choice, used)
    return _assign(prices, limits, penalties)


def _give_up_cheapest(
    prices: Floats, limits: Ints, penalties: Floats, choice: Ints, used: NDArray[np.intp]
) -> tuple[float, Ints]:
    """No class has two labels to choose from, so each label drops the classes that regret it least."""
    rows = np.arange(len(choice))
    price = prices[rows, np.maximum(choice, 0)]
    with np.errstate(invalid="ignore"):  # a class without a basis may have no price: inf − inf, never looked at
        regret = penalties - price
    for label in np.flatnonzero(used > limits):
        owners = np.flatnonzero(choice == label)
        surplus = int(used[label] - limits[label])
        choice[owners[np.argsort(regret[owners], kind="stable")[:surplus]]] = -1
    return float(np.where(choice >= 0, price, penalties).sum()), choice


def _assign(prices: Floats, limits: Ints, penalties: Floats) -> tuple[float, Ints]:
    """The general case is an assignment problem: a column for each basis that may be had, and one "none" per class."""
    from scipy.optimize import linear_sum_assignment  # here because it takes longer to import than to run

    number, labels = prices.shape
    columns = np.repeat(np.arange(labels), np.minimum(limits, number))
    none = np.where(np.eye(number, dtype=bool), penalties[:, None], math.inf)
    try:
        rows, chosen = linear_sum_assignment(np.hstack([prices[:, columns], none]))
    except ValueError:  # scipy's way to say that every assignment costs inf
        return math.inf, np.full(number, -1, dtype=np.int64)
    choice = np.append(columns, np.full(number, -1))[chosen].astype(np.int64)
    total = np.where(choice >= 0, prices[rows, np.maximum(choice, 0)], penalties).sum()
    return float(total), choice
