"""Pair prices of a real model as a solver's instance: what sharing saves for every two layers of the embedded model.

    python -m benchmarks.priced_pairs

prices the model and writes ``benchmarks/instances/embedded_pairs.npz``: ``weight[i, j]`` is what layers i and j cost
together more than apart, a layer and its own copy on the diagonal; inf where two layers cannot share a basis.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solvers.atomic import write_atomically

PLACE = Path(__file__).parent / "instances" / "embedded_pairs.npz"
KEEP = 0.8


def load(path: Path = PLACE) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """``weight`` ``[L, L]`` and the layers' names."""
    with np.load(path) as stored:
        return stored["weight"], tuple(stored["names"].tolist())


def price_pairs() -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """At the price per parameter that keeps ``KEEP`` of them without any sharing."""
    from geocolor.budget import allocate
    from geocolor.data import load_model
    from geocolor.demo import CALIBRATION_SEQUENCES, sequences
    from geocolor.embedded import MODEL
    from geocolor.pipeline import Pipeline
    from geocolor.settings import Settings

    model, _ = load_model(str(MODEL))
    settings = Settings(keep=KEEP, aggregate=1.0, rounds=1)
    _, graph = Pipeline(model, sequences("calibration", CALIBRATION_SEQUENCES), settings).priced()
    size = len(graph.layers)
    price = allocate(graph, [(i,) for i in range(size)], int(KEEP * graph.parameters_dense)).price
    problem = graph.pairwise_problem(price)
    weight = np.where(problem.conflict, np.inf, problem.weight)
    copied = [graph.group_price((i, i), price) - 2 * graph.group_price((i,), price) for i in range(size)]
    np.fill_diagonal(weight, copied)
    return weight, tuple(layer.name for layer in graph.layers)


def main() -> None:
    weight, names = price_pairs()
    stored = io.BytesIO()
    np.savez_compressed(stored, weight=weight, names=np.array(names))
    PLACE.parent.mkdir(exist_ok=True)
    write_atomically(PLACE, lambda temporary: temporary.write_bytes(stored.getvalue()))
    print(f"{len(names)} layers, {int((np.isfinite(weight).sum() - len(names)) / 2)} pairs: {PLACE}")


if __name__ == "__main__":
    main()
