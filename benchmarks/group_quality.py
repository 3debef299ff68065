"""How far solvers of group problems stay above the optimum that dynamic programming proves.

python -m benchmarks.group_quality --count 200 --largest 15 --out group_quality.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.group_instances import instance
from solvers import GroupProblem, SubsetDP, find_solver, solve

SOLVERS = ("column_generation", "local_search", "greedy", "runs", "spectral", "adjacent", "private", "one_color")


def measure(count: int, largest: int, solvers: Sequence[str] = SOLVERS) -> list[dict[str, Any]]:
    """One record for each instance and solver: the relative excess over the optimum, CPU seconds, oracle calls."""
    records: list[dict[str, Any]] = []
    for number in range(count):
        kind, problem = instance(number, largest)
        started = time.process_time()
        best = solve(problem, SubsetDP(), time_limit=math.inf)
        record = {"instance": number, "kind": kind, "size": problem.size, "optimum": best.cost}
        seconds = time.process_time() - started
        records.append({**record, "solver": "subset_dp", "excess": 0.0, "seconds": seconds, "calls": best.oracle_calls})
        for name in solvers:
            fresh = GroupProblem(
                problem.size,
                problem.class_cost,  # known by now: seconds are the solver's own
                compatible=problem.compatible,
                K=problem.K,
                penalty=problem.penalty,
            )
            started = time.process_time()
            found = solve(fresh, find_solver(name), time_limit=60)
            seconds = time.process_time() - started
            excess = (found.cost - best.cost) / abs(best.cost) if found.coloring else None
            run = {"solver": name, "excess": excess, "seconds": seconds, "calls": found.oracle_calls}
            records.append({**record, **run})
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """Mean, 95th percentile and worst excess by solver, how often it is the optimum, seconds and oracle calls.

    Means are over the instances for which the solver found any allowed coloring.
    """
    lines = [
        "| solver | nothing found | optimal | mean above | 95th percentile | worst | CPU s | oracle calls | worst on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(record["solver"] for record in records):
        tried = [record for record in records if record["solver"] == name]
        mine = [record for record in tried if record["excess"] is not None]
        excess = np.array([record["excess"] for record in mine])
        seconds, calls = (np.mean([record[key] for record in mine]) for key in ("seconds", "calls"))
        worst = mine[int(excess.argmax())]
        cells = [
            name,
            len(tried) - len(mine),
            f"{(excess < 1e-9).mean():.0%}",
            f"{excess.mean():.3%}",
            f"{np.quantile(excess, 0.95):.2%}",
            f"{excess.max():.2%}",
            f"{seconds:.3f}",
            f"{calls:.0f}",
            f"{worst['kind']} ({worst['instance']})",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="instances")
    parser.add_argument("--largest", type=int, default=15, help="items at most (16 at the very most)")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), help="beside subset_dp, which sets the measure")
    parser.add_argument("--out", type=Path, help="write all records here, as JSON")
    options = parser.parse_args()
    records = measure(options.count, options.largest, options.solvers)
    if options.out:
        options.out.write_text(json.dumps(records, indent=1) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
