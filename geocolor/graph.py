"""The cost graph: layers as nodes, the price of sharing between them, and the problems that solvers are given."""

import json
import math
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch

from geocolor import processes
from geocolor.atomic import write_atomically
from geocolor.bases import Factor, FactoredKind, Factors, Metric, damage_alone
from geocolor.curvature import Curvature
from geocolor.curvature.on_disk import OnDisk
from geocolor.hull_files import Hulls, as_tensors, from_tensors
from geocolor.hulls_within import HullsWithin
from geocolor.journal import Journal
from geocolor.layers import Layer, weight_of
from geocolor.metrics import MetricsWithin, held
from geocolor.nearest import connected, nearest
from geocolor.plans import Fingerprint, fingerprint
from geocolor.progress import bar, track
from geocolor.rate_distortion import Option, Options, can_share, compatible, damage_by_layer, options
from geocolor.trust_region import eigen_metric, fit
from solvers import GroupProblem, MedoidProblem, PairwiseProblem

KINDS: tuple[FactoredKind, ...] = ("in", "out", "both")

#: Pairs of layers that are priced before they are recorded.
PIECE = 32

#: With more pairs of layers that could share, only layers are priced together that are among so many nearest of each
#: other (`geocolor.nearest`), and larger classes where they hang together by such pairs.
MOST_PAIRS, NEAREST = 300, 6

#: Of models with layers that are as wide on both sides only so many nearest layers of each are priced together.
WIDE, NEAREST_WIDE = 1024, 2

#: Models with layers that are as wide on both sides are priced in single precision. Plans of stories260K at keep 0.8,
#: so priced, are the same; those of MiniLM do 0.0259 instead of 0.0258, and are found in 0.57 of the time.
SINGLE = 128


#: Of so many classes that were priced last all options are at hand, not only the hull.
RECENT = 64

#: A pair that costs so many times as much as its layers apart is not priced again under the curvature of the next look.
#: Pairs that stories260K's plans share after three looks had at most 1.02 (power 1) and 1.1 (power 2) before them.
HOPELESS = 1.1

#: Where memory is bounded, hulls of classes may take one in so many bytes of it, layers the others.
HULLS_SHARE = 4


FactorsKey = tuple[str, tuple[str, ...], int | None, int | None]
"""Of factors: their kind, layers and ranks."""

FactorsKnown = dict[FactorsKey, Factors]


