"""Is a compressed model faster? Prefill and decoding of Llama-shaped models with random weights, one thread.

    python -m benchmarks.latency

Every measurement is a pair with the dense model in the same round, forms in random order; what is reported is the
median over the rounds of the ratio of times. On a CPU times are those of the processor (`time.process_time`), so that
other work on the machine counts for little; on a GPU they are those of its own clock. FLOPs are what torch counts on
the same inputs. On a CPU the time in the layers in scope is taken apart from that in the rest of the model: attention,
norms, the cache, which compression leaves as they are. Results are written after every setting, a table of them beside
them, and a run goes on where it stopped.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from geocolor.atomic import write_atomically
from geocolor.backend import install
from geocolor.bases import Factors
from geocolor.flops import merge_slow, plan_flops, plan_flops_dense
from geocolor.fusion import fuse
from geocolor.layers import Layer, find_layers
from geocolor.plans import Fingerprint, Plan, PlannedClass, class_parameters, shapes_of

Row = dict[str, Any]
Sharing = Literal["private", "inputs", "blocks"]

#: What reads one tensor in a block of Llama, and what does so alone.
INPUTS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
ALONE = ("self_attn.o_proj", "mlp.down_proj")

BLOCKS, HEAD, CACHED, NEW = 2, 64, 64, 4
"""Blocks, width of an attention head, tokens in the cache before decoding, tokens decoded in one measurement."""

FORMS = ("dense", "compressed", "fused", "merged")
SHORT = {"float32": "f32", "bfloat16": "bf16"}
LABELS = {"private": "a basis each", "inputs": "q, k, v share", "blocks": "blocks share"}


@dataclass(frozen=True)
class Arguments:
    """Times of compressed, fused and merged models against the dense one."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/latency.json")
    """Where results go, and come from where a run is resumed."""
    figure: Path = Path("docs/latency.png")
    """Where the figure goes."""
    hidden: tuple[int, ...] = (1024, 2048)
    """Widths of the models."""
    keep: tuple[float, ...] = (0.5, 0.8, 0.95)
    """Fractions of the parameters kept."""
    sharing: tuple[Sharing, ...] = ("inputs", "private", "blocks")
    """Who shares a basis."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Of weights and activations."""
    batches: tuple[int, ...] = (1, 32)
    """Sequences at once."""
    tokens: int = 512
    """Tokens at once in prefill, of all sequences together."""
    rounds: int = 5
    """Pairs of each setting."""
    seconds: float = 240.0
    """Begin no further setting after so long."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the models run."""
    report_only: bool = False
    """Measure nothing, only draw the figure."""


def llama(hidden: int, dtype: torch.dtype) -> nn.Module:
    """Random weights; the feed-forward part 2.75 times as wide as the model, as in Llama 2."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=BLOCKS,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=None,
    )
    model: nn.Module = LlamaForCausalLM(config).eval().to(dtype)
    return model


def planned(model: nn.Module, keep: float, sharing: Sharing) -> Plan:
    """Every class is an `in` basis of the rank that keeps this part of its parameters."""
    layers = {layer.name: layer for layer in find_layers(model)}
    blocks = [f"model.layers.{i}" for i in range(BLOCKS)]
    groups: list[list[str]]
    if sharing == "private":
        groups = [[name] for name in layers]
    elif sharing == "inputs":
        groups = [[f"{block}.{name}" for name in names] for block in blocks for names in INPUTS]
        groups += [[f"{block}.{name}"] for block in blocks for name in ALONE]
    else:
        kinds = (*(name for names in INPUTS for name in names), *ALONE)
        groups = [[f"{block}.{name}" for block in blocks] for name in kinds]
    inputs = {f"{block}.{name}": f"{block}.{first}" for block in blocks for first, *others in INPUTS for name in others}
    shapes = shapes_of(layers.values())
    classes = [_class(groups[k], layers, shapes, keep) for k in range(len(groups))]
    return Plan(
        fingerprint=Fingerprint(sha256="random weights", dtype=str(model.dtype)),
        layers=shapes,
        classes=tuple(classes),
        keep=keep,
        price=0.0,
        objective=0.0,
        solver="uniform",
        inputs=inputs,
    )


def _class(names: Sequence[str], layers: dict[str, Layer], shapes: Any, keep: float) -> PlannedClass:
    own, width = sum(layers[name].m for name in names), layers[names[0]].n
    rank = max(1, int(keep * own * width / (own + width)))
    draft = PlannedClass.model_construct(kind="in", layers=tuple(names), rank=rank, right_rank=None)
    return PlannedClass(
        kind="in",
        layers=tuple(names),
        rank=rank,
        parameters=class_parameters(draft, shapes),
        damage=dict.fromkeys(names, 0.0),
    )


def compressed(model: nn.Module, plan: Plan) -> nn.Module:
    """Random factors of the planned shapes: times do not depend on values."""
    factors = []
    for cls in plan.classes:
        assert cls.rank is not None
        widths = [plan.layers[name] for name in cls.layers]
        coefficients = {
            name: torch.randn(shape.m, cls.rank) / cls.rank**0.5 for name, shape in zip(cls.layers, widths, strict=True)
        }
        right = torch.randn(widths[0].n, cls.rank) * 0.02
        factors.append(Factors("in", cls.layers, coefficients, None, right))
    return install(model, plan.shareable_layers(), factors, plan=plan)


def forms(
    hidden: int, dtype: torch.dtype, keep: float, sharing: Sharing, device: str, positions: Sequence[int]
) -> tuple[dict[str, nn.Module], Plan]:
    """Dense, compressed, fused, and with layers merged that a timing finds slower, the rest fused."""
    dense = llama(hidden, dtype).to(device)
    plan = planned(dense, keep, sharing)
    smaller = compressed(dense, plan)
    timer = time.perf_counter if device.startswith("cuda") else time.process_time
    merged = merge_slow(smaller, positions=positions, timer=timer)
    return {"dense": dense, "compressed": smaller, "fused": fuse(smaller), "merged": fuse(merged)}, plan


def prefill(model: nn.Module, tokens: Tensor) -> Callable[[], object]:
    return lambda: model(tokens, use_cache=False)


def decode(model: nn.Module, tokens: Tensor) -> Callable[[], object]:
    """`NEW` tokens, one after the other, behind `CACHED` of them."""
    cache = DynamicCache()
    model(tokens[:, :CACHED], past_key_values=cache, use_cache=True)
    one = tokens[:, :1]

    def run() -> None:
        for _ in range(NEW):
            model(one, past_key_values=cache, use_cache=True)
        cache.crop(-NEW)

    return run


WORKLOADS: dict[str, Callable[[nn.Module, Tensor], Callable[[], object]]] = {"prefill": prefill, "decode": decode}


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of the processor, or of the GPU."""
    if not device.startswith("cuda"):
        started = time.process_time()
        run()
        return time.process_time() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


