"""Problems as GraphML, for graph programs: pairwise problems as a graph, medoid problems as items and candidates.

A pairwise problem's nodes are its items in the order of the file; an edge carries ``weight``, or ``conflict`` = true.
The graph's own attributes are ``opening``, ``K``, and ``missing``: what a pair without an edge is, "free" (weight 0,
the default) or "conflict". So any weighted GraphML file is a problem.
"""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from solvers.formats.tokens import FormatError
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem

MOST_NODES = 10_000
"""Pairs are held as a dense matrix, which a file of few edges can make large."""


def read(path: Path) -> Problem:
    try:
        graph = nx.read_graphml(path)
    except ElementTree.ParseError as error:
        line, column = error.position
        raise FormatError(path, f"this is no XML: {error.msg}", line, column + 1) from None
    except (nx.NetworkXError, LookupError, ValueError, TypeError) as error:  # an encoding that is none, too
        raise FormatError(path, f"this is no GraphML that can be read: {error}") from None
    if graph.is_multigraph():
        raise FormatError(path, "two edges join the same nodes; a pair has one weight")
    if len(graph) > MOST_NODES:
        raise FormatError(path, f"{len(graph)} nodes are more than the {MOST_NODES} that are read; use .npz")
    try:
        kind = graph.graph.get("kind", "pairwise")
        if kind == "medoid":
            return _medoid(graph)
        if kind == "pairwise":
            return _pairwise(graph)
        raise ValueError(f"the graph's 'kind' must be pairwise or medoid, got {kind!r:.40}")
    except ValueError as error:
        raise FormatError(path, str(error)) from None


def write(problem: Problem, path: Path) -> None:
    graph: nx.Graph[Any]
    if isinstance(problem, PairwiseProblem):
        graph = nx.Graph(kind="pairwise", opening=problem.opening)
        graph.add_nodes_from(range(problem.size))
        if problem.K is not None:
            graph.graph["K"] = problem.K
        for i, j in np.argwhere(np.triu(problem.weight != 0, 1)).tolist():
            graph.add_edge(i, j, weight=float(problem.weight[i, j]))
        for i, j in np.argwhere(np.triu(problem.conflict, 1)).tolist():
            graph.add_edge(i, j, conflict=True)
    elif isinstance(problem, MedoidProblem):
        graph = nx.DiGraph(
            kind="medoid", K=json.dumps(problem.K if isinstance(problem.K, int) else list(problem.K.items()))
        )
        for item, penalty in enumerate(problem.penalties().tolist()):
            graph.add_node(f"item {item}", **({"penalty": penalty} if problem.penalty is not None else {}))
        for b in range(problem.candidates):
            graph.add_node(f"candidate {b}", **({"label": json.dumps(problem.group[b])} if problem.group else {}))
        for item, b in np.argwhere(np.isfinite(problem.cost_matrix)).tolist():
            graph.add_edge(f"item {item}", f"candidate {b}", cost=float(problem.cost_matrix[item, b]))
    else:
        raise ValueError(
            f"GraphML holds pairwise and medoid problems, not a {type(problem).__name__}; use .json or .npz"
        )
    nx.write_graphml(graph, path)


def _pairwise(graph: nx.Graph[Any]) -> PairwiseProblem:
    if graph.is_directed():
        raise ValueError("the edges of a pairwise problem have no direction, but this graph is directed")
    missing = graph.graph.get("missing", "free")
    if missing not in ("free", "conflict"):
        raise ValueError(f"the graph's 'missing' must be free or conflict, got {missing!r:.40}")
    place = {node: at for at, node in enumerate(graph)}
    weight = np.zeros((len(place), len(place)))
    conflict = np.full(weight.shape, missing == "conflict")
    for a, b, attributes in graph.edges(data=True):
        i, j = place[a], place[b]
        conflict[i, j] = conflict[j, i] = bool(attributes.get("conflict", False))
        weight[i, j] = weight[j, i] = _number(attributes.get("weight", 0.0), f"the weight of edge {a!r}–{b!r}")
    np.fill_diagonal(conflict, False)
    K = graph.graph.get("K")
    return PairwiseProblem(weight, conflict, _number(graph.graph.get("opening", 0.0), "the graph's 'opening'"), K)


def _medoid(graph: nx.Graph[Any]) -> MedoidProblem:
    items = {node: at for at, node in enumerate(n for n in graph if str(n).startswith("item "))}
    candidates = {node: at for at, node in enumerate(n for n in graph if str(n).startswith("candidate "))}
    if len(items) + len(candidates) < len(graph):
        stray = next(n for n in graph if n not in items and n not in candidates)
        raise ValueError(f"node {stray!r} is neither an 'item …' nor a 'candidate …'")
    cost = np.full((len(items), len(candidates)), math.inf)
    for a, b, attributes in graph.edges(data=True):
        if a not in items or b not in candidates:
            raise ValueError(f"edge {a!r} → {b!r} must go from an item to a candidate")
        cost[items[a], candidates[b]] = _number(attributes.get("cost"), f"the cost of edge {a!r} → {b!r}")
    penalties = [graph.nodes[node].get("penalty") for node in items]
    penalty = None if None in penalties else [_number(p, "a penalty") for p in penalties]
    try:
        K = json.loads(str(graph.graph.get("K")))
        labels = [json.loads(graph.nodes[node]["label"]) for node in candidates] if isinstance(K, list) else None
        limits = dict(K) if isinstance(K, list) else K
    except (ValueError, KeyError, TypeError):
        raise ValueError("the graph's 'K' or a candidate's 'label' is not what this program writes") from None
    return MedoidProblem(cost, limits, penalty=penalty or None, group=labels)


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number, got {value!r:.40}")
    return float(value)
