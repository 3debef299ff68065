"""A plan's coloring laid out as a grid of block × matrix kind, for the figure and for the terminal alike."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from geocolor.plans import Plan, PlannedClass

#: Okabe and Ito's palette without black: told apart under every common colour blindness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")

#: Components of a layer's name, None where the number of its block stood.
Kind = tuple[str | None, ...]
Block = tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """A layer in the grid. A class of several layers has a letter and a color, a class of one layer has neither."""

    layer: str
    planned: PlannedClass
    letter: str | None
    color: str | None

    @property
    def ranks(self) -> str:
        """Kind and rank: "in 48", "both 32×20", "dense"."""
        planned = self.planned
        if planned.kind == "dense":
            return "dense"
        right = f"×{planned.right_rank}" if planned.right_rank is not None else ""
        return f"{planned.kind} {planned.rank}{right}"


@dataclass(frozen=True)
class Row:
    """One block, a cell (or None) for every matrix kind; or one layer outside of all blocks, then `alone`."""

    label: str
    cells: tuple[Cell | None, ...]
    alone: bool

    def present(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell is not None)


@dataclass(frozen=True)
class ColoringGrid:
    """Rows and columns in order of first appearance; `kinds` are the columns' labels, empty without any block."""

    kinds: tuple[str, ...]
    rows: tuple[Row, ...]

    def cells(self) -> Iterator[tuple[Row, int, Cell]]:
        """Every layer once, row by row: its row, its column (0 where it stands alone) and its cell."""
        for row in self.rows:
            for column, cell in enumerate(row.cells):
                if cell is not None:
                    yield row, column, cell


def coloring_grid(plan: Plan) -> ColoringGrid:
    """The grid of a plan.

    The block of a layer is read off its dotted name: its integer components; the matrix kind is the rest. An integer
    that never varies, or ends the name (a place in a Sequential), belongs to the kind, unless it is the only one.
    """
    places = _places(plan.layers)
    kinds = list(dict.fromkeys(kind for block, kind in places.values() if block))
    outside = [".".join(map(str, kind)) for block, kind in places.values() if not block]
    short = _short([*kinds, *(tuple(name.split(".")) for name in outside)])
    labels = dict(zip(kinds, short, strict=False))
    alone = dict(zip(outside, short[len(kinds) :], strict=True))

    of_layer = {name: cls for cls in plan.classes for name in cls.layers}
    table: dict[Block | str, dict[Kind, str]] = {}
    for name, (block, kind) in places.items():
        table.setdefault(block or name, {})[kind] = name
    letters = _letters(plan)
    colors = _colors(plan, table, kinds)

    def cell(name: str) -> Cell:
        first = of_layer[name].layers[0]
        return Cell(name, of_layer[name], letters.get(first), colors.get(first))

    rows = []
    for key, members in table.items():
        if isinstance(key, str):
            rows.append(Row(alone[key], (cell(key),), alone=True))
        else:
            cells = tuple(cell(members[kind]) if kind in members else None for kind in kinds)
            rows.append(Row(".".join(map(str, key)), cells, alone=False))
    return ColoringGrid(tuple(labels[kind] for kind in kinds), tuple(rows))


def ink_on(color: str) -> str:
    """Ink that reads well on a color: relative luminance of sRGB, WCAG 2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if luminance < 0.25 else "#1a1a1a"


def parameters_by_layer(plan: Plan) -> dict[str, float]:
    """Parameters kept, by layer: its own coefficients and an equal part of the basis; they add up to the plan's."""
    kept: dict[str, float] = {}
    for cls in plan.classes:
        own = {}
        for name in cls.layers:
            shape, r = plan.layers[name], cls.rank or 0
            own[name] = {
                "dense": shape.m * shape.n,
                "in": shape.m * r,
                "out": shape.n * r,
                "both": r * (cls.right_rank or 0),
            }[cls.kind]
        basis = cls.parameters - sum(own.values())
        kept |= {name: parameters + basis / len(own) for name, parameters in own.items()}
    return {name: kept[name] for name in plan.layers}


def _places(names: Iterable[str]) -> dict[str, tuple[Block, Kind]]:
    parts = {name: name.split(".") for name in names}
    variants: dict[tuple[str | None, ...], set[str]] = defaultdict(set)
    for components in parts.values():
        for i, component in enumerate(components):
            if component.isdecimal():
                variants[(*components[:i], None, *components[i + 1 :])].add(component)
    places = {}
    for name, components in parts.items():
        numbers = [i for i, component in enumerate(components) if component.isdecimal()]
        block = [
            i
            for i in numbers
            if i == numbers[0]
            or (i < len(components) - 1 and len(variants[(*components[:i], None, *components[i + 1 :])]) > 1)
        ]
        kind = tuple(None if i in block else component for i, component in enumerate(components))
        places[name] = (tuple(int(components[i]) for i in block), kind)
    return places


def _short(kinds: Sequence[Kind]) -> list[str]:
    """For each kind the shortest end of its name that no other kind has; "*" for the block where it is needed."""
    full = [tuple(part for part in kind if part is not None) or ("layer",) for kind in kinds]
    if len(set(full)) < len(full):
        full = [tuple("*" if part is None else part for part in kind) for kind in kinds]
    ends = Counter(parts[i:] for parts in full for i in range(len(parts)))
    short = []
    for parts in full:
        starts = [i for i in range(len(parts)) if ends[parts[i:]] == 1]
        named = [i for i in starts if not parts[i].isdecimal() and parts[i] != "*"]
        short.append(".".join(parts[max(named or starts or [0]) :]))
    return short


def _letters(plan: Plan) -> dict[str, str]:
    """A letter for the first layer of every shared class: a, b, …, z, aa, ab, …"""
    shared = [cls.layers[0] for cls in _in_order(plan)]
    return {first: _letter(index) for index, first in enumerate(shared)}


def _letter(index: int) -> str:
    text = ""
    while index >= 0:
        text = chr(ord("a") + index % 26) + text
        index = index // 26 - 1
    return text


def _colors(plan: Plan, table: dict[Block | str, dict[Kind, str]], kinds: Sequence[Kind]) -> dict[str, str]:
    """Colors in turn, skipping those of classes that touch this one in the grid."""
    where: dict[str, list[tuple[int, int]]] = {}
    for row, members in enumerate(table.values()):
        for kind, name in members.items():
            # A layer that stands alone spans its whole row.
            columns = [kinds.index(kind)] if kind in kinds else range(max(1, len(kinds)))
            where[name] = [(row, column) for column in columns]
    color_at: dict[tuple[int, int], str] = {}
    colors: dict[str, str] = {}
    turn = 0
    for cls in _in_order(plan):
        spots = [spot for name in cls.layers for spot in where[name]]
        touching = {
            color_at.get((row + i, column + j)) for row, column in spots for i in (-1, 0, 1) for j in (-1, 0, 1)
        }
        candidates = [PALETTE[(turn + i) % len(PALETTE)] for i in range(len(PALETTE))]
        color = next((candidate for candidate in candidates if candidate not in touching), candidates[0])
        turn = PALETTE.index(color) + 1
        colors[cls.layers[0]] = color
        color_at |= dict.fromkeys(spots, color)
    return colors


def _in_order(plan: Plan) -> list[PlannedClass]:
    """The classes of several layers, in the order in which their first layers appear in the model."""
    position = {name: index for index, name in enumerate(plan.layers)}
    shared = [cls for cls in plan.classes if len(cls.layers) > 1]
    return sorted(shared, key=lambda cls: min(position[name] for name in cls.layers))
