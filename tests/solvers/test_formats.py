import contextlib
import io
import json
import math
import os
import tracemalloc
import zipfile

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import Coloring, GroupProblem, MedoidProblem, PairwiseProblem, solve
from solvers.formats import FORMATS, FormatError, read, write
from solvers.testing import group_problems, medoid_problems, pairwise_problems

PMED = """ 4 5 2
 1 2 30
 2 3 4
 3 4 1
 1 4 2
 1 2 3
"""


def same(first, second):
    """Equal to the last bit."""
    assert type(first) is type(second)
    assert first.K == second.K
    if isinstance(first, MedoidProblem):
        assert np.array_equal(first.cost_matrix, second.cost_matrix)
        assert first.group == second.group
        assert np.array_equal(first.penalties(), second.penalties())
    elif isinstance(first, PairwiseProblem):
        assert np.array_equal(first.weight, second.weight)
        assert np.array_equal(first.conflict, second.conflict)
        assert first.opening == second.opening
    else:
        assert (first.size, dict(first.priced)) == (second.size, dict(second.priced))
        assert np.array_equal(first.compatible, second.compatible)
        assert np.array_equal(first.penalties(), second.penalties())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("problems")


@settings(deadline=None, max_examples=60)
@given(problem=medoid_problems() | pairwise_problems() | group_problems(), suffix=st.sampled_from([".json", ".npz"]))
def test_what_is_written_is_read_again_to_the_last_bit(folder, problem, suffix):
    if isinstance(problem, GroupProblem):
        solve(problem, "greedy")
    write(problem, folder / f"problem{suffix}")
    same(read(folder / f"problem{suffix}"), problem)


@settings(deadline=None, max_examples=60)
@given(problem=medoid_problems() | pairwise_problems())
def test_graphml_holds_pairs_and_medoids_to_the_last_bit(folder, problem):
    write(problem, folder / "problem.graphml")
    found = read(folder / "problem.graphml")
    assert solve(found, "exhaustive").cost == solve(problem, "exhaustive").cost
    if not (isinstance(problem, MedoidProblem) and not problem.size):
        same(found, problem)


