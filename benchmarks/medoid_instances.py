"""p-median instances to measure solvers on, each fixed by its seed.

    python -m benchmarks.medoid_instances DIRECTORY

writes a few of each kind as npz files. Costs are whole numbers, so that an optimum is proven to the last unit.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers import MedoidProblem, SparseMedoidProblem, formats

Floats = NDArray[np.float64]

TYPES = 7
SHAPES = (0, 1, 1, 0, 2, 2, 3)
"""Of the matrices of a transformer block: queries and outputs share a shape, keys and values, gate and up; down."""


def structured(size: int, K: int, seed: int = 0, *, noise: float = 0.25, unit: float = 1000.0) -> MedoidProblem:
    """Layers of a network: blocks of seven matrices, asymmetric costs, pairs of unequal shapes forbidden.

    Each type of matrix walks through a latent space from block to block, with a leap now and then; layer ℓ in the basis
    of b loses what their distance makes it lose, which saturates, times the energy of ℓ and the quality of b.
    """
    rng = np.random.default_rng(seed)
    kind, block = np.arange(size) % TYPES, np.arange(size) // TYPES
    shape, blocks, axes = np.array(SHAPES)[kind], int(block.max(initial=0)) + 1, 6
    leaps = np.where(rng.random((blocks, TYPES, 1)) > 0.12, 0.35, 1.5)
    paths = np.cumsum(rng.normal(size=(blocks, TYPES, axes)) * leaps, axis=0) + rng.normal(size=(TYPES, axes))
    places = paths[block, kind] + noise * rng.normal(size=(size, axes))
    energy, quality = np.exp(0.5 * rng.normal(size=size)), 1 + 0.4 * rng.random(size)
    cost = 1 - np.exp(-squared_distances(places, places) / (2 * axes))
    cost *= energy[:, None] * quality[None, :]
    cost *= 1 + 0.1 * rng.random((size, size))
    np.fill_diagonal(cost, 0.02 * energy * rng.random(size))
    cost = np.rint(unit * cost)
    cost[shape[:, None] != shape[None, :]] = math.inf
    return MedoidProblem(cost, K)


def unstructured(size: int, K: int, seed: int = 0, *, axes: int = 2) -> MedoidProblem:
    """Points drawn evenly from a cube, each a candidate for all; the cost is the rounded distance."""
    points = np.random.default_rng(seed).random((size, axes))
    return MedoidProblem(np.rint(1e4 * np.sqrt(squared_distances(points, points))), K)


def uniform(size: int, K: int, seed: int = 0) -> MedoidProblem:
    """Costs drawn one by one, without any geometry: the relaxation is weak here."""
    return MedoidProblem(np.random.default_rng(seed).integers(1, 1001, (size, size)), K)


def graph(size: int, K: int, seed: int = 0) -> MedoidProblem:
    """As the OR-Library's instances were drawn: shortest paths in a random graph of n²/50 edges of length 1 to 100."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import shortest_path

    rng = np.random.default_rng(seed)
    order = rng.permutation(size)
    first, second = order[:-1], order[1:]  # a path makes it connected
    more = max(size * size // 50 - len(first), 0)
    first, second = np.append(first, rng.integers(size, size=more)), np.append(second, rng.integers(size, size=more))
    kept = np.unique(np.sort(np.column_stack([first, second])[first != second]), axis=0)
    lengths = rng.integers(1, 101, len(kept)).astype(np.float64)
    edges = csr_array((lengths, (kept[:, 0], kept[:, 1])), shape=(size, size))
    return MedoidProblem(shortest_path(edges, directed=False), K)


def clustered_points(size: int, seed: int = 0, *, axes: int = 2, clusters: int | None = None) -> Floats:
    """``[size, axes]`` points around centres of unequal weight and spread."""
    rng = np.random.default_rng(seed)
    number = max(1, size // 100) if clusters is None else clusters
    centres, spread = rng.random((number, axes)), 0.3 * rng.random(number) / number ** (1 / axes)
    weight = rng.random(number) + 0.1
    chosen = rng.choice(number, size, p=weight / weight.sum())
    points: Floats = centres[chosen] + spread[chosen, None] * rng.normal(size=(size, axes))
    return points


def sparse(points: Floats, K: int, *, neighbours: int = 50, farther: float = 2.0) -> SparseMedoidProblem:
    """Points that may each take one of their nearest ``neighbours``, itself among them, at the rounded distance.

    An item left out pays ``farther`` times the distance of the last of them.
    """
    from scipy.spatial import KDTree

    distances, nearest = KDTree(points).query(points, k=min(neighbours, len(points)))
    costs = np.rint(1e6 * np.asarray(distances).reshape(len(points), -1))
    starts = np.arange(len(points) + 1) * costs.shape[1]
    penalty = np.rint(farther * costs[:, -1]) + 1
    return SparseMedoidProblem(
        starts, np.asarray(nearest).ravel(), costs.ravel(), candidates=len(points), K=K, penalty=penalty
    )


def squared_distances(first: Floats, second: Floats) -> Floats:
    """``[n, m]`` between the rows of two matrices."""
    squares: Floats = (first**2).sum(axis=1)[:, None] - 2 * first @ second.T + (second**2).sum(axis=1)[None, :]
    np.maximum(squares, 0.0, out=squares)
    return squares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for seed in range(3):
        for size, K in ((256, 32), (512, 40), (1000, 80)):
            formats.write(structured(size, K, seed), directory / f"structured-{size}-{K}-{seed}.npz")
            formats.write(unstructured(size, K, seed), directory / f"unstructured-{size}-{K}-{seed}.npz")
        formats.write(uniform(200, 20, seed), directory / f"uniform-200-20-{seed}.npz")
        formats.write(graph(800, 10, seed), directory / f"graph-800-10-{seed}.npz")


if __name__ == "__main__":
    main()
