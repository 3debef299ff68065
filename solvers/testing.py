"""Strategies for problems and colorings, and the contract that every solver is held to.

Needs hypothesis. To test a solver of your own, one call is enough; it takes a name, also a plug-in's, or an object:

>>> from solvers.testing import check_solver
>>> check_solver("greedy", max_examples=5)

One problem of yours may be varied by ``check_relations`` and ``check_equivariance``; where something fails, ``shrink``
makes the problem small and writes it down as code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray

from solvers.certify import certify
from solvers.coloring import Coloring
from solvers.exhaustive import Exhaustive
from solvers.group import GroupCost, GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.permutation_group import Orbits
from solvers.problem import Problem, inverse
from solvers.registry import find_solver
from solvers.relations import RELATIONS, Changed, Relation, change
from solvers.shrinking import as_code, restricted, shrink
from solvers.solution import Solution
from solvers.solve import solve
from solvers.solver import Solver
from solvers.sparse_medoid import SparseMedoidProblem
from solvers.symmetry import automorphisms

__all__ = [
    "as_code",
    "check_equivariance",
    "check_relations",
    "check_solver",
    "colorings",
    "group_problems",
    "medoid_problems",
    "pairwise_problems",
    "planted_medoid_problems",
    "planted_pairwise_problems",
    "rate_distortion_problem",
    "restricted",
    "shrink",
    "sparse_medoid_problems",
    "symmetries",
    "unstructured_cost",
]

MEDOID = (MedoidProblem, SparseMedoidProblem)
KINDS = (*MEDOID, PairwiseProblem, GroupProblem)
LARGEST_CHANGED = 8
"""Changed problems of more items are left out: some solvers walk through every partition."""
FEW_COSTS = st.integers(-2, 4).map(float)
"""Costs with many ties, so that problems have symmetries."""
ANY_COSTS = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 6))


@st.composite
def colorings(draw: DrawFn, size: int | None = None, max_size: int = 8) -> Coloring:
    """Colorings of ``size`` items, or of up to ``max_size``."""
    number = draw(st.integers(0, max_size)) if size is None else size
    return Coloring(draw(st.lists(st.integers(0, max(number - 1, 0)), min_size=number, max_size=number)))


@st.composite
def medoid_problems(draw: DrawFn, max_size: int = 6) -> MedoidProblem:
    """With ties, forbidden pairs, penalties and limits by label, each in some of them; they may be infeasible."""
    size, candidates = draw(st.integers(0, max_size)), draw(st.integers(1, max_size))
    costs = draw(st.sampled_from([FEW_COSTS, ANY_COSTS, st.one_of(FEW_COSTS, st.just(math.inf))]))
    matrix = [draw(st.lists(costs, min_size=candidates, max_size=candidates)) for _ in range(size)]
    penalty = draw(st.none() | st.lists(st.one_of(costs, st.just(math.inf)), min_size=size, max_size=size))
    cost = np.array(matrix, dtype=np.float64).reshape(size, candidates)
    if draw(st.integers(0, 3)):
        return MedoidProblem(cost, draw(st.integers(0 if penalty else 1, max_size)), penalty=penalty)
    group = draw(st.lists(st.sampled_from("ab"), min_size=candidates, max_size=candidates))
    limits = {label: draw(st.integers(0, 3)) for label in "ab"}
    return MedoidProblem(cost, limits, penalty=penalty, group=group)


@st.composite
def sparse_medoid_problems(draw: DrawFn, max_size: int = 6) -> SparseMedoidProblem:
    """Medoid problems of which each item lists some candidates, maybe none; they may be infeasible."""
    problem = draw(medoid_problems(max_size))
    return SparseMedoidProblem.nearest(problem, draw(st.integers(0, problem.candidates)))


@st.composite
def pairwise_problems(draw: DrawFn, max_size: int = 6) -> PairwiseProblem:
    """Clique partitioning, signed and not, and proper colorings; they may be infeasible."""
    size = draw(st.integers(0, max_size))
    pairs = size * (size - 1) // 2
    costs = draw(st.sampled_from([FEW_COSTS, ANY_COSTS, st.just(0.0)]))
    weight, conflict = np.zeros((size, size)), np.zeros((size, size), bool)
    upper = np.triu_indices(size, 1)
    weight[upper] = draw(st.lists(costs, min_size=pairs, max_size=pairs))
    if draw(st.booleans()):
        conflict[upper] = draw(st.lists(st.booleans(), min_size=pairs, max_size=pairs))
    opening = draw(st.sampled_from([0.0, 1.0, 0.75, -1.0]))
    K = draw(st.none() | st.integers(1, max_size))
    return PairwiseProblem(weight + weight.T, conflict | conflict.T, opening, K)


@st.composite
def group_problems(draw: DrawFn, max_size: int = 6) -> GroupProblem:
    """Rate–distortion prices and set functions without any structure; they may be infeasible."""
    size, seed = draw(st.integers(0, max_size)), draw(st.integers(0, 2**16))
    K = draw(st.none() | st.integers(1, max_size))
    costs = st.one_of(ANY_COSTS, st.just(math.inf))
    penalty = draw(st.none() | st.lists(costs, min_size=size, max_size=size))
    if draw(st.booleans()):
        problem = rate_distortion_problem(size, seed, price=draw(st.sampled_from([0.01, 0.03, 0.1])))
        return problem.with_limit(K) if K else problem
    kinds = np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)), dtype=np.int64)
    compatible = (kinds[:, None] == kinds[None, :]) if draw(st.booleans()) else np.ones((size, size), bool)
    return GroupProblem(size, unstructured_cost(seed), compatible=compatible, K=K, penalty=penalty)


@st.composite
def planted_pairwise_problems(draw: DrawFn, max_size: int = 6) -> PairwiseProblem:
    """Pairwise problems that a permutation of their items, drawn too, leaves as they are."""
    problem = draw(pairwise_problems(max_size))
    sigma = draw(st.permutations(range(problem.size)))
    weight = _averaged(np.where(problem.conflict, np.inf, problem.weight), sigma, sigma)
    return PairwiseProblem(np.minimum(weight, weight.T), None, problem.opening, problem.K)


@st.composite
def planted_medoid_problems(draw: DrawFn, max_size: int = 6) -> MedoidProblem:
    """Medoid problems that a permutation of items together with one of candidates leaves as they are."""
    problem = draw(medoid_problems(max_size))
    sigma, tau = draw(st.permutations(range(problem.size))), draw(st.permutations(range(problem.candidates)))
    cost = _averaged(problem.cost_matrix, sigma, tau)
    penalty = None if problem.penalty is None else _averaged(problem.penalty[:, None], sigma, [0])[:, 0]
    if problem.group is None:
        return MedoidProblem(cost, problem.K, penalty=penalty)
    label = _averaged(problem.label[:, None].astype(np.float64), tau, [0])[:, 0]
    names = list(problem.K) if isinstance(problem.K, Mapping) else []
    return MedoidProblem(cost, problem.K, penalty=penalty, group=[names[int(code)] for code in label])


def _averaged(matrix: NDArray[np.float64], sigma: Sequence[int], tau: Sequence[int]) -> NDArray[np.float64]:
    """Each entry replaced by the first of its orbit under σ on rows together with τ on columns."""
    rows, columns = matrix.shape
    place = np.arange(rows * columns).reshape(rows, columns)
    joined = Orbits(rows * columns)
    joined.add(place[np.ix_(list(sigma), list(tau))].ravel().tolist())
    first = [joined.find(at) for at in range(rows * columns)]
    result: NDArray[np.float64] = matrix.ravel()[first].reshape(rows, columns)
    return result


@st.composite
def symmetries(draw: DrawFn, problem: MedoidProblem | PairwiseProblem) -> tuple[int, ...]:
    """Elements of Aut(problem), as permutations of the items: products of up to six generators."""
    image = tuple(range(problem.size))
    found = automorphisms(problem).generators
    if found:
        for generator in draw(st.lists(st.sampled_from(found), max_size=6)):
            image = tuple(generator[i] for i in image)
    return image


def unstructured_cost(seed: int) -> GroupCost:
    """A set function with a whole price from −4 to 9, or sometimes inf, for each set, all independent."""

    def price(items: tuple[int, ...]) -> float:
        drawn = int(np.random.default_rng([seed, *items]).integers(-4, 11))
        return math.inf if drawn == 10 and len(items) > 1 else float(drawn)

    return price


def rate_distortion_problem(
    size: int, seed: int, *, price: float = 0.03, rows: int = 6, columns: int = 8, families: int = 3
) -> GroupProblem:
    """Items are random matrices out of a few families with a common row space; a class costs what sharing a basis does.

    ``f(S) = min over r of ½ Σ_{i>r} λ_i(Σ_ℓ W_ℓᵀW_ℓ) + price · (r·columns + |S|·r·rows)``, and for one matrix also
    ``price · rows · columns``, its cost left dense. This is what compression pays, with the identity as curvature.
    """
    rng = np.random.default_rng(seed)
    spaces = rng.normal(size=(families, 2, columns))
    grams = []
    for _ in range(size):
        matrix = rng.normal(size=(rows, 2)) @ spaces[rng.integers(families)] + 0.4 * rng.normal(size=(rows, columns))
        grams.append(0.3 * matrix.T @ matrix)
    ranks = np.arange(columns + 1)

    def tails(gram: NDArray[np.float64]) -> NDArray[np.float64]:
        energy = np.maximum(np.linalg.eigvalsh(gram), 0.0)
        tail: NDArray[np.float64] = 0.5 * np.concatenate([[0.0], np.cumsum(energy)])[::-1]
        return tail

    def group_cost(items: tuple[int, ...]) -> float:
        summed = np.sum([grams[item] for item in items], axis=0)
        shared = float((tails(summed) + price * ranks * (columns + rows * len(items))).min())
        return min(shared, price * rows * columns) if len(items) == 1 else shared

    # a class's basis serves no member better than its own would, and each member pays for its own coefficients
    added = np.array([float((tails(g) + price * ranks * rows).min()) for g in grams], dtype=np.float64) * (1 - 1e-12)
    shares = np.minimum(added, price * rows * columns)
    return GroupProblem(size, group_cost, item_lower_bound=shares, marginal_lower_bound=added)


def check_solver(
    solver: str | Solver, *, max_examples: int = 20, max_size: int = 5, time_limit: float = 30.0, seed: int = 0
) -> None:
    """Hold a solver to the contract, on random small problems of every kind it takes.

    The laws are the functions ``_check_*`` below. Solvers that call themselves ``exact`` must find and prove optima.

    Args:
        solver: a name or a solver object, which may be one of your own.
        max_examples: random problems of each kind.
        max_size: their largest number of items (at most 12: an exhaustive search judges them).
        time_limit: seconds for each solve; a solver that needs them all will not repeat its answers.
        seed: changes the problems drawn.

    Raises:
        AssertionError: with the law that is broken; Hypothesis prints the smallest problem that it found.
        ValueError: when the solver takes none of the kinds of problem.
    """
    tested = find_solver(solver)
    strategies: dict[type, SearchStrategy[Problem]] = {
        MedoidProblem: medoid_problems(max_size) | planted_medoid_problems(max_size),
        SparseMedoidProblem: sparse_medoid_problems(max_size),
        PairwiseProblem: pairwise_problems(max_size) | planted_pairwise_problems(max_size),
        GroupProblem: group_problems(max_size),
    }
    kinds = [kind for kind in strategies if issubclass(kind, tested.problems)]
    if not kinds:
        raise ValueError(f"solver {tested.name!r} takes none of {', '.join(kind.__name__ for kind in strategies)}")
    for kind in kinds:
        _check_kind(tested, strategies[kind], max_examples, time_limit, seed)


@dataclass(frozen=True)
class Trial:
    """One problem, the solver's answer, the true optimum, and what the laws need to vary them."""

    solver: Solver
    problem: Problem
    solution: Solution
    optimum: float
    coloring: Coloring
    relations: tuple[Relation, ...]
    seed: int
    time_limit: float

    def again(self, problem: Problem, start: Coloring | None = None) -> Solution:
        return solve(problem, self.solver, seed=self.seed, time_limit=self.time_limit, start=start)

    def same(self, first: float, second: float, factor: float = 1.0) -> bool:
        """Equal but for rounding."""
        if math.isinf(first) or math.isinf(second):
            return first == second
        unit = max(abs(first), abs(second), factor * self.problem.scale * max(self.problem.size, 1))
        return abs(first - second) <= 1e-6 * unit

    def at_most(self, first: float, second: float) -> bool:
        return first <= second or self.same(first, second)


