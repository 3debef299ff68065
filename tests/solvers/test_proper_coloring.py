import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Chromatic, Coloring, DsaturSearch, PairwiseProblem, TabuCol, solve
from solvers.cliques import neighbour_sets
from solvers.coloring_model import clique_cover, decide_by_cp_sat
from solvers.crossing import alike, cross, cross_colorings
from solvers.dsatur import dsatur_order
from solvers.dsatur_search import decide_by_dsatur
from solvers.palette import Decision, Palette, split
from solvers.search import Search
from solvers.symmetric_coloring import find_symmetric_coloring, wide_symmetries
from solvers.tabucol import Neighbours, fewest_clashes, tabu_coloring
from tests.solvers.brute_force import optimum

EXACT = ["dsatur", "chromatic"]
COUNTING = [*EXACT, "tabucol"]
SMALL_GRAPHS = st.builds(nx.gnp_random_graph, st.integers(1, 7), st.floats(0, 1), seed=st.integers(0, 1000))


def matrix(graph):
    return nx.to_numpy_array(graph) > 0


def problem_of(graph, opening=1, K=None):
    return PairwiseProblem(np.zeros((len(graph),) * 2), matrix(graph), opening, K)


def mycielski(order):
    return nx.mycielski_graph(order)


def queens(side):
    squares = [(i, j) for i in range(side) for j in range(side)]
    graph = nx.Graph()
    graph.add_nodes_from(squares)
    for a, (i, j) in enumerate(squares):
        for k, m in squares[a + 1 :]:
            if i == k or j == m or abs(i - k) == abs(j - m):
                graph.add_edge((i, j), (k, m))
    return graph


@pytest.mark.parametrize("solver", EXACT)
@settings(deadline=None, max_examples=60)
@given(SMALL_GRAPHS, st.sampled_from([1.0, 0.0, -1.0, 2.5]), st.none() | st.integers(1, 5))
def test_exact_solvers_agree_with_all_partitions(solver, graph, opening, K):
    problem = problem_of(graph, opening, K)
    solution = solve(problem, solver)
    best = optimum(problem)
    assert solution.cost == best
    assert solution.status == ("optimal" if math.isfinite(best) else "infeasible")


@pytest.mark.parametrize(
    ("graph", "chromatic"),
    [(mycielski(4), 4), (mycielski(5), 5), (queens(5), 5), (queens(6), 7), (nx.petersen_graph(), 3)],
    ids=["grotzsch", "mycielski5", "queens5", "queens6", "petersen"],
)
def test_chromatic_numbers_above_the_clique_are_proven(graph, chromatic):
    for solver in EXACT:
        solution = solve(problem_of(graph), solver)
        assert (solution.cost, solution.status) == (chromatic, "optimal")
        refused = solve(problem_of(graph, K=chromatic - 1), solver)
        assert refused.status == "infeasible"
        if solution.proof:
            assert f"cannot be kept with K = {chromatic - 1} colors, by" in refused.message
    assert solve(problem_of(graph), "tabucol").cost == chromatic


@pytest.mark.parametrize("solver", COUNTING)
def test_components_are_colored_one_by_one(solver):
    graph = nx.disjoint_union_all([mycielski(4), nx.cycle_graph(7), nx.complete_graph(3), nx.path_graph(4)])
    assert solve(problem_of(graph), solver).cost == 4


@pytest.mark.parametrize("solver", COUNTING)
def test_weights_are_refused(solver):
    with pytest.raises(ValueError, match="its pairs have weights"):
        solve(PairwiseProblem([[0, 1], [1, 0]]), solver)


@pytest.mark.parametrize("solver", COUNTING)
@pytest.mark.parametrize("time_limit", [0.0, 1e-3, 0.02])
def test_runs_cut_short_return_a_coloring_and_repeat_by_the_deterministic_clock(solver, time_limit):
    problem = problem_of(nx.gnp_random_graph(60, 0.5, seed=3))
    runs = [solve(problem, solver, time_limit=time_limit, seed=4, deterministic=True) for _ in range(2)]
    assert runs[0].coloring == runs[1].coloring
    assert math.isfinite(runs[0].cost)
    assert [run.lower_bound for run in runs] == [runs[0].lower_bound] * 2
    assert math.isfinite(solve(problem, solver, time_limit=time_limit).cost)


