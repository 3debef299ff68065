"""How much of a second moment is noise of the data that happened to be drawn, and shrinkage towards the identity.

Ledoit & Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004: of all `(1 − ρ) M + ρ μ I`,
`μ` the mean of the diagonal, the one nearest to the true moment has `ρ = E‖M − E M‖² / E‖M − μ I‖²`.
What is drawn here are batches, since positions of one sample are anything but independent: a confident classifier's
gradients come from the few samples that it is not sure of.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The fraction of the intensity that is taken. The formula makes errors least in norm, where few large directions
#: decide, and prices ask most of small ones. Priced on one half of KWT-1's calibration clips and measured on the other,
#: keep 0.4, greedy plans do 1.37 nats with 0, 0.0059 with 0.25, 0.0067 with 0.5, 0.0100 with 1.
SHRINKAGE = 0.5


def scatter(product: Tensor, count: int) -> Tensor:
    """`(‖P‖², n², n)` of a batch's `P = Σ x xᵀ` over `n` positions; sums of it say how far batches are apart."""
    norm = float(torch.linalg.vector_norm(product))
    return torch.tensor([norm**2, float(count) ** 2, float(count)], dtype=torch.float64, device=product.device)


def intensity(moment: Tensor, total: float, scattered: Tensor | None) -> float:
    """Ledoit and Wolf's `ρ`, between 0 and 1, of `moment = Σ P / total`; 0 where fewer than two batches were seen.

    `scattered` is the sum of `scatter` over the batches. Where a batch was summed in several parts (several draws, a
    layer that is called more than once) the parts count as batches of their own.
    """
    if scattered is None:
        return 0.0
    squares, counts, count = scattered.tolist()
    batches = count**2 / counts if counts else 0.0
    if batches < 2:
        return 0.0
    norm, mean = float(torch.linalg.vector_norm(moment)) ** 2, float(moment.diagonal().mean())
    apart = norm - len(moment) * mean**2  # ‖M − μ I‖²
    noise = (squares / total**2 - norm / batches) * batches / (batches - 1)
    return min(max(noise / apart, 0.0), 1.0) if apart > 0 else 0.0