def _check_kind(
    solver: Solver, problems: SearchStrategy[Problem], max_examples: int, time_limit: float, seed: int
) -> None:
    from hypothesis import seed as seeded

    @seeded(seed)
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        phases=(Phase.generate, Phase.target, Phase.shrink),
    )
    @given(problem=problems, data=st.data(), solve_seed=st.integers(0, 2**31))
    def holds(problem: Problem, data: st.DataObject, solve_seed: int) -> None:
        assume(solver.supports(problem))
        note(as_code(problem))
        trial = Trial(
            solver=solver,
            problem=problem,
            solution=solve(problem, solver, seed=solve_seed, time_limit=time_limit),
            optimum=solve(_dense(problem), Exhaustive(), time_limit=math.inf).cost,
            coloring=data.draw(colorings(problem.size)),
            relations=tuple(RELATIONS[(solve_seed + at) % len(RELATIONS)] for at in range(3)),
            seed=solve_seed,
            time_limit=time_limit,
        )
        for law in LAWS:
            law(trial)

    holds()


def _dense(problem: Problem) -> Problem:
    return problem.dense() if isinstance(problem, SparseMedoidProblem) else problem


def check_relations(
    problem: Problem, solver: str | Solver = "auto", *, seed: int = 0, draws: int = 3, time_limit: float = 30.0
) -> None:
    """Hold a solver to every metamorphic relation (``solvers.relations``) on one problem of any size.

    No oracle is needed: a bound of the changed problem may not be above what a coloring of the first one becomes, and
    an exact solver must find the optimum that follows from its own.

    Args:
        problem: of a kind that the solver takes.
        solver: a name or an object.
        seed: for the solver and for what relations draw.
        draws: random colorings whose costs are followed, besides the solver's.
        time_limit: seconds for each solve. A run cut short is only held to its bounds.

    Raises:
        AssertionError: with the relation that is broken and both numbers.
    """
    tested = find_solver(solver)
    assert isinstance(problem, KINDS)
    first = solve(problem, tested, seed=seed, time_limit=time_limit)
    rng = np.random.default_rng(seed)
    colorings = [Coloring(rng.integers(0, max(problem.limit, 1), problem.size).tolist()) for _ in range(draws)]
    settled = tested.exact and first.status != "time_limit"
    for relation in RELATIONS:
        changed = change(relation, problem, np.random.default_rng(seed))
        if changed is None or not tested.supports(changed.problem):
            continue
        again = solve(changed.problem, tested, seed=seed, time_limit=time_limit)
        for coloring in [*colorings, *([first.coloring] if first.coloring is not None else [])]:
            t = Trial(tested, problem, first, -math.inf, coloring, (), seed, time_limit)
            expected = changed.factor * problem.cost(coloring) + changed.offset(coloring)
            found = changed.problem.cost(changed.carry(coloring))
            _require(t.same(found, expected, 8), f"{changed.name}: {coloring} comes to cost {found}, not {expected}")
            above = again.lower_bound > expected and not t.same(again.lower_bound, expected, 8)
            _require(not above, f"{changed.name}: the bound {again.lower_bound} is above a cost of {expected}")
        if changed.constant is not None and settled and again.status != "time_limit":
            expected = changed.factor * first.cost + changed.constant
            t = Trial(tested, problem, first, -math.inf, Coloring([]), (), seed, time_limit)
            _require(t.same(again.cost, expected, 8), f"{changed.name}: an optimum of {again.cost}, not {expected}")


