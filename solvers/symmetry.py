"""Aut(problem): the permutations of items that the costs cannot tell apart, to the last bit or within a tolerance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.permutation_group import Orbits, Permutation, group_order, orbits
from solvers.problem import checked_matrix
from solvers.refinement import Ints, Words, edge_words, individualise, mixed, refine

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Automorphisms:
    """Generators of the group of a problem's symmetries, every one of them checked against the costs.

    A generator ``g`` sends item i to ``g[i]``. For a medoid problem the candidates move too: ``candidate_generators``
    says how, one for each generator, and ``cost[g[ℓ], h[b]] = cost[ℓ, b]``.

    Attributes:
        generators: permutations of the items (the identity among them where only candidates move).
        candidate_generators: permutations of the candidates; empty for a pairwise problem or a matrix.
        orbits: the items that symmetries map to one another, singletons included.
        twins: classes of two items or more that may be exchanged two by two while all else stays.
        candidate_twins: the same among candidates: equal columns of one label.
        quotient: how many of the generators, counted from the first, come from the graph of twin classes; they map the
            first of each class to the first of another. The rest exchange neighbours within a class of twins.
        order: the order of the group generated, exact (of items and candidates together).
        complete: False when the search was cut off, so that there may be more symmetries than these.
        tolerance: costs that differ by so much at most counted as equal.
        deviation: the most by which a generator changes the cost of a pair; never above ``tolerance``.
    """

    generators: tuple[Permutation, ...]
    candidate_generators: tuple[Permutation, ...]
    orbits: tuple[tuple[int, ...], ...]
    twins: tuple[tuple[int, ...], ...]
    candidate_twins: tuple[tuple[int, ...], ...]
    quotient: int
    order: int
    complete: bool
    tolerance: float
    deviation: float


def automorphisms(
    problem: MedoidProblem | PairwiseProblem | ArrayLike, *, tolerance: float = 0.0, max_nodes: int = 20_000
) -> Automorphisms:
    """The symmetries of a medoid or pairwise problem, or of a square matrix of costs (an edge-weighted digraph).

    Twins are found first, directly and in O(L²). What is left of the graph, one vertex for each class of twins, is
    searched by colour refinement, individualisation, and pruning by the orbits of what was found (McKay 1981); where
    two partitions agree but for vertices told apart already, the rest is tried as it stands (Darga et al. 2004).

    Args:
        problem: items (and candidates), or ``[L, L]`` costs whose rows and columns move together.
        tolerance: absolute. Costs are put into bins no wider than this, and only what keeps every bin counts: any
            product of the generators, too, leaves the cost of every pair within ``tolerance``. Give less than the gaps
            between costs that do differ; 0 tells floats apart to the last bit.
        max_nodes: bounds the search tree; what is found by then is still a group of true symmetries.

    Raises:
        ValueError: for a matrix that is not square, or a tolerance that is negative or not finite.
        TypeError: for a problem without a matrix of costs.

    >>> cycle = np.roll(np.eye(5), 1, axis=0)
    >>> automorphisms(PairwiseProblem(cycle + cycle.T)).order, automorphisms(cycle).order
    (10, 5)
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number of 0 or more, in units of the costs, got {tolerance}")
    costs, colors, size = _graph(problem, tolerance)
    named = costs if tolerance == 0 else binned(costs, tolerance)
    words = edge_words(named)
    vertices = len(costs)
    twins = _twin_classes(costs, words, colors, tolerance)
    first = np.array([members[0] for members in twins], dtype=np.intp)
    inner = [int(words[m[0], m[1]] >> np.uint64(1)) if len(m) > 1 else -1 for m in twins]
    kind = np.array([[colors[m[0]], len(m), inner[at]] for at, m in enumerate(twins)], dtype=np.int64).reshape(-1, 3)
    kinds = np.unique(kind, axis=0, return_inverse=True)[1].ravel()
    small = _Search(costs[np.ix_(first, first)], words[np.ix_(first, first)], kinds, tolerance, max_nodes)
    small.run()
    lifted: list[Permutation] = []
    for generator in small.generators:
        image = list(range(vertices))
        for at, to in enumerate(generator):
            for i, j in zip(twins[at], twins[to], strict=True):
                image[i] = j
        lifted.append(tuple(image))
    for members in twins:
        for i, j in itertools.pairwise(members):
            image = list(range(vertices))
            image[i], image[j] = j, i
            lifted.append(tuple(image))
    largest = 0.0
    for generator in lifted:  # nothing found by hashing or lifting is taken on trust
        largest = max(largest, deviation(costs, colors, generator))
    if largest > tolerance:
        raise RuntimeError(f"a generator changes a cost by {largest}; this is a defect of the symmetry search")
    exchanges = math.prod(math.factorial(len(members)) for members in twins)
    medoid = isinstance(problem, MedoidProblem)
    return Automorphisms(
        generators=tuple(g[:size] for g in lifted),
        candidate_generators=tuple(tuple(v - size for v in g[size:]) for g in lifted) if medoid else (),
        orbits=tuple(o for o in orbits(lifted, vertices) if o[0] < size),
        twins=tuple(m for m in twins if len(m) > 1 and m[0] < size),
        candidate_twins=tuple(tuple(v - size for v in m) for m in twins if len(m) > 1 and m[0] >= size),
        quotient=len(small.generators),
        order=exchanges * (small.order if small.complete else group_order(small.generators, len(twins))),
        complete=small.complete,
        tolerance=tolerance,
        deviation=largest,
    )


