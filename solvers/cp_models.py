"""The CP-SAT models of the three kinds of problem."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from solvers.cliques import greedy_clique
from solvers.coloring import Coloring
from solvers.dsatur import dsatur_order
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.scaling import Scaling
from solvers.search import Search

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


Values = Callable[[Any], bool]
"""The value of each Boolean of a model in one solution."""


@dataclass(frozen=True)
class Built:
    """A model with what it takes to read it.

    Attributes:
        model: the CP-SAT model; its objective is ``(cost − offset) · factor``, rounded term by term.
        decode: the coloring of a solution, given the value of each Boolean.
        scaling, offset, error: the true cost of any solution is at least ``offset + objective / factor − error``.
        complete: whether every coloring at least as good as the incumbent is in the model, so that its bound holds.
        opened: medoid: the Boolean of each candidate that is open (by candidate).
        colored: pairwise: for each item, in the order of ``order``, the Booleans of its colors.
        order: pairwise: the order of the items in which colors are used first.
    """

    model: cp_model.CpModel
    decode: Callable[[Values], Coloring]
    scaling: Scaling
    offset: float
    error: float
    complete: bool = True
    opened: dict[int, cp_model.IntVar] | None = None
    colored: tuple[tuple[cp_model.IntVar, ...], ...] = ()
    order: tuple[int, ...] = ()

    def bound(self, objective: float) -> float:
        """The lower bound that a bound on the integer objective proves."""
        return self.offset + objective / self.scaling.factor - self.error


def medoid_model(problem: MedoidProblem, search: Search, columns: NDArray[np.bool_] | None = None) -> Built:
    """``x[ℓ, b]``: item ℓ takes b; ``y[b]``: b is open; ``out[ℓ]``: left out. ``columns`` keeps some candidates."""
    from ortools.sat.python import cp_model

    size, costs, penalties = problem.size, problem.cost_matrix, problem.penalties()
    usable = np.ones(problem.candidates, bool) if columns is None else columns
    usable = usable & (problem.limits[problem.label] > 0)
    lowest = np.minimum(np.where(usable, costs, np.inf).min(axis=1, initial=np.inf), penalties)
    with np.errstate(invalid="ignore"):  # inf − inf, for an item that nothing serves: no choice is allowed then
        extra = np.where(usable, costs, np.inf) - lowest[:, None]
        extra_out = penalties - lowest
    room = search.cost - float(lowest.sum()) if math.isfinite(search.cost) else math.inf
    room += 1e-9 * (abs(search.cost) + problem.scale) if math.isfinite(room) else 0.0
    allowed = np.isfinite(extra) & (extra <= room) & (costs < penalties[:, None])
    allowed_out = np.isfinite(extra_out) & (extra_out <= room)
    largest = np.maximum(np.where(allowed, extra, 0.0).max(axis=1, initial=0.0), np.where(allowed_out, extra_out, 0.0))
    scaling = Scaling.for_total(float(largest.sum()))
    error = np.maximum(
        np.where(allowed, scaling.errors(np.where(allowed, extra, 0.0)), 0.0).max(axis=1, initial=0.0),
        np.where(allowed_out, scaling.errors(np.where(allowed_out, extra_out, 0.0)), 0.0),
    )
    model = cp_model.CpModel()
    opened = {int(b): model.new_bool_var(f"y{b}") for b in np.flatnonzero(allowed.any(axis=0))}
    takes: list[dict[int, cp_model.IntVar]] = []
    terms: list[cp_model.IntVar] = []
    weights: list[int] = []
    out: dict[int, cp_model.IntVar] = {}
    chosen = _medoids_of(problem, search)
    for item in range(size):
        takes.append({int(b): model.new_bool_var(f"x{item},{b}") for b in np.flatnonzero(allowed[item])})
        choices = list(takes[item].values())
        for b, variable in takes[item].items():
            model.add_implication(variable, opened[b])
            terms.append(variable)
            model.add_hint(variable, chosen.get(item) == b)
        weights.extend(scaling.integers(extra[item, list(takes[item])]).tolist())
        if allowed_out[item]:
            out[item] = model.new_bool_var(f"out{item}")
            choices.append(out[item])
            terms.append(out[item])
            weights.append(int(scaling.integers(extra_out[[item]])[0]))
        model.add_exactly_one(choices)
    for code, limit in enumerate(problem.limits):
        members = [variable for b, variable in opened.items() if problem.label[b] == code]
        if len(members) > limit:
            model.add(cp_model.LinearExpr.sum(members) <= int(limit))
    total = cp_model.LinearExpr.weighted_sum(terms, weights)
    known = (search.bound - float(lowest.sum()) - float(error.sum())) * scaling.factor
    if math.isfinite(known) and known > 1 and terms:
        model.add(total >= math.floor(known * (1 - 1e-9)))
    model.minimize(total)

    def decode(value: Values) -> Coloring:
        colors = []
        for item in range(size):
            taken = [b for b, variable in takes[item].items() if value(variable)]
            colors.append(taken[0] if taken else -1 - item)
        return Coloring(colors)

    return Built(model, decode, scaling, float(lowest.sum()), float(error.sum()), opened=opened)


def _medoids_of(problem: MedoidProblem, search: Search) -> dict[int, int]:
    """The candidate of each item in the incumbent."""
    if search.best is None:
        return {}
    medoids = problem.representatives(search.best)
    return {item: medoids[color] for item, color in enumerate(search.best)}


def pairwise_model(problem: PairwiseProblem, search: Search, *, value_precedence: bool = True) -> Built:
    """``x[i, c]``: item i has color c; ``same[i, j]`` where a weight asks; color c + 1 is used only after color c.

    A clique of conflicts comes first, whose colors the order then fixes. Where only the number of colors counts, no
    more are modelled than the incumbent uses. Without ``value_precedence`` every item may have every color.
    """
    from ortools.sat.python import cp_model

    size, weight, opening = problem.size, problem.weight, problem.opening
    order = dsatur_order(problem.conflict, greedy_clique(problem.conflict) if problem.conflict.any() else [])
    number = problem.limit
    if problem.weightless and opening >= 0 and search.best is not None:
        number = min(number, search.best.number_of_colors)
    pairs = [(p, q) for q in range(size) for p in range(q) if weight[order[p], order[q]]]
    values = np.array([weight[order[p], order[q]] for p, q in pairs], dtype=np.float64)
    scaling = Scaling.for_total(float(np.abs(values).sum()) + abs(opening) * number)
    error = float(scaling.errors(values).sum() + scaling.errors(np.array([opening]))[0] * number)

    model = cp_model.CpModel()
    colored = tuple(
        tuple(model.new_bool_var(f"x{order[p]},{c}") for c in range(min(p + 1, number) if value_precedence else number))
        for p in range(size)
    )
    used = [model.new_bool_var(f"used{c}") for c in range(number)]
    hint = Coloring([search.best[i] for i in order]) if search.best is not None else None
    for p, choices in enumerate(colored):
        model.add_exactly_one(choices)
        for c, variable in enumerate(choices):
            model.add_implication(variable, used[c])
            if c and value_precedence:  # value precedence: someone before p has color c − 1
                model.add_bool_or([colored[q][c - 1] for q in range(c - 1, p)] + [~variable])
            if hint is not None:
                model.add_hint(variable, hint[p] == c)
        for q in range(p):
            if problem.conflict[order[p], order[q]]:
                for ours, theirs in zip(choices, colored[q], strict=False):
                    model.add_at_most_one([ours, theirs])
    for c, variable in enumerate(used):
        model.add_bool_or([choices[c] for choices in colored if c < len(choices)] + [~variable])
    same = [model.new_bool_var(f"same{p},{q}") for p, q in pairs]
    for (p, q), together in zip(pairs, same, strict=True):
        for c, theirs in enumerate(colored[q]):
            if c >= len(colored[p]):
                model.add_implication(theirs, ~together)
                continue
            ours = colored[p][c]
            model.add_bool_or([~ours, ~theirs, together])
            model.add_bool_or([~together, ~ours, theirs])
            model.add_bool_or([~together, ours, ~theirs])
    integers = [*scaling.integers(values).tolist(), *[int(scaling.integers(np.array([opening]))[0])] * number]
    model.minimize(cp_model.LinearExpr.weighted_sum([*same, *used], integers))

    def decode(value: Values) -> Coloring:
        colors = [0] * size
        for p, choices in enumerate(colored):
            colors[order[p]] = next(c for c, variable in enumerate(choices) if value(variable))
        return Coloring(colors)

    return Built(model, decode, scaling, 0.0, error, colored=colored, order=tuple(order))


def group_model(
    problem: GroupProblem, search: Search, *, complete: bool, among: Sequence[tuple[int, ...]] | None = None
) -> Built | None:
    """Set partitioning: a Boolean for each class with a price, or for those priced so far when not ``complete``.

    ``among``: these classes only, all priced; ``complete`` then says that every better coloring is made of them.
    """
    from ortools.sat.python import cp_model

    size, penalties = problem.size, problem.penalties()
    if complete and among is None and not _price_all(problem, search):
        return None
    if not complete and among is None:
        search.note(f"recombined the {len(problem.priced)} classes priced so far; their best is no bound")
    known = problem.priced.items() if among is None else [(items, problem.priced[items]) for items in among]
    groups = [(items, price) for items, price in sorted(known) if math.isfinite(price)]
    prices = np.array([price for _, price in groups], dtype=np.float64)
    out = [item for item in range(size) if math.isfinite(penalties[item])]
    values = np.concatenate([prices, penalties[out]])
    scaling = Scaling.for_total(float(np.abs(values).max(initial=0.0)) * size)
    wrong = np.zeros(size)  # a rounding error falls on the items of its class in equal shares
    for (items, _), mistake in zip(groups, scaling.errors(prices), strict=True):
        for item in items:
            wrong[item] = max(wrong[item], mistake / len(items))
    wrong[out] = np.maximum(wrong[out], scaling.errors(penalties[out]))

    model = cp_model.CpModel()
    taken = [model.new_bool_var(f"g{at}") for at in range(len(groups))]
    left = {item: model.new_bool_var(f"out{item}") for item in out}
    covering: list[list[cp_model.IntVar]] = [[left[item]] if item in left else [] for item in range(size)]
    hinted = set(search.best.classes()) if search.best is not None else set()
    for (items, _), variable in zip(groups, taken, strict=True):
        for item in items:
            covering[item].append(variable)
        model.add_hint(variable, items in hinted)
    for choices in covering:
        model.add_exactly_one(choices)
    if problem.limit < size:
        model.add(cp_model.LinearExpr.sum(taken) <= problem.limit)
    model.minimize(cp_model.LinearExpr.weighted_sum([*taken, *left.values()], scaling.integers(values).tolist()))

    def decode(value: Values) -> Coloring:
        return Coloring.from_classes(
            [items for (items, _), variable in zip(groups, taken, strict=True) if value(variable)], size
        )

    return Built(model, decode, scaling, 0.0, float(wrong.sum()), complete=complete)


def _price_all(problem: GroupProblem, search: Search) -> bool:
    """Ask the oracle for every class without an incompatible pair; False when the time ran out."""
    for length in range(1, problem.size + 1):
        for items in itertools.combinations(range(problem.size), length):
            if search.expired():
                return False
            if problem.allows(items):
                problem.class_cost(items)
    return True
