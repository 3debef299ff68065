"""The trust region where curvature is known along `t` axes (Geo-Sharing, arXiv:2511.06786; DESIGN §7).

    min_S ½ Σ λ⁺ c² + ½ σ ρ² + μ‖δ∥‖²,   δ = U S Vᵀ − W,  c = Qᵀδ,  ρ² = ‖δ‖² − ‖c‖²

`μ ≥ 0` is the smallest with `‖δ∥‖_F ≤ τ = β‖W‖_F`. With minor axes `δ∥ = QQᵀδ` is the spanned part and `δ⊥` the rest,
with leading axes it is the other way round. `U` and `V` have orthonormal columns, so that with `S₀ = UᵀWV`,
`B = [vec(Uᵀ Q_i V)]` and weights `a` along the axes and `w` elsewhere (Woodbury)

    S = S₀ − (1/w) B (a − w) c,   (I + BᵀB (a − w)/w) c = Bᵀ vec(S₀) − Qᵀ vec(W),

a system of `t` equations, whatever the size of the layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geocolor.curvature.lanczos import Axes
from geocolor.trust_region import Fit, Mode

#: A direction without curvature still counts for that part of the mean of the others, or coefficients run away.
LEAST = 1e-9


@dataclass(frozen=True)
class AxisMetric:
    """A layer along its axes, float64: `W` (m × n), `Q` [t, m, n], `λ⁺` [t], `σ`, and whether the axes are flat."""

    weight: Tensor
    vectors: Tensor
    values: Tensor
    rest: float
    minor: bool

    @property
    def energy(self) -> float:
        """Predicted damage of removing the layer."""
        inside = self.vectors.flatten(1) @ self.weight.flatten()
        outside = float(self.weight.square().sum() - inside.square().sum())
        return 0.5 * float(self.values @ inside.square()) + 0.5 * self.rest * max(outside, 0.0)


def axis_metric(weight: Tensor, axes: Axes) -> AxisMetric:
    """`weight` (m × n) with the axes of its layer's block."""
    return AxisMetric(
        weight=weight.double().cpu(),
        vectors=axes.vectors.double(),
        values=axes.values.clamp(min=0),
        rest=axes.rest,
        minor=axes.which == "minor",
    )


def fit_axes(
    metric: AxisMetric, left: Tensor, right: Tensor, beta: float | None = None, mode: Mode = "coefficients"
) -> Fit:
    """Coefficients of a layer in the basis `left` (m × r), `right` (n × r'), both with orthonormal columns.

    Without `beta` the least predicted damage. With it `mode="coefficients"` bisects on `μ`; `mode="paper"` clips
    `δ∥` of that to norm `τ` and projects the clipped weight on the basis again.
    """
    return _fit(_System(metric, left, right, _projected(metric, left, right)), beta, mode)


def fit_ranks(
    metric: AxisMetric,
    left: Tensor,
    right: Tensor,
    ranks: Sequence[int],
    beta: float | None = None,
    mode: Mode = "coefficients",
) -> list[Fit]:
    """`fit_axes` in the first `r` columns of both bases, for every `r` of `ranks`: the axes are projected once."""
    most = max(ranks)
    projected = _projected(metric, left[:, :most], right[:, :most])
    return [_fit(_System(metric, left[:, :r], right[:, :r], projected[:, :r, :r]), beta, mode) for r in ranks]


def _projected(metric: AxisMetric, left: Tensor, right: Tensor) -> Tensor:
    """`Uᵀ Q_i V` [t, r, r']."""
    t, m, n = metric.vectors.shape
    half = (metric.vectors.reshape(t * m, n) @ right).view(t, m, right.shape[1])
    projected: Tensor = left.T @ half
    return projected


def _fit(system: "_System", beta: float | None, mode: Mode) -> Fit:
    metric = system.metric
    free = system.solve(metric.weight, 0.0)
    if beta is None:
        return system.fit(free, None, 0.0)
    radius = beta * float(metric.weight.norm())
    found = system.fit(free, radius, 0.0)
    if found.reached:
        return found
    if mode == "paper":
        delta = system.left @ free @ system.right.T - metric.weight
        spanned = (metric.vectors.flatten(1) @ delta.flatten() @ metric.vectors.flatten(1)).view_as(delta)
        flat = spanned if metric.minor else delta - spanned
        clipped = metric.weight + (delta - flat) + flat * (radius / found.flat_norm)
        return system.fit(system.solve(clipped, 0.0), radius, 0.0)
    return system.smallest_multiplier(radius)


def own_basis(weight: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer lends: its singular vectors, `U` (m × k) and `V` (n × k), `k = min(m, n)`, most important first."""
    left, _, right = torch.linalg.svd(weight.double().cpu(), full_matrices=False)
    return left, right.T


class _System:
    """The `t` equations of one layer in one basis."""

    def __init__(self, metric: AxisMetric, left: Tensor, right: Tensor, projected: Tensor) -> None:
        self.metric, self.left, self.right = metric, left, right
        self.projected = projected.flatten(1)  # Bᵀ, t × r·r'
        self.gram = self.projected @ self.projected.T
        self.along_weight = metric.vectors.flatten(1) @ metric.weight.flatten()
        self.core = left.T @ metric.weight @ right  # S₀
        self.lost = max(float(metric.weight.square().sum() - self.core.square().sum()), 0.0)
        self.scale = 0.5 * max(metric.rest, float(metric.values.mean()))

    def solve(self, target: Tensor, multiplier: float) -> Tensor:
        """The coefficients that come nearest to `target` (m × n)."""
        own = target is self.metric.weight
        core = self.core if own else self.left.T @ target @ self.right
        along = self.along_weight if own else self.metric.vectors.flatten(1) @ target.flatten()
        other = max(0.5 * self.metric.rest + (0.0 if self.metric.minor else multiplier), LEAST * self.scale)
        axes = (0.5 * self.metric.values + (multiplier if self.metric.minor else 0.0)).clamp(min=LEAST * other)
        excess = axes / other - 1.0
        system = torch.eye(len(along), dtype=torch.float64) + self.gram * excess
        c = torch.linalg.solve(system, self.projected @ core.flatten() - along)
        solved: Tensor = core - ((excess * c) @ self.projected).view_as(core)
        return solved

    def fit(self, S: Tensor, radius: float | None, multiplier: float) -> Fit:
        metric = self.metric
        inside = (self.projected @ S.flatten() - self.along_weight).square()
        outside = max(float((S - self.core).square().sum() - inside.sum()) + self.lost, 0.0)
        on_axes, elsewhere = 0.5 * float(metric.values @ inside), 0.5 * metric.rest * outside
        flat_norm = (float(inside.sum()) if metric.minor else outside) ** 0.5
        return Fit(
            coefficients=S,
            damage=on_axes + elsewhere,
            sharp_damage=elsewhere if metric.minor else on_axes,
            flat_norm=flat_norm,
            radius=radius,
            multiplier=multiplier,
            reached=radius is None or flat_norm <= radius * (1 + 1e-6),
        )

    def smallest_multiplier(self, radius: float) -> Fit:
        """Bisection on the logarithm of `μ`, from where it hardly weighs to where nothing else does."""
        low, high = 1e-6 * self.scale, 1e6 * self.scale
        found = self.fit(self.solve(self.metric.weight, high), radius, high)
        if not found.reached:
            return found
        while high / low > 1.01:
            middle = (low * high) ** 0.5
            trial = self.fit(self.solve(self.metric.weight, middle), radius, middle)
            if trial.reached:
                high, found = middle, trial
            else:
                low = middle
        return found
