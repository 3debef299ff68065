"""The protocol of curvature estimates that are sums over data."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from geocolor.curvature.observation import OnGradient
from geocolor.curvature.patches import patch_moment, slides_everywhere
from geocolor.curvature.sums import Sums
from geocolor.layers import Layer, input_rows, output_rows
from geocolor.losses import Loss

MIRRORED_BLOCK = 256


class Room:
    """Matrices that products of one batch are written to before they are added up, one for every width."""

    def __init__(self) -> None:
        self._matrices: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def square(self, width: int, like: Tensor) -> Tensor:
        """width × width, holding anything, until the next call with this width."""
        key = (width, like.dtype, like.device)
        if key not in self._matrices:
            self._matrices[key] = like.new_empty(width, width)
        return self._matrices[key]


class Estimate(ABC):
    """What to sum while the model runs, and how A and G follow from the sums. One file each; no state but room."""

    name: str
    reads_data: bool = True
    needs_gradients: bool = True

    def unit(self, loss: Loss | None) -> str:
        """The unit of a damage predicted with this estimate."""
        return loss.unit if loss is not None else "loss"

    @abstractmethod
    def observe(self, sums: Sums, layer: Layer, x: Tensor, mask: Tensor | None, first: bool) -> OnGradient | None:
        """Takes in the input `x` of one call; `first`: no other layer has taken in this very tensor for the group.

        Returns what takes in the gradient of the loss sum with respect to the output, or None if none is needed.
        """

    @abstractmethod
    def input_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        """A, undamped, from the sums of the first layer of a group; None stands for the identity."""

    @abstractmethod
    def output_factor(self, sums: Sums, layer: Layer) -> Tensor | None:
        """G, undamped; None stands for the identity."""

    @abstractmethod
    def missing(self, sums: Sums, layer: Layer) -> str | None:
        """Why nothing can be said about the layer ("never ran", "no gradient reaches it"), or None."""


def rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` [..., width] as a matrix [positions, width], without padded positions, at least in float32."""
    flat = x.detach().flatten(0, -2) if x.ndim > 1 else x.detach().unsqueeze(0)
    if mask is not None and (x.shape[:-1] == mask.shape or (x.ndim == 2 and len(x) == mask.numel())):
        keep = mask.flatten().to(flat.device)
        flat = flat if bool(keep.all()) else flat[keep]
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def input_moment(
    layer: Layer, x: Tensor, mask: Tensor | None, batch: int, room: Room | None = None
) -> tuple[Tensor, int]:
    """`Σ x xᵀ` over the inputs of a call, n × n, and how many positions these were; see `second_moment`."""
    if mask is None and slides_everywhere(layer) and _sums_images(x):
        moment = patch_moment(x.detach(), *layer.geometry[:2])
        check_finite(moment.diagonal(), layer, "inputs", batch)
        return moment, x[:, 0].numel()
    inputs = rows(input_rows(layer, x), mask)
    return second_moment(inputs, layer, "inputs", batch, room), len(inputs)


def output_moment(layer: Layer, gradient: Tensor, batch: int, room: Room | None = None) -> Tensor:
    """`Σ g gᵀ` over the output gradients of a call, m × m; see `second_moment`."""
    if layer.form == "conv2d" and _sums_images(gradient):
        moment = patch_moment(gradient.detach())
        check_finite(moment.diagonal(), layer, "output gradients", batch)
        return moment
    return second_moment(rows(output_rows(layer, gradient), None), layer, "output gradients", batch, room)


def _sums_images(images: Tensor) -> bool:
    """Whether convolutions can sum over them: elsewhere they may round to TF32."""
    return images.ndim == 4 and images.device.type == "cpu" and images.dtype in (torch.float32, torch.float64)


def second_moment(matrix: Tensor, layer: Layer, what: str, batch: int, room: Room | None = None) -> Tensor:
    """`Σ x xᵀ` over the rows of `matrix`, in its dtype. Raises ValueError where that is not finite.

    With `room` nothing is allocated: the result lies there, until the next moment of this width.
    """
    width = matrix.shape[1]
    product = (room or Room()).square(width, matrix)
    block = max(MIRRORED_BLOCK, -(-width // 8))  # the upper triangle in strips: nearly half of the work
    for i in range(0, width, block):
        end = min(i + block, width)
        torch.mm(matrix[:, i:end].T, matrix[:, i:], out=product[i:end, i:])
        product[end:, i:end] = product[i:end, end:].T
    check_finite(product.diagonal(), layer, what, batch)
    return product


def check_finite(values: Tensor, layer: Layer, what: str, batch: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"layer {layer.name!r}: its {what} in calibration batch {batch} hold NaN or infinite values, or overflow; "
            "check the weights before this layer and the calibration data, or measure in float32"
        )
