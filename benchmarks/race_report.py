"""What a race came to: tables by family and by instance in Markdown, and performance profiles as a figure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks.race_instances import FAMILIES, Instance
from benchmarks.solver_peers import PEERS
from solvers.atomic import write_atomically
from solvers.race import (
    Run,
    performance_profile,
    primal_gap,
    primal_integral,
    shifted_geometric_mean,
    time_to_proof,
    time_to_target,
)

PEER_NAMES = tuple(kind.name for kind in PEERS)
NEAR = 1e-3
"""A cost within this fraction of the best known counts as found in the figure's second column."""

Key = TypeVar("Key")
Line = tuple[list[float], list[float]]
Case = tuple[str, int, float]
"""Instance, seed and limit: what the solvers of one comparison have in common."""


def best_costs(runs: Sequence[Run], instances: Iterable[Instance]) -> dict[str, float]:
    """The best cost of each instance: the one known from elsewhere or the best of the race, whichever is lower."""
    best = {each.name: each.best for each in instances if each.best is not None}
    for run in runs:
        best[run.instance] = min(best.get(run.instance, math.inf), run.cost)
    return best


def markdown(runs: Sequence[Run], instances: Sequence[Instance]) -> str:
    """Two tables a family: solvers over all its instances, and instances with the best of ours beside the peers."""
    best = best_costs(runs, instances)
    family = {each.name: each.family for each in instances}
    parts = []
    for name in FAMILIES:
        own = [run for run in runs if family.get(run.instance) == name]
        if own:
            title = FAMILIES[name]
            parts += [f"## {title}\n", _by_solver(own, best), _by_instance(own, best)]
    return "\n".join(parts)


def _by_solver(runs: Sequence[Run], best: Mapping[str, float]) -> str:
    rows = []
    by_solver = _grouped(runs, lambda run: run.solver)
    for solver, own in by_solver.items():
        gaps = [primal_gap(run.cost, best[run.instance]) for run in own]
        rows.append(
            (
                -sum(run.proven for run in own) / len(own),
                sum(gaps) / len(own),
                [
                    f"*{solver}*" if solver in PEER_NAMES else f"`{solver}`",
                    str(len(own)),
                    f"{sum(run.proven for run in own)}",
                    f"{sum(gap <= 1e-9 for gap in gaps)}",
                    _percent(sum(gaps) / len(own)),
                    _percent(_mean_gap(own)),
                    f"{shifted_geometric_mean([min(time_to_proof(r), r.time_limit) for r in own]):.2f}",
                    f"{median(run.seconds for run in own):.2f}",
                    f"{sum(primal_integral(r, best[r.instance]) for r in own) / len(own):.3f}",
                ],
            )
        )
    head = [
        "solver", "runs", "proven", "best found", "above best", "gap to own bound",
        "s to proof (sgm)", "s (median)", "primal integral",
    ]  # fmt: skip
    return _table(head, [row for *_, row in sorted(rows, key=lambda row: row[:2])])


def _by_instance(runs: Sequence[Run], best: Mapping[str, float]) -> str:
    """For each instance the quickest proof (or else the lowest cost) of ours, and each peer's result."""
    peers = [name for name in PEER_NAMES if any(run.solver == name for run in runs)]
    rows = []
    for (instance, _, _), own in sorted(_grouped(runs, lambda r: (r.instance, r.seed, r.time_limit)).items()):
        ours = [run for run in own if run.solver not in PEER_NAMES]
        cells = [instance, str(own[0].size), _number(best[instance])]
        if ours:
            first = min(ours, key=lambda run: (not run.proven, run.cost, time_to_proof(run), run.gap, run.seconds))
            cells += [f"`{first.solver}`", *_result(first, best[instance])]
        else:
            cells += ["", "", ""]
        for peer in peers:
            found = [run for run in own if run.solver == peer]
            cells.append(" ".join(_result(found[0], best[instance])) if found else "")
        rows.append(cells)
    return _table(["instance", "L", "best known", "ours", "result", "s", *peers], rows)


def _result(run: Run, best: float) -> tuple[str, str]:
    seconds = f"{run.seconds:.2f}"
    if not math.isfinite(run.cost):
        failed = run.status if run.status in ("crashed", "killed") else "nothing found"
        return ("infeasible, proven" if run.proven else failed), seconds
    above = primal_gap(run.cost, best)
    found = "best" if above <= 1e-9 else f"+{_percent(above)}"
    if run.proven:
        return "proven", seconds
    return (f"{found}, gap {_percent(run.gap)}" if math.isfinite(run.gap) else f"{found}, no bound"), seconds


