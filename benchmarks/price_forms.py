"""Why the price is a plain sum of Kronecker damages: other forms, held against the same plans.

    python -m benchmarks.price_forms --data ../shared/bench -o benchmarks/results/price_forms.json

Aggregates: how the damages `D` of single layers make that of a plan. The rows of `benchmarks.fidelity` hold the `D` of
every layer and the divergence measured, so nothing is run: powers, a quadratic term, saturation, and errors of one
block that add coherently are computed from them. Constants are chosen on the other four models, never on the rows that
judge them.

Found: none is better than `Σ D` by more than the plans' own scatter. Ranks are best for powers of 1 to 1.1, and fall on
both sides; a quadratic term, saturation and coherent blocks lower the mean rank correlation from the first constant on.
Single models want other forms (ResNet-56 at keep 0.8 a power of 1.5 to 2, KWT-1 some saturation), but no other model's
plans foretell which, and what helps one harms the others.

Curvature: the forms of `benchmarks.curvature_forms`, each asked for the damage of the same plans, under the dense
model's own curvature and after looks, on calibration data, so that nothing but the form is judged.

Found, on stories260K at keep 0.8 and 0.9 and KWT-1 at 0.8 (18 to 24 plans each): eigenvalues measured in the Kronecker
eigenbasis (EKFAC) do not rank plans better, neither before looks nor after, and nor do the blocks themselves, without
any factors. After looks, on stories260K EKFAC's prices are Kronecker's within 2 %: of a layer it finds nearly the same
fraction of Kronecker's damage in every plan, and levels are what looks measure anyway. On KWT-1 its prices are nearer
to what is measured and rank worse, but so it is with Kronecker's once damping and shrinkage are left off: on the very
data that calibrate they only cost, and what they are for is other data. What layers do to one another (the whole)
would help KWT-1, where plans do less than 0.02 nats, and harms stories260K, where they do 0.1 to 2.5: near the dense
model layers' errors add up, and farther away no longer.

The first order: the divergence has no gradient at the dense model. The task's loss has one: at most an eighth of its
rise on stories260K, with either sign, and as much as the rise on KWT-1, where both are some 3e-4 nats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import rankdata

from benchmarks.curvature_forms import KRONECKER, run
from benchmarks.fidelity import write
from benchmarks.subjects import SUBJECTS, Name, check_data
from geocolor.atomic import write_atomically

Row = dict[str, Any]
Array = NDArray[np.float64]
Case = tuple[str, float]

#: Layers of each block, in the order of `by_layer`; what stands outside of blocks is one of its own.
BLOCKS: Mapping[str, tuple[int, ...]] = {
    "stories260K": (7,) * 5,
    "kwt1": (1, *(6,) * 12),
    "resnet56": (1, *(2,) * 27),
    "embedded": (7,) * 8,
    "minilm": (6,) * 6,
}
RESAMPLES = 1000


@dataclass(frozen=True)
class Arguments:
    """Other forms of the price, judged by plans that were carried out."""

    data: Path = Path("../shared/bench")
    """Folder with stories260K/, text/ and kwt1/; the embedded model needs none."""
    only: tuple[Name, ...] = ("stories260K", "kwt1", "embedded")
    """Models that forms of the curvature are tried on."""
    keep: tuple[float, ...] = (0.8, 0.9)
    """Fractions of the parameters in scope that those plans keep."""
    plans: int = 24
    """Plans of each model and size, 11 or more."""
    rounds: int = 3
    """Looks from smaller models that move the curvature, as `geocolor compress` has them."""
    fidelity: Path = Path("benchmarks/results/fidelity.json")
    """Rows of `benchmarks.fidelity`."""
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("benchmarks/results/price_forms.json")
    """Where results go, and come from where a run is resumed; the table lies beside it."""
    report_only: bool = False
    """Make no plan, only the tables."""


@dataclass(frozen=True)
class Plans:
    """Damages [plans, layers] and measured divergence [plans] of the plans of one model at one size."""

    damages: Array
    measured: Array
    blocks: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The mean damage of a layer, so that constants have no unit."""
        return float(self.damages.mean())

    def coherent(self) -> Array:
        """`Σ_blocks (Σ_{ℓ in block} √D_ℓ)²`: what errors do that point the same way throughout a block."""
        starts = np.cumsum((0, *self.blocks[:-1]))
        total: Array = np.square(np.add.reduceat(np.sqrt(self.damages), starts, axis=1)).sum(axis=1)
        return total


