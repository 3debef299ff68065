"""The dumbest possible oracle: every partition, priced by the problem."""

import math
from collections.abc import Iterator

from solvers import Coloring, Problem


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