def check_equivariance(
    problem: Problem,
    solver: str | Solver | None = None,
    *,
    sigma: Sequence[int] | None = None,
    seed: int = 0,
    time_limit: float = 30.0,
) -> None:
    """Renaming the items renames nothing but the items: costs, symmetries and, of an exact solver, the optimum.

    Args:
        problem: any problem, one of your own kind too where it has ``permute`` and ``cost``.
        solver: an exact solver whose optimum must not depend on the order of the items; None: none is run.
        sigma: item i is renamed ``sigma[i]``; drawn from ``seed`` if None.

    Raises:
        AssertionError: with what changed, and both values.
    """
    rng = np.random.default_rng(seed)
    size = problem.size
    renamed = [int(i) for i in (rng.permutation(size) if sigma is None else sigma)]
    moved = problem.permute(renamed)
    restored = moved.permute(inverse(renamed).tolist())
    unit = 1e-9 * max(problem.scale, moved.scale) * max(size, 1)

    def same(first: float, second: float) -> bool:
        return first == second or abs(first - second) <= max(unit, 1e-9 * max(abs(first), abs(second)))

    for number in range(1, min(size, 6) + 1):
        coloring = Coloring(rng.integers(0, number, size).tolist())
        before, after = problem.cost(coloring), moved.cost(coloring.permute(renamed))
        _require(same(before, after), f"{coloring} costs {before}, renamed by {renamed} {after}")
        back = restored.cost(coloring)
        _require(same(before, back), f"{coloring} costs {before}, {back} once items are renamed forth and back")
    if isinstance(problem, (MedoidProblem, PairwiseProblem)) and isinstance(moved, (MedoidProblem, PairwiseProblem)):
        before_group, after_group = automorphisms(problem), automorphisms(moved)
        if before_group.complete and after_group.complete:
            orders = before_group.order, after_group.order
            _require(orders[0] == orders[1], f"{orders[0]} symmetries, once items are renamed {orders[1]}")
            images = sorted(sorted(renamed[item] for item in orbit) for orbit in before_group.orbits)
            found = sorted(sorted(orbit) for orbit in after_group.orbits)
            _require(images == found, f"orbits {found}, not {images}, once items are renamed by {renamed}")
    if solver is not None:
        first, second = (solve(p, solver, seed=seed, time_limit=time_limit) for p in (problem, moved))
        if find_solver(solver).exact and "time_limit" not in (first.status, second.status):
            costs = first.cost, second.cost
            _require(same(*costs), f"an optimum of {costs[0]}, once items are renamed {costs[1]}")
        for bound, cost in ((first.lower_bound, second.cost), (second.lower_bound, first.cost)):
            _require(bound <= cost or same(bound, cost), f"the bound {bound} is above {cost}, items renamed")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _check_price(t: Trial) -> None:
    """The solution's cost is the problem's price of its coloring, which keeps every conflict and K."""
    s = t.solution
    if s.coloring is None:
        _require(s.cost == math.inf and s.status in ("infeasible", "time_limit", "unknown"), f"no coloring, yet {s}")
        return
    _require(len(s.coloring) == t.problem.size, f"{s.coloring} colors {len(s.coloring)} of {t.problem.size} items")
    _require(s.cost == t.problem.cost(s.coloring), f"the cost {s.cost} is not the price of {s.coloring}")
    _require(math.isfinite(s.cost), f"{s.coloring} is not allowed, yet it was returned")
    pairs = t.problem.compatibility()
    for members in s.coloring.classes():
        _require(bool(pairs[np.ix_(members, members)].all()), f"the class {members} holds a conflict")


