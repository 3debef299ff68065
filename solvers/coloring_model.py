"""Is there a proper coloring with so many colors? The question as a CP-SAT model, its conflicts covered by cliques."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from solvers.cliques import Stop, maximum_clique, members, neighbour_sets
from solvers.dsatur import dsatur_order
from solvers.palette import Decision
from solvers.search import STEPS_PER_SECOND, Search

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

CLIQUE_NODES = 2_000
LARGEST_MODEL = 3_000_000
"""Beyond so many places in constraints no model is built."""
LARGEST_QUESTION = 20_000_000
"""Beyond so many pairs of a conflict and a color no cover of the conflicts is looked for."""


def clique_cover(neighbours: Sequence[int], stop: Stop) -> list[tuple[int, ...]] | None:
    """Cliques that hold every edge; None when stopped.

    Each grows from an edge that none before it holds, by the item with the most neighbours among the candidates, and
    among these by the item with the most such edges.
    """
    left = list(neighbours)
    cover: list[tuple[int, ...]] = []
    for item in range(len(left)):
        while left[item]:
            first = left[item] & -left[item]
            clique, common = 1 << item | first, neighbours[item] & neighbours[first.bit_length() - 1]
            while common:
                if stop(100.0 * common.bit_count()):
                    return None
                degrees = [((common & neighbours[i]).bit_count(), (left[i] & clique).bit_count(), -i, i)
                           for i in members(common)]  # fmt: skip
                chosen = max(degrees)[-1]
                clique |= 1 << chosen
                common &= neighbours[chosen]
            cover.append(tuple(members(clique)))
            for i in cover[-1]:
                left[i] &= ~clique
    return cover


def decide_by_cp_sat(
    conflict: NDArray[np.bool_], number: int, search: Search, *, effort: float = math.inf, workers: int = 1
) -> Decision:
    """Ask CP-SAT, for no longer than the search has left or ``effort`` of CP-SAT's deterministic seconds.

    A clique is colored beforehand, and colors beyond its own are used in the order of the items (value precedence).
    Each clique of a cover of the conflicts has every color at most once, and exactly once where it has ``number``
    items, which is what refutes colorings of queen graphs.
    """

    built = _build(conflict, number, search)
    if built is None or isinstance(built, Decision):
        return built or Decision()
    model, variables = built
    value, impossible = ask(model, search, effort, workers)
    if value is None:
        return Decision(impossible=impossible)
    chosen = [next(c for c, x in choices.items() if value(x)) for choices in variables]
    return Decision(np.array(chosen, dtype=np.int64))


def ask(
    model: cp_model.CpModel, search: Search, effort: float, workers: int
) -> tuple[Callable[[cp_model.IntVar], bool] | None, bool]:
    """The values of a solution, if one is found, and whether there is none, by CP-SAT within the time left."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.random_seed = search.seed % 2**31
    solver.parameters.num_workers = 1 if search.deterministic else workers
    solver.parameters.linearization_level = 0  # a pure question of satisfiability: the relaxation only costs time
    allowed = min(effort, search.remaining()) if search.deterministic else effort
    if math.isfinite(allowed):
        solver.parameters.max_deterministic_time = allowed
    if not search.deterministic and math.isfinite(search.remaining()):
        solver.parameters.max_time_in_seconds = search.remaining()
    status = solver.solve(model)
    spent = solver.response_proto.deterministic_time
    search.spend(spent * STEPS_PER_SECOND)
    if status == cp_model.MODEL_INVALID:
        raise RuntimeError(f"CP-SAT refuses the model: {model.validate()}")
    if status == cp_model.UNKNOWN and not search.deterministic:
        early = spent < 0.9 * effort and search.remaining() > max(0.2, 0.05 * search.time_limit)
        if early:
            raise KeyboardInterrupt  # with time left, only Ctrl-C stops CP-SAT, which swallows the signal
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return solver.boolean_value if found else None, status == cp_model.INFEASIBLE


def _build(
    conflict: NDArray[np.bool_], number: int, search: Search
) -> tuple[cp_model.CpModel, list[dict[int, cp_model.IntVar]]] | Decision | None:
    """The model and the choices of each item; a decision where none is needed; None where it cannot be built."""
    from ortools.sat.python import cp_model

    clique = maximum_clique(conflict, search.counted(CLIQUE_NODES)).items
    if len(clique) > number:
        return Decision(impossible=True)
    if number * int(conflict.sum()) > LARGEST_QUESTION:
        return None
    neighbours = neighbour_sets(conflict)
    cover = clique_cover(neighbours, search.expired)
    if cover is None or number * sum(map(len, cover)) > LARGEST_MODEL:
        return None
    fixed = {item: color for color, item in enumerate(clique)}
    order = dsatur_order(conflict, clique)
    model = cp_model.CpModel()
    variables: list[dict[int, cp_model.IntVar]] = [{} for _ in order]
    for place, item in enumerate(order):
        barred = {fixed[other] for other in members(neighbours[item]) if other in fixed}
        highest = place + 1 if place >= len(clique) else 0
        allowed = [fixed[item]] if item in fixed else [c for c in range(min(number, highest)) if c not in barred]
        variables[item] = {c: model.new_bool_var(f"x{item},{c}") for c in allowed}
        model.add_exactly_one(variables[item].values())
    for group in cover:
        if search.expired(1e3 * len(group)):
            return None
        for color in range(number):
            held = [variables[item][color] for item in group if color in variables[item]]
            if len(group) == number:
                model.add_exactly_one(held)
            elif len(held) > 1:
                model.add_at_most_one(held)
    _order_colors(model, variables, order[len(clique) :], range(len(clique), number))
    return model, variables


def _order_colors(
    model: cp_model.CpModel, variables: list[dict[int, cp_model.IntVar]], order: Sequence[int], colors: range
) -> None:
    """An item takes one of the ``colors`` only after an item before it took the color before."""
    if len(order) ** 2 * len(colors) > LARGEST_MODEL:
        return
    for before, color in itertools.pairwise(colors):
        earlier: list[cp_model.IntVar] = []
        for item in order:
            if color in variables[item]:
                model.add_bool_or([*earlier, ~variables[item][color]])
            if before in variables[item]:
                earlier.append(variables[item][before])
