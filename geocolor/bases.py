"""Bases of a class: the eigenproblem of DESIGN §4 under the Kronecker metric, and the damage of every rank at once.

With `δ = Ŵ − W` and `ΔJ = ½ tr(G δ A δᵀ)` let `W̃ = Mᵀ W L`, `G = M Mᵀ` and `A = L Lᵀ`. A basis enters a layer only
through the subspace it spans after whitening by the layer's *own* factors; orthonormal columns of `LᵀB` (Gram–Schmidt,
in the order of the basis) give the best coefficients of every rank at once, so the prices below are those of the
factors finally installed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

FactoredKind = Literal["in", "out", "both"]
Side = Literal["in", "out"]


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

    def tensors(self) -> dict[str, Tensor]:
        """All matrices by name, as a file holds them."""
        bases = {side: basis for side, basis in (("left", self.left), ("right", self.right)) if basis is not None}
        return bases | {f"coefficients/{name}": matrix for name, matrix in self.coefficients.items()}

    @classmethod
    def of(cls, kind: FactoredKind, layers: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Factors":
        """The inverse of `tensors`."""
        coefficients = {name: tensors[f"coefficients/{name}"] for name in layers}
        return cls(kind, layers, coefficients, tensors.get("left"), tensors.get("right"))


@dataclass(frozen=True, eq=False)
class Metric:
    """One layer in its own curvature: the weight and the roots of its Kronecker factors (`root`), float64.

    What pricing needs over and over is computed when first asked for and kept. Everything is written for the input
    side; the output side is that of the `mirror`.
    """

    weight: Tensor  # m × n
    root_out: Tensor  # M, m × m
    root_in: Tensor  # L, n × n
    whitened: Tensor  # W̃ = Mᵀ W L

    @property
    def energy(self) -> float:
        """`½‖W̃‖²`: predicted damage of removing the layer."""
        return 0.5 * float(self.whitened.square().sum())

    @cached_property
    def mirror(self) -> "Metric":
        """The same layer with input and output exchanged."""
        return Metric(self.weight.T, self.root_in, self.root_out, self.whitened.T)

    @cached_property
    def half(self) -> Tensor:
        """`Mᵀ W`, m × n."""
        return self.root_out.T @ self.weight

    @cached_property
    def gram(self) -> Tensor:
        """`Wᵀ G W`, n × n."""
        return self.half.T @ self.half

    @cached_property
    def A(self) -> Tensor:
        """`A` as its root has it: small eigenvalues lifted."""
        return self.root_in @ self.root_in.T

    @cached_property
    def spectrum(self) -> Tensor:
        """Squared singular values of `W̃`, largest first."""
        narrow = self.whitened if self.whitened.shape[0] <= self.whitened.shape[1] else self.whitened.T
        values: Tensor = torch.linalg.eigvalsh(narrow @ narrow.T)
        return values.flip(0).clamp(min=0)


class Roots:
    """Roots, taken once of each tensor object: layers that read the same input hold the same `A`."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, matrix: Tensor) -> Tensor:
        if id(matrix) not in self._known:
            self._known[id(matrix)] = (matrix, root(matrix))  # held, so that the id stays its own
        return self._known[id(matrix)][1]


#: Least and largest pivot of a Cholesky factor that is trusted, and of an orthonormal basis found through one.
PIVOTS = 1e-6


def root(matrix: Tensor) -> Tensor:
    """Lower triangular `L`, `matrix = L Lᵀ`: by Cholesky, or from the `square_root` where that is ill-conditioned."""
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not _well_conditioned(lower):
        lower = torch.linalg.qr(square_root(matrix))[1].T
    return lower.contiguous()  # one layout, so that roots read from a file give the same to the last bit


def _well_conditioned(triangle: Tensor) -> bool:
    pivots = triangle.diagonal().abs()
    return not len(pivots) or bool(pivots.min() > PIVOTS * pivots.max())


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
    symmetric: Tensor = (vectors * values.sqrt()) @ vectors.T
    return symmetric


def metric(weight: Tensor, G: Tensor, A: Tensor, root: Callable[[Tensor], Tensor] = root) -> Metric:
    """A layer in the curvature `G ⊗ A`; with `root=Roots()` layers of one input share the root of their `A`."""
    return whitened(weight, root(G), root(A))


def whitened(weight: Tensor, root_out: Tensor, root_in: Tensor) -> Metric:
    """The layer in the curvature of these roots."""
    return Metric(weight, root_out, root_in, root_out.T @ weight @ root_in)


def class_basis(members: Sequence[Metric], side: Side, columns: int | None = None) -> Tensor:
    """Basis of a class on one side, columns by falling importance: n × columns (`in`) or m × columns (`out`).

    `in`: eigenvectors of `Lᵀ (Σ Wᵀ G W) L`, `Ā = L Lᵀ` the class mean of `A`, mapped back by `L⁻ᵀ`; `out` is its
    mirror. Columns are orthonormal under `Ā`, so leading columns span the best basis of every rank. `columns` is the
    width by default.
    """
    turned = _turned(members, side)
    lower = turned[0].root_in if _common_root(turned) else root(torch.stack([member.A for member in turned]).mean(0))
    basis: Tensor = torch.linalg.solve_triangular(lower.T, _directions(turned, lower, columns), upper=True)
    return basis


def _turned(members: Sequence[Metric], side: Side) -> list[Metric]:
    return list(members) if side == "in" else [member.mirror for member in members]


def _common_root(turned: Sequence[Metric]) -> bool:
    """Whether all layers have the very same `A`, as those that read one input do."""
    return all(member.root_in is turned[0].root_in for member in turned)


