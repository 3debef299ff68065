"""From a grouping that may not be allowed to a coloring near it that is, where one is easily found."""

from __future__ import annotations

import math
from collections.abc import Sequence

from solvers.agglomerative import merge_groups, merge_pairwise
from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.medoid_search import greedy_medoids
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search


def offer_repaired(problem: Problem, classes: Sequence[Sequence[int]], search: Search) -> None:
    """Offer these classes; where they are not allowed, split what may not be together and join what K forbids apart."""
    coloring = Coloring.from_classes(classes, problem.size)
    if math.isfinite(search.offer(coloring)):
        return
    pieces = [piece for members in coloring.classes() for piece in split(problem, members)]
    coloring = Coloring.from_classes(pieces, problem.size)
    if math.isfinite(search.offer(coloring)):
        return
    if isinstance(problem, MedoidProblem):
        wanted = [problem.cost_matrix[list(piece)].sum(axis=0) for piece in pieces] if problem.candidates else []
        greedy_medoids(problem, search, among={int(costs.argmin()) for costs in wanted})
    elif isinstance(problem, PairwiseProblem):
        search.offer(merge_pairwise(problem, coloring))
    elif isinstance(problem, GroupProblem):
        search.offer(merge_groups(problem, search.expired, coloring))


def split(problem: Problem, members: Sequence[int]) -> list[list[int]]:
    """First fit: each item joins the first piece that stays allowed with it, or begins a new one."""
    if math.isfinite(problem.class_cost(members)):
        return [list(members)]
    pairs = problem.compatibility()
    pieces: list[list[int]] = []
    for item in members:
        for piece in pieces:
            if pairs[item, piece].all() and math.isfinite(problem.class_cost([*piece, item])):
                piece.append(item)
                break
        else:
            pieces.append([item])
    return pieces