def test_a_pmed_file_is_a_graph_whose_shortest_paths_cost(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text(PMED)
    problem = read(path)
    assert problem.K == 2
    assert problem.cost_matrix.tolist() == [[0, 3, 3, 2], [3, 0, 4, 5], [3, 4, 0, 1], [2, 5, 1, 0]]
    write(problem, tmp_path / "again.pmed")
    same(read(tmp_path / "again.pmed"), problem)


def test_a_path_of_no_length_costs_nothing(tmp_path):
    (tmp_path / "zero.pmed").write_text("3 2 1\n1 2 0\n2 3 5\n")
    assert read(tmp_path / "zero.pmed").cost_matrix.tolist() == [[0, 0, 5], [0, 0, 5], [5, 5, 0]]


def test_a_col_file_is_a_coloring_problem(tmp_path):
    path = tmp_path / "triangle.col"
    path.write_text("c a triangle and a tail\np edge 4 4\ne 1 2\ne 2 3\ne 3 1\ne 1 2\ne 4 4\nn 1 5\n")
    problem = read(path)
    assert solve(problem).cost == 3
    assert problem.conflict.sum() == 6
    write(problem, tmp_path / "again.col")
    same(read(tmp_path / "again.col"), problem)


def test_a_clique_partitioning_file_holds_gains(tmp_path):
    path = tmp_path / "three.txt"
    path.write_text("3\n5 -2\n1\n")
    problem = read(path)
    assert problem.weight.tolist() == [[0, -5, 2], [-5, 0, -1], [2, -1, 0]]
    write(problem, tmp_path / "again.cp")
    same(read(tmp_path / "again.cp"), problem)


def test_any_weighted_graphml_is_a_pairwise_problem(tmp_path):
    graph = nx.Graph(missing="conflict", opening=2.0, K=2)
    graph.add_edge("q", "k", weight=-1.5)
    graph.add_edge("k", "v", weight=3)
    nx.write_graphml(graph, tmp_path / "layers.graphml")
    problem = read(tmp_path / "layers.graphml")
    assert problem.conflict[0, 2]
    assert (problem.weight[0, 1], problem.weight[1, 2], problem.opening, problem.K) == (-1.5, 3, 2, 2)


def test_a_class_that_a_group_file_does_not_list_is_forbidden(tmp_path):
    problem = GroupProblem(3, lambda items: 1.0 + len(items), item_lower_bound=[0.5, 0.5, 0.5])
    for items in [(0,), (1,), (2,), (0, 1)]:
        problem.class_cost(items)
    write(problem, tmp_path / "classes.npz")
    found = read(tmp_path / "classes.npz")
    assert found.class_cost((0, 1)) == 3
    assert found.class_cost((1, 2)) == math.inf
    assert solve(found).coloring == Coloring([0, 0, 1])
    assert found.item_lower_bound.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.pmed", "", "line 1: the file is empty"),
        ("a.pmed", "4 5\n", "line 1, column 4: the line ends early: the first line .* takes 3 words, here are 2"),
        ("a.pmed", PMED[:-7], "announces 5 edges, but the file ends after 4"),
        ("a.pmed", PMED + "1 2 3\n", "line 7, column 1: .* there is one more"),
        ("a.pmed", PMED.replace("30", "x3"), "line 2, column 6: the cost of an edge must be a finite number, got 'x3'"),
        ("a.pmed", PMED.replace(" 3 4 1", " 3 9 1"), "line 4, column 4: a vertex must be between 1 and 4, got 9"),
        ("a.pmed", PMED.replace("30", "-30"), "line 2, column 6: .* cannot be negative"),
        ("a.pmed", "4 5 9\n", "line 1, column 5: p must be between 1 and 4, got 9"),
        ("a.pmed", "9999999 1 1\n", "line 1, column 1: the number of vertices must be between"),
        ("a.col", "", "line 1: no problem line"),
        ("a.col", "e 1 2\n", "line 1, column 1: an edge before the problem line"),
        ("a.col", "p edge 3 3\ne 1 2\n", "line 2, column 5: .* announces 3 edges, but the file ends after 1"),
        ("a.col", "p edge 3 1\ne 1 4\n", "line 2, column 5: a vertex must be between 1 and 3, got 4"),
        ("a.col", "p edge 3 1\ne 1 2 3\n", "line 2, column 7: '3' is too much"),
        ("a.col", "p edge 3 1\nedge 1 2\n", "line 2, column 1: lines begin with"),
        ("a.col", "p edge 3 1\np edge 3 1\n", "line 2, column 1: a second problem line"),
        ("a.col", "p matrix 3 1\n", "line 1, column 3: the problem line must say edge"),
        ("a.cp", "3\n1 2\n", "3 items have 2 rows of gains, but the file ends after 1"),
        ("a.cp", "3\n1\n", "line 2, column 2: the line ends early"),
        ("a.cp", "3\n1 2\n3\n4\n", "line 4, column 1: .* there is one more"),
        ("a.cp", "3\n1 nan\n", "line 2, column 3: a gain must be a finite number"),
        ("a.json", '{"kind": "medoid",\n "cost": [[1, 2}', "line 2, column 16: this is no JSON"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [[NaN]], "K": 1}', "NaN is not JSON"),
        ("a.json", "[1]", "a problem is a JSON object, not a list"),
        ("a.json", '{"kind": "median"}', "'kind' must be one of medoid, sparse_medoid, pairwise, group, got 'median'"),
        ("a.json", '{"kind": "medoid", "version": 2}', "'version' is 2"),
        ("a.json", '{"kind": "medoid", "version": 1, "K": 1}', "'cost' is missing"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [[1, "x"]], "K": 1}', "'cost' must be a list of lists"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [[1], [1, 2]], "K": 1}', "'cost' must be a list of lists"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [[1]]}', "'K' is missing"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [[1]], "K": 1, "k": 2}', "'k' is no field of a medoid"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [[1]], "K": -1}', "K must be a whole number"),
        ("a.json", '{"kind": "pairwise", "version": 1, "weight": [[0, 1], [2, 0]]}', "weight must be symmetric"),
        (
            "a.json",
            '{"kind": "pairwise", "version": 1, "weight": [[0]], "conflicts": [[0, 1]]}',
            "'conflicts' must list",
        ),
        ("a.json", '{"kind": "group", "version": 1, "size": 1e99, "items": [], "lengths": [], "prices": []}', "'size'"),
        ("a.json", '{"kind": []}', "'kind' must be one of medoid"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": null, "K": 1}', "'cost' must be a list of lists"),
        ("a.json", f'{{"kind": "medoid", "version": 1, "cost": [[{10**400}]], "K": 1}}', "'cost' must be a list of"),
        ("a.json", f'{{"kind": "medoid", "version": 1, "cost": [[1]], "K": {2**64}}}', "K must be a whole number"),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [[1]], "K": 1' + "9" * 5000 + "}", "no JSON that can be"),
        (
            "a.json",
            f'{{"kind": "pairwise", "version": 1, "weight": [[0]], "opening": {10**400}}}',
            "'opening' must be a number",
        ),
        ("a.json", '{"kind": "pairwise", "version": 1, "weight": [[0]], "weight": [[1]]}', "'weight' is there twice"),
        ("a.npz", "PK not really", "this is no npz archive"),
        ("a.graphml", "<graphml>\n <graph", "line 2, column 2: this is no XML"),
        ("a.graphml", "<html></html>", "this is no GraphML"),
        ("a.graphml", '<graphml><graph><data key="&#10;a">1</data></graph></graphml>', "Bad GraphML data: no key a"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=place) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    data=st.binary(max_size=60) | st.text('pe 0123.-\n{}[]":,', max_size=60).map(str.encode),
)
def test_no_bytes_raise_anything_but_a_format_error(folder, name, data):
    path = folder / "noise"
    path.write_bytes(data)
    with contextlib.suppress(FormatError):
        assert read(path, format=name).size <= 1000