@dataclass(frozen=True)
class Family:
    """Aggregates with one constant; `plain` is the constant that makes it the sum."""

    formula: str
    plain: float
    constants: tuple[float, ...]
    aggregate: Callable[[Plans, float], Array]

    def of(self, plans: Plans, constant: float) -> Array:
        return self.aggregate(plans, constant)


def _power(plans: Plans, p: float) -> Array:
    total: Array = np.power(plans.damages, p).sum(axis=1) ** (1 / p)
    return total


def _quadratic(plans: Plans, c: float) -> Array:
    total: Array = (plans.damages + c * plans.damages**2 / plans.mean).sum(axis=1)
    return total


def _saturating(plans: Plans, c: float) -> Array:
    total: Array = (plans.damages / (1 + c * plans.damages / plans.mean)).sum(axis=1)
    return total


def _coherent(plans: Plans, c: float) -> Array:
    total: Array = plans.damages.sum(axis=1) + c * plans.coherent()
    return total


#: D̄ is the mean damage of a layer over all plans of the model and size.
FAMILIES: Mapping[str, Family] = {
    "power": Family("(Σ D^p)^(1/p), p", 1.0, (0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0), _power),
    "quadratic": Family("Σ D + c D²/D̄, c", 0.0, (0.0, 0.01, 0.03, 0.1, 0.3, 1.0), _quadratic),
    "saturating": Family("Σ D/(1 + c D/D̄), c", 0.0, (0.0, 0.01, 0.03, 0.1, 0.3, 1.0), _saturating),
    "coherent": Family("Σ D + c Σ_blocks (Σ √D)², c", 0.0, (0.0, 0.03, 0.1, 0.3, 1.0), _coherent),
}


def read_plans(rows: Sequence[Row]) -> dict[Case, Plans]:
    """The plans of `benchmarks.fidelity` by model and size."""
    own: dict[Case, list[Row]] = {}
    for row in rows:
        if row.get("measured", 0) > 0:
            own.setdefault((row["model"], row["keep"]), []).append(row)
    return {
        case: Plans(
            np.array([row["by_layer"] for row in found]), np.array([row["measured"] for row in found]), BLOCKS[case[0]]
        )
        for case, found in own.items()
    }


def judged(said: Array, seen: Array) -> tuple[float, float, float]:
    """Spearman's rank correlation; median |log(said / seen)|; the same after one factor common to all plans."""
    logs = np.log(said / seen)
    common = np.median(np.abs(logs - np.median(logs)))
    return rank_correlation(said, seen), float(np.median(np.abs(logs))), float(common)


def rank_correlation(said: Array, seen: Array) -> float:
    return float(_rank_correlations(said[None], seen[None])[0])


def _rank_correlations(said: Array, seen: Array) -> Array:
    """Spearman's, of every row of one [draws, plans] with that of the other."""
    ranks = [rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (said, seen)]
    found: Array = (ranks[0] * ranks[1]).sum(1) / np.sqrt(np.square(ranks[0]).sum(1) * np.square(ranks[1]).sum(1))
    return found


def aggregates(cases: Mapping[Case, Plans]) -> Iterator[Row]:
    """A row for every family and constant: what it is worth on every model at every size."""
    for name, family in FAMILIES.items():
        for constant in family.constants:
            found = [
                {"model": model, "keep": keep}
                | dict(
                    zip(
                        ("spearman", "log_ratio", "log_ratio_after_factor"),
                        (round(each, 4) for each in judged(family.of(plans, constant), plans.measured)),
                        strict=True,
                    )
                )
                for (model, keep), plans in cases.items()
            ]
            yield {"part": "aggregates", "form": name, "constant": constant, "cases": found}


