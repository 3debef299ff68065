"""What is left of a p-median problem once candidates are fixed: fewer candidates, cheaper worst cases, fewer items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.medoid_relaxation import Floats, Indices, Labels, Mask, choose, fixable


@dataclass(frozen=True)
class Core:
    """The free candidates, and what each item pays in them above its cheapest choice.

    A coloring that opens the free candidates S costs ``offset + Σ_ℓ min(cap_ℓ, min_{b ∈ S} columns[b, ℓ])``.

    Attributes:
        names: ``[F]`` the free candidates, by their numbers in the problem.
        opened: the candidates that are open in any case.
        items, low: ``[L']`` the items that are still undecided, by their numbers in the problem, and their least costs.
        columns: ``[F, L']`` the cost of each of these items above ``low``, between 0 and its cap.
        cap: ``[L']`` what the item pays at most, thanks to the open candidates and its penalty.
        offset: what all items pay at least.
        label, limits: of each free candidate, and how many of each label may still open.
    """

    names: Indices
    opened: Indices
    items: Indices
    low: Floats
    columns: Floats
    cap: Floats
    offset: float
    label: Labels
    limits: Labels

    @classmethod
    def of(cls, columns: Floats, cap: Floats, label: Labels, limits: Labels, usable: Mask, always: Mask) -> Core:
        """From costs ``columns[b, ℓ]`` of all candidates: those usable are kept, those of them in ``always`` opened."""
        names, opened = np.flatnonzero(usable & ~always), np.flatnonzero(always)
        cap = np.minimum(cap, columns[opened].min(axis=0, initial=np.inf))
        free = np.minimum(columns[names], cap)
        low = free.min(axis=0, initial=np.inf)
        low = np.minimum(low, cap)
        open_items = np.flatnonzero(low < cap)
        left = limits - np.bincount(label[opened], minlength=len(limits))
        return cls(
            names=names,
            opened=opened,
            items=open_items,
            low=low[open_items],
            columns=np.ascontiguousarray(free[:, open_items] - low[open_items]),
            cap=cap[open_items] - low[open_items],
            offset=float(low.sum()),
            label=label[names],
            limits=left,
        )

    def cost(self, chosen: Indices) -> float:
        """The cost when these free candidates open."""
        return self.offset + float(np.minimum(self.columns[chosen].min(axis=0, initial=np.inf), self.cap).sum())

    def bound(self, u: Floats, usable: Mask, always: Mask) -> tuple[float, Floats, Indices]:
        """L(u) when some free candidates are closed and some opened, with ρ and the candidates that it chooses."""
        rho: Floats = np.minimum(self.columns - u, 0.0).sum(axis=1)
        rho[~usable] = 0.0
        chosen = choose(rho, self.label, self.limits, always)
        return self.offset + float(u.sum() + rho[chosen].sum()), rho, chosen

    def fix(
        self, value: float, rho: Floats, chosen: Indices, usable: Mask, always: Mask, cutoff: float
    ) -> tuple[Mask, Mask]:
        """``usable`` and ``always`` after what this point of the relaxation fixes."""
        close, keep = fixable(value, rho, chosen, self.label, self.limits, usable, always, cutoff)
        return usable & ~close, always | keep
