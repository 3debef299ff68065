"""Problems for the solvers in all their formats; none of them has checksums."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from solvers import GroupProblem, MedoidProblem, PairwiseProblem, formats
from solvers.formats.document import to_document
from solvers.problem import Problem
from solvers.sparse_medoid import SparseMedoidProblem
from tests.fuzz.reader import Json, Reader

INF = float("inf")


def pairwise() -> PairwiseProblem:
    weight = np.array([[0, -1.5, 2], [-1.5, 0, 0], [2, 0, 0]])
    return PairwiseProblem(weight, np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]]), opening=0.5, K=2)


def attraction() -> PairwiseProblem:
    return PairwiseProblem(np.array([[0, -1.5, 2], [-1.5, 0, 0], [2, 0, 0]]))


def coloring() -> PairwiseProblem:
    return PairwiseProblem(np.zeros((3, 3)), np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]), opening=1)


def medoid() -> MedoidProblem:
    return MedoidProblem([[0, INF, 2], [1, 0, 2]], {"x": 1, "y": 1}, penalty=[4.0, INF], group=["x", "y", "x"])


def distances() -> MedoidProblem:
    return MedoidProblem([[0, 3, 4], [3, 0, 1], [4, 1, 0]], K=2)


def sparse() -> SparseMedoidProblem:
    return SparseMedoidProblem([0, 2, 3], [0, 1, 1], [0.0, 4.0, 0.5], candidates=2, K=1)


def group() -> GroupProblem:
    problem = GroupProblem(3, lambda items: 1.0 + len(items), compatible=[[1, 1, 1], [1, 1, 0], [1, 0, 1]], K=2)
    for items in [(0,), (1,), (2,), (0, 1)]:
        problem.class_cost(items)
    return problem


def value(problem: Problem) -> object:
    """Enough to see that a problem can be used."""
    assert problem.size >= 0
    assert problem.limit >= 0
    return to_document(problem)


# --- contents as JSON, and back


def _from_json(path: Path, document: Json) -> None:
    path.write_text(json.dumps(document))


def _words(path: Path) -> Json:
    return [line.split() for line in path.read_text().splitlines()]


def _from_words(path: Path, document: Json) -> None:
    lines = document if isinstance(document, list) else [document]
    texts = (" ".join(map(str, line)) if isinstance(line, list) else str(line) for line in lines)
    path.write_text("\n".join(texts), errors="replace")


def _arrays(path: Path) -> Json:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name].tolist() for name in archive.files}


def _from_arrays(path: Path, document: Json) -> None:
    arrays = {}
    for name, entry in (document if isinstance(document, dict) else {"plain": document}).items():
        try:
            made = np.array(entry)
        except ValueError:  # rows of different lengths
            made = np.array(str(entry))
        arrays[name.replace("/", "") or "x"] = np.array(str(entry)) if made.dtype == object else made
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: each for name, each in arrays.items() if name != "file"})


XML = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'


def _graph(_: Path) -> Json:
    return {
        "keys": [["g0", "graph", "kind", "string"], ["g1", "graph", "K", "long"], ["e0", "edge", "weight", "double"]],
        "directed": "undirected",
        "data": [["g0", "pairwise"], ["g1", "2"]],
        "nodes": ["0", "1", "2"],
        "edges": [["0", "1", [["e0", "-1.5"]]], ["0", "2", [["e0", "2.0"]]]],
    }


def _from_graph(path: Path, document: Json) -> None:
    told = document if isinstance(document, dict) else {}

    def rows(holder: Json, name: str) -> list[Json]:
        found = holder.get(name)
        return [entry if isinstance(entry, list) else [entry] for entry in found] if isinstance(found, list) else []

    def data(entries: Json) -> str:
        pairs = [each if isinstance(each, list) else [each] for each in entries] if isinstance(entries, list) else []
        return "".join(f"<data key={quoteattr(str(each[0]))}>{escape(str(each[-1]))}</data>" for each in pairs if each)

    names = ("id", "for", "attr.name", "attr.type")
    keys = "".join(
        f"<key {' '.join(f'{n}={quoteattr(str(v))}' for n, v in zip(names, row, strict=False))}/>"
        for row in rows(told, "keys")
    )
    nodes = "".join(f"<node id={quoteattr(str(row[0]))}>{data(row[1:])}</node>" for row in rows(told, "nodes") if row)
    edges = "".join(
        f"<edge source={quoteattr(str(row[0]))} target={quoteattr(str(row[1]))}>{data(row[2])}</edge>"
        for row in rows(told, "edges")
        if len(row) > 2
    )
    graph = f"<graph edgedefault={quoteattr(str(told.get('directed')))}>{data(told.get('data'))}{nodes}{edges}</graph>"
    path.write_text(f"{XML}{keys}{graph}</graphml>", errors="replace")


def _reader(
    name: str,
    format: str,
    make: Callable[[], Problem],
    document: Callable[[Path], Json],
    sign: Callable[[Path, Json], object],
) -> Reader:
    return Reader(
        name,
        lambda path: formats.write(make(), path, format),
        lambda path: value(formats.read(path, format)),
        document,
        sign,
        checked=False,
    )


def _loaded(path: Path) -> Json:
    return json.loads(path.read_text())


PROBLEM_FILES = [
    _reader("medoid in JSON", "json", medoid, _loaded, _from_json),
    _reader("sparse medoid in JSON", "json", sparse, _loaded, _from_json),
    _reader("pairwise in JSON", "json", pairwise, _loaded, _from_json),
    _reader("group in JSON", "json", group, _loaded, _from_json),
    _reader("medoid in npz", "npz", distances, _arrays, _from_arrays),
    _reader("group in npz", "npz", group, _arrays, _from_arrays),
    _reader("pairwise in GraphML", "graphml", pairwise, _graph, _from_graph),
    _reader("medoid in GraphML", "graphml", medoid, _graph, _from_graph),
    _reader("p-median", "pmed", distances, _words, _from_words),
    _reader("DIMACS", "dimacs", coloring, _words, _from_words),
    _reader("clique partitioning", "clique_partitioning", attraction, _words, _from_words),
]