def _check_bound(t: Trial) -> None:
    """bound ≤ optimum ≤ cost; ``optimal`` is said of optima only, and an exact solver ends with one and its proof."""
    s = t.solution
    _require(t.at_most(s.lower_bound, t.optimum), f"the bound {s.lower_bound} is above the optimum {t.optimum}")
    _require(t.at_most(t.optimum, s.cost), f"the cost {s.cost} is below the optimum {t.optimum}")
    _require(s.lower_bound <= s.cost, f"the bound {s.lower_bound} is above the cost {s.cost}")
    _require((s.status == "infeasible") == (s.lower_bound == math.inf), f"{s.status} by a bound of {s.lower_bound}")
    if s.status == "optimal":
        _require(t.same(s.cost, t.optimum), f"{s.cost} is called optimal, but {t.optimum} is")
    if t.solver.exact:
        _require(t.same(s.cost, t.optimum), f"an exact solver found {s.cost}, the optimum is {t.optimum}")
        _require(t.same(s.lower_bound, t.optimum), f"an exact solver proves {s.lower_bound}, not {t.optimum}")


def _check_evidence(t: Trial) -> None:
    """An independent check finds the same cost, and a bound no better than the optimum."""
    verdict = certify(t.problem, t.solution)
    _require(verdict.sound, str(verdict))
    _require(t.at_most(verdict.bound, t.optimum), f"its certificate proves {verdict.bound}, above {t.optimum}")


