"""Float costs as integers for CP-SAT, with the rounding error stated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BITS = 40
"""The integer objective stays below 2^40: fine enough for a gap of 1e-6, small enough for CP-SAT's relaxation."""


@dataclass(frozen=True)
class Scaling:
    """``integer = round(value · factor)``, the factor a power of two, so that whole numbers keep their exact value."""

    factor: float

    @classmethod
    def for_total(cls, total: float) -> Scaling:
        """The finest scaling under which costs that sum up to ``total`` (in absolute value) stay within ``BITS``."""
        if not 0 < total < math.inf:
            return cls(1.0)
        return cls(math.ldexp(1.0, int(np.clip(BITS - math.frexp(total)[1], -900, 900))))

    def integers(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.rint(values * self.factor).astype(np.int64)

    def errors(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``|value − integer / factor|`` for each value."""
        return np.abs(values - self.integers(values) / self.factor)
