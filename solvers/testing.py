"""Strategies for problems and colorings, and the contract that every solver is held to.

Needs hypothesis. To test a solver of your own, one call is enough:

>>> from solvers.testing import check_solver
>>> check_solver("greedy", max_examples=5)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray

from solvers.certify import certify
from solvers.coloring import Coloring
from solvers.exhaustive import Exhaustive
from solvers.group import GroupCost, GroupProblem
from solvers.medoid import MedoidProblem
from solvers.pairwise import PairwiseProblem
from solvers.problem import Problem
from solvers.registry import find_solver
from solvers.solution import Solution
from solvers.solve import solve
from solvers.solver import Solver
from solvers.symmetry import automorphisms

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
    shares = [min(price * rows * columns, float((tails(g) + price * ranks * rows).min())) for g in grams]
    return GroupProblem(size, group_cost, item_lower_bound=np.array(shares, dtype=np.float64) * (1 - 1e-12))


def scaled(problem: Problem, factor: float) -> Problem:
    """The problem with every cost multiplied by ``factor`` > 0."""
    if isinstance(problem, MedoidProblem):
        penalty = None if problem.penalty is None else problem.penalty * factor
        return MedoidProblem(problem.cost_matrix * factor, problem.K, penalty=penalty, group=problem.group)
    if isinstance(problem, PairwiseProblem):
        return PairwiseProblem(problem.weight * factor, problem.conflict, problem.opening * factor, problem.K)
    assert isinstance(problem, GroupProblem)
    return _changed(problem, lambda items, cost: cost * factor, lambda penalty: penalty * factor)


def shifted(problem: Problem, amount: float) -> Problem:
    """The problem with ``amount`` added for each item, whatever becomes of it; for each color of a pairwise problem."""
    if isinstance(problem, MedoidProblem):
        penalty = None if problem.penalty is None else problem.penalty + amount
        return MedoidProblem(problem.cost_matrix + amount, problem.K, penalty=penalty, group=problem.group)
    if isinstance(problem, PairwiseProblem):
        return PairwiseProblem(problem.weight, problem.conflict, problem.opening + amount, problem.K)
    assert isinstance(problem, GroupProblem)
    return _changed(problem, lambda items, cost: cost + amount * len(items), lambda penalty: penalty + amount)


def _changed(
    problem: GroupProblem,
    cost: Callable[[tuple[int, ...], float], float],
    penalty: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> GroupProblem:
    return GroupProblem(
        problem.size,
        lambda items: cost(items, problem.class_cost(items)),
        compatible=problem.compatible,
        K=problem.K,
        penalty=None if problem.penalty is None else penalty(problem.penalty),
    )


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
        MedoidProblem: medoid_problems(max_size),
        PairwiseProblem: pairwise_problems(max_size),
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
    sigma: tuple[int, ...]
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
    )
    @given(problem=problems, data=st.data(), solve_seed=st.integers(0, 2**31))
    def holds(problem: Problem, data: st.DataObject, solve_seed: int) -> None:
        assume(solver.supports(problem))
        note(_described(problem))
        trial = Trial(
            solver=solver,
            problem=problem,
            solution=solve(problem, solver, seed=solve_seed, time_limit=time_limit),
            optimum=solve(problem, Exhaustive(), time_limit=math.inf).cost,
            coloring=data.draw(colorings(problem.size)),
            sigma=tuple(data.draw(st.permutations(range(problem.size)))),
            seed=solve_seed,
            time_limit=time_limit,
        )
        for law in LAWS:
            law(trial)

    holds()


def _described(problem: Problem) -> str:
    """The problem in full: dataclasses abbreviate their arrays."""
    if isinstance(problem, MedoidProblem):
        penalty = None if problem.penalty is None else problem.penalty.tolist()
        return f"MedoidProblem({problem.cost_matrix.tolist()}, {problem.K}, penalty={penalty}, group={problem.group})"
    if isinstance(problem, PairwiseProblem):
        conflict = problem.conflict.astype(int).tolist()
        return f"PairwiseProblem({problem.weight.tolist()}, {conflict}, {problem.opening}, {problem.K})"
    return repr(problem)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _check_price(t: Trial) -> None:
    """The solution's cost is the problem's price of its coloring, which keeps every conflict and K."""
    s = t.solution
    if s.coloring is None:
        _require(s.cost == math.inf and s.status in ("infeasible", "time_limit"), f"no coloring, yet {s}")
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


def _check_relabelling(t: Trial) -> None:
    """Renaming the items renames nothing but the items."""
    moved = t.problem.permute(t.sigma)
    before, after = t.problem.cost(t.coloring), moved.cost(t.coloring.permute(t.sigma))
    _require(t.same(before, after), f"{t.coloring} costs {before}, its image under {t.sigma} {after}")
    if t.solver.exact:
        _require(t.same(t.again(moved).cost, t.optimum), f"another optimum once items are renamed by {t.sigma}")


def _check_automorphisms(t: Trial) -> None:
    """A symmetry of the problem keeps the cost of every coloring."""
    if not isinstance(t.problem, (MedoidProblem, PairwiseProblem)):
        return
    for generator in automorphisms(t.problem).generators:
        for coloring in {t.coloring, t.solution.coloring or t.coloring}:
            before, after = t.problem.cost(coloring), t.problem.cost(coloring.permute(generator))
            _require(t.same(before, after), f"{coloring} costs {before}, its image under {generator} {after}")


def _check_scaling(t: Trial) -> None:
    """Costs times 8 cost 8 times as much; costs shifted by 4 an item cost 4 more an item."""
    larger, higher = scaled(t.problem, 8.0), shifted(t.problem, 4.0)
    pairwise = isinstance(t.problem, PairwiseProblem)
    before = t.problem.cost(t.coloring)
    number = t.coloring.number_of_colors if pairwise else t.problem.size
    _require(t.same(larger.cost(t.coloring), 8 * before, 8), f"{t.coloring} does not scale with the costs")
    _require(t.same(higher.cost(t.coloring), before + 4 * number, 4), f"{t.coloring} does not shift with the costs")
    if t.solver.exact:
        _require(t.same(t.again(larger).cost, 8 * t.optimum, 8), "the optimum does not scale with the costs")
        if not pairwise:
            found = t.again(higher).cost
            _require(t.same(found, t.optimum + 4 * t.problem.size, 4), "the optimum does not shift with the costs")


def _check_limit(t: Trial) -> None:
    """An exact solver's cost falls with K, and K = L gives the optimum without a limit."""
    p = t.problem
    if not t.solver.exact or p.size == 0 or (isinstance(p, MedoidProblem) and p.group is not None):
        return
    assert isinstance(p, (MedoidProblem, PairwiseProblem, GroupProblem))
    costs = [t.again(p.with_limit(K)).cost for K in range(1, p.size + 1)]
    for fewer, more in itertools.pairwise(costs):
        _require(t.at_most(more, fewer), f"a larger K costs more: {costs} for K from 1")
    free = t.again(p.with_limit(p.size + 5) if isinstance(p, MedoidProblem) else p.with_limit(None)).cost
    _require(t.same(costs[-1], free), f"K = L costs {costs[-1]}, without a limit {free}")


LAWS: tuple[Callable[[Trial], None], ...] = (
    _check_price,
    _check_bound,
    _check_evidence,
    _check_repeats,
    _check_start,
    _check_relabelling,
    _check_automorphisms,
    _check_scaling,
    _check_limit,
)
