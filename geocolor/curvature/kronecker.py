"""K-FAC: `H ≈ G ⊗ A` with A from the inputs and G from sampled gradients of the outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from geocolor.curvature.estimate import Estimate, rows, second_moment
from geocolor.curvature.observation import OnGradient
from geocolor.curvature.sums import Sums
from geocolor.layers import Layer, input_rows, output_rows


@dataclass(frozen=True)
class Kronecker(Estimate):
    """`A = Σ x xᵀ / positions`, `G = Σ g gᵀ / units` (Martens & Grosse 2015, arXiv:1503.05671).

    Positions that share a weight (tokens, patches) are treated as independent: "expand" in Eschenhagen et al. 2023,
    arXiv:2311.00636. `g` is the gradient of the loss *sum*, so the sum over the positions of a sample stays in G.
    """

    name: str = "kronecker"

    def observe(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None, first: bool) -> OnGradient | None:
        if first:
            inputs = rows(input_rows(layer, x), mask)
            sums.add(f"A/{layer.name}", second_moment(inputs, layer, "inputs", sums.batches))
            sums.positions[layer.name] = sums.positions.get(layer.name, 0) + len(inputs)

        def on_gradient(gradient: Tensor) -> None:
            gradients = rows(output_rows(layer, gradient), None)
            sums.add(f"G/{layer.name}", second_moment(gradients, layer, "output gradients", sums.batches))

        return on_gradient

    def input_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return sums.tensors[f"A/{layer.name}"] / sums.positions[layer.name]

    def output_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return sums.tensors[f"G/{layer.name}"] / sums.sampled

    def missing(self, sums: Sums, layer: Layer) -> str | None:
        inputs = sums.tensors.get(f"A/{sums.inputs.get(layer.name)}")
        if inputs is None:
            return "never ran"
        if not inputs.any():
            return "its input is always zero"
        gradient = sums.tensors.get(f"G/{layer.name}")
        return "no gradient reaches it" if gradient is None or not gradient.any() else None