def _mean_gap(runs: Sequence[Run]) -> float:
    return sum(min(run.gap, 1.0) for run in runs) / len(runs)


def profiles(
    runs: Sequence[Run], best: Mapping[str, float], measure: str
) -> tuple[dict[str, tuple[list[float], list[float]]], int]:
    """Performance profiles of the solvers over the cases, by time to proof or time to near the best; and the cases."""
    cases = sorted({(run.instance, run.seed, run.time_limit) for run in runs})
    table: dict[str, dict[Case, float]] = defaultdict(dict)
    for run in runs:
        if measure == "proof":
            seconds = time_to_proof(run)
        else:
            target = best[run.instance]
            seconds = time_to_target(run, target + NEAR * abs(target) + 1e-12)
        table[run.solver][run.instance, run.seed, run.time_limit] = seconds
    times = {solver: [own.get(case, math.inf) for case in cases] for solver, own in table.items()}
    found = performance_profile(times)
    return {solver: (ratios.tolist(), shares.tolist()) for solver, (ratios, shares) in found.items()}, len(cases)


def write_figure(runs: Sequence[Run], instances: Sequence[Instance], path: Path) -> None:
    """A row for each family: who proves within τ times the quickest's time, and who comes near the best."""
    from matplotlib.figure import Figure

    best = best_costs(runs, instances)
    family = {each.name: each.family for each in instances}
    rows = [name for name in FAMILIES if any(family.get(run.instance) == name for run in runs)]
    colors = solver_colors(run.solver for run in runs)
    figure = Figure(figsize=(11, 1.1 + 2.3 * len(rows)), facecolor="white", layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, sharey=True)
    for row, name in enumerate(rows):
        own = [run for run in runs if family.get(run.instance) == name]
        for column, (measure, title) in enumerate(
            (("proof", "optimum found and proven"), ("near", f"cost within {NEAR:.1%} of the best known"))
        ):
            lines, cases = profiles(own, best, measure)
            _draw(axes[row, column], lines, colors, f"{FAMILIES[name]} ({cases}): {title}")
        axes[row, 0].set_ylabel("share of instances")
    figure.suptitle("Drawn through: solvers of this package. Dashed: peers. Higher and further left is better")
    for column in range(2):
        axes[-1, column].set_xlabel("within this many times the quickest solver's time")
    form = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=110))


COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c564b", "#7f7f7f", "#bcbd22", "#5b3a8c")
MOST_LINES = 8


def solver_colors(names: Iterable[str]) -> dict[str, str]:
    """A color for each solver, the same in every panel: black for what is taken when nobody says."""
    others = sorted(set(names) - {"auto"}, key=lambda name: (name in PEER_NAMES, name))
    return {"auto": "#000000"} | {name: COLORS[at % len(COLORS)] for at, name in enumerate(others)}


def _draw(axes, lines: Mapping[str, Line], colors: Mapping[str, str], title: str) -> None:  # type: ignore[no-untyped-def]
    """Steps, ours drawn through and peers dashed, named at their right end in the order of what they reach."""
    top = max([ratio for ratios, _ in lines.values() for ratio in ratios] + [10.0])
    reached = {solver: (shares[-1] if shares else 0.0) for solver, (_, shares) in lines.items()}
    shown = [solver for solver in sorted(lines, key=lambda s: -reached[s]) if reached[solver] > 0][:MOST_LINES]
    places: list[float] = []
    for solver in shown:
        ratios, shares = lines[solver]
        style = "--" if solver in PEER_NAMES else "-"
        axes.step([1.0, *ratios, top], [0.0, *shares, shares[-1]], where="post", linestyle=style, color=colors[solver])
        place = reached[solver] if not places else min(reached[solver], places[-1] - 0.085)
        places.append(place)
        axes.text(top * 1.15, place, solver, color=colors[solver], fontsize=8, va="center")
    axes.set_xscale("log")
    axes.set_xlim(1.0, top)
    axes.set_ylim(0, 1.02)
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _grouped(runs: Sequence[Run], key: Callable[[Run], Key]) -> dict[Key, list[Run]]:
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 0.0995 else f"{100 * value:.0f} %"


def _number(value: float) -> str:
    return f"{value:.8g}"
