"""What breaking symmetry costs CP-SAT and what it buys: duplicated layers, planted twins, blocks, Cayley graphs.

Every instance is solved with each way of breaking switched on by itself and with all of them, on one worker. Effort is
CP-SAT's deterministic time (about seconds of a quiet core) and its branches, so that a loaded machine measures alike.

    python -m benchmarks.symmetry --out benchmarks/results/symmetry.json --figure docs/symmetry.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import priced_pairs
from solvers import PairwiseProblem, Search, SymmetricCpSat, automorphisms, merge_twins, solve
from solvers.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from ortools.sat.python import cp_model

Record = dict[str, Any]

WAYS: dict[str, dict[str, bool]] = {
    "nothing": {"merge": False, "value_precedence": False, "twins": False, "generators": False},
    "colors by first use": {"merge": False, "value_precedence": True, "twins": False, "generators": False},
    "layers in order": {"merge": False, "value_precedence": False, "twins": True, "generators": True},
    "both": {"merge": False, "value_precedence": True, "twins": True, "generators": True},
    "both, twins merged": {"merge": True, "value_precedence": True, "twins": True, "generators": True},
}
"""Settings of ``SymmetricCpSat``; "layers in order" is the ordering of twins and the lex-leader of other generators."""


@dataclass(frozen=True)
class Family:
    """Instances of one kind, from small to large.

    Attributes:
        title: what it is, for the figure.
        sizes: how many layers.
        make: the problem of a size and a seed.
        seeds: at most so many draws; 1 where nothing is drawn.
    """

    title: str
    sizes: tuple[int, ...]
    make: Callable[[int, int], PairwiseProblem]
    seeds: int = 3


def distances(rng: np.random.Generator, kinds: int) -> NDArray[np.float64]:
    """Whole distances of random points in space: what sharing costs two layers of different kinds."""
    points = 200 * rng.normal(size=(kinds, 3))
    return np.asarray(np.rint(np.linalg.norm(points[:, None] - points[None], axis=-1)), dtype=np.float64)


def copies(rng: np.random.Generator, base: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Layers that are copies of a few kinds, in random order."""
    kind = rng.permutation(np.arange(size) % len(base))
    return np.asarray(base[np.ix_(kind, kind)], dtype=np.float64)


