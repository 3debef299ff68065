"""What solvers race on: published instances with known answers, and made ones that need no download."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from benchmarks import group_instances, medoid_instances, pairwise_instances
from solvers import GroupProblem, PairwiseProblem, Problem
from solvers.formats import read

FAMILIES = {
    "pmed": "p-median, OR-Library",
    "coloring": "graph coloring, DIMACS",
    "modularity": "modularity",
    "medoid": "p-median, made",
    "pairs": "clique partitioning, made",
    "graphs": "graph coloring, made",
    "groups": "set functions, made",
}
"""Families of instances and their titles, in the order of the report."""

MEDOID = ("auto", "greedy", "kmedoids", "highs_milp", "plain_cp_sat")
PAIRWISE = ("auto", "tabu", "greedy", "spectral", "plain_cp_sat", "sklearn_spectral")
SIMPLE = ("auto", "local_search", "greedy", "spectral", "adjacent")
RACERS = {
    "pmed": MEDOID,
    "coloring": ("auto", "plain_cp_sat", "networkx_greedy"),
    "modularity": PAIRWISE,
    "medoid": MEDOID,
    "pairs": PAIRWISE,
    "graphs": (*SIMPLE, "plain_cp_sat", "networkx_greedy"),
    "groups": (*SIMPLE, "runs"),
}
"""Who races on a family unless others are named: what is taken when nobody says, the habits, and the peers."""

KARATE = -5714.0
"""Modularity of Zachary's karate club, unnormalised (Brandes et al. 2008), as a cost."""


@dataclass(frozen=True)
class Instance:
    """One instance: how to get it, the best cost known from elsewhere (None: not known), whether smoke tests use it."""

    name: str
    family: str
    load: Callable[[], Problem]
    best: float | None = None
    small: bool = False


def instances(data: Path | None) -> Iterator[Instance]:
    """All instances, those below ``data`` (folders pmed, dimacs, modularity; each may be missing) first."""
    if data is not None:
        for name, best in _answers(data / "pmed" / "optima.csv", "optimum"):
            yield _stored(data / "pmed", name, "pmed", best)
        for name, best in _answers(data / "dimacs" / "best_known.csv", "colors"):
            yield _stored(data / "dimacs", name, "coloring", best)
        for path in sorted((data / "modularity").glob("*.txt")):
            yield Instance(path.stem, "modularity", partial(read, path), KARATE if path.stem == "karate" else None)
    yield from _medoids()
    for name, make in pairwise_instances.INSTANCES.items():
        yield Instance(f"{name}-club" if name == "karate" else name, "pairs", make, small=name == "gaussian-25-3")
    yield from _graphs()
    for number in range(12):
        yield Instance(f"group-{number}", "groups", partial(_group, number), small=number == 0)


def _answers(path: Path, column: str) -> Iterator[tuple[str, float]]:
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield row["instance"], float(row[column])


def _stored(folder: Path, name: str, family: str, best: float) -> Instance:
    return Instance(name, family, partial(_found, folder, name), best)


def _found(folder: Path, name: str) -> Problem:
    files = sorted(folder.glob(f"{name}.*"))
    if not files:
        raise FileNotFoundError(f"{folder} lists an instance {name!r} but has no file of it; restore it or its line")
    return read(files[0])


def _medoids() -> Iterator[Instance]:
    """Cost graphs like those of networks, points in a plane, and costs without any geometry."""
    for size, K in ((28, 6), (112, 14), (256, 24), (512, 40), (1000, 80)):
        yield Instance(
            f"layers-{size}", "medoid", partial(medoid_instances.structured, size, K, seed=1), small=size == 28
        )
    for size, K in ((100, 10), (300, 20)):
        yield Instance(f"plane-{size}", "medoid", partial(medoid_instances.unstructured, size, K, seed=1))
        yield Instance(f"uniform-{size}", "medoid", partial(medoid_instances.uniform, size, K, seed=1))


def _graphs() -> Iterator[Instance]:
    """Graphs hard for one reason each: no triangles (Mycielski), many symmetries (queens), neither (random)."""
    for order, small in ((4, True), (5, False), (6, False)):
        yield Instance(f"mycielski-{order}", "graphs", partial(mycielski, order), order, small)
    for side, best, small in ((5, 5.0, True), (6, 7.0, False), (7, 7.0, False)):
        yield Instance(f"queens-{side}", "graphs", partial(queens, side), best, small)
    for nodes, chance in ((60, 0.5), (80, 0.1)):
        yield Instance(f"random-{nodes}-{chance}", "graphs", partial(random_graph, nodes, chance, seed=7))


def _group(number: int) -> GroupProblem:
    return group_instances.instance(number)[1]


def coloring(adjacent: NDArray[np.bool_]) -> PairwiseProblem:
    """The problem of coloring a graph with the fewest colors."""
    return PairwiseProblem(np.zeros(adjacent.shape), conflict=adjacent, opening=1.0)


def mycielski(order: int) -> PairwiseProblem:
    """The triangle-free graph of chromatic number ``order`` (Mycielski 1955)."""
    graph: nx.Graph[int] = nx.mycielski_graph(order)
    return coloring(nx.to_numpy_array(graph) > 0)


def queens(side: int) -> PairwiseProblem:
    """The squares of a chess board, joined where one queen attacks the other."""
    squares = np.indices((side, side)).reshape(2, -1)
    apart = np.abs(squares[:, :, None] - squares[:, None, :])
    attacks = (apart[0] == 0) | (apart[1] == 0) | (apart[0] == apart[1])
    np.fill_diagonal(attacks, False)
    return coloring(attacks)


def random_graph(nodes: int, chance: float, seed: int) -> PairwiseProblem:
    """Every pair joined with the same chance (Erdős–Rényi)."""
    upper = np.triu(np.random.default_rng(seed).random((nodes, nodes)) < chance, 1)
    return coloring(upper | upper.T)