def held_out(cases: Mapping[Case, Plans], rows: Sequence[Row]) -> Iterator[Row]:
    """A row for every family: the constant that ranks best on the other models, and what it is worth on this one.

    `gain` is the rise of Spearman's rank correlation over the sum's, the mean of all cases; `low` and `high` are its
    95 % interval when the plans of every case are drawn again with replacement.
    """
    for name, family in FAMILIES.items():
        ranks = {
            row["constant"]: {(case["model"], case["keep"]): case["spearman"] for case in row["cases"]}
            for row in rows
            if row["part"] == "aggregates" and row["form"] == name
        }
        chosen = {
            model: max(
                ranks,
                key=lambda constant: np.mean([rank for case, rank in ranks[constant].items() if case[0] != model]),
            )
            for model in dict.fromkeys(model for model, _ in cases)
        }
        gains = {case: ranks[chosen[case[0]]][case] - ranks[family.plain][case] for case in cases}
        drawn = np.mean([_redrawn(family, chosen[case[0]], plans) for case, plans in cases.items()], axis=0)
        low, high = np.quantile(drawn, [0.025, 0.975])
        yield {
            "part": "held out",
            "form": name,
            "chosen": chosen,
            "gain": round(float(np.mean(list(gains.values()))), 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
            "cases": [{"model": model, "keep": keep, "gain": round(gain, 4)} for (model, keep), gain in gains.items()],
        }


def _redrawn(family: Family, constant: float, plans: Plans) -> Array:
    """What the constant gains in draws of the plans with replacement."""
    draws = _draws(len(plans.measured))
    seen = plans.measured[draws]
    ours, plain = (family.of(plans, each)[draws] for each in (constant, family.plain))
    return _rank_correlations(ours, seen) - _rank_correlations(plain, seen)


def _draws(plans: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(plans, size=(RESAMPLES, plans))


def markdown(rows: Sequence[Row]) -> str:
    """The tables."""
    return "\n".join(filter(None, (_aggregates_table(rows), _curvature_table(rows), _first_order_table(rows))))


def _aggregates_table(rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["part"] == "aggregates"]
    if not own:
        return ""
    plain = {
        row["form"]: [case["spearman"] for case in row["cases"]]
        for row in own
        if row["constant"] == FAMILIES[row["form"]].plain
    }
    lines = [
        f"## How damages of layers add up\n\nOn the plans of `benchmarks.fidelity`: {len(own[0]['cases'])} cases, a "
        "case being a model and a size. `D` is the price of a layer, D̄ its mean over all plans of a case. The log "
        "ratio is the median of |log(predicted / measured)|, as it is and after one factor common to the plans of a "
        "case; all three are means over cases. Better and worse: cases in which Spearman's rank correlation differs "
        "from the sum's by more than 0.01.\n",
        "| form | constant | Spearman, mean | lowest | better / worse | log ratio | after a factor |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in own:
        if row["form"] != "power" and row["constant"] == FAMILIES[row["form"]].plain:
            continue  # the sum again
        ranks = np.array([case["spearman"] for case in row["cases"]])
        apart = ranks - np.array(plain[row["form"]])
        ratios = [np.mean([case[key] for case in row["cases"]]) for key in ("log_ratio", "log_ratio_after_factor")]
        lines.append(
            f"| {FAMILIES[row['form']].formula} | {row['constant']:g} | {ranks.mean():.3f} | {ranks.min():.3f} | "
            f"{(apart > 0.01).sum()} / {(apart < -0.01).sum()} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    lines += [
        "\nThe constant of each family chosen on the other models (best mean Spearman), and what it gains over the sum "
        "on the one left out:\n",
        "| form | chosen for | gain in Spearman, mean of cases (95 % of draws of plans) | best case | worst case |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in (row for row in rows if row["part"] == "held out"):
        chosen = ", ".join(f"{model} {constant:g}" for model, constant in row["chosen"].items())
        worst, *_, best = sorted(row["cases"], key=lambda case: case["gain"])
        ends = [f"{case['gain']:+.3f} ({case['model']}, {case['keep']:g})" for case in (best, worst)]
        lines.append(
            f"| {FAMILIES[row['form']].formula} | {chosen} | {row['gain']:+.4f} ({row['low']:+.4f} to "
            f"{row['high']:+.4f}) | {ends[0]} | {ends[1]} |"
        )
    return "\n".join(lines) + "\n"


def _curvature_table(rows: Sequence[Row]) -> str:
    cases: dict[Case, list[Row]] = {}
    for row in rows:
        if row["part"] == "curvature" and "measured" in row:
            cases.setdefault((row["model"], row["keep"]), []).append(row)
    if not cases:
        return ""
    lines = [
        "## Curvature under the price\n\nDivergence measured on the calibration data; the forms are those of "
        "`benchmarks/curvature_forms.py`. Each figure: Spearman's rank correlation, median log ratio, and that after "
        "one factor common to the plans.\n",
        f"| prices | form | {' | '.join(f'{model} {keep:g}, {len(own)} plans' for (model, keep), own in cases.items())}"
        " | gain in Spearman over Kronecker's, mean of cases (95 % of draws of plans) |",
        f"| --- | --- |{' --- |' * (len(cases) + 1)}",
    ]
    for looks, title in (("dense", "dense model's own"), ("looks", "after looks")):
        for form in next(iter(cases.values()))[0][looks]:
            shown, gains, drawn = list[str](), list[float](), list[Array]()
            for own in cases.values():
                seen = np.array([row["measured"] for row in own])
                said, plain = (np.array([row[looks][each] for row in own]) for each in (form, KRONECKER))
                rank, ratio, after = judged(said, seen)
                shown.append(f"{rank:.3f} {ratio:.2f} {after:.2f}")
                gains.append(rank - rank_correlation(plain, seen))
                draws = _draws(len(seen))
                drawn.append(
                    _rank_correlations(said[draws], seen[draws]) - _rank_correlations(plain[draws], seen[draws])
                )
            low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
            gain = "" if form == KRONECKER else f"{np.mean(gains):+.4f} ({low:+.4f} to {high:+.4f})"
            lines.append(f"| {title} | {form} | {' | '.join(shown)} | {gain} |")
    return "\n".join(lines) + "\n"


def _first_order_table(rows: Sequence[Row]) -> str:
    own = [row for row in rows if "first_order" in row]
    if not own:
        return ""
    lines = [
        "## The first-order term\n\n‖∇J‖ of the divergence at the dense model, relative to the one after a tenth of a "
        "plan's change; `⟨∇L, δ⟩` of the task's loss beside its measured rise.\n",
        "| model | keep | plan | ‖∇J‖ / after a tenth | ⟨∇L, δ⟩ | ΔL | divergence |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in own:
        found = row["first_order"]
        lines.append(
            f"| {row['model']} | {row['keep']:g} | {row['plan']} | "
            f"{found['gradient_of_divergence'] / found['gradient_after_step']:.0e} | {found['slope_of_task']:+.2g} | "
            f"{found['rise_of_task']:+.2g} | {row['measured']:.2g} |"
        )
    return "\n".join(lines) + "\n"


def tried(arguments: Arguments, rows: list[Row], console: Console) -> None:
    """Adds the rows of forms of the curvature that are missing, and writes after each."""
    for name in arguments.only:
        subject = SUBJECTS[name](arguments.data)
        for row in run(subject, arguments.keep, arguments.plans, arguments.rounds, rows):
            rows.append(row)
            write(rows, arguments.output)
            console.print(f"{name} {row['keep']:g}  {row['plan']}", highlight=False)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.fidelity.exists():
        raise SystemExit(f"no file {arguments.fidelity}: run benchmarks.fidelity first, or name its rows (--fidelity)")
    cases = read_plans(json.loads(arguments.fidelity.read_text()))
    rows = list(aggregates(cases))
    rows += held_out(cases, rows)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.output.exists():
        rows += [row for row in json.loads(arguments.output.read_text()) if row["part"] == "curvature"]
    write(rows, arguments.output)
    if not arguments.report_only:
        check_data(arguments.data, arguments.only)
        torch.set_num_threads(1)
        tried(arguments, rows, Console())
    table = markdown(rows)
    write_atomically(arguments.output.with_suffix(".md"), lambda temporary: temporary.write_text(table))
    print(table)


if __name__ == "__main__":
    main()
