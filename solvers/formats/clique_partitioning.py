"""Clique partitioning instances: the number of items, then the upper triangle of the gains of joining, row by row.

Read as weights, which are what joining costs: minus the gain.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers.formats.tokens import FormatError, exactly, read_lines
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem


def read(path: Path) -> PairwiseProblem:
    lines = read_lines(path)
    head = next(lines, None)
    if head is None:
        raise FormatError(path, "the file is empty; it begins with the number of items", 1)
    size = exactly(head, 1, "the first line (the number of items)")[0].integer("the number of items", 1)
    rows: list[NDArray[np.float64]] = []
    for words in lines:
        if len(rows) == size - 1:
            raise words[0].error(f"{size} items have {size - 1} rows of gains, but there is one more")
        exactly(words, size - 1 - len(rows), f"row {len(rows) + 1} of the gains")
        rows.append(-np.array([word.number("a gain") for word in words]))
    if len(rows) < size - 1:
        raise FormatError(path, f"{size} items have {size - 1} rows of gains, but the file ends after {len(rows)}")
    weight = np.zeros((size, size))  # no more than twice what the file holds
    weight[np.triu_indices(size, 1)] = np.concatenate(rows) if rows else []
    return PairwiseProblem(weight + weight.T)


def write(problem: Problem, path: Path) -> None:
    """Raises ``ValueError`` where the problem has conflicts, an opening price or a limit, which have no place here."""
    if (
        not isinstance(problem, PairwiseProblem)
        or problem.conflict.any()
        or problem.opening != 0
        or problem.K is not None
        or problem.size == 0
    ):
        raise ValueError("the clique partitioning format holds weights alone: no conflicts, opening 0, no K; use .json")
    rows = [" ".join(f"{-w:.17g}" for w in problem.weight[i, i + 1 :]) for i in range(problem.size - 1)]
    path.write_text("\n".join([str(problem.size), *rows]) + "\n")
