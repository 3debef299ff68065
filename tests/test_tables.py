"""Tables for the terminal: they fit it, read without colors, and their numbers are those of the plan."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console, RenderableType

from geocolor.plans import Plan
from geocolor.quantities import count, number, percent
from geocolor.tables import comparison_table, plan_grid, plan_table, race_table
from tests import drawn_plans

PLANS = drawn_plans.PLANS


def printed(table: RenderableType, width: int = 80, color: bool = False) -> list[str]:
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        color_system="truecolor" if color else None,
        legacy_windows=False,
    )
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def row(lines: list[str], start: str) -> list[str]:
    """The cells of the row that begins with `start`."""
    line = next(line.strip() for line in lines if line.strip().startswith(start))
    return re.split(r"\s{2,}", line)


@pytest.mark.parametrize("make", PLANS)
@pytest.mark.parametrize("width", [80, 140])
def test_a_plan_fits_the_terminal_uncut(make: Callable[[], Plan], width: int) -> None:
    plan = make()
    lines = printed(plan_grid(plan), width) + printed(plan_table(plan), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("make", PLANS)
def test_the_last_row_of_a_plan_is_the_whole(make: Callable[[], Plan]) -> None:
    plan = make()
    whole = row(printed(plan_table(plan), 120), "all")
    assert whole[-3:] == [count(plan.parameters), percent(plan.kept), number(plan.predicted_damage)]


def test_the_layers_of_a_class_are_written_by_block() -> None:
    lines = printed(plan_table(drawn_plans.residual()), 120)
    assert "blocks 0–3: layer1.conv1" in row(lines, "a ")
    assert "blocks 4–5: layer3.conv2" in row(lines, "b ")


def test_the_grid_reads_without_colors() -> None:
    lines = printed(plan_grid(drawn_plans.decoder(2)), 100)
    first = next(line.split() for line in lines if line.strip().startswith("0 "))
    assert (first[1], first[4], first[7]) == ("a", "a", "dense")


def test_cells_have_the_color_of_their_class() -> None:
    lines = printed(plan_grid(drawn_plans.decoder()), 100, color=True)
    assert "48;2;0;114;178" in lines[1]
    assert "\x1b" not in "".join(printed(plan_grid(drawn_plans.decoder()), 100))


def test_a_narrow_terminal_gets_kind_and_rank_on_two_lines_and_numbered_columns() -> None:
    lines = printed(plan_grid(drawn_plans.wide()), 100)
    assert lines[0].split() == ["block", *map(str, range(1, 13))]
    assert lines[1].split()[0] == "0"
    assert lines[1].split()[3:9] == ["a", "both"] * 3
    assert len(lines[2].split()) == 12
    assert "1 SomeQuiteLongName0.projection_matrix" in " ".join(lines[11:])


def test_a_very_narrow_terminal_gets_letters() -> None:
    lines = printed(plan_grid(drawn_plans.wide()), 60)
    assert lines[1].split() == ["0", "·", "·", "a", "a", "a", *"·······"]
    assert lines[2].split() == ["1", "·", "·", "b", "b", "b", *"·······"]


def report(**changes: Any) -> dict[str, Any]:
    return {
        "parameters_dense": 3_145_728,
        "parameters": 2_516_582,
        "bytes_on_disk_dense": 6_600_000,
        "bytes_on_disk": 5_300_000,
        "loss_unit": "nats per token",
        "loss_dense": 1.2831,
        "loss": 1.3141,
        "accuracy_dense": 0.957,
        "accuracy": 0.942,
        "latency_seconds_dense": 0.0312,
        "latency_seconds": 0.0291,
        "damage_predicted": 0.0287,
        "damage_measured": 0.031,
    } | changes


def test_dense_and_compressed_stand_side_by_side() -> None:
    lines = printed(comparison_table(report()))
    assert row(lines, "parameters in scope") == ["parameters in scope", "3.15 M", "2.52 M", "−20.0 %"]
    assert row(lines, "size on disk") == ["size on disk", "6.60 MB", "5.30 MB", "−19.7 %"]
    assert row(lines, "loss") == ["loss (nats per token)", "1.283", "1.314", "+2.4 %"]
    assert row(lines, "accuracy") == ["accuracy", "95.7 %", "94.2 %", "−1.5 points"]
    assert row(lines, "time") == ["time of a forward pass", "31.2 ms", "29.1 ms", "−6.7 %"]
    assert row(lines, "damage predicted") == ["damage predicted", "0.0287"]
    assert row(lines, "damage measured") == ["damage measured", "0.0310", "8.0 % above predicted"]


def test_a_prediction_is_held_against_the_divergence_where_that_is_known() -> None:
    lines = printed(comparison_table(report(divergence=0.0294, damage_measured=-0.012)))
    assert row(lines, "damage measured") == ["damage measured", "0.0294", "2.4 % above predicted"]
    assert row(lines, "as rise of the loss") == ["as rise of the loss", "−0.0120"]


def test_what_neither_model_has_is_left_out() -> None:
    lines = printed(comparison_table(report()))
    assert not any("perplexity" in line or "bits per byte" in line for line in lines)


def test_a_change_from_zero_has_no_percentage() -> None:
    lines = printed(comparison_table(report(loss_dense=0.0, loss=0.03, damage_predicted=0.0)))
    assert row(lines, "loss")[1:] == ["0", "0.03000", "–"]
    assert row(lines, "damage measured") == ["damage measured", "0.0310"]


def test_a_figure_of_one_model_alone_is_shown() -> None:
    lines = printed(comparison_table(report(bytes_on_disk_dense=None)))
    assert row(lines, "size on disk") == ["size on disk", "–", "5.30 MB", "–"]


def test_further_metrics_have_rows() -> None:
    lines = printed(comparison_table(report(metrics={"spearman": 0.81}, metrics_dense={"spearman": 0.9})))
    assert row(lines, "spearman") == ["spearman", "0.9000", "0.8100", "−10.0 %"]


def race_rows() -> list[dict[str, Any]]:
    proven = {"lower_bound": 0.5, "gap": 0.0, "status": "optimal", "classes": 3}
    return [
        {"solver": "greedy", "K": 4, "cost": 0.55, "seconds": 0.002, "lower_bound": None, "gap": None, "classes": 4},
        {"solver": "symmetry_cp_sat", "K": 4, "cost": 0.5, "seconds": 61.0} | proven,
        {"solver": "private", "K": 4, "cost": float("inf"), "seconds": 0.001, "status": "time_limit"},
        {"solver": "greedy", "K": 2, "cost": -2.0, "seconds": 0.002, "gap": 0.04, "lower_bound": -2.08},
    ]


def test_a_race_is_sorted_by_budget_and_cost() -> None:
    lines = printed(race_table(race_rows()))
    assert row(lines, "2 ") == ["2", "greedy", "−2.000", "best", "−2.080", "4.0 %", "–", "2.00 ms"]
    assert row(lines, "4 ") == ["4", "symmetry_cp_sat", "0.5000", "best", "0.5000", "optimal", "3", "61.0 s"]
    assert row(lines, "greedy") == ["greedy", "0.5500", "+10.0 %", "–", "–", "4", "2.00 ms"]
    assert row(lines, "private")[:2] == ["private", "time limit"]
    solvers = [name for line in lines for name in line.split() if name in ("greedy", "symmetry_cp_sat", "private")]
    assert solvers == ["greedy", "symmetry_cp_sat", "greedy", "private"]


def test_a_race_fits_the_terminal() -> None:
    lines = printed(race_table(race_rows()))
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_a_race_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="the race has no rows"):
        race_table([])