@pytest.mark.parametrize("solver", COUNTING)
def test_an_interrupt_returns_the_incumbent(solver, monkeypatch):
    asked = []

    def expired(self, steps=1e4):
        asked.append(steps)
        if len(asked) > 20:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Search, "expired", expired)
    solution = solve(problem_of(nx.gnp_random_graph(60, 0.5, seed=3)), solver)
    assert solution.interrupted
    assert math.isfinite(solution.cost)


@pytest.mark.parametrize("solver", COUNTING)
def test_a_start_is_never_made_worse(solver):
    graph = nx.crown_graph(6) if hasattr(nx, "crown_graph") else nx.complete_bipartite_graph(6, 6)
    start = Coloring([0] * 6 + [1] * 6)
    assert solve(problem_of(graph), solver, start=start, time_limit=0).cost == 2


@given(st.integers(2, 30), st.floats(0.05, 0.9), st.integers(0, 1000), st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_tabu_colorings_are_proper_and_have_no_more_colors_than_asked(size, density, seed, number):
    conflict = matrix(nx.gnp_random_graph(size, density, seed=seed))
    search = Search(PairwiseProblem(np.zeros((size, size)), conflict))
    colors = tabu_coloring(conflict, number, 200, np.random.default_rng(seed), search)
    if colors is not None:
        assert not (conflict & np.equal.outer(colors, colors)).any()
        assert colors.min() >= 0
        assert colors.max() < number


@given(st.integers(1, 30), st.floats(0.05, 0.9), st.integers(0, 1000), st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_the_fewest_clashes_are_those_of_the_colors_returned_and_no_more_than_at_the_start(size, density, seed, number):
    conflict = matrix(nx.gnp_random_graph(size, density, seed=seed))
    search = Search(PairwiseProblem(np.zeros((size, size)), conflict))
    rng = np.random.default_rng(seed)
    start = rng.integers(0, number, size)
    before = start.copy()
    colors, clashes = fewest_clashes(Neighbours.of(conflict), start, number, 100, rng, search)

    def count(colors):
        return int((conflict & np.equal.outer(colors, colors)).sum()) // 2

    assert (start == before).all()
    assert clashes == count(colors) <= count(start)


def hidden(classes, density, seed=0):
    classes = np.asarray(classes)
    rng = np.random.default_rng(seed)
    conflict = np.triu((rng.random((len(classes),) * 2) < density) & (classes[:, None] != classes[None, :]), 1)
    return conflict | conflict.T


def test_a_child_takes_the_largest_classes_of_both_in_turn():
    first = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    second = np.array([0, 1, 2, 0, 1, 1, 1, 2])
    child = cross(first, second, 3, np.random.default_rng(0))
    assert Coloring(child.tolist()) == Coloring([0, 0, 0, 0, 1, 1, 1, 2])
    assert alike(first, (first + 1) % 3, 3)
    assert not alike(first, second, 3)
    assert not alike(np.array([0, 0, 1]), np.array([0, 0, 0]), 2)


def test_crossing_finds_a_hidden_coloring_and_stops_when_it_has_made_its_moves():
    conflict = hidden(np.repeat(np.arange(8), 12), 0.7)
    search = Search(PairwiseProblem(np.zeros(conflict.shape), conflict))
    colors = cross_colorings(conflict, 8, 200_000, np.random.default_rng(0), search)
    assert not (conflict & np.equal.outer(colors, colors)).any()
    assert len(set(colors.tolist())) <= 8
    assert cross_colorings(matrix(mycielski(5)), 4, 10_000, np.random.default_rng(0), search) is None


def test_tabucol_finds_a_hidden_coloring():
    conflict = hidden(np.repeat(np.arange(8), 12), 0.7)
    solution = solve(PairwiseProblem(np.zeros((96, 96)), conflict, opening=1), TabuCol(iterations=20_000))
    assert solution.cost <= 8


def test_a_decision_that_is_cut_short_says_nothing():
    conflict = matrix(mycielski(6))
    search = Search(PairwiseProblem(np.zeros(conflict.shape), conflict), time_limit=0)
    decision = decide_by_dsatur(conflict, 5, search)
    assert decision.colors is None
    assert not decision.impossible


def test_what_is_known_of_a_problem_closes_in():
    graph = mycielski(4)
    problem = problem_of(graph)
    palette = Palette(problem, Search(problem))
    assert (palette.lower, len(palette.clique)) == (2, 2)
    assert palette.upper >= 4
    palette.exclude(3, "word of honour")
    assert palette.lower == 4
    assert palette.search.bound == 4
    assert palette.search.proof == "word of honour"


def test_classes_are_split_until_there_are_enough():
    assert split(Coloring([0, 0, 0, 1]), 3).number_of_colors == 3
    assert split(Coloring([0, 0, 0, 1]), 4).number_of_colors == 4
    assert split(Coloring([0, 1]), 2) == Coloring([0, 1])


def test_the_order_of_items_follows_the_conflicts_with_those_before():
    conflict = matrix(nx.path_graph(5))
    assert dsatur_order(conflict, [0]) == [0, 1, 2, 3, 4]
    assert dsatur_order(conflict, []) == [1, 2, 3, 0, 4]


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="iterations must be 1 or more, got 0"):
        TabuCol(iterations=0)
    assert DsaturSearch() == DsaturSearch()
    with pytest.raises(ValueError, match="workers must be 1 or more, got 0"):
        Chromatic(workers=0)
    with pytest.raises(ValueError, match="effort must be above 0 seconds, got 0"):
        Chromatic(effort=0)


@given(st.integers(1, 20), st.floats(0, 1), st.integers(0, 1000))
@settings(deadline=None)
def test_a_clique_cover_holds_every_edge_and_no_other_pair(size, density, seed):
    graph = nx.gnp_random_graph(size, density, seed=seed)
    cover = clique_cover(neighbour_sets(matrix(graph)), lambda steps: False)
    held = {pair for clique in cover for pair in itertools.combinations(clique, 2)}
    assert held == {(min(edge), max(edge)) for edge in graph.edges}


def test_cp_sat_decides_and_says_nothing_when_cut_short():
    conflict = matrix(queens(6))
    search = Search(PairwiseProblem(np.zeros(conflict.shape), conflict))
    assert decide_by_cp_sat(conflict, 6, search).impossible
    colors = decide_by_cp_sat(conflict, 7, search).colors
    assert not (conflict & np.equal.outer(colors, colors)).any()
    assert decide_by_cp_sat(conflict, 7, Search(search.problem, time_limit=0)) == Decision()
    hard = matrix(mycielski(7))
    assert decide_by_cp_sat(hard, 6, search, effort=1e-3) == Decision()


def test_symmetric_colorings_are_found_where_the_graph_has_symmetries():
    conflict = matrix(queens(7))
    problem = PairwiseProblem(np.zeros(conflict.shape), conflict)
    colors = find_symmetric_coloring(conflict, 7, Search(problem)).colors
    assert not (conflict & np.equal.outer(colors, colors)).any()
    assert len(set(colors.tolist())) == 7
    images = [{(colors[i], colors[s[i]]) for i in range(49)} for s in wide_symmetries(conflict)]
    assert any(len(image) == 7 for image in images)  # the symmetry takes each color to one color
    assert find_symmetric_coloring(conflict, 6, Search(problem)) == Decision()


@given(SMALL_GRAPHS)
@settings(deadline=None)
def test_wide_symmetries_keep_every_conflict_and_move_half_of_the_items(graph):
    conflict = matrix(graph)
    for symmetry in wide_symmetries(conflict):
        moved = list(symmetry)
        assert (conflict[np.ix_(moved, moved)] == conflict).all()
        assert 2 * sum(i != image for i, image in enumerate(moved)) >= len(moved)


def test_pairs_without_weights_are_given_to_the_solver_that_counts_colors():
    assert solve(problem_of(queens(5))).solver == "chromatic"
