"""Forms of the curvature under the price, each asked for the damage of the same plans on the data it was measured on.

`g` are output gradients and `a` inputs of a layer, `U` and `V` the eigenvectors of its Kronecker factors:

- kronecker: `½ tr(G δ A δᵀ)` as it is priced;
- bare kronecker: without damping and shrinkage;
- ekfac, positions: `½ Σ Λ_ij (Uᵀ δ V)_ij²` with `Λ_ij = Σ_t (u_iᵀ g_t)² (v_jᵀ a_t)² / units`, eigenvalues measured in
  the Kronecker eigenbasis (George et al. 2018, arXiv:1806.03884), positions of a sample taken as independent;
- ekfac, samples: the same with `Λ_ij = Σ_samples (Σ_t u_iᵀ g_t · v_jᵀ a_t)² / units`, as they really add up;
- block: `½ Σ_samples ⟨Σ_t g_t a_tᵀ, δ⟩² / units`, the Gauss-Newton matrix's blocks themselves: no factors, no basis;
- whole: `½ δᵀHδ` of all layers together, with what they do to one another, which is the quadratic model's own limit:
  the divergence after a fiftieth of the change, times 2,500.

The last two have no closed form to choose ranks by; they say what better curvature could gain at most. Gradients are
those of the sampled labels that `geocolor.measure` draws. Looks from smaller models move `A` and every layer's level:
after looks a form gives a layer's damage `looked(δ) · form(δ) / kronecker(δ)`, scaled such that the look's own change
of the layer costs what it did; the whole gives that of all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.fidelity import distorted, random_groups
from benchmarks.subjects import Subject
from geocolor.backend import factored_layers
from geocolor.budget import UnreachableError, allocate
from geocolor.calibration import calibrate
from geocolor.carry_out import apply
from geocolor.curvature import Curvature
from geocolor.curvature.measurement import accumulate, finish
from geocolor.curvature.observation import OnGradient, watched
from geocolor.divergence import dense_outputs, divergence_of, few
from geocolor.graph import CostGraph, price
from geocolor.habits import neighbours, private
from geocolor.layers import Layer, as_matrix, find_layers, input_rows, output_rows, weight_of
from geocolor.losses import Batch, Loss
from geocolor.modes import differentiable, evaluating
from geocolor.planning import fixed_plan, plan
from geocolor.plans import Plan
from geocolor.ranks import rounded, uniform
from geocolor.stand_ins import StandIn, parameter, replaced, without_sharing

Row = dict[str, Any]
Deltas = Mapping[str, Tensor]
Damages = Mapping[str, float]
Form = Callable[[str, Tensor], float]
KRONECKER = "kronecker"
WHOLE = "whole"

#: Samples and units of the loss that curvature is measured on, whichever come first, and units for divergence.
SAMPLES, OBSERVED, UNITS = 128, 16384, 8192

#: How far towards a plan's weights the whole quadratic form is measured, and gradients are compared.
STEP, SMALL_STEP = 0.02, 0.1

#: Plans whose slopes on the task's loss are measured.
SLOPES = 2


@dataclass(eq=False)
class Eigenvalues:
    """Of one layer: the Kronecker eigenbasis and the sums of both kinds of eigenvalues in it, m × n."""

    U: Tensor
    V: Tensor
    positions: Tensor
    samples: Tensor


@dataclass(eq=False)
class Observed:
    """What a pass over the calibration data leaves: gradients of every sample [samples, m, n], and eigenvalues."""

    units: int = 0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    eigenvalues: dict[str, Eigenvalues] = field(default_factory=dict)

    def corrected(self, kind: str, name: str, delta: Tensor) -> float:
        """EKFAC's damage of a change."""
        own = self.eigenvalues[name]
        turned = own.U.T @ delta.to(own.U) @ own.V
        return 0.5 * float((getattr(own, kind) * turned.square()).sum()) / self.units

    def block(self, name: str, delta: Tensor) -> float:
        gradients = self.gradients[name]
        slopes = gradients.flatten(1) @ delta.to(gradients).flatten()
        return 0.5 * float(slopes.double().square().sum()) / self.units


def whole(model: nn.Module, deltas: Deltas, batches: Sequence[Batch], loss: Loss) -> float:
    """The quadratic form of all layers together, by the divergence a small step away."""
    return divergence_of(model, model, batches, loss, within=partial(_stepped, model, deltas, STEP)) / STEP**2


def _stepped(model: nn.Module, deltas: Deltas, step: float) -> AbstractContextManager[None]:
    layers = find_layers(model, tuple(deltas))
    return replaced(model, [StandIn(layer, weight_of(model, layer) + step * deltas[layer.name]) for layer in layers])


