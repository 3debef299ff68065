"""Plans measured before one is taken: a price can be wrong, calibration data says by how much."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from geocolor.budget import UnreachableError
from geocolor.carry_out import apply, factors_key
from geocolor.divergence import divergence_of
from geocolor.graph import CostGraph
from geocolor.journal import Journal
from geocolor.losses import Batch, Loss, loss_for
from geocolor.planning import plan
from geocolor.plans import Plan


@dataclass(frozen=True)
class Verdict:
    """The plan nearest the dense model on calibration data, its `damage` there, and that of the best given plan.

    The plan's predicted damage has been rescaled to what was measured. `lost`: it is none of the given plans, but one
    without sharing, found beside them.
    """

    plan: Plan
    damage: float
    given: float

    @property
    def lost(self) -> bool:
        return self.damage < self.given

    def loss_of_sharing(self, unit: str) -> str:
        """Says that sharing lost, and by how much."""
        return (
            f"sharing was predicted to do less damage and did more on calibration data ({self.given:.4g} against "
            f"{self.damage:.4g} {unit} from the dense model): the plan without sharing is used. "
            "More calibration data or a higher --damping may help"
        )


def verified(
    model: nn.Module,
    graph: CostGraph,
    plans: Sequence[Plan],
    batches: Sequence[Batch],
    loss: Loss | None = None,
    *,
    progress: bool = False,
    journal: Journal | None = None,
) -> Verdict:
    """Carry out every plan, and the best without sharing at its budget, and measure how far the model moves.

    `batches` are calibration data, all of it used. What the `journal` holds is not measured again.
    """
    journal = journal or Journal()
    loss = loss_for(model, batches[0], loss)
    candidates = list(plans)
    for each in plans:
        if (each.keep or each.max_flops) is not None and any(len(cls.layers) > 1 for cls in each.classes):
            with suppress(UnreachableError):  # only sharing may meet a budget of few bases
                priced = graph.under(each.aggregate)
                candidates.append(
                    plan(
                        priced,
                        each.keep,
                        each.bases,
                        max_flops=each.max_flops,
                        solver="private",
                        beta=each.trust_region,
                    )
                )
    damage: dict[str, float] = {}

    def measured(plan: Plan) -> float:
        computed: dict[str, Any] = {"metrics": graph.metrics, "known": graph.factors, "borrowing": True}
        files = journal.folder if graph.bounded else None
        candidate = apply(model, plan, graph.curvature, **computed, files=files, progress=progress)
        graph.set_aside()
        return divergence_of(model, candidate, batches, loss, progress=progress)

    for each in candidates:
        if (shape := _shape(each)) not in damage:
            key = f"verdict/{graph.curvature.rounds}/{hashlib.sha256(shape.encode()).hexdigest()[:32]}"
            damage[shape] = journal.value(key, partial(measured, each))
    chosen = min(candidates, key=lambda each: damage[_shape(each)])
    if graph.factors is not None:  # it is looked from, or installed; the others have had their turn
        needed = {factors_key(cls) for cls in chosen.classes}
        for known in graph.factors.keys() - needed:
            del graph.factors[known]
    least, predicted = damage[_shape(chosen)], chosen.predicted_damage
    scaled = chosen.rescaled(least / predicted) if predicted > 0 and least > 0 else chosen
    return Verdict(scaled, least, min(damage[_shape(each)] for each in plans))


def _shape(plan: Plan) -> str:
    """The same for plans that make the same model."""
    return repr(sorted((cls.layers, cls.kind, cls.rank, cls.right_rank, cls.medoid) for cls in plan.classes))
