"""Search over colorings with pair weights: best move, swap, merge or split, then a disturbance and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.coloring import Coloring
from solvers.greedy import greedy_pairs
from solvers.pairwise import PairwiseProblem
from solvers.search import Search


class Painting:
    """A coloring being changed, with the attraction of every item to every color.

    A conflict weighs more than any move can gain otherwise, so descent leads out of conflicts before anything else.
    ``pull[i, c]`` is the sum of weights between item i and the items of color c: any move or swap is priced by look-up.
    """

    def __init__(self, problem: PairwiseProblem, coloring: Coloring) -> None:
        self.problem = problem
        heavy = 1.0 + 2.0 * (float(np.abs(problem.weight).sum(axis=1).max(initial=0.0)) + abs(problem.opening))
        self.weight = problem.weight + heavy * problem.conflict
        self.colors = np.array(coloring.colors, dtype=np.int64)
        self.number = problem.limit
        surplus = self.colors >= self.number
        self.colors[surplus] %= max(self.number, 1)
        self.tiny = max(1e-9 * problem.scale, 1e-14 * heavy * problem.size)  # above the drift of the sums
        self._count()

    def _count(self) -> None:
        member = np.zeros((self.problem.size, self.number))
        member[np.arange(self.problem.size), self.colors] = 1.0
        self.pull = self.weight @ member
        self.sizes = member.sum(axis=0).astype(np.int64)

    def columns(self) -> NDArray[np.intp]:
        """The colors in use and one that is not, where there is one."""
        return np.concatenate([np.flatnonzero(self.sizes > 0), np.flatnonzero(self.sizes == 0)[:1]])

    def own(self) -> NDArray[np.float64]:
        own: NDArray[np.float64] = self.pull[np.arange(len(self.colors)), self.colors]
        return own

    def move(self, item: int, color: int) -> None:
        old = int(self.colors[item])
        self.pull[:, old] -= self.weight[item]
        self.pull[:, color] += self.weight[item]
        self.sizes[old] -= 1
        self.sizes[color] += 1
        self.colors[item] = color

    def move_changes(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """``[L, C]``: what it changes to give an item each of ``columns``, inf for its own color; and the columns."""
        columns = self.columns()
        change = self.pull[:, columns] - self.own()[:, None]
        change += self.problem.opening * (self.sizes[columns] == 0)[None, :]
        change -= self.problem.opening * (self.sizes[self.colors] == 1)[:, None]
        change[columns[None, :] == self.colors[:, None]] = np.inf
        return change, columns

    def best_move(self) -> tuple[float, tuple[int, int]]:
        change, columns = self.move_changes()
        item, at = divmod(int(change.argmin()), len(columns))
        return float(change[item, at]), (item, int(columns[at]))

    def swap_changes(self) -> NDArray[np.float64]:
        """``[L, L]``: what it changes to exchange the colors of two items, inf for those of one color."""
        across, own = self.pull[:, self.colors], self.own()
        change = across + across.T - own[:, None] - own[None, :] - 2 * self.weight
        change[self.colors[:, None] == self.colors[None, :]] = np.inf
        return np.asarray(change)

    def best_swap(self) -> tuple[float, tuple[int, int]]:
        change = self.swap_changes()
        first, second = divmod(int(change.argmin()), len(change))
        return float(change[first, second]), (first, second)

    def best_merge(self) -> tuple[float, tuple[int, int]]:
        used = np.flatnonzero(self.sizes)
        member = (self.colors[:, None] == used[None, :]).astype(np.float64)
        change = member.T @ self.pull[:, used] - self.problem.opening
        np.fill_diagonal(change, np.inf)
        first, second = divmod(int(change.argmin()), len(used))
        return float(change[first, second]), (int(used[first]), int(used[second]))

    def best_split(self) -> tuple[float, list[int]]:
        """The items to give a new color: from each class they leave one by one, best first; the best prefix counts."""
        best, leaving = np.inf, list[int]()
        if not (self.sizes == 0).any():
            return best, leaving
        own = self.own()
        for color in np.flatnonzero(self.sizes > 2):
            members = np.flatnonzero(self.colors == color)
            inside = self.weight[np.ix_(members, members)]
            loss = -own[members]  # what leaving alone changes; corrected by those that left before
            total, gone = self.problem.opening, list[int]()
            for _ in range(len(members) - 1):
                at = int(loss.argmin())
                total += float(loss[at])
                gone.append(int(members[at]))
                loss += 2 * inside[at]
                loss[at] = np.inf
                if total < best:
                    best, leaving = total, list(gone)
        return best, leaving

    def descend(self, search: Search) -> None:
        """Take the best move until none pays, then the best swap, merge or split, until nothing pays."""
        while not search.expired():
            gain, (item, color) = self.best_move()
            if gain < -self.tiny:
                self.move(item, color)
                continue
            gain, (first, second) = self.best_swap()
            if gain < -self.tiny:
                a, b = int(self.colors[first]), int(self.colors[second])
                self.move(first, b)
                self.move(second, a)
                continue
            self._count()  # sums drift as weights are added and taken away; merges and splits see fresh ones
            gain, (first, second) = self.best_merge()
            if gain < -self.tiny:
                self.colors[self.colors == second] = first
                self._count()
                continue
            gain, leaving = self.best_split()
            if gain < -self.tiny:
                self.colors[leaving] = int(np.flatnonzero(self.sizes == 0)[0])
                self._count()
                continue
            return

    def disturb(self, rng: np.random.Generator, share: float) -> None:
        """Give a random share of the items, two at least, a random color out of those in use and one more."""
        columns = self.columns()
        number = min(len(self.colors), max(2, round(share * len(self.colors))))
        chosen = rng.choice(len(self.colors), number, replace=False)
        self.colors[chosen] = rng.choice(columns, number)
        self._count()


def search_pairs(problem: PairwiseProblem, search: Search, *, rounds: int) -> None:
    """Descend from the incumbent (or greedy), then ``rounds`` times from a disturbed best. Offers what it finds."""
    rng = np.random.default_rng(search.seed)
    if search.best is None:
        greedy_pairs(problem, search)
    if not problem.limit:
        return
    state = Painting(problem, search.best or Coloring(range(problem.size)))
    best = state.colors.copy()
    for turn in range(rounds + 1):
        if turn:
            if search.expired():
                break
            state = Painting(problem, Coloring(best.tolist()))
            state.disturb(rng, float(rng.choice([0.05, 0.1, 0.3])))
        before = search.cost
        state.descend(search)
        if search.offer(Coloring(state.colors.tolist())) < before or search.best is None:
            best = state.colors.copy()
