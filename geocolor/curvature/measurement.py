"""Measuring: stream batches through a model, sum, and turn the sums into a curvature."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from geocolor import processes
from geocolor.curvature.activation import Activation
from geocolor.curvature.curvature import Curvature, damped
from geocolor.curvature.diagonal import Diagonal
from geocolor.curvature.estimate import Estimate
from geocolor.curvature.identity import Identity
from geocolor.curvature.kronecker import Kronecker
from geocolor.curvature.magnitude import Magnitude
from geocolor.curvature.observation import InputGroups, OnGradient, watched
from geocolor.curvature.shrinkage import SHRINKAGE, intensity
from geocolor.curvature.sketch import Sketch, Sketched, nystrom
from geocolor.curvature.sums import Sums, load_sums
from geocolor.journal import MEASURED, Journal
from geocolor.layers import Layer, find_layers
from geocolor.losses import Batch, Loss, device_of, loss_for, move, positions, samples_in
from geocolor.memory import give_back
from geocolor.modes import differentiable
from geocolor.progress import bar

ESTIMATES: dict[str, type[Estimate]] = {
    estimate.name: estimate for estimate in (Kronecker, Activation, Magnitude, Diagonal, Identity)
}


#: With fewer samples, prices are overfitted: on the embedded model, measured damage was 3.4 times the predicted with 8
#: sequences of 256 bytes, 1.4 times with 16, 1.5 times with 32.
WANTED_SAMPLES = 64


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss | None = None,
    *,
    layers: Sequence[Layer] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    estimate: str = "kronecker",
    damping: float = 1e-3,
    shrinkage: float = SHRINKAGE,
    draws: int = 1,
    seed: int = 0,
    progress: bool = False,
    sums: Sums | None = None,
    share_inputs: bool = True,
    journal: Journal | None = None,
) -> Curvature:
    """The curvature of a model's layers on calibration batches.

    `layers`, or else `include` and `exclude`, choose what is measured (see `find_layers`); `loss` is found from model
    and batch when None; `shrinkage` is how much of Ledoit and Wolf's intensity factors are drawn towards the identity
    (`geocolor.curvature.shrinkage`); `draws` labels are sampled per unit, keyed by `seed` and the index of the batch;
    `sums` from an earlier run are carried on with; a `journal` records the sums now and then and goes on with those it
    holds. Under an initialised `torch.distributed` each process takes every world-size-th batch of the same `batches`,
    and all get the curvature of the whole; the model may be sharded over them (FSDP2).

    Memory: the model, the graph of one batch, and the statistics. The model is left as it was found.
    """
    chosen = find_layers(model, include, exclude) if layers is None else tuple(layers)
    first = 0 if sums is None else sums.batches
    new = accumulate(
        model,
        batches,
        loss,
        chosen,
        estimate=estimate,
        draws=draws,
        seed=seed,
        first=first,
        progress=progress,
        share_inputs=share_inputs,
        journal=journal,
    )
    return finish(new if sums is None else sums + new, damping=damping, shrinkage=shrinkage)


def accumulate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss | None,
    layers: Sequence[Layer],
    *,
    estimate: str = "kronecker",
    draws: int = 1,
    seed: int = 0,
    first: int = 0,
    progress: bool = False,
    share_inputs: bool = True,
    journal: Journal | None = None,
    record: str = MEASURED,
    ranks: Mapping[str, int] | None = None,
    weights: Sequence[Tensor] = (),
    then: Callable[[Tensor, Batch, int], None] | None = None,
) -> Sums:
    """The sums of `measure` over `batches`; `first` is the index of the first batch, which keys the sampling.

    Batches whose sums the `journal` holds, under the name `record`, are passed over. `ranks` are those of the factors
    that are sketched, by "A/<layer>" and "G/<layer>" (`Kronecker`). For an estimate without gradients, the model's
    outputs on every batch, which can be differentiated in `weights`, are handed on to `then`.
    """
    how = _estimate(estimate)
    if ranks and isinstance(how, Kronecker):
        how = Kronecker(ranks=ranks)
    if draws < 1:
        raise ValueError(f"draws is {draws}; at least one label has to be sampled")
    if not how.reads_data:
        return Sums(
            how.name, "none", how.unit(loss), tuple(layers), inputs={layer.name: layer.name for layer in layers}
        )
    total = len(batches) if isinstance(batches, Sized) else None
    head, batches = _peek(batches)
    loss = loss_for(model, head, loss)
    rank, world = processes.rank(), processes.world()
    part = (journal or Journal()).part(f"{record}-{rank}-of-{world}.safetensors")
    sums = Sums(how.name, loss.name, how.unit(loss), tuple(layers), seed=seed)
    if journal is not None and part.path is not None and part.there:
        sums = load_sums(part.path)
    if processes.is_sharded(model) and len(set(processes.gathered(sums.batches))) > 1:
        sums = Sums(how.name, loss.name, how.unit(loss), tuple(layers), seed=seed)  # they can only run together
    if journal is not None and sums.batches:
        journal.say(f"going on: measured {sums.batches} of {'the' if total is None else -(-total // world)} batches")
    done = sums.batches
    groups = InputGroups(sums.inputs, share_inputs)
    mask: Tensor | None = None
    counted = True

    def on_call(layer: Layer, x: Tensor) -> OnGradient | None:
        if not counted:
            return _ignored if how.needs_gradients else None
        return how.observe(sums, layer, x, mask, groups.reads(layer, x))

    def run(batch: Batch, index: int) -> Tensor:
        outputs = loss.forward(model, batch)
        for draw in range(draws if how.needs_gradients else 0):
            pseudo, _ = loss.sample(outputs, batch, _generator(device, seed, index, draw))
            _backward(pseudo, leaves, retain=draw + 1 < draws)
        leaves.clear()
        return outputs

    device = device_of(model)
    draws = draws if how.needs_gradients else 1
    with (
        watched(model, layers, on_call, gradients=how.needs_gradients or then is not None) as leaves,
        differentiable(weights),
        bar("measuring curvature", total, wanted=progress and rank == 0) as advance,
    ):
        seen = own = 0
        for index, batch in enumerate(batches, start=first):
            seen += 1
            own += index % world == rank
            if index % world == rank and (index - first) // world >= done:
                batch = move(batch, device)
                mask = positions(batch)
                outputs = run(batch, index)
                if not groups.settle():
                    sums.tensors.clear()
                    sums.positions.clear()
                    groups.new_batch()
                    outputs = run(batch, index)
                groups.end_batch()
                groups.new_batch()
                if then is not None:
                    then(outputs, batch, index)
                units = loss.units(outputs, batch)
                sums.units += units
                sums.sampled += units * draws
                sums.samples += samples_in(batch)
                sums.batches += 1
                part.write_now_and_then(sums.save)
            advance()
        if own * world < seen and processes.is_sharded(model):
            counted = False  # others still run a batch, and need this one's part of the weights for it
            run(move(batch, device), index)
    if sums.batches > done:
        part.write(sums.save)
    return sums.all_reduce() if world > 1 else sums


def _estimate(name: str) -> Estimate:
    if name not in ESTIMATES:
        raise ValueError(f"no curvature estimate is called {name!r}; there are {', '.join(ESTIMATES)}")
    return ESTIMATES[name]()


class NothingMeasuredError(ValueError):
    """No layer in scope is called, or has a gradient."""


def finish(sums: Sums, *, damping: float = 1e-3, shrinkage: float = SHRINKAGE, consume: bool = False) -> Curvature:
    """Divides, shrinks, damps (`+ damping · mean eigenvalue · I`), drops the layers about which the sums say nothing.

    `shrinkage` is the fraction of Ledoit and Wolf's intensity taken (`geocolor.curvature.shrinkage`).

    With `consume` the sums are let go of one by one, and worth nothing afterwards: two sets need not fit in memory.
    Warns about dropped layers and about factors whose rank is bounded by too few samples.
    Raises ValueError when no layer is left.
    """
    if damping < 0:
        raise ValueError(f"damping is {damping}; it must be at least 0")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; it must lie between 0 and 1")
    how = _estimate(sums.estimate)
    draws = sums.sampled // sums.units if sums.units else 1
    reasons = {layer.name: how.missing(sums, layer) for layer in sums.layers}
    dropped = [f"{name!r} ({reason})" for name, reason in reasons.items() if reason]
    layers = tuple(layer for layer in sums.layers if reasons[layer.name] is None)
    if not layers:
        raise NothingMeasuredError(f"no layer can be measured: {some(dropped)}; does the loss depend on these layers?")
    if dropped:
        warnings.warn(f"left out of the curvature, and so left as they are: {some(dropped)}", stacklevel=3)
    by_name = {layer.name: layer for layer in sums.layers}
    identities: dict[int, Tensor] = {}
    inputs: dict[str, str] = {}
    renamed: dict[str, str] = {}  # the first layer of a group may have been dropped
    A: dict[str, Tensor] = {}
    G: dict[str, Tensor] = {}
    sketches = _sketches(sums, damping)
    wide_A: dict[str, Sketch] = {}
    wide_G: dict[str, Sketch] = {}
    few: list[str] = []
    for layer in layers:
        group = sums.inputs[layer.name]
        first = inputs[layer.name] = renamed.setdefault(group, layer.name)
        seen = sums.positions.get(group, 0)
        if f"A/{group}" in sketches:
            wide_A[layer.name] = sketches[f"A/{group}"]
        elif first != layer.name:
            A[layer.name] = A[first]
        elif (factor := how.input_factor(sums, by_name[group])) is None:
            A[layer.name] = identities.setdefault(layer.n, torch.eye(layer.n, dtype=torch.float64))
        else:
            noise = intensity(factor, sums.positions[group], sums.tensors.get(f"VA/{group}"))
            A[layer.name] = damped(factor, damping, shrinkage * noise)
            if consume:
                sums.tensors.pop(f"A/{group}", None)
                give_back()
            if seen < layer.n:
                few.append(_deficient(layer, "covariance", seen, layer.n))
        if f"G/{layer.name}" in sketches:
            wide_G[layer.name] = sketches[f"G/{layer.name}"]
        elif (factor := how.output_factor(sums, layer)) is None:
            G[layer.name] = identities.setdefault(layer.m, torch.eye(layer.m, dtype=torch.float64))
        else:
            noise = intensity(factor, sums.sampled, sums.tensors.get(f"VG/{layer.name}"))
            G[layer.name] = damped(factor, damping, shrinkage * noise)
            if consume:
                sums.tensors.pop(f"G/{layer.name}", None)
                give_back()
            bound = seen * draws
            if bound < layer.m and how.name == Kronecker.name:
                few.append(_deficient(layer, "output-gradient covariance", bound, layer.m))
    if how.reads_data and sums.samples < WANTED_SAMPLES:
        warnings.warn(
            f"calibrated on {sums.samples} sequences or samples, {WANTED_SAMPLES} or more are wanted: with so few, "
            "predicted damage comes out far too low. Pass more data, or cut it into shorter sequences",
            stacklevel=3,
        )
    if few:
        more = f"; and {len(few) - 1} more such factors" if len(few) > 1 else ""
        warnings.warn(f"{few[0]}; pass more samples or raise damping{more}", stacklevel=3)
    return Curvature(
        layers=layers,
        A=Sketched(A, wide_A) if wide_A else A,
        G=Sketched(G, wide_G) if wide_G else G,
        estimate=sums.estimate,
        loss=sums.loss,
        unit=sums.unit,
        units=sums.units,
        positions={layer.name: sums.positions.get(sums.inputs[layer.name], 0) for layer in layers},
        samples=sums.samples,
        damping=damping,
        inputs=inputs,
        draws=draws,
        seed=sums.seed,
    )


def _sketches(sums: Sums, damping: float) -> dict[str, Sketch]:
    """The sketched factors by key, divided and damped; warns of what they leave out."""
    found: dict[str, Sketch] = {}
    for key in [key.removeprefix("S") for key in sums.tensors if key.startswith(("SA/", "SG/"))]:
        count = sums.positions[key.removeprefix("A/")] if key.startswith("A/") else sums.sampled
        product, diagonal = (sums.tensors[f"{part}{key}"] / count for part in "SD")  # on the device of the model
        sketch = nystrom(product, diagonal, key)
        found[key] = replace(sketch, low=sketch.low.cpu(), diagonal=sketch.diagonal.cpu()).lifted(damping)
    if found:
        worst = max(found, key=lambda key: found[key].outside)
        warnings.warn(
            f"second moments that do not fit are kept as a low rank and a diagonal: {some(list(found))}; at most "
            f"{found[worst].outside:.1%} of the trace is in the diagonal alone ({worst}, rank "
            f"{found[worst].low.shape[1]}). More memory keeps them whole",
            stacklevel=4,
        )
    return found


def _backward(pseudo: Tensor, leaves: list[Tensor], *, retain: bool) -> None:
    if not leaves or not pseudo.requires_grad:
        raise ValueError(
            "the loss does not depend on any of the layers in scope, or the model runs without gradients; "
            "check include, exclude and the loss"
        )
    torch.autograd.backward(pseudo, retain_graph=retain, inputs=leaves)


def _generator(device: torch.device, seed: int, index: int, draw: int) -> torch.Generator:
    """Keyed by the batch, not by its place in the run, so that any split of the data samples the same labels."""
    key = ((seed * 1_000_003 + index) * 1_009 + draw) % 2**63
    return torch.Generator(device).manual_seed(key)


def _peek(batches: Iterable[Batch]) -> tuple[Batch, Iterator[Batch]]:
    iterator = iter(batches)
    for head in iterator:
        return head, chain([head], iterator)
    raise ValueError("there are no calibration batches; pass at least one")


def _ignored(_: Tensor) -> None: ...


def _deficient(layer: Layer, what: str, rank: int, size: int) -> str:
    return f"layer {layer.name!r}: calibration {what} has rank ≤ {rank} of {size}"


def some(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
