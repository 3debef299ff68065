"""Proper colorings that a symmetry of the conflicts maps to themselves: far fewer to search through than all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.cliques import neighbour_sets
from solvers.coloring_model import LARGEST_MODEL, ask, clique_cover
from solvers.pairwise import PairwiseProblem
from solvers.palette import Decision
from solvers.search import Search
from solvers.symmetry import automorphisms

MAX_NODES = 1_000
LARGEST_GRAPH = 600
LARGEST_ORDER = 6

Permutation = tuple[int, ...]


def find_symmetric_coloring(
    conflict: NDArray[np.bool_], number: int, search: Search, *, effort: float = math.inf, workers: int = 1
) -> Decision:
    """Look for a coloring with ``number`` colors that some symmetry maps to itself, its colors permuted in cycles.

    CP-SAT has one variable for each orbit of item and color. That there is none says nothing of other colorings.
    (Vasquez 2004 colored queen graphs up to 32 × 32 by such classes.)
    """
    cover = clique_cover(neighbour_sets(conflict), search.expired) if len(conflict) <= LARGEST_GRAPH else None
    if cover is None or number * sum(map(len, cover)) > LARGEST_MODEL:
        return Decision()
    for symmetry in wide_symmetries(conflict):
        if search.expired():
            break
        decision = _symmetric(conflict, number, symmetry, cover, search, effort, workers)
        if decision.colors is not None:
            return decision
    return Decision()


def wide_symmetries(conflict: NDArray[np.bool_]) -> list[Permutation]:
    """One symmetry of each kind that moves at least half of the items, of the highest order first.

    Of the generators of Aut, their products two by two, and the powers of these; a kind is an order and the number of
    items that stay where they are.
    """
    size = len(conflict)
    generators = automorphisms(PairwiseProblem(np.zeros((size, size)), conflict), max_nodes=MAX_NODES).generators[:8]
    pool = [tuple(g) for g in generators] + [_product(g, h) for g in generators for h in generators]
    kinds: dict[tuple[int, int], Permutation] = {}
    for symmetry in pool:
        power = symmetry
        while power != tuple(range(size)):
            order, fixed = _order(power), sum(i == image for i, image in enumerate(power))
            if order <= LARGEST_ORDER and 2 * fixed <= size:
                kinds.setdefault((order, fixed), power)
            power = _product(power, symmetry)
            if order > 60:
                break
    return [kinds[kind] for kind in sorted(kinds, key=lambda kind: (-kind[0], kind[1]))]


def _symmetric(
    conflict: NDArray[np.bool_],
    number: int,
    symmetry: Permutation,
    cover: Sequence[Sequence[int]],
    search: Search,
    effort: float,
    workers: int,
) -> Decision:
    from ortools.sat.python import cp_model

    order = _order(symmetry)
    fixed = number % order
    if fixed == 0 and any(i == image for i, image in enumerate(symmetry)):
        fixed = order  # an item that stays needs a color that stays
    if fixed > number:
        return Decision()
    follower = [*range(fixed), *(c + 1 if (c - fixed + 1) % order else c + 1 - order for c in range(fixed, number))]
    model = cp_model.CpModel()
    variables: dict[tuple[int, int], cp_model.IntVar] = {}
    for item in range(len(conflict)):
        for color in range(number):
            if (item, color) in variables:
                continue
            variable = model.new_bool_var(f"x{item},{color}")
            at = (item, color)
            while at not in variables:
                variables[at] = variable
                at = (symmetry[at[0]], follower[at[1]])
    for item in range(len(conflict)):
        model.add_exactly_one(variables[item, color] for color in range(number))
    for clique in cover:
        for color in range(number):
            held = [variables[item, color] for item in clique]
            times = Counter(variable.index for variable in held)
            for variable in held:
                if times[variable.index] > 1:
                    model.add(variable == 0)  # its orbit holds two items in conflict
            once = [variable for variable in held if times[variable.index] == 1]
            if len(clique) == number:
                model.add_exactly_one(once)
            else:
                model.add_at_most_one(once)
    value, _ = ask(model, search, effort, workers)
    if value is None:
        return Decision()
    return Decision(
        np.array([next(c for c in range(number) if value(variables[i, c])) for i in range(len(conflict))], np.int64)
    )


def _product(first: Sequence[int], second: Sequence[int]) -> Permutation:
    return tuple(second[image] for image in first)


def _order(permutation: Permutation) -> int:
    """The least common multiple of its cycles' lengths."""
    order, seen = 1, set[int]()
    for start in range(len(permutation)):
        length, at = 0, start
        while at not in seen:
            seen.add(at)
            at = permutation[at]
            length += 1
        order = math.lcm(order, max(length, 1))
    return order
