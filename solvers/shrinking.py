"""A failing problem made small: fewer items, fewer features, simpler numbers; and written down as code that runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.sparse_medoid import SparseMedoidProblem

TABLED_ITEMS = 10
"""A set function over so many items is written down as a table of all its prices."""


def shrink(
    problem: Problem,
    fails: Callable[[Problem], object],
    *,
    max_checks: int = 2_000,
    show: Callable[[str], object] | None = print,
) -> Problem:
    """The smallest problem met that still fails, shown as code that makes it.

    Takes away items and candidates (halves first), then labels, penalties, colors, then makes numbers shorter, until
    nothing goes. Each problem tried differs from a failing one in one such step.

    Args:
        problem: one that fails.
        fails: says whether a problem still does. An exception counts as failing where the first problem raised one of
            the same type, so ``lambda p: check_relations(p, "mine")`` may stand here.
        max_checks: so often ``fails`` is called at most.
        show: is given the code of the result; None: nothing.

    Raises:
        ValueError: when ``problem`` itself does not fail.
        TypeError: for a problem of another kind than medoid, pairwise and group.

    >>> costs = np.random.default_rng(0).random((8, 8))
    >>> small = shrink(MedoidProblem(costs, K=2), lambda p: (p.cost_matrix[:, :2].min(axis=1) > 0.5).any())
    from math import inf
    from solvers import MedoidProblem
    problem = MedoidProblem([[1]], K=0)
    """
    shrinking = _Shrinking(problem, fails, max_checks)
    shrinking.run()
    if show is not None:
        show(as_code(shrinking.problem))
    return shrinking.problem


def as_code(problem: Problem) -> str:
    """Python that makes the same problem, to the last bit, under the name ``problem``.

    Raises:
        ValueError: for a set function of more than 10 items, whose table would be long.
        TypeError: for another kind of problem.
    """
    kind, numpy = type(problem).__name__, ""
    if isinstance(problem, MedoidProblem):
        rows = problem.cost_matrix.tolist()
        numpy = "" if rows else "from numpy import zeros\n"  # a list of no rows would have no columns either
        arguments = [_matrix(rows) if rows else f"zeros((0, {problem.candidates}))", f"K={problem.K!r}"]
        if problem.penalty is not None:
            arguments.append(f"penalty={_row(problem.penalty.tolist())}")
        if problem.group is not None:
            arguments.append(f"group={list(problem.group)!r}")
    elif isinstance(problem, SparseMedoidProblem):
        lists = problem.starts.tolist(), problem.candidate.tolist()
        arguments = [*map(str, lists), _row(problem.costs.tolist())]
        arguments += [f"candidates={problem.candidates}", f"K={problem.K!r}"]
        if problem.penalty is not None:
            arguments.append(f"penalty={_row(problem.penalty.tolist())}")
        if problem.group is not None:
            arguments.append(f"group={list(problem.group)!r}")
    elif isinstance(problem, PairwiseProblem):
        weight = np.where(problem.conflict, np.inf, problem.weight)
        arguments = [_matrix(weight.tolist()), f"opening={_number(problem.opening)}", f"K={problem.K!r}"]
    elif isinstance(problem, GroupProblem):
        if problem.size > TABLED_ITEMS:
            raise ValueError(f"a table of all classes of {problem.size} items would be long; shrink the problem first")
        prices = ", ".join(f"{items}: {_number(price)}" for items, price in _table(problem).items())
        arguments = [str(problem.size), f"{{{prices}}}.__getitem__", f"K={problem.K!r}"]
        if problem.penalty is not None:
            arguments.append(f"penalty={_row(problem.penalty.tolist())}")
        if problem.item_lower_bound is not None:
            arguments.append(f"item_lower_bound={_row(problem.item_lower_bound.tolist())}")
    else:
        raise TypeError(f"how to write a {kind} as code is not known")
    return f"from math import inf\n{numpy}from solvers import {kind}\nproblem = {kind}({', '.join(arguments)})"


def restricted(problem: Problem, items: Sequence[int]) -> Problem:
    """The problem of some of the items alone, in the order given."""
    kept = list(items)
    if isinstance(problem, MedoidProblem):
        penalty = None if problem.penalty is None else problem.penalty[kept]
        return MedoidProblem(problem.cost_matrix[kept], problem.K, penalty=penalty, group=problem.group)
    if isinstance(problem, PairwiseProblem):
        inside = np.ix_(kept, kept)
        return PairwiseProblem(problem.weight[inside], problem.conflict[inside], problem.opening, problem.K)
    if not isinstance(problem, GroupProblem):
        raise TypeError(
            f"how to make a {type(problem).__name__} smaller is not known; write it as a MedoidProblem, say"
        )
    return GroupProblem(
        len(kept),
        lambda group: problem.class_cost([kept[item] for item in group]),
        compatible=problem.compatible[np.ix_(kept, kept)],
        K=problem.K,
        penalty=None if problem.penalty is None else problem.penalty[kept],
        item_lower_bound=None if problem.item_lower_bound is None else problem.item_lower_bound[kept],
    )


class _Shrinking:
    def __init__(self, problem: Problem, fails: Callable[[Problem], object], max_checks: int) -> None:
        self.problem, self.fails, self.checks_left = problem, fails, max_checks
        self.failure = self._outcome(problem)
        if not self.failure:
            raise ValueError("the problem does not fail, so there is nothing to shrink")

    def _outcome(self, problem: Problem) -> object:
        try:
            return bool(self.fails(problem))
        except Exception as error:  # whatever is being hunted
            return type(error)

    def accept(self, candidate: Problem) -> bool:
        """Go on from the candidate if it fails like the first problem."""
        if self.checks_left <= 0:
            return False
        self.checks_left -= 1
        if self._outcome(candidate) != self.failure:
            return False
        self.problem = candidate
        return True

    def run(self) -> None:
        changed = True
        while changed and self.checks_left > 0:
            changed = self._drop(lambda: self.problem.size, lambda kept: restricted(self.problem, kept))
            if isinstance(self.problem, MedoidProblem):
                changed |= self._drop(lambda: getattr(self.problem, "candidates", 0), self._with_candidates)
            for candidate in _without_features(self.problem):
                changed |= self.accept(candidate)
            changed |= self._fewer_colors() | self._shorten()

    def _drop(self, number: Callable[[], int], keeping: Callable[[list[int]], Problem]) -> bool:
        """Take away runs of items or candidates, long ones first."""
        dropped, length = False, max(number() // 2, 1)
        while length:
            at = 0
            while at < number():
                kept = [i for i in range(number()) if not at <= i < at + length]
                if self.accept(keeping(kept)):
                    dropped = True
                else:
                    at += length
            length //= 2
        return dropped

    def _with_candidates(self, kept: list[int]) -> Problem:
        p = self.problem
        assert isinstance(p, MedoidProblem)
        group = None if p.group is None else [p.group[b] for b in kept]
        return MedoidProblem(p.cost_matrix[:, kept], p.K, penalty=p.penalty, group=group)

    def _fewer_colors(self) -> bool:
        p = self.problem
        if isinstance(p, (MedoidProblem, PairwiseProblem, GroupProblem)) and isinstance(p.K, int):
            return any(self.accept(p.with_limit(K)) for K in range(min(p.K, 4)))
        return False

    def _shorten(self) -> bool:
        """Make all numbers simpler at once, then each of them."""
        if isinstance(self.problem, GroupProblem) and self.problem.size > TABLED_ITEMS:
            return False
        shortened, numbers = False, _numbers(self.problem)
        for digits in (0, 1, 3):
            rounded = [round(x, digits) if math.isfinite(x) else x for x in numbers]
            if rounded != numbers and self.accept(_with_numbers(self.problem, rounded)):
                numbers, shortened = rounded, True
                break
        for at, value in enumerate(numbers):
            for simpler in _simpler(value):
                if self.accept(_with_numbers(self.problem, [*numbers[:at], simpler, *numbers[at + 1 :]])):
                    numbers[at], shortened = simpler, True
                    break
        return shortened


def _without_features(problem: Problem) -> Iterator[Problem]:
    if isinstance(problem, MedoidProblem):
        if isinstance(problem.K, Mapping):
            yield MedoidProblem(problem.cost_matrix, sum(problem.K.values()), penalty=problem.penalty)
        if problem.penalty is not None:
            yield MedoidProblem(problem.cost_matrix, problem.K, group=problem.group)
    elif isinstance(problem, PairwiseProblem) and problem.K is not None:
        yield problem.with_limit(None)
    elif isinstance(problem, GroupProblem) and problem.size <= TABLED_ITEMS:
        prices = _table(problem)
        for K, penalty in itertools.product({None, problem.K}, (None, problem.penalty)):
            plain = K == problem.K and penalty is problem.penalty and problem.item_lower_bound is None
            if not (plain and problem.compatible.all()):
                yield GroupProblem(problem.size, prices.__getitem__, K=K, penalty=penalty)


def _numbers(problem: Problem) -> list[float]:
    if isinstance(problem, MedoidProblem):
        return [*problem.cost_matrix.ravel().tolist(), *([] if problem.penalty is None else problem.penalty.tolist())]
    if isinstance(problem, PairwiseProblem):
        upper = np.triu_indices(problem.size, 1)
        return [problem.opening, *np.where(problem.conflict, np.inf, problem.weight)[upper].tolist()]
    assert isinstance(problem, GroupProblem)
    return [*_table(problem).values(), *([] if problem.penalty is None else problem.penalty.tolist())]


def _with_numbers(problem: Problem, numbers: list[float]) -> Problem:
    if isinstance(problem, MedoidProblem):
        entries = problem.cost_matrix.size
        cost = np.array(numbers[:entries]).reshape(problem.cost_matrix.shape)
        penalty = None if problem.penalty is None else numbers[entries:]
        return MedoidProblem(cost, problem.K, penalty=penalty, group=problem.group)
    if isinstance(problem, PairwiseProblem):
        weight = np.zeros((problem.size, problem.size))
        weight[np.triu_indices(problem.size, 1)] = numbers[1:]
        return PairwiseProblem(weight + weight.T, None, numbers[0], problem.K)
    assert isinstance(problem, GroupProblem)
    classes = list(_table(problem))
    prices = dict(zip(classes, numbers, strict=False))
    penalty = None if problem.penalty is None else numbers[len(classes) :]
    return GroupProblem(problem.size, prices.__getitem__, K=problem.K, penalty=penalty)


def _table(problem: GroupProblem) -> dict[tuple[int, ...], float]:
    """The price of every class."""
    sizes = range(1, problem.size + 1)
    classes = itertools.chain.from_iterable(itertools.combinations(range(problem.size), size) for size in sizes)
    return {items: problem.class_cost(items) for items in classes}


def _simpler(value: float) -> list[float]:
    """Values that are written shorter, or of one length and smaller, the simplest first."""
    tried = [0.0, 1.0, -1.0]
    if math.isfinite(value):
        tried += [
            float(math.trunc(value)),
            *(round(value, digits) for digits in range(4)),
            float(math.trunc(value / 2)),
        ]
    return [x for x in dict.fromkeys(tried) if _plainness(x) < _plainness(value)]


def _plainness(value: float) -> tuple[int, float]:
    return len(_number(value)), abs(value)


def _number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e15 else repr(value)


def _row(values: Sequence[float]) -> str:
    return f"[{', '.join(map(_number, values))}]"


def _matrix(rows: Sequence[Sequence[float]]) -> str:
    return f"[{', '.join(map(_row, rows))}]"
