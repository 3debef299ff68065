"""Best bound first: a search tree whose nodes fix pairs of items to share a color or not."""

from __future__ import annotations

import heapq
import itertools
import math
from abc import ABC, abstractmethod
from typing import ClassVar

from solvers.pair_lp import rounded, target
from solvers.search import Search

Fixing = tuple[int, int, bool]
"""Two items, and whether they share a color."""


class PairTree(ABC):
    """The open nodes, and the bound that they leave together with those already closed.

    Attributes:
        method: what the bound's proof is called by.
        nodes: how many were visited.
    """

    method: ClassVar[str]

    def __init__(self, search: Search) -> None:
        self.search = search
        self.nodes = 0
        self._open: list[tuple[float, int, tuple[Fixing, ...]]] = []
        self._closed = math.inf
        self._ticks = itertools.count()

    @abstractmethod
    def visit(self, bound: float, fixings: tuple[Fixing, ...]) -> bool:
        """Bound a node and ``push`` its children or ``close`` it; False when the time ran out before that."""

    def explore(self, bound: float) -> None:
        """Visit nodes from the root, whose bound is given, until the incumbent is optimal or the time is up."""
        self.push(bound, ())
        while self._open:
            bound, _, fixings = heapq.heappop(self._open)
            self._report(bound)
            if bound >= target(self.search):
                self.close(bound)
                break
            self.nodes += 1
            if not self.visit(bound, fixings):
                self.push(bound, fixings)
                break
        if not self.search.cut_short:
            self._report(math.inf)

    def push(self, bound: float, fixings: tuple[Fixing, ...]) -> None:
        heapq.heappush(self._open, (bound, next(self._ticks), fixings))

    def close(self, bound: float) -> None:
        """Nothing below this node costs less than ``bound``."""
        self._closed = min(self._closed, bound)

    def _report(self, current: float) -> None:
        left = min((node[0] for node in self._open), default=math.inf)
        bound = min(self._closed, current, left, self.search.cost)
        proof = f"{self.method}, its tree exhausted up to this bound"
        self.search.prove(rounded(bound, self.search), proof=proof)
