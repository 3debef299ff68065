"""The trust region, clipped in coefficient space so that the factor form survives (DESIGN §7).

    min_S ½‖δ‖²_H + μ‖δ∥‖²,   δ = U S Vᵀ − W,   μ ≥ 0 the smallest with ‖δ∥‖_F ≤ τ = β‖W‖_F

`δ∥` is the part of `δ` in flat directions: in the Kronecker eigenbasis direction `(i, j)` has curvature `μ_i ν_j`, and
the flat set is the smallest of them that together hold `flat_energy` of the trace (DESIGN §3; Geo-Sharing, 2025).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

Mode = Literal["coefficients", "paper"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EigenMetric:
    """A layer in the eigenbasis of its Kronecker factors, float64."""

    weight: Tensor  # Q_Gᵀ W Q_A, m × n
    out_vectors: Tensor  # Q_G, m × m
    in_vectors: Tensor  # Q_A, n × n
    curvature: Tensor  # μ_i ν_j, m × n
    out_values: Tensor  # μ
    in_values: Tensor  # ν
    flat: Tensor  # bool, m × n


@dataclass(frozen=True)
class Fit:
    """Coefficients of one layer in a given basis, and what they cost.

    `damage` = `½‖δ‖²_H`, `sharp_damage` its part outside the flat directions, `flat_norm` = `‖δ∥‖_F`, `radius` = `τ`
    (None: no trust region), `multiplier` = `μ`. `reached` is False where no coefficients in this basis come within `τ`:
    then these are the ones that come nearest.
    """

    coefficients: Tensor
    damage: float
    sharp_damage: float
    flat_norm: float
    radius: float | None
    multiplier: float
    reached: bool


def eigen_metric(weight: Tensor, G: Tensor, A: Tensor, flat_energy: float = 0.05) -> EigenMetric:
    """Eigenbasis of `G` (m × m) and `A` (n × n), and the flat directions of a layer `W` (m × n)."""
    out_values, out_vectors = torch.linalg.eigh(G)
    in_values, in_vectors = torch.linalg.eigh(A)
    out_values, in_values = out_values.clamp(min=0), in_values.clamp(min=0)
    curvature = out_values[:, None] * in_values[None, :]
    order = curvature.flatten().argsort()
    held = curvature.flatten()[order].cumsum(0)
    flat = torch.zeros(curvature.numel(), dtype=torch.bool)
    flat[order[held <= flat_energy * float(held[-1])]] = True
    return EigenMetric(
        weight=out_vectors.T @ weight @ in_vectors,
        out_vectors=out_vectors,
        in_vectors=in_vectors,
        curvature=curvature,
        out_values=out_values,
        in_values=in_values,
        flat=flat.reshape(curvature.shape),
    )


def fit(
    metric: EigenMetric,
    left: Tensor | None,
    right: Tensor | None,
    beta: float | None = None,
    mode: Mode = "coefficients",
) -> Fit:
    """Coefficients of a layer in the basis `left` (m × r, None: identity), `right` (n × r', None: identity).

    Without `beta` the Kronecker least-squares solution. With it `mode="coefficients"` bisects on `μ`;
    `mode="paper"` clips `δ∥` to norm `τ` and projects the clipped weight on the basis again.
    """
    U = metric.out_vectors.T if left is None else metric.out_vectors.T @ left
    V = metric.in_vectors.T if right is None else metric.in_vectors.T @ right
    solve = _KroneckerSolve(U, V, metric.out_values, metric.in_values)
    start = solve(U.T @ (metric.curvature * metric.weight) @ V)
    if beta is None:
        return _fit(metric, U, V, start, None, 0.0)
    radius = beta * float(metric.weight.norm())
    free = _fit(metric, U, V, start, radius, 0.0)
    if free.reached:
        return free
    if mode == "paper":
        delta = U @ start @ V.T - metric.weight
        clipped = metric.weight + torch.where(metric.flat, delta * (radius / free.flat_norm), delta)
        return _fit(metric, U, V, solve(U.T @ (metric.curvature * clipped) @ V), radius, 0.0)
    return _smallest_multiplier(metric, U, V, start, solve, radius)


def _fit(metric: EigenMetric, U: Tensor, V: Tensor, S: Tensor, radius: float | None, multiplier: float) -> Fit:
    delta = U @ S @ V.T - metric.weight
    energy = 0.5 * metric.curvature * delta.square()
    flat_norm = float(delta[metric.flat].norm())
    return Fit(
        coefficients=S,
        damage=float(energy.sum()),
        sharp_damage=float(energy[~metric.flat].sum()),
        flat_norm=flat_norm,
        radius=radius,
        multiplier=multiplier,
        reached=radius is None or flat_norm <= radius * (1 + 1e-6),
    )


@dataclass(frozen=True)
class _KroneckerSolve:
    """`S ↦ (Uᵀ diag(μ) U)⁺ S (Vᵀ diag(ν) V)⁺`: the closed form at `μ = 0`, and the preconditioner elsewhere."""

    U: Tensor
    V: Tensor
    out_values: Tensor
    in_values: Tensor

    def __post_init__(self) -> None:
        out_gram = self.U.T @ (self.out_values[:, None] * self.U)
        in_gram = self.V.T @ (self.in_values[:, None] * self.V)
        object.__setattr__(self, "_out", torch.linalg.pinv(out_gram, rtol=1e-12, hermitian=True))
        object.__setattr__(self, "_in", torch.linalg.pinv(in_gram, rtol=1e-12, hermitian=True))

    def __call__(self, S: Tensor) -> Tensor:
        solved: Tensor = self._out @ S @ self._in  # type: ignore[attr-defined]
        return solved


def _smallest_multiplier(
    metric: EigenMetric, U: Tensor, V: Tensor, start: Tensor, solve: _KroneckerSolve, radius: float
) -> Fit:
    """Double `μ` from the mean curvature until `‖δ∥‖ ≤ τ`, then bisect; warm-started conjugate gradients inside."""
    scale = float(metric.curvature.mean())
    low, high = 0.0, scale if scale > 0 else 1.0
    S, found = start, None
    for _ in range(24):
        S = _weighted_least_squares(metric, U, V, high, S, solve)
        found = _fit(metric, U, V, S, radius, high)
        if found.reached:
            break
        low, high = high, 8 * high
    assert found is not None
    if not found.reached:
        return found
    for _ in range(30):
        if high - low <= 1e-3 * high:
            break
        middle = 0.5 * (low + high)
        S = _weighted_least_squares(metric, U, V, middle, S, solve)
        trial = _fit(metric, U, V, S, radius, middle)
        if trial.reached:
            high, found = middle, trial
        else:
            low = middle
    return found


def _weighted_least_squares(
    metric: EigenMetric, U: Tensor, V: Tensor, multiplier: float, start: Tensor, solve: _KroneckerSolve
) -> Tensor:
    """`argmin_S Σ w ∘ (U S Vᵀ − W)²`, `w = ½ μ_i ν_j + μ [flat]`, by preconditioned conjugate gradients (scipy)."""
    weights = 0.5 * metric.curvature + multiplier * metric.flat
    shape = start.shape
    gram_out, gram_in = U.T @ U, V.T @ V

    def normal(vector: Floats) -> Floats:
        S = torch.as_tensor(vector).reshape(shape)
        product: Floats = (U.T @ (weights * (U @ S @ V.T)) @ V).flatten().numpy()
        return product

    # Away from μ = 0 the mask dominates: blend the two closed forms, of the curvature and of a constant weight.
    flat_solve = (torch.linalg.pinv(gram_out, hermitian=True), torch.linalg.pinv(gram_in, hermitian=True))
    share = multiplier / (multiplier + float(metric.curvature.mean()))

    def precondition(vector: Floats) -> Floats:
        S = torch.as_tensor(vector).reshape(shape)
        flat = flat_solve[0] @ S @ flat_solve[1] / max(multiplier, 1e-300)
        solved: Floats = ((1 - share) * solve(S) + share * flat).flatten().numpy()
        return solved

    size = start.numel()
    target = (U.T @ (weights * metric.weight) @ V).flatten().numpy()
    solution, _ = cg(
        LinearOperator((size, size), matvec=normal, dtype=np.float64),
        target,
        x0=start.flatten().numpy(),
        rtol=1e-8,
        maxiter=300,
        M=LinearOperator((size, size), matvec=precondition, dtype=np.float64),
    )
    return torch.from_numpy(solution).reshape(shape)
