"""Lagrangian relaxation and branch and Benders-cut, against every set of candidates that there is."""

import csv
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Benders, Lagrangian, MedoidProblem, certify, formats, solve
from solvers.benders_master import Master
from solvers.medoid_core import Core
from solvers.medoid_relaxation import DenseCosts, Relaxation, cutoff_of
from solvers.medoid_search import OpenSet
from solvers.search import Search
from solvers.testing import medoid_problems
from tests.solvers.brute_force import best_open_set
from tests.solvers.interrupting import interrupted_in_highs

PMED = Path(__file__).parents[3] / "shared/bench/solver/pmed"


def random_problem(seed, size=9, candidates=8, forbidden=0.0, labels=0, penalties=False, whole=False):
    rng = np.random.default_rng(seed)
    cost = rng.random((size, candidates)) * 10
    cost = np.rint(cost) if whole else cost
    cost[rng.random(cost.shape) < forbidden] = math.inf
    penalty = np.rint(rng.random(size) * 12) if penalties else None
    if not labels:
        return MedoidProblem(cost, 3, penalty=penalty)
    group = rng.integers(labels, size=candidates).tolist()
    return MedoidProblem(cost, {label: label + 1 for label in range(labels)}, penalty=penalty, group=group)


KINDS = [
    {},
    {"whole": True},
    {"forbidden": 0.5},
    {"forbidden": 0.7, "whole": True},
    {"labels": 2},
    {"labels": 3, "forbidden": 0.3},
    {"penalties": True, "whole": True},
    {"penalties": True, "labels": 2, "forbidden": 0.4},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("steps", [0, 3, 600])
@pytest.mark.parametrize("few", [0, 12], ids=["program", "multipliers"])
def test_the_tree_finds_and_proves_the_optimum_wherever_the_multipliers_leave_it(kind, steps, few):
    for seed in range(6):
        problem = random_problem(seed, **kind)
        solution, best = solve(problem, Benders(steps=steps, probes=2, few=few), seed=seed), best_open_set(problem)
        assert solution.status == ("optimal" if math.isfinite(best) else "infeasible")
        assert solution.cost == pytest.approx(best)
        assert solution.lower_bound == pytest.approx(best)
        assert certify(problem, solution).sound


@settings(deadline=None, max_examples=80)
@given(medoid_problems(max_size=6), st.integers(0, 40))
def test_lagrangian_bounds_and_colorings_enclose_the_optimum(problem, steps):
    solution, best = solve(problem, Lagrangian(steps=steps)), best_open_set(problem)
    slack = 1e-9 * (1 + problem.scale * problem.size)
    assert solution.lower_bound <= best + slack
    assert solution.cost >= best - slack
    assert certify(problem, solution).sound


def relaxed(problem, seed=0):
    state = OpenSet(problem)
    costs = DenseCosts(state.columns[:-1], state.columns[-1], problem.label, problem.limits)
    u = np.random.default_rng(seed).random(problem.size) * 8
    return Relaxation(costs, u, math.inf)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fixed_candidates_are_those_that_every_better_coloring_shares(kind):
    """Fixing at a cutoff just above the optimum keeps an optimal set; at any lower cutoff it may do as it likes."""
    import itertools

    fixed = 0
    for seed in range(8):
        problem = random_problem(seed, **kind)
        best = best_open_set(problem)
        if not math.isfinite(best):
            continue
        relaxation = relaxed(problem, seed)
        cutoff = best * (1 + 1e-9) + 1e-9
        relaxation.climb(Search(problem), 40, lambda: math.inf)
        relaxation.fix(relaxation.best, cutoff)
        fixed += int((~relaxation.usable).sum() + relaxation.always.sum())
        optimal = []
        for number in range(int(problem.limits.sum()) + 1):
            for opened in itertools.combinations(range(problem.candidates), number):
                if (np.bincount(problem.label[list(opened)], minlength=len(problem.limits)) > problem.limits).any():
                    continue
                costs = np.column_stack([problem.cost_matrix[:, list(opened)], problem.penalties()])
                if costs.min(axis=1).sum() <= cutoff:
                    optimal.append(set(opened))
        always = set(np.flatnonzero(relaxation.always).tolist())
        assert any(relaxation.usable[list(opened)].all() and always <= opened for opened in optimal)
    assert fixed > 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_multipliers_of_the_linear_program_prove_all_that_it_says(kind):
    """Every cut holds at every set of candidates, and L(u) at the dual prices is no less than the program's value."""
    problem = random_problem(3, **kind)
    state = OpenSet(problem)
    everything = np.ones(problem.candidates, bool)
    core = Core.of(state.columns[:-1], state.columns[-1], problem.label, problem.limits, everything, ~everything)
    master = Master(core, 100.0, 0)
    rng = np.random.default_rng(0)
    value = -math.inf
    for _ in range(30):
        answer = master.solve(everything, ~everything, math.inf)
        assert answer.solved
        assert answer.objective >= value - 1e-6
        value = answer.objective
        bound, _, _ = core.bound(answer.u, everything, ~everything)
        assert bound >= core.offset + value - 1e-6 * abs(bound)
        if not master.separate(answer, 1e-7):
            break
    assert bound <= best_open_set(problem) + 1e-9 or math.isinf(best_open_set(problem))
    for _ in range(20):
        chosen = np.flatnonzero(rng.random(problem.candidates) < 0.4)
        paid = np.minimum(core.columns[chosen].min(axis=0, initial=math.inf), core.cap)
        for item, right in zip(master.items, master.rights, strict=True):
            assert paid[item] >= right - np.maximum(right - core.columns[chosen, item], 0).sum() - 1e-9
        assert core.cost(chosen) == pytest.approx(
            np.minimum(state.columns[chosen].min(axis=0, initial=math.inf), state.columns[-1]).sum()
        )


def test_what_is_fixed_is_taken_out_of_the_core():
    problem = random_problem(1, size=12)
    state = OpenSet(problem)
    usable, always = np.ones(8, bool), np.zeros(8, bool)
    usable[[0, 5]], always[[2]] = False, True
    core = Core.of(state.columns[:-1], state.columns[-1], problem.label, problem.limits, usable, always)
    assert core.names.tolist() == [1, 3, 4, 6, 7]
    assert core.limits.tolist() == [2]
    assert len(core.items) < 12  # those whose cheapest candidate is open already are decided
    for chosen in ([], [0], [1, 4]):
        opened = [2, *core.names[chosen].tolist()]
        assert core.cost(np.array(chosen, dtype=int)) == pytest.approx(problem.cost_matrix[:, opened].min(axis=1).sum())


def test_cutoffs_leave_room_for_nothing_but_rounding():
    whole = MedoidProblem([[4, 10], [6, 2]], K=1)
    assert 8 < cutoff_of(10.0, whole) < 8 + 1e-5
    assert cutoff_of(math.inf, whole) == math.inf
    assert cutoff_of(10.0, MedoidProblem([[0.5]], 1)) == pytest.approx(10 - 1e-6)


def hard(seed=0, size=120, K=8):
    """Random costs without any structure: the relaxation leaves a gap."""
    return MedoidProblem(np.random.default_rng(seed).random((size, size)), K)


def test_a_time_limit_is_kept_and_leaves_a_coloring_and_a_bound():
    began = time.perf_counter()
    solution = solve(hard(K=16), Benders(), time_limit=0.4)
    assert solution.status == "time_limit"
    assert 0 < solution.gap < 0.5
    assert certify(hard(K=16), solution).sound
    assert time.perf_counter() - began < 5  # generous: the machine may be busy


@pytest.mark.parametrize("K", [8, 16])
def test_a_deterministic_run_cut_short_repeats_itself(K):
    first, second = (solve(hard(K=K), "benders", time_limit=0.3, deterministic=True, seed=4) for _ in range(2))
    assert first.status == "time_limit"
    assert (first.coloring, first.lower_bound) == (second.coloring, second.lower_bound)


def test_ctrl_c_returns_the_best_coloring_and_a_bound_that_holds():
    program = """
problem = solvers.MedoidProblem(np.random.default_rng(0).random((200, 200)), 16)
solution = solvers.solve(problem, "benders", time_limit=600)
print(solution.interrupted, 0 < solution.lower_bound < solution.cost, solvers.certify(problem, solution).sound)
"""
    done = interrupted_in_highs(program)
    assert done.stdout.split() == ["True", "True", "True"], done.stderr


@pytest.mark.skipif(not PMED.exists(), reason="the OR-Library instances are not here")
@pytest.mark.parametrize("name", ["pmed1", "pmed3", "pmed9", "pmed13", "pmed15", "pmed23", "pmed29"])
def test_known_optima_are_proven(name):
    with (PMED / "optima.csv").open() as file:
        optimum = {row["instance"]: float(row["optimum"]) for row in csv.DictReader(file)}[name]
    problem = formats.read(PMED / f"{name}.txt")
    solution = solve(problem, "benders")
    assert solution.status == "optimal"
    assert solution.cost == optimum
    assert certify(problem, solution).sound


def test_both_trees_prove_what_random_costs_leave_open():
    problem = hard(size=50, K=5)
    solutions = [solve(problem, Benders(few=few)) for few in (0, 12)]
    assert solutions[0].cost == pytest.approx(solutions[1].cost)
    for solution in solutions:
        assert solution.status == "optimal"
        assert solution.proof.startswith("tree of")


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="probes must be 1 or more"):
        Benders(probes=0)
    with pytest.raises(ValueError, match="steps must be 0 or more"):
        Lagrangian(steps=-1)
