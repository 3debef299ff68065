"""Aut(problem): the permutations of items that the costs cannot tell apart, exactly as the floats stand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.refinement import Ints, Words, edge_words, individualise, refine

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class Automorphisms:
    """Generators of the group of a problem's symmetries, every one of them checked against the costs.

    A generator ``g`` sends item i to ``g[i]``. For a medoid problem the candidates move too: ``candidate_generators``
    says how, one for each generator, and ``cost[g[ℓ], h[b]] = cost[ℓ, b]``.

    Attributes:
        generators: permutations of the items (the identity among them where only candidates move).
        candidate_generators: permutations of the candidates; empty for a pairwise problem.
        orbits: the items that symmetries map to one another, singletons included.
        twins: classes of two items or more that may be exchanged two by two while all else stays.
        candidate_twins: the same among candidates: equal columns of one label.
        quotient: how many of the generators, counted from the first, come from the graph of twin classes; they map the
            first of each class to the first of another. The rest exchange neighbours within a class of twins.
        order: the order of the group generated, exact (of items and candidates together).
        complete: False when the search was cut off, so that there may be more symmetries than these.
    """

    generators: tuple[Permutation, ...]
    candidate_generators: tuple[Permutation, ...]
    orbits: tuple[tuple[int, ...], ...]
    twins: tuple[tuple[int, ...], ...]
    candidate_twins: tuple[tuple[int, ...], ...]
    quotient: int
    order: int
    complete: bool


def automorphisms(problem: MedoidProblem | PairwiseProblem, *, max_nodes: int = 20_000) -> Automorphisms:
    """The symmetries of a medoid or pairwise problem; twins first, then individualisation and refinement.

    Two floats are the same only if they are equal to the last bit. ``max_nodes`` bounds the search tree; what is found
    by then is still a group of true symmetries.

    >>> cycle = np.roll(np.eye(5), 1, axis=0)
    >>> automorphisms(PairwiseProblem(cycle + cycle.T)).order
    10
    """
    if isinstance(problem, PairwiseProblem):
        labels = _names(np.where(problem.conflict, np.inf, problem.weight))
        colors = np.zeros(problem.size, dtype=np.int64)
    elif isinstance(problem, MedoidProblem):
        labels, colors = _bipartite(problem)
    else:
        raise TypeError(f"symmetries are read off a cost matrix, which a {type(problem).__name__} does not have")
    size = problem.size
    vertices = len(labels)
    twins = twin_classes(labels, colors)
    first = np.array([members[0] for members in twins], dtype=np.intp)
    order = math.prod(math.factorial(len(members)) for members in twins)
    inner = [labels[m[0], m[1]] if len(m) > 1 else -1 for m in twins]
    kind = np.array([[colors[m[0]], len(m), inner[at]] for at, m in enumerate(twins)], dtype=np.int64).reshape(-1, 3)
    small = _Search(labels[np.ix_(first, first)], np.unique(kind, axis=0, return_inverse=True)[1].ravel(), max_nodes)
    small.run()
    lifted: list[Permutation] = []
    for generator in small.generators:
        image = list(range(vertices))
        for at, to in enumerate(generator):
            for i, j in zip(twins[at], twins[to], strict=True):
                image[i] = j
        lifted.append(tuple(image))
    quotient = len(lifted)
    for members in twins:
        for i, j in itertools.pairwise(members):
            image = list(range(vertices))
            image[i], image[j] = j, i
            lifted.append(tuple(image))
    for generator in lifted:  # nothing found by hashing or lifting is taken on trust
        if not keeps(labels, colors, generator):
            raise RuntimeError(f"{generator} does not keep the costs; this is a defect of the symmetry search")
    medoid = isinstance(problem, MedoidProblem)
    return Automorphisms(
        generators=tuple(g[:size] for g in lifted),
        candidate_generators=tuple(tuple(v - size for v in g[size:]) for g in lifted) if medoid else (),
        orbits=tuple(o for o in orbits(lifted, vertices) if o[0] < size),
        twins=tuple(m for m in twins if len(m) > 1 and m[0] < size),
        candidate_twins=tuple(tuple(v - size for v in m) for m in twins if len(m) > 1 and m[0] >= size),
        quotient=quotient,
        order=order * small.order,
        complete=small.complete,
    )


def keeps(labels: Ints, colors: Ints, permutation: Sequence[int]) -> bool:
    """Whether a permutation of the vertices leaves every edge label and every color as it is."""
    image = np.asarray(permutation, dtype=np.intp)
    return bool((labels[np.ix_(image, image)] == labels).all() and (colors[image] == colors).all())


def orbits(generators: Sequence[Sequence[int]], size: int) -> tuple[tuple[int, ...], ...]:
    """The orbits of the group generated, each ascending, in the order of their first elements."""
    leader = list(range(size))

    def find(vertex: int) -> int:
        while leader[vertex] != vertex:
            leader[vertex] = leader[leader[vertex]]
            vertex = leader[vertex]
        return vertex

    for generator in generators:
        for vertex, image in enumerate(generator):
            a, b = find(vertex), find(image)
            leader[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for vertex in range(size):
        members.setdefault(find(vertex), []).append(vertex)
    return tuple(tuple(orbit) for orbit in members.values())


def twin_classes(labels: Ints, colors: Ints) -> list[tuple[int, ...]]:
    """All vertices, in classes whose members may be exchanged two by two while all else stays. O(n²) for each class."""
    size = len(labels)
    classes: list[list[int]] = []
    for vertex in range(size):
        for members in classes:
            other = members[0]
            if colors[other] != colors[vertex]:
                continue
            differ = labels[vertex] != labels[other]
            differ[[vertex, other]] = False
            if not differ.any():
                members.append(vertex)
                break
        else:
            classes.append([vertex])
    return [tuple(members) for members in classes]


def _names(values: NDArray[np.float64]) -> Ints:
    """Equal floats get equal names."""
    return np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int64)


def _bipartite(problem: MedoidProblem) -> tuple[Ints, Ints]:
    """Items and candidates as one graph: an edge carries the cost, a color the penalty or the label."""
    size, candidates = problem.size, problem.candidates
    labels = np.zeros((size + candidates, size + candidates), dtype=np.int64)
    costs = _names(problem.cost_matrix) + 1
    labels[:size, size:] = costs
    labels[size:, :size] = costs.T
    penalties = _names(problem.penalties())
    colors = np.concatenate([penalties, problem.label + int(penalties.max(initial=0)) + 1])
    return labels, colors


class _Search:
    """Strong generators of the automorphism group of a labelled graph, by orbits along a base."""

    def __init__(self, labels: Ints, colors: Ints, max_nodes: int) -> None:
        self.labels, self.colors = labels, colors.astype(np.int64)
        self.edges: Words = edge_words(labels)
        self.nodes_left = max_nodes
        self.generators: list[Permutation] = []
        self.order = 1
        self.complete = True

    def run(self) -> None:
        size = len(self.labels)
        if size == 0:
            return
        colors = refine(self.edges, self.colors[None, :])[0]
        levels: list[tuple[Ints, int, list[int]]] = []
        while (cell := _target(colors)) is not None:
            levels.append((colors, cell[0], cell))
            colors = refine(self.edges, individualise(colors, cell[0])[None, :])[0]
        for colors, base, cell in reversed(levels):
            self._level(colors, base, cell)

    def _level(self, colors: Ints, base: int, cell: list[int]) -> None:
        """Find to which vertices of the cell the stabiliser of all earlier base points can send the base point."""
        size = len(self.labels)
        known: list[Permutation] = list(self.generators)  # found deeper, so they fix all earlier base points
        refused: set[int] = set()
        for vertex in cell[1:]:
            partition = {v: at for at, orbit in enumerate(orbits(known, size)) for v in orbit}
            if partition[vertex] == partition[base] or partition[vertex] in {partition[v] for v in refused}:
                continue
            pair = np.stack([individualise(colors, base), individualise(colors, vertex)])
            found = self._map(pair)
            if found is None:
                refused.add(vertex)
            else:
                known.append(found)
                self.generators.append(found)
        partition = {v: at for at, orbit in enumerate(orbits(known, size)) for v in orbit}
        self.order *= sum(at == partition[base] for at in partition.values())

    def _map(self, pair: Ints) -> Permutation | None:
        """A permutation that turns the first coloring into the second, by backtracking."""
        if self.nodes_left <= 0:
            self.complete = False
            return None
        self.nodes_left -= 1
        left, right = refine(self.edges, pair)
        if not np.array_equal(np.sort(left), np.sort(right)):
            return None
        cell = _target(left)
        if cell is None:
            image = np.empty(len(left), dtype=np.intp)
            image[np.argsort(left)] = np.argsort(right)
            permutation = tuple(int(v) for v in image)
            return permutation if keeps(self.labels, self.colors, permutation) else None
        chosen = cell[0]
        ordered = np.flatnonzero(right == left[chosen]).tolist()
        if chosen in ordered:  # what can stay where it is makes small generators
            ordered.remove(chosen)
            ordered.insert(0, chosen)
        for vertex in ordered:
            found = self._map(np.stack([individualise(left, chosen), individualise(right, int(vertex))]))
            if found is not None:
                return found
        return None


def _target(colors: Ints) -> list[int] | None:
    """The vertices of the smallest color class of two or more, the first of equals; None when all are alone."""
    counts = np.bincount(colors)
    counts[counts < 2] = len(colors) + 1
    if counts.min(initial=len(colors) + 1) > len(colors):
        return None
    cell: list[int] = np.flatnonzero(colors == counts.argmin()).tolist()
    return cell
