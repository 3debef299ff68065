"""CP-SAT with the problem's symmetries broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from solvers.cp_models import Built, medoid_model, pairwise_model
from solvers.cp_sat import CpSat
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search
from solvers.symmetry import Automorphisms, automorphisms

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True)
class SymmetricCpSat(CpSat):
    """``cp_sat`` on the same models, with a lex-leader constraint for each generator of Aut(problem).

    Every solution has an image under the symmetries that comes first in a fixed lexicographic order, and that one
    satisfies all the constraints, so the optimum stays.

    * Pairwise: the color string, read in the order of first use, is not after its image under any generator. (Among
      all renamings of colors the string ordered by first use comes first itself, so the two go together.) For twins
      that says that colors ascend.
    * Medoid: of equal candidates only the first may open; the string of open candidates is not before its image.

    Attributes:
        max_nodes: how far the search for symmetries may go.
    """

    max_nodes: int = 20_000

    name: ClassVar[str] = "symmetric_cp_sat"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem)
    largest_graph: ClassVar[int] = 1_000

    def refusal(self, problem: Problem) -> str:
        why = super().refusal(problem)
        if why:
            return why
        vertices = problem.size + (problem.candidates if isinstance(problem, MedoidProblem) else 0)
        if vertices > self.largest_graph:
            return f"it looks for symmetries among up to {self.largest_graph:,} items and candidates, not {vertices:,}"
        return ""

    def build(self, problem: Problem, search: Search) -> Built | None:
        assert isinstance(problem, (MedoidProblem, PairwiseProblem))
        group = automorphisms(problem, max_nodes=self.max_nodes)
        twins = sum(len(members) for members in group.twins)
        search.note(
            f"{len(group.generators)} generators of a symmetry group of order {group.order}, {twins} items in "
            f"{len(group.twins)} classes of twins" + ("" if group.complete else ", search for more cut off")
        )
        if search.expired():
            return None
        if isinstance(problem, PairwiseProblem):
            return _break_pairwise(pairwise_model(problem, search), group)
        return _break_medoid(problem, group, search)


def _break_pairwise(built: Built, group: Automorphisms) -> Built:
    from ortools.sat.python import cp_model

    colors: list[cp_model.LinearExprT] = [0] * len(built.order)
    for p, item in enumerate(built.order):
        choices = built.colored[p]
        colors[item] = cp_model.LinearExpr.weighted_sum(choices, range(len(choices)))
    for generator in group.generators:
        before = [colors[item] for item in built.order if generator[item] != item]
        after = [colors[generator[item]] for item in built.order if generator[item] != item]
        add_lexicographic(built.model, before, after)
    return built


def _break_medoid(problem: MedoidProblem, group: Automorphisms, search: Search) -> Built:
    first = np.ones(problem.candidates, bool)
    for members in group.candidate_twins:
        first[list(members[1:])] = False
    built = medoid_model(problem, search, first)
    opened = built.opened or {}
    for generator in group.candidate_generators[: group.quotient]:
        moved = [b for b in range(problem.candidates) if first[b] and generator[b] != b]
        # largest first: the image's string must not be after, so sides are exchanged; closed candidates read 0
        add_lexicographic(built.model, [opened.get(generator[b], 0) for b in moved], [opened.get(b, 0) for b in moved])
    return built


def add_lexicographic(
    model: cp_model.CpModel, small: Sequence[cp_model.LinearExprT], large: Sequence[cp_model.LinearExprT]
) -> None:
    """``small ≤ large`` in lexicographic order.

    ``tied`` says that all earlier entries are equal. While it holds the next entry may not be larger, and it goes on
    holding unless ``less`` is set, which needs the entry to be truly smaller.
    """
    tied = None
    for at, (a, b) in enumerate(zip(small, large, strict=True)):
        if isinstance(a, int) and isinstance(b, int):
            if a == b:
                continue
            raise ValueError("two different constants have no place in a lexicographic constraint")
        ordered = model.add(a <= b)
        if tied is not None:
            ordered.only_enforce_if(tied)
        if at + 1 == len(small):
            break
        less = model.new_bool_var("")
        model.add(a + 1 <= b).only_enforce_if(less)
        following = model.new_bool_var("")
        model.add_bool_or([less, following] + ([] if tied is None else [~tied]))
        tied = following