@settings(deadline=None, max_examples=60)
@given(problem=medoid_problems(max_size=4) | pairwise_problems(max_size=4), data=st.data())
def test_a_file_cut_short_is_refused_or_whole(folder, problem, data):
    path = folder / "cut.npz"
    write(problem, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(FormatError):
        read(path)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_flipped_bits_raise_nothing_but_a_format_error(folder, data):
    problem, suffix = data.draw(
        st.sampled_from(
            [(MedoidProblem(np.arange(9.0).reshape(3, 3), K=2), name) for name in ("json", "npz", "graphml")]
            + [(PairwiseProblem(np.array([[0, 1.0], [1.0, 0]]), K=2), name) for name in ("json", "npz", "graphml")]
        )
    )
    path = folder / f"flipped.{suffix}"
    write(problem, path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    with contextlib.suppress(FormatError):
        read(path)


def test_archives_and_texts_of_unknown_encodings_are_refused(tmp_path):
    path = tmp_path / "problem.graphml"
    write(PairwiseProblem(np.zeros((2, 2)), K=2), path)
    path.write_bytes(path.read_bytes().replace(b"utf-8", b"utf-9"))
    with pytest.raises(FormatError, match="unknown encoding"):
        read(path)
    path = tmp_path / "problem.npz"
    write(PairwiseProblem(np.zeros((2, 2)), K=2), path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\x01\x02") + 10] = 99  # the way the first entry is said to be compressed
    path.write_bytes(whole)
    with pytest.raises(FormatError, match="this is no npz archive that can be read"):
        read(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.pmed", "20000 1 1\n1 2 3\n"),
        ("a.col", "p edge 20000 1\ne 1 2\n"),
        ("a.json", '{"kind": "group", "version": 1, "size": 100000, "items": [], "lengths": [], "prices": []}'),
        (
            "a.json",
            '{"kind": "sparse_medoid", "version": 1, "starts": [0, 1], "candidate": [0], "costs": [1], '
            '"candidates": 1000000000, "K": 1}',
        ),
        ("a.json", '{"kind": "medoid", "version": 1, "cost": [], "candidates": 1000000000000, "K": 1}'),
        ("a.graphml", "<graphml><graph>" + "".join(f'<node id="{i}"/>' for i in range(10_001)) + "</graph></graphml>"),
    ],
)
def test_a_small_file_that_announces_much_is_refused_before_memory_is_taken(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=str(tmp_path)):
            read(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_an_archive_that_announces_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "large.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cost.npy", header.getvalue())
    with pytest.raises(FormatError, match=r"'cost.npy' announces \(1000000, 1000000\) numbers, but the archive has"):
        read(path)


def test_an_array_that_is_no_archive_is_refused(tmp_path):
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(FormatError, match="this is no npz archive"):
        read(tmp_path / "array.npz")


def test_an_archive_with_pickled_objects_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, ("touch exploded",)

    np.savez(tmp_path / "bomb.npz", plain=np.array(Bomb(), dtype=object))
    with pytest.raises(FormatError, match="Object arrays cannot be loaded"):
        read(tmp_path / "bomb.npz")


def test_unknown_formats_and_missing_files_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"the suffix tells the format, and must be one of \.pmed, \.col"):
        read(tmp_path / "problem.mps")
    with pytest.raises(ValueError, match="there is no format 'mps'; the formats are pmed, dimacs"):
        read(tmp_path / "problem.mps", format="mps")
    for suffix in (".pmed", ".col", ".json", ".npz", ".graphml"):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / f"missing{suffix}")


def test_a_format_that_cannot_hold_the_problem_says_which_can(tmp_path):
    weighted = PairwiseProblem([[0, 1], [1, 0]], opening=1)
    for problem, suffix in [
        (weighted, ".col"),
        (weighted, ".cp"),
        (weighted, ".pmed"),
        (MedoidProblem([[0, 9, 1], [9, 0, 1], [1, 1, 0]], 1), ".pmed"),
        (GroupProblem(1, lambda items: 1.0), ".graphml"),
    ]:
        with pytest.raises(ValueError, match=r"use \.json"):
            write(problem, tmp_path / f"problem{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_json_is_readable_and_strict(tmp_path):
    write(MedoidProblem([[0, math.inf], [1, 0]], {"a": 1, "b": 1}, group=["a", "b"]), tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text()
    assert json.loads(text)["cost"] == [[0.0, "inf"], [1.0, 0.0]]
    assert "Infinity" not in text
    assert read(tmp_path / "p.json").group == ("a", "b")