def observe(model: nn.Module, batches: Sequence[Batch], loss: Loss, curvature: Curvature) -> Observed:
    """One pass forward and back; the model has no padding, and samples are the first dimension everywhere.

    Takes memory for a gradient of every sample.
    """
    found = Observed()
    parts: dict[str, list[Tensor]] = {layer.name: [] for layer in curvature.layers}
    for layer in curvature.layers:
        U, V = (torch.linalg.eigh(factor[layer.name]).eigenvectors.float() for factor in (curvature.G, curvature.A))
        zeros = torch.zeros(layer.m, layer.n, dtype=torch.float64)
        found.eigenvalues[layer.name] = Eigenvalues(U, V, zeros, zeros.clone())

    def on_call(layer: Layer, x: Tensor) -> OnGradient:
        a, own = _by_sample(input_rows(layer, x.detach())), found.eigenvalues[layer.name]

        def on_gradient(gradient: Tensor) -> None:
            g = _by_sample(output_rows(layer, gradient))
            each = g.transpose(1, 2) @ a
            parts[layer.name].append(each)
            own.positions += (g @ own.U).square().flatten(0, 1).T @ (a @ own.V).square().flatten(0, 1)
            own.samples += (own.U.T @ each @ own.V).square().sum(0)

        return on_gradient

    with watched(model, curvature.layers, on_call, gradients=True) as leaves:
        for index, batch in enumerate(batches):
            outputs = loss.forward(model, batch)
            pseudo, _ = loss.sample(outputs, batch, torch.Generator().manual_seed(index * 1009))
            torch.autograd.backward(pseudo, inputs=leaves)
            leaves.clear()
            found.units += loss.units(outputs, batch)
    found.gradients = {name: torch.cat(each) for name, each in parts.items()}
    return found


def _by_sample(x: Tensor) -> Tensor:
    """[samples, positions, width]."""
    return x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Looked:
    """Prices after looks, and what forms find of the changes of weight that set their levels, over Kronecker's."""

    curvature: Curvature
    levels: Mapping[str, Damages]

    def under(self, form: str, deltas: Deltas, found: Mapping[str, Damages]) -> float:
        """A plan's damage, `found` being what the forms find at the dense model."""
        levels = self.levels[form]
        return math.fsum(
            self.curvature.damage(name, delta) * found[form][name] / found[KRONECKER][name] / levels.get(name, 1.0)
            for name, delta in deltas.items()
        )


def levels_of(found: Mapping[str, Damages]) -> dict[str, Damages]:
    """Each form's damages over Kronecker's."""
    return {
        form: {name: damage / found[KRONECKER][name] for name, damage in own.items()} for form, own in found.items()
    }


def some_plans(graph: CostGraph, keep: float, count: int) -> Iterator[tuple[str, Plan]]:
    """Plans as in `benchmarks.fidelity` and from its parts: a solver's, habits and random ones, `count` at most."""
    budget = math.floor(keep * graph.parameters_dense)
    yield "greedy", plan(graph, keep, solver="greedy", time_limit=20)
    habits = [(f"neighbours by {size}", neighbours(graph.layers, size)) for size in (2, 3, 4, 100)]
    for name, groups in [("private", private(graph.layers)), *habits]:
        yield f"{name}, allocated", fixed_plan(graph, groups, list(allocate(graph, groups, budget).options), keep, name)
        if name != "neighbours by 4":
            options = rounded(graph, groups, uniform(graph, groups, keep), keep)
            yield f"{name}, uniform", fixed_plan(graph, groups, options, keep, name)
        count -= 2
    rng = np.random.default_rng(0)
    for number in range(count):
        groups, noise = random_groups(graph, rng), float(rng.choice([0.0, 0.5, 1.5]))
        try:
            options = list(distorted(graph, groups, budget, noise, rng).options)
        except UnreachableError:
            continue
        yield f"random {number}, allocation off by e^{noise:g}", fixed_plan(graph, groups, options, keep, "random")