def _check_repeats(t: Trial) -> None:
    """The same seed gives the same answer, also where a deterministic clock cuts the run short."""
    limited = [solve(t.problem, t.solver, seed=t.seed, time_limit=1e-3, deterministic=True) for _ in range(2)]
    for first, second in ((t.solution, t.again(t.problem)), limited):
        answers = [(s.coloring, s.cost, s.lower_bound, s.status) for s in (first, second)]
        _require(answers[0] == answers[1], f"one seed gave two answers: {answers[0]} and {answers[1]}")


def _check_start(t: Trial) -> None:
    """The answer is never worse than the start, whose colors may have any names."""
    renamed = Coloring([-color for color in t.coloring])
    _require(renamed == t.coloring, "the names of colors tell colorings apart")
    found = t.again(t.problem, renamed)
    _require(found.cost <= t.problem.cost(t.coloring), f"from {t.coloring} it came to {found.coloring}, which is worse")


def _check_automorphisms(t: Trial) -> None:
    """A symmetry of the problem keeps the cost of every coloring."""
    if not isinstance(t.problem, (MedoidProblem, PairwiseProblem)):
        return
    for generator in automorphisms(t.problem).generators:
        for coloring in {t.coloring, t.solution.coloring or t.coloring}:
            before, after = t.problem.cost(coloring), t.problem.cost(coloring.permute(generator))
            _require(t.same(before, after), f"{coloring} costs {before}, its image under {generator} {after}")


