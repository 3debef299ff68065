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

MOST_VERTICES, FEW = 20_000, 2_000
"""Conflicts are held as a dense matrix: more vertices are not read, nor more than a few that hardly have edges."""


def read(path: Path) -> PairwiseProblem:
    size, announced = -1, 0
    edges: list[tuple[int, int]] = []
    words: list[Word] = []
    for words in read_lines(path):
        kind = words[0].text
        if kind in ("c", "n", "d", "v", "x") or kind.startswith("c"):
            continue
        if kind == "p":
            if size >= 0:
                raise words[0].error("a second problem line; a file holds one graph")
            _, form, vertices, number = exactly(words, 4, "the problem line (p edge vertices edges)")
            if form.text not in ("edge", "edges", "col"):
                raise form.error(f"the problem line must say edge or col, got {form.text[:40]!r}")
            size = vertices.integer("the number of vertices", 0, MOST_VERTICES)
            announced = number.integer("the number of edges", 0)
        elif kind == "e":
            if size < 0:
                raise words[0].error("an edge before the problem line; begin with: p edge vertices edges")
            _, first, second = exactly(words, 3, "an edge (e vertex vertex)")
            edges.append((first.integer("a vertex", 1, size) - 1, second.integer("a vertex", 1, size) - 1))
        else:
            raise words[0].error(f"lines begin with c, p, e or n, not with {kind[:40]!r}")
    if size < 0:
        raise FormatError(path, "no problem line; a DIMACS file holds: p edge vertices edges", 1)
    if size > max(FEW, 2 * len(edges)):
        raise FormatError(path, f"{size} vertices are announced, but the {len(edges)} edges do not reach half of them")
    conflict = np.zeros((size, size), dtype=bool)
    if edges:
        i, j = np.array(edges).T
        conflict[i, j] = conflict[j, i] = i != j
    distinct = int(conflict.sum()) // 2
    # Collections differ in whether m counts each edge once or twice, and whether repeated lines count.
    if announced not in (len(edges), distinct, 2 * distinct) and len(edges) < announced:
        end = words[-1]
        raise end.error(f"the problem line announces {announced} edges, but the file ends after {len(edges)}")
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
