"""Greedy, local search, spectral clustering and the habits, on problems whose answer is known."""

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Adjacent, Coloring, GroupProblem, LocalSearch, MedoidProblem, PairwiseProblem, Random, solve
from solvers.agglomerative import merge_pairwise
from solvers.medoid_search import OpenSet
from solvers.pairwise_search import Painting
from solvers.search import Search
from solvers.spectral import embed, kmeans
from solvers.testing import medoid_problems


def planted_pairs(sizes, seed=0, noise=0.4):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    weight = np.where(truth[:, None] == truth[None, :], -1.0, 1.0) + noise * rng.normal(size=(len(truth),) * 2)
    return PairwiseProblem((weight + weight.T) / 2, opening=0.1), Coloring(truth)


@pytest.mark.parametrize("solver", ["greedy", "local_search", "spectral"])
def test_planted_classes_are_recovered(solver):
    problem, truth = planted_pairs([5, 8, 3, 9])
    assert solve(problem, solver).coloring == truth


@pytest.mark.parametrize("start", [[0] * 25, list(range(25)), [i % 4 for i in range(25)]])
def test_local_search_improves_any_start(start):
    problem, truth = planted_pairs([5, 8, 3, 9])
    assert solve(problem, "local_search", start=Coloring(start)).coloring == truth


def test_each_move_of_the_pairwise_search_changes_the_cost_as_it_says():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(9, 9))
    problem = PairwiseProblem(weight + weight.T, opening=0.3)
    state = Painting(problem, Coloring(rng.integers(0, 3, 9).tolist()))
    before = problem.cost(Coloring(state.colors.tolist()))

    def after(colors):
        return problem.cost(Coloring(colors.tolist())) - before

    change, (item, color) = state.best_move()
    moved = state.colors.copy()
    moved[item] = color
    assert change == pytest.approx(after(moved))
    assert change == pytest.approx(
        min(
            after(np.where(np.arange(9) == i, c, state.colors))
            for i in range(9)
            for c in range(4)
            if c != state.colors[i]
        )
    )
    change, (first, second) = state.best_swap()
    moved = state.colors.copy()
    moved[[first, second]] = moved[[second, first]]
    assert change == pytest.approx(after(moved))
    change, (first, second) = state.best_merge()
    assert change == pytest.approx(after(np.where(state.colors == second, first, state.colors)))
    change, leaving = state.best_split()
    moved = state.colors.copy()
    moved[leaving] = 8
    assert change == pytest.approx(after(moved))


def test_merging_gains_what_it_says():
    problem, truth = planted_pairs([4, 4, 4])
    assert merge_pairwise(problem) == truth
    forced = merge_pairwise(PairwiseProblem(problem.weight, opening=0.1, K=2))
    assert forced.number_of_colors == 2
    assert truth.refines(forced)


def test_medoid_swaps_never_raise_the_value_and_keep_the_limits():
    rng = np.random.default_rng(2)
    group = ["a", "b"] * 10
    problem = MedoidProblem(rng.random((30, 20)), {"a": 3, "b": 2}, group=group, penalty=rng.random(30))
    state = OpenSet(problem, [0, 2, 4, 1, 3])
    before = state.value
    assert before == pytest.approx(
        np.column_stack([problem.cost_matrix[:, [0, 2, 4, 1, 3]], problem.penalty]).min(1).sum()
    )
    state.swap_until_stuck(Search(problem), rng.permutation(20))
    assert state.value < before
    assert sorted(group[b] for b in state.opened) == ["a", "a", "a", "b", "b"]
    columns = np.column_stack([problem.cost_matrix[:, state.opened], problem.penalty])
    assert state.value == pytest.approx(columns.min(axis=1).sum())
    for closed in range(5):  # locally optimal: no exchange within a label is better
        for candidate in range(20):
            if group[candidate] == group[state.opened[closed]]:
                exchanged = [*state.opened[:closed], candidate, *state.opened[closed + 1 :]]
                other = np.column_stack([problem.cost_matrix[:, exchanged], problem.penalty]).min(axis=1).sum()
                assert other >= state.value - 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_medoid_local_search_finds_the_optimum_of_small_problems(seed):
    problem = MedoidProblem(np.random.default_rng(seed).random((9, 9)), K=3)
    assert solve(problem, "local_search").cost == pytest.approx(solve(problem, "exhaustive").cost)


def test_forbidden_pairs_are_served_first():
    """Candidate 0 is cheap for many, but only candidates 1 and 2 serve everyone."""
    inf = math.inf
    costs = [[0, 9, inf], [0, 9, inf], [0, 9, inf], [inf, 9, 9], [inf, inf, 9]]
    for solver in ("greedy", "local_search", "cp_sat"):
        assert solve(MedoidProblem(costs, K=2), solver).coloring is not None


def test_the_components_of_a_graph_are_its_spectral_classes():
    graph = nx.disjoint_union_all([nx.complete_graph(4), nx.complete_graph(3), nx.complete_graph(5)])
    vectors = embed(nx.to_numpy_array(graph))
    assert np.allclose(vectors.T @ vectors, np.eye(12))
    rows = vectors[:, :3] / np.linalg.norm(vectors[:, :3], axis=1, keepdims=True)
    colors = kmeans(rows, 3, np.random.default_rng(0), 4)
    assert Coloring(colors.tolist()) == Coloring([0] * 4 + [1] * 3 + [2] * 5)


