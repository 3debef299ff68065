"""Second moments too wide to be held: a randomised low rank and a diagonal, gathered in one pass, with a stated error.

Kept are `S = M Ω` (n × k, `Ω` random) and `diag M`, both sums over data like `M = Σ x xᵀ` itself. Nyström's method
makes `U Uᵀ ⪯ M` of them (Frangella, Tropp & Udell 2021, arXiv:2110.02820, algorithm 2.1), and the rest
`R = M − U Uᵀ ⪰ 0` is replaced by its diagonal, which is known exactly. So `‖M − (U Uᵀ + diag R)‖ ≤ tr R`, and
`tr R / tr M` is stated.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sketch:
    """`U Uᵀ + diag(d)`: `low` is `U`, n × k, `diagonal` is `d`, both float64; `outside` is `tr R / tr M`."""

    low: Tensor
    diagonal: Tensor
    outside: float = 0.0

    def dense(self) -> Tensor:
        """The matrix, n × n."""
        matrix = self.low @ self.low.T
        matrix.diagonal().add_(self.diagonal)
        return matrix

    def lifted(self, lift: float) -> Sketch:
        """With `lift` times the mean of the whole diagonal added to it."""
        mean = float((self.low.square().sum(1) + self.diagonal).mean())
        return replace(self, diagonal=self.diagonal + lift * mean)

    def scaled(self, scale: float) -> Sketch:
        return replace(self, low=self.low * scale**0.5, diagonal=self.diagonal * scale)


class Sketchable(Mapping[str, Tensor]):
    """Factors by layer, of which some are sketches; asked for as a factor, a sketch is made dense."""

    @abstractmethod
    def rank(self, name: str) -> int | None:
        """Columns of the sketch; None where the factor is none."""

    @abstractmethod
    def sketch(self, name: str) -> Sketch:
        """The sketch itself, where there is one."""


class Sketched(Sketchable):
    """Some factors dense, some as sketches, in memory."""

    def __init__(self, exact: Mapping[str, Tensor], sketches: Mapping[str, Sketch]) -> None:
        self.exact, self.sketches = exact, sketches

    def __getitem__(self, name: str) -> Tensor:
        return self.sketches[name].dense() if name in self.sketches else self.exact[name]

    def __contains__(self, name: object) -> bool:
        return name in self.sketches or name in self.exact

    def __iter__(self) -> Iterator[str]:
        return iter([*self.exact, *self.sketches])

    def __len__(self) -> int:
        return len(self.exact) + len(self.sketches)

    def rank(self, name: str) -> int | None:
        return self.sketches[name].low.shape[1] if name in self.sketches else None

    def sketch(self, name: str) -> Sketch:
        return self.sketches[name]


def rank_of(factors: Mapping[str, Tensor], name: str) -> int | None:
    """Columns of the sketch that stands for a factor; None where it is dense."""
    return factors.rank(name) if isinstance(factors, Sketchable) else None


def directions(name: str, size: int, rank: int) -> Tensor:
    """`Ω`, n × k, standard normal, float32: the same wherever statistics of that name are gathered."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % 2**63
    return torch.randn(size, rank, generator=torch.Generator().manual_seed(seed))


def nystrom(product: Tensor, diagonal: Tensor, name: str) -> Sketch:
    """The sketch of `M` by `S = M Ω` (n × k) and `diag M`, `Ω = directions(name, n, k)`."""
    size, rank = product.shape
    omega = torch.linalg.qr(directions(name, size, rank).to(product))
    S = torch.linalg.solve_triangular(omega.R, product, upper=True, left=False)  # as if Ω had orthonormal columns
    shift = torch.finfo(S.dtype).eps * float(torch.linalg.matrix_norm(S))
    S = S + shift * omega.Q
    core = omega.Q.T @ S
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    kept = values > 1e-12 * values[-1]
    half = S @ (vectors[:, kept] / values[kept].sqrt())
    left, spectrum, _ = torch.linalg.svd(half, full_matrices=False)
    low = left * (spectrum.square() - shift).clamp(min=0).sqrt()
    rest = (diagonal - low.square().sum(1)).clamp(min=0)
    if low.shape[1] < rank:
        low = torch.nn.functional.pad(low, (0, rank - low.shape[1]))
    total = float(diagonal.sum())
    return Sketch(low, rest, float(rest.sum()) / total if total > 0 else 0.0)