def changes(model: nn.Module, smaller: nn.Module, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """`δ` of every layer that is factored, m × n."""
    factored = factored_layers(smaller)
    return {
        layer.name: factored[layer.name].dense(torch.float64).detach() - weight_of(model, layer)
        for layer in layers
        if layer.name in factored
    }


def run(subject: Subject, keeps: Sequence[float], count: int, rounds: int, done: Collection[Row]) -> Iterator[Row]:
    """The rows that are missing: one for every plan, then one that says the size is done; and of the first order."""
    missing = [keep for keep in keeps if not _there(done, subject.name, keep, "last")]
    if not missing:
        return
    model, loss = subject.model.eval(), subject.loss
    layers = find_layers(model, subject.include)
    batches = few(subject.calibration, loss, model, SAMPLES, OBSERVED)
    chosen = few(subject.calibration, loss, model, SAMPLES, UNITS)
    sums = accumulate(model, batches, loss, layers, draws=subject.draws)
    dense = finish(sums, damping=subject.damping)
    observed = observe(model, batches, loss, dense)
    forms: dict[str, Form] = {
        KRONECKER: dense.damage,
        "bare kronecker": finish(sums, damping=0.0, shrinkage=0.0).damage,
        "ekfac, positions": partial(observed.corrected, "positions"),
        "ekfac, samples": partial(observed.corrected, "samples"),
        "block": observed.block,
    }

    def damages(deltas: Deltas) -> dict[str, Damages]:
        return {form: {name: of(name, delta) for name, delta in deltas.items()} for form, of in forms.items()}

    for keep in missing:
        looked = calibrate(model, dense, batches, loss, keep=keep, rounds=rounds)
        graph = price(model, looked, kinds=("in", "out"))
        stand_ins = without_sharing(price(model, looked, kinds=("in",)), keep, every=True)
        marks = {each.layer.name: each.weight - weight_of(model, each.layer) for each in stand_ins}
        found = damages(marks)
        seen = Looked(looked, levels_of(found))
        level = whole(model, marks, chosen, loss) / math.fsum(found[KRONECKER].values())
        slopes, shapes = 0, set[str]()
        for title, made in some_plans(graph, keep, count):
            row: Row = {"part": "curvature", "model": subject.name, "keep": keep, "plan": title}
            shape = str([(cls.kind, cls.layers, cls.rank) for cls in made.classes])
            again = shape in shapes
            shapes.add(shape)
            if again or _there(done, subject.name, keep, title):
                continue
            smaller = apply(model, made, looked, metrics=graph.metrics)
            deltas = changes(model, smaller, layers)
            row["measured"] = divergence_of(model, smaller, chosen, loss)
            found = damages(deltas)
            row["dense"] = {form: math.fsum(own.values()) for form, own in found.items()}
            row["looks"] = {form: seen.under(form, deltas, found) for form in forms}
            row["dense"][WHOLE] = quadratic = whole(model, deltas, chosen, loss)
            row["looks"][WHOLE] = row["looks"][KRONECKER] * quadratic / row["dense"][KRONECKER] / level
            if slopes < SLOPES and not loss.compares:
                slopes += 1
                row["first_order"] = first_order(model, smaller, deltas, chosen, loss)
            yield row
        yield {"part": "curvature", "model": subject.name, "keep": keep, "plan": "last"}


def _there(done: Collection[Row], model: str, keep: float, title: str) -> bool:
    return any((row.get("model"), row.get("keep"), row.get("plan")) == (model, keep, title) for row in done)


def first_order(
    model: nn.Module, smaller: nn.Module, deltas: Deltas, batches: Sequence[Batch], loss: Loss
) -> dict[str, float]:
    """Gradients of the divergence at the dense model and a small step from it; slope and rise of the task's loss."""
    layers = find_layers(model, tuple(deltas))

    def diverged(index: int, outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return loss.divergence(outputs, dense_outputs(model, batches, index, loss), batch)

    def task(_: int, outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return loss.total(outputs, batch, None)

    here = _gradient(model, layers, batches, loss, diverged)
    with _stepped(model, deltas, SMALL_STEP):
        there = _gradient(model, layers, batches, loss, diverged)
    slope = _gradient(model, layers, batches, loss, task)
    values = [[loss.value(each, batch) for batch in batches] for each in (model, smaller)]
    before, after = (sum(total for total, _ in each) / sum(units for _, units in each) for each in values)
    return {
        "gradient_of_divergence": _norm(here),
        "gradient_after_step": _norm(there),
        "slope_of_task": math.fsum(float((slope[name] * delta).sum()) for name, delta in deltas.items()),
        "rise_of_task": after - before,
    }


def _gradient(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    loss: Loss,
    objective: Callable[[int, Tensor, Batch], tuple[Tensor, int]],
) -> dict[str, Tensor]:
    """Of the mean over units, by layer, m × n."""
    weights = [parameter(model, layer) for layer in layers]
    totals, units = [torch.zeros(layer.m, layer.n, dtype=torch.float64) for layer in layers], 0
    with differentiable(weights), evaluating(model, gradients=True):
        for index, batch in enumerate(batches):
            value, count = objective(index, loss.forward(model, batch), batch)
            units += count
            for total, layer, each in zip(totals, layers, torch.autograd.grad(value, weights), strict=True):
                total += as_matrix(layer, each).double()
    return {layer.name: total / units for layer, total in zip(layers, totals, strict=True)}


def _norm(gradient: Deltas) -> float:
    return math.sqrt(math.fsum(float(each.square().sum()) for each in gradient.values()))