def _directions(turned: Sequence[Metric], lower: Tensor, columns: int | None) -> Tensor:
    """Leading eigenvectors of `Lᵀ (Σ Wᵀ G W) L`; from the row space alone where that is smaller and enough."""
    n = len(lower)
    columns = n if columns is None else columns
    rows = sum(len(member.weight) for member in turned)
    if columns <= rows < n:
        span, triangle = torch.linalg.qr((torch.cat([member.half for member in turned]) @ lower).T)
        spanned: Tensor = span @ _eigenvectors(triangle @ triangle.T)[:, :columns]
        return spanned
    gram = turned[0].gram if len(turned) == 1 else torch.stack([member.gram for member in turned]).sum(0)
    return _eigenvectors(lower.T @ gram @ lower)[:, :columns]


def _eigenvectors(matrix: Tensor) -> Tensor:
    """Eigenvectors of a symmetric matrix, largest eigenvalue first."""
    try:
        vectors: Tensor = torch.linalg.eigh(matrix)[1].flip(1)
    except RuntimeError:  # no convergence
        vectors = torch.linalg.svd(matrix)[0]
    return vectors


def frames(members: Sequence[Metric], side: Side, columns: int) -> list[Tensor]:
    """For every layer `L Q`, `Q` the orthonormalised `LᵀB` of the class basis `B` (n × columns): see `damage_in_frame`.

    Where the layers read one input the basis is orthonormal for each of them, and nothing has to be solved.
    """
    turned = _turned(members, side)
    if _common_root(turned):
        lower = turned[0].root_in
        return [lower @ _directions(turned, lower, columns)] * len(turned)
    basis = class_basis(members, side, columns)
    return [_frame(member, basis) for member in turned]


def _frame(member: Metric, basis: Tensor) -> Tensor:
    """`A B R⁻¹` with `Bᵀ A B = Rᵀ R`: Gram–Schmidt of `LᵀB` by Cholesky, or by QR where that is ill-conditioned."""
    image = member.A @ basis
    triangle, failed = torch.linalg.cholesky_ex(basis.T @ image, upper=True)
    if failed or not _well_conditioned(triangle):
        orthonormal: Tensor = torch.linalg.qr(member.root_in.T @ basis)[0]
        return member.root_in @ orthonormal
    frame: Tensor = torch.linalg.solve_triangular(triangle, image, upper=True, left=False)
    return frame


def damage_alone(member: Metric) -> Tensor:
    """Predicted damage of a layer at every rank `0 … min(m, n)` in the best basis of its own (Eckart–Young)."""
    return _rest(member, member.spectrum)


def damage_in_frame(member: Metric, frame: Tensor, side: Side) -> Tensor:
    """Predicted damage of a layer at every rank `0 … columns` of a one-sided basis, its best coefficients given."""
    gram = (member if side == "in" else member.mirror).gram
    return _rest(member, (frame * (gram @ frame)).sum(0))


def damage_in_frames(member: Metric, left: Tensor, right: Tensor) -> Tensor:
    """Predicted damage at every pair of ranks: `(columns of left + 1) × (columns of right + 1)`."""
    core = (left.T @ member.weight @ right).square()
    captured = torch.nn.functional.pad(core.cumsum(0).cumsum(1), (1, 0, 1, 0))
    return captured.mul(-0.5).add(member.energy).clamp(min=0)


def _rest(member: Metric, captured: Tensor) -> Tensor:
    return torch.cat([captured.new_zeros(1), captured.cumsum(0)]).mul(-0.5).add(member.energy).clamp(min=0)


def one_sided_damage(member: Metric, basis: Tensor, side: Side) -> Tensor:
    """`damage_in_frame` of any basis, n × columns (`in`) or m × columns (`out`)."""
    return damage_in_frame(member, _frame(member if side == "in" else member.mirror, basis), side)


def two_sided_damage(member: Metric, left: Tensor, right: Tensor) -> Tensor:
    """`damage_in_frames` of any pair of bases, m × columns and n × columns."""
    return damage_in_frames(member, _frame(member.mirror, left), _frame(member, right))


def coefficients(member: Metric, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Best coefficients under the layer's own metric: `argmin_S tr(G δ A δᵀ)`, `δ = left S rightᵀ − W` (DESIGN §4)."""
    solved = member.weight
    if left is not None:
        solved = _least_squares(member.root_out.T @ left, member.root_out.T @ solved)
    if right is not None:
        solved = _least_squares(member.root_in.T @ right, (solved @ member.root_in).T).T
    return solved


def _least_squares(matrix: Tensor, values: Tensor) -> Tensor:
    """The `x` of `matrix x ≈ values`; by singular values, and the smallest, where columns are dependent."""
    found: Tensor
    orthonormal, triangle = torch.linalg.qr(matrix)
    if matrix.shape[1] <= matrix.shape[0] and _well_conditioned(triangle):
        found = torch.linalg.solve_triangular(triangle, orthonormal.T @ values, upper=True)
    else:
        found = torch.linalg.lstsq(matrix, values, driver="gelsd").solution
    return found


def factorize(kind: FactoredKind, members: Mapping[str, Metric], rank: int, right_rank: int | None = None) -> Factors:
    """Basis and coefficients of one class at the given rank(s); bases come with orthonormal columns."""
    metrics = list(members.values())
    left = right = None
    if kind in ("out", "both"):
        left = torch.linalg.qr(class_basis(metrics, "out", rank))[0]
    if kind in ("in", "both"):
        right = torch.linalg.qr(class_basis(metrics, "in", rank if kind == "in" else right_rank))[0]
    fitted = {name: coefficients(member, left, right) for name, member in members.items()}
    return Factors(kind, tuple(members), fitted, left, right)
