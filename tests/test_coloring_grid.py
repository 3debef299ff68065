"""The grid of a coloring: blocks and matrix kinds read off names, letters and colors that tell classes apart."""

from collections.abc import Callable, Sequence

import pytest

from geocolor.coloring_grid import PALETTE, ColoringGrid, coloring_grid, ink_on, parameters_by_layer
from geocolor.plans import Plan
from tests import drawn_plans
from tests.drawn_plans import draw_up

PLANS = [drawn_plans.decoder, drawn_plans.encoder, drawn_plans.residual, drawn_plans.wide, drawn_plans.plain]


def grid_of(names: Sequence[str]) -> ColoringGrid:
    return coloring_grid(draw_up(dict.fromkeys(names, (8, 8))))


def table_of(grid: ColoringGrid) -> dict[str, list[str]]:
    return {row.label: [cell.layer if cell else "" for cell in row.cells] for row in grid.rows}


@pytest.mark.parametrize("make", PLANS)
def test_every_layer_has_one_cell_in_the_order_of_the_model(make: Callable[[], Plan]) -> None:
    plan = make()
    cells = [cell.layer for _, _, cell in coloring_grid(plan).cells()]
    assert sorted(cells) == sorted(plan.layers)


@pytest.mark.parametrize("make", PLANS)
def test_letters_name_the_shared_classes(make: Callable[[], Plan]) -> None:
    plan = make()
    letters: dict[str, set[str]] = {}
    for _, _, cell in coloring_grid(plan).cells():
        assert cell.planned == plan.class_of(cell.layer)
        assert (cell.letter is None) == (len(cell.planned.layers) == 1) == (cell.color is None)
        if cell.letter:
            letters.setdefault(cell.letter, set()).add(cell.layer)
    shared = {frozenset(cls.layers) for cls in plan.classes if len(cls.layers) > 1}
    assert {frozenset(members) for members in letters.values()} == shared


@pytest.mark.parametrize("make", PLANS)
def test_classes_that_touch_differ_in_color(make: Callable[[], Plan]) -> None:
    grid = coloring_grid(make())
    spots = {(grid.rows.index(row), column): cell for row, column, cell in grid.cells()}
    for (row, column), cell in spots.items():
        for other in ((row, column + 1), (row + 1, column), (row + 1, column + 1)):
            near = spots.get(other)
            if near and cell.color and near.color and cell.letter != near.letter:
                assert cell.color != near.color


def test_letters_go_on_after_z() -> None:
    names = [f"b.{block}.{kind}" for block in range(30) for kind in "qk"]
    pairs = [("in", [f"b.{block}.q", f"b.{block}.k"]) for block in range(30)]
    grid = coloring_grid(draw_up(dict.fromkeys(names, (8, 8)), pairs))  # type: ignore[arg-type]
    letters = list(dict.fromkeys(cell.letter for _, _, cell in grid.cells()))
    assert letters[:2] + letters[24:29] == ["a", "b", "y", "z", "aa", "ab", "ac"]


def test_blocks_are_rows_and_matrix_kinds_columns() -> None:
    grid = grid_of(["h.0.attn.q", "h.0.mlp.up", "h.1.attn.q", "h.1.mlp.up"])
    assert grid.kinds == ("q", "up")
    assert table_of(grid) == {"0": ["h.0.attn.q", "h.0.mlp.up"], "1": ["h.1.attn.q", "h.1.mlp.up"]}


def test_a_layer_outside_of_all_blocks_has_a_row_of_its_own() -> None:
    grid = grid_of(["stem", "h.0.q", "h.1.q", "pool.dense"])
    assert [(row.label, row.alone) for row in grid.rows] == [
        ("stem", True),
        ("0", False),
        ("1", False),
        ("dense", True),
    ]


def test_a_place_in_a_sequential_belongs_to_the_kind() -> None:
    grid = grid_of(["h.0.mlp.0", "h.0.mlp.2", "h.1.mlp.0", "h.1.mlp.2"])
    assert grid.kinds == ("mlp.0", "mlp.2")
    assert list(table_of(grid)) == ["0", "1"]


def test_a_number_that_never_varies_belongs_to_the_kind() -> None:
    grid = grid_of([f"block.{b}.layer.{part}" for b in range(2) for part in ("0.attention.q", "1.feed.wi")])
    assert grid.kinds == ("q", "wi")
    assert list(table_of(grid)) == ["0", "1"]


def test_nested_blocks_are_rows_by_both_numbers() -> None:
    grid = grid_of([f"stages.{s}.blocks.{b}.qkv" for s in range(2) for b in range(2)])
    assert list(table_of(grid)) == ["0.0", "0.1", "1.0", "1.1"]


def test_a_missing_layer_leaves_a_hole() -> None:
    grid = grid_of(["h.0.q", "h.0.k", "h.1.k"])
    assert table_of(grid)["1"] == ["", "h.1.k"]


def test_kinds_are_as_short_as_they_can_be_told_apart() -> None:
    assert coloring_grid(drawn_plans.encoder()).kinds == (
        "query",
        "key",
        "attention.output.dense",
        "intermediate.dense",
        "layer.output.dense",
    )


def test_kinds_that_differ_only_in_where_the_block_stands_keep_a_star() -> None:
    assert grid_of(["a.0.b", "a.b.0"]).kinds == ("b", "b.*")


def test_a_sequential_of_layers_alone_is_one_column() -> None:
    grid = grid_of(["0", "2", "4"])
    assert grid.kinds == ("layer",)
    assert list(table_of(grid)) == ["0", "2", "4"]


def test_ranks_are_written_with_their_kind() -> None:
    plan = draw_up({"h.0.q": (8, 8), "h.0.k": (8, 8), "h.0.v": (8, 8)}, [("both", ["h.0.q", "h.0.k"])], dense=["h.0.v"])
    cls = plan.classes[0]
    ranks = [cell.ranks for _, _, cell in coloring_grid(plan).cells()]
    assert ranks == [f"both {cls.rank}×{cls.right_rank}"] * 2 + ["dense"]


@pytest.mark.parametrize("make", PLANS)
def test_parameters_by_layer_add_up_to_those_of_the_plan(make: Callable[[], Plan]) -> None:
    plan = make()
    kept = parameters_by_layer(plan)
    assert list(kept) == list(plan.layers)
    assert sum(kept.values()) == pytest.approx(plan.parameters)


@pytest.mark.parametrize("color", PALETTE)
def test_ink_contrasts_with_every_color(color: str) -> None:
    def luminance(text: str) -> float:
        channels = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(color), luminance(ink_on(color))), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) > 3.5
