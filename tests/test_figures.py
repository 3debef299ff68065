"""Figures: every text inside the sheet and clear of every other, files whole or untouched, nothing global."""

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geocolor.figures import draw_plan, draw_race, draw_scatter
from geocolor.figures.plan import plan_figure
from geocolor.figures.race import race_figure
from geocolor.figures.scatter import scatter_figure
from geocolor.figures.sheet import DPI, Sheet
from geocolor.plans import Plan
from tests import drawn_plans

PLANS = [
    *drawn_plans.PLANS,
    drawn_plans.deep,
]
SOLVERS = ("adjacent", "one_color", "private", "greedy", "local_search", "cp_sat")


def race_rows(budgets: tuple[int, ...] = (7, 14, 56)) -> list[dict[str, Any]]:
    rows = []
    for K in budgets:
        for index, solver in enumerate(SOLVERS):
            cost = None if solver == "private" and K < 56 else (1 + (5 - index) ** 2 / 10) / K
            rows.append({"solver": solver, "K": K, "cost": cost, "seconds": 10.0 ** (index - 4)})
        rows[-1] |= {"lower_bound": 0.98 / K, "gap": 0.02, "status": "feasible", "classes": K}
    return rows


def scatter_points() -> list[dict[str, Any]]:
    return [
        {"predicted": 10**-k, "measured": 1.2 * 10**-k, "series": series, "label": f"keep 0.{k}"}
        for series, k in (("coloring", 1), ("coloring", 3), ("private low rank", 2))
    ]


def written(sheet: Sheet) -> list[tuple[str, Any]]:
    """Every text of a sheet that is drawn, with its box in pixels."""
    figure: Figure = sheet.figure
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [axis.label, *(tick.label1 for tick in ticks)] if axes.axison else []
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts if text.get_text()]


@cache
def plan_sheet(make: Callable[[], Plan]) -> tuple[Sheet, list[tuple[str, Any]]]:
    sheet = plan_figure(make())
    return sheet, written(sheet)


def assert_legible(sheet: Sheet, texts: list[tuple[str, Any]]) -> None:
    width, height = sheet.width * DPI, sheet.height * DPI
    for text, box in texts:
        assert box.x0 >= 0, f"{text!r} is cut off"
        assert box.y0 >= 0, f"{text!r} is cut off"
        assert box.x1 <= width, f"{text!r} is cut off"
        assert box.y1 <= height, f"{text!r} is cut off"
    for (text, box), (other, near) in combinations(texts, 2):
        wide = min(box.x1, near.x1) - max(box.x0, near.x0)
        high = min(box.y1, near.y1) - max(box.y0, near.y0)
        # Boxes of lines below each other may touch: they have room for accents that are not there.
        assert wide <= 1 or high <= 4, f"{text!r} lies over {other!r}"


@pytest.mark.parametrize("make", PLANS)
def test_no_text_of_a_plan_is_cut_off_or_lies_over_another(make: Callable[[], Plan]) -> None:
    assert_legible(*plan_sheet(make))


@pytest.mark.parametrize("make", PLANS[:5])
def test_a_cell_holds_its_text(make: Callable[[], Plan]) -> None:
    sheet, texts = plan_sheet(make)
    cells = [patch.get_window_extent() for patch in sheet.surface.patches if patch.get_height() > 0.2]
    inside = 0
    for text, box in texts:
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        for cell in cells:
            if cell.x0 < x < cell.x1 and cell.y0 < y < cell.y1:
                assert cell.x0 <= box.x0 <= box.x1 <= cell.x1, text
                inside += 1
    assert inside >= len(cells) > 0


def test_the_plan_says_what_it_keeps_and_costs() -> None:
    texts = " ".join(text for text, _ in plan_sheet(drawn_plans.decoder)[1])
    for phrase in (
        "kept ",
        "parameters in scope",
        "bases for 56 layers",
        "nats per token",
        "solver greedy",
        "gap ≤ 3.0 %",
    ):
        assert phrase in texts


def test_the_legend_explains_only_what_there_is() -> None:
    texts = " ".join(text for text, _ in plan_sheet(drawn_plans.untouched)[1])
    assert "white: left dense" in texts
    assert "grey" not in texts
    assert "basis on" not in texts
    assert "none is predicted" in texts


def test_the_height_of_a_bar_is_the_predicted_damage() -> None:
    plan = drawn_plans.decoder()
    sheet, _ = plan_sheet(drawn_plans.decoder)
    damage = {name: value for cls in plan.classes for name, value in cls.damage.items()}
    bars = sheet.figure.axes[-1].patches
    tops = sorted(bar.get_y() + bar.get_height() for bar in bars if bar.get_width() < 1)
    assert tops == pytest.approx(sorted(value for value in damage.values() if value > 0))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_suffix_chooses_the_format(suffix: str, tmp_path: Path) -> None:
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    path = tmp_path / "new folder" / f"plan{suffix}"
    draw_plan(drawn_plans.single(), path)
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plan\.jpg: a figure's name ends in \.png, \.svg or \.pdf"):
        draw_plan(drawn_plans.single(), tmp_path / "plan.jpg")


def test_a_figure_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.png"
    path.write_bytes(b"old")

    def fail(self: Figure, *_args: Any, **_kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_plan(drawn_plans.single(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_plan(drawn_plans.single(), tmp_path / "plan.png")
    draw_race(race_rows(), tmp_path / "race.png")
    draw_scatter(scatter_points(), tmp_path / "scatter.png")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("budgets", [(7,), (7, 14, 56), tuple(range(2, 14))])
def test_no_text_of_a_race_is_cut_off_or_lies_over_another(budgets: tuple[int, ...]) -> None:
    sheet = race_figure(race_rows(budgets))
    assert_legible(sheet, written(sheet))


def test_a_race_shows_best_cost_and_proof_for_each_budget() -> None:
    texts = [text for text, _ in written(race_figure(race_rows()))]
    assert "K = 7\nbest 0.143\ngap 2.0 %" in texts
    assert "×  no coloring" in texts
    assert set(SOLVERS) <= set(texts)


def test_a_race_of_equals_can_be_drawn() -> None:
    rows = [{"solver": solver, "K": 3, "cost": 0.0, "seconds": 0.0} for solver in ("a", "b")]
    sheet = race_figure(rows)
    assert_legible(sheet, written(sheet))


def test_a_race_in_which_no_one_arrives_can_be_drawn() -> None:
    rows = [{"solver": solver, "K": 3, "cost": math.inf, "seconds": 1.0} for solver in ("a", "b")]
    assert "K = 3\nno\ncoloring" in [text for text, _ in written(race_figure(rows))]


def test_a_race_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the race has no rows"):
        draw_race([], tmp_path / "race.png")


def test_a_row_without_its_cost_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1 of the race has no 'cost'"):
        draw_race([race_rows()[0], {"solver": "a", "K": 1, "seconds": 1.0}], tmp_path / "race.png")


def test_no_text_of_a_scatter_is_cut_off_or_lies_over_another() -> None:
    sheet = scatter_figure(scatter_points(), "nats per token")
    assert_legible(sheet, written(sheet))


def test_a_scatter_counts_what_it_cannot_draw() -> None:
    points = [*scatter_points(), {"predicted": 0.0, "measured": 1.0}, {"predicted": 1.0, "measured": -1.0}]
    texts = [text for text, _ in written(scatter_figure(points, "nats"))]
    assert "not drawn: 2 points with a damage that is not above 0" in texts


def test_a_scatter_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the 1 points"):
        draw_scatter([{"predicted": 0.0, "measured": 1.0}], tmp_path / "scatter.png")
