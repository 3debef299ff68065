"""From a plan to a smaller model: factors of every class, put into the model's own layers."""

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch

from geocolor import backend
from geocolor.axes_trust_region import axis_metric, fit_axes, own_basis
from geocolor.bases import Factors, Metric, factorize
from geocolor.curvature import Curvature, LanczosCurvature
from geocolor.graph import FactorsKey, FactorsKnown, medoid_basis, metrics_of
from geocolor.journal import Journal
from geocolor.layers import weight_of
from geocolor.mapped import copied
from geocolor.plans import Plan, PlannedClass
from geocolor.progress import track
from geocolor.trust_region import Fit, Mode, eigen_metric, fit


def apply(
    model: torch.nn.Module,
    plan: Plan,
    curvature: Curvature | LanczosCurvature,
    *,
    inplace: bool = False,
    borrowing: bool = False,
    metrics: Mapping[str, Metric] | None = None,
    known: FactorsKnown | None = None,
    files: Path | None = None,
    progress: bool = False,
    journal: Journal | None = None,
) -> torch.nn.Module:
    """Replace the planned layers by factored ones that share their bases; the rest of the model stays as it is.

    A copy of the model is changed unless `inplace`; in place, factors take the place of weights class by class, also
    where something is raised later. A copy that is `borrowing` has its other parameters in common with the model.
    `metrics` are those of a graph of the same curvature, where there is one: what they have computed is used again.
    With a folder `files` parameters lie in files there that have no names, not in memory (`geocolor.mapped`). Factors
    that the `journal` holds are not computed again. Raises `ValueError` where the plan was made for another model or
    the curvature misses one of its layers.
    """
    plan.check(model)
    lanczos = isinstance(curvature, LanczosCurvature)
    if lanczos != (plan.curvature.get("estimate") == "lanczos"):
        raise ValueError(
            f"the plan was made with the curvature {plan.curvature.get('estimate')!r} and cannot be carried out with "
            f"{curvature.estimate!r}: Geo-Sharing's plans and axes of the Hessian belong together"
        )
    held = curvature.axes if isinstance(curvature, LanczosCurvature) else curvature.A
    missing = [name for name in plan.layers if name not in held]
    if missing:
        raise ValueError(
            f"the curvature holds nothing of layer {missing[0]!r}: measure the model the plan was made for"
        )
    factors = factorize_plan(model, plan, curvature, metrics=metrics, known=known, progress=progress, journal=journal)
    target = model if inplace else _copy(model, plan, borrowing, files)
    one_by_one = inplace or files is not None
    return backend.install(
        target, plan.shareable_layers(), factors, inplace=True, plan=plan, one_by_one=one_by_one, files=files
    )


def _copy(model: torch.nn.Module, plan: Plan, borrowing: bool, files: Path | None) -> torch.nn.Module:
    """A copy that keeps nothing twice which the plan will replace, or no parameter at all."""
    planned = (model.get_submodule(name).weight for name in plan.factored_layers)
    return copied(model, files, model.parameters() if borrowing else cast("Iterator[torch.Tensor]", planned))


def factorize_plan(
    model: torch.nn.Module,
    plan: Plan,
    curvature: Curvature | LanczosCurvature,
    *,
    metrics: Mapping[str, Metric] | None = None,
    known: FactorsKnown | None = None,
    progress: bool = False,
    journal: Journal | None = None,
) -> Iterator[Factors]:
    """Bases and coefficients of every class that is not dense, one class after the other; see `apply`."""
    journal = journal or Journal()
    layers = {layer.name: layer for layer in plan.shareable_layers()}
    classes = [cls for cls in plan.classes if cls.kind != "dense"]
    outside = list[str]()

    def factorized(cls: PlannedClass) -> dict[str, torch.Tensor]:
        names = list(dict.fromkeys((*cls.layers, cls.medoid or cls.layers[0])))
        if isinstance(curvature, LanczosCurvature):
            weights = {name: weight_of(model, layers[name]).cpu() for name in names}
            factors, fits = factorize_lent(cls, weights, curvature, plan.trust_region, plan.curvature["mode"])
        else:
            members: Mapping[str, Metric] = metrics if metrics is not None else {}
            if metrics is None:
                members = metrics_of(model, curvature, [layers[name] for name in names])
            flat = plan.flat_energy or 0.05
            factors, fits = factorize_class(cls, members, curvature, plan.trust_region, flat, known)
        outside.extend(name for name, result in fits.items() if not result.reached)
        return factors.tensors()

    for index, cls in enumerate(track(classes, "fitting bases and coefficients", wanted=progress)):
        if cls.kind != "dense":
            yield Factors.of(cls.kind, cls.layers, journal.tensors(f"factors-{index}", partial(factorized, cls)))
    if outside:
        warnings.warn(
            f"{len(outside)} layers cannot come within the trust region β={plan.trust_region:g} in their basis "
            f"(first: {outside[0]!r}); the nearest coefficients are used and priced. Raise β or the rank",
            stacklevel=3,
        )


def factorize_class(
    cls: PlannedClass,
    metrics: Mapping[str, Metric],
    curvature: Curvature,
    beta: float | None,
    flat_energy: float,
    known: FactorsKnown | None = None,
) -> tuple[Factors, dict[str, Fit]]:
    """Factors of one class; under a trust region, or in a medoid's basis, also how each layer's fit came out.

    Those that are `known` of the same metrics, before any fit, are not computed again, and others join them.
    """
    assert cls.kind != "dense"
    assert cls.rank is not None
    members = {name: metrics[name] for name in cls.layers}
    if cls.medoid is not None:
        factors = Factors("both", cls.layers, {}, *medoid_basis(metrics[cls.medoid], cls.rank))
    else:
        known, key = {} if known is None else known, factors_key(cls)
        if key not in known:
            known[key] = factorize(cls.kind, members, cls.rank, cls.right_rank)
        factors = known[key]
        if beta is None:
            return factors, {}
    fits = {}
    left, right = (None if basis is None else basis.cpu().double() for basis in (factors.left, factors.right))
    for name, member in members.items():
        G, A = curvature.G[name], curvature.A[name]
        fits[name] = fit(eigen_metric(member.weight.to(G), G, A, flat_energy), left, right, beta)
    fitted = {name: result.coefficients for name, result in fits.items()}
    return Factors(factors.kind, factors.layers, fitted, left, right), fits


def factors_key(cls: PlannedClass) -> FactorsKey:
    """What the factors of a class depend on beside its layers' metrics, where no layer lends its basis."""
    return cls.kind, cls.layers, cls.rank, cls.right_rank


def factorize_lent(
    cls: PlannedClass, weights: Mapping[str, torch.Tensor], curvature: LanczosCurvature, beta: float | None, mode: Mode
) -> tuple[Factors, dict[str, Fit]]:
    """Geo-Sharing's factors of a class: the singular vectors of its medoid, coefficients by the Hessian's axes."""
    assert cls.medoid is not None
    left, right = (vectors[:, : cls.rank] for vectors in own_basis(weights[cls.medoid]))
    fits = {
        name: fit_axes(axis_metric(weights[name], curvature.axes[name]), left, right, beta, mode) for name in cls.layers
    }
    fitted = {name: result.coefficients for name, result in fits.items()}
    return Factors("both", cls.layers, fitted, left, right), fits