def _check_relations(t: Trial) -> None:
    """What is known of a changed problem holds: of the cost of a coloring, of the optimum, of the solver's bound."""
    assert isinstance(t.problem, KINDS)
    for relation in t.relations:
        changed = change(relation, t.problem, np.random.default_rng(t.seed))
        if changed is not None and changed.problem.size <= LARGEST_CHANGED:
            _check_relation(t, changed)


def _check_relation(t: Trial, changed: Changed) -> None:
    image = changed.carry(t.coloring)
    expected = changed.factor * t.problem.cost(t.coloring) + changed.offset(t.coloring)
    found = changed.problem.cost(image)
    _require(t.same(found, expected, 8), f"{changed.name}: {image} costs {found}, not {expected}")
    if changed.constant is None or not t.solver.supports(changed.problem):
        return
    optimum = changed.factor * t.optimum + changed.constant
    again = t.again(changed.problem)
    bound = again.lower_bound
    _require(bound <= optimum or t.same(bound, optimum, 8), f"{changed.name}: the bound {bound} is above {optimum}")
    if t.solver.exact:
        _require(t.same(again.cost, optimum, 8), f"{changed.name}: an optimum of {again.cost}, not {optimum}")


def _check_limit(t: Trial) -> None:
    """An exact solver's cost falls with K, and K = L gives the optimum without a limit."""
    p = t.problem
    if not t.solver.exact or p.size == 0 or (isinstance(p, MEDOID) and p.group is not None):
        return
    assert isinstance(p, KINDS)
    costs = [t.again(p.with_limit(K)).cost for K in range(1, p.size + 1)]
    for fewer, more in itertools.pairwise(costs):
        _require(t.at_most(more, fewer), f"a larger K costs more: {costs} for K from 1")
    free = t.again(p.with_limit(p.size + 5) if isinstance(p, MEDOID) else p.with_limit(None)).cost
    _require(t.same(costs[-1], free), f"K = L costs {costs[-1]}, without a limit {free}")


LAWS: tuple[Callable[[Trial], None], ...] = (
    _check_price,
    _check_bound,
    _check_evidence,
    _check_repeats,
    _check_start,
    _check_automorphisms,
    _check_relations,
    _check_limit,
)
