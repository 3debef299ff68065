import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import CpSat, MedoidProblem, PairwiseProblem, solve
from solvers.cp_models import medoid_model, pairwise_model
from solvers.scaling import BITS, Scaling
from solvers.search import Search


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_scaled_costs_stay_small_and_their_error_is_stated(values):
    costs = np.array(values)
    scaling = Scaling.for_total(float(np.abs(costs).sum()))
    integers = scaling.integers(costs)
    assert abs(int(integers.sum())) <= 2**BITS + len(values)
    assert np.allclose(np.abs(integers / scaling.factor - costs), scaling.errors(costs), rtol=0, atol=1e-9)
    assert (scaling.errors(costs) <= 0.5 / scaling.factor).all()


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=20))
def test_whole_costs_are_scaled_without_error(values):
    costs = np.array(values, dtype=float)
    assert (Scaling.for_total(float(np.abs(costs).sum())).errors(costs) == 0).all()


def test_the_scaling_error_is_taken_off_the_bound():
    costs = np.random.default_rng(0).random((6, 6)) / 3
    problem = MedoidProblem(costs, 2)
    built = medoid_model(problem, Search(problem))
    assert 0 < built.error <= 6 * 0.5 / built.scaling.factor
    assert built.bound(0) == pytest.approx(built.offset - built.error, abs=0)
    solution = solve(problem, CpSat(warm_start=False))
    assert solution.lower_bound <= solution.cost <= solution.lower_bound + 2 * built.error + 1e-12
    assert solution.status == "optimal"


def test_a_coarse_scale_shows_in_the_bound(monkeypatch):
    monkeypatch.setattr("solvers.scaling.BITS", 3)
    costs = np.random.default_rng(0).random((6, 6))
    problem = MedoidProblem(costs, 2)
    exact = solve(problem, "exhaustive").cost
    built = medoid_model(problem, Search(problem))
    search = Search(problem)
    CpSat().optimize(built, search)
    assert built.error > 0.1
    assert exact - 2 * built.error <= search.bound <= exact


def test_pairs_too_dear_for_a_better_coloring_are_left_out_of_the_model():
    costs = np.array([[0.0, 1.0, 50.0], [1.0, 0.0, 50.0], [50.0, 50.0, 0.0]])
    problem = MedoidProblem(costs, 2)
    search = Search(problem)
    everything = medoid_model(problem, search)
    search.offer(problem.assign([0, 2]))
    assert search.cost == 1
    fewer = medoid_model(problem, search)
    assert len(fewer.model.proto.variables) < len(everything.model.proto.variables)
    CpSat().optimize(fewer, search)
    assert search.bound == pytest.approx(1)


def test_colors_come_in_the_order_of_first_use():
    problem = PairwiseProblem(np.zeros((4, 4)), opening=0.0)
    built = pairwise_model(problem, Search(problem))
    assert [len(choices) for choices in built.colored] == [1, 2, 3, 4]
    assert sorted(built.order) == [0, 1, 2, 3]


def test_a_run_cut_short_by_deterministic_time_repeats_itself():
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(24, 24))
    problem = PairwiseProblem(weight + weight.T, opening=0.5, K=5)
    answers = [
        solve(problem, CpSat(workers, warm_start=False), time_limit=0.3, deterministic=True) for workers in (1, 1, 2)
    ]
    assert len({(answer.coloring, answer.lower_bound) for answer in answers}) == 1
    assert answers[0].status == "time_limit"


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 100))
def test_medoids_of_structured_costs_are_proven_optimal(seed):
    """Rows far from all centers but one: the relaxation is tight, so the proof is quick."""
    rng = np.random.default_rng(seed)
    points = np.repeat(rng.normal(size=(4, 2)) * 10, 6, axis=0) + rng.normal(size=(24, 2))
    costs = ((points[:, None] - points[None]) ** 2).sum(axis=-1) * (1 + 0.1 * rng.random((24, 24)))
    solution = solve(MedoidProblem(costs, 4), CpSat(warm_start=False))
    assert solution.status == "optimal"
    assert solve(MedoidProblem(costs, 4), "local_search").cost == pytest.approx(solution.cost)