class Scope:
    """Seconds of the processor that a model spends in some of its layers."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.seconds, self._started = 0.0, 0.0
        for name in names:
            layer = model.get_submodule(name)
            layer.register_forward_pre_hook(self._enter)
            layer.register_forward_hook(self._leave)

    def _enter(self, *_: object) -> None:
        self._started = time.process_time()

    def _leave(self, *_: object) -> None:
        self.seconds += time.process_time() - self._started


def flops_of(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def measured(
    models: dict[str, nn.Module], scopes: dict[str, Scope], kind: str, tokens: Tensor, rounds: int, device: str
) -> list[Row]:
    """One row for every form: the median over rounds of its time over that of the dense model."""
    runs = {name: WORKLOADS[kind](model, tokens) for name, model in models.items()}
    counted = {name: flops_of(run) for name, run in runs.items()}  # this warms up, too
    order, seconds, inside = list(runs), {name: list[float]() for name in runs}, {name: list[float]() for name in runs}
    shuffled = random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            before = scopes[name].seconds
            seconds[name].append(timed(runs[name], device))
            inside[name].append(scopes[name].seconds - before)
    rows: list[Row] = []
    for name in FORMS:
        row: Row = {
            "form": name,
            "seconds": statistics.median(seconds[name]),
            "ratio": median_ratio(seconds[name], seconds["dense"]),
            "flops": counted[name] / counted["dense"],
        }
        if not device.startswith("cuda"):
            row["scope_seconds"] = statistics.median(inside[name])
            row["scope_ratio"] = median_ratio(inside[name], inside["dense"])
        rows.append(row)
    return rows


def median_ratio(seconds: Sequence[float], dense: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(seconds, dense, strict=True))


def measure_all(arguments: Arguments, rows: list[Row], console: Console) -> None:
    started = time.monotonic()
    for hidden in arguments.hidden:
        for dtype in arguments.dtypes:
            for keep in arguments.keep:
                for sharing in arguments.sharing:
                    setting = {
                        "hidden": hidden,
                        "dtype": dtype,
                        "keep": keep,
                        "sharing": sharing,
                        "device": arguments.device,
                    }
                    if any(all(row[name] == value for name, value in setting.items()) for row in rows):
                        continue
                    if time.monotonic() - started > arguments.seconds:
                        console.print("time is up; type the same command again to go on")
                        return
                    rows += _setting(setting, arguments)
                    _write(rows, arguments.output)
                    _print(rows, setting, console)


def _setting(setting: Row, arguments: Arguments) -> list[Row]:
    torch.manual_seed(0)
    models, plan = forms(
        setting["hidden"],
        getattr(torch, setting["dtype"]),
        setting["keep"],
        setting["sharing"],
        arguments.device,
        sorted({*arguments.batches, arguments.tokens}),
    )
    scopes = {name: Scope(model, plan.layers) for name, model in models.items()}
    kept = sum(plan_flops(plan).values()) / plan_flops_dense(plan)
    found = []
    with torch.no_grad():
        for batch in arguments.batches:
            for kind in WORKLOADS:
                length = arguments.tokens // batch if kind == "prefill" else CACHED
                tokens = torch.randint(256, (batch, length), device=arguments.device)
                about = {**setting, "workload": kind, "batch": batch, "flops_planned": kept}
                found += [
                    {**about, **row}
                    for row in measured(models, scopes, kind, tokens, arguments.rounds, arguments.device)
                ]
    return found


def _write(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"versions": {"torch": torch.__version__}, "threads": torch.get_num_threads(), "rows": list(rows)}
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(document, indent=1) + "\n"))
    write_atomically(path.with_suffix(".md"), lambda temporary: temporary.write_text(table(rows)))


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for every setting, workload and batch, with the time inside and outside the layers in scope."""
    lines = [
        "Time over that of the dense model, medians of pairs in one run. `merged` takes matrices for what a clock "
        "finds slower as factors at 1, 32 or all tokens of a prompt at once; where that is everything it is the dense "
        "model, and what it differs by is noise.",
        "",
        "| width, dtype | keep | basis | workload, batch | dense: layers in scope + rest, ms | merged: the same, ms | "
        "compressed | fused | merged | layers in scope alone, merged | FLOPs planned |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = ("hidden", "dtype", "keep", "sharing", "workload", "batch")
    by_case: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if "scope_seconds" in row:
            by_case.setdefault(tuple(row[key] for key in keys), {})[row["form"]] = row
    for (hidden, dtype, keep, sharing, kind, batch), forms in sorted(by_case.items()):
        ratios = " | ".join(f"{forms[name]['ratio']:.2f}" for name in FORMS[1:])
        merged = forms["merged"]
        lines.append(
            f"| {hidden}, {dtype} | {keep} | {LABELS[sharing]} | {kind}, {batch} | {_parts(forms['dense'])} | "
            f"{_parts(merged)} | {ratios} | {merged['scope_ratio']:.2f} | {merged['flops_planned']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _parts(row: Row) -> str:
    inside = row["scope_seconds"]
    return f"{1e3 * inside:.0f} + {1e3 * max(row['seconds'] - inside, 0.0):.0f}"


def _print(rows: Sequence[Row], setting: Row, console: Console) -> None:
    console.print(", ".join(f"{name} {value}" for name, value in setting.items()), highlight=False)
    own = [row for row in rows if all(row[name] == value for name, value in setting.items())]
    for row in own:
        if row["form"] != "dense":
            console.print(
                f"  {row['workload']:>8} × {row['batch']:<3} {row['form']:>10}: time {row['ratio']:.3f}, "
                f"FLOPs {row['flops']:.3f} of dense",
                highlight=False,
            )


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for every workload and batch: bars of time over dense, a stroke over each at its FLOPs over dense."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.4), facecolor="white", layout="constrained")
    colors = {"compressed": "#8c8c8c", "fused": "#2a6f97", "merged": "#c1553b"}
    cases = [(kind, batch) for kind in WORKLOADS for batch in sorted({row["batch"] for row in rows})]
    keys = ("hidden", "dtype", "keep", "sharing")
    settings = sorted({tuple(row[key] for key in keys) for row in rows}, key=lambda each: (each[2], each[1], each[0]))
    for panel, (kind, batch) in zip(figure.subplots(2, 2).ravel(), cases, strict=False):
        for place, (form, color) in enumerate(colors.items()):
            own = {
                tuple(row[key] for key in keys): row
                for row in rows
                if (row["workload"], row["batch"], row["form"]) == (kind, batch, form)
            }
            x = [number + 0.27 * (place - 1) for number, setting in enumerate(settings) if setting in own]
            found = [own[setting] for setting in settings if setting in own]
            panel.bar(x, [row["ratio"] for row in found], 0.25, color=color, label=form)
            strokes = {"color": "black", "lw": 1.5, "label": "FLOPs" if place == 2 else None}
            panel.hlines([row["flops"] for row in found], [v - 0.125 for v in x], [v + 0.125 for v in x], **strokes)
        panel.axhline(1, color="#444444", lw=0.8, ls="--")
        labels = [
            f"{hidden}\n{SHORT[dtype]}\nkeep\n{keep}\n" + "\n".join(LABELS[sharing].rsplit(" ", 1))
            for hidden, dtype, keep, sharing in settings
        ]
        panel.set_xticks(range(len(settings)), labels, fontsize=7)
        panel.set(title=f"{kind}, batch {batch}", ylabel="of the dense model's time")
        panel.grid(axis="y", alpha=0.25)
    figure.suptitle(
        "Bars: time of Llama blocks, by width, dtype, kept parameters and who shares a basis. Strokes: FLOPs that are "
        "done, of dense; in bfloat16 one token\ndoes some of them twice, which is faster. Fused: layers that read one "
        "input are one product. Merged: what is no faster as factors is a matrix again.",
        fontsize=10,
    )
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), fontsize=9, frameon=False, loc="outside lower center", ncols=4
    )
    form = path.suffix.removeprefix(".")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=form, dpi=110))


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    if not arguments.report_only:
        measure_all(arguments, rows, Console())
    if rows:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
