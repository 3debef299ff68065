"""Published methods as configurations of the one pipeline: a curvature, a fixed grouping, a rule for ranks.

Every preset compresses the same layers to the same number of parameters, is carried out by `geocolor.apply` and loads
like any other compressed model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from geocolor.budget import Group
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph, price
from geocolor.habits import neighbours, private, readers_of_norms
from geocolor.losses import Batch, Loss, loss_for
from geocolor.planning import fixed_plan
from geocolor.plans import Plan
from geocolor.ranks import by_effective_rank, rounded, shifted_to_last, uniform

#: The preset that searches: everything that `geocolor.settings.Settings` says applies to it, and to it alone.
SEARCHED = "geocolor"

#: Zhang et al. 2025, arXiv:2511.06786: it searches too, on a curvature of its own (`geocolor.geo_sharing`).
GEO_SHARING = "geo-sharing"

ALL = 1_000_000


@dataclass(frozen=True)
class Preset:
    """A published method.

    Attributes:
        source: paper.
        estimate: of `geocolor.measure`: what the method weighs errors by.
        size: consecutive blocks whose matrices of one kind share a basis (those that read a normalised residual stream:
            q, k, v, gate, up); 1 shares nothing.
        ranks: "uniform", or "effective" as D-Rank has them.
        updated_below: coefficients are fitted again on the smaller model's inputs where `keep` is at most this.
        damping: just enough to factorise, as the methods' own code has it.
    """

    name: str
    source: str
    estimate: str
    size: int = 1
    ranks: Literal["uniform", "effective"] = "uniform"
    updated_below: float = 0.0
    damping: float = 1e-6

    def groups(self, model: nn.Module, curvature: Curvature, batch: Batch, loss: Loss | None = None) -> list[Group]:
        """Classes as indices of `curvature.layers`."""
        if self.size == 1:
            return private(curvature.layers)
        loss = loss_for(model, batch, loss)
        reading = readers_of_norms(model, curvature.layers, batch, loss)
        return neighbours(curvature.layers, self.size, reading or None)

    def plan(
        self, model: nn.Module, curvature: Curvature, keep: float, batch: Batch, loss: Loss | None = None
    ) -> tuple[CostGraph, Plan]:
        """The plan, and the graph whose curvature `geocolor.apply` needs; `batch` shows which layers read a norm."""
        layers = curvature.layers
        groups = [
            part  # layers of one input share no basis: none is narrower
            for group in self.groups(model, curvature, batch, loss)
            for part in ([group] if layers[group[0]].n > 1 else [(i,) for i in group])
        ]
        graph = price(model, pooled(curvature, groups), kinds=("in",))
        if self.ranks == "uniform":
            ranks = uniform(graph, groups, keep)
        else:
            ranks = shifted_to_last(graph, groups, by_effective_rank(graph, groups, keep), SHIFTED)
        return graph, fixed_plan(graph, groups, rounded(graph, groups, ranks, keep), keep, self.name)


#: Part of the ranks of q and k that D-Rank gives to v.
SHIFTED = 0.3

_SHARING = "Basis Sharing, Wang et al. 2024, arXiv:2410.03765"
_SVD_LLM = "SVD-LLM, Wang et al. 2024, arXiv:2403.07378"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("svd", "truncated SVD of every weight, Eckart & Young 1936", "identity"),
        Preset("fwsvd", "FWSVD, Hsu et al. 2022, arXiv:2207.00112", "diagonal"),
        Preset("asvd", "ASVD with α = 0.5, Yuan et al. 2023, arXiv:2312.05821", "magnitude"),
        Preset("svd-llm", f"{_SVD_LLM}, whitening alone", "activation"),
        Preset("svd-llm-update", f"{_SVD_LLM}, with its sequential update", "activation", updated_below=1.0),
        Preset("basis-sharing", f"{_SHARING}, pairs of blocks", "activation", 2, updated_below=0.6),
        Preset("basis-sharing-3", f"{_SHARING}, three blocks", "activation", 3, updated_below=0.6),
        Preset("basis-sharing-4", f"{_SHARING}, four blocks", "activation", 4, updated_below=0.6),
        Preset("basis-sharing-all", f"{_SHARING}, all blocks", "activation", ALL, updated_below=0.6),
        Preset("d-rank", "D-Rank, Mi et al. 2025, arXiv:2509.25622, pairs of blocks", "activation", 2, "effective"),
        Preset("two-sided", "GFWSVD, Chekalina et al. 2025, arXiv:2505.17974, its factors by K-FAC", "kronecker"),
    )
}


def find_preset(name: str) -> Preset | None:
    """The preset; None for the searched ones. Raises `ValueError` for a name there is not."""
    if name in (SEARCHED, GEO_SHARING):
        return None
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; there are {SEARCHED}, {', '.join(PRESETS)}, {GEO_SHARING}")
    return PRESETS[name]


def pooled(curvature: Curvature, groups: Sequence[Group]) -> Curvature:
    """The curvature with one `A` a class, over the inputs of all its layers, as Basis Sharing whitens."""
    A = dict(curvature.A)
    for group in groups:
        names = [curvature.layers[i].name for i in group]
        if len({id(A[name]) for name in names}) > 1:
            seen = [curvature.positions[name] for name in names]
            mean = torch.stack([A[name] * count for name, count in zip(names, seen, strict=True)]).sum(0) / sum(seen)
            A |= dict.fromkeys(names, mean)
    return replace(curvature, A=A)
