"""Measure, price, plan and apply at the size of LLaMA-7B on one GPU, each step timed; the goal is ten minutes.

    python -m benchmarks.seven_billion                                   # 32 blocks of width 4096 in bfloat16
    python -m benchmarks.seven_billion --device cpu --blocks 2 --width 256 --vocabulary 256 --sequences 4

Weights and tokens are random, made on the device; times do not depend on what they say, but plans do. What runs where:

- on the device: the model, the sums of second moments (float64), sketches of what is wider than the model (rank a
  quarter of its width), everything pricing computes (single precision from width 1024 on), bases and coefficients;
- on the CPU: the statistics between the steps (float64, divided and damped there, entry by entry), the hulls of prices
  and the search on them, the checksum of the weights. No product or decomposition of d × d matrices is done there.

Statistics are gathered for `window` blocks at a time, each with a pass over the data, so that the device holds the
model, one batch and those sums. Looks from smaller models are left out: `geocolor.calibrate` multiplies with the
float64 statistics where they are, on the CPU.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from geocolor.atomic import write_atomically
from geocolor.bases import FactoredKind
from geocolor.carry_out import apply
from geocolor.curvature import Curvature, accumulate, finish
from geocolor.curvature.windows import joined
from geocolor.graph import KINDS, price
from geocolor.layers import Layer, find_layers
from geocolor.memory import peak
from geocolor.parameters import parameter_count
from geocolor.planning import plan
from geocolor.quantities import duration, parse_size, size

GOAL = 600.0
"""Seconds; the paper takes 1.3 hours for the Hessian and the selection of bases."""


@dataclass(frozen=True)
class Arguments:
    """Times of all steps at the size of LLaMA-7B."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the model runs and layers are priced."""
    blocks: int = 32
    """Blocks of 7 matrices."""
    width: int = 4096
    """Of the model; the feed-forward part is 2.6875 times as wide."""
    heads: int | None = None
    """Of attention; as many as are 128 wide when not given, but one at least."""
    vocabulary: int = 32_000
    """Tokens."""
    dtype: str = "bfloat16"
    """Of the weights."""
    sequences: int = 8
    """Sequences to calibrate on."""
    length: int = 2048
    """Tokens of a sequence, which is a batch."""
    window: int = 8
    """Blocks whose statistics are gathered in one pass."""
    keep: float = 0.8
    """Fraction of the parameters kept."""
    kinds: tuple[FactoredKind, ...] = KINDS
    """Of bases."""
    memory: str = "40GB"
    """What pricing may keep of layers on the device."""
    time_limit: float = 60.0
    """Seconds for the search."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """Where the times go, as JSON."""


def llama(arguments: Arguments) -> nn.Module:
    """Random weights, made on the device."""
    heads = arguments.heads or max(arguments.width // 128, 1)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 43 // 16,
        num_hidden_layers=arguments.blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max(arguments.length, 2048),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    try:
        with torch.device(arguments.device):
            model: nn.Module = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return model


def tokens(arguments: Arguments) -> list[Tensor]:
    shape = (arguments.sequences, arguments.length)
    drawn = torch.randint(arguments.vocabulary, shape, generator=torch.Generator().manual_seed(0))
    return list(drawn.to(arguments.device).split(1))


def measured(model: nn.Module, batches: list[Tensor], arguments: Arguments) -> Curvature:
    """The curvature of all matrices, `window` blocks at a time; sides wider than the model are sketched."""
    layers = find_layers(model, exclude=("lm_head",))
    per_block = len(layers) // arguments.blocks
    ranks = {f"A/{layer.name}": arguments.width // 4 for layer in layers if layer.n > arguments.width}
    ranks |= {f"G/{layer.name}": arguments.width // 4 for layer in layers if layer.m > arguments.width}
    parts = []
    for start in range(0, len(layers), arguments.window * per_block):
        window: list[Layer] = list(layers[start : start + arguments.window * per_block])
        parts.append(finish(accumulate(model, batches, None, window, ranks=ranks), consume=True))
    inputs = {name: first for part in parts for name, first in part.inputs.items()}
    return joined(parts, layers, inputs)


def run(arguments: Arguments, console: Console) -> dict[str, Any]:
    on_gpu = torch.device(arguments.device).type == "cuda"
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if on_gpu:
            torch.cuda.synchronize()
        seconds[step] = time.perf_counter() - started
        console.print(f"{step:>8}: {duration(seconds[step])}", highlight=False)

    with timed("make"):
        model, batches = llama(arguments), tokens(arguments)
    dense = parameter_count(model)
    with timed("measure"):
        curvature = measured(model, batches, arguments)
    with timed("price"):
        graph = price(
            model, curvature, kinds=arguments.kinds, memory=parse_size(arguments.memory), device=arguments.device
        )
        for index in range(len(graph.layers)):
            graph.hull((index,))
        graph.price_pairs(progress=True)
    with timed("plan"):
        found = plan(graph, arguments.keep, time_limit=arguments.time_limit)
    with timed("apply"):
        smaller = apply(model, found, curvature, inplace=True, metrics=graph.metrics)
    total = sum(value for step, value in seconds.items() if step != "make")
    report: dict[str, Any] = {
        "settings": {key: value for key, value in asdict(arguments).items() if key != "output"},
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "layers": len(graph.layers),
        "classes_priced": len(graph.known),
        "classes_shared": sum(len(cls.layers) > 1 for cls in found.classes),
        "kept": found.kept,
        "model_parameters_dense": dense,
        "model_parameters": parameter_count(smaller),
        "seconds": seconds,
        "total_seconds": total,
        "memory_process": peak(),
        "memory_device": torch.cuda.max_memory_allocated() if on_gpu else None,
    }
    held = f", {size(report['memory_device'])} of the device's" if on_gpu else ""
    console.print(
        f"{dense / 1e9:.2f} thousand million parameters, {len(graph.layers)} layers: measure, price, plan and apply "
        f"take {duration(total)} ({duration(GOAL)} is the goal for 32 blocks of 4096), {size(peak())} of memory{held}",
        highlight=False,
    )
    return report


def main(arguments: Arguments) -> dict[str, Any]:
    report = run(arguments, Console())
    if arguments.output is not None:
        text = json.dumps(report, indent=1, default=str) + "\n"
        write_atomically(arguments.output, lambda temporary: temporary.write_text(text))
    return report


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
