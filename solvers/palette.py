"""How many colors a conflict graph needs: what is known so far, and the descent from one number to the next below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.bounds import clique_bound
from solvers.certificates import ItemWeights
from solvers.cliques import maximum_clique
from solvers.coloring import Coloring
from solvers.conflict_kernel import ConflictKernel, conflict_kernel
from solvers.dsatur import dsatur
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search

CLIQUE_NODES = 20_000


@dataclass(frozen=True)
class Decision:
    """Whether a graph has a proper coloring with so many colors: the colors, or that it has none, or neither."""

    colors: NDArray[np.int64] | None = None
    impossible: bool = False


Decide = Callable[[NDArray[np.bool_], int], Decision]
"""From the conflicts ``[L, L]`` and a number of colors."""


def weightless_refusal(problem: Problem) -> str:
    """Why a solver that counts colors does not take this problem; empty when it does."""
    if isinstance(problem, PairwiseProblem) and not problem.weightless:
        return "its pairs have weights, and only conflicts and the number of colors are looked at"
    return ""


class Palette:
    """The numbers of colors between which the answer lies, for a problem without weights.

    A color that costs something is saved where it can be. One that costs nothing or pays is not: then any proper
    coloring with ``K`` colors is as good as another, and where colors pay, classes are split until there are K.

    Attributes:
        clique: a large clique, the maximum one unless that search was cut off; each of its items has its own color.
        lower: the number of colors that any proper coloring has at least.
        upper, colors: the best one known, and its number of colors.
    """

    def __init__(self, problem: PairwiseProblem, search: Search) -> None:
        self.problem, self.search = problem, search
        self.upper = problem.size + 1
        self.colors = np.arange(problem.size, dtype=np.int64)
        self._found: dict[tuple[int, ...], NDArray[np.int64]] = {}
        self._sought = -1
        if search.best is not None:
            self.offer(np.array(search.best.colors, dtype=np.int64))
        self.offer(np.array(dsatur(problem.conflict).colors, dtype=np.int64))
        self.clique = maximum_clique(problem.conflict, search.counted(CLIQUE_NODES)).items
        self.lower = len(self.clique)
        bound = clique_bound(problem, self.clique)
        search.prove(bound.value, bound.certificate)
        search.note(bound.reason)

    @property
    def enough(self) -> int:
        """A coloring with so many colors need not be improved."""
        return self.lower if self.problem.opening > 0 else max(self.lower, self.problem.limit)

    @property
    def wanted(self) -> int:
        """The number of colors to look for next."""
        return min(self.upper - 1, self.problem.limit)

    def settled(self) -> bool:
        return self.upper <= self.enough or self.lower > self.problem.limit

    def offer(self, colors: NDArray[np.int64]) -> None:
        """Take a proper coloring of the whole graph."""
        coloring = Coloring(colors.tolist())
        if coloring.number_of_colors < self.upper:
            self.upper, self.colors = coloring.number_of_colors, colors
        if self.problem.opening < 0 and coloring.number_of_colors <= self.problem.limit:
            coloring = split(coloring, self.problem.limit)
        self.search.offer(coloring)

    def exclude(self, number: int, proof: str) -> None:
        """Record that there is no proper coloring with ``number`` colors."""
        self.lower = max(self.lower, number + 1)
        if number >= self.problem.limit:
            self.search.prove(np.inf, proof=proof)
            self.search.note(f"the conflicts cannot be kept with K = {self.problem.limit} colors, by {proof}")
        elif self.problem.opening > 0:
            self.search.prove(self.problem.opening * self.lower, proof=proof)

    def certify(self, part: Sequence[int], weights: NDArray[np.int64], most: int) -> None:
        """Record the bound by weights of a part's items, none of whose independent sets weighs more than ``most``."""
        number = -(-int(weights.sum()) // most)
        if number <= self.lower:
            return
        whole = np.zeros(self.problem.size, dtype=np.int64)
        whole[list(part)] = weights
        certificate = ItemWeights(tuple(whole.tolist()), most)
        self.lower = number
        if number > self.problem.limit:
            self.search.prove(np.inf, certificate)
            self.search.note(f"independent sets are too small for K = {self.problem.limit} colors")
        elif self.problem.opening > 0:
            self.search.prove(self.problem.opening * number, certificate)

    def kernel(self, number: int) -> ConflictKernel:
        return conflict_kernel(self.problem.conflict, number)

    def descend(self, decide: Decide, proof: str) -> None:
        """Look for colorings with ever fewer colors until there is none, or ``decide`` does not know."""
        while not self.settled() and self.attempt(self.wanted, decide, proof) and self.wanted >= self.lower:
            pass

    def ascend(self, decide: Decide, proof: str) -> None:
        """Ask for as few colors as are not excluded yet, while ``decide`` excludes them."""
        while not self.settled():
            excluded = self.lower
            self.attempt(self.lower, decide, proof)
            if self.lower == excluded:
                return

    def attempt(self, number: int, decide: Decide, proof: str) -> bool:
        """Ask for a coloring with ``number`` colors; false when ``decide`` does not know.

        ``decide`` sees the parts of the kernel one by one. Parts colored once are remembered while others are open.
        """
        if number != self._sought:
            self._found, self._sought = {}, number
        kernel = self.kernel(number)
        colors = np.full(self.problem.size, -1, dtype=np.int64)
        missing = False
        for part in kernel.parts:
            if self.search.expired():
                return False
            if part not in self._found:
                decision = decide(self.problem.conflict[np.ix_(part, part)], number)
                if decision.impossible:
                    self.exclude(number, proof)
                    return True
                if decision.colors is None:
                    missing = True
                    continue
                self._found[part] = decision.colors
            colors[list(part)] = self._found[part]
        if not missing:
            self.offer(kernel.lift(colors))
        return not missing


def split(coloring: Coloring, number: int) -> Coloring:
    """Give items that share a color new ones until there are ``number`` colors."""
    colors = list(coloring.colors)
    first: set[int] = set()
    missing = number - coloring.number_of_colors
    for item, color in enumerate(colors):
        if color in first and missing > 0:
            colors[item] = len(colors) + item
            missing -= 1
        first.add(color)
    return Coloring(colors)
