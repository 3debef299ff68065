"""What a command will take, said before it starts: time by step, peak memory and disk.

The pieces of the work are counted from shapes, and each kind of piece is timed once (`geocolor.pace`). What a search
takes is not foreseen: it is counted with all of its time limit where the problem is too large to be settled at once.
Measured against what happened: `python -m benchmarks.forecast`.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from geocolor.calibration import TRIED_TOGETHER
from geocolor.curvature import Curvature
from geocolor.divergence import KEPT_OUTPUTS, MOST_SAMPLES, MOST_UNITS, spread
from geocolor.graph import precision
from geocolor.habits import neighbours
from geocolor.layers import Layer, find_layers
from geocolor.losses import Batch, Loss, device_of, loss_for, move, samples_in
from geocolor.mapped import unnamed_bytes
from geocolor.memory import available, peak, resident
from geocolor.metrics import size_of
from geocolor.modes import evaluating
from geocolor.moved_inputs import MOMENTS
from geocolor.pace import KnownFactors, Pace, layer_paces, pace_of, positions_in
from geocolor.parameters import parameter_bytes
from geocolor.pipeline import CALIBRATED_AT, UPDATED_BELOW
from geocolor.plans import Plan
from geocolor.presets import GEO_SHARING, SEARCHED
from geocolor.quantities import size
from geocolor.rate_distortion import compatible
from geocolor.refinement import RefineSettings, trainable
from geocolor.report import Report
from geocolor.settings import Settings
from solvers.auto import EXACT_GROUP_ITEMS
from solvers.subset_dp import linked_parts

DOUBLE = 8

#: Rounds of colorings after the first one: most runs see after so many, or before, that no more are worth it.
USUAL_ROUNDS = 1

#: Forward passes that a look takes beside the reference: one for the inputs, unless that is also the one that is
#: differentiated, which takes four with what is done on the way back.
LOOK_PASSES = 5

#: Bytes of a point of a hull in memory and in a file.
POINT, POINT_ON_DISK = 52, 33

#: What drawing a plan and writing the files take, with loading what draws, and what a picture and small files need.
PICTURE_SECONDS, PICTURE_MEMORY, SMALL_FILES = 1.0, 100_000_000, 1_000_000


@dataclass(frozen=True)
class Forecast:
    """Seconds by step; bytes that the whole process holds at its peak, and that lie on disk at most.

    `search` is the part of the seconds that the solver may take at most and may not need; `written` the part of the
    disk that is taken already, by weights that lie in files while memory is bounded.
    """

    seconds: Mapping[str, float]
    search: float
    memory: int
    disk: int
    written: int = 0

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def report(self) -> Report:
        return {
            "seconds": dict(self.seconds),
            "total_seconds": self.total,
            "search_seconds_at_most": self.search,
            "memory_bytes": self.memory,
            "disk_bytes": self.disk,
        }


def forecast(
    model: nn.Module,
    calibration: Sequence[Batch],
    settings: Settings,
    *,
    test: Sequence[Batch] | None = None,
    loss: Loss | None = None,
    refinement: RefineSettings | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Forecast:
    """Of `Pipeline.prepared` with these arguments; with `test` data, of `compress_into`.

    Raises `ValueError` for the preset "geo-sharing": how many Hessian-vector products its axes take is not known.
    """
    work = timed_work(model, calibration, settings, loss, timer)
    pace, bounded, powers = work.pace, settings.size, settings.powers
    searched, calibrated = settings.preset == SEARCHED, settings.preset == SEARCHED and settings.rounds > 0
    seconds = {"measure": pace.measured * positions_in(calibration)}
    if calibrated:
        seconds["calibrate"] = work.calibrating()
    seconds["price"] = work.reading()  # what is computed of layers is asked for by the plan
    search = work.search() if searched else 0.0
    seconds["plan"] = search + (pace.pairs if searched and settings.solver != "private" else work.spectra())
    if calibrated:
        rounds = min(settings.rounds, USUAL_ROUNDS) if searched and bounded is not None else 0
        seconds["calibrate"] += rounds * work.looking()
        seconds["price"] += rounds * work.reading()
        seconds["plan"] += rounds * ((search + pace.pairs) / len(powers) if search else work.spectra())
        seconds["verify"] = work.verifying(2 * len(powers) + 2 * rounds)
    if test is None:
        seconds["save"] = PICTURE_SECONDS
    else:
        seconds["apply"] = work.applying()
        if calibrated and bounded is not None and bounded <= UPDATED_BELOW and settings.trust_region is None:
            seconds["update"] = work.updating()
        if refinement is not None:
            seconds["refine"] = work.refining(refinement)
        seconds["save and load"] = PICTURE_SECONDS
        seconds["evaluate"] = pace.forward * (3 * positions_in(test) + 12 * positions_in(test[:1]))
    memory = work.memory(searched, calibrated, test, refinement is not None) + PICTURE_MEMORY
    updated = "update" in seconds
    disk = work.disk(searched, test is not None, refinement is not None, updated)
    return Forecast(seconds, search, memory, disk + work.written, work.written)


def forecast_measuring(
    model: nn.Module,
    calibration: Sequence[Batch],
    settings: Settings,
    *,
    pairs: bool = True,
    loss: Loss | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Forecast:
    """Of `measure_into` in one process."""
    work = timed_work(model, calibration, settings, loss, timer)
    seconds = {"measure": work.pace.measured * positions_in(calibration)}
    if settings.rounds:
        seconds["calibrate"] = work.calibrating()
    seconds["price"] = work.reading() + (work.pace.pairs if pairs else 0.0)
    disk = work.disk(pairs, False, False) + round(work.hulls_on_disk if pairs else 0)
    return Forecast(seconds, 0.0, work.memory(pairs, False, None, False), disk + work.written, work.written)


def timed_work(
    model: nn.Module,
    calibration: Sequence[Batch],
    settings: Settings,
    loss: Loss | None,
    timer: Callable[[], float],
) -> _Work:
    """The work of a run at this machine's pace."""
    if settings.preset == GEO_SHARING:
        raise ValueError(f"what --preset {GEO_SHARING} takes cannot be foreseen: its axes are found by iteration")
    loss = loss_for(model, calibration[0], loss)
    layers = find_layers(model, settings.include, settings.exclude)
    pace = pace_of(model, layers, typical(calibration), settings, loss, settings.powers, timer)
    return _Work(model, [layer for layer in layers if layer.name in pace.layers], calibration, settings, pace)


