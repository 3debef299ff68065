"""Fisher row sums: `A = I`, G diagonal. With it the price is that of FWSVD (arXiv:2207.00112)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geocolor.curvature.estimate import Estimate, check_finite
from geocolor.curvature.observation import OnGradient
from geocolor.curvature.sums import Sums
from geocolor.layers import Layer, input_rows, output_rows


@dataclass(frozen=True)
class Diagonal(Estimate):
    """`G = diag(Σ_j F_ij / n)` with `F_ij` the sum over samples of the squared gradient of `W_ij`, divided by units.

    FWSVD weighs row i by `Σ_j F_ij`; the division by n keeps the mean curvature of the block, so that layers of
    different width compare. The gradient of a sample is summed over its positions before it is squared.
    """

    name: str = "diagonal"

    def observe(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None, first: bool) -> OnGradient | None:
        inputs = _by_sample(input_rows(layer, x.detach()))
        sums.positions[layer.name] = sums.positions.get(layer.name, 0) + inputs[..., 0].numel()

        def on_gradient(gradient: Tensor) -> None:
            gradients = _by_sample(output_rows(layer, gradient.detach()))
            total = torch.zeros(layer.m, dtype=torch.float64, device=gradients.device)
            for g, rows in zip(gradients, inputs, strict=True):  # one m × n gradient at a time bounds the memory
                total += (g.T @ rows).square().sum(1)
            check_finite(total, layer, "output gradients", sums.batches)
            sums.add(f"F/{layer.name}", total)

        return on_gradient

    def input_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return None

    def output_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return torch.diag(sums.tensors[f"F/{layer.name}"] / (layer.n * sums.sampled))

    def missing(self, sums: Sums, layer: Layer) -> str | None:
        if layer.name not in sums.inputs:
            return "never ran"
        squares = sums.tensors.get(f"F/{layer.name}")
        return "no gradient reaches it" if squares is None or not squares.any() else None


def _by_sample(x: Tensor) -> Tensor:
    """[samples, positions, width], at least in float32; a matrix holds one position per sample."""
    x = x.unsqueeze(0) if x.ndim == 1 else x
    x = x.unsqueeze(1) if x.ndim == 2 else x.flatten(1, -2)
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
