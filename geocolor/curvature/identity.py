"""No curvature at all: `A = I`, `G = I`. With it the price is that of a plain truncated SVD of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from geocolor.curvature.estimate import Estimate
from geocolor.curvature.observation import OnGradient
from geocolor.curvature.sums import Sums
from geocolor.layers import Layer
from geocolor.losses import Loss


@dataclass(frozen=True)
class Identity(Estimate):
    """The damage is half the squared Frobenius norm of the change; no data is read."""

    name: str = "identity"
    reads_data: bool = False
    needs_gradients: bool = False

    def unit(self, loss: Loss | None) -> str:
        return "half squared change of the weights"

    def observe(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None, first: bool) -> OnGradient | None:
        return None

    def input_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return None

    def output_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return None

    def missing(self, sums: Sums, layer: Layer) -> str | None:
        return None
