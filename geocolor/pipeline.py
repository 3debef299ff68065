"""The steps of a run, each with what it needs: measure, price, plan, carry out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from geocolor.calibration import calibrate, seen_from, shifted
from geocolor.carry_out import apply
from geocolor.clock import Clock
from geocolor.curvature import Curvature, LanczosCurvature, measure
from geocolor.curvature.shrinkage import SHRINKAGE
from geocolor.curvature.windows import measure_within
from geocolor.divergence import few
from geocolor.geo_sharing import BETA, geo_sharing
from geocolor.graph import CostGraph, price
from geocolor.journal import Journal
from geocolor.layers import find_layers
from geocolor.losses import Loss, loss_for
from geocolor.planning import budgeted, plan
from geocolor.plans import Plan
from geocolor.presets import GEO_SHARING, Preset, find_preset
from geocolor.prices import Prices
from geocolor.refinement import Refinement, RefineSettings, refine
from geocolor.settings import Settings
from geocolor.stand_ins import planned
from geocolor.updating import update_coefficients, updated_where_nearer
from geocolor.verification import verified

#: The size from which layers are looked at where none is asked for.
CALIBRATED_AT = 0.8

#: Relative to the mean of a Kronecker factor's diagonal.
DAMPING = 1e-3

#: The power of a layer's damage under which a plan is made without looks, for refinement, and the steps of refinement
#: after which it is compared. stories260K at keep 0.5 ends at 0.702 with it (powers 1.5, 2, 3: 0.711, 0.724, 0.751), at
#: 0.83 with what is nearest at once.
SPREAD, TRIAL_STEPS = 1.25, 50

#: No round follows one that brought the best plan nearer by less than such a part, unless sharing lost. All three
#: rounds would have brought another 0.0 % on stories260K and MiniLM (keep 0.8) and KWT-1 (0.4).
WORTH_A_ROUND = 0.01

#: Nor does one follow a look that has moved layers' damage by less, relative to one another (`calibration.shifted`): a
#: plan loses by such a shift some two to five times its square. Rounds after looks that moved it by 0.14, 0.12 and 0.08
#: brought plans 10, 10 and 2 % nearer (KWT-1 twice, the embedded model); after 0.06 and less, by no 0.5 %.
SETTLED = 0.06

#: At this size and below it is tried whether coefficients fitted to the smaller model's own inputs are nearer; above,
#: inputs have hardly moved. Basis Sharing has the same bound.
UPDATED_BELOW = 0.6


@dataclass(frozen=True)
class Prepared:
    """A model priced and planned, not yet changed.

    `graph` is None where layers were priced along axes of the Hessian. `updated`: the preset fits coefficients again
    once the plan is carried out (`geocolor.updating`).
    """

    curvature: Curvature | LanczosCurvature
    graph: CostGraph | None
    plan: Plan
    updated: Literal["never", "always", "nearer"] = "never"


@dataclass(frozen=True)
class Pipeline:
    """A model, its calibration data and what is asked for; the steps are methods.

    `loss` is the one that fits model and data by default. Seconds go to the `clock`. What the `journal` holds of the
    same run is not done again, but read from there.
    """

    model: nn.Module
    calibration: Sequence[Any]
    settings: Settings
    loss: Loss | None = None
    clock: Clock = field(default_factory=Clock)
    progress: bool = False
    journal: Journal = field(default_factory=Journal)

    @property
    def files(self) -> Path | None:
        """Where parameters lie that memory has no room for; None where it is not bounded."""
        return None if self.settings.memory is None else self.journal.folder

    def prepared(
        self,
        curvature: Curvature | None = None,
        prices: Prices | None = None,
        refinement: RefineSettings | None = None,
    ) -> Prepared:
        """Measure curvature, price the layers, search plans, keep the one that does least damage on calibration data.

        `curvature`: measured already, with these settings, and for a preset not calibrated; `prices`: what was priced
        under it, used where it was with the same settings. Where `refinement` will follow, a plan made for it is tried.
        """
        if self.settings.preset == GEO_SHARING:
            return self._by_axes()
        preset = find_preset(self.settings.preset)
        if preset is not None:
            return self._by_preset(preset, curvature)
        if refinement is None:
            return self.searched(self.priced(curvature, prices)[1])
        curvature = self.measured() if curvature is None else curvature
        found = self.searched(self.priced(curvature, prices)[1])
        return found if curvature.rounds else self.nearest_refined([found, *self.without_looks(curvature)], refinement)

    def measured(self) -> Curvature:
        """The curvature that the preset asks for, where the settings name none."""
        settings = self.settings
        preset = find_preset(settings.preset)
        damping = DAMPING if preset is None else preset.damping
        shrinkage = SHRINKAGE if preset is None else 0.0
        chosen: dict[str, Any] = {
            "layers": find_layers(self.model, settings.include, settings.exclude),
            "estimate": settings.weighed_by,
            "damping": damping if settings.damping is None else settings.damping,
            "shrinkage": shrinkage if settings.shrinkage is None else settings.shrinkage,
            "draws": settings.draws,
            "seed": settings.seed,
            "progress": self.progress,
            "journal": self.journal,
        }
        with self.clock("measure"):
            if settings.memory is not None:
                return measure_within(settings.memory, self.model, self.calibration, loss=self.loss, **chosen)
            return measure(self.model, self.calibration, self.loss, **chosen)

    def priced(self, curvature: Curvature | None = None, prices: Prices | None = None) -> tuple[Curvature, CostGraph]:
        """Measure curvature, unless that is done, and make the cost graph, which begins with the `prices` that fit."""
        settings = self.settings
        if curvature is None:
            curvature = self.measured()
        calibrated = curvature.rounds > 0
        if settings.rounds and not calibrated:
            with self.clock("calibrate"):
                curvature = calibrate(
                    self.model,
                    curvature,
                    self.calibration,
                    self.loss,
                    keep=settings.size or CALIBRATED_AT,
                    rounds=settings.rounds,
                    progress=self.progress,
                    journal=self.journal,
                )
        with self.clock("price"):
            graph = self._graph(curvature, settings.powers)
            if prices is not None and (calibrated or not settings.rounds) and prices.fit(graph):
                graph.remember(prices.hulls)
        return curvature, graph

    def searched(self, graph: CostGraph) -> Prepared:
        """A plan for every aggregate of the graph, and of those the one that does least damage on calibration data.

        Then, `rounds` times, or until one gains less than `WORTH_A_ROUND` or prices have `SETTLED`, they are moved to
        what is seen from the model of the last plan, and another coloring is searched under them. Plans without sharing
        are measured beside all of them, and the best of all is taken.
        """
        settings = self.settings
        loss = loss_for(self.model, self.calibration[0], self.loss)
        found = self._planned(graph)
        if not settings.rounds:
            return Prepared(graph.curvature, graph.under(found[0].aggregate), found[0])
        known: dict[str, Any] = {"progress": self.progress, "journal": self.journal}
        with self.clock("verify"):
            chosen = few(self.calibration, loss, self.model)
            verdict = verified(self.model, graph, found, chosen, loss, **known)
        best, best_graph = verdict, graph
        for _ in range(settings.rounds):
            stand_ins = planned(graph, verdict.plan)
            graph.set_aside()
            if not stand_ins:  # everything fits as it is
                break
            with self.clock("calibrate"):
                curvature = seen_from(self.model, stand_ins, graph.curvature, chosen, loss, journal=self.journal)
                if not verdict.lost and shifted(self.model, stand_ins, graph.curvature, curvature) < SETTLED:
                    break
            with self.clock("price"):
                power = verdict.plan.aggregate
                promising = partial(graph.under(power).promising, next(p.price for p in found if p.aggregate == power))
                near = self.journal.value(f"near/{curvature.rounds}", promising)  # read plans price no pairs
                graph.set_aside()
                graph = self._graph(curvature, power, near)
            found = self._planned(graph)
            with self.clock("verify"):
                verdict = verified(self.model, graph, found, chosen, loss, **known)
            gained = 1 - verdict.damage / best.damage if best.damage > 0 else 0.0
            if gained > 0:
                best, best_graph = verdict, graph
            if gained < WORTH_A_ROUND and not verdict.lost:
                break
        verdict, graph = best, best_graph
        if verdict.lost:
            warnings.warn(verdict.loss_of_sharing(graph.curvature.unit), stacklevel=2)
        small = settings.size is not None and settings.size <= UPDATED_BELOW and settings.trust_region is None
        updated: Literal["never", "nearer"] = "nearer" if small else "never"
        return Prepared(graph.curvature, graph.under(verdict.plan.aggregate), verdict.plan, updated)

    def without_looks(self, curvature: Curvature) -> list[Prepared]:
        """Plans under the dense model's own curvature, which spread damage: refinement may bring them nearer.

        None where the settings already ask for no looks, or for a number of bases alone.
        """
        if not self.settings.rounds or self.settings.size is None:
            return []
        with self.clock("price"):
            graph = self._graph(curvature, self.settings.aggregate or SPREAD)
        [found] = self._planned(graph)
        return [Prepared(curvature, graph, found)]

    def nearest_refined(self, contenders: Sequence[Prepared], refinement: RefineSettings) -> Prepared:
        """The one that a few steps of refinement bring nearest to the dense model on the hold-out of the data.

        That is the first, which is nearest at once on more data, or one that these steps have brought nearer.
        """
        if len(contenders) == 1:
            return contenders[0]
        steps, unkept = min(TRIAL_STEPS, refinement.steps), replace(self, journal=Journal())
        trial = replace(refinement, steps=steps, evaluate_every=max(steps, 1))

        def tried(prepared: Prepared) -> tuple[float, bool]:
            found = unkept.refined(unkept.carried_out(prepared), trial)
            return found.after, found.best_step > 0

        found = [self.journal.value(f"tried/{k}", partial(tried, each)) for k, each in enumerate(contenders)]
        eligible = [k for k, (_, nearer) in enumerate(found) if nearer or k == 0]
        return contenders[min(eligible, key=lambda k: found[k][0])]

    def carried_out(self, prepared: Prepared) -> nn.Module:
        """The smaller model, its coefficients fitted again on its own inputs where `prepared` says so.

        The model remembers its plan, whose predicted damage is then that of the coefficients it has.
        """
        curvature, graph = prepared.curvature, prepared.graph
        with self.clock("apply"):
            computed: dict[str, Any] = {} if graph is None else {"metrics": graph.metrics, "known": graph.factors}
            files = self.journal.folder if graph is not None and graph.bounded else None
            known: dict[str, Any] = {"files": files, "progress": self.progress, "journal": self.journal}
            smaller = apply(self.model, prepared.plan, curvature, **computed, **known)
            if graph is not None:
                graph.set_aside()
        if prepared.updated == "never" or not isinstance(curvature, Curvature):
            return smaller
        update = update_coefficients if prepared.updated == "always" else updated_where_nearer
        with self.clock("update"):
            return update(smaller, self.model, self.calibration, curvature, self.loss, **known)

    def refined(self, smaller: nn.Module, refinement: RefineSettings) -> Refinement:
        """The smaller model's factors trained, in place, to match the dense model on calibration data."""
        known: dict[str, Any] = {"checkpoint": self.journal.part("refinement.safetensors").path, "loss": self.loss}
        known |= {"keep_checkpoint": True, "inplace": True, "progress": self.progress}
        with self.clock("refine"):
            return refine(smaller, self.model, self.calibration, refinement, **known)

    def _graph(
        self, curvature: Curvature, power: float | Sequence[float], near: Sequence[Sequence[int]] | None = None
    ) -> CostGraph:
        return price(
            self.model, curvature, kinds=self.settings.kinds, aggregate=power, near=near, progress=self.progress
        )

    def _planned(self, graph: CostGraph) -> list[Plan]:
        """A plan for every aggregate of the graph."""
        settings = self.settings
        graph = budgeted(graph, settings.keep, settings.max_flops)

        def found(power: float) -> dict[str, Any]:
            return plan(
                graph.under(power),
                settings.keep,
                settings.bases,
                max_flops=settings.max_flops,
                solver=settings.solver,
                beta=settings.trust_region,
                flat_energy=settings.flat_energy,
                rank_fraction=settings.rank_fraction,
                time_limit=settings.time_limit / len(graph.aggregates),
                seed=settings.seed,
                progress=self.progress,
                journal=self.journal,
            ).model_dump(mode="json")

        with self.clock("plan"):
            keys = {power: f"plan/{graph.curvature.rounds}/{power:g}" for power in graph.aggregates}
            return [Plan.model_validate(self.journal.value(key, partial(found, power))) for power, key in keys.items()]

    def _by_preset(self, preset: Preset, curvature: Curvature | None) -> Prepared:
        """Measured and planned as a published method has it: nothing is searched."""
        keep = self.settings.keep
        if keep is None:
            raise ValueError(f"the preset {preset.name} needs keep, the fraction of the parameters that may remain")
        if curvature is None:
            curvature = self.measured()
        with self.clock("plan"):
            graph, made = preset.plan(self.model, curvature, keep, self.calibration[0], self.loss)
        return Prepared(graph.curvature, graph, made, "always" if keep <= preset.updated_below else "never")

    def _by_axes(self) -> Prepared:
        """Geo-Sharing."""
        settings = self.settings
        with self.clock("measure and plan"):
            made, curvature = geo_sharing(
                self.model,
                self.calibration,
                self.loss,
                keep=settings.keep,
                bases=settings.bases,
                rank_fraction=settings.rank_fraction,
                axes=settings.axes,
                layers=find_layers(self.model, settings.include, settings.exclude),
                beta=BETA if settings.trust_region is None else settings.trust_region,
                solver=settings.solver,
                time_limit=settings.time_limit,
                seed=settings.seed,
                progress=self.progress,
                journal=self.journal,
            )
        return Prepared(curvature, None, made)
