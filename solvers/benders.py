"""Exact p-median by Lagrangian fixing, then branch and bound (or Benders-cut) on the candidates that stay free."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from solvers.benders_master import Answer, Master
from solvers.lagrangian import relax
from solvers.medoid import MedoidProblem
from solvers.medoid_core import Core
from solvers.medoid_relaxation import DenseCosts, Floats, Indices, Mask, Relaxation, cutoff_of
from solvers.medoid_search import OpenSet
from solvers.problem import Problem
from solvers.search import STEPS_PER_SECOND, Search
from solvers.solver import Solver

FRACTION = 1e-6
"""Shares this close to 0 or 1 count as whole."""
CLIMB = 30
"""Subgradient steps for a part of the tree."""


@dataclass(frozen=True)
class Benders(Solver):
    """Multipliers, swaps and fixing as ``lagrangian`` does, then branch and cut with an incremental linear program.

    Each node's bound is the Lagrangian one at the multipliers that the program's dual prices make, summed up here: the
    program (HiGHS) only proposes. What it leaves is branched on the candidate that raises the bounds most (strong
    branching), the node of the least bound first. Where few candidates may open, a few more subgradient steps from the
    parent's multipliers do instead of the program, and branching is on the candidate that they open most.

    Attributes:
        steps: subgradient steps at most before the program takes over.
        probes: candidates tried by strong branching at a node.
        few: with so few candidates left to open, or fewer, multipliers do instead of the program.
    """

    steps: int = 600
    probes: int = 6
    few: int = 12

    name: ClassVar[str] = "benders"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem,)
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("probes", 1), ("few", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")

    def run(self, problem: Problem, search: Search) -> None:
        assert isinstance(problem, MedoidProblem)
        relaxation, state = relax(problem, search, self.steps)
        if not search.closed() and not search.expired():
            Tree(problem, search, relaxation, state, self).search()


@dataclass(order=True)
class Node:
    """A part of the tree: some candidates closed, some opened. The least bound comes first."""

    bound: float
    number: int
    usable: Mask = field(compare=False)
    always: Mask = field(compare=False)
    u: Floats = field(compare=False)


class Tree:
    """The tree below what the relaxation fixed.

    Attributes:
        core: the problem that is left; ``usable`` and ``always`` of a node are about its free candidates, ``u`` about
            its items.
        master: its linear program with all cuts so far, where it needs one.
    """

    core: Core
    master: Master

    def __init__(
        self, problem: MedoidProblem, search: Search, relaxation: Relaxation, state: OpenSet, settings: Benders
    ) -> None:
        self.problem, self.clock, self.relaxation, self.state = problem, search, relaxation, state
        self.probes = settings.probes
        self.numbers = itertools.count()
        self.tried: set[frozenset[int]] = set()
        self.nodes = 0
        self.gains = np.ones((problem.candidates, 2))
        self.core = self.left()
        self.by_multipliers = int(self.core.limits.sum()) <= settings.few
        if not self.by_multipliers:
            self.program(np.arange(problem.size), relaxation.best.u)

    def cutoff(self) -> float:
        """A bound of so much ends a branch; without any coloring yet, a price that only forbidden ones have."""
        if math.isfinite(self.clock.cost):
            return cutoff_of(self.clock.cost, self.problem)
        return 0.5 * self.state.forbidden

    def left(self) -> Core:
        """The core by what is fixed now."""
        known = self.relaxation
        costs = known.costs
        assert isinstance(costs, DenseCosts)
        return Core.of(costs.columns, costs.cap, costs.label, costs.limits, known.usable, known.always)

    def program(self, items: Indices, rights: Floats) -> None:
        """The core's program, with the cuts of these items at these costs."""
        room = max(self.cutoff() - self.core.offset, 1e-9 * abs(self.cutoff()), 1e-300)
        self.master = Master(self.core, room, self.clock.seed)
        self.precision = 1e-5 * room / max(len(self.core.items), 1)
        place = np.full(self.problem.size, -1)
        place[self.core.items] = np.arange(len(self.core.items))
        kept = place[items] >= 0
        items, rights = place[items[kept]], rights[kept]
        rights = np.minimum(rights - self.core.low[items], self.core.cap[items])
        self.master.cut(items[rights > 0], rights[rights > 0])

    def search(self) -> None:
        """Branch until no part can hold a better coloring, or the time is up; the bound goes to the clock."""
        core, best = self.core, self.relaxation.best
        u = np.clip(best.u[core.items] - core.low, 0.0, core.cap)
        free = len(core.names)
        heap = [Node(best.value, next(self.numbers), np.ones(free, bool), np.zeros(free, bool), u)]
        try:
            while heap and heap[0].bound < self.cutoff():
                if self.clock.expired():
                    return
                self.nodes += 1
                children = (self.climb if self.by_multipliers else self.explore)(heap[0])
                if children is None:  # cut short in the middle: the node stays
                    return
                for child in children:
                    heapq.heappush(heap, child)
                heapq.heappop(heap)  # the node itself: its bound is no larger, its number less than its children's
        finally:
            self.prove(min((node.bound for node in heap), default=math.inf))

    def prove(self, bound: float) -> None:
        """No coloring costs less than the least bound of all parts, or than the cutoff where parts ended at it."""
        if bound >= self.cutoff():
            bound = self.cutoff() if math.isfinite(self.clock.cost) else math.inf
        fixed = self.problem.candidates - len(self.core.names)
        self.clock.prove(
            bound,
            proof=f"tree of {self.nodes} nodes below {fixed} of {self.problem.candidates} candidates "
            "fixed by reduced costs",
        )

    def climb(self, node: Node) -> list[Node] | None:
        """As ``explore``, by subgradient steps from the parent's multipliers."""
        core = self.core.below(node.usable, node.always)
        summit = core.climb(
            np.clip(node.u[core.items] - core.low, 0.0, core.cap), self.cutoff(), CLIMB, self.clock.expired
        )
        if summit is None:
            return None
        if summit.value >= self.cutoff():
            return []
        if core.cost(summit.chosen) < self.cutoff() or self.nodes % 10 == 1:
            share = np.zeros(len(self.core.names))
            share[core.names[summit.chosen]], share[core.opened] = 1.0, 2.0
            self.try_medoids(share, swaps=True)
        if not len(core.names):
            return []  # the coloring just offered is the only one here
        every = np.ones(len(core.names), bool)
        left, kept = core.fix(summit.value, summit.rho, summit.chosen, every, ~every, self.cutoff())
        usable, always, u = node.usable.copy(), node.always.copy(), node.u.copy()
        usable[core.names[~left]], always[core.names[kept]] = False, True
        u[core.items] = summit.u + core.low
        bound = max(node.bound, summit.value)
        free = np.flatnonzero(left & ~kept)
        if not len(free):
            return [Node(bound, next(self.numbers), usable, always, u)]
        likely = int(core.names[free[summit.share[free].argmax()]])
        return self.children(likely, (bound, bound), usable, always, u)

    def explore(self, node: Node) -> list[Node] | None:
        """The node's children; none where it holds nothing better; None when the time ran out."""
        usable, always, bound = node.usable, node.always, node.bound
        answer, before, rho = None, bound, np.zeros(0)
        for turn in range(60 if self.nodes == 1 else 8):
            answer = self.run(usable, always)
            if answer is None:
                return None
            value, rho, chosen = self.core.bound(answer.u, usable, always)
            if value >= self.cutoff():
                return []
            usable, always = self.core.fix(value, rho, chosen, usable, always, self.cutoff())
            bound = max(bound, value)
            whole = self.is_whole(answer)
            if whole or (turn == 0 and self.nodes % 10 == 1):
                self.try_medoids(answer.y, swaps=not whole or self.nodes == 1)
            if not self.master.separate(answer, self.precision):
                break
            if turn >= 2 and not whole and value - before < 0.01 * (self.cutoff() - value):
                break
            before = value
        assert answer is not None
        if self.nodes == 1:
            self.try_medoids(answer.y, swaps=True)
            return self.restart(bound, usable, always)
        self.master.forget()
        return self.branch(answer, bound, usable, always)

    def restart(self, bound: float, usable: Mask, always: Mask) -> list[Node]:
        """After the root: what its program fixed makes the core smaller for good."""
        known = self.relaxation
        core = self.core
        known.usable[core.names[~usable]] = False
        known.always[core.names[always]] = True
        self.master.forget()
        self.core = self.left()
        self.program(core.items[self.master.items], self.master.rights + core.low[self.master.items])
        free = len(self.core.names)
        return [Node(bound, next(self.numbers), np.ones(free, bool), np.zeros(free, bool), np.zeros(0))]

    def run(self, usable: Mask, always: Mask, most: int = 1_000_000) -> Answer | None:
        """The linear program of a node; None when the time ran out."""
        clock = self.clock
        work = 10 * self.master.rows + self.master.entries
        if clock.deterministic and math.isfinite(clock.time_limit):
            most = min(most, 1 + int(clock.remaining() * STEPS_PER_SECOND / work))
        seconds = math.inf if clock.deterministic else clock.remaining()
        answer = self.master.solve(usable, always, seconds, most)
        if clock.expired(work * (10 + answer.iterations)):
            return None
        return answer

    def is_whole(self, answer: Answer) -> bool:
        return not ((answer.y > FRACTION) & (answer.y < 1 - FRACTION)).any()

    def try_medoids(self, share: Floats, swaps: bool) -> None:
        """Offer the candidates that are open most, and with ``swaps`` what local search makes of them."""
        state, clock, core = self.state, self.clock, self.core
        order = np.argsort(-share, kind="stable")
        state.reopen([*core.opened.tolist(), *core.names[order].tolist()])
        if swaps and frozenset(state.opened) not in self.tried:
            self.tried.add(frozenset(state.opened))
            if state.value - clock.cost < 0.02 * abs(clock.cost) or not math.isfinite(clock.cost):
                state.swap_until_stuck(clock, core.names)
        if state.value < clock.cost:
            clock.offer(self.problem.assign(state.opened))

    def branch(self, answer: Answer, bound: float, usable: Mask, always: Mask) -> list[Node] | None:
        """Open or close one free candidate: the one that raises the bounds most, by trials of a few."""
        free = usable & ~always
        if not free.any():
            return []
        y = answer.y
        fractional = np.flatnonzero(free & (y > FRACTION) & (y < 1 - FRACTION))
        if not len(fractional):
            best = int(np.flatnonzero(free)[y[free].argmax()])
            return self.children(best, (bound, bound), usable, always, answer.u)
        names = self.core.names[fractional]
        guess = np.minimum(self.gains[names, 0] * y[fractional], self.gains[names, 1] * (1 - y[fractional]))
        promising = fractional[np.argsort(-guess, kind="stable")[: self.probes]]
        best, best_score, best_bounds = -1, -math.inf, (bound, bound)
        fixed = False
        basis = self.master.highs.getBasis()
        for candidate in promising.tolist():
            bounds = []
            for side in (0, 1):
                child = self.child(candidate, side, usable, always)
                self.master.highs.setBasis(basis)
                trial = self.run(*child, most=100)
                if trial is None:
                    return None
                value = max(self.core.bound(trial.u, *child)[0], bound)
                gain = (value - bound) / (y[candidate] if side == 0 else 1 - y[candidate])
                row = self.gains[self.core.names[candidate]]
                row[side] = 0.7 * row[side] + 0.3 * min(gain, self.cutoff() - bound)
                bounds.append(value)
            ended = [value >= self.cutoff() for value in bounds]
            if all(ended):
                return []
            if any(ended):
                usable, always = self.child(candidate, 0 if ended[1] else 1, usable, always)
                fixed = True
                bound = max(bound, min(bounds))
                continue
            score = max(bounds[0] - bound, 1e-9) * max(bounds[1] - bound, 1e-9)
            if score > best_score:
                best, best_score, best_bounds = candidate, score, (bounds[0], bounds[1])
        self.master.highs.setBasis(basis)
        if fixed or best < 0:
            return [Node(bound, next(self.numbers), usable, always, answer.u)]
        return self.children(best, best_bounds, usable, always, answer.u)

    def children(
        self, candidate: int, bounds: tuple[float, float], usable: Mask, always: Mask, u: Floats
    ) -> list[Node]:
        sides = (self.child(candidate, side, usable, always) for side in (0, 1))
        return [Node(bound, next(self.numbers), *masks, u) for bound, masks in zip(bounds, sides, strict=True)]

    def child(self, candidate: int, side: int, usable: Mask, always: Mask) -> tuple[Mask, Mask]:
        """``usable`` and ``always`` with one candidate closed (side 0) or opened (side 1)."""
        usable, always = usable.copy(), always.copy()
        if side == 0:
            usable[candidate] = False
            return usable, always
        always[candidate] = True
        mine = self.core.label == self.core.label[candidate]
        if (always & mine).sum() >= self.core.limits[self.core.label[candidate]]:
            usable &= always | ~mine
        return usable, always
