"""Ranks by rule, as peers choose them: the same kept fraction everywhere, or more where the spectrum is flat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from geocolor.budget import Group, UnreachableError
from geocolor.graph import CostGraph
from geocolor.rate_distortion import Option


def uniform(graph: CostGraph, groups: Sequence[Group], keep: float) -> list[float]:
    """The rank at which each class alone meets `keep`: `keep·n·Σm / (n + Σm)`, before rounding."""
    return [keep * n * m / (n + m) for n, m in _shapes(graph, groups)]


def by_effective_rank(graph: CostGraph, groups: Sequence[Group], keep: float) -> list[float]:
    """Ranks `∝ √(R / ω)`, `R` the effective rank of a class and `ω` the parameters of one rank.

    They minimise `Σ R/k` under `Σ ω k = keep · parameters` (D-Rank, arXiv:2509.25622). `R = exp(−Σ p log p)`, `p` the
    normalised squared singular values of the class in its inputs' metric, `[W₁; W₂; …] A^½`. No rank exceeds that of
    the class; what it leaves goes to the others.
    """
    shapes = _shapes(graph, groups)
    effective = [effective_rank(graph, group) for group in groups]
    budget = keep * graph.parameters_dense
    ranks = [float(min(n, m)) for n, m in shapes]
    free = list(range(len(groups)))
    while free:
        left = budget - sum(ranks[k] * sum(shapes[k]) for k in range(len(groups)) if k not in free)
        scale = left / sum(math.sqrt(effective[k] * sum(shapes[k])) for k in free)
        wanted = {k: scale * math.sqrt(effective[k] / sum(shapes[k])) for k in free}
        capped = [k for k in free if wanted[k] >= min(shapes[k])]
        if not capped:
            return [wanted.get(k, rank) for k, rank in enumerate(ranks)]
        free = [k for k in free if k not in capped]
    return ranks


def effective_rank(graph: CostGraph, group: Group) -> float:
    """`exp` of the entropy of the normalised squared singular values of the class in its inputs' metric."""
    members = graph.members(group)
    root = torch.stack([member.A.matrix for member in members]).mean(0)
    weights = torch.cat([member.weight for member in members])
    energies = torch.linalg.eigvals(root @ (weights.T @ weights)).real.clamp(min=0)
    shares = energies / energies.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def shifted_to_last(graph: CostGraph, groups: Sequence[Group], ranks: Sequence[float], part: float) -> list[float]:
    """A `part` of the ranks of q and k given to v, parameters unchanged (D-Rank).

    Where three layers read one input they are q, k and v, in this order; known from `graph.curvature.inputs`.
    """
    shapes, moved = _shapes(graph, groups), list(ranks)
    class_of = {graph.layers[i].name: k for k, group in enumerate(groups) for i in group}
    readers: dict[str, list[str]] = {}
    for layer in graph.layers:
        readers.setdefault(graph.curvature.inputs[layer.name], []).append(layer.name)
    triples = {tuple(class_of[name] for name in names) for names in readers.values() if len(names) == 3}
    for *givers, taker in triples:
        if taker in givers:
            continue
        room = min(shapes[taker]) - moved[taker]
        freed = min(part * sum(ranks[k] * sum(shapes[k]) for k in givers), room * sum(shapes[taker]))
        total = sum(ranks[k] * sum(shapes[k]) for k in givers)
        for k in givers:
            moved[k] -= freed / total * ranks[k]
        moved[taker] += freed / sum(shapes[taker])
    return moved


def rounded(graph: CostGraph, groups: Sequence[Group], ranks: Sequence[float], keep: float) -> list[Option]:
    """`in` bases of whole ranks, each `ranks` rounded down, the largest remainders up while the budget lasts.

    All rules then keep the same number of parameters up to one rank of one class. A layer of one input or one output
    by itself stays dense: no factors are smaller. Raises `UnreachableError` where ranks of 1 are more than `keep`.
    """
    shapes = _shapes(graph, groups)
    most = [min(n - 1, m - (len(group) == 1)) for (n, m), group in zip(shapes, groups, strict=True)]
    whole = [min(max(1, int(rank)), top) for rank, top in zip(ranks, most, strict=True)]
    budget = math.floor(keep * graph.parameters_dense)
    spent = sum(rank * (n + m) if rank else n * m for rank, (n, m) in zip(whole, shapes, strict=True))
    while spent > budget:  # ranks of 1 took more than their share: the largest ones pay
        k = max(range(len(groups)), key=lambda k: whole[k])
        if whole[k] <= 1:
            raise UnreachableError(
                f"ranks of 1 keep {spent / graph.parameters_dense:.4g} of the parameters, more than {keep:g}: raise "
                "keep"
            )
        whole[k] -= 1
        spent -= sum(shapes[k])
    while True:
        fitting = [k for k in range(len(groups)) if whole[k] < most[k] and spent + sum(shapes[k]) <= budget]
        if not fitting:
            break
        k = max(fitting, key=lambda k: (ranks[k] - whole[k]) / ranks[k])
        whole[k] += 1
        spent += sum(shapes[k])
    return [
        Option(
            kind="in",
            rank=rank,
            right_rank=None,
            parameters=rank * (n + m),
            damage=math.nan,
            operations=rank * (graph.inputs_read(group) * n + _loaded_height(graph, group)),
        )
        if rank
        else Option("dense", None, None, n * m, 0.0, n * _loaded_height(graph, group))
        for rank, (n, m), group in zip(whole, shapes, groups, strict=True)
    ]


def _loaded_height(graph: CostGraph, group: Group) -> float:
    """Height of all weights together, each times its layer's load."""
    return sum(graph.layers[i].m * graph.loads[graph.layers[i].name] for i in group)


def _shapes(graph: CostGraph, groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Width of the input and height of all weights together, by class."""
    return [(graph.layers[group[0]].n, sum(graph.layers[i].m for i in group)) for group in groups]
