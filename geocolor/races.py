"""The runs of a race of solvers, each set against the best found at its budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One solver at one budget. `excess` is (cost − best) / |best| over the solvers at this `K` (plain difference where
    the best is 0), None where no coloring was found; then `cost` is inf. `lower_bound` is −inf where none is known."""

    solver: str
    K: int
    cost: float
    lower_bound: float
    gap: float
    seconds: float
    status: str
    classes: int | None
    excess: float | None


def entries(rows: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """The rows of a race, in their order.

    A row has `solver`, `K`, `cost` and `seconds`, and may have `lower_bound`, `gap`, `status` and `classes`; what is
    None counts as not known. Raises `ValueError` where there are no rows or a row lacks what it must have.
    """
    if not rows:
        raise ValueError("there is nothing to compare: the race has no rows; name at least one solver and one K")
    for index, row in enumerate(rows):
        missing = [key for key in ("solver", "K", "cost", "seconds") if key not in row]
        if missing:
            raise ValueError(f"row {index} of the race has no {missing[0]!r}; it has {', '.join(map(repr, row))}")
    best: dict[int, float] = {}
    for row in rows:
        best[row["K"]] = min(best.get(row["K"], math.inf), _float(row["cost"], math.inf))
    return [
        Entry(
            solver=str(row["solver"]),
            K=row["K"],
            cost=(cost := _float(row["cost"], math.inf)),
            lower_bound=_float(row.get("lower_bound"), -math.inf),
            gap=_float(row.get("gap"), math.inf),
            seconds=_float(row["seconds"], 0.0),
            status=str(row.get("status") or ""),
            classes=row.get("classes"),
            excess=(cost - best[row["K"]]) / (abs(best[row["K"]]) or 1.0) if math.isfinite(cost) else None,
        )
        for row in rows
    ]


def _float(value: float | None, missing: float) -> float:
    return missing if value is None else float(value)
