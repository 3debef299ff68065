"""K-FAC: `H ≈ G ⊗ A` with A from the inputs and G from sampled gradients of the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from geocolor.curvature.estimate import Estimate, Room, check_finite, input_moment, output_moment, rows
from geocolor.curvature.observation import OnGradient
from geocolor.curvature.shrinkage import scatter
from geocolor.curvature.sketch import directions
from geocolor.curvature.sums import Sums
from geocolor.layers import Layer, input_rows, output_rows


@dataclass(frozen=True)
class Kronecker(Estimate):
    """`A = Σ x xᵀ / positions`, `G = Σ g gᵀ / units` (Martens & Grosse 2015, arXiv:1503.05671).

    Positions that share a weight (tokens, patches) are treated as independent: "expand" in Eschenhagen et al. 2023,
    arXiv:2311.00636. `g` is the gradient of the loss *sum*, so the sum over the positions of a sample stays in G.
    """

    name: str = "kronecker"
    ranks: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Of sketches (`geocolor.curvature.sketch`), by "A/<layer>" and "G/<layer>"; other factors are summed whole."""
    _directions: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _room: Room = field(default_factory=Room, repr=False, compare=False)

    def observe(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None, first: bool) -> OnGradient | None:
        if first:
            count = self._add_inputs(sums, layer, x, mask)
            sums.positions[layer.name] = sums.positions.get(layer.name, 0) + count

        def on_gradient(gradient: Tensor) -> None:
            key = f"G/{layer.name}"
            if key in self.ranks:
                self._sketch(sums, key, rows(output_rows(layer, gradient), None), layer, "output gradients")
            else:
                moment = output_moment(layer, gradient, sums.batches, self._room)
                sums.add(key, moment)
                sums.add(f"V{key}", scatter(moment, gradient.numel() // layer.m))

        return on_gradient

    def _add_inputs(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None) -> int:
        """How many positions were read."""
        key = f"A/{layer.name}"
        if key in self.ranks:
            inputs = rows(input_rows(layer, x), mask)
            self._sketch(sums, key, inputs, layer, "inputs")
            return len(inputs)
        moment, count = input_moment(layer, x, mask, sums.batches, self._room)
        sums.add(key, moment)
        sums.add(f"V{key}", scatter(moment, count))
        return count

    def _sketch(self, sums: Sums, key: str, matrix: Tensor, layer: Layer, what: str) -> None:
        """What a sketch needs of `Σ x xᵀ` over the rows of `matrix`."""
        if key not in self._directions:
            self._directions[key] = directions(key, matrix.shape[1], self.ranks[key]).to(matrix)
        diagonal = matrix.square().sum(0)
        check_finite(diagonal, layer, what, sums.batches)
        sums.add(f"S{key}", matrix.T @ (matrix @ self._directions[key]))
        sums.add(f"D{key}", diagonal)

    def input_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return sums.tensors[f"A/{layer.name}"] / sums.positions[layer.name]

    def output_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        return sums.tensors[f"G/{layer.name}"] / sums.sampled

    def missing(self, sums: Sums, layer: Layer) -> str | None:
        group = sums.inputs.get(layer.name)
        inputs = sums.tensors.get(f"A/{group}", sums.tensors.get(f"DA/{group}"))
        if inputs is None:
            return "never ran"
        if not inputs.any():
            return "its input is always zero"
        gradient = sums.tensors.get(f"G/{layer.name}", sums.tensors.get(f"DG/{layer.name}"))
        return "no gradient reaches it" if gradient is None or not gradient.any() else None
