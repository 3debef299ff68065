"""DIMACS graph coloring instances (Johnson & Trick 1996): ``p edge n m``, then an ``e i j`` for each edge.

Read as the proper coloring problem: no weights, opening a color costs 1. Comment lines begin with ``c``; lines that
some collections add for vertices (``n``), dimensions (``d``), values (``v``) and parameters (``x``) say nothing about
colors and are passed over, and so are loops. An edge may be listed twice, in either direction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from solvers.formats.tokens import FormatError, Word, exactly, read_lines
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem

MOST_VERTICES = 30_000
"""Conflicts are held as a dense matrix; more vertices are not read."""


def read(path: Path) -> PairwiseProblem:
    conflict, announced, edges = None, 0, 0
    words: list[Word] = []
    for words in read_lines(path):
        kind = words[0].text
        if kind in ("c", "n", "d", "v", "x") or kind.startswith("c"):
            continue
        if kind == "p":
            if conflict is not None:
                raise words[0].error("a second problem line; a file holds one graph")
            _, form, vertices, number = exactly(words, 4, "the problem line (p edge vertices edges)")
            if form.text not in ("edge", "edges", "col"):
                raise form.error(f"the problem line must say edge or col, got {form.text[:40]!r}")
            size = vertices.integer("the number of vertices", 0, MOST_VERTICES)
            announced = number.integer("the number of edges", 0)
            conflict = np.zeros((size, size), dtype=bool)
        elif kind == "e":
            if conflict is None:
                raise words[0].error("an edge before the problem line; begin with: p edge vertices edges")
            _, first, second = exactly(words, 3, "an edge (e vertex vertex)")
            i, j = (word.integer("a vertex", 1, len(conflict)) - 1 for word in (first, second))
            conflict[i, j] = conflict[j, i] = i != j
            edges += 1
        else:
            raise words[0].error(f"lines begin with c, p, e or n, not with {kind[:40]!r}")
    if conflict is None:
        raise FormatError(path, "no problem line; a DIMACS file holds: p edge vertices edges", 1)
    distinct = int(conflict.sum()) // 2
    # Collections differ in whether m counts each edge once or twice, and whether repeated lines count.
    if announced not in (edges, distinct, 2 * distinct) and edges < announced:
        end = words[-1]
        raise end.error(f"the problem line announces {announced} edges, but the file ends after {edges}")
    return PairwiseProblem(np.zeros(conflict.shape), conflict, opening=1)


def write(problem: Problem, path: Path) -> None:
    """Raises ``ValueError`` for anything but the conflicts of a proper coloring problem without a limit."""
    if (
        not isinstance(problem, PairwiseProblem)
        or not problem.weightless
        or problem.opening != 1
        or problem.K is not None
    ):
        raise ValueError("DIMACS .col holds conflicts alone: no weights, opening 1, no K; use .json, .npz or .graphml")
    edges = np.argwhere(np.triu(problem.conflict, 1)) + 1
    lines = [f"p edge {problem.size} {len(edges)}", *(f"e {i} {j}" for i, j in edges.tolist())]
    path.write_text("\n".join(lines) + "\n")
