"""The dumbest possible oracle: every partition, priced by the problem."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from solvers import Coloring, MedoidProblem, Problem


def partitions(size: int) -> Iterator[Coloring]:
    """All partitions of ``size`` items, by recursion on the last."""
    if size == 0:
        yield Coloring([])
        return
    for smaller in partitions(size - 1):
        for color in range(smaller.number_of_colors + 1):
            yield Coloring([*smaller, color])


def optimum(problem: Problem) -> float:
    return min((problem.cost(coloring) for coloring in partitions(problem.size)), default=math.inf)


def best_open_set(problem: MedoidProblem) -> float:
    """The optimum of a medoid problem by trying every set of candidates that the limits allow."""
    best = math.inf
    for number in range(min(problem.candidates, int(problem.limits.sum())) + 1):
        for opened in itertools.combinations(range(problem.candidates), number):
            taken = np.bincount(problem.label[list(opened)], minlength=len(problem.limits))
            if (taken <= problem.limits).all():
                costs = np.column_stack([problem.cost_matrix[:, list(opened)], problem.penalties()])
                best = min(best, float(costs.min(axis=1).sum()))
    return best
