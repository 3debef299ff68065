"""A problem as a flat mapping of names to arrays and plain values: what JSON and npz files hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.sparse_medoid import SparseMedoidProblem

VERSION = 1

FEW, LARGEST_GROUP = 10_000, 20_000
"""Items or candidates that a file may announce without listing as many; items of a group problem, whose compatible
pairs are held as a dense matrix."""

Document = dict[str, Any]


def to_document(problem: Problem) -> Document:
    """``kind``, ``version``, and the fields of the problem; arrays stay numpy arrays, what is None is left out.

    Of a group problem it holds the classes priced so far: price those that matter before.
    """
    fields: Document
    if isinstance(problem, MedoidProblem):
        fields = {
            "kind": "medoid",
            "candidates": problem.candidates,
            "cost": problem.cost_matrix,
            "penalty": problem.penalty,
        }
        fields |= _limits(problem)
    elif isinstance(problem, SparseMedoidProblem):
        fields = {
            "kind": "sparse_medoid",
            "candidates": problem.candidates,
            "starts": problem.starts,
            "candidate": problem.candidate,
            "costs": problem.costs,
            "penalty": problem.penalty,
        } | _limits(problem)
    elif isinstance(problem, PairwiseProblem):
        fields = {
            "kind": "pairwise",
            "weight": problem.weight,
            "conflicts": _pairs(problem.conflict),
            "opening": problem.opening,
            "K": problem.K,
        }
    elif isinstance(problem, GroupProblem):
        classes = sorted(problem.priced)
        fields = {
            "kind": "group",
            "size": problem.size,
            "items": np.array([item for members in classes for item in members], dtype=np.int64),
            "lengths": np.array([len(members) for members in classes], dtype=np.int64),
            "prices": np.array([problem.priced[members] for members in classes], dtype=np.float64),
            "incompatible": _pairs(~problem.compatible),
            "penalty": problem.penalty,
            "item_lower_bound": problem.item_lower_bound,
            "K": problem.K,
        }
    else:
        raise ValueError(f"a {type(problem).__name__} has no file format; the problems of this package have")
    return {"version": VERSION} | {name: value for name, value in fields.items() if value is not None}


def _limits(problem: MedoidProblem | SparseMedoidProblem) -> Document:
    if isinstance(problem.K, Mapping):
        return {"K": [[label, limit] for label, limit in problem.K.items()], "group": list(problem.group or ())}
    return {"K": problem.K}


def from_document(document: Mapping[str, Any]) -> Problem:
    """The problem that ``to_document`` told. A class that a group document does not list is forbidden.

    Raises:
        ValueError: naming the key, where something is missing, left over, or not what it should be.
    """
    kind = document.get("kind")
    readers: dict[object, Callable[[_Fields], Problem]] = {
        "medoid": _medoid,
        "sparse_medoid": _sparse_medoid,
        "pairwise": _pairwise,
        "group": _group,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise ValueError(f"'kind' must be one of {', '.join(map(str, readers))}, got {kind!r:.60}")
    version = document.get("version")
    if version != VERSION:
        raise ValueError(
            f"'version' is {version!r:.40}, this program reads {VERSION}; read it with the one that wrote it"
        )
    fields = _Fields({name: value for name, value in document.items() if name not in ("kind", "version")})
    problem = readers[kind](fields)
    if fields.left:
        raise ValueError(f"{next(iter(fields.left))!r} is no field of a {kind} problem")
    return problem


class _Fields:
    """The values of a document, each taken once."""

    def __init__(self, left: dict[str, Any]) -> None:
        self.left = left

    def take(self, name: str, needed: bool = True) -> Any:
        if name not in self.left and needed:
            raise ValueError(f"{name!r} is missing")
        return self.left.pop(name, None)

    def array(self, name: str, ndim: int, needed: bool = True) -> NDArray[np.float64] | None:
        value = self.take(name, needed)
        if value is None and not needed:
            return None
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f'{name!r} must be {_shape(ndim)} of numbers ("inf" for what is forbidden)') from None
        if array.size == 0:
            return array.reshape((0,) * ndim) if array.ndim < ndim else array
        if array.ndim != ndim:
            raise ValueError(f"{name!r} must be {_shape(ndim)} of numbers, got {array.ndim} axes")
        return array

    def whole(self, name: str, needed: bool = True) -> NDArray[np.int64] | None:
        array = self.array(name, 1, needed)
        if array is None:
            return None
        if not (np.isfinite(array).all() and (np.rint(array) == array).all() and (np.abs(array) < 2**53).all()):
            raise ValueError(f"{name!r} must hold whole numbers")
        return array.astype(np.int64)

    def number(self, name: str) -> float:
        """A number, 0 where it is missing."""
        value = self.take(name, needed=False)
        try:
            return 0.0 if value is None else float(np.asarray(value, dtype=np.float64).reshape(()))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name!r} must be a number, got {value!r:.40}") from None

    def count(self, name: str, most: int) -> int:
        """How many of something there are; ``most`` is what the rest of the file makes plausible."""
        value = self.take(name)
        value = value.item() if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0 else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name!r} must be a whole number, got {value!r:.40}")
        if value > most:
            raise ValueError(f"{name!r} is {value!r:.40}, but what the file lists is enough for {most} at most")
        return value

    def limit(self) -> int | None:
        K = self.take("K", needed=False)
        K = K.item() if isinstance(K, np.generic | np.ndarray) and np.ndim(K) == 0 else K
        if K is not None and (isinstance(K, bool) or not isinstance(K, int)):
            raise ValueError(f"'K' must be a whole number, got {K!r:.40}")
        return K

    def pairs(self, name: str, size: int) -> NDArray[np.bool_]:
        """A symmetric matrix that is true at the pairs listed."""
        matrix = np.zeros((size, size), dtype=bool)
        listed = self.array(name, 2, needed=False)
        if listed is None or not listed.size:
            return matrix
        if listed.shape[1] != 2 or not np.isin(listed, np.arange(size)).all():
            raise ValueError(f"{name!r} must list pairs of items between 0 and {size - 1}")
        i, j = listed.astype(np.int64).T
        matrix[i, j] = matrix[j, i] = True
        return matrix


def _medoid(fields: _Fields) -> MedoidProblem:
    cost, penalty, group = fields.array("cost", 2), fields.array("penalty", 1, False), fields.take("group", False)
    assert cost is not None
    candidates = fields.count("candidates", max(FEW, cost.size)) if "candidates" in fields.left else None
    if not len(cost):  # a list of no rows does not tell how many columns they have
        cost = np.zeros((0, len(group) if isinstance(group, list) else candidates or 0))
    elif candidates not in (None, cost.shape[1]):
        raise ValueError(f"'cost' has {cost.shape[1]} columns for {candidates} candidates")
    K, labels = _labelled(fields, group)
    return MedoidProblem(cost, K, penalty=penalty, group=labels)


def _sparse_medoid(fields: _Fields) -> SparseMedoidProblem:
    starts, candidate, costs = fields.whole("starts"), fields.whole("candidate"), fields.array("costs", 1)
    assert starts is not None
    assert candidate is not None
    assert costs is not None
    candidates = fields.count("candidates", max(FEW, 100 * len(candidate)))
    penalty = fields.array("penalty", 1, False)
    K, labels = _labelled(fields, fields.take("group", False))
    return SparseMedoidProblem(starts, candidate, costs, candidates=candidates, K=K, penalty=penalty, group=labels)


def _labelled(fields: _Fields, group: Any) -> tuple[Any, Any]:
    """K, and the label of each candidate where K is a limit for each label."""
    if group is None:
        K = fields.limit()
        if K is None:
            raise ValueError("'K' is missing")
        return K, None
    limits = fields.take("K")
    if not isinstance(limits, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in limits):
        raise ValueError("'K' must list [label, limit] pairs where candidates have labels in 'group'")
    if not isinstance(group, list) or not all(isinstance(label, str | int) for label in group + [e[0] for e in limits]):
        raise ValueError("'group' must list a label for each candidate, a text or a whole number")
    return dict(limits), group


def _pairwise(fields: _Fields) -> PairwiseProblem:
    weight = fields.array("weight", 2)
    assert weight is not None
    return PairwiseProblem(weight, fields.pairs("conflicts", len(weight)), fields.number("opening"), fields.limit())


def _group(fields: _Fields) -> GroupProblem:
    items, lengths, prices = fields.whole("items"), fields.whole("lengths"), fields.array("prices", 1)
    assert items is not None
    assert lengths is not None
    assert prices is not None
    size = fields.count("size", min(max(FEW, len(items)), LARGEST_GROUP))
    if len(lengths) != len(prices) or (lengths < 1).any() or lengths.sum() != len(items):
        raise ValueError(
            f"'lengths' must give the number of items of each class: here are {len(prices)} prices, {len(lengths)} "
            f"lengths that add up to {int(lengths.sum())}, and {len(items)} items"
        )
    ends = np.cumsum(lengths)
    table: dict[tuple[int, ...], float] = {}
    for end, length, price in zip(ends.tolist(), lengths.tolist(), prices.tolist(), strict=True):
        members = tuple(sorted(items[end - length : end].tolist()))
        if members[0] < 0 or members[-1] >= size or len(set(members)) < length:
            raise ValueError(f"'items' names the class {members}, but a class has distinct items of 0 to {size - 1}")
        if math.isnan(price):
            raise ValueError(f"'prices' is NaN for the class {members}")
        table[members] = price
    problem = GroupProblem(
        size,
        lambda members: table.get(members, math.inf),
        compatible=~fields.pairs("incompatible", size),
        K=fields.limit(),
        penalty=fields.array("penalty", 1, False),
        item_lower_bound=fields.array("item_lower_bound", 1, False),
    )
    for members in table:
        problem.class_cost(members)
    return problem


def _pairs(matrix: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.argwhere(np.triu(matrix, 1)).astype(np.int64)


def _shape(ndim: int) -> str:
    return {1: "a list", 2: "a list of lists of equal length"}[ndim]