def twin_classes(problem: MedoidProblem | PairwiseProblem | ArrayLike) -> tuple[tuple[int, ...], ...]:
    """All items, in classes whose members may be exchanged two by two while all else stays (to the last bit); O(L²).

    Of a medoid problem these are items with equal rows and penalties.
    """
    costs, colors, size = _graph(problem, 0.0)
    found = _twin_classes(costs, edge_words(costs), colors, 0.0)
    return tuple(members for members in found if members[0] < size)


def binned(values: Floats, tolerance: float) -> Floats:
    """Every value replaced by the smallest of its bin; bins are no wider than ``tolerance``.

    A bin begins where the gap to the next smaller value is above the tolerance, and again wherever it would become too
    wide, so that two bins are apart unless values lie closer together than the tolerance all the way.
    """
    known, names = np.unique(values, return_inverse=True)
    start = np.empty(len(known))
    begin = -math.inf
    for at, value in enumerate(known.tolist()):
        if not value - begin <= tolerance:
            begin = value
        start[at] = begin
    result: Floats = start[names].reshape(values.shape)
    return result


def deviation(costs: Floats, colors: Ints, permutation: Sequence[int]) -> float:
    """The most by which a permutation of vertices changes the cost of an ordered pair; inf where it changes a color."""
    image = np.asarray(permutation, dtype=np.intp)
    if not np.array_equal(colors[image], colors):
        return math.inf
    moved = np.flatnonzero(image != np.arange(len(image)))
    largest = 0.0
    for matrix in (costs, costs.T):
        before, after = matrix[moved], matrix[np.ix_(image[moved], image)]
        differ = before != after
        largest = max(largest, float(np.abs(before[differ] - after[differ]).max(initial=0.0)))
    return largest


def _graph(problem: MedoidProblem | PairwiseProblem | ArrayLike, tolerance: float) -> tuple[Floats, Ints, int]:
    """``[n, n]`` costs, the vertices' colors (n,), and how many of them, from the first, are items."""
    if isinstance(problem, PairwiseProblem):
        costs = np.where(problem.conflict, np.inf, problem.weight)
        return costs, np.zeros(len(costs), dtype=np.int64), len(costs)
    if isinstance(problem, MedoidProblem):  # an edge carries the cost, a color the penalty or the label
        size, candidates = problem.size, problem.candidates
        costs = np.zeros((size + candidates, size + candidates))
        costs[:size, size:] = problem.cost_matrix
        costs[size:, :size] = problem.cost_matrix.T
        penalties = np.unique(binned(problem.penalties(), tolerance), return_inverse=True)[1].ravel()
        colors = np.concatenate([penalties, problem.label + int(penalties.max(initial=0)) + 1])
        return costs, colors.astype(np.int64), size
    if hasattr(problem, "class_cost"):
        raise TypeError(f"symmetries are read off a cost matrix, which a {type(problem).__name__} does not have")
    costs = checked_matrix(problem, "cost", ndim=2).copy()
    if costs.size == 0:
        costs = costs.reshape(0, 0)
    if costs.shape[0] != costs.shape[1]:
        raise ValueError(f"the cost matrix must be square, one row and column for each item, got shape {costs.shape}")
    own = np.unique(binned(costs.diagonal().copy(), tolerance), return_inverse=True)[1].ravel()
    np.fill_diagonal(costs, 0.0)
    return costs, own.astype(np.int64), len(costs)


