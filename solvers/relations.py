"""Metamorphic relations: changes of a problem whose effect on every coloring's cost and on the optimum is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.sparse_medoid import SparseMedoidProblem

Knowable = MedoidProblem | PairwiseProblem | GroupProblem


@dataclass(frozen=True)
class Changed:
    """A problem made from another one, and what follows for it.

    A coloring of cost ``x`` becomes ``carry(coloring)`` of cost ``factor · x + offset(coloring)``.

    Attributes:
        name: what was done, as a clause.
        problem: the new problem.
        carry: the image of a coloring of the old problem.
        factor: > 0.
        offset: what is added, for a coloring.
        constant: what is added to the optimum, besides ``factor``; None where that is not known.
    """

    name: str
    problem: Problem
    carry: Callable[[Coloring], Coloring]
    factor: float
    offset: Callable[[Coloring], float]
    constant: float | None


def scaled(problem: Problem, factor: float) -> Problem:
    """The problem with every cost multiplied by ``factor`` > 0."""
    if isinstance(problem, MedoidProblem):
        penalty = None if problem.penalty is None else problem.penalty * factor
        return MedoidProblem(problem.cost_matrix * factor, problem.K, penalty=penalty, group=problem.group)
    if isinstance(problem, PairwiseProblem):
        return PairwiseProblem(problem.weight * factor, problem.conflict, problem.opening * factor, problem.K)
    assert isinstance(problem, GroupProblem)
    return _repriced(problem, lambda items, cost: cost * factor, lambda penalty: penalty * factor)


def shifted(problem: Problem, amount: float) -> Problem:
    """The problem with ``amount`` added for each item, whatever becomes of it; for each color of a pairwise problem."""
    if isinstance(problem, MedoidProblem):
        penalty = None if problem.penalty is None else problem.penalty + amount
        return MedoidProblem(problem.cost_matrix + amount, problem.K, penalty=penalty, group=problem.group)
    if isinstance(problem, PairwiseProblem):
        return PairwiseProblem(problem.weight, problem.conflict, problem.opening + amount, problem.K)
    assert isinstance(problem, GroupProblem)
    return _repriced(problem, lambda items, cost: cost + amount * len(items), lambda penalty: penalty + amount)


def doubled(problem: MedoidProblem | PairwiseProblem) -> Problem:
    """Every item twice: items i and L + i are twins, whom some optimum keeps together.

    In a medoid problem twins have one row. In a pairwise problem each pair is there four times, so a color costs four
    times as much too, and a pair of twins costs −4 · |opening|, lest one of them be worth a color of its own.
    """
    if isinstance(problem, MedoidProblem):
        penalty = None if problem.penalty is None else np.tile(problem.penalty, 2)
        return MedoidProblem(np.tile(problem.cost_matrix, (2, 1)), problem.K, penalty=penalty, group=problem.group)
    weight, conflict = np.tile(problem.weight, (2, 2)).copy(), np.tile(problem.conflict, (2, 2))
    items = np.arange(problem.size)
    weight[items, items + problem.size] = weight[items + problem.size, items] = -4 * abs(problem.opening)
    return PairwiseProblem(weight, conflict, 4 * problem.opening, problem.K)


def joined_by_a_loner(problem: Knowable, price: float) -> Problem:
    """One item more, which may share with none and owns the basis that K is raised for; it costs ``price``.

    In a pairwise problem it costs the opening of a color instead.
    """
    size = problem.size
    if isinstance(problem, MedoidProblem):
        cost = np.full((size + 1, problem.candidates + 1), np.inf)
        cost[:size, :-1], cost[size, -1] = problem.cost_matrix, price
        penalty = None if problem.penalty is None else np.append(problem.penalty, np.inf)
        if isinstance(problem.K, Mapping):
            label = ("loner", len(problem.K))
            limits = {**problem.K, label: 1}
            return MedoidProblem(cost, limits, penalty=penalty, group=[*(problem.group or ()), label])
        return MedoidProblem(cost, problem.K + 1, penalty=penalty)
    alone = np.zeros((size + 1, size + 1), bool)
    alone[size, :size] = alone[:size, size] = True
    K = None if problem.K is None else problem.K + 1
    if isinstance(problem, PairwiseProblem):
        conflict = alone.copy()
        conflict[:size, :size] = problem.conflict
        return PairwiseProblem(np.pad(problem.weight, (0, 1)), conflict, problem.opening, K)
    compatible = ~alone
    compatible[:size, :size] = problem.compatible
    penalty = None if problem.penalty is None else np.append(problem.penalty, np.inf)
    return GroupProblem(
        size + 1,
        lambda items: price if items == (size,) else problem.class_cost(items),
        compatible=compatible,
        K=K,
        penalty=penalty,
    )


def _scale(problem: Knowable, rng: np.random.Generator) -> Changed:
    return Changed("all costs times 8", scaled(problem, 8.0), lambda c: c, 8.0, lambda c: 0.0, 0.0)


def _shift(problem: Knowable, rng: np.random.Generator) -> Changed:
    if isinstance(problem, PairwiseProblem):
        by_color = shifted(problem, 4.0)
        return Changed("4 more for a color", by_color, lambda c: c, 1.0, lambda c: 4.0 * c.number_of_colors, None)
    total = 4.0 * problem.size
    return Changed("4 more for an item", shifted(problem, 4.0), lambda c: c, 1.0, lambda c: total, total)


def _permute(problem: Knowable, rng: np.random.Generator) -> Changed:
    sigma = [int(i) for i in rng.permutation(problem.size)]
    name = f"items renamed by {sigma}"
    return Changed(name, problem.permute(sigma), lambda c: c.permute(sigma), 1.0, lambda c: 0.0, 0.0)


def _double(problem: Knowable, rng: np.random.Generator) -> Changed | None:
    if isinstance(problem, GroupProblem):
        return None  # what a set function costs twins is not known

    def carry(coloring: Coloring) -> Coloring:
        left_out = problem.representatives(coloring)
        again = [
            -1 - item if left_out and left_out[color] < 0 else color  # each is left out by itself
            for item, color in enumerate(coloring)
        ]
        return Coloring([*coloring, *again])

    if isinstance(problem, MedoidProblem):
        return Changed("every item twice", doubled(problem), carry, 2.0, lambda c: 0.0, 0.0)
    together = -4 * abs(problem.opening) * problem.size
    return Changed("every item twice", doubled(problem), carry, 4.0, lambda c: together, together)


def _join(problem: Knowable, rng: np.random.Generator) -> Changed:
    price = problem.opening if isinstance(problem, PairwiseProblem) else 2.0
    more = joined_by_a_loner(problem, price)
    return Changed(
        "an item added that shares with none", more, lambda c: Coloring([*c, -1]), 1.0, lambda c: price, price
    )


Relation = Callable[[Knowable, np.random.Generator], Changed | None]

RELATIONS: tuple[Relation, ...] = (
    _scale,
    _shift,
    _permute,
    _double,
    _join,
)
"""Each changes a problem of any kind, or gives None where the relation says nothing about that kind."""


def change(relation: Relation, problem: Knowable | SparseMedoidProblem, rng: np.random.Generator) -> Changed | None:
    """What a relation makes of a problem; of a sparse one by way of its dense form."""
    if not isinstance(problem, SparseMedoidProblem):
        return relation(problem, rng)
    changed = relation(problem.dense(), rng)
    if changed is None:
        return None
    assert isinstance(changed.problem, MedoidProblem)
    return replace(changed, problem=SparseMedoidProblem.nearest(changed.problem, changed.problem.candidates))


def _repriced(
    problem: GroupProblem,
    cost: Callable[[tuple[int, ...], float], float],
    penalty: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> GroupProblem:
    return GroupProblem(
        problem.size,
        lambda items: cost(items, problem.class_cost(items)),
        compatible=problem.compatible,
        K=problem.K,
        penalty=None if problem.penalty is None else penalty(problem.penalty),
    )
