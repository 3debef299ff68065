import json
import math
from dataclasses import replace

import numpy as np
import pytest

from solvers import GroupProblem, MedoidProblem, PairwiseProblem
from solvers.race import (
    MOST_TRACE,
    Run,
    performance_profile,
    primal_gap,
    primal_integral,
    run_once,
    shifted_geometric_mean,
    thinned,
    time_to_proof,
    time_to_target,
)


@pytest.fixture
def run():
    return Run(
        instance="toy",
        kind="medoid",
        size=3,
        solver="greedy",
        seed=0,
        time_limit=10.0,
        cost=10.0,
        lower_bound=8.0,
        certified=8.0,
        status="feasible",
        seconds=6.0,
        trace=((1.0, 20.0, -math.inf), (2.0, 20.0, 8.0), (4.0, 10.0, 8.0)),
    )


def test_a_run_is_told_by_a_record_that_reads_back(run):
    for solved in (
        run_once(MedoidProblem([[0, 4], [3, 0]], 1), "cp_sat", instance="two"),
        run_once(GroupProblem(2, lambda items: 1.0), "greedy", instance="group", seed=3, time_limit=1.0),
        run_once(PairwiseProblem(np.zeros((2, 2)), [[0, 1], [1, 0]], K=1), "greedy", instance="clash"),
        run,
    ):
        text = json.dumps(solved.to_json(), allow_nan=False)
        assert Run.from_json(json.loads(text)) == solved


def test_a_run_says_what_was_solved_and_what_is_certified():
    solved = run_once(MedoidProblem([[0, 4], [3, 0]], 1), "exhaustive", instance="two", seed=5)
    assert (solved.kind, solved.size, solved.seed, solved.cost, solved.proven) == ("medoid", 2, 5, 3.0, True)
    assert solved.certified <= solved.lower_bound == 3.0
    clash = run_once(PairwiseProblem(np.zeros((2, 2)), [[0, 1], [1, 0]], K=1), "greedy", instance="clash")
    assert clash.proven
    assert clash.cost == math.inf


def test_a_record_of_something_else_is_refused(run):
    record = run.to_json()
    del record["cost"]
    with pytest.raises(ValueError, match="'cost' is missing or unknown"):
        Run.from_json(record)
    with pytest.raises(ValueError, match="'speed' is missing or unknown"):
        Run.from_json(run.to_json() | {"speed": 3})


def test_the_primal_gap_is_relative_and_at_most_one():
    assert primal_gap(10, 8) == 0.2
    assert primal_gap(0, 0) == primal_gap(-3, -3) == 0
    assert primal_gap(math.inf, 8) == primal_gap(1, -1) == 1
    assert primal_gap(-8, -10) == pytest.approx(0.2)


def test_the_primal_integral_is_the_area_under_the_gap(run):
    assert primal_integral(run, best=10.0) == pytest.approx((1 * 1 + 0.5 * 3 + 0 * 6) / 10)
    assert primal_integral(replace(run, trace=()), best=10.0) == 1
    with pytest.raises(ValueError, match="finite time limit"):
        primal_integral(replace(run, time_limit=math.inf), best=10.0)


def test_times_to_a_target_and_to_a_proof(run):
    assert time_to_target(run, 20) == 1
    assert time_to_target(run, 15) == 4
    assert time_to_target(run, 5) == math.inf
    assert time_to_proof(run) == math.inf
    assert time_to_proof(replace(run, status="optimal")) == 6


def test_the_shifted_geometric_mean():
    assert shifted_geometric_mean([1, 7]) == pytest.approx(3)
    assert shifted_geometric_mean([0, 0]) == pytest.approx(0)
    with pytest.raises(ValueError, match="no mean of no values"):
        shifted_geometric_mean([])


def test_a_performance_profile_compares_with_the_quickest_on_each_instance():
    profile = performance_profile({"quick": [1, 1, math.inf], "sure": [2, 1, 8]})
    assert profile["quick"][0].tolist() == [1, 1]
    assert profile["quick"][1].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert profile["sure"][0].tolist() == [1, 1, 2]
    assert profile["sure"][1].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    nobody = performance_profile({"idle": [math.inf]})
    assert nobody["idle"][0].size == 0
    with pytest.raises(ValueError, match="every solver needs a time"):
        performance_profile({})


def test_a_long_trace_is_thinned_but_keeps_its_ends():
    trace = tuple((float(t), 1000.0 - t, 0.0) for t in range(1000))
    thin = thinned(trace)
    assert len(thin) <= MOST_TRACE
    assert (thin[0], thin[-1]) == (trace[0], trace[-1])