def _twin_classes(costs: Floats, words: Words, colors: Ints, tolerance: float) -> list[tuple[int, ...]]:
    """All vertices, in classes whose members may be exchanged two by two while all else stays. O(n²).

    With a random word for each place, ``x_i = Σ_k word(place k, edge ik)``. Vertices i and j are twins when ``x_i``
    less its term of j is ``x_j`` less its term of i, and the edges ij and ji are the same; every class is checked.
    """
    size = len(costs)
    if not size:
        return []
    places = mixed(np.arange(size, dtype=np.uint64) + np.uint64(0x2545F4914F6CDD1D))
    terms = mixed(words + places[None, :])
    keys = (terms.sum(axis=1, dtype=np.uint64) - terms.diagonal())[:, None] - terms
    alike = (keys == keys.T) & (words == words.T) & (colors[:, None] == colors[None, :])
    np.fill_diagonal(alike, True)
    classes: dict[int, list[int]] = {}
    exchange = np.arange(size)
    for vertex, leader in enumerate(alike.argmax(axis=1).tolist()):
        exchange[[vertex, leader]] = leader, vertex
        twin = vertex == leader or deviation(costs, colors, exchange.tolist()) <= tolerance
        exchange[[vertex, leader]] = vertex, leader
        classes.setdefault(leader if twin else vertex, []).append(vertex)
    return [tuple(members) for members in classes.values()]


class _Search:
    """Strong generators of the automorphism group of a labelled graph, by orbits along a base."""

    def __init__(self, costs: Floats, words: Words, colors: Ints, tolerance: float, max_nodes: int) -> None:
        self.costs, self.words, self.colors, self.tolerance = costs, words, colors.astype(np.int64), tolerance
        self.nodes_left = max_nodes
        self.generators: list[Permutation] = []
        self.orbits = Orbits(len(costs))
        self.order = 1
        self.complete = True

    def run(self) -> None:
        colors = refine(self.words, self.colors[None, :])
        levels: list[tuple[Ints, list[int]]] = []
        while colors is not None and (cell := _target(colors[0])) is not None:
            levels.append((colors, cell))
            colors = refine(self.words, *individualise(colors, [cell[0]]))
        for colors, cell in reversed(levels):
            self._level(colors, cell)

    def _level(self, colors: Ints, cell: list[int]) -> None:
        """Find to which vertices of the cell the stabiliser of all earlier base points can send the base point."""
        base, find = cell[0], self.orbits.find
        refused: list[int] = []
        for vertex in cell[1:]:  # what was found deeper fixes all earlier base points, so orbits may be joined by it
            if find(vertex) == find(base) or any(find(vertex) == find(other) for other in refused):
                continue
            found = self._map(np.concatenate([colors, colors]), base, vertex)
            if found is None:
                refused.append(vertex)
            else:
                self.generators.append(found)
                self.orbits.add(found)
        self.order *= sum(find(vertex) == find(base) for vertex in cell)

    def _map(self, pair: Ints, source: int, target: int) -> Permutation | None:
        """A permutation that turns the first coloring into the second and sends one vertex to another, depth first."""
        stack = [(pair, source, [target])]
        while stack:
            pair, source, targets = stack[-1]
            if not targets:
                stack.pop()
                continue
            if self.nodes_left <= 0:
                self.complete = False
                return None
            self.nodes_left -= 1
            refined = refine(self.words, *individualise(pair, [source, targets.pop(0)]))
            if refined is None:
                continue
            left, right = refined
            alone = np.bincount(left) == 1
            image = np.arange(len(left))
            place = np.empty(len(alone), dtype=np.intp)
            place[right] = np.arange(len(right))
            image[alone[left]] = place[left[alone[left]]]
            if np.array_equal(np.where(alone[left], -1, left), np.where(alone[right], -1, right)):
                if deviation(self.costs, self.colors, image.tolist()) <= self.tolerance:
                    return tuple(image.tolist())
                if alone.all():
                    continue
            stack.append((refined, *_branch(left, right, alone)))
        return None


def _branch(left: Ints, right: Ints, alone: NDArray[np.bool_]) -> tuple[int, list[int]]:
    """Which vertex to tell apart next, and where it may go, the likeliest first."""
    back = np.flatnonzero(~alone[left] & alone[right])
    if len(back):  # it is the image of a vertex told apart already: send it back there, so that the two change places
        chosen = int(back[0])
        likely = int(np.flatnonzero(left == right[chosen])[0])
    else:
        cell = _target(left)
        assert cell is not None
        chosen = likely = cell[0]
    targets: list[int] = np.flatnonzero(right == left[chosen]).tolist()
    if likely in targets:
        targets.remove(likely)
        targets.insert(0, likely)
    return chosen, targets


def _target(colors: Ints) -> list[int] | None:
    """The vertices of the smallest color class of two or more, the first of equals; None when all are alone."""
    counts = np.bincount(colors)
    counts[counts < 2] = len(colors) + 1
    if counts.min(initial=len(colors) + 1) > len(colors):
        return None
    cell: list[int] = np.flatnonzero(colors == counts.argmin()).tolist()
    return cell
