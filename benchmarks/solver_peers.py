"""What people use today for these problems, as solvers: they run in the same race under the same limit.

Each is the plain textbook use of a well-known package, with no help from ours; ``solve`` prices what they find.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from solvers import Coloring, MedoidProblem, PairwiseProblem, Problem, Search, Solver
from solvers.scaling import Scaling

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Choices = dict[int, "cp_model.IntVar"]
"""The Boolean of each choice of an item."""


@dataclass(frozen=True)
class FasterPam(Solver):
    """k-medoids by FasterPAM (Schubert & Rousseeuw 2021), package kmedoids: the best of several random starts."""

    starts: int = 10

    name: ClassVar[str] = "kmedoids"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem,)

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, MedoidProblem):
            if problem.size != problem.candidates or problem.group is not None or problem.penalty is not None:
                return "it takes a square matrix, no labels and no penalties"
            if importlib.util.find_spec("kmedoids") is None:
                return "the package kmedoids is not installed"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        import kmedoids

        assert isinstance(problem, MedoidProblem)
        costs = problem.cost_matrix
        dissimilarity = np.where(np.isfinite(costs), costs, 10 * problem.scale * problem.size + 1)
        for start in range(self.starts):
            found = kmedoids.fasterpam(dissimilarity, problem.limit, random_state=search.seed + start)
            search.offer(problem.assign([int(medoid) for medoid in found.medoids]))
            if search.expired():
                break


@dataclass(frozen=True)
class HighsMedoid(Solver):
    """The textbook p-median MILP in HiGHS, through scipy: ``x[ℓ, b] ≤ y[b]``, ``Σ_b x[ℓ, b] = 1``, ``Σ y ≤ K``."""

    name: ClassVar[str] = "highs_milp"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem,)
    largest: ClassVar[int] = 1_000_000

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, MedoidProblem):
            if problem.penalty is not None:
                return "its model has no penalties"
            if problem.cost_matrix.size > self.largest:
                return f"its model would have more than {self.largest:,} variables"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        assert isinstance(problem, MedoidProblem)
        item, candidate = np.nonzero(np.isfinite(problem.cost_matrix))
        pairs, size, candidates = len(item), problem.size, problem.candidates
        each = np.arange(pairs)
        assign = csr_array((np.ones(pairs), (item, candidates + each)), shape=(size, candidates + pairs))
        link = csr_array(
            (np.r_[np.ones(pairs), -np.ones(pairs)], (np.r_[each, each], np.r_[candidates + each, candidate])),
            shape=(pairs, candidates + pairs),
        )
        labels = problem.label
        count = csr_array(
            (np.ones(candidates), (labels, np.arange(candidates))), shape=(len(problem.limits), candidates + pairs)
        )
        result = milp(
            np.r_[np.zeros(candidates), problem.cost_matrix[item, candidate]],
            integrality=np.r_[np.ones(candidates), np.zeros(pairs)],
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(assign, 1, 1),
                LinearConstraint(link, -np.inf, 0),
                LinearConstraint(count, -np.inf, problem.limits),
            ],
            options={"time_limit": search.remaining()} if math.isfinite(search.time_limit) else {},
        )
        if result.x is not None:
            search.offer(problem.assign(np.flatnonzero(result.x[:candidates] > 0.5).tolist()))
        bound = getattr(result, "mip_dual_bound", None)
        if bound is not None and math.isfinite(bound):
            search.prove(bound - 1e-6 * abs(bound), proof="HiGHS's own bound")
        search.expired()


@dataclass(frozen=True)
class PlainCpSat(Solver):
    """CP-SAT on the model that comes to mind first: an integer color for each item, or a Boolean for each pair."""

    name: ClassVar[str] = "plain_cp_sat"
    problems: ClassVar[tuple[type, ...]] = (MedoidProblem, PairwiseProblem)
    largest: ClassVar[int] = 2_000_000

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, MedoidProblem) and (
            problem.penalty is not None or problem.cost_matrix.size > self.largest
        ):
            return "its model has no penalties and a limited size"
        if isinstance(problem, PairwiseProblem) and problem.size**2 * problem.limit > self.largest:
            return "its model would be too large"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        from ortools.sat.python import cp_model

        model = cp_model.CpModel()
        if isinstance(problem, MedoidProblem):
            choices, scaling, error = _medoid_choices(model, problem)
        else:
            assert isinstance(problem, PairwiseProblem)
            choices, scaling, error = _color_choices(model, problem)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = search.seed % 2**31
        if math.isfinite(search.remaining()):
            solver.parameters.max_time_in_seconds = search.remaining()
        status = solver.solve(model)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            search.offer(Coloring([next(c for c, v in row.items() if solver.boolean_value(v)) for row in choices]))
        if status == cp_model.INFEASIBLE:
            search.prove(math.inf, proof="CP-SAT's search, exhausted")
        elif math.isfinite(solver.best_objective_bound):
            search.prove(solver.best_objective_bound / scaling.factor - error, proof="CP-SAT's own bound")
        search.cut_short = search.expired() or status == cp_model.UNKNOWN


def _medoid_choices(model: cp_model.CpModel, problem: MedoidProblem) -> tuple[list[Choices], Scaling, float]:
    """The Booleans "item takes candidate", with the objective in the model; its scaling and rounding error."""
    costs = problem.cost_matrix
    finite = np.isfinite(costs)
    scaling = Scaling.for_total(float(np.abs(costs[finite]).sum()))
    opened = [model.new_bool_var("") for _ in range(problem.candidates)]
    choices: list[Choices] = []
    terms: list[cp_model.IntVar] = []
    weights: list[int] = []
    for item in range(problem.size):
        takes = {int(b): model.new_bool_var("") for b in np.flatnonzero(finite[item])}
        model.add_exactly_one(takes.values())
        for b, variable in takes.items():
            model.add_implication(variable, opened[b])
        terms.extend(takes.values())
        weights.extend(scaling.integers(costs[item, list(takes)]).tolist())
        choices.append(takes)
    for code, limit in enumerate(problem.limits):
        model.add(sum(v for b, v in enumerate(opened) if problem.label[b] == code) <= int(limit))
    _minimize(model, terms, weights)
    return choices, scaling, 0.5 * problem.size / scaling.factor


def _color_choices(model: cp_model.CpModel, problem: PairwiseProblem) -> tuple[list[Choices], Scaling, float]:
    """The Booleans "item has color", with the objective in the model; its scaling and rounding error."""
    weight, number = problem.weight, problem.limit
    scaling = Scaling.for_total(float(np.abs(weight).sum()) + abs(problem.opening) * number)
    choices: list[Choices] = [{c: model.new_bool_var("") for c in range(number)} for _ in range(problem.size)]
    used = [model.new_bool_var("") for _ in range(number)]
    terms, weights = list(used), [int(scaling.integers(np.array([problem.opening]))[0])] * number
    for row in choices:
        model.add_exactly_one(row.values())
    for c in range(number):
        model.add_max_equality(used[c], [row[c] for row in choices])
    for i in range(problem.size):
        for j in range(i):
            if problem.conflict[i, j]:
                for c in range(number):
                    model.add_bool_or([~choices[i][c], ~choices[j][c]])
            elif weight[i, j]:
                same = model.new_bool_var("")
                terms.append(same)
                weights.append(int(scaling.integers(weight[[i], [j]])[0]))
                for c in range(number):
                    model.add_bool_or([~choices[i][c], ~choices[j][c], same])
                    model.add_bool_or([~same, ~choices[i][c], choices[j][c]])
    _minimize(model, terms, weights)
    return choices, scaling, 0.5 * len(terms) / scaling.factor


def _minimize(model: cp_model.CpModel, terms: list[cp_model.IntVar], weights: list[int]) -> None:
    from ortools.sat.python import cp_model

    model.minimize(cp_model.LinearExpr.weighted_sum(terms, weights))


@dataclass(frozen=True)
class SklearnSpectral(Solver):
    """Spectral clustering on ``exp(−weight / median)``, package scikit-learn, at K classes."""

    name: ClassVar[str] = "sklearn_spectral"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, PairwiseProblem):
            if problem.K is None or not 1 < problem.limit < problem.size:
                return "it needs a K between 1 and the number of items"
            if importlib.util.find_spec("sklearn") is None:
                return "the package scikit-learn is not installed"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        from sklearn.cluster import SpectralClustering

        assert isinstance(problem, PairwiseProblem)
        forbidden = 2 * float(np.abs(problem.weight).max(initial=1.0))
        weight = problem.weight + forbidden * problem.conflict
        sizes = np.abs(weight[weight != 0])
        similarity = np.exp(-weight / (float(np.median(sizes)) if sizes.size else 1.0))
        clustering = SpectralClustering(problem.limit, affinity="precomputed", random_state=search.seed % 2**31)
        search.offer(Coloring(clustering.fit_predict((similarity + similarity.T) / 2).tolist()))


@dataclass(frozen=True)
class NetworkxColoring(Solver):
    """The best of networkx's greedy colorings: largest first, smallest last, saturation largest first."""

    name: ClassVar[str] = "networkx_greedy"
    problems: ClassVar[tuple[type, ...]] = (PairwiseProblem,)

    def refusal(self, problem: Problem) -> str:
        if isinstance(problem, PairwiseProblem) and not problem.weightless:
            return "it colors graphs without weights"
        return super().refusal(problem)

    def run(self, problem: Problem, search: Search) -> None:
        import networkx as nx

        assert isinstance(problem, PairwiseProblem)
        graph: nx.Graph[int] = nx.Graph()
        graph.add_nodes_from(range(problem.size))
        graph.add_edges_from((i, j) for i, j in np.argwhere(np.triu(problem.conflict)).tolist())
        for strategy in ("largest_first", "smallest_last", "DSATUR"):
            colors = nx.greedy_color(graph, strategy)
            search.offer(Coloring([colors[item] for item in range(problem.size)]))
            if search.expired():
                break


PEERS: tuple[type[Solver], ...] = (FasterPam, HighsMedoid, PlainCpSat, SklearnSpectral, NetworkxColoring)
