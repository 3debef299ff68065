import dataclasses
import math

import numpy as np
import pytest

from benchmarks.group_instances import instance
from solvers import Coloring, ColumnGeneration, DualPrices, GroupProblem, MedoidProblem, certify, solve
from solvers.testing import rate_distortion_problem, unstructured_cost
from tests.solvers.brute_force import optimum


def near_only(size, width, seed):
    """Items on a line that go together up to a distance: many items, few classes."""
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    points = np.random.default_rng(seed).normal(size=(size, 3))

    def cost(items):
        members = points[list(items)]
        return 1.5 + float(((members - members.mean(axis=0)) ** 2).sum())

    return GroupProblem(size, cost, compatible=apart <= width)


@pytest.mark.parametrize("K", [None, 1, 2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_brute_force(seed, K):
    penalty = np.random.default_rng(seed).integers(-1, 6, 6).astype(float) if seed % 2 else None
    problem = GroupProblem(6, unstructured_cost(seed), K=K, penalty=penalty)
    solution = solve(problem, "column_generation")
    best = optimum(problem)
    assert solution.cost == best
    assert solution.lower_bound == pytest.approx(best)
    assert certify(problem, solution).sound


@pytest.mark.parametrize("number", range(6, 18))
def test_it_agrees_with_dynamic_programming_and_its_root_bound_can_be_checked(number):
    _, problem = instance(number, 10)
    best = solve(problem, "subset_dp").cost
    solution = solve(problem, "column_generation")
    assert solution.status == "optimal"
    assert solution.cost == pytest.approx(best, rel=1e-9)
    verdict = certify(problem, solution)
    assert verdict.sound
    assert 0.95 * best <= verdict.bound <= best * (1 + 1e-12)


def test_more_items_than_dynamic_programming_takes_are_settled_where_few_go_together():
    problem = near_only(40, 6, 0)
    solution = solve(problem, "column_generation")
    assert solution.status == "optimal"
    assert isinstance(solution.certificate, DualPrices)
    assert solution.oracle_calls <= 40 * 2**6
    assert certify(problem, solution).bound == pytest.approx(solution.lower_bound, rel=1e-3)


def test_item_lower_bounds_spare_classes_that_cannot_matter():
    """Seven items are cheap to leave out and dear in any class."""

    def cost(items):
        return 2.0 + abs(unstructured_cost(1)(items[:3])) + 100.0 * sum(item >= 7 for item in items)

    penalty, shares = [math.inf] * 7 + [1.0] * 7, [0.0] * 7 + [100.0] * 7
    problem = GroupProblem(14, cost, penalty=penalty, item_lower_bound=shares)
    solution = solve(problem, "column_generation")
    assert solution.status == "optimal"
    assert solution.cost == solve(GroupProblem(14, cost, penalty=penalty), "subset_dp").cost
    assert solution.oracle_calls < 2**10
    assert certify(problem, solution).sound


@pytest.mark.parametrize("seed", range(2))
def test_what_an_item_adds_at_least_settles_problems_too_large_to_price_every_class(seed):
    problem = rate_distortion_problem(17, seed, price=0.1)
    solution = solve(problem, "column_generation")
    assert solution.status == "optimal"
    assert solution.oracle_calls < 2**13
    verdict = certify(problem, solution)
    assert verdict.sound
    assert verdict.bound == pytest.approx(solution.cost, rel=2e-2)


@pytest.mark.parametrize("seed", range(8))
def test_marginals_that_hold_rule_nothing_out_that_matters(seed):
    """Weights of what the items of a class cover, plus a price: no class costs less for having one item more."""
    rng = np.random.default_rng(seed)
    needs, weight = rng.random((9, 12)) < 0.4, rng.exponential(size=12)

    def cost(items):
        return 0.3 + float(weight @ needs[list(items)].any(axis=0)) * (1 + 0.1 * len(items))

    K = 3 if seed % 2 else None
    problem = GroupProblem(9, cost, K=K, marginal_lower_bound=np.zeros(9), penalty=[2.0] * 9 if seed % 3 else None)
    solution = solve(problem, "column_generation")
    assert solution.status == "optimal"
    assert solution.cost == pytest.approx(solve(problem.with_limit(K), "subset_dp").cost)
    assert certify(problem, solution).sound
    assert certify(problem.permute(range(9)), solution).sound


def test_where_classes_are_too_many_nothing_is_claimed():
    problem = GroupProblem(14, rate_distortion_problem(14, 0).class_cost)
    solution = solve(problem, ColumnGeneration(most_classes=500))
    assert solution.lower_bound == -math.inf
    assert solution.status == "feasible"
    assert "more than 500 classes may matter" in solution.message
    assert solution.cost <= solve(problem, "local_search").cost
    assert solution.oracle_calls < 2**14 - 1


def test_every_class_is_asked_for_once():
    calls = []
    problem = GroupProblem(9, lambda items: calls.append(items) or unstructured_cost(4)(items), K=4)
    assert solve(problem, "column_generation").oracle_calls == len(calls) == len(set(calls))


@pytest.mark.parametrize("tamper", [lambda v: v + 0.5, lambda v: v - 0.5], ids=["higher", "lower"])
def test_tampered_dual_prices_prove_less(tamper):
    problem = near_only(10, 4, 1)
    solution = solve(problem, "column_generation")
    certificate = solution.certificate
    assert isinstance(certificate, DualPrices)
    values = (tamper(certificate.values[0]), *certificate.values[1:])
    tampered = DualPrices(values, certificate.base)
    assert tampered.bound(problem) < certificate.bound(problem) - 0.4
    claimed = dataclasses.replace(solution, certificate=tampered, proof="")
    assert not certify(problem, claimed).sound


def test_dual_prices_that_do_not_fit_are_refused():
    problem = near_only(4, 2, 0)
    for certificate in (DualPrices((1.0,)), DualPrices((math.inf,) * 4), DualPrices((0.0,) * 4, base=1.0)):
        with pytest.raises(ValueError, match="dual prices"):
            certificate.bound(problem)
    with pytest.raises(ValueError, match="do not fit"):
        DualPrices((0.0,)).bound(MedoidProblem([[1.0]], 1))


def test_prices_far_apart_keep_the_bound_valid():
    def cost(items):
        return 1e12 if 0 in items and len(items) > 1 else 1e-12 * len(items) ** 2

    for K in (None, 3):
        problem = GroupProblem(6, cost, K=K)
        solution = solve(problem, "column_generation")
        assert solution.cost == pytest.approx(optimum(problem), rel=1e-9)
        assert solution.lower_bound <= solution.cost
        assert certify(problem, solution).sound


def test_infeasible_is_proven():
    problem = GroupProblem(4, lambda items: math.inf if 2 in items else 1.0)
    assert solve(problem, "column_generation").status == "infeasible"
    assert solve(problem, "column_generation").lower_bound == math.inf


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e-2, 3e-2])
def test_a_run_cut_short_repeats_and_keeps_its_incumbent(limit):
    found = [
        solve(rate_distortion_problem(12, 0), "column_generation", time_limit=limit, deterministic=True)
        for _ in range(2)
    ]
    assert [(s.coloring, s.cost, s.lower_bound) for s in found[:1]] == [
        (s.coloring, s.cost, s.lower_bound) for s in found[1:]
    ]
    assert math.isfinite(found[0].cost)


def test_interrupted_while_pricing_it_returns_the_incumbent():
    free = rate_distortion_problem(10, 1)

    def impatient(items):
        if len(items) > 7:
            raise KeyboardInterrupt
        return free.class_cost(items)

    solution = solve(GroupProblem(10, impatient), "column_generation", start=Coloring(range(10)))
    assert solution.interrupted
    assert math.isfinite(solution.cost)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="recombined must be 1 or more"):
        ColumnGeneration(recombined=0)
