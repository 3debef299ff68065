"""Solve a problem in a file: ``python -m solvers FILE [--solver NAME] [--time-limit SECONDS] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from solvers.atomic import refuse_folder, writable_folder, write_atomically
from solvers.certify import Verdict, certify
from solvers.formats import FORMATS, read
from solvers.problem import Problem
from solvers.registry import solver_kinds, solver_names
from solvers.solution import Solution
from solvers.solve import solve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 with a coloring, 1 without, 2 for a user's mistake, which becomes a sentence on standard error."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.list:
        for kind in solver_kinds():
            takes = ", ".join(problem.__name__.removesuffix("Problem").lower() for problem in kind.problems)
            print(f"{kind.name:18} {takes}{' · exact' if kind.exact else ''}")
        return 0
    if asked.file is None:
        parser.error("name a file with a problem, or --list")
    try:
        if asked.json is not None:
            refuse_folder(asked.json)
            writable_folder(asked.json.parent)
        problem = read(asked.file, asked.format)
        if asked.K is not None:
            problem = _with_limit(problem, asked.K)
        solution = solve(
            problem, asked.solver, time_limit=asked.time_limit, seed=asked.seed, deterministic=asked.deterministic
        )
        verdict = certify(problem, solution)
        print(_told(problem, solution, verdict))
        if asked.json is not None:
            text = json.dumps(_document(solution, verdict), indent=1, allow_nan=False) + "\n"
            write_atomically(asked.json, lambda temporary: temporary.write_text(text))
    except KeyboardInterrupt:
        print("stopped before a coloring was found", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"error: {said}", file=sys.stderr)
        return 2
    return 0 if solution.coloring is not None else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m solvers", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="the problem; its suffix tells the format")
    parser.add_argument("--solver", default="auto", help=f"one of {', '.join(solver_names())}")
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deterministic", action="store_true", help="count steps, not seconds, against the limit")
    parser.add_argument("-K", type=int, help="at most so many classes, instead of the file's own limit")
    parser.add_argument("--format", choices=sorted(FORMATS), help="the file's format, where its suffix does not tell")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the solution there, with its trace")
    parser.add_argument("--list", action="store_true", help="list the solvers")
    return parser


def _with_limit(problem: Problem, K: int) -> Problem:
    changed: Any = getattr(problem, "with_limit", None)
    if changed is None:
        raise ValueError(f"a {type(problem).__name__} takes no K")
    limited: Problem = changed(K)
    return limited


def _told(problem: Problem, solution: Solution, verdict: Verdict) -> str:
    lines = [f"{type(problem).__name__} of {problem.size} items: {solution.status} by {solution.solver}"]
    if solution.coloring is not None:
        lines.append(f"cost     {solution.cost:.12g} in {solution.coloring.number_of_colors} classes")
    lines.append(f"bound    {solution.lower_bound:.12g}, gap {solution.gap:.2%}")
    lines.append(f"checked  {verdict}")
    lines.append(f"seconds  {solution.seconds:.2f}")
    if solution.message:
        lines.append(f"note     {solution.message}")
    if solution.coloring is not None:
        lines.append(f"classes  {_classes(solution)}")
    return "\n".join(lines)


def _classes(solution: Solution, most: int = 12) -> str:
    assert solution.coloring is not None
    classes = solution.coloring.classes()
    shown = [" ".join(map(str, members[:20])) + (" …" if len(members) > 20 else "") for members in classes[:most]]
    return " | ".join(shown) + (f" | … {len(classes) - most} more, see --json" if len(classes) > most else "")


def _document(solution: Solution, verdict: Verdict) -> dict[str, Any]:
    fields = {name: getattr(solution, name) for name in ("solver", "seed", "status", "cost", "lower_bound", "gap")}
    coloring = None if solution.coloring is None else list(solution.coloring)
    document = fields | {
        "seconds": solution.seconds,
        "coloring": coloring,
        "representatives": list(solution.representatives),
        "message": solution.message,
        "proof": solution.proof,
        "verdict": asdict(verdict),
        "trace": solution.trace,
    }
    found: dict[str, Any] = _finite(document)
    return found


def _finite(value: Any) -> Any:
    """The value with null for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may stop: `| head`
    sys.exit(main())
