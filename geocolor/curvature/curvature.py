"""The value type: Kronecker factors A and G of every layer's block of the Hessian."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from geocolor.curvature.on_disk import OnDisk
from geocolor.curvature.sketch import Sketch, Sketchable, Sketched, rank_of
from geocolor.layers import Layer
from geocolor.schema import Count, Frozen, NamedShape, Size, Text, validated
from geocolor.tensor_files import AGAIN, TensorFile, check_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class Curvature:
    """`H ≈ G ⊗ A` for each layer: changing `W` by `δ` costs `½ δᵀHδ = ½ tr(G δ A δᵀ)` of the loss (mean over units).

    `A[name]` = Σ x xᵀ / positions, n × n, and `G[name]` = Σ g gᵀ / units, m × m, symmetric, float64, on the CPU,
    damping included; in memory, or read from a file when asked for (`load_curvature`). Layers that read the very same
    input tensor have the same value in `inputs`, the name of the first of them, and in memory hold the same `A` object.
    `unit` is that of a damage, `units` how many the loss was averaged over (predicted tokens, samples, sentences),
    `positions` how many inputs `x` each layer has seen, `rounds` how many looks from smaller models have moved it
    (`geocolor.calibrate`), `fingerprint` the hash of the weights it was measured on (`geocolor.plans`), where known.
    """

    layers: tuple[Layer, ...]
    A: Mapping[str, Tensor]
    G: Mapping[str, Tensor]
    estimate: str
    loss: str
    unit: str
    units: int
    positions: Mapping[str, int]
    samples: int
    damping: float
    inputs: Mapping[str, str]
    draws: int = 1
    seed: int = 0
    rounds: int = 0
    fingerprint: str | None = None
    _names: Mapping[str, Layer] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", {layer.name: layer for layer in self.layers})

    def layer(self, name: str) -> Layer:
        try:
            return self._names[name]
        except KeyError:
            raise KeyError(
                f"no curvature of layer {name!r} was measured; measured are {len(self.layers)} layers"
            ) from None

    def damage(self, name: str, delta: Tensor) -> float:
        """Predicted rise of the loss, `½ tr(G δ A δᵀ)`, for a change `delta` (m × n) of the weight of layer `name`."""
        layer = self.layer(name)
        if delta.shape != (layer.m, layer.n):
            raise ValueError(f"layer {name!r}: the change is {tuple(delta.shape)}, the weight {layer.m} × {layer.n}")
        change = delta.detach().to(self.A[name])
        return 0.5 * float(((self.G[name] @ change) * (change @ self.A[name])).sum())

    def damped_to(self, damping: float) -> Curvature:
        """The same sums under more damping: every factor has `damping` times the mean of its undamped diagonal added.

        Raises `ValueError` for less damping than there is.
        """
        if damping < self.damping:
            raise ValueError(f"damping can only grow: it is {self.damping:g}, asked for was {damping:g}")
        lift = (damping - self.damping) / (1 + self.damping)  # relative to the diagonal as it is
        if isinstance(self.A, OnDisk) and isinstance(self.G, OnDisk):
            return replace(self, A=self.A.lifted(lift), G=self.G.lifted(lift), damping=damping)
        known: dict[int, Tensor] = {}

        def more(factor: Tensor) -> Tensor:
            if id(factor) not in known:
                mean = float(factor.diagonal().mean())
                known[id(factor)] = factor + lift * mean * torch.eye(len(factor)).to(factor)
            return known[id(factor)]

        A = {name: more(factor) for name, factor in self.A.items()}
        G = {name: more(factor) for name, factor in self.G.items()}
        return replace(self, A=A, G=G, damping=damping)

    def scaled(self, scales: Mapping[str, float]) -> Curvature:
        """The curvature with the `G` of each layer multiplied; layers that shared a `G` object no longer do."""
        if isinstance(self.G, OnDisk):
            return replace(self, G=self.G.scaled(scales))
        return replace(self, G={name: factor * scales.get(name, 1.0) for name, factor in self.G.items()})

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with its metadata inside; the old file stays until the new one is complete."""
        metadata = {
            "layers": [asdict(layer) for layer in self.layers],
            "positions": dict(self.positions),
            "inputs": dict(self.inputs),
        }
        for name in ("estimate", "loss", "unit", "units", "samples", "damping", "draws", "seed", "rounds"):
            metadata[name] = getattr(self, name)
        if self.fingerprint is not None:
            metadata["fingerprint"] = self.fingerprint
        ranks = {f"A/{first}": rank_of(self.A, first) for first in dict.fromkeys(self.inputs.values())}
        ranks |= {f"G/{layer.name}": rank_of(self.G, layer.name) for layer in self.layers}
        metadata["sketches"] = sketches = {key: rank for key, rank in ranks.items() if rank is not None}
        shapes = shapes_of(self.layers, self.inputs, sketches)
        write_tensors(Path(path), "curvature", _Stored(self.A, self.G, shapes), metadata, shapes)


