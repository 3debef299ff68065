"""Bases of a class: the eigenproblem of DESIGN §4 under the Kronecker metric, and the damage of every rank at once.

With `ΔJ = ½ tr(G δ A δᵀ)`, `δ = Ŵ − W`, a basis enters a layer only through the subspace it spans after whitening by
the layer's *own* factors; columns made orthonormal under `A` (Gram–Schmidt, in the order of the basis) give the best
coefficients of every rank at once, so the prices below are those of the factors finally installed.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor

from geocolor.curvature.sketch import Sketch

FactoredKind = Literal["in", "out", "both"]
Side = Literal["in", "out"]

#: From this width on, bases of a class are sought in what is leading in its layers, all but `REST` of their energy.
WIDE, REST = 512, 1e-4

#: The least pivot of a triangle, or singular value, that is not taken for zero, relative to the largest.
SMALLEST = {torch.float64: 5e-7, torch.float32: 3e-4}


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


class Factor:
    """A Kronecker factor, `A` or `G` of one layer or of several: symmetric, dense or sketched."""

    def __init__(self, held: Tensor | Sketch) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held) if isinstance(self.held, Tensor) else len(self.held.diagonal)

    @property
    def matrix(self) -> Tensor:
        return self.held if isinstance(self.held, Tensor) else self.held.dense()

    def times(self, columns: Tensor) -> Tensor:
        """The product with a matrix."""
        if isinstance(self.held, Tensor):
            return self.held @ columns
        product = self.held.low @ (self.held.low.T @ columns)
        return product.addcmul_(self.held.diagonal[:, None], columns)

    @cached_property
    def root(self) -> Tensor:
        """Lower triangular `R`, `R Rᵀ` the matrix."""
        return root(self.matrix)

    def back(self, vectors: Tensor) -> Tensor:
        """`R⁻ᵀ vectors`."""
        found: Tensor = torch.linalg.solve_triangular(self.root.T, vectors, upper=True)
        return found


def _mean(factors: Sequence[Factor]) -> Factor:
    """Their mean; of sketches a sketch."""
    if all(factor is factors[0] for factor in factors):
        return factors[0]
    sketches = [factor.held for factor in factors if isinstance(factor.held, Sketch)]
    if len(sketches) == len(factors):
        low = torch.cat([sketch.low for sketch in sketches], 1) * len(factors) ** -0.5
        return Factor(Sketch(low, torch.stack([sketch.diagonal for sketch in sketches]).mean(0)))
    mean = factors[0].matrix.clone()
    for factor in factors[1:]:
        mean += factor.matrix
    return Factor(mean.div_(len(factors)))


def _nearly_singular(pivots: Tensor) -> bool:
    """Of a triangle by Cholesky, or singular values: whether half of all digits and more would be lost."""
    return len(pivots) > 0 and bool(pivots.abs().min() < SMALLEST[pivots.dtype] * pivots.abs().max())


@dataclass(frozen=True, eq=False)
class Metric:
    """One layer in its own curvature: the weight and its Kronecker factors, of one dtype.

    What pricing needs over and over is computed when first asked for and kept. Everything is written for the input
    side; the output side is that of the `mirror`. What is asked of a layer alone is found on its narrower side: no root
    is taken of the wider factor.
    """

    weight: Tensor  # m × n
    G: Factor  # m × m
    A: Factor  # n × n

    @property
    def mirror(self) -> "Metric":
        """The same layer with input and output exchanged; its own mirror is this one."""
        origin = self.__dict__.get("_origin", lambda: None)()
        if origin is not None:
            return cast(Metric, origin)
        if "_mirror" not in self.__dict__:
            mirrored = Metric(self.weight.T, self.A, self.G)
            mirrored.__dict__["_origin"] = weakref.ref(self)  # a cycle would not be freed at once
            self.__dict__["_mirror"] = mirrored
        return cast(Metric, self.__dict__["_mirror"])

    @property
    def narrow(self) -> "Metric":
        """This one or its mirror, whichever has no more inputs than outputs."""
        return self if self.weight.shape[1] <= self.weight.shape[0] else self.mirror

    @cached_property
    def energy(self) -> float:
        """`½ tr(G W A Wᵀ)`: predicted damage of removing the layer."""
        if self.narrow is not self:
            return self.narrow.energy
        return 0.5 * float((self.gram * self.A.matrix).sum(dtype=torch.float64))

    @cached_property
    def half(self) -> Tensor:
        """`R_Gᵀ W`, m × n."""
        return self.G.root.T @ self.weight

    @cached_property
    def gram(self) -> Tensor:
        """`Wᵀ G W`, n × n."""
        return self.weight.T @ self.G.times(self.weight) if self.narrow is self else self.half.T @ self.half

    @cached_property
    def spectrum(self) -> Tensor:
        """Squared singular values of `G^½ W A^½`, largest first, min(m, n) of them."""
        if self.narrow is not self:
            return self.narrow.spectrum
        values: Tensor = torch.linalg.eigvalsh(self._whitened_gram())
        return values.flip(0).clamp(min=0)

    @cached_property
    def leading(self) -> Tensor:
        """On the narrow side: leading right singular vectors of `G^½ W A^½`, all but `REST` of the energy in them."""
        vectors = _eigen(self._whitened_gram())[1]
        rest = self.spectrum.flip(0).cumsum(0, dtype=torch.float64).flip(0)
        return vectors[:, : max(int((rest > REST * rest[0]).sum()), 1)].contiguous()

    def _whitened_gram(self) -> Tensor:
        return self.A.root.T @ self.gram @ self.A.root

    @cached_property
    def span(self) -> Tensor:
        """`Y`, n × k, with `Y Yᵀ` what is leading in `Wᵀ G W`, as `leading` has it."""
        if self.narrow is not self:
            return self.half.T @ self.narrow.leading
        leading = self.leading
        return self.A.back(leading) * self.spectrum[: leading.shape[1]].sqrt()


class Known:
    """One `Factor` for each tensor object: layers that read the same input hold the same `A`, and share its root."""

    def __init__(self) -> None:
        self._known: dict[int, Factor] = {}  # which hold the tensors, so that an id stays its own

    def __call__(self, held: Tensor | Sketch) -> Factor:
        return self._known.setdefault(id(held), Factor(held))


def root(matrix: Tensor) -> Tensor:
    """Lower triangular `R`, `matrix = R Rᵀ`: by Cholesky, or from the `square_root` where that is ill-conditioned."""
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed or _nearly_singular(lower.diagonal()):
        lower = torch.linalg.qr(square_root(matrix))[1].T
    return lower.contiguous()


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
    values = values.clamp(min=max(floor, torch.finfo(values.dtype).eps) * top if top > 0 else 1.0)
    symmetric: Tensor = (vectors * values.sqrt()) @ vectors.T
    return symmetric


def metric(
    weight: Tensor, G: Tensor | Sketch, A: Tensor | Sketch, factor: Callable[[Tensor | Sketch], Factor] = Factor
) -> Metric:
    """A layer in the curvature `G ⊗ A`; with `factor=Known()` layers of one input share the root of their `A`."""
    return Metric(weight, factor(G), factor(A))


def class_basis(members: Sequence[Metric], side: Side, columns: int | None = None) -> Tensor:
    """Basis of a class on one side, columns by falling importance: n × columns (`in`) or m × columns (`out`).

    `in`: eigenvectors of `Rᵀ (Σ Wᵀ G W) R`, `Ā = R Rᵀ` the class mean of `A`, mapped back by `R⁻ᵀ`; `out` is its
    mirror. Columns are orthonormal under `Ā`, so leading columns span the best basis of every rank. `columns` is the
    width by default.
    """
    turned = _turned(members, side)
    mean = _mean([member.A for member in turned])
    columns = len(mean) if columns is None else columns
    basis = _spanned(turned, mean, columns)
    if basis is not None and basis.shape[1] < columns and len(turned) == 1:
        basis = _own(turned[0], columns)
    if basis is not None and basis.shape[1] == columns:
        return basis
    return mean.back(_directions(turned, mean, columns))


def _own(member: Metric, columns: int) -> Tensor | None:
    """`class_basis` of one layer, by all of the eigenproblem of its narrower side; None where that is its own.

    Fewer than `columns` where no more are numerically independent.
    """
    if member.narrow is member:
        return None
    values, vectors = _eigen(member.narrow._whitened_gram())
    scales = values[:columns].clamp(min=0).sqrt()
    sound = int((scales > SMALLEST[scales.dtype] * scales[0]).sum())
    return member.half.T @ (vectors[:, :sound] / scales[:sound])


def _turned(members: Sequence[Metric], side: Side) -> list[Metric]:
    return list(members) if side == "in" else [member.mirror for member in members]


def _directions(turned: Sequence[Metric], mean: Factor, columns: int) -> Tensor:
    """Leading eigenvectors of `Rᵀ (Σ Wᵀ G W) R`."""
    gram = turned[0].gram
    for member in turned[1:]:
        gram = gram + member.gram
    return _eigen(mean.root.T @ gram @ mean.root)[1][:, :columns]


def _spanned(turned: Sequence[Metric], mean: Factor, columns: int) -> Tensor | None:
    """`class_basis` within what is leading in the members, where that is less than the width; else None.

    With `Y Yᵀ` nearly `Σ Wᵀ G W` it is `Y U Σ⁻¹` by the eigenvectors of `Yᵀ Ā Y = U Σ² Uᵀ`: no root of `Ā`, and no
    eigenproblem of its size (of one layer, none: `U = I`). Fewer than `columns` where no more are numerically
    independent.
    """
    if len(mean) < WIDE:
        return None
    spans = [member.span for member in turned]
    if len(spans) > 1 and sum(span.shape[1] for span in spans) >= len(mean):
        return None
    Y = torch.cat(spans, 1) if len(spans) > 1 else spans[0]
    values, vectors = _eigen(Y.T @ mean.times(Y)) if len(spans) > 1 else (turned[0].spectrum[: Y.shape[1]], None)
    scales = values.clamp(min=0).sqrt()
    sound = min(columns, int((scales > SMALLEST[scales.dtype] * scales[0]).sum()))
    if vectors is None:
        return Y[:, :sound] / scales[:sound]
    return Y @ (vectors[:, :sound] / scales[:sound])


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix, largest eigenvalue first."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # no convergence
        vectors, values, _ = torch.linalg.svd(matrix)
        return values, vectors
    return values.flip(0), vectors.flip(1)


def frames(members: Sequence[Metric], side: Side, columns: int) -> list[Tensor]:
    """For every layer `A Q`, `Q` the class basis, n × columns, made orthonormal under the layer's own `A`.

    Where the layers read one input the basis is so for each of them, and nothing has to be solved. In wide layers there
    may be fewer columns: further ones would hold next to nothing of any layer.
    """
    turned = _turned(members, side)
    mean = _mean([member.A for member in turned])
    basis = _spanned(turned, mean, columns)
    if mean is turned[0].A:
        frame = mean.root @ _directions(turned, mean, columns) if basis is None else mean.times(basis)
        return [frame] * len(turned)
    if basis is None:
        basis = mean.back(_directions(turned, mean, columns))
    found: dict[Factor, Tensor] = {}  # one for all layers that read the same input
    for member in turned:
        if member.A not in found:
            found[member.A] = _frame(member.A, basis)
    return [found[member.A] for member in turned]


def _frame(A: Factor, basis: Tensor) -> Tensor:
    image, triangle = _orthonormal(A, basis)
    if triangle is None:
        return image
    frame: Tensor = torch.linalg.solve_triangular(triangle, image, upper=True, left=False)
    return frame


def _orthonormal(A: Factor, basis: Tensor) -> tuple[Tensor, Tensor | None]:
    """`A B` and `T` with `Bᵀ A B = Tᵀ T`, so that `A B T⁻¹` is a frame; the frame itself and None where `T` is bad."""
    image = A.times(basis)
    triangle, failed = torch.linalg.cholesky_ex(basis.T @ image, upper=True)
    if failed or _nearly_singular(triangle.diagonal()):
        orthonormal: Tensor = torch.linalg.qr(A.root.T @ basis)[0]
        return A.root @ orthonormal, None
    return image, triangle


def damage_alone(member: Metric) -> Tensor:
    """Predicted damage of a layer at every rank `0 … min(m, n)` in the best basis of its own (Eckart–Young)."""
    return _rest(member, member.spectrum)


def damage_in_frame(member: Metric, frame: Tensor, side: Side) -> Tensor:
    """Predicted damage of a layer at every rank `0 … columns` of a one-sided basis, its best coefficients given."""
    turned = member if side == "in" else member.mirror
    if len(turned.weight) < len(frame):
        return _rest(member, (turned.half @ frame).square().sum(0))
    return _rest(member, (frame * (turned.gram @ frame)).sum(0))


def damage_in_frames(member: Metric, left: Tensor, right: Tensor) -> Tensor:
    """Predicted damage at every pair of ranks: `(columns of left + 1) × (columns of right + 1)`."""
    core = (left.T @ member.weight @ right).square()
    damage = core.new_zeros(len(core) + 1, core.shape[1] + 1, dtype=torch.float64)
    torch.cumsum(core.cumsum(0, dtype=torch.float64), 1, out=damage[1:, 1:])
    return damage.mul_(-0.5).add_(member.energy).clamp_(min=0)


def _rest(member: Metric, captured: Tensor) -> Tensor:
    summed = torch.nn.functional.pad(captured.cumsum(0, dtype=torch.float64), (1, 0))
    return summed.mul(-0.5).add(member.energy).clamp(min=0)


def one_sided_damage(member: Metric, basis: Tensor, side: Side) -> Tensor:
    """`damage_in_frame` of any basis, n × columns (`in`) or m × columns (`out`)."""
    return damage_in_frame(member, _frame((member if side == "in" else member.mirror).A, basis), side)


def two_sided_damage(member: Metric, left: Tensor, right: Tensor) -> Tensor:
    """`damage_in_frames` of any pair of bases, m × columns and n × columns."""
    return damage_in_frames(member, _frame(member.G, left), _frame(member.A, right))


def coefficients(member: Metric, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Best coefficients under the layer's own metric: `argmin_S tr(G δ A δᵀ)`, `δ = left S rightᵀ − W` (DESIGN §4)."""
    solved = member.weight
    if left is not None:
        solved = _projected(member.mirror, left, solved)
    if right is not None:
        solved = _projected(member, right, solved.T).T
    return solved


def _projected(member: Metric, basis: Tensor, matrix: Tensor) -> Tensor:
    """`argmin_X ‖Rᵀ (basis X − matrix)‖`, `A = R Rᵀ`: normal equations, or least squares where they are bad."""
    image, triangle = _orthonormal(member.A, basis)
    if triangle is None:
        upper = member.A.root.T
        found: Tensor = torch.linalg.lstsq(upper @ basis, upper @ matrix, driver="gelsd").solution
        return found
    solved: Tensor = torch.cholesky_solve(image.T @ matrix, triangle, upper=True)
    return solved


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