def test_spectral_clustering_repairs_conflicts():
    problem, _truth = planted_pairs([6, 6])
    conflict = np.zeros((12, 12), bool)
    conflict[0, 1] = conflict[1, 0] = conflict[6, 8] = conflict[8, 6] = True
    solution = solve(PairwiseProblem(problem.weight, conflict, 0.1), "spectral")
    assert math.isfinite(solution.cost)
    assert solution.coloring[0] != solution.coloring[1]


@pytest.fixture
def eight():
    return GroupProblem(8, lambda items: float(len(items)))


def test_adjacent_runs(eight):
    assert solve(eight, "adjacent").coloring == Coloring([0, 0, 1, 1, 2, 2, 3, 3])
    assert solve(eight, Adjacent(run_length=3)).coloring == Coloring([0, 0, 0, 1, 1, 1, 2, 2])
    assert solve(eight.with_limit(3), "adjacent").coloring == Coloring([0, 0, 0, 1, 1, 1, 2, 2])


def test_adjacent_runs_within_a_kind(eight):
    kinds = ("q", "k") * 4
    assert solve(eight, Adjacent(kinds=kinds)).coloring == Coloring([0, 1, 0, 1, 2, 3, 2, 3])
    assert solve(eight.with_limit(2), Adjacent(kinds=kinds)).coloring == Coloring([0, 1] * 4)
    with pytest.raises(ValueError, match="its kinds name 2 items, but the problem has 8"):
        solve(eight, Adjacent(kinds=("q", "k")))


def test_one_color_joins_what_may_be_joined(eight):
    assert solve(eight, "one_color").coloring == Coloring([0] * 8)
    shape = np.array([0, 1, 0, 1, 2, 2, 0, 1])
    compatible = shape[:, None] == shape[None, :]
    assert solve(GroupProblem(8, lambda items: 1.0, compatible=compatible), "one_color").coloring == Coloring(shape)
    costs = np.where(compatible, 1.0, math.inf)
    assert solve(MedoidProblem(costs, 3), "one_color").coloring == Coloring(shape)
    assert solve(PairwiseProblem(np.zeros((8, 8)), ~compatible), "one_color").coloring == Coloring(shape)


def test_private_shares_nothing(eight):
    assert solve(eight, "private").coloring == Coloring(range(8))
    assert solve(GroupProblem(8, lambda items: 1.0, K=3), "private").coloring is None
    left_out = GroupProblem(8, lambda items: 1.0, K=3, penalty=np.full(8, 2.0))
    assert solve(left_out, "private").cost == 3 * 1 + 5 * 2


def test_random_comes_from_the_seed_and_more_draws_are_no_worse():
    problem = MedoidProblem(np.random.default_rng(0).random((15, 15)), 4)
    answers = {solve(problem, "random", seed=seed).coloring for seed in range(8)}
    assert len(answers) > 1
    assert solve(problem, Random(draws=20)).cost <= solve(problem, Random(draws=1)).cost


@pytest.mark.parametrize("solver", ["adjacent", "one_color", "random", "spectral"])
def test_habits_keep_every_limit_of_shapes(solver):
    shape = np.arange(12) % 3
    costs = np.where(shape[:, None] == shape[None, :], 1.0, math.inf) - 0.5 * np.eye(12)
    group = [f"shape {s}" for s in shape]
    problem = MedoidProblem(costs, {"shape 0": 1, "shape 1": 2, "shape 2": 1}, group=group)
    assert math.isfinite(solve(problem, solver).cost)


def test_two_hundred_layers_by_greedy_and_swaps_are_proven_by_the_relaxation():
    rng = np.random.default_rng(4)
    centers = rng.normal(size=(20, 5)) * 8
    points = centers[rng.integers(20, size=200)] + rng.normal(size=(200, 5))
    costs = ((points[:, None] - points[None]) ** 2).sum(axis=-1) * rng.uniform(0.9, 1.1, (200, 200))
    solution = solve(MedoidProblem(costs, 20), LocalSearch())
    assert solution.gap < 0.01


@settings(deadline=None, max_examples=60)
@given(medoid_problems(max_size=6), st.integers(0, 99))
def test_the_nearest_two_of_each_item_are_kept_up_to_date(problem, seed):
    """What swaps change piece by piece is what looking at all open candidates anew would say."""
    state, rng, search = OpenSet(problem), np.random.default_rng(seed), Search(problem)
    state.add_greedily(search)
    for _ in range(3):
        state.swap_until_stuck(search, rng.permutation(problem.candidates))
        costs = np.sort(state.columns[[*state.opened, -1]], axis=0)
        assert np.array_equal(state.first, costs[0])
        if state.opened:
            assert np.array_equal(state.second, costs[1])
        number = np.bincount(problem.label[state.opened], minlength=len(problem.limits))
        assert np.array_equal(state.left, problem.limits - number)
        assert state.left.min(initial=0) >= 0
        assert len(set(state.opened)) == len(state.opened)
        state.disturb(rng, 0.5)
        state.add_greedily(search)
