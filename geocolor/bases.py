"""Bases of a class: the eigenproblem of DESIGN §4 under the Kronecker metric, and the damage of every rank at once.

With `δ = Ŵ − W` and `ΔJ = ½ tr(G δ A δᵀ)` let `W̃ = G^½ W A^½`. A basis enters a layer only through the subspace it
spans after whitening by the layer's *own* factors; orthonormal columns of `A^½ B` (Gram–Schmidt, in the order of the
basis) give the best coefficients of every rank at once, so the prices below are those of the factors finally installed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FactoredKind = Literal["in", "out", "both"]


@dataclass(frozen=True)
class Factors:
    """A shared basis and its coefficients, float64.

    `in`: `right` n × r, coefficients m × r, `W ≈ C rightᵀ`. `out`: `left` m × r, coefficients r × n, `W ≈ left C`.
    `both`: `left` m × r, `right` n × r', coefficients r × r', `W ≈ left S rightᵀ`.
    """

    kind: FactoredKind
    layers: tuple[str, ...]
    coefficients: Mapping[str, Tensor]
    left: Tensor | None = None
    right: Tensor | None = None

    def dense(self, name: str) -> Tensor:
        """The `m × n` matrix that stands for layer `name`."""
        product = self.coefficients[name]
        if self.left is not None:
            product = self.left @ product
        return product if self.right is None else product @ self.right.T


@dataclass(frozen=True)
class Metric:
    """One layer in its own curvature: the weight and the square roots of its Kronecker factors, float64."""

    weight: Tensor  # m × n
    root_out: Tensor  # G^½, m × m
    root_in: Tensor  # A^½, n × n
    whitened: Tensor  # W̃ = G^½ W A^½

    @property
    def energy(self) -> float:
        """`½‖W̃‖²`: predicted damage of removing the layer."""
        return 0.5 * float(self.whitened.square().sum())


def square_root(matrix: Tensor, floor: float = 1e-12) -> Tensor:
    """Symmetric square root by eigendecomposition; eigenvalues below `floor` of the largest are lifted to it.

    `torch.linalg.eigh` now and then fails to converge on clustered spectra; a tiny ridge settles that.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # no convergence
        ridge = 1e-10 * float(matrix.diagonal().mean())
        values, vectors = torch.linalg.eigh(matrix + ridge * torch.eye(len(matrix), dtype=matrix.dtype))
    top = float(values[-1])
    values = values.clamp(min=floor * top if top > 0 else 1.0)
    root: Tensor = (vectors * values.sqrt()) @ vectors.T
    return root


def metric(weight: Tensor, G: Tensor, A: Tensor) -> Metric:
    root_out, root_in = square_root(G), square_root(A)
    return Metric(weight, root_out, root_in, root_out @ weight @ root_in)


def class_basis(members: Sequence[Metric], side: Literal["in", "out"]) -> Tensor:
    """Basis of a class on one side, columns by falling importance: n × n (`in`) or m × m (`out`).

    `in`: eigenvectors of `Lᵀ (Σ Wᵀ G W) L`, `Ā = L Lᵀ` the class mean of `A`, mapped back by `L⁻ᵀ`; `out` is its
    mirror. Columns are orthonormal under `Ā`, so leading columns span the best basis of every rank.
    """
    if side == "in":
        roots = [member.root_in for member in members]
        halves = [member.root_out @ member.weight for member in members]
    else:
        roots = [member.root_out for member in members]
        halves = [(member.weight @ member.root_in).T for member in members]
    root = roots[0] if len(members) == 1 else _factor(torch.stack([r @ r for r in roots]).mean(0))
    whitened = torch.cat(halves) @ root
    vectors = _eigenvectors(whitened.T @ whitened)
    basis: Tensor = torch.linalg.solve(root.T, vectors)
    return basis


def _factor(matrix: Tensor) -> Tensor:
    """Some `L` with `L Lᵀ = matrix`: Cholesky, or the symmetric square root where that fails."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    found: Tensor = square_root(matrix) if failed else factor
    return found


def _eigenvectors(matrix: Tensor) -> Tensor:
    """Eigenvectors of a symmetric matrix, largest eigenvalue first."""
    vectors: Tensor
    try:
        vectors = torch.linalg.eigh(matrix)[1].flip(1)
    except RuntimeError:  # no convergence
        vectors = torch.linalg.svd(matrix)[0]
    return vectors


def one_sided_damage(member: Metric, basis: Tensor, side: Literal["in", "out"]) -> Tensor:
    """Predicted damage of a layer at every rank `0 … columns` of a one-sided basis, its best coefficients given."""
    if side == "in":
        q = torch.linalg.qr(member.root_in @ basis)[0]
        captured = (member.whitened @ q).square().sum(0)
    else:
        q = torch.linalg.qr(member.root_out @ basis)[0]
        captured = (q.T @ member.whitened).square().sum(1)
    return torch.cat([captured.new_zeros(1), captured.cumsum(0)]).mul(-0.5).add(member.energy).clamp(min=0)


def two_sided_damage(member: Metric, left: Tensor, right: Tensor) -> Tensor:
    """Predicted damage at every pair of ranks: `(columns of left + 1) × (columns of right + 1)`."""
    q_left = torch.linalg.qr(member.root_out @ left)[0]
    q_right = torch.linalg.qr(member.root_in @ right)[0]
    core = (q_left.T @ member.whitened @ q_right).square()
    captured = torch.nn.functional.pad(core.cumsum(0).cumsum(1), (1, 0, 1, 0))
    return captured.mul(-0.5).add(member.energy).clamp(min=0)


def coefficients(member: Metric, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Best coefficients under the layer's own metric: `argmin_S tr(G δ A δᵀ)`, `δ = left S rightᵀ − W` (DESIGN §4)."""
    solved = member.weight
    if left is not None:
        solved = torch.linalg.lstsq(member.root_out @ left, member.root_out @ solved, driver="gelsd").solution
    if right is not None:
        half = (solved @ member.root_in).T
        solved = torch.linalg.lstsq(member.root_in @ right, half, driver="gelsd").solution.T
    return solved


def factorize(kind: FactoredKind, members: Mapping[str, Metric], rank: int, right_rank: int | None = None) -> Factors:
    """Basis and coefficients of one class at the given rank(s); bases come with orthonormal columns."""
    metrics = list(members.values())
    left = right = None
    if kind in ("out", "both"):
        left = torch.linalg.qr(class_basis(metrics, "out")[:, :rank])[0]
    if kind in ("in", "both"):
        right = torch.linalg.qr(class_basis(metrics, "in")[:, : rank if kind == "in" else right_rank])[0]
    fitted = {name: coefficients(member, left, right) for name, member in members.items()}
    return Factors(kind, tuple(members), fitted, left, right)
