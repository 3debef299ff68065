"""Mean magnitudes of the inputs: `G = I`, A diagonal. With it the price is that of ASVD (arXiv:2312.05821)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geocolor.curvature.estimate import Estimate, check_finite, rows
from geocolor.curvature.observation import OnGradient
from geocolor.curvature.sums import Sums
from geocolor.layers import Layer, input_rows
from geocolor.losses import Loss


@dataclass(frozen=True)
class Magnitude(Estimate):
    """`A = diag(mean|x|^2α)`, `α = ½`: ASVD scales column j of the weight by `mean|x_j|^α`."""

    name: str = "magnitude"
    needs_gradients: bool = False

    def unit(self, loss: Loss | None) -> str:
        return "half squared change of the scaled weights"

    def observe(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None, first: bool) -> OnGradient | None:
        if first:
            inputs = rows(input_rows(layer, x), mask)
            total = inputs.abs().sum(0, dtype=torch.float64)
            check_finite(total, layer, "inputs", sums.batches)
            sums.add(f"M/{layer.name}", total)
            sums.positions[layer.name] = sums.positions.get(layer.name, 0) + len(inputs)
        return None

    def input_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return torch.diag(sums.tensors[f"M/{layer.name}"] / sums.positions[layer.name])

    def output_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return None

    def missing(self, sums: Sums, layer: Layer) -> str | None:
        if layer.name not in sums.inputs:
            return "never ran"
        return None if sums.tensors[f"M/{sums.inputs[layer.name]}"].any() else "its input is always zero"