@dataclass(frozen=True)
class _Stored(Mapping[str, Tensor]):
    """The factors by their names in a file: "A/<layer>", or of a sketch its parts, "UA/<layer>" and "DA/<layer>"."""

    A: Mapping[str, Tensor]
    G: Mapping[str, Tensor]
    names: Mapping[str, tuple[int, ...]]

    def __getitem__(self, key: str) -> Tensor:
        side, _, name = key.partition("/")
        factors = self.A if side.endswith("A") else self.G
        if len(side) == 1:
            return factors[name]
        assert isinstance(factors, Sketchable)
        sketch = factors.sketch(name)
        return sketch.low if side.startswith("U") else sketch.diagonal

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def shapes_of(
    layers: Sequence[Layer], inputs: Mapping[str, str], sketches: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The tensors of a curvature's file: a `G` for every layer, an `A` for the first layer of every group.

    `sketches` are the ranks of those that are sketched.
    """
    widths = {f"G/{layer.name}": layer.m for layer in layers} | {f"A/{inputs[layer.name]}": layer.n for layer in layers}
    shapes: dict[str, tuple[int, ...]] = {}
    for key, width in widths.items():
        if key in sketches:
            shapes |= {f"U{key}": (width, sketches[key]), f"D{key}": (width,)}
        else:
            shapes[key] = (width, width)
    return shapes


class _Header(Frozen):
    layers: tuple[NamedShape, ...] = Field(min_length=1)
    positions: dict[Text, Count]
    inputs: dict[Text, Text]
    estimate: Text
    loss: Text
    unit: Text
    units: Count
    samples: Count
    damping: float = Field(ge=0)
    draws: Count
    seed: int
    rounds: Count
    fingerprint: Text | None = None
    sketches: dict[Text, Size] = Field(default_factory=dict)


def load_curvature(path: str | Path, memory: int | None = None) -> Curvature:
    """Reads what `Curvature.save` wrote.

    With `memory`, factors are read from the file when they are needed, and what is computed of them for pricing is kept
    within so many bytes (`geocolor.curvature.on_disk`): the file must stay as long as the curvature is used.
    Raises FileNotFoundError, or ValueError naming the file where it is damaged, of another kind or incomplete.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no curvature file at {path}: `geocolor measure` and `geocolor plan` write one")
    file = TensorFile(path, "curvature")
    header = validated(_Header, file.metadata, str(path), "the header", AGAIN)
    layers = layers_from(header.layers, path)
    check_inputs(header.inputs, layers, path, complete=True)
    shapes = shapes_of(layers, header.inputs, header.sketches)
    in_A = {layer.name: f"A/{header.inputs[layer.name]}" for layer in layers}
    in_G = {layer.name: f"G/{layer.name}" for layer in layers}
    A: Mapping[str, Tensor]
    G: Mapping[str, Tensor]
    if memory is None:
        tensors = dict(file)
        check_tensors(path, tensors, shapes)
        A, G = _in_memory(tensors, in_A), _in_memory(tensors, in_G)
    else:
        check_tensors(path, file, shapes)
        A, G = OnDisk(file, in_A, memory), OnDisk(file, in_G, memory)
    return Curvature(
        layers=layers, A=A, G=G, **{name: value for name, value in header if name not in ("layers", "sketches")}
    )


def _in_memory(tensors: Mapping[str, Tensor], keys: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Factors by layer, `keys` being their names in the file."""
    exact = {name: tensors[key] for name, key in keys.items() if key in tensors}
    found: dict[str, Sketch] = {}
    for key in keys.values():
        if key not in tensors and key not in found:
            found[key] = Sketch(tensors[f"U{key}"], tensors[f"D{key}"])
    return Sketched(exact, {name: found[key] for name, key in keys.items() if key in found}) if found else exact


def layers_from(entries: Sequence[NamedShape], path: Path) -> tuple[Layer, ...]:
    """Raises ValueError where two have one name."""
    layers = tuple(entry.layer() for entry in entries)
    twice = [name for name, count in Counter(layer.name for layer in layers).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: layer {twice[0]!r} is there twice. {AGAIN}")
    return layers


def check_inputs(inputs: Mapping[str, str], layers: Sequence[Layer], path: Path, *, complete: bool) -> None:
    """Raise ValueError where groups of layers with one input make no sense; `complete`: every layer is in one."""
    sides = {layer.name: layer.in_side for layer in layers}
    for name, first in inputs.items():
        if name not in sides or sides[name] != sides.get(first) or inputs.get(first) != first:
            raise ValueError(f"{path}: layer {name!r} cannot have the input of {first!r}. {AGAIN}")
    missing = [name for name in sides if name not in inputs]
    if complete and missing:
        raise ValueError(f"{path}: nothing is said of the input of layer {missing[0]!r}. {AGAIN}")


def damped(factor: Tensor, damping: float, shrinkage: float = 0.0) -> Tensor:
    """`(1 − shrinkage) · factor + (shrinkage + damping) · mean(diag) · I`: no eigenvalue is next to zero."""
    result = factor + factor.T
    result *= (1 - shrinkage) / 2
    result.diagonal().add_((shrinkage + damping) * float(factor.diagonal().mean()))
    return result.to("cpu", torch.float64)
