"""OR-Library p-median instances (Beasley 1985): an undirected graph, whose shortest paths are the costs.

The first line holds the number of vertices, of edges, and p; each line after it an edge: two vertices counted from 1
and a cost. A later line for the same edge replaces the earlier one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solvers.formats.tokens import FormatError, exactly, read_lines
from solvers.medoid import MedoidProblem
from solvers.problem import Problem

MOST_VERTICES, FEW = 20_000, 2_000
"""All distances between the vertices are held in memory: more of them are not read, nor more than a few in pieces."""

ZERO = 1e-300
"""Stands for the length 0 meanwhile, because a stored zero means "no edge" to scipy; added to a length it vanishes."""


def read(path: Path) -> MedoidProblem:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import shortest_path

    lines = read_lines(path)
    head = next(lines, None)
    if head is None:
        raise FormatError(path, "the file is empty; a p-median instance begins with: vertices edges p", 1)
    vertices, edges, p = exactly(head, 3, "the first line (vertices, edges, p)")
    size = vertices.integer("the number of vertices", 1, MOST_VERTICES)
    number = edges.integer("the number of edges", 0)
    medians = p.integer("p", 1, size)
    costs: dict[tuple[int, int], float] = {}
    read_edges = 0
    for words in lines:
        if read_edges == number:
            raise words[0].error(f"the first line announces {number} edges, but there is one more")
        first, second, cost = exactly(words, 3, "an edge (vertex, vertex, cost)")
        i, j = (word.integer("a vertex", 1, size) - 1 for word in (first, second))
        length = cost.number("the cost of an edge")
        if length < 0:
            raise cost.error(f"the cost of an edge is a length and cannot be negative, got {cost.text}")
        costs[min(i, j), max(i, j)] = length
        read_edges += 1
    if read_edges < number:
        raise FormatError(path, f"the first line announces {number} edges, but the file ends after {read_edges}")
    if size > max(FEW, len(costs) + 1):
        raise FormatError(path, f"{size} vertices are announced, but {len(costs)} edges cannot connect so many")
    pairs = np.array([pair for pair in costs if pair[0] != pair[1]], dtype=np.int64).reshape(-1, 2)
    lengths = np.array([cost for (i, j), cost in costs.items() if i != j], dtype=np.float64)
    lengths[lengths == 0] = ZERO
    graph = csr_array((lengths, (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    distances = shortest_path(graph, directed=False)
    distances[distances < size * ZERO] = 0.0
    return MedoidProblem(distances, medians)


def write(problem: Problem, path: Path) -> None:
    """As a complete graph. Raises ``ValueError`` where the costs are no distances, or cannot be told by one file."""
    if not isinstance(problem, MedoidProblem) or problem.penalty is not None or problem.group is not None:
        raise ValueError("the p-median format holds medoid problems without penalties and labels; use .json or .npz")
    cost = problem.cost_matrix
    square = cost.ndim == 2 and cost.shape[0] == cost.shape[1] and np.isfinite(cost).all() and (cost >= 0).all()
    metric = square and (cost == cost.T).all() and not np.diagonal(cost).any()
    if not metric or not all((cost <= cost[:, [via]] + cost[[via], :]).all() for via in range(len(cost))):
        raise ValueError(
            "the p-median format tells costs by shortest paths, but these are not symmetric distances with zeros on "
            "the diagonal that keep the triangle inequality; use .json or .npz"
        )
    size = len(cost)
    edges = [f"{i + 1} {j + 1} {cost[i, j]:.17g}" for i in range(size) for j in range(i + 1, size)]
    path.write_text("\n".join([f"{size} {len(edges)} {problem.limit}", *edges]) + "\n")
