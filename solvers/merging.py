"""Twins made one: items that some optimum keeps together become a single item, and the answer is unfolded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.certificates import Certificate, Clique, Multipliers
from solvers.coloring import Coloring
from solvers.cp_sat import CpSat
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search
from solvers.solver import Solver
from solvers.symmetry import twin_classes

LARGEST_PAIRWISE = 2_000
"""Twins of a pairwise problem are looked for among up to so many items: it takes several matrices of its size."""


@dataclass(frozen=True)
class Merged:
    """A problem whose items stand for classes of items of another one, at the cost of them all together.

    Attributes:
        problem: the smaller problem. Its optimum plus ``constant`` is the optimum of the first.
        classes: the items that each item of it stands for.
        constant: what pairs within the classes cost.
    """

    problem: MedoidProblem | PairwiseProblem
    classes: tuple[tuple[int, ...], ...]
    constant: float

    def expand(self, coloring: Coloring) -> Coloring:
        """The coloring of all items, those of one class together; where it is left out each of them is alone."""
        taken = self.problem.representatives(coloring)
        size = sum(map(len, self.classes))
        colors = list(range(-size, 0))
        for members, color in zip(self.classes, coloring, strict=True):
            if not taken or taken[color] >= 0:
                for item in members:
                    colors[item] = color
        return Coloring(colors)

    def contract(self, coloring: Coloring) -> Coloring:
        """The coloring of the first of each class."""
        return Coloring([coloring[members[0]] for members in self.classes])


def merge_twins(problem: Problem) -> Merged | None:
    """The problem with its twins merged; None where there are none that some optimum keeps together for certain.

    * Medoid: items with equal rows and penalties take the same candidate, or are all left out: each takes its cheapest
      choice among the open ones. Of candidates with equal columns and labels one is enough.
    * Pairwise: twins of mutual weight ``w ≤ min(0, opening)`` and without conflict. Let t of them be spread over s
      colors, ``n_C`` in color C, whose other members cost a twin ``f_C``: ``Σ n_C f_C + w Σ n_C (n_C − 1) / 2``. All t
      in the color of the least ``f_C`` cost no more: the first sum falls, and ``w`` counts for all pairs, which are
      ``Σ n_C n_D ≥ s − 1`` more than before (over pairs of colors). Twins conflict with the same items, so that is
      allowed. At most s − 1 colors are left empty; with ``opening < 0`` each costs ``−opening ≤ −w``, paid by a pair.
      Moving one class tears no other apart, so this holds for all classes together.
    """
    merged = _merge_rows(problem) if isinstance(problem, MedoidProblem) else _merge_pairs(problem)
    if merged is None:
        return None
    again = merge_twins(merged.problem)  # what was merged may be twins
    if again is None:
        return merged
    classes = tuple(tuple(i for part in members for i in merged.classes[part]) for members in again.classes)
    return Merged(again.problem, classes, merged.constant + again.constant)


def _merge_rows(problem: MedoidProblem) -> Merged | None:
    penalties = problem.penalties()
    classes = _equal_rows(problem.cost_matrix, penalties)
    kept = [members[0] for members in _equal_rows(problem.cost_matrix.T, problem.label)]
    if len(classes) == problem.size and len(kept) == problem.candidates:
        return None
    first, number = [members[0] for members in classes], np.array([len(members) for members in classes])
    return Merged(
        MedoidProblem(
            problem.cost_matrix[np.ix_(first, kept)] * number[:, None],
            problem.K,
            penalty=None if problem.penalty is None else penalties[first] * number,
            group=None if problem.group is None else [problem.group[b] for b in kept],
        ),
        classes,
        0.0,
    )


def _equal_rows(rows: NDArray[np.float64], kinds: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """Indices of equal rows of one kind, in the order of their first; read in full only where they begin alike."""
    found: dict[tuple[object, ...], list[int]] = {}
    begun = np.ascontiguousarray(rows[:, :16] + 0.0)  # + 0.0: there is one zero, not two
    starts = [(kind, start.tobytes()) for kind, start in zip(kinds.tolist(), begun, strict=True)]
    shared = {start for start, count in Counter(starts).items() if count > 1}
    for at, start in enumerate(starts):
        rest = (rows[at] + 0.0).tobytes() if start in shared else at
        found.setdefault((*start, rest), []).append(at)
    return tuple(tuple(members) for members in found.values())


def _merge_pairs(problem: Problem) -> Merged | None:
    if not isinstance(problem, PairwiseProblem) or not 1 < problem.size <= LARGEST_PAIRWISE:
        return None
    classes: list[tuple[int, ...]] = []
    constant = 0.0
    for members in twin_classes(problem):
        weight = float(problem.weight[members[0], members[-1]])
        if len(members) > 1 and weight <= min(0.0, problem.opening) and not problem.conflict[members[0], members[1]]:
            classes.append(members)
            constant += weight * (len(members) * (len(members) - 1) // 2)
        else:
            classes.extend((item,) for item in members)
    if len(classes) == problem.size:
        return None
    first, number = [members[0] for members in classes], np.array([len(members) for members in classes])
    inside = np.ix_(first, first)
    weight_of_all = problem.weight[inside] * (number[:, None] * number[None, :])
    smaller = PairwiseProblem(weight_of_all, problem.conflict[inside], problem.opening, problem.K)
    return Merged(smaller, tuple(classes), constant)


class UnfoldingSearch(Search):
    """The search for a merged problem: what is found and proven there goes to the first problem's search at once."""

    def __init__(self, merged: Merged, outer: Search) -> None:
        limit = outer.remaining()
        super().__init__(merged.problem, time_limit=limit, seed=outer.seed, deterministic=outer.deterministic)
        self.merged, self.outer = merged, outer
        if outer.best is not None:
            self.offer(merged.contract(outer.best))

    def offer(self, coloring: Coloring) -> float:
        cost = super().offer(coloring)
        if coloring == self.best:
            self.outer.offer(self.merged.expand(coloring))
        return cost

    def prove(self, bound: float, certificate: Certificate | None = None, proof: str = "") -> None:
        super().prove(bound, certificate, proof)
        claimed = bound + self.merged.constant
        evidence = self._evidence(certificate)
        shown = -math.inf if evidence is None else evidence.bound(self.outer.problem)
        if shown > -math.inf:
            self.outer.prove(min(shown, claimed), evidence)
        if shown < claimed:
            self.outer.prove(claimed, proof=f"{proof or 'evidence'}, on the problem with its twins merged")

    def _evidence(self, certificate: Certificate | None) -> Certificate | None:
        """The same evidence for the first problem, where there is a way to say it."""
        classes = self.merged.classes
        if isinstance(certificate, Multipliers) and len(certificate.values) == len(classes):
            values = [0.0] * self.outer.problem.size  # the items of a class share its multiplier
            for members, value in zip(classes, certificate.values, strict=True):
                for item in members:
                    values[item] = value / len(members)
            return Multipliers(tuple(values))
        if isinstance(certificate, Clique):
            return Clique(tuple(classes[item][0] for item in certificate.items))
        return None

    def closed(self) -> bool:
        """Whether the first problem's gap is closed: the constant counts in a relative gap."""
        return self.outer.closed()

    def spend(self, steps: float) -> None:
        super().spend(steps)
        self.outer.spend(steps)

    def expired(self, steps: float = 1e4) -> bool:
        self.outer.spend(steps)
        over = super().expired(steps)
        self.outer.cut_short |= over
        return over

    def note(self, sentence: str) -> None:
        self.outer.note(sentence)


@dataclass(frozen=True)
class MergeTwins(Solver):
    """Another solver on the problem with its twins merged, see ``merge_twins``; as it stands where there are none.

    Attributes:
        inner: the solver that does the work.
    """

    inner: Solver = field(default_factory=CpSat)

    name: ClassVar[str] = "merge_twins"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem)
    exact: ClassVar[bool] = True

    def refusal(self, problem: Problem) -> str:
        why = super().refusal(problem)
        if why:
            return why
        merged = merge_twins(problem)
        return self.inner.refusal(problem if merged is None else merged.problem)

    def run(self, problem: Problem, search: Search) -> None:
        merged = merge_twins(problem)
        if merged is None:
            self.inner.run(problem, search)
            return
        search.note(told(merged.classes))
        inside = UnfoldingSearch(merged, search)
        self.inner.run(merged.problem, inside)
        search.cut_short |= inside.cut_short


def told(classes: Sequence[Sequence[int]]) -> str:
    """How many items became how many."""
    return f"{sum(map(len, classes))} items, twins merged, are {len(classes)}"
