"""What is left of a p-median problem once candidates are fixed: fewer candidates, cheaper worst cases, fewer items."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from solvers.medoid_relaxation import Floats, Indices, Labels, Mask, choose, fixable


@dataclass(frozen=True)
class Summit:
    """Where a climb over multipliers ended.

    Attributes:
        u: ``[L']`` the best multipliers met.
        value: L(u), the offset included.
        rho, chosen: ρ of each free candidate there, and those that the relaxation opens.
        share: ``[F]`` how often each was opened of late.
    """

    u: Floats
    value: float
    rho: Floats
    chosen: Indices
    share: Floats


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

    def below(self, usable: Mask, always: Mask) -> Core:
        """What is left once some free candidates are closed and some opened, named by their places in this core."""
        core = Core.of(self.columns, self.cap, self.label, self.limits, usable, always)
        return replace(core, offset=core.offset + self.offset)

    def climb(self, u: Floats, cutoff: float, steps: int, expired: Callable[[float], bool]) -> Summit | None:
        """Subgradient steps from ``u``, as in ``Relaxation.climb`` but few; None when the time ran out.

        They aim at the cutoff, and end at it, or where they have become small.
        """
        best, size, stalled = -math.inf, 1.5, 0
        summit = Summit(u, best, np.zeros(0), np.zeros(0, dtype=np.intp), np.zeros(0))
        reduced, ones, none = np.empty_like(self.columns), np.ones(len(u)), np.zeros(len(self.names), bool)
        share, previous = np.zeros(len(self.names)), np.zeros(len(u))
        for _ in range(steps):
            if expired(self.columns.size / 4 + 20 * len(u)):
                return None
            total = float(u.sum())
            rho: Floats = np.minimum(self.columns, u, out=reduced) @ ones - total
            chosen = choose(rho, self.label, self.limits, none)
            value = self.offset + total + float(rho[chosen].sum())
            share *= 0.9
            share[chosen] += 0.1
            stalled = 0 if value > best + 0.01 * (cutoff - value) else stalled + 1
            if value > best:
                best, summit = value, Summit(u, value, rho, chosen, share)
            if best >= cutoff:
                break
            slope = 1.0 - np.count_nonzero(self.columns[chosen] < u, axis=0)
            slope[(slope > 0) & (u >= self.cap)] = 0.0
            previous = slope + 0.3 * previous
            length = float(previous @ previous)
            if stalled >= 4:
                size, stalled, u = 0.6 * size, 0, summit.u
            if length == 0 or size < 0.2:
                break
            u = np.clip(u + size * (cutoff - value) / length * previous, 0.0, self.cap)
        return summit

    def fix(
        self, value: float, rho: Floats, chosen: Indices, usable: Mask, always: Mask, cutoff: float
    ) -> tuple[Mask, Mask]:
        """``usable`` and ``always`` after what this point of the relaxation fixes."""
        close, keep = fixable(value, rho, chosen, self.label, self.limits, usable, always, cutoff)
        return usable & ~close, always | keep
