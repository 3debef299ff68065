"""An independent check of a solution: its cost summed up again, its bound recomputed from its evidence.

>>> import solvers
>>> problem = solvers.MedoidProblem([[0, 4, 9], [3, 0, 8], [9, 7, 0]], K=2)
>>> verdict = certify(problem, solvers.solve(problem, "local_search"))
>>> verdict.cost, verdict.bound, verdict.trusted
(3.0, 3.0, False)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from solvers.coloring import Coloring
from solvers.group import GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem, round_up
from solvers.solution import Solution
from solvers.sparse_medoid import SparseMedoidProblem

TOLERANCE = 1e-9
"""Two sums of the same costs may differ by so much of the largest cost for each item."""


@dataclass(frozen=True)
class Verdict:
    """What a solution is worth by its evidence alone.

    Attributes:
        cost: the price of its coloring, summed up anew; inf where it is not allowed.
        bound: the lower bound recomputed from its certificate, rounded up where all costs are multiples of a number;
            −inf without a certificate.
        claimed: the bound that it states.
        proof: what the part of the claim above ``bound`` rests on.
        faults: sentences about what does not hold; empty for a sound solution.
    """

    cost: float
    bound: float
    claimed: float
    proof: str
    faults: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether the stated bound is more than the evidence shows, so that the solver's word is taken for the rest."""
        return self.claimed > self.bound + TOLERANCE * max(abs(self.claimed), abs(self.bound), 1e-300)

    @property
    def sound(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        if self.faults:
            return "; ".join(self.faults)
        if self.trusted:
            rest = self.proof or "the solver's word"
            return f"cost {self.cost:g}, bound {self.bound:g} checked, {self.claimed:g} by {rest}"
        return f"cost {self.cost:g}, bound {self.claimed:g}, both checked"


def certify(problem: Problem, solution: Solution) -> Verdict:
    """Price the coloring by plain sums over the problem's costs and recompute the bound from the certificate.

    A bound above what the certificate shows is not a fault: a search tree that was exhausted leaves no short evidence.
    ``Verdict.trusted`` says so, and ``Verdict.bound`` is then the root's.
    """
    faults = []
    cost = math.inf if solution.coloring is None else naive_cost(problem, solution.coloring, solution.representatives)
    slack = TOLERANCE * problem.scale * max(problem.size, 1)
    if not (cost == solution.cost or abs(cost - solution.cost) <= slack):
        faults.append(f"the coloring costs {cost!r}, not {solution.cost!r}")
    bound = -math.inf
    if solution.certificate is not None:
        try:
            bound = round_up(solution.certificate.bound(problem), problem.grain)
        except ValueError as error:
            faults.append(f"the certificate does not hold: {error}")
    if solution.lower_bound > cost + slack:
        faults.append(f"the bound {solution.lower_bound!r} is above the cost {cost!r}")
    if bound > cost + slack:
        faults.append(f"the certificate gives {bound!r}, above the cost {cost!r}: one of them is wrong")
    if solution.certificate is not None and not solution.proof and solution.lower_bound > bound + slack:
        faults.append(
            f"the bound {solution.lower_bound!r} is said to follow from the certificate, which gives {bound!r}"
        )
    return Verdict(cost, bound, solution.lower_bound, solution.proof, tuple(faults))


def naive_cost(problem: Problem, coloring: Coloring, representatives: tuple[int, ...] = ()) -> float:
    """The cost term by term, by the definition of the problem and exact summation.

    Medoid problems are priced at the representatives given, which must keep every limit.
    """
    classes = coloring.classes()
    if isinstance(problem, MedoidProblem | SparseMedoidProblem):
        return _medoid_cost(problem, classes, representatives)
    if isinstance(problem, PairwiseProblem):
        if len(classes) > problem.limit:
            return math.inf
        pairs = [pair for members in classes for pair in itertools.combinations(members, 2)]
        if any(problem.conflict[i, j] for i, j in pairs):
            return math.inf
        return math.fsum([problem.opening * len(classes), *(float(problem.weight[i, j]) for i, j in pairs)])
    if isinstance(problem, GroupProblem):
        return _group_cost(problem, classes)
    return problem.cost(coloring)


def _medoid_cost(
    problem: MedoidProblem | SparseMedoidProblem, classes: tuple[tuple[int, ...], ...], representatives: tuple[int, ...]
) -> float:
    if len(representatives) != len(classes):
        return math.inf
    taken = np.bincount([problem.label[b] for b in representatives if b >= 0], minlength=len(problem.limits))
    if (taken > problem.limits).any() or any(
        b < 0 and len(members) > 1 for members, b in zip(classes, representatives, strict=True)
    ):
        return math.inf
    penalties = problem.penalties()
    return math.fsum(
        problem.entry(item, b) if b >= 0 else float(penalties[item])
        for members, b in zip(classes, representatives, strict=True)
        for item in members
    )


def _group_cost(problem: GroupProblem, classes: tuple[tuple[int, ...], ...]) -> float:
    """Beyond K classes the items that lose least go without a basis, which only a penalty allows."""
    prices = [problem.class_cost(members) for members in classes]
    out = [float(problem.penalties()[members[0]]) if len(members) == 1 else math.inf for members in classes]
    kept = [min(price, penalty) for price, penalty in zip(prices, out, strict=True)]
    owners = [at for at, (price, penalty) in enumerate(zip(prices, out, strict=True)) if price <= penalty]
    surplus = len(owners) - problem.limit
    if surplus > 0:
        for at in sorted(owners, key=lambda at: out[at] - prices[at])[:surplus]:
            kept[at] = out[at]
    return math.fsum(kept)
