"""Linear maps held as factors, one class a basis kind (DESIGN §4)."""

import math

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from geocolor.bases import FactoredKind
from geocolor.layers import Form, Layer, as_stored
from geocolor.shared_basis import SharedBasis


class FactoredLayer(nn.Module):
    """A linear map held as factors; `layer` says what stood in its place (its name is the one in this model).

    Subclasses, one a kind, hold `coefficients` (the layer's own) and `right` and/or `left` (shared).
    """

    kind: FactoredKind
    coefficients: nn.Linear | nn.Conv2d
    bias: Tensor | None

    def __init__(self, layer: Layer, coefficients: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.coefficients = coefficients
        if layer.form == "conv2d":
            kernel, stride, padding, dilation = windows(layer.geometry)
            self.in_channels, self.out_channels = inputs_of(layer), layer.m
            self.kernel_size, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
            self.groups, self.padding_mode = 1, "zeros"
        else:
            self.in_features, self.out_features = layer.n, layer.m
        if layer.form == "conv1d":
            self.nx, self.nf = layer.n, layer.m

    def bases(self) -> dict[str, SharedBasis]:
        """The shared bases by side: `right` reads the input, `left` writes the output."""
        return {side: basis for side in ("right", "left") if (basis := getattr(self, side, None)) is not None}

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The `m × n` matrix these factors stand for, multiplied in `dtype`."""
        bases = self.bases()
        for module in (self.coefficients, *(basis.map for basis in bases.values())):
            if type(module) not in (nn.Linear, nn.Conv2d):
                raise ValueError(
                    f"a factor is a {type(module).__name__}, not a plain linear map, and cannot be multiplied out: "
                    "merge or remove adapters and quantization first"
                )
        product = _matrix(self.coefficients, dtype)
        if "right" in bases:
            product = product @ _matrix(bases["right"].map, dtype)
        if "left" in bases:
            product = _matrix(bases["left"].map, dtype) @ product
        return product

    @property
    def weight(self) -> Tensor:
        """What models that read `layer.weight` expect, in its original layout. Multiplied out anew at every access.

        Real, not a stand-in: its dtype, device, value and gradient are right (models compare `weight.dtype`; torch's
        attention reads `out_proj.weight`). Writing into it changes nothing.
        """
        return as_stored(self.layer, self.dense())

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{side} rank {basis_rank(basis.map, side)}" for side, basis in self.bases().items())
        return f"kind={self.kind}, {self.layer.m} × {self.layer.n}, {ranks}"


class InLayer(FactoredLayer):
    """`y = C (Bᵀ x) + bias`; the bias lives in the coefficients, where it is added for free."""

    kind: FactoredKind = "in"

    def __init__(self, layer: Layer, coefficients: nn.Linear | nn.Conv2d, right: SharedBasis) -> None:
        super().__init__(layer, coefficients)
        self.right = right
        right.readers += 1

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.coefficients.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.coefficients(self.right(x, self.layer))
        return y


class OutLayer(FactoredLayer):
    """`y = B (C x) + bias`."""

    kind: FactoredKind = "out"

    def __init__(
        self, layer: Layer, coefficients: nn.Linear | nn.Conv2d, left: SharedBasis, bias: nn.Parameter | None
    ) -> None:
        super().__init__(layer, coefficients)
        self.left = left
        left.readers += 1
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._add_bias(self.left(self.coefficients(x)))

    def _add_bias(self, y: Tensor) -> Tensor:
        if self.bias is None:
            return y
        return y + (self.bias[:, None, None] if self.layer.form == "conv2d" else self.bias)


class BothLayer(OutLayer):
    """`y = U (S (Vᵀ x)) + bias`."""

    kind: FactoredKind = "both"

    def __init__(
        self,
        layer: Layer,
        coefficients: nn.Linear | nn.Conv2d,
        left: SharedBasis,
        right: SharedBasis,
        bias: nn.Parameter | None,
    ) -> None:
        super().__init__(layer, coefficients, left, bias)
        self.right = right
        right.readers += 1

    def forward(self, x: Tensor) -> Tensor:
        return self._add_bias(self.left(self.coefficients(self.right(x, self.layer))))


def _matrix(map: nn.Module, dtype: torch.dtype | None) -> Tensor:
    """The weight of a factor as a matrix; of a quantized one the values it stands for."""
    weight = map.weight
    assert isinstance(weight, Tensor)
    plain = weight if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()
    return plain.flatten(1).to(dtype)


def dense_module(factored: FactoredLayer) -> nn.Module:
    """A layer of the original type holding the product of the factors, taken in float64."""
    layer, bias, like = factored.layer, factored.bias, factored.coefficients.weight
    module: nn.Module
    if layer.form == "conv1d":
        module = Conv1D(layer.m, layer.n).to(dtype=like.dtype, device=like.device)
    else:
        module = linear_map(layer.form, inputs_of(layer), layer.m, layer.geometry, bias=bias is not None, like=like)
    with torch.no_grad():
        module.weight.copy_(as_stored(layer, factored.dense(torch.float64)))  # type: ignore[operator]
        if bias is not None:
            module.bias.copy_(bias)  # type: ignore[operator]
    return module.train(factored.training)


def linear_map(
    form: Form, inputs: int, outputs: int, geometry: tuple[int, ...] = (), *, bias: bool = False, like: Tensor
) -> nn.Linear | nn.Conv2d:
    """A map with unset values (no random numbers drawn), in dtype and device of `like`.

    A convolution without `geometry` is 1 × 1.
    """
    with torch.device("meta"):
        made: nn.Linear | nn.Conv2d
        if form == "conv2d":
            shape = windows(geometry or (1, 1, 1, 1, 0, 0, 1, 1))
            made = nn.Conv2d(inputs, outputs, *shape, bias=bias, dtype=like.dtype)
        else:
            made = nn.Linear(inputs, outputs, bias=bias, dtype=like.dtype)
    return made.to_empty(device=like.device)


def windows(geometry: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Kernel, stride, padding and dilation of a layer's `geometry`."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    return (kh, kw), (sh, sw), (ph, pw), (dh, dw)


def basis_rank(map: nn.Module, side: str) -> int:
    """The inner width of a basis; also where adapters wrap the map."""
    if isinstance(map, nn.Conv2d):
        return map.out_channels if side == "right" else map.in_channels
    return int(map.out_features if side == "right" else map.in_features)  # type: ignore[arg-type]


def inputs_of(layer: Layer) -> int:
    """Input features, or input channels of a convolution."""
    return layer.n // math.prod(layer.geometry[:2]) if layer.form == "conv2d" else layer.n
