"""Curvature of the layers' own outputs: `G = I`. With it the price is that of SVD-LLM (arXiv:2403.07378)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from geocolor.curvature.estimate import Estimate, Room, input_moment
from geocolor.curvature.observation import OnGradient
from geocolor.curvature.sums import Sums
from geocolor.layers import Layer
from geocolor.losses import Loss


@dataclass(frozen=True)
class Activation(Estimate):
    """`A = Σ x xᵀ / positions`, `G = I`; the damage is half the mean squared change of the layer's output."""

    name: str = "activation"
    needs_gradients: bool = False
    _room: Room = field(default_factory=Room, repr=False, compare=False)

    def unit(self, loss: Loss | None) -> str:
        return "half squared change of the layers' outputs"

    def observe(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None, first: bool) -> OnGradient | None:
        if first:
            moment, count = input_moment(layer, x, mask, sums.batches, self._room)
            sums.add(f"A/{layer.name}", moment)
            sums.positions[layer.name] = sums.positions.get(layer.name, 0) + count
        return None

    def input_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return sums.tensors[f"A/{layer.name}"] / sums.positions[layer.name]

    def output_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return None

    def missing(self, sums: Sums, layer: Layer) -> str | None:
        inputs = sums.tensors.get(f"A/{sums.inputs.get(layer.name)}")
        if inputs is None:
            return "never ran"
        return None if inputs.any() else "its input is always zero"
