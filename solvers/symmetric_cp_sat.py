"""CP-SAT with the problem's symmetries broken."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from solvers.cp_models import Built, medoid_model, pairwise_model
from solvers.cp_sat import CpSat
from solvers.medoid import MedoidProblem
from solvers.merging import UnfoldingSearch, merge_twins, told
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.search import Search
from solvers.symmetry import Automorphisms, automorphisms

if TYPE_CHECKING:
    from ortools.sat.python import cp_model


@dataclass(frozen=True)
class SymmetricCpSat(CpSat):
    """``cp_sat`` on the same models with Aut(problem) broken, each way of which may be left out.

    Every solution has an image under the symmetries that comes first in a fixed lexicographic order, and that one
    satisfies all the constraints together, so the optimum stays.

    * Pairwise: the color string, read in the order of first use, is not after its image under any generator, and colors
      ascend within a class of twins. (Among all renamings of colors the string ordered by first use comes first itself,
      so this goes together with value precedence.)
    * Medoid: of equal candidates only the first may open; the string of open candidates is not before its image.

    Attributes:
        merge: twins that some optimum keeps together become one item (``solvers.merging``).
        value_precedence: pairwise: color c + 1 is used only after color c, which breaks S_K.
        twins: what twins are left ascend.
        generators: a lex-leader constraint for each generator that does more than exchange twins.
        max_nodes: how far the search for symmetries may go.
    """

    merge: bool = True
    value_precedence: bool = True
    twins: bool = True
    generators: bool = True
    max_nodes: int = 20_000

    name: ClassVar[str] = "symmetric_cp_sat"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem)
    largest_graph: ClassVar[int] = 2_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.representatives:
            raise ValueError("symmetric_cp_sat orders colors, so representatives must be left False; use cp_sat")

    def refusal(self, problem: Problem) -> str:
        why = super().refusal(problem)
        if why:
            return why
        vertices = problem.size + (problem.candidates if isinstance(problem, MedoidProblem) else 0)
        if vertices > self.largest_graph:
            return f"it looks for symmetries among up to {self.largest_graph:,} items and candidates, not {vertices:,}"
        return ""

    def run(self, problem: Problem, search: Search) -> None:
        merged = merge_twins(problem) if self.merge else None
        if merged is None:
            super().run(problem, search)
        else:
            search.note(told(merged.classes))
            super().run(merged.problem, UnfoldingSearch(merged, search))

    def build(self, problem: Problem, search: Search) -> Built | None:
        assert isinstance(problem, (MedoidProblem, PairwiseProblem))
        group = automorphisms(problem, max_nodes=self.max_nodes)
        twins = sum(len(members) for members in group.twins)
        search.note(
            f"{len(group.generators)} generators of a symmetry group of order {_power(group.order)}, {twins} items in "
            f"{len(group.twins)} classes of twins" + ("" if group.complete else ", search for more cut off")
        )
        if search.expired():
            return None
        if isinstance(problem, PairwiseProblem):
            built = pairwise_model(problem, search, value_precedence=self.value_precedence)
            if self.twins:
                _order_twins(built, group)
            if self.generators:
                _lead_pairwise(built, group)
            return built
        return self._break_medoid(problem, group, search)

    def _break_medoid(self, problem: MedoidProblem, group: Automorphisms, search: Search) -> Built:
        first = np.ones(problem.candidates, bool)
        for members in group.candidate_twins if self.twins else ():
            first[list(members[1:])] = False
        built = medoid_model(problem, search, first)
        opened = built.opened or {}
        for generator in group.candidate_generators[: group.quotient] if self.generators else ():
            moved = [b for b in range(problem.candidates) if first[b] and generator[b] != b]
            # largest first: the image's string must not be after, so sides are exchanged; closed candidates read 0
            images = [opened.get(generator[b], 0) for b in moved]
            add_lexicographic(built.model, images, [opened.get(b, 0) for b in moved])
        return built


def _order_twins(built: Built, group: Automorphisms) -> None:
    """Colors ascend along each class of twins, in the order of first use: who has color c follows one of at most c."""
    place = {item: p for p, item in enumerate(built.order)}
    for members in group.twins:
        for p, q in itertools.pairwise(sorted(place[item] for item in members)):
            earlier, later = built.colored[p], built.colored[q]
            for c, variable in enumerate(later[: len(earlier) - 1]):
                built.model.add_bool_or([*earlier[: c + 1], ~variable])


def _lead_pairwise(built: Built, group: Automorphisms) -> None:
    """Generators of the quotient, whose image string of colors must not come first."""
    from ortools.sat.python import cp_model

    colors: list[cp_model.LinearExprT] = [0] * len(built.order)
    for p, item in enumerate(built.order):
        choices = built.colored[p]
        colors[item] = cp_model.LinearExpr.weighted_sum(choices, range(len(choices)))
    for generator in group.generators[: group.quotient]:
        before = [colors[item] for item in built.order if generator[item] != item]
        after = [colors[generator[item]] for item in built.order if generator[item] != item]
        add_lexicographic(built.model, before, after)


def _power(order: int) -> str:
    return str(order) if order < 10**9 else f"10^{len(str(order)) - 1}"


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
