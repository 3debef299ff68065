"""Sparse medoid problems, against the dense problem that they stand for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Lagrangian, MedoidProblem, Multipliers, SparseMedoidProblem, certify, formats, quick_bound, solve
from solvers.search import Search
from solvers.sparse_medoid_search import SparseOpenSet
from solvers.testing import colorings, medoid_problems
from tests.solvers.brute_force import best_open_set


@st.composite
def twins(draw, max_size=6):
    dense = draw(medoid_problems(max_size=max_size))
    return dense, SparseMedoidProblem.nearest(dense, draw(st.sampled_from([dense.candidates, 3])))


@settings(deadline=None, max_examples=150)
@given(twins(), st.data())
def test_a_sparse_problem_prices_as_its_dense_twin(pair, data):
    sparse = pair[1]
    dense = sparse.dense()
    coloring = data.draw(colorings(sparse.size))
    assert sparse.cost(coloring) == pytest.approx(dense.cost(coloring))
    for members in coloring.classes():
        assert sparse.class_cost(members) == pytest.approx(dense.class_cost(members))
    sigma = data.draw(st.permutations(range(sparse.size)))
    assert sparse.permute(sigma).cost(coloring.permute(sigma)) == pytest.approx(dense.cost(coloring))
    assert (sparse.compatibility() == dense.compatibility()).all()
    assert (sparse.size, sparse.candidates, sparse.limit) == (dense.size, dense.candidates, dense.limit)
    assert sparse.grain == dense.grain
    medoids = data.draw(st.lists(st.integers(0, sparse.candidates - 1), unique=True))
    is_open = np.isin(np.arange(sparse.candidates), medoids)
    costs = np.sort(np.column_stack([dense.cost_matrix[:, is_open], np.full((sparse.size, 2), math.inf)]), axis=1)
    nearest, first, second, _ = sparse.nearest_two(is_open)
    assert (first == costs[:, 0]).all()
    assert (second == costs[:, 1]).all()
    classes = sparse.assign(medoids).classes()
    alone = [members[0] for members in classes if len(members) == 1]
    for members in classes:  # those in a class take one candidate, those left out are alone
        assert len(set(nearest[list(members)])) == 1
    assert set(np.flatnonzero((dense.penalties() < first) | (nearest < 0)).tolist()) <= set(alone)


def test_all_pairs_listed_are_the_dense_problem_itself():
    dense = MedoidProblem([[1, 2, math.inf], [3, 0, 5]], 1, penalty=[4, math.inf])
    again = SparseMedoidProblem.nearest(dense, 3).dense()
    assert (again.cost_matrix == dense.cost_matrix).all()
    assert (again.penalties() == dense.penalties()).all()


@settings(deadline=None, max_examples=120)
@given(twins(), st.integers(0, 60), st.integers(0, 9))
def test_bounds_and_colorings_enclose_the_optimum_of_the_dense_twin(pair, steps, seed):
    sparse = pair[1]
    best = best_open_set(sparse.dense())
    slack = 1e-9 * (1 + sparse.scale * sparse.size)
    assert quick_bound(sparse).value <= best + slack
    for solver in (Lagrangian(steps=steps), "auto"):
        solution = solve(sparse, solver, seed=seed)
        assert solution.lower_bound <= best + slack
        assert solution.cost >= best - slack
        assert certify(sparse, solution).sound, str(certify(sparse, solution))


@settings(deadline=None, max_examples=100)
@given(twins())
def test_swaps_lower_the_value_and_keep_the_limits(pair):
    sparse = pair[1]
    state, search, dense = SparseOpenSet(sparse), Search(sparse), sparse.dense()
    state.add_greedily(search)
    before = state.value
    state.swap_until_stuck(search)
    assert state.value <= before
    assert state.left.min(initial=0) >= 0
    columns = np.column_stack([dense.cost_matrix[:, state.opened], state.out])
    columns[~np.isfinite(columns)] = state.forbidden
    assert np.allclose(state.first, columns.min(axis=1))
    if columns.shape[1] > 1:
        second = np.sort(columns, axis=1)[:, 1]
        known = np.isfinite(state.second) & (second < state.forbidden)
        assert np.allclose(state.second[known], second[known])


def points(size=400, K=20, neighbours=40, seed=0):
    """As the instances of the benchmarks: near points, twice the distance of the last of them to be left out."""
    places = np.random.default_rng(seed).random((size, 2))
    distance = np.rint(1e4 * np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=-1)))
    penalty = 2 * np.sort(distance, axis=1)[:, neighbours - 1]
    return SparseMedoidProblem.nearest(MedoidProblem(distance, K), neighbours, penalty=penalty)


def test_points_in_the_plane_are_solved_almost_to_the_optimum():
    problem = points()
    solution = solve(problem, "lagrangian")
    exact = solve(problem.dense(), "benders")
    assert exact.status == "optimal"
    assert solution.lower_bound <= exact.cost <= solution.cost <= 1.01 * exact.cost
    assert solution.gap < 0.02
    verdict = certify(problem, solution)
    assert verdict.sound


def test_a_tampered_certificate_is_refused():
    problem = points(size=60, K=5, neighbours=10)
    solution = solve(problem, "lagrangian")
    assert isinstance(solution.certificate, Multipliers)
    weak = replace(solution, certificate=Multipliers((0.0,) * 60), proof="")
    assert "is said to follow from the certificate" in str(certify(problem, weak))
    wrong = replace(solution, certificate=Multipliers((math.inf,) * 60))
    assert "the multiplier of item 0 is inf" in str(certify(problem, wrong))
    assert "do not fit" in str(certify(problem, replace(solution, certificate=Multipliers((1.0,)))))
    moved = tuple((b + 1) % 60 for b in solution.representatives)
    assert not certify(problem, replace(solution, representatives=moved)).sound


def test_the_multipliers_prove_the_same_of_both_forms():
    problem = points(size=80, K=6, neighbours=15)
    certificate = solve(problem, "lagrangian").certificate
    assert certificate.bound(problem) == pytest.approx(certificate.bound(problem.dense()), rel=1e-12)


def test_what_no_candidate_serves_is_said():
    problem = SparseMedoidProblem([0, 1, 1], [0], [1.0], candidates=1, K=1)
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert "item 1 must own or share a basis" in solution.message
    assert "auto picked lagrangian: 1 listed pairs of 2 items" in solution.message


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("labels", [False, True])
def test_files_hold_sparse_problems(tmp_path, suffix, labels):
    group = ["a", "b", "b"] if labels else None
    K = {"a": 1, "b": 2} if labels else 2
    arrays = [0, 2, 3], [1, 0, 2], [4.0, 1.5, math.inf]
    problem = SparseMedoidProblem(*arrays, candidates=3, K=K, penalty=[math.inf, 3], group=group)
    path = tmp_path / f"problem.{suffix}"
    formats.write(problem, path)
    again = formats.read(path)
    assert isinstance(again, SparseMedoidProblem)
    assert (again.dense().cost_matrix == problem.dense().cost_matrix).all()
    assert (again.K, again.group) == (problem.K, problem.group)
    assert (again.penalties() == problem.penalties()).all()


@pytest.mark.parametrize(
    ("starts", "candidate", "costs", "sentence"),
    [
        ([0, 2], [0], [1.0], "starts must rise from 0 to the number of pairs, 1"),
        ([0, 1], [0], [1.0, 2.0], "there are 1 pairs, but 2 costs"),
        ([0, 1], [3], [1.0], "the candidates are 0 to 2, but the lists name 3"),
        ([0, 2], [1, 1], [1.0, 2.0], "item 0 lists candidate 1 twice"),
        ([0, 1], [1], [math.nan], r"costs\[0\] is nan"),
    ],
)
def test_lists_that_do_not_fit_are_refused_in_a_sentence(starts, candidate, costs, sentence):
    with pytest.raises(ValueError, match=sentence):
        SparseMedoidProblem(starts, candidate, costs, candidates=3, K=1)
