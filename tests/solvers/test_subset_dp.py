import itertools
import math

import numpy as np
import pytest

from solvers import Coloring, GroupProblem, Runs, SubsetDP, solve
from solvers.subset_dp import convolve, deal, linked_parts
from solvers.testing import rate_distortion_problem, unstructured_cost
from tests.solvers.brute_force import optimum, partitions


def drawn(size, seed, K, density):
    """Any set function, some pairs incompatible, penalties in every other problem."""
    rng = np.random.default_rng([seed, size])
    pairs = rng.random((size, size)) < density
    pairs = np.triu(pairs, 1)
    penalty = rng.integers(-1, 6, size).astype(float) if seed % 2 else None
    return GroupProblem(size, unstructured_cost(seed), compatible=pairs | pairs.T, K=K, penalty=penalty)


@pytest.mark.parametrize("K", [None, 1, 2, 4])
@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_brute_force(seed, density, K):
    problem = drawn(6, seed, K, density)
    solution = solve(problem, "subset_dp")
    best = optimum(problem)
    assert solution.cost == best
    assert solution.lower_bound == pytest.approx(best)
    assert solution.status == ("optimal" if math.isfinite(best) else "infeasible")


@pytest.mark.parametrize("seed", range(3))
def test_blocks_and_recursion_agree_with_the_plain_convolution(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 32))
    a[rng.random(32) < 0.3] = np.inf
    plain = [min(a[s] + b[m ^ s] for s in range(32) if s & m == s) for m in range(32)]
    assert convolve(a, b).tolist() == plain
    monkeypatch.setattr("solvers.subset_dp.BLOCK", 2)
    assert convolve(a, b).tolist() == plain


def test_sixteen_items_are_settled_and_each_class_is_asked_for_once():
    calls = []
    problem = GroupProblem(16, lambda items: calls.append(items) or 1.0 + len(items) ** 2 / 8 + items[0] / 64)
    solution = solve(problem, "subset_dp")
    assert solution.status == "optimal"
    assert len(calls) == len(set(calls)) == solution.oracle_calls == 2**16 - 1
    assert solution.cost == solve(problem, "local_search").cost


def test_parts_that_are_not_linked_count_apart():
    kind = np.arange(40) % 5
    problem = GroupProblem(40, lambda items: 2.0 + len(items) ** 2 / 4, compatible=kind[:, None] == kind, K=12)
    assert linked_parts(problem.compatible) == [list(range(k, 40, 5)) for k in range(5)]
    solution = solve(problem, "subset_dp")
    assert solution.status == "optimal"
    sizes = sorted(len(members) for members in solution.coloring.classes())
    assert sum(sizes) == 40
    assert len(sizes) == 12
    assert problem.oracle_calls <= 5 * 2**8
    with pytest.raises(ValueError, match="refuses more than 16 linked items, not 17"):
        solve(GroupProblem(17, len), "subset_dp")


def test_bases_are_dealt_to_the_parts_that_gain_most():
    assert deal([[9, 4, 3], [8, 1, 0]], 2) == [1, 1]
    assert deal([[math.inf, 4, 3], [math.inf, 1, 0]], 4) == [2, 2]
    assert deal([[3.0, 2.9], [9.0, 5.0]], 1) == [0, 1]


@pytest.mark.parametrize("limit", [0.0, 1e-3, 3e-3])
def test_a_run_cut_short_still_has_a_coloring(limit):
    problem = rate_distortion_problem(12, 0)
    solution = solve(problem, "subset_dp", time_limit=limit, deterministic=True)
    assert solution.status == "time_limit"
    assert solution.lower_bound < solution.cost < math.inf


def test_interrupted_while_pricing_it_returns_the_incumbent():
    free = rate_distortion_problem(10, 1)

    def impatient(items):
        if len(items) > 6:
            raise KeyboardInterrupt
        return free.class_cost(items)

    solution = solve(GroupProblem(10, impatient), "subset_dp", start=Coloring(range(10)))
    assert solution.interrupted
    assert math.isfinite(solution.cost)


def into_runs(size):
    return [c for c in partitions(size) if all(m[-1] - m[0] + 1 == len(m) for m in c.classes())]


@pytest.mark.parametrize("K", [None, 1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_runs_are_the_best_runs(seed, K):
    problem = GroupProblem(7, unstructured_cost(seed), K=K, penalty=[4.0] * 7 if seed % 2 else None)
    solution = solve(problem, "runs")
    assert solution.cost == min(problem.cost(c) for c in into_runs(7))
    assert solution.oracle_calls <= 7 * 8 // 2 + 7


def test_runs_of_one_kind_pass_over_the_others():
    together = {(0, 2, 4): 1.0, (1, 3): 1.0}
    problem = GroupProblem(5, lambda items: together.get(items, 5.0 * len(items)), K=2)
    assert solve(problem, Runs(kinds=tuple("ababa"))).coloring == Coloring([0, 1, 0, 1, 0])
    kind = np.arange(5) % 2
    apart = GroupProblem(5, problem.class_cost, compatible=kind[:, None] == kind)
    assert solve(apart, "runs").coloring == Coloring([0, 1, 0, 1, 0])
    with pytest.raises(ValueError, match="its kinds name 2 items, but the problem has 5"):
        solve(problem, Runs(kinds=("a", "b")))
    with pytest.raises(ValueError, match="longest must be 1 or more"):
        Runs(longest=0)


def test_longest_caps_every_run():
    problem = GroupProblem(9, lambda items: 1.0)
    solution = solve(problem, Runs(longest=4))
    assert max(map(len, solution.coloring.classes())) == 4
    assert solution.cost == 3


def test_runs_are_never_better_than_the_optimum():
    for seed, size in itertools.product(range(4), (6, 9)):
        problem = rate_distortion_problem(size, seed, price=0.02)
        assert solve(problem, SubsetDP()).cost <= solve(problem, "runs").cost + 1e-12
