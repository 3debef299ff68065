"""The CP-SAT model of pairwise problems in which each class is named by its first item."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from solvers.cliques import greedy_clique
from solvers.coloring import Coloring
from solvers.cp_models import Built, Values
from solvers.dsatur import dsatur_order
from solvers.pairwise import PairwiseProblem
from solvers.scaling import Scaling
from solvers.search import Search


def representative_model(problem: PairwiseProblem, search: Search) -> Built:
    """``r[p, q]``: item p is the first of the class of q, p ≤ q in a fixed order (Campêlo, Corrêa & Frota 2004).

    No two colorings differ by the names of colors only. Conflicts enter as cliques that cover them: of a clique's items
    one at most has a given first item, and that must be first itself. The objective is told the bound known.
    """
    from ortools.sat.python import cp_model

    size, weight, opening = problem.size, problem.weight, problem.opening
    order = dsatur_order(problem.conflict, greedy_clique(problem.conflict) if problem.conflict.any() else [])
    apart = problem.conflict[np.ix_(order, order)]
    pairs = [(p, q) for q in range(size) for p in range(q) if weight[order[p], order[q]]]
    values = np.array([weight[order[p], order[q]] for p, q in pairs], dtype=np.float64)
    scaling = Scaling.for_total(float(np.abs(values).sum()) + abs(opening) * size)
    error = float(scaling.errors(values).sum() + scaling.errors(np.array([opening]))[0] * problem.limit)

    model = cp_model.CpModel()
    first = {
        (p, q): model.new_bool_var(f"r{order[p]},{order[q]}")
        for q in range(size)
        for p in range(q + 1)
        if not apart[p, q]
    }
    for q in range(size):
        model.add_exactly_one([first[p, q] for p in range(q + 1) if (p, q) in first])
        for p in range(q):
            if (p, q) in first:
                model.add_implication(first[p, q], first[p, p])
    for clique in clique_cover(apart):
        for p in range(clique[-1]):
            members = [first[p, q] for q in clique if q > p and (p, q) in first]
            if len(members) > 1:
                model.add(cp_model.LinearExpr.sum(members) <= first[p, p])
    names = [first[p, p] for p in range(size)]
    if problem.limit < size:
        model.add(cp_model.LinearExpr.sum(names) <= problem.limit)
    same = [model.new_bool_var(f"same{order[p]},{order[q]}") for p, q in pairs]
    for (p, q), together in zip(pairs, same, strict=True):
        for k in range(q + 1):
            ours, theirs = first.get((k, p)) if k <= p else None, first.get((k, q))
            if ours is not None and theirs is not None:
                model.add_bool_or([~ours, ~theirs, together])
                model.add_bool_or([~together, ~ours, theirs])
                model.add_bool_or([~together, ours, ~theirs])
            elif ours is not None:
                model.add_implication(ours, ~together)
            elif theirs is not None:
                model.add_implication(theirs, ~together)
    integers = [*scaling.integers(values).tolist(), *[int(scaling.integers(np.array([opening]))[0])] * size]
    total = cp_model.LinearExpr.weighted_sum([*same, *names], integers)
    known = (search.bound - error) * scaling.factor
    if math.isfinite(known):
        model.add(total >= math.floor(known - 1e-9 * abs(known)))
    model.minimize(total)
    if search.best is not None:
        classes = Coloring([search.best[item] for item in order]).classes()
        start = {q: members[0] for members in classes for q in members}
        for (p, q), variable in first.items():
            model.add_hint(variable, start[q] == p)

    def decode(value: Values) -> Coloring:
        colors = [0] * size
        for (p, q), variable in first.items():
            if value(variable):
                colors[order[q]] = p
        return Coloring(colors)

    return Built(model, decode, scaling, 0.0, error, order=tuple(order))


def clique_cover(conflict: NDArray[np.bool_]) -> list[list[int]]:
    """Cliques, each ascending, that hold every conflict between them: grown greedily over conflicts not covered yet."""
    left = np.triu(conflict, 1)
    left = left | left.T
    cliques = []
    while left.any():
        i = int(left.sum(axis=1).argmax())
        clique, common = [i], conflict[i].copy()
        while common.any():
            members = np.flatnonzero(common)
            fresh = left[members][:, clique].sum(axis=1) + 1e-3 * conflict[np.ix_(members, members)].sum(axis=1)
            chosen = int(members[fresh.argmax()])
            clique.append(chosen)
            common &= conflict[chosen]
        clique.sort()
        left[np.ix_(np.array(clique), np.array(clique))] = False
        cliques.append(clique)
    return cliques
