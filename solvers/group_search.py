"""Search over partitions under a set function, sparing its oracle: move, swap, merge, split, dissolve and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.agglomerative import merge_groups
from solvers.coloring import Coloring
from solvers.greedy import Greedy
from solvers.group import GroupProblem
from solvers.search import Search

Class = tuple[int, ...]
Change = tuple[tuple[int, ...], tuple[Class, ...]]
"""Which classes go (their places in the list) and which come instead."""


def search_groups(
    problem: GroupProblem, search: Search, *, rounds: int, neighbours: int, max_oracle_calls: int
) -> None:
    """Improve the incumbent or greedy's answer, then ``rounds`` times a partly dissolved best. Offers what it finds.

    At most about ``max_oracle_calls`` new classes are priced after the start. An item is tried in the ``neighbours``
    classes it gains most with, as the prices of pairs that are already known tell.
    """
    Greedy().run(problem, search)
    rng = np.random.default_rng(search.seed)
    before = problem.oracle_calls

    def stop() -> bool:
        return problem.oracle_calls - before >= max_oracle_calls or search.expired()

    state = _Partition(problem, search.best or Coloring(range(problem.size)), stop, neighbours)
    for turn in range(rounds + 1):
        if turn:
            if stop():
                break
            state = _Partition(problem, search.best or Coloring(range(problem.size)), stop, neighbours)
            state.dissolve(rng)
        state.improve(rng)
        search.offer(state.coloring())
    if problem.oracle_calls - before >= max_oracle_calls:
        search.note(f"stopped after {max_oracle_calls} oracle calls beyond the start; raise max_oracle_calls for more")


class _Partition:
    def __init__(self, problem: GroupProblem, coloring: Coloring, stop: Callable[[], bool], neighbours: int) -> None:
        self.problem, self.stop, self.neighbours = problem, stop, neighbours
        self.classes: list[Class] = list(coloring.classes())
        self.free = problem.limit >= problem.size  # K binds nothing, so classes are priced one by one
        self.penalties = problem.penalties()
        self.tiny = 1e-12 * problem.scale
        self.saving = self._known_savings()
        self.clash = [_mask(np.flatnonzero(~row).tolist()) for row in problem.compatible]
        self.total = problem.cost_of_classes(self.classes)

    def coloring(self) -> Coloring:
        return Coloring.from_classes(self.classes, self.problem.size)

    def _known_savings(self) -> NDArray[np.float64]:
        """``f({i, j}) − f({i}) − f({j})`` where known and finite, 0 elsewhere."""
        size, priced = self.problem.size, self.problem.priced
        alone = np.array([priced.get((i,), math.inf) for i in range(size)])
        saving = np.zeros((size, size))
        for items, price in priced.items():
            if len(items) == 2 and math.isfinite(price) and np.isfinite(alone[list(items)]).all():
                i, j = items
                saving[i, j] = saving[j, i] = price - alone[i] - alone[j]
        return saving

    def _price(self, members: Class) -> float:
        price = self.problem.class_cost(members)
        return min(price, float(self.penalties[members[0]])) if len(members) == 1 else price

    def worth(self, change: Change) -> float:
        """The cost after a change."""
        gone, come = change
        if self.free and math.isfinite(self.total):
            return self.total + sum(map(self._price, come)) - sum(self._price(self.classes[at]) for at in gone)
        kept = [members for at, members in enumerate(self.classes) if at not in gone]
        return self.problem.cost_of_classes([*kept, *come])

    def try_best(self, changes: Iterator[Change]) -> bool:
        """Make the best of these changes if it pays."""
        best, chosen = self.total - self.tiny, None
        for change in changes:
            if self.stop():
                break
            worth = self.worth(change)
            if worth < best:
                best, chosen = worth, change
        if chosen is None:
            return False
        gone, come = chosen
        self.classes = [members for at, members in enumerate(self.classes) if at not in gone] + list(come)
        self.total = self.problem.cost_of_classes(self.classes)
        return True

    def improve(self, rng: np.random.Generator) -> None:
        """Until nothing pays: items move, classes split, items swap; merging follows each success."""
        self.merge()
        better = True
        while better and not self.stop():
            better = False
            for item in rng.permutation(self.problem.size):
                better |= self.try_best(self.moves(int(item)))
            better |= self.try_best(self.splits())
            if not better:
                for item in rng.permutation(self.problem.size):
                    better |= self.try_best(self.swaps(int(item)))
            if better:
                self.merge()

    def merge(self) -> None:
        merged = merge_groups(self.problem, self.stop, self.coloring())
        cost = self.problem.cost_of_classes(merged.classes())
        if cost < self.total - self.tiny or not math.isfinite(self.total):
            self.classes, self.total = list(merged.classes()), cost

    def dissolve(self, rng: np.random.Generator) -> None:
        """Two or three classes of more than one item fall apart; some of their items join others at random."""
        shared = [at for at, members in enumerate(self.classes) if len(members) > 1]
        chosen = set(rng.permutation(shared)[: int(rng.integers(2, 4))].tolist()) if shared else set[int]()
        loose = [item for at in chosen for item in self.classes[at]]
        self.classes = [members for at, members in enumerate(self.classes) if at not in chosen]
        for item in rng.permutation(np.array(loose, dtype=np.int64)).tolist():
            hosts = [at for at in range(len(self.classes)) if self.problem.allows((*self.classes[at], item))]
            if hosts and rng.random() < 0.3:
                at = int(rng.choice(hosts))
                self.classes[at] = tuple(sorted((*self.classes[at], item)))
            else:
                self.classes.append((item,))
        self.total = self.problem.cost_of_classes(self.classes)

    def _place(self, item: int) -> int:
        return next(at for at, members in enumerate(self.classes) if item in members)

    def _hosts(self, item: int, home: int) -> list[int]:
        """The classes the item may join, those it saves most with first."""
        allowed = [
            at for at, members in enumerate(self.classes) if at != home and not self.clash[item] & _mask(members)
        ]
        gain = {at: float(self.saving[item, list(self.classes[at])].mean()) for at in allowed}
        return sorted(allowed, key=lambda at: (gain[at], at))[: self.neighbours]

    def moves(self, item: int) -> Iterator[Change]:
        home = self._place(item)
        rest = _without(self.classes[home], item)
        if rest:
            yield (home,), (rest, (item,))
        for at in self._hosts(item, home):
            joined = _with(self.classes[at], item)
            yield (home, at), ((rest, joined) if rest else (joined,))

    def swaps(self, item: int) -> Iterator[Change]:
        home = self._place(item)
        rest = _without(self.classes[home], item)
        if not rest:
            return
        kept = float(self.saving[item, list(rest)].sum())
        rest_mask = _mask(rest)
        for at, members in enumerate(self.classes):
            mask = _mask(members)
            if at == home or (self.clash[item] & mask).bit_count() > 1:
                continue
            found = float(self.saving[item, list(members)].sum())
            for other in members:
                if self.clash[item] & mask & ~(1 << other) or self.clash[other] & rest_mask:
                    continue
                row = self.saving[other]
                gain = found - 2 * row[item] - kept + float(row[list(rest)].sum() - row[list(members)].sum())
                if gain <= 0:  # pairs must speak for it before the oracle is asked
                    yield (home, at), (_with(rest, other), _with(_without(members, other), item))

    def splits(self) -> Iterator[Change]:
        """Each class in two around the pair of members that saves least together, and each class all apart."""
        for at, members in enumerate(self.classes):
            if len(members) < 3:
                continue
            inside = self.saving[np.ix_(members, members)].copy()
            np.fill_diagonal(inside, -np.inf)
            a, b = divmod(int(inside.argmax()), len(members))
            near = [i for i in range(len(members)) if i == a or (i != b and inside[i, a] <= inside[i, b])]
            left = tuple(members[i] for i in near)
            yield (at,), (left, tuple(i for i in members if i not in left))
            yield (at,), tuple((item,) for item in members)


def _mask(members: Sequence[int]) -> int:
    """The items as a bit mask."""
    return sum(1 << item for item in members)


def _without(members: Class, item: int) -> Class:
    return tuple(i for i in members if i != item)


def _with(members: Sequence[int], item: int) -> Class:
    return tuple(sorted((*members, item)))
