"""Spectral clustering of the items by how gladly they share, with conflicts repaired."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.repair import offer_repaired
from solvers.search import Search
from solvers.solver import Solver

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spectral(Solver):
    """The first eigenvectors of the normalised Laplacian, k-means on their rows (Ng, Jordan & Weiss 2001).

    Attributes:
        numbers: the numbers of classes to try; None: a doubling series up to the limit, and the limit where K binds.
        starts: random starts of k-means for each.
    """

    numbers: tuple[int, ...] | None = None
    starts: int = 4

    name: ClassVar[str] = "spectral"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem, GroupProblem)

    def __post_init__(self) -> None:
        if self.starts < 1:
            raise ValueError(f"starts must be 1 or more, got {self.starts}")
        if any(number < 1 for number in self.numbers or ()):
            raise ValueError(f"numbers of classes must be 1 or more, got {self.numbers}")

    def run(self, problem: Problem, search: Search) -> None:
        rng = np.random.default_rng(search.seed)
        size = problem.size
        change = pair_changes(problem, search)
        vectors = embed(affinity(change, problem.compatibility()))
        numbers = self.numbers or _series(size, problem.limit)
        for number in numbers:
            if search.expired() and search.best is not None:
                break
            number = min(number, size)
            rows = vectors[:, :number]
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(norms > 0, norms, 1.0)
            colors = kmeans(rows, number, rng, self.starts)
            offer_repaired(problem, Coloring(colors.tolist()).classes(), search)
        if self.numbers is None and problem.limit >= size:
            search.offer(Coloring(range(size)))


def _series(size: int, limit: int) -> list[int]:
    top = max(1, min(size, limit))
    doubling = {min(top, round(2 ** (step / 2))) for step in range(2 * size.bit_length() + 1)}
    return sorted(doubling | {top}) if limit >= size else sorted({top, max(1, top * 3 // 4), max(1, top // 2)})


def pair_changes(problem: Problem, search: Search) -> Floats:
    """``[L, L]``: what it changes to put two items in one class, all else apart; inf where they may not be."""
    size = problem.size
    change = np.full((size, size), np.inf)
    if isinstance(problem, MedoidProblem) and problem.candidates:
        alone = problem.cost_matrix.min(axis=1)
        for item in range(size):
            joint = (problem.cost_matrix + problem.cost_matrix[item]).min(axis=1)
            known = np.isfinite(joint)
            change[item, known] = joint[known] - alone[known] - alone[item]
    elif isinstance(problem, PairwiseProblem):
        change = np.where(problem.conflict, np.inf, problem.weight - problem.opening)
    elif isinstance(problem, GroupProblem):
        alone = np.array([problem.class_cost((item,)) for item in range(size)])
        for i, j in np.argwhere(np.triu(problem.compatible, 1)).tolist():
            if search.expired():
                break
            joint_cost = problem.class_cost((i, j))
            if math.isfinite(joint_cost):
                apart = float(alone[i] + alone[j])
                change[i, j] = change[j, i] = joint_cost - apart if math.isfinite(apart) else -problem.scale
    np.fill_diagonal(change, 0.0)
    return change


def affinity(change: Floats, compatible: NDArray[np.bool_]) -> Floats:
    """``exp(−change / median |change|)``, at most e⁸ so that one pair cannot rule the spectrum; 0 where forbidden."""
    allowed = np.isfinite(change) & compatible
    np.fill_diagonal(allowed, False)
    sizes = np.abs(change[allowed])
    unit = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 1.0
    return np.where(allowed, np.exp(np.clip(-np.where(allowed, change, 0.0) / unit, -30.0, 8.0)), 0.0)


def embed(similarity: Floats) -> Floats:
    """Eigenvectors of ``D^{-½} S D^{-½}``, the largest eigenvalue first, each with its largest entry positive."""
    degree = similarity.sum(axis=1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1.0)), 0.0)
    normalised = scale[:, None] * similarity * scale[None, :]
    normalised[degree == 0, degree == 0] = 1.0  # an item that goes with none is a component of its own
    vectors = np.linalg.eigh((normalised + normalised.T) / 2)[1][:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    return np.asarray(vectors * np.where(signs == 0, 1.0, signs))


def kmeans(points: Floats, number: int, rng: np.random.Generator, starts: int) -> NDArray[np.intp]:
    """The cheapest of ``starts`` runs of Lloyd's algorithm, each begun by k-means++; ``[L]`` cluster of each point."""
    best, best_cost = np.zeros(len(points), dtype=np.intp), math.inf
    for _ in range(starts):
        centers = points[[int(rng.integers(len(points)))]]
        while len(centers) < number:
            far = _distances(points, centers).min(axis=1)
            total = far.sum()
            chosen = rng.choice(len(points), p=far / total) if total > 0 else rng.integers(len(points))
            centers = np.vstack([centers, points[chosen]])
        assigned = np.full(len(points), -1, dtype=np.intp)
        for _ in range(100):
            distances = _distances(points, centers)
            nearest = distances.argmin(axis=1)
            if (nearest == assigned).all():
                break
            assigned = nearest
            for cluster in np.unique(assigned):
                centers[cluster] = points[assigned == cluster].mean(axis=0)
        cost = float(distances.min(axis=1).sum())
        if cost < best_cost:
            best, best_cost = assigned, cost
    return best


def _distances(points: Floats, centers: Floats) -> Floats:
    squares = (points**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)[None, :]
    distances: Floats = np.maximum(squares - 2 * points @ centers.T, 0.0)
    return distances