def forecast_applying(
    model: nn.Module,
    plan: Plan,
    curvature: Curvature,
    *,
    timer: Callable[[], float] = time.perf_counter,
) -> Forecast:
    """Of `apply` in place with this plan and a journal, and of saving the result."""
    classes = [cls for cls in plan.classes if cls.kind != "dense"]
    factored = {name for cls in classes for name in cls.layers}
    layers = [layer for layer in plan.shareable_layers() if layer.name in factored]
    known = KnownFactors(curvature.A, curvature.G, curvature.inputs)
    paces = layer_paces(model, layers, known, plan.kept, timer).values()
    factors = precision(layers).itemsize * sum(cls.parameters for cls in classes)
    saved = parameter_bytes(model) * plan.kept
    seconds = {
        "apply": sum(pace.fit for pace in paces),
        "save": PICTURE_SECONDS,
    }
    sizes = {layer.name: size_of(layer) for layer in layers}
    one = max((sum(sizes[name] for name in cls.layers) for cls in classes), default=0)
    memory = max(peak(), resident() + 2 * one) + PICTURE_MEMORY
    written = unnamed_bytes(model)
    return Forecast(seconds, 0.0, memory, round(factors + saved + SMALL_FILES) + written, written)


def forecast_refinement(
    model: nn.Module,
    dense: nn.Module,
    calibration: Sequence[Batch],
    settings: RefineSettings,
    test: Sequence[Batch],
    *,
    loss: Loss | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Forecast:
    """Of `refine` with these arguments, and of comparing the result with the dense model on `test` data."""
    loss = loss_for(dense, calibration[0], loss)
    batch = move(typical(calibration), device_of(dense))
    trained = list(trainable(model, norms=settings.norms).values())
    with evaluating(dense):
        reference = loss.forward(dense, batch)
        started = timer()
        loss.forward(dense, batch)
        forward = (timer() - started) / positions_in([batch])
    with evaluating(model, gradients=True):
        started = timer()
        total, _ = loss.divergence(loss.forward(model, batch), reference, batch)
        if total.requires_grad:  # a batch of other experts meets no factored layer
            torch.autograd.grad(total, trained, allow_unused=True)
        both = (timer() - started) / positions_in([batch])
    size = sum(parameter.numel() for parameter in trained)
    positions = positions_in(calibration)
    judged = (settings.holdout or 1.0) * positions
    looks = 1 + settings.steps / settings.evaluate_every
    seconds = {
        "refine": settings.steps * (forward + both) * positions / len(calibration) + 2 * looks * judged * forward,
        "save and load": PICTURE_SECONDS,
        "evaluate": forward * (3 * positions_in(test) + 12 * positions_in(test[:1])),
    }
    memory = max(peak(), resident() + 16 * size + parameter_bytes(model))
    return Forecast(seconds, 0.0, memory, 2 * 16 * size + parameter_bytes(model) + SMALL_FILES)


def lacking(expected: Forecast, out: Path) -> list[str]:
    """Sentences about memory or disk that the machine lacks for it; `out` is where the result will lie."""
    said = []
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    free, memory = shutil.disk_usage(place).free, available()
    if (disk := expected.disk - expected.written) > free:
        said.append(
            f"{size(disk)} of disk are expected to be needed, {size(free)} are free in {place}: free some, or "
            "choose another output folder. What is finished is kept when the disk is full"
        )
    if memory is not None and expected.memory > memory + resident():
        said.append(
            f"{size(expected.memory)} of memory are expected to be needed, {size(memory + resident())} are there: "
            "bound the measuring with --memory, or pass smaller batches"
        )
    return said


def typical(batches: Sequence[Batch]) -> Batch:
    """The batch whose size is nearest the mean."""
    sizes = [positions_in([batch]) for batch in batches]
    mean = sum(sizes) / len(sizes)
    return batches[min(range(len(sizes)), key=lambda index: abs(sizes[index] - mean))]


@dataclass(frozen=True)
class _Work:
    """How often each piece comes."""

    model: nn.Module
    layers: Sequence[Layer]
    calibration: Sequence[Batch]
    settings: Settings
    pace: Pace

    @property
    def keep(self) -> float:
        return self.settings.size or CALIBRATED_AT

    @property
    def firsts(self) -> set[str]:
        """The first layer of every group that reads one input."""
        return set(self.pace.inputs.values())

    @cached_property
    def sample(self) -> int:
        """Positions in the batches that `divergence.few` takes."""
        samples = positions = 0
        for index in spread(len(self.calibration)):
            if samples and (samples >= MOST_SAMPLES or positions * self.pace.units >= MOST_UNITS):
                break
            samples += samples_in(self.calibration[index])
            positions += positions_in([self.calibration[index]])
        return positions

    @property
    def again(self) -> bool:
        """Whether the dense model's outputs are made anew each time."""
        return self.sample * self.pace.outputs > KEPT_OUTPUTS

    def reading(self) -> float:
        return sum(pace.read for pace in self.pace.layers.values())

    def lending(self) -> float:
        """Every layer in the basis of every other of its shape."""
        shapes = Counter((layer.m, layer.n) for layer in self.layers)
        return sum(shapes[layer.m, layer.n] * self.pace.layers[layer.name].fit for layer in self.layers)

    def spectra(self) -> float:
        return sum(pace.spectrum for pace in self.pace.layers.values())

    def calibrating(self) -> float:
        """The looks, and a trial of neighbours that share; that looks are taken again after it is rare."""
        looks = self.settings.rounds * (self.spectra() + self.looking())
        if all(len(group) == 1 for group in neighbours(self.layers, TRIED_TOGETHER)):
            return looks
        return looks + self.applying() + (1 + self.again) * self.sample * self.pace.forward

    def looking(self) -> float:
        """The inputs and what is differentiated at once; apart where the reference is made anew, or memory bounded."""
        passes = LOOK_PASSES + self.again if self.again or self.settings.memory is not None else LOOK_PASSES - 1
        return self.applying() + passes * self.sample * self.pace.forward

    def search(self) -> float:
        """At most so long, and that long where no exact method is done sooner."""
        limit, mean = self.settings.time_limit, self.pace.pairs / max(self.pace.pair_count, 1)
        if self.settings.solver == "private" or not self.pace.pair_count:
            return 0.0
        if self.settings.solver != "auto":
            return min(limit, self.pace.pairs)
        linked = max(map(len, linked_parts(compatible(self.layers, self.settings.kinds))), default=0)
        return min(limit, self.pace.pairs if linked > EXACT_GROUP_ITEMS else mean * 2.0**linked)

    def applying(self) -> float:
        return sum(pace.fit for pace in self.pace.layers.values())

    def verifying(self, candidates: int) -> float:
        passes = (1 + (1 + self.again) * candidates) * self.sample
        return candidates * self.applying() + passes * self.pace.forward

    def updating(self) -> float:
        passes = (len(self.firsts) / 2 + 3 + 2 * self.again) * self.sample
        return self.applying() + passes * self.pace.forward

    def refining(self, settings: RefineSettings) -> float:
        """A step takes a forward pass of the dense model, one of the smaller one, and twice that back."""
        mean = positions_in(self.calibration) / len(self.calibration)
        judged = (settings.holdout or 1.0) * len(self.calibration) * mean
        looks = 1 + settings.steps / settings.evaluate_every
        return self.pace.forward * (4 * settings.steps * mean + 2 * looks * judged)

    def kept(self) -> float:
        """Parameters of the factors."""
        return self.keep * sum(layer.parameters for layer in self.layers)

    @cached_property
    def written(self) -> int:
        return unnamed_bytes(self.model)

    @property
    def hulls_on_disk(self) -> float:
        return self.pace.pair_count * self.pace.points * POINT_ON_DISK

    def factors(self) -> float:
        """Bytes of A and G of all layers, float64; of those that are the identity there is one a width."""
        inputs = [layer.n for layer in self.layers if layer.name in self.firsts]
        outputs = [layer.m for layer in self.layers]
        estimate = self.settings.weighed_by
        widths = [*inputs] if estimate in (*MOMENTS, "magnitude") else [*set(inputs)]
        widths += outputs if estimate in ("kronecker", "diagonal") else [*set(outputs)]
        return DOUBLE * sum(width**2 for width in widths)

    def sums(self) -> float:
        """Bytes of what is summed over the data: the moments among the factors."""
        estimate = self.settings.weighed_by
        inputs = sum(layer.n**2 for layer in self.layers if layer.name in self.firsts) if estimate in MOMENTS else 0
        return DOUBLE * (inputs + (sum(layer.m**2 for layer in self.layers) if estimate == "kronecker" else 0))

    def memory(self, searched: bool, calibrated: bool, test: Sequence[Batch] | None, refined: bool) -> int:
        curvature, hulls = self.factors(), self.pace.pair_count * self.pace.points * POINT
        dtype = precision(self.layers)
        widest = max(max(layer.m, layer.n) for layer in self.layers)
        priced = curvature + sum(size_of(layer, dtype) for layer in self.layers) + 6 * DOUBLE * widest**2
        if dtype == torch.float64:  # factors are those of the curvature
            priced -= DOUBLE * sum(layer.m**2 + layer.n**2 for layer in self.layers)
        if searched:
            priced += hulls
        copies = parameter_bytes(self.model) + DOUBLE * self.kept() if calibrated or test else 0.0
        trained = 16 * self.kept() if refined else 0.0
        measuring = self.pace.peak + curvature  # A and G beside the sums
        largest = max(positions_in([batch]) for batch in [*self.calibration, *(test or ())])
        passing = self.pace.activations * largest
        if self.settings.memory is None:
            return round(max(measuring, self.pace.resident + priced + copies + max(trained, passing)))
        bounded = min(max(measuring, self.pace.resident + priced), self.settings.memory)  # the rest is read from files
        copies = parameter_bytes(self.model) if calibrated or test else 0.0  # then nothing that was priced is kept
        return round(max(self.pace.peak, bounded, self.pace.resident + copies + max(trained, passing)))

    def disk(self, searched: bool, carried_out: bool, refined: bool, updated: bool = False) -> int:
        curvature = self.sums()
        calibrated = searched and self.settings.rounds > 0
        looks = self.settings.rounds if calibrated else 0
        inputs = DOUBLE * sum(layer.n**2 for layer in self.layers if layer.name in self.firsts)
        if self.settings.memory is not None:
            curvature *= 2  # windows, and then the roots
            weights = DOUBLE * sum(layer.parameters for layer in self.layers) + parameter_bytes(self.model)
            curvature += weights if calibrated else 0  # stand-ins, and as the model has them
        found = curvature + (self.settings.rounds + looks if calibrated else 0) * inputs
        found += (1 + looks) * self.hulls_on_disk if searched else 0.0
        if carried_out:
            whole = parameter_bytes(self.model)
            found += DOUBLE * self.kept() + whole * self.keep + (32 * self.kept() if refined else 0.0)
            if self.settings.memory is not None:  # its parameters lie in files, without names, and those of a copy
                found += whole * self.keep * (2 if updated else 1)
        else:
            found += self.factors()
        return round(max(found, 2 * curvature) + SMALL_FILES)
