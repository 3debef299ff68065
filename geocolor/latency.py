"""Predicted time of the layers in scope: the roofline of this machine, measured by a short probe.

A product of `p` positions with an `n × k` matrix takes `2pkn` FLOPs and moves `kn + p(k + n)` values; its time is the
longer of what the two take (Williams, Waterman & Patterson 2009, "Roofline"). One position at a time is bound by the
bytes of the weights, many at once by FLOPs.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geocolor.flops import plan_products, plan_products_dense
from geocolor.plans import Plan
from geocolor.quantities import duration

#: Widths of the probes' matrices: one that keeps every core busy and one far larger than caches.
COMPUTE, MEMORY = 1024, 4096

#: Bytes for every entry of the larger one, as it is drawn and converted and beside the other; the least width of it.
MATRIX_BYTES, LEAST = 24, 128


@dataclass(frozen=True)
class Roofline:
    """What a device reaches on products of one dtype, `value_bytes` a value."""

    flops_per_second: float
    bytes_per_second: float
    value_bytes: int

    def seconds(self, products: list[tuple[int, int, float]], positions: int) -> float:
        """Time of products with these `k × n` matrices, one after the other, at so many positions times their load."""
        return sum(
            max(
                2 * positions * load * k * n / self.flops_per_second,
                (k * n + positions * load * (k + n)) * self.value_bytes / self.bytes_per_second,
            )
            for k, n, load in products
        )


def probe(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    repeats: int = 5,
    memory: int | None = None,
) -> Roofline:
    """Measure the best of `repeats` products of each kind, after one to warm up: a fraction of a second.

    Within `memory` bytes, where they are given: if these are few, matrices fit in caches, and memory seems faster.
    """
    most = MEMORY if memory is None else max(math.isqrt(max(memory, 0) // MATRIX_BYTES), LEAST)
    compute_width, memory_width = min(COMPUTE, most // 2), min(MEMORY, most)
    with torch.inference_mode():
        square = torch.randn(compute_width, compute_width, device=device).to(dtype)
        matrix = torch.randn(memory_width, memory_width, device=device).to(dtype)
        one = torch.randn(1, memory_width, device=device).to(dtype)
        compute = _best(lambda: torch.nn.functional.linear(square, square), square.device, repeats)
        moved = _best(lambda: torch.nn.functional.linear(one, matrix), square.device, repeats)
    bytes_of = square.element_size()
    return Roofline(2 * compute_width**3 / compute, memory_width**2 * bytes_of / moved, bytes_of)


def predicted(plan: Plan, roofline: Roofline, positions: int) -> dict[str, Any]:
    """Predicted seconds of all layers in scope, dense and as planned, for one position and for `positions` at once."""
    products, dense = plan_products(plan), plan_products_dense(plan)
    return {
        "roofline_flops_per_second": roofline.flops_per_second,
        "roofline_bytes_per_second": roofline.bytes_per_second,
        "latency_predicted_positions": positions,
        "latency_predicted_dense": roofline.seconds(dense, positions),
        "latency_predicted": roofline.seconds(products, positions),
        "latency_predicted_one_dense": roofline.seconds(dense, 1),
        "latency_predicted_one": roofline.seconds(products, 1),
    }


def sentence(figures: dict[str, Any]) -> str:
    """What `predicted` found, in a line."""

    def against(name: str) -> str:
        now, dense = figures[name], figures[f"{name}_dense"]
        return f"{duration(now)} ({now / dense:.2f} × dense)"

    return (
        f"predicted time of the layers in scope: {against('latency_predicted_one')} for one position, "
        f"{against('latency_predicted')} for {figures['latency_predicted_positions']:,} at once; this machine does "
        f"{figures['roofline_flops_per_second'] / 1e9:.3g} GFLOP/s and "
        f"{figures['roofline_bytes_per_second'] / 1e9:.3g} GB/s"
    )


def _best(product: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    def timed() -> float:
        _wait(device)
        started = time.perf_counter()
        product()
        _wait(device)
        return time.perf_counter() - started

    timed()
    return min(timed() for _ in range(repeats))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
