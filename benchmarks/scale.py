"""How long does a plan of a large model take, and how much memory? Random weights of a Llama's shapes, one thread.

    python -m benchmarks.scale

The statistics are given: random ones of the model's shapes, written to a file that pricing reads layer by layer, as
`--memory` has it. A residual stream that turns slowly from block to block makes neighbours alike; its spectrum and
those of gradients fall as powers. Then pairs are priced and a plan is searched, and nothing is run through the model.
Times are the processor's, memory is what the process held at its peak above what it held with the model and all
libraries. The memory that is allowed depends on the width alone. Every setting runs in a process of its own, results
are written after each, and a run goes on where it stopped: what is not in the results has not been measured.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from geocolor.atomic import write_atomically
from geocolor.clock import Clock
from geocolor.curvature import Curvature, load_curvature
from geocolor.curvature.sketch import Sketch, Sketchable
from geocolor.graph import price
from geocolor.layers import find_layers
from geocolor.memory import forget_peak, peak, resident
from geocolor.planning import plan
from geocolor.quantities import duration, size
from geocolor.summary import plural

Row = dict[str, Any]

#: What a block of Llama consists of: name, outputs, inputs, what it reads.
BLOCK = (
    ("self_attn.q_proj", "hidden", "hidden", "self_attn.q_proj"),
    ("self_attn.k_proj", "cached", "hidden", "self_attn.q_proj"),
    ("self_attn.v_proj", "cached", "hidden", "self_attn.q_proj"),
    ("self_attn.o_proj", "hidden", "hidden", "self_attn.o_proj"),
    ("mlp.gate_proj", "inner", "hidden", "mlp.gate_proj"),
    ("mlp.up_proj", "inner", "hidden", "mlp.gate_proj"),
    ("mlp.down_proj", "hidden", "inner", "mlp.down_proj"),
)

#: Of the statistics: rank relative to the model's width, the part of the trace outside of it, and how far the residual
#: stream turns from one reader to the next (0: not at all, 1: anew each time).
RANK, OUTSIDE, TURN = 4, 0.02, 0.1

STEPS = ("nearest", "alone", "pairs", "search")


@dataclass(frozen=True)
class Arguments:
    """Time and memory of pricing and planning by number of blocks and by width."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/scale.json")
    """Where results go, and come from where a run is resumed."""
    figure: Path = Path("docs/scale.png")
    """Where the figure goes."""
    blocks: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Numbers of blocks, of 7 layers each, at `narrow`."""
    narrow: int = 256
    """Width of the models of many blocks."""
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    """Widths, at `few` blocks."""
    few: int = 1
    """Blocks of the models of these widths."""
    largest: tuple[int, int] = (32, 2048)
    """Blocks and width of the model at last: with 2048, 1.4 thousand million parameters. 0 0 for none."""
    keep: float = 0.8
    """Fraction of the parameters kept."""
    memory: int = 1000
    """Bytes that may be held beside the model, for each entry of a square matrix of its width: 4.2 GB at 2048."""
    time_limit: float = 60.0
    """Seconds for each search."""
    seconds: float = 540.0
    """Begin no further setting after so long."""
    folder: Path | None = None
    """Where statistics lie while a setting runs (a temporary folder by default): 60 MB for each block of width 2048."""
    report_only: bool = False
    """Measure nothing, only draw the figure."""


class Block(nn.Module):
    """The matrices of one block, in bfloat16: nothing is run through them."""

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        for name, m, n, _ in BLOCK:
            linear = nn.Linear(widths[n], widths[m], bias=False, device="meta", dtype=torch.bfloat16)
            drawn = torch.randn(widths[m], widths[n]) * widths[n] ** -0.5
            linear.weight = nn.Parameter(drawn.to(torch.bfloat16), requires_grad=False)
            self.get_submodule(name.split(".")[0]).add_module(name.split(".")[1], linear)


def widths_of(hidden: int) -> dict[str, int]:
    """As in Llama 2, the feed-forward part is 2.75 times as wide; keys and values are a quarter."""
    return {"hidden": hidden, "inner": hidden * 11 // 4, "cached": hidden // 4}


def model_of(blocks: int, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(widths_of(hidden)) for _ in range(blocks)))


class Drawn(Sketchable):
    """Random second moments, each made when asked for: a low rank of falling power, and a little of everything else.

    Those named in `streams` follow a stream that turns slowly from one name to the next. Sides wider than `hidden` are
    kept as sketches, others made dense.
    """

    def __init__(self, widths: dict[str, int], streams: Sequence[str], hidden: int, seed: int) -> None:
        self._widths, self._streams, self._hidden, self._seed = widths, list(streams), hidden, seed
        self._last: tuple[int, Tensor] | None = None

    def rank(self, name: str) -> int | None:
        return self._hidden // RANK if self._widths[name] > self._hidden else None

    def sketch(self, name: str) -> Sketch:
        width, rank = self._widths[name], self._hidden // RANK
        low = self._stream(name) if name in self._streams else self._normal(f"{self._seed}/{name}", width, rank)
        low = low * torch.arange(1, rank + 1, dtype=torch.float64) ** -0.5
        rest = OUTSIDE / (1 - OUTSIDE) * float(low.square().sum()) / width
        return Sketch(low, torch.full((width,), rest, dtype=torch.float64), OUTSIDE)

    def __getitem__(self, name: str) -> Tensor:
        return self.sketch(name).dense()

    def _stream(self, name: str) -> Tensor:
        index, shape = self._streams.index(name), (self._hidden, self._hidden // RANK)
        if self._last is None or self._last[0] > index:
            self._last = (0, self._normal(f"{self._seed}/stream/0", *shape))
        for step in range(self._last[0], index):
            turned = (1 - TURN) ** 0.5 * self._last[1] + TURN**0.5 * self._normal(f"{self._seed}/{step}", *shape)
            self._last = (step + 1, turned)
        return self._last[1]

    @staticmethod
    def _normal(key: str, *shape: int) -> Tensor:
        seed = int.from_bytes(key.encode(), "little") % (2**63 - 25)
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def __contains__(self, name: object) -> bool:
        return name in self._widths

    def __iter__(self) -> Iterator[str]:
        return iter(self._widths)

    def __len__(self) -> int:
        return len(self._widths)


def statistics_of(model: nn.Module, hidden: int) -> Curvature:
    """Of every layer of the model; the residual stream is read by q and gate, and written to by o and down."""
    layers = find_layers(model)
    reads = {name: first for name, _, _, first in BLOCK}
    inputs = {}
    for layer in layers:
        block, _, name = layer.name.partition(".")
        inputs[layer.name] = f"{block}.{reads[name]}"
    ends = {"in": ("self_attn.q_proj", "mlp.gate_proj"), "out": ("self_attn.o_proj", "mlp.down_proj")}
    streams = {side: [each.name for each in layers if each.name.endswith(names)] for side, names in ends.items()}
    A = Drawn({each.name: each.n for each in layers}, streams["in"], hidden, 1)
    G = Drawn({each.name: each.m for each in layers}, streams["out"], hidden, 2)
    return Curvature(
        layers=layers,
        A=A,
        G=G,
        estimate="kronecker",
        loss="random statistics",
        unit="nats",
        units=1,
        positions={layer.name: 1 for layer in layers},
        samples=1,
        damping=0.0,
        inputs=inputs,
    )


def measured(blocks: int, hidden: int, arguments: Arguments, folder: Path) -> Row:
    """One setting, in this process."""
    clock = Clock(timer=time.process_time)
    model, allowed = model_of(blocks, hidden), arguments.memory * hidden**2
    path = folder / "statistics.safetensors"
    with clock("statistics"):
        statistics_of(model, hidden).save(path)
    warm = model_of(1, 32)
    plan(price(warm, statistics_of(warm, 32)), arguments.keep, time_limit=1.0)  # loads what searching needs
    forget_peak()
    before = resident()
    curvature = load_curvature(path, allowed // 2)
    graph = price(model, curvature, aggregate=(1.0, 2.0))
    with clock("nearest"):
        together = graph.priced_together()
    with clock("alone"):
        for index in range(len(graph.layers)):
            graph.hull((index,))
    with clock("pairs"):
        graph.price_pairs()
    with clock("search"):
        found = plan(graph, arguments.keep, time_limit=arguments.time_limit)
    return {
        "blocks": blocks,
        "hidden": hidden,
        "layers": len(graph.layers),
        "parameters": graph.parameters_dense,
        "pairs": int(together.sum() - len(together)) // 2,
        "classes": len(graph.known),
        "allowed": allowed,
        "peak": peak() - before,
        "model_bytes": sum(each.numel() * each.element_size() for each in model.parameters()),
        "statistics_bytes": path.stat().st_size,
        "statistics_dense_bytes": 8 * sum(layer.m**2 + layer.n**2 for layer in graph.layers),
        "keep": arguments.keep,
        "damage_relative_to_no_sharing": found.objective / (found.objective_without_sharing or 1.0),
        "shared_classes": sum(len(cls.layers) > 1 for cls in found.classes),
        "seconds": {step: round(value, 2) for step, value in clock.seconds.items()},
    }


def settings(arguments: Arguments) -> list[tuple[int, int]]:
    """Blocks and width of every model, the smallest first."""
    found = {(blocks, arguments.narrow) for blocks in arguments.blocks} | {(arguments.few, w) for w in arguments.widths}
    found |= {arguments.largest} - {(0, 0)}
    return sorted(found, key=lambda each: each[0] * each[1] ** 2)


def measure_all(arguments: Arguments, rows: list[Row], console: Console) -> None:
    started = time.monotonic()
    for blocks, hidden in settings(arguments):
        if any((row["blocks"], row["hidden"]) == (blocks, hidden) for row in rows):
            continue
        if time.monotonic() - started > arguments.seconds:
            console.print("time is up; type the same command again to go on")
            return
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            program = f"import sys; from benchmarks.scale import *; child({blocks}, {hidden}, {folder!r})"
            told = [str(arguments.keep), str(arguments.memory), str(arguments.time_limit)]
            subprocess.run([sys.executable, "-c", program, *told], check=True)
            rows.append(json.loads((Path(folder) / "row.json").read_text()))
        write(rows, arguments)
        row = rows[-1]
        steps = ", ".join(f"{step} {duration(row['seconds'][step])}" for step in STEPS)
        console.print(f"{blocks} blocks of {hidden}: {steps}; {size(row['peak'])} at the peak", highlight=False)


def child(blocks: int, hidden: int, folder: str) -> None:
    torch.set_num_threads(1)
    keep, memory, limit = sys.argv[1:]
    arguments = Arguments(keep=float(keep), memory=int(memory), time_limit=float(limit))
    row = measured(blocks, hidden, arguments, Path(folder))
    (Path(folder) / "row.json").write_text(json.dumps(row))


def missing(rows: Sequence[Row], arguments: Arguments) -> list[tuple[int, int]]:
    """Blocks and widths that are asked for and have not been measured."""
    known = {(row["blocks"], row["hidden"]) for row in rows}
    return [each for each in settings(arguments) if each not in known]


def write(rows: Sequence[Row], arguments: Arguments) -> None:
    path = arguments.output
    path.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"versions": {"torch": torch.__version__}, "threads": 1, "rows": list(rows)}
    document["not_measured"] = [{"blocks": b, "hidden": h} for b, h in missing(rows, arguments)]
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(document, indent=1) + "\n"))


COLORS = {"nearest": "#c9c9c9", "alone": "#8c8c8c", "pairs": "#2a6f97", "search": "#e0a83e"}
LABELS = {
    "nearest": "finding which layers are alike",
    "alone": "pricing every layer alone",
    "pairs": "pricing pairs of alike layers",
    "search": "searching the plan",
}


def draw(rows: Sequence[Row], path: Path, unmeasured: Sequence[tuple[int, int]] = ()) -> None:
    """Time by number of blocks and by width, stacked by step; memory held beside what all statistics would take."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4), facecolor="white", layout="constrained")
    above = figure.subplots(2, 2)
    most = max((row["hidden"] for row in rows), key=lambda width: sum(row["hidden"] == width for row in rows))
    deep = sorted((row for row in rows if row["hidden"] == most), key=lambda row: row["blocks"])
    few = max((row["blocks"] for row in rows), key=lambda blocks: sum(row["blocks"] == blocks for row in rows))
    wide = sorted((row for row in rows if row["blocks"] == few), key=lambda row: row["hidden"])
    for (time_panel, memory_panel), own, what in zip(above.T, (deep, wide), ("blocks", "hidden"), strict=True):
        places, bottom = range(len(own)), [0.0] * len(own)
        for step in STEPS:
            heights = [row["seconds"][step] for row in own]
            time_panel.bar(places, heights, 0.6, bottom=bottom, color=COLORS[step], label=LABELS[step])
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        for place, total in zip(places, bottom, strict=True):
            time_panel.text(place, total, duration(total), ha="center", va="bottom", fontsize=8)
        fixed = f"width {most}" if what == "blocks" else plural(few, "block")
        labels = [_label(row, what) for row in own]
        time_panel.set_xticks(places, labels, fontsize=8)
        time_panel.set_title(f"Time of a plan by {'depth' if what == 'blocks' else 'width'}: {fixed}", fontsize=10)
        time_panel.set_ylabel("seconds of one core")
        time_panel.margins(y=0.12)
        dense, held = [row["statistics_dense_bytes"] / 1e9 for row in own], [row["peak"] / 1e9 for row in own]
        memory_panel.bar(
            [p - 0.16 for p in places], dense, 0.3, color="#c9c9c9", label="what all statistics would take"
        )
        memory_panel.bar(
            [p + 0.16 for p in places], held, 0.3, color="#c1553b", label="held at the peak, beside the model"
        )
        for place, a, b in zip(places, dense, held, strict=True):
            for x, value in ((place - 0.16, a), (place + 0.16, b)):
                memory_panel.text(x, value, f"{value:.2g}", ha="center", va="bottom", fontsize=8)
        strokes = [row["allowed"] / 1e9 for row in own]
        memory_panel.hlines(strokes, [p - 0.35 for p in places], [p + 0.35 for p in places], color="black", lw=1.2)
        memory_panel.hlines([], [], [], color="black", lw=1.2, label="allowed")
        memory_panel.set_yscale("log")
        memory_panel.set_ylim(min(dense) / 3, 8 * max(*dense, *strokes))
        memory_panel.set_xticks(places, labels, fontsize=8)
        memory_panel.set_title(f"Memory by {'depth' if what == 'blocks' else 'width'}: {fixed}", fontsize=10)
        memory_panel.set_ylabel("GB (logarithmic)")
    for panel in above.ravel():
        panel.spines[["top", "right"]].set_visible(False)
    above[0, 0].legend(fontsize=8, frameon=False, loc="upper left")
    above[1, 0].legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    title = "A plan from given statistics: Llama shapes, 7 matrices a block, weights (M: millions) at random, keep 0.8"
    figure.suptitle(title, fontsize=12, weight="bold")
    below = [_sentence(row) for row in rows if row not in deep and row not in wide]
    if unmeasured:
        said = ", ".join(f"{plural(blocks, 'block')} of {hidden}" for blocks, hidden in unmeasured)
        below.append(f"not measured yet: {said}")
    figure.supxlabel("\n".join(below), fontsize=10)
    form = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=110))


def _sentence(row: Row) -> str:
    """What there is to say of a model that is in neither series."""
    seconds = sum(row["seconds"][step] for step in STEPS)
    return (
        f"{plural(row['blocks'], 'block')} of width {row['hidden']}, {row['parameters'] / 1e6:,.0f} M parameters, "
        f"{row['pairs']} pairs: {duration(seconds)}; {size(row['peak'])} at the peak, {size(row['allowed'])} allowed, "
        f"{size(row['statistics_dense_bytes'])} for all statistics"
    )


def _label(row: Row, what: str) -> str:
    first = plural(row["blocks"], "block") if what == "blocks" else f"{row['hidden']} wide"
    return f"{first}\n{row['layers']} layers\n{row['pairs']} pairs\n{row['parameters'] / 1e6:.3g} M"


def main(arguments: Arguments) -> None:
    rows: list[Row] = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    if not arguments.report_only:
        measure_all(arguments, rows, Console())
    if rows:
        write(rows, arguments)
        draw(rows, arguments.figure, missing(rows, arguments))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
