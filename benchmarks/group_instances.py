"""Group problems of several kinds, small enough for their optimum: what solvers of set functions are judged on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from solvers import GroupProblem
from solvers.group import GroupCost

Floats = NDArray[np.float64]
Rng = np.random.Generator


def concave_in_size(size: int, rng: Rng) -> GroupCost:
    """``|S|^p`` for opening a class, paid by the largest item's weight, and distances to the class's mean."""
    power, weight = rng.uniform(0.2, 0.8), rng.uniform(0.5, 2.0, size)
    points = rng.normal(size=(4, 2))[rng.integers(4, size=size)] * 2 + rng.normal(size=(size, 2))

    def cost(items: tuple[int, ...]) -> float:
        chosen = points[list(items)]
        spread = float(((chosen - chosen.mean(axis=0)) ** 2).sum())
        return float(weight[list(items)].max()) * float(len(items) ** power) + 0.4 * spread

    return cost


def coverage(size: int, rng: Rng) -> GroupCost:
    """The weight of all elements that the items need together, and what it costs to handle so many of them at once."""
    elements = int(rng.integers(10, 30))
    base = rng.random((4, elements)) < 0.4
    needs = base[rng.integers(4, size=size)] ^ (rng.random((size, elements)) < 0.15)
    weight, handling = rng.exponential(size=elements), rng.uniform(0.02, 0.1)

    def cost(items: tuple[int, ...]) -> float:
        covered = needs[list(items)].any(axis=0)
        return 0.5 + float(weight @ covered) * (1 + handling * len(items))

    return cost


def submodular_with_noise(size: int, rng: Rng) -> GroupCost:
    """The cut between a class and the rest of a graph, what opens and grows a class, and noise of up to 3 %."""
    positions = rng.normal(size=(size, 2))
    near = np.exp(-((positions[:, None] - positions[None]) ** 2).sum(axis=2)) * (rng.random((size, size)) < 0.7)
    near = near + near.T
    np.fill_diagonal(near, 0.0)
    seed, opening, growth = int(rng.integers(2**31)), rng.uniform(0.2, 1.0), rng.uniform(0.02, 0.1)

    def cost(items: tuple[int, ...]) -> float:
        inside = list(items)
        cut = float(near[inside].sum() - near[np.ix_(inside, inside)].sum())
        noise = float(np.random.default_rng([seed, *items]).uniform(0.97, 1.03))
        return noise * (1.0 + opening + 0.5 * cut + growth * len(items) ** 2)

    return cost


def sharing(grams: list[Floats], rows: list[int], price: float) -> GroupCost:
    """``min over r of ½ Σ_{i>r} λ_i(Σ_ℓ W_ℓᵀW_ℓ) + price · r · (columns + Σ_ℓ rows_ℓ)``: one basis, one metric."""
    columns = len(grams[0])
    ranks = np.arange(columns + 1)

    def cost(items: tuple[int, ...]) -> float:
        energy = np.linalg.eigvalsh(np.sum([grams[item] for item in items], axis=0)).clip(min=0.0)
        tail = 0.5 * np.concatenate([[0.0], np.cumsum(energy)])[::-1]
        height = sum(rows[item] for item in items)
        shared = float((tail + price * ranks * (columns + height))[1:].min())
        return min(shared, price * columns * height) if len(items) == 1 else shared

    return cost


def families(size: int, rng: Rng) -> GroupCost:
    """Sharing among random matrices out of a few families with a common row space and decaying spectra."""
    columns = int(rng.integers(8, 16))
    spaces = rng.normal(size=(int(rng.integers(2, 5)), 4, columns))
    rows = [int(rng.integers(4, 20)) for _ in range(size)]
    grams = []
    for height in rows:
        matrix = rng.normal(size=(height, 4)) @ spaces[rng.integers(len(spaces))]
        matrix += rng.uniform(0.2, 1.0) * rng.normal(size=(height, columns))
        grams.append(matrix.T @ matrix / columns)
    return sharing(grams, rows, float(np.exp(rng.uniform(np.log(0.005), np.log(0.2)))))


def metrics_of_their_own(size: int, rng: Rng) -> GroupCost:
    """Sharing among correlated matrices, each under its own metric: the basis is that of the mean metric (DESIGN §4).

    Blocks of three matrices read one input and have one metric, as q, k and v do.
    """
    columns, rows = int(rng.integers(8, 14)), int(rng.integers(6, 16))
    common = rng.normal(size=(rows, columns))
    price = float(np.exp(rng.uniform(np.log(0.01), np.log(0.2))))
    decay = np.exp(-rng.uniform(0.1, 0.4) * np.arange(columns))
    shared_turn = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    roots, grams = [], []
    for item in range(size):
        if item % 3 == 0:
            turn = np.linalg.qr(shared_turn + 0.3 * rng.normal(size=(columns, columns)))[0]
            root = (turn * np.sqrt(decay)) @ turn.T
        matrix = rng.uniform(0.0, 1.0) * common + rng.normal(size=(rows, columns))
        roots.append(root)
        grams.append(matrix.T @ matrix / rows)
    ranks = np.arange(columns + 1)

    def cost(items: tuple[int, ...]) -> float:
        mean = np.mean([roots[item] @ roots[item] for item in items], axis=0)
        lower = np.linalg.cholesky(mean)
        vectors = np.linalg.eigh(lower.T @ np.sum([grams[item] for item in items], axis=0) @ lower)[1][:, ::-1]
        basis = np.linalg.solve(lower.T, vectors)
        damage = np.zeros(columns + 1)
        for item in items:
            span = np.linalg.qr(roots[item] @ basis)[0]
            captured = ((span.T @ roots[item] @ grams[item]) * (span.T @ roots[item])).sum(axis=1)
            damage += 0.5 * np.concatenate([np.cumsum(captured[::-1])[::-1], [0.0]])
        height = rows * len(items)
        shared = float((damage + price * ranks * (columns + height))[1:].min())
        return min(shared, price * columns * height) if len(items) == 1 else shared

    return cost


def embedded_weights(size: int, rng: Rng) -> GroupCost:
    """Sharing among matrices of the embedded model that read the residual stream, on a few of its channels."""
    from safetensors.numpy import load_file

    from geocolor.embedded import MODEL

    weights = load_file(MODEL / "model.safetensors")
    ends = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
    names = sorted(name for name in weights if name.endswith(ends))
    begin = int(rng.integers(len(names) - size + 1))
    chosen = names[begin : begin + size] if rng.random() < 0.5 else rng.permutation(names)[:size].tolist()
    channels = rng.permutation(weights[chosen[0]].shape[1])[:24]
    matrices = [weights[name][:, channels].astype(np.float64) for name in chosen]
    energy = float(np.mean([(matrix**2).sum() for matrix in matrices]))
    price = float(np.exp(rng.uniform(np.log(0.02), np.log(0.3)))) * energy / (24 * 200)
    return sharing([matrix.T @ matrix for matrix in matrices], [len(matrix) for matrix in matrices], price)


KINDS: dict[str, Callable[[int, Rng], GroupCost]] = {
    "concave in size": concave_in_size,
    "coverage": coverage,
    "submodular + noise": submodular_with_noise,
    "families": families,
    "own metrics": metrics_of_their_own,
    "embedded weights": embedded_weights,
}


def instance(number: int, largest: int = 15, smallest: int = 8) -> tuple[str, GroupProblem]:
    """Instance ``number`` and its kind; every fourth has a K that binds, every third incompatible pairs."""
    rng = np.random.default_rng([number, 7])
    kind = list(KINDS)[number % len(KINDS)]
    size = int(rng.integers(min(smallest, largest), largest + 1))
    cost = KINDS[kind](size, rng)
    compatible = np.ones((size, size), dtype=bool)
    if number % 3 == 1:
        side = rng.integers(2, size=(size, 2))  # items go together where they agree on one of two sides
        compatible = (side[:, None] == side[None]).any(axis=2)
    limited = number % 4 == 2
    problem = GroupProblem(size, cost, compatible=compatible)
    if not limited:
        return kind, problem
    penalty = [1.2 * problem.class_cost((item,)) for item in range(size)]
    return kind, GroupProblem(size, problem.class_cost, compatible=compatible, K=max(2, size // 4), penalty=penalty)
