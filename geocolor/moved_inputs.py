"""Second moments of inputs, moved towards those of a smaller model: in memory, or window by window in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from geocolor import processes
from geocolor.curvature import Curvature, accumulate
from geocolor.curvature.activation import Activation
from geocolor.curvature.curvature import damped
from geocolor.curvature.on_disk import OnDisk
from geocolor.curvature.windows import Union, bytes_of, temporary_folder
from geocolor.journal import Journal
from geocolor.layers import Layer
from geocolor.losses import Batch, Loss
from geocolor.modes import evaluating
from geocolor.stand_ins import StandIn, replaced
from geocolor.tensor_files import TensorFile, write_tensors

#: Estimates whose `A` is the second moment of a layer's inputs.
MOMENTS = ("kronecker", "activation")

KIND = "inputs"


def moved_inputs(
    model: nn.Module,
    stand_ins: Sequence[StandIn],
    curvature: Curvature,
    batches: Sequence[Batch],
    loss: Loss,
    step: float,
    layers: Sequence[Layer] | None = None,
    weights: Sequence[Tensor] = (),
    then: Callable[[Tensor, Batch, int], None] | None = None,
) -> dict[str, Tensor]:
    """`(1 − step) A + step A'` of every group of `layers` that reads one input (all layers when None), by its first.

    `A'` is the second moment of what they read among the stand-ins, damped as `A` is. Nothing where `A` is no moment.
    Outputs among the stand-ins can be looked at too: `weights` and `then` are those of `accumulate`.
    """
    if curvature.estimate not in MOMENTS:
        return {}
    layers = curvature.layers if layers is None else layers
    with replaced(model, stand_ins), evaluating(model):
        sums = accumulate(model, batches, loss, layers, estimate=Activation.name, weights=weights, then=then)
    moved: dict[str, Tensor] = {}
    for first in dict.fromkeys(curvature.inputs[layer.name] for layer in layers):
        moved[first] = curvature.A[first]
        layer = curvature.layer(sums.inputs.get(first, first))
        seen = Activation().input_factor(sums, layer) if Activation().missing(sums, layer) is None else None
        if seen is not None:  # experts may read nothing of a part of the data
            moved[first] = (1 - step) * moved[first] + step * damped(seen, curvature.damping)
    return moved


def moved_on_disk(A: OnDisk, curvature: Curvature, journal: Journal, move: Move) -> OnDisk:
    """What `move` makes of a window of layers at a time, in a file of the journal, or a temporary one."""
    folder = journal.folder or temporary_folder()
    look, process = f"look-{curvature.damping:g}-{curvature.rounds}", f"{processes.rank()}-of-{processes.world()}"
    path = folder / f"{look}-{KIND}-{process}.safetensors"
    if not all(processes.gathered(path.is_file())):
        with tempfile.TemporaryDirectory(dir=folder) as parts:
            files: list[TensorFile] = []
            for window in _windows(curvature, A.memory):
                part = Path(parts) / f"{len(files)}.safetensors"
                write_tensors(part, KIND, move(window), {})
                files.append(TensorFile(part, KIND))
            shapes = {first: (curvature.layer(first).n,) * 2 for file in files for first in file}
            write_tensors(path, KIND, Union(files), {}, shapes)
    return replace(A, file=TensorFile(path, KIND), tensors=dict(curvature.inputs), scales={}, lift=0.0)


Move = Callable[[Sequence[Layer]], Mapping[str, Tensor]]


def _windows(curvature: Curvature, memory: int) -> list[list[Layer]]:
    """The first layers of all groups, so many at a time that what is summed fits, but at least one."""
    found: list[list[Layer]] = []
    for first in dict.fromkeys(curvature.inputs.values()):
        layer = curvature.layer(first)
        if not found or bytes_of([*found[-1], layer], curvature.inputs) > memory:
            found.append([])
        found[-1].append(layer)
    return found