def spreading_twins(size: int, seed: int) -> PairwiseProblem:
    """Classes of three twins that cost something together, so that none may be merged; K = 3, no pair is free."""
    rng = np.random.default_rng([seed, size])
    base = distances(rng, size // 3)
    np.fill_diagonal(base, rng.integers(5, 41, size // 3))
    return PairwiseProblem(copies(rng, base, size), K=3)


def interchangeable_blocks(size: int, seed: int) -> PairwiseProblem:
    """Blocks of four layers: what two layers cost depends on their kinds and on whether they share a block.

    Blocks may change places as a whole, but no two layers are twins.
    """
    rng = np.random.default_rng([seed, size])
    within, between = distances(rng, 4), distances(rng, 4)
    np.fill_diagonal(between, rng.integers(5, 41, 4))
    same_block = np.eye(size // 4)
    return PairwiseProblem(np.kron(same_block, within) + np.kron(1 - same_block, between), K=3)


def duplicated_layers(size: int, seed: int) -> PairwiseProblem:
    """A cost graph in blocks, as of a network's kinds of matrices, ten layers of which are there many times."""
    rng = np.random.default_rng([seed, 10])
    block = np.arange(10) // 3
    base = np.rint(100 * rng.random((10, 10)) + 300 * (block[:, None] != block[None, :]) * rng.random((10, 10)))
    base = base + base.T
    np.fill_diagonal(base, 0.0)
    return PairwiseProblem(copies(np.random.default_rng([seed, size]), base, size), K=4)


def priced_layers(size: int, seed: int) -> PairwiseProblem:
    """Ten layers of the embedded model at the prices of their pairs (``priced_pairs``), each there many times."""
    weight, _ = priced_pairs.load()
    chosen = np.random.default_rng([seed, 11]).choice(len(weight), 10, replace=False)
    base = weight[np.ix_(chosen, chosen)]
    return PairwiseProblem(copies(np.random.default_rng([seed, size]), base, size), K=4)


CAYLEY: dict[int, tuple[int, ...]] = {
    17: (1, 2, 4, 8),
    23: (1, 3, 5, 8),
    29: (4, 7, 8, 10),
    35: (2, 4, 5, 8, 11),
    41: (10, 12, 16, 17, 19),
}
"""Connection sets of circulant graphs: layers i and j are in conflict where ±(i − j) is among them."""


def cayley_coloring(size: int, seed: int) -> PairwiseProblem:
    """How many colors a Cayley graph of a cyclic group needs: every layer is like every other, none are twins."""
    step = (np.arange(size)[:, None] - np.arange(size)[None, :]) % size
    conflict = np.isin(step, CAYLEY[size]) | np.isin((-step) % size, CAYLEY[size])
    return PairwiseProblem(np.zeros((size, size)), conflict, opening=1.0)


FAMILIES: dict[str, Family] = {
    "priced layers": Family("ten layers of a model, duplicated", (15, 20, 30, 60), priced_layers),
    "duplicated layers": Family("ten drawn layers, duplicated", (20, 30, 40, 60), duplicated_layers),
    "spreading twins": Family("twins that must spread", (15, 18, 21, 24), spreading_twins),
    "blocks": Family("blocks that may change places", (12, 16, 20), interchangeable_blocks),
    "Cayley graphs": Family("Cayley graphs, colored", tuple(CAYLEY), cayley_coloring, seeds=1),
}


class Counting(SymmetricCpSat):
    """The solver under test, which remembers the CP-SAT it ran last."""

    last: ClassVar[list[cp_model.CpSolver]] = []

    def engine(self, search: Search) -> cp_model.CpSolver:
        self.last[:] = [super().engine(search)]
        return self.last[0]


def measure(problem: PairwiseProblem, way: str, limit: float) -> Record:
    """Solve once; ``limit`` is in units of deterministic time."""
    Counting.last.clear()
    began = time.process_time()
    solution = solve(problem, Counting(**WAYS[way]), time_limit=limit, deterministic=True)
    seconds = time.process_time() - began
    ran = Counting.last[0].response_proto if Counting.last else None
    return {
        "way": way,
        "proven": solution.status == "optimal",
        "deterministic": ran.deterministic_time if ran is not None else 0.0,
        "branches": ran.num_branches if ran is not None else 0,
        "cpu_seconds": round(seconds, 3),
        "cost": solution.cost,
        "bound": solution.lower_bound,
    }


def run(families: Sequence[str], seeds: int, limit: float, sizes: int | None) -> Iterator[Record]:
    """All measurements, one at a time."""
    for name in families:
        family = FAMILIES[name]
        for size in family.sizes[:sizes]:
            for seed in range(min(seeds, family.seeds)):
                problem = family.make(size, seed)
                began = time.process_time()
                group = automorphisms(problem)
                told = {"family": name, "layers": size, "seed": seed, "K": problem.K}
                told |= {"log10_order": round(math.log10(group.order), 1), "twin_classes": len(group.twins)}
                told |= {"generators": len(group.generators), "group_seconds": round(time.process_time() - began, 4)}
                measured: Record = {}
                for way, settings in WAYS.items():
                    if not (settings["merge"] and merge_twins(problem) is None):  # else it is the way before
                        measured = measure(problem, way, limit)
                    yield told | measured | {"way": way}


def table(records: Sequence[Record]) -> str:
    """Proofs, median deterministic time and median branches, for each instance and way."""
    lines = [f"{'family':18} {'layers':>6} {'way':20} {'proven':>6} {'time':>8} {'branches':>9}"]
    for name, size, way in dict.fromkeys((r["family"], r["layers"], r["way"]) for r in records):
        rows = [r for r in records if (r["family"], r["layers"], r["way"]) == (name, size, way)]
        proven, effort, branches = summary(rows)
        lines.append(f"{name:18} {size:6} {way:20} {proven:>4}/{len(rows)} {effort:8.3f} {branches:9.0f}")
    return "\n".join(lines)


def summary(rows: Sequence[Record]) -> tuple[int, float, float]:
    """How many are proven, the median deterministic time and the median number of branches."""
    effort = statistics.median(r["deterministic"] for r in rows)
    return sum(r["proven"] for r in rows), effort, statistics.median(r["branches"] for r in rows)


COLORS = ("#8c8c8c", "#d98c1f", "#3b7dd8", "#1b1b1b", "#2a9d5c")
MARKERS = ("o", "s", "^", "D", "v")
FLOOR = 0.002
"""Efforts below this, in deterministic seconds, are drawn here."""


def draw(records: Sequence[Record], limit: float, path: Path) -> None:
    """The figure: for each family the effort to the proof by size, a line for each way, and what was not proven above.

    A median over draws counts as proven when more than half of them are. Merging is left out where it changes nothing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["family"] for r in records))
    figure = Figure(figsize=(2.9 * len(names) + 0.6, 4.3), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, panel in zip(names, axes, strict=True):
        _draw_family([r for r in records if r["family"] == name], limit, panel)
        panel.set_title(FAMILIES[name].title, fontsize=10)
    axes[0].set_ylabel("time to the proof\n(deterministic seconds)")
    axes[0].text(0.04, 0.965, "no proof within the limit", transform=axes[0].transAxes, fontsize=8, va="top")
    shown: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(shown.values(), shown.keys(), loc="lower center", ncols=len(WAYS), frameon=False, fontsize=9)
    title = "What CP-SAT is told of the symmetry of colors and of layers, and how long its proof takes"
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, weight="bold")
    figure.tight_layout(rect=(0, 0.07, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_family(records: Sequence[Record], limit: float, panel: Axes) -> None:
    sizes = sorted({r["layers"] for r in records})
    rungs = dict(zip(WAYS, limit * 1.5 ** np.arange(len(WAYS), 0, -1), strict=True))  # above the limit, one a way
    for way, color, marker in zip(WAYS, COLORS, MARKERS, strict=True):
        measured = [[r for r in records if r["way"] == way and r["layers"] == size] for size in sizes]
        if way == list(WAYS)[-1] and all(_same_but_for_the_way(records, rows) for rows in measured):
            continue
        summaries = [summary(rows) for rows in measured]
        settled = [2 * found[0] > len(rows) for found, rows in zip(summaries, measured, strict=True)]
        heights = [max(found[1], FLOOR) if ok else math.nan for found, ok in zip(summaries, settled, strict=True)]
        line = "-" if len({r["seed"] for r in records}) > 1 else "None"  # single graphs are no series
        name = f"{way} broken" if way == "nothing" else way
        panel.plot(sizes, heights, color=color, linestyle=line, label=name, marker=marker, markersize=5.5)
        open_sizes = [size for size, ok in zip(sizes, settled, strict=True) if not ok]
        panel.plot(open_sizes, [rungs[way]] * len(open_sizes), marker, color=color, markerfacecolor="white")
    panel.axhspan(limit * 1.1, limit * 20, color="#f6eaea", linewidth=0)
    panel.set_yscale("log")
    panel.set_ylim(FLOOR * 0.7, limit * 20)
    ticks = [tick for tick in (0.01, 0.1, 1.0, 10.0, 100.0) if tick <= limit]
    panel.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    panel.set_yticks([], minor=True)
    panel.set_xticks(sizes)
    panel.set_xlabel("layers")
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _same_but_for_the_way(records: Sequence[Record], rows: Sequence[Record]) -> bool:
    """Whether each of the rows repeats the measurement of the way before."""
    before = list(WAYS)[-2]
    return all({**row, "way": before} in records for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each instance (default: 3)")
    parser.add_argument("--sizes", type=int, help="only the smallest so many of each family")
    parser.add_argument("--limit", type=float, default=1.0, help="deterministic seconds for each solve (default: 1)")
    parser.add_argument("--out", type=Path, help="write the measurements here (JSON)")
    parser.add_argument("--figure", type=Path, help="draw the figure here (PNG; needs matplotlib)")
    parser.add_argument("--from", dest="source", type=Path, help="tabulate and draw a JSON file instead of measuring")
    asked = parser.parse_args(arguments)
    if asked.source is not None:
        document = json.loads(asked.source.read_text())
        records, limit = document["records"], document["limit"]
    else:
        limit, records = asked.limit, []
        for record in run(asked.family, asked.seeds, limit, asked.sizes):
            records.append(record)
            state = "proven" if record["proven"] else "open"
            place = f"{record['family']}, {record['layers']} layers, seed {record['seed']}, {record['way']}"
            print(f"{place}: {state}, {record['deterministic']:.3f}, {record['branches']} branches", flush=True)
    print(table(records))
    if asked.out is not None:
        text = json.dumps({"limit": limit, "unit": "CP-SAT deterministic time", "records": records}, indent=1) + "\n"
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(asked.out, lambda temporary: temporary.write_text(text))
    if asked.figure is not None:
        draw(records, limit, asked.figure)


if __name__ == "__main__":
    main()