@dataclass(frozen=True)
class CostGraph:
    """Layers in their own curvature, and what any class of them would cost.

    `aggregate` is the power `p` of `φ(D) = D^p`; `kinds` the basis kinds that classes may use. Classes are priced once
    and remembered: their options do not depend on the price of a parameter. `aggregates` are the powers that are priced
    together, since they need the same bases; `under` gives the graph of another one of them. `weight` is the share `θ`
    of operations in the size that is paid for (`rate_distortion`), `weights` those that are priced together. With
    more than `most_pairs` pairs of layers that could share, classes that are not `near` cost `inf`.
    """

    layers: tuple[Layer, ...]
    curvature: Curvature
    metrics: Mapping[str, Metric]
    fingerprint: Fingerprint
    kinds: tuple[FactoredKind, ...] = KINDS
    aggregate: float = 1.0
    aggregates: tuple[float, ...] = (1.0,)
    weight: float = 0.0
    weights: tuple[float, ...] = (0.0,)
    most_pairs: int = MOST_PAIRS
    _near: list[np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None] = field(
        default_factory=list, repr=False, compare=False
    )
    _hulls: MutableMapping[tuple[int, ...], dict[tuple[float, float], Options]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _options: dict[tuple[int, ...], dict[tuple[float, float], Options]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _recent: dict[tuple[int, ...], dict[tuple[float, float], Options]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _factors: FactorsKnown = field(default_factory=dict, repr=False, compare=False)

    @property
    def factors(self) -> FactorsKnown | None:
        """Where factors of classes are remembered that are tried, looked from and at last installed."""
        return None if self.bounded else self._factors

    @property
    def parameters_dense(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def members(self, group: Sequence[int]) -> list[Metric]:
        return [self.metrics[self.layers[i].name] for i in group]

    def options(self, group: Sequence[int]) -> Options:
        """All Pareto-optimal ways to hold the class of these layers (indices); empty where they share no side.

        They are asked for where ranks are chosen, which is for few classes, over and over: they are remembered, unless
        memory is bounded.
        """
        key, which = tuple(sorted(group)), (self.aggregate, self.weight)
        if self.bounded:
            return self._priced(key, *([each] for each in which))[which]
        if key not in self._options:
            found = self._recent.pop(key, None)
            self._options[key] = self._priced(key, self.aggregates, self.weights) if found is None else found
        return self._options[key][which]

    def hull(self, group: Sequence[int]) -> Options:
        """The ways that are cheapest at some price; computed once for a class."""
        key = tuple(sorted(group))
        if (self.aggregate, self.weight) not in self._hulls.get(key, {}):
            found = self._priced(key, self.aggregates, self.weights)
            self._hulls[key] = {which: each.hull() for which, each in found.items()}
            if not self.bounded:
                self._recent[key] = found
                if len(self._recent) > RECENT:
                    del self._recent[next(iter(self._recent))]
        return self._hulls[key][self.aggregate, self.weight]

    def _priced(
        self, group: Sequence[int], powers: Sequence[float], weights: Sequence[float]
    ) -> dict[tuple[float, float], Options]:
        layers = [self.layers[i] for i in group]
        loads = [self.loads[layer.name] for layer in layers]
        return options(layers, self.members(group), self.kinds, powers, weights, loads, self.inputs_read(group))

    def inputs_read(self, group: Sequence[int]) -> float:
        """The load of an input basis of these layers, which is evaluated once for each of the tensors they read."""
        names = [self.layers[i].name for i in group]
        return sum({self.curvature.inputs.get(name, name): self.loads[name] for name in names}.values())

    @cached_property
    def loads(self) -> Mapping[str, float]:
        """How many positions each layer sees, relative to their mean over all parameters: 1 where all see the same.

        Pixels are fewer in deep layers of a convolutional network, and experts see the tokens sent to them.
        """
        seen = {layer.name: max(self.curvature.positions.get(layer.name, 1), 1) for layer in self.layers}
        if len(set(seen.values())) == 1:
            return dict.fromkeys(seen, 1.0)
        mean = sum(seen[layer.name] * layer.parameters for layer in self.layers) / self.parameters_dense
        return {name: positions / mean for name, positions in seen.items()}

    def weighing(self, weights: Sequence[float]) -> "CostGraph":
        """The same graph, sizes weighed by each of `weights`; `weighed` chooses among them."""
        fresh = HullsWithin(self._hulls.memory) if isinstance(self._hulls, HullsWithin) else {}
        return replace(self, weight=weights[0], weights=tuple(weights), _hulls=fresh, _options={}, _recent={})

    def weighed(self, weight: float) -> "CostGraph":
        """The same graph under another one of its `weights`; what is priced is remembered for both."""
        if weight not in self.weights:
            raise ValueError(f"weight {weight:g} is none of {', '.join(f'{w:g}' for w in self.weights)}")
        return replace(self, weight=weight)

    def under(self, aggregate: float) -> "CostGraph":
        """The same graph under another power of its `aggregates`; what is priced is remembered for both."""
        if aggregate not in self.aggregates:
            raise ValueError(f"aggregate {aggregate:g} is none of {', '.join(f'{p:g}' for p in self.aggregates)}")
        return replace(self, aggregate=aggregate)

    def group_price(self, group: Sequence[int], price: float) -> float:
        """`f_λ(S)` (DESIGN §5); `inf` where the layers share no side, or are not near each other."""
        if self.near is not None and not connected(self.near, group):
            return math.inf
        hull = self.hull(group)
        if not len(hull):
            return math.inf
        return float(np.min(hull.damage + price * hull.size))

    def damage(self, group: Sequence[int], option: Option) -> dict[str, float]:
        """Predicted damage of every layer of a class, by name."""
        values = damage_by_layer(self.members(group), option)
        return {self.layers[i].name: value for i, value in zip(group, values, strict=True)}

    def compatible(self) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """L × L: whether two layers could share a basis of some kind."""
        return compatible(self.layers, self.kinds)

    @property
    def near(self) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None:
        """L × L: which layers are priced together (`geocolor.nearest`), once it is asked for; None where all are."""
        if not self._near:
            many = int(np.triu(self.compatible(), 1).sum()) > self.most_pairs
            inputs = self.curvature.inputs
            each = nearest_of_each(self.layers)
            self._near.append(nearest(self.layers, self.metrics, self.kinds, each, inputs) if many else None)
        return self._near[0]

    def promising(self, price: float) -> list[list[int]] | None:
        """Pairs that are not known to cost over `HOPELESS` times as much as the two layers alone, at this price.

        They are worth pricing under a curvature that is not far from this one. None where no pair has been priced.
        """
        if all(len(group) == 1 for group in self._hulls):
            return None
        alone = [self.group_price((i,), price) for i in range(len(self.layers))]
        return [
            [i, j]
            for i, j in np.argwhere(np.triu(self.priced_together(), 1)).tolist()
            if (i, j) not in self._hulls or self.group_price((i, j), price) <= HOPELESS * (alone[i] + alone[j])
        ]

    def priced_together(self) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """L × L: whether two layers are compatible, and near where that counts."""
        return self.compatible() if self.near is None else self.compatible() & self.near

    def price_pairs(self, *, progress: bool = False, journal: Journal | None = None) -> None:
        """Ask for every pair that could share a basis: what all searches begin with, once for all prices.

        `PIECE` pairs at a time are a piece of the `journal`. Several processes take turns and tell each other.
        """
        pairs = [tuple(pair) for pair in np.argwhere(np.triu(self.priced_together(), 1)).tolist()]
        known = set(self._hulls)
        if all(pair in known for pair in pairs):
            return
        journal = journal or Journal()
        with bar("pricing pairs of layers", len(pairs), wanted=progress and processes.rank() == 0) as advance:

            def priced(piece: Sequence[tuple[int, ...]]) -> dict[str, torch.Tensor]:
                for pair in piece:
                    self.hull(pair)
                    advance()
                return as_tensors([self._hulls[pair] for pair in piece])

            which = [(power, weight) for power in self.aggregates for weight in self.weights]
            flops = "" if self.weights == (0.0,) else f"-{len(self.weights)}-weights"
            for start in range(0, len(pairs), PIECE):
                if not processes.is_mine(start // PIECE):
                    continue
                piece = pairs[start : start + PIECE]
                name = f"pairs-{self.curvature.rounds}{flops}-{start // PIECE}"
                found = from_tensors(journal.tensors(name, partial(priced, piece)), which)
                self._hulls.update((p, hulls) for p, hulls in zip(piece, found, strict=True) if p not in self._hulls)
        for part in processes.gathered({group: self._hulls[group] for group in self._hulls.keys() - known}):
            self._hulls.update(part)

    @property
    def known(self) -> Mapping[tuple[int, ...], Mapping[tuple[float, float], Options]]:
        """What has been priced: the hulls of classes (indices, rising), by power and weight."""
        return self._hulls

    def remember(self, known: Mapping[tuple[int, ...], Mapping[tuple[float, float], Options]]) -> None:
        """Take over what another graph of the same layers, curvature, kinds, aggregates and weights has priced."""
        self._hulls.update({group: dict(hulls) for group, hulls in known.items()})

    def group_problem(self, price: float, bases: int | None = None) -> GroupProblem:
        """Rate–distortion: partition the layers so that `Σ f_λ(S)` is least, `K = bases` of them owning a basis."""
        dense = np.array([price * self._size_dense(layer) for layer in self.layers])
        return GroupProblem(
            len(self.layers),
            lambda group: self.group_price(group, price),
            compatible=self.compatible(),
            K=bases,
            penalty=None if bases is None else dense,
            item_lower_bound=self.share_lower_bound(price),
        )

    def share_lower_bound(self, price: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """A lower bound on what layer ℓ adds to any class, proven by Eckart–Young.

        No matrix of rank `r` does less damage than the layer's own truncated SVD, and a layer's part of the parameters
        of a class of `g` layers is at least `r·m + r·n/g` (`in`), `r·n + r·m/g` (`out`) or `r² + r·(m + n)/g` (`both`),
        least where all layers that could join are in the class. Operations are never fewer than parameters times the
        least load.
        """
        least = (1 - self.weight) + self.weight * min(self.loads.values(), default=1.0)
        inputs = Counter(layer.in_side for layer in self.layers)
        outputs = Counter(layer.out_side for layer in self.layers)
        both = Counter((layer.in_side, layer.out_side) for layer in self.layers)
        bounds = np.zeros(len(self.layers))
        for i, layer in enumerate(self.layers):
            tail = damage_alone(self.metrics[layer.name])[1:].pow(self.aggregate).cpu().numpy()
            rank = np.arange(1, len(tail) + 1)
            m, n, sides = layer.m, layer.n, (layer.in_side, layer.out_side)
            own = {
                "in": rank * (m + n / inputs[layer.in_side]),
                "out": rank * (n + m / outputs[layer.out_side]),
                "both": rank * (rank + (m + n) / both[sides]),
            }
            cheapest = min(float(np.min(tail + price * least * own[kind])) for kind in self.kinds)
            bounds[i] = min(cheapest, price * self._size_dense(layer))
        return bounds

    def _size_dense(self, layer: Layer) -> float:
        """What is paid for a layer left as it is."""
        return layer.parameters * (1 - self.weight + self.weight * self.loads[layer.name])

    def pairwise_problem(self, price: float, bases: int | None = None) -> PairwiseProblem:
        """`w(ℓ,ℓ') = f({ℓ,ℓ'}) − f({ℓ}) − f({ℓ'})`, negative where sharing pays; layers that share no side conflict."""
        size = len(self.layers)
        weight = np.zeros((size, size))
        conflict = ~self.priced_together()
        alone = [self.group_price((i,), price) for i in range(size)]
        for i in range(size):
            for j in range(i):
                if not conflict[i, j]:
                    weight[i, j] = weight[j, i] = self.group_price((j, i), price) - alone[i] - alone[j]
        return PairwiseProblem(weight, conflict=conflict, K=bases)

    def medoid_problem(
        self,
        bases: int,
        *,
        rank_fraction: float = 0.5,
        beta: float | None = None,
        flat_energy: float = 0.05,
        progress: bool = False,
    ) -> MedoidProblem:
        """The paper's form: `cost[ℓ, b]` is the high-curvature error of layer ℓ in the `both` basis of layer b.

        Candidate b is the layer's own weighted SVD at `rank_fraction · min(m, n)`; coefficients are the best within the
        trust region `β` (None: without). Layers of other shapes are forbidden (`inf`).
        """
        size = len(self.layers)
        cost = np.full((size, size), np.inf)
        bases_of = [medoid_basis(self.metrics[layer.name], medoid_rank(layer, rank_fraction)) for layer in self.layers]
        A, G = self.curvature.A, self.curvature.G
        for i in track(range(size), "pricing layers in every candidate basis", wanted=progress):
            layer = self.layers[i]
            weight = self.metrics[layer.name].weight.to(G[layer.name])
            eigen = eigen_metric(weight, G[layer.name], A[layer.name], flat_energy)
            for b in range(size):
                if can_share((layer, self.layers[b]), "both"):
                    left, right = bases_of[b]
                    cost[i, b] = fit(eigen, left.to(weight), right.to(weight), beta).sharp_damage
        return MedoidProblem(cost, K=bases)

    @property
    def bounded(self) -> bool:
        """Whether layers and classes are held within a bound of memory."""
        return isinstance(self.metrics, MetricsWithin)

    def set_aside(self) -> None:
        """Let go of what takes memory and can be read again, where memory is bounded."""
        for kept in (self._hulls, self.metrics):
            if isinstance(kept, MetricsWithin | HullsWithin):
                kept.set_aside()

    def to_networkx(self, price: float) -> "nx.Graph[str]":
        """Nodes carry shape, parameters and what they cost alone; edges what a pair costs and saves at this price.

        Written as GraphML it is a problem that `solvers.formats.read` reads.
        """
        problem = self.pairwise_problem(price)
        graph: nx.Graph[str] = nx.Graph(
            kind="pairwise", missing="conflict", price=price, aggregate=self.aggregate, unit=self.curvature.unit
        )
        for i, layer in enumerate(self.layers):
            best = self.hull((i,))[self.hull((i,)).at(price)]
            graph.add_node(
                layer.name,
                m=layer.m,
                n=layer.n,
                form=layer.form,
                parameters=layer.parameters,
                cost=self.group_price((i,), price),
                kind=best.kind,
                rank=best.rank or 0,
                damage=best.damage,
                energy=self.metrics[layer.name].energy,
            )
        for i in range(len(self.layers)):
            for j in range(i):
                if not problem.conflict[i, j]:
                    hull = self.hull((j, i))
                    best = hull[hull.at(price)]
                    graph.add_edge(
                        self.layers[j].name,
                        self.layers[i].name,
                        weight=float(problem.weight[i, j]),
                        cost=self.group_price((j, i), price),
                        kind=best.kind,
                        rank=best.rank or 0,
                        damage=best.damage,
                    )
        return graph

    def write(self, path: str | Path, price: float) -> None:
        """Write the graph as GraphML (`.graphml`) or node-link JSON (`.json`)."""
        path, graph = Path(path), self.to_networkx(price)
        if path.suffix == ".graphml":
            write_atomically(path, lambda temporary: nx.write_graphml(graph, temporary))
        elif path.suffix == ".json":
            document: dict[str, Any] = nx.node_link_data(graph, edges="edges")
            write_atomically(path, lambda temporary: temporary.write_text(json.dumps(document, indent=1) + "\n"))
        else:
            raise ValueError(f"{path}: a cost graph is written as .graphml or .json")


def widest(layers: Sequence[Layer]) -> int:
    """Of all layers' narrower sides the widest."""
    return max((min(layer.m, layer.n) for layer in layers), default=0)


def precision(layers: Sequence[Layer]) -> torch.dtype:
    """That of prices and factors."""
    return torch.float32 if widest(layers) >= SINGLE else torch.float64


def nearest_of_each(layers: Sequence[Layer]) -> int:
    """How many nearest layers of each are priced with it on either side, where not all are."""
    return NEAREST_WIDE if widest(layers) >= WIDE else NEAREST


def _matrix(pairs: Sequence[Sequence[int]], size: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """size × size: whether two are a pair, or the same."""
    found = np.eye(size, dtype=bool)
    for i, j in pairs:
        found[i, j] = found[j, i] = True
    return found


def medoid_rank(layer: Layer, rank_fraction: float) -> int:
    """Rank of a candidate basis: at least 1, below both widths."""
    smaller = min(layer.m, layer.n)
    return min(max(1, round(rank_fraction * smaller)), smaller - 1)


def medoid_basis(member: Metric, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's own best basis of kind `both`: `U` (m × r), `V` (n × r) of its weighted SVD, orthonormal columns."""
    left, _, right = torch.linalg.svd(member.half @ member.A.root, full_matrices=False)
    U, V = member.G.back(left[:, :rank]), member.A.back(right[:rank].T)
    return torch.linalg.qr(U)[0], torch.linalg.qr(V)[0]


def price(
    model: torch.nn.Module,
    curvature: Curvature,
    *,
    kinds: Sequence[FactoredKind] = KINDS,
    aggregate: float | Sequence[float] = 1.0,
    most_pairs: int = MOST_PAIRS,
    memory: int | None = None,
    device: torch.device | str = "cpu",
    near: Sequence[Sequence[int]] | None = None,
    progress: bool = False,
) -> CostGraph:
    """The cost graph of a model under a curvature: every class of its layers can be priced from here on.

    Several powers as `aggregate` are priced together; the graph is that of the first. Damages are summed in double
    precision; from width `SINGLE` on, the rest is in single. Only the pairs of `near` (indices) are priced, and
    classes that hang together by them; without it, where more than `most_pairs` pairs of layers could share, those that
    have something in common (`geocolor.nearest`). Layers are held on `device`, at most `memory` bytes of them and of
    what classes cost where it is given (by default, that of statistics on disk), but always one layer and one class.
    Raises `ValueError` for weights that are not finite and for layers whose shape is not the measured one.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown or not kinds:
        raise ValueError(f"basis kinds are {', '.join(KINDS)}; got {', '.join(sorted(unknown)) or 'none'}")
    aggregates = (aggregate,) if isinstance(aggregate, int | float) else tuple(aggregate)
    if not aggregates or not all(power > 0 for power in aggregates):
        raise ValueError(f"aggregate is the power of the damage and must be positive; got {aggregate}")
    metrics: Mapping[str, Metric]
    hulls: MutableMapping[tuple[int, ...], Hulls] = {}
    if memory is None and isinstance(curvature.A, OnDisk):
        memory = curvature.A.memory
    if memory is not None:
        hulls = HullsWithin(memory // HULLS_SHARE)
        metrics = MetricsWithin(model, curvature, memory - hulls.memory, precision(curvature.layers), device)
    else:
        metrics = metrics_of(model, curvature, curvature.layers, device, progress)
    return CostGraph(
        layers=tuple(curvature.layers),
        curvature=curvature,
        metrics=metrics,
        fingerprint=fingerprint(model, curvature.layers),
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        aggregate=aggregates[0],
        aggregates=aggregates,
        most_pairs=most_pairs,
        _near=[] if near is None else [_matrix(near, len(curvature.layers))],
        _hulls=hulls,
    )


def metrics_of(
    model: torch.nn.Module,
    curvature: Curvature,
    layers: Sequence[Layer],
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Metric]:
    """By name; layers that read the same input share the root of their `A`."""
    dtype = precision(curvature.layers)
    metrics: dict[str, Metric] = {}
    A: dict[str, Factor] = {}
    for layer in track(layers, "reading layers", wanted=progress):
        first = curvature.inputs.get(layer.name, layer.name)
        if first not in A:
            A[first] = Factor(held(curvature.A, layer.name, dtype, device))
        G = Factor(held(curvature.G, layer.name, dtype, device))
        metrics[layer.name] = Metric(weight_of(model, layer, dtype).to(device), G, A[first])
    return metrics
