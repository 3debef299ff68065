"""Race all solvers and their peers: instances × solvers × seeds × limits, resumable, several processes at once.

    python -m benchmarks.solver_race --data ../shared/bench/solver

Every run is one line of a JSONL file, appended when it is done; the same command goes on where it was stopped. At the
end come tables (on the terminal and as Markdown beside the JSONL) and a figure. Each run has a process of its own,
which is killed when it outlasts its limit by far, so that a solver that hangs or crashes loses only its own race.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.race_instances import FAMILIES, RACERS, Instance, instances
from benchmarks.race_report import markdown, write_figure
from benchmarks.solver_peers import PEERS
from solvers import Solver, solver_names
from solvers.race import Run, run_once
from solvers.registry import find_solver

GRACE = 30.0
"""Seconds beyond its limit (and a tenth of it) after which a run is killed."""


@dataclass(frozen=True)
class Task:
    """One run to be made."""

    instance: str
    solver: str
    seed: int
    time_limit: float

    @property
    def key(self) -> tuple[str, str, int, float]:
        return self.instance, self.solver, self.seed, self.time_limit


def racers() -> dict[str, Solver]:
    """Our solvers and their peers, by name, each with its default settings."""
    return {name: find_solver(name) for name in solver_names()} | {kind.name: kind() for kind in PEERS}


def tasks(
    chosen: Sequence[Instance], names: Sequence[str], seeds: Sequence[int], limits: Sequence[float]
) -> list[Task]:
    """Every run there is to make: each solver (those of the family where none is named) on what it supports."""
    made = racers()
    found = []
    for instance in chosen:
        problem = instance.load()
        for name in names or RACERS[instance.family]:
            solver = made[name]
            if solver.supports(problem):
                found += [Task(instance.name, name, seed, limit) for limit in limits for seed in seeds]
    return found


def perform(task: Task, data: Path | None) -> Run:
    """Make one run here; what goes wrong becomes a record that says so."""
    [instance] = [each for each in instances(data) if each.name == task.instance]
    problem = instance.load()
    try:
        run = run_once(
            problem,
            racers()[task.solver],
            instance=task.instance,
            seed=task.seed,
            time_limit=task.time_limit,
        )
    except Exception as error:
        return failed(task, "crashed", f"{type(error).__name__}: {error}")
    return replace(run, solver=task.solver)


def failed(task: Task, status: str, message: str) -> Run:
    """The record of a run without a solution."""
    nothing = float("inf")
    return Run(
        task.instance, "", 0, task.solver, task.seed, task.time_limit, nothing, -nothing, -nothing, status,
        task.time_limit, (), message,
    )  # fmt: skip


def race(pending: Sequence[Task], data: Path | None, output: Path, workers: int) -> None:
    """Make the runs, ``workers`` at a time, and append each record as it comes."""
    context = multiprocessing.get_context("spawn")
    queue = list(pending)[::-1]
    running: dict[multiprocessing.connection.Connection, tuple[Task, BaseProcess, float]] = {}
    done = 0
    try:
        while queue or running:
            while queue and len(running) < workers:
                task = queue.pop()
                here, there = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_child, args=(task, data, there), daemon=True)
                process.start()
                there.close()
                running[here] = (task, process, time.monotonic() + 1.1 * task.time_limit + GRACE)
            for connection in multiprocessing.connection.wait(list(running), timeout=1.0):
                assert isinstance(connection, multiprocessing.connection.Connection)
                task, process, _ = running.pop(connection)
                try:
                    run = Run.from_json(connection.recv())
                except EOFError:
                    process.join()
                    run = failed(task, "crashed", f"the process ended with status {process.exitcode}")
                process.join()
                done += 1
                append(output, run)
                _show(run, done, len(pending))
            for connection, (task, process, deadline) in list(running.items()):
                if time.monotonic() > deadline:
                    process.kill()
                    process.join()
                    del running[connection]
                    done += 1
                    run = failed(task, "killed", f"it outlasted its limit of {task.time_limit:g} s by {GRACE:g} s")
                    append(output, run)
                    _show(run, done, len(pending))
    finally:
        for _, process, _ in running.values():
            process.kill()


def _child(task: Task, data: Path | None, connection: multiprocessing.connection.Connection) -> None:
    connection.send(perform(task, data).to_json())
    connection.close()


def _show(run: Run, done: int, total: int) -> None:
    gap = "proven" if run.proven else f"gap {run.gap:.2%}" if run.gap < float("inf") else run.status
    print(f"[{done}/{total}] {run.instance}  {run.solver}  {run.cost:.10g}  {gap}  {run.seconds:.2f} s", flush=True)


def append(path: Path, run: Run) -> None:
    """One line, on disk before the next run is begun."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run.to_json(), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_runs(path: Path) -> list[Run]:
    """The runs so far. A last line cut short by a kill is dropped from the file; any other bad line raises."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines[:-1]), encoding="utf-8")
        lines = lines[:-1]
    runs = []
    for number, line in enumerate(lines, start=1):
        try:
            runs.append(Run.from_json(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no record of a run ({error}); repair or remove it") from None
    return runs


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--data", type=Path, help="folder with pmed/, dimacs/ and modularity/; without it only made instances"
    )
    made.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="families of instances")
    made.add_argument("--instance", nargs="+", default=[], help="instances by name, instead of families")
    made.add_argument(
        "--solver", nargs="+", choices=sorted(racers()), default=[], help="solvers and peers, instead of a family's own"
    )
    made.add_argument("--seed", nargs="+", type=int, default=[0], metavar="SEED")
    made.add_argument("--time-limit", nargs="+", type=float, default=[10.0], metavar="SECONDS")
    made.add_argument("--workers", type=int, default=1, help="runs at a time (default: 1, for quiet clocks)")
    made.add_argument(
        "--small", action="store_true", help="the smallest instances of each made family, as a smoke test"
    )
    made.add_argument("-o", "--output", type=Path, default=Path("build/solver_race.jsonl"))
    made.add_argument("--report-only", action="store_true", help="make no run, only tables and the figure")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    if asked.workers < 1:
        raise SystemExit(f"--workers must be 1 or more, got {asked.workers}")
    if asked.data is not None and not asked.data.is_dir():
        raise SystemExit(f"no folder {asked.data}: --data names the one with pmed/, dimacs/ and modularity/")
    known = {each.name: each for each in instances(asked.data)}
    unknown = [name for name in asked.instance if name not in known]
    if unknown:
        raise SystemExit(f"no instance is called {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [
        each
        for each in known.values()
        if (each.name in asked.instance if asked.instance else each.family in asked.family)
        and (each.small or not asked.small)
    ]
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    runs = read_runs(asked.output)
    if not asked.report_only:
        made = {run.key for run in runs}
        pending = [task for task in tasks(chosen, asked.solver, asked.seed, asked.time_limit) if task.key not in made]
        try:
            race(pending, asked.data, asked.output, asked.workers)
        except KeyboardInterrupt:
            print(f"stopped; {asked.output} holds what was done, and the same command goes on", file=sys.stderr)
            return 130
        runs = read_runs(asked.output)
    shown = [run for run in runs if run.instance in {each.name for each in chosen}]
    if not shown:
        raise SystemExit("there are no runs to report; choose other instances or solvers")
    text = markdown(shown, chosen)
    print(text)
    asked.output.with_suffix(".md").write_text(text, encoding="utf-8")
    write_figure(shown, chosen, asked.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
