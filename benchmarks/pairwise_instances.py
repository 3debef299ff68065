"""Clique partitioning instances to measure solvers on, each fixed by its seed.

    python -m benchmarks.pairwise_instances [--time-limit SECONDS] [NAMES ...]

solves some of each kind with the solver that ``auto`` picks, or those named, and prints a line for each with the CPU
time. Weights are whole numbers, so that an optimum is proven to the last unit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from solvers import PairwiseProblem, certify, solve

Floats = NDArray[np.float64]


def signed(size: int, K: int, seed: int = 0, *, noise: float = 0.6, unit: float = 100.0) -> PairwiseProblem:
    """Planted classes of points in four dimensions; a pair costs its distance less three quarters of the median's."""
    distance = _distances(size, K, seed, noise, unit)
    shift = 0.75 * float(np.median(distance[np.triu_indices(size, 1)]))
    return PairwiseProblem(distance - np.rint(shift), K=K)


def repelling(
    size: int, K: int, seed: int = 0, *, noise: float = 0.6, conflicts: float = 0.0, unit: float = 100.0
) -> PairwiseProblem:
    """The same points, a pair costs its distance: nothing attracts, only K keeps the items together."""
    rng = np.random.default_rng([seed, 1])
    conflict = np.triu(rng.random((size, size)) < conflicts, 1)
    return PairwiseProblem(_distances(size, K, seed, noise, unit), conflict | conflict.T, K=K)


def gaussian(size: int, seed: int = 0, *, K: int | None = None, unit: float = 100.0) -> PairwiseProblem:
    """Independent weights of both signs, without any structure: the relaxation is weak here."""
    upper = np.triu(np.rint(unit * np.random.default_rng(seed).normal(size=(size, size))), 1)
    return PairwiseProblem(upper + upper.T, K=K)


def modularity(graph: nx.Graph[int]) -> PairwiseProblem:
    """``deg(u) deg(v) − 2m [uv is an edge]``: the best partition has the greatest modularity (Brandes et al. 2008)."""
    degree = np.array([number for _, number in graph.degree()], dtype=np.float64)
    adjacent = np.zeros((len(degree), len(degree)))
    number = {node: at for at, node in enumerate(graph)}
    for u, v in graph.edges:
        adjacent[number[u], number[v]] = adjacent[number[v], number[u]] = 1.0
    return PairwiseProblem(np.outer(degree, degree) - 2.0 * graph.number_of_edges() * adjacent)


def communities(sizes: list[int], within: float, across: float, seed: int = 0) -> PairwiseProblem:
    """The modularity of a random graph with planted communities."""
    return modularity(nx.random_partition_graph(sizes, within, across, seed=seed))


def _distances(size: int, K: int, seed: int, noise: float, unit: float) -> Floats:
    rng = np.random.default_rng(seed)
    points = 2.0 * rng.normal(size=(K, 4))[rng.integers(0, K, size)] + noise * rng.normal(size=(size, 4))
    squares = ((points[:, None] - points[None, :]) ** 2).sum(axis=-1)
    return np.asarray(np.rint(unit * np.sqrt(squares)))


INSTANCES: dict[str, Callable[[], PairwiseProblem]] = {
    "signed-60-8": lambda: signed(60, 8),
    "signed-100-8": lambda: signed(100, 8),
    "signed-100-8-noisy": lambda: signed(100, 8, noise=1.5),
    "repelling-30-4": lambda: repelling(30, 4),
    "repelling-40-4": lambda: repelling(40, 4),
    "repelling-60-4": lambda: repelling(60, 4),
    "repelling-60-12": lambda: repelling(60, 12),
    "repelling-40-8-conflicts": lambda: repelling(40, 8, conflicts=0.1),
    "gaussian-25": lambda: gaussian(25),
    "gaussian-25-3": lambda: gaussian(25, K=3),
    "karate": lambda: modularity(nx.karate_club_graph()),
    "miserables": lambda: modularity(nx.les_miserables_graph()),
    "communities-60": lambda: communities([20, 20, 20], 0.4, 0.05),
    "communities-100": lambda: communities([25] * 4, 0.5, 0.05),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"all by default: {', '.join(INSTANCES)}")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each")
    parser.add_argument("--solver", default="auto")
    arguments = parser.parse_args()
    print(f"{'instance':26s} {'L':>4s} {'K':>4s} {'solver':16s} {'status':10s} {'cost':>10s} {'gap':>8s} {'CPU s':>7s}")
    unknown = sorted(set(arguments.names) - set(INSTANCES))
    if unknown:
        parser.error(f"there is no instance {unknown[0]!r}; there are {', '.join(INSTANCES)}")
    for name in arguments.names or INSTANCES:
        problem, begun = INSTANCES[name](), time.process_time()
        solution = solve(problem, arguments.solver, time_limit=arguments.time_limit)
        taken, verdict = time.process_time() - begun, certify(problem, solution)
        print(
            f"{name:26s} {problem.size:4d} {problem.limit:4d} {solution.solver:16s} {solution.status:10s} "
            f"{solution.cost:10.0f} {solution.gap:8.1e} {taken:7.2f} {'' if verdict.sound else verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
