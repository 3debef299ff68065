"""The commands and their options.

What a command does is in `geocolor.commands`, imported when it runs: that loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

if TYPE_CHECKING:
    from geocolor.settings import Settings

DESCRIPTION = """Smaller models by graph coloring: layers of one color share a basis, and the coloring is found where
the loss says that it costs least. `geocolor demo` shows it all on an embedded model."""

Kind = Literal["in", "out", "both"]
Form = Literal["group", "medoid", "pairwise"]

# What a value is called in the help.
Model = Annotated[Positional[str], arg(metavar="MODEL")]
PlanFile = Annotated[Positional[Path], arg(metavar="PLAN.JSON")]
Batches = Annotated[str, arg(metavar="FILE|MODULE:FUNCTION")]
Folder = Annotated[Path, arg(aliases=("-o",), metavar="FOLDER")]
Flag = FlagCreatePairsOff[bool]

# What may be left out.
OptionalBatches = Annotated[str | None, arg(metavar="FILE|MODULE:FUNCTION", help_behavior_hint="(optional)")]
OptionalText = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(optional)")]
OptionalModel = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(optional)")]
OptionalFile = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(optional)")]
OptionalFloat = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(optional)")]
OptionalInt = Annotated[int | None, arg(metavar="INT", help_behavior_hint="(optional)")]


@dataclass(frozen=True)
class Budget:
    """How small, and how the plan is searched."""

    keep: OptionalFloat = None
    """Fraction of the parameters in scope that may remain, above 0 and at most 1."""
    bases: OptionalInt = None
    """The most colors that may own a basis. Alone, without --keep: each layer takes one of K layers' bases."""
    max_flops: OptionalFloat = None
    """Fraction of the FLOPs per position in scope that may remain, above 0 and at most 1; with --keep or alone."""
    preset: str = "geocolor"
    """A published method in place of the search: svd, fwsvd, asvd, svd-llm, svd-llm-update, basis-sharing (and -3, -4,
    -all), d-rank, two-sided or geo-sharing. Needs --keep (geo-sharing: or --bases)."""
    solver: str = "auto"
    """Solver by name; `geocolor compare` races them."""
    kinds: tuple[Kind, ...] = ("in", "out", "both")
    """Basis kinds a class may use."""
    aggregate: OptionalFloat = None
    """Power p of the damage of a layer in the price, sum of D^p; when not given, 1 and 2 each make a plan, and the one
    that does least damage on calibration data is taken."""
    trust_region: OptionalFloat = None
    """Radius beta of the trust region, relative to the norm of the weight; off when not given."""
    flat_energy: float = 0.05
    """Fraction of the curvature's trace that the flat directions hold."""
    rank_fraction: float = 0.5
    """Rank of a lent basis relative to min(m, n), with --bases alone."""
    axes: int = 25
    """Axes of each layer's Hessian, with --preset geo-sharing."""
    time_limit: float = 60.0
    """Seconds for all of the search, once pairs of layers are priced."""


@dataclass(frozen=True)
class Source:
    """What the model is measured on."""

    sequence: int = 256
    """Tokens per sequence (causal language models) or at most per sentence (encoders)."""
    batch_size: int = 8
    """Sequences or sentences per batch."""
    samples: OptionalInt = None
    """Use at most this many sequences or sentences for calibration (all when not given)."""
    estimate: OptionalText = None
    """Curvature: kronecker, activation, magnitude, diagonal or identity; that of the preset when not given."""
    damping: OptionalFloat = None
    """Added to both Kronecker factors, relative to the mean of their diagonal; 0.001, or that of the preset."""
    shrinkage: OptionalFloat = None
    """How far both Kronecker factors are drawn towards the identity: a fraction of what Ledoit and Wolf's formula finds
    best by how far batches are apart; 0.5, or 0 for presets of published methods."""
    draws: int = 1
    """Random directions of the output per position, along which gradients are taken."""
    rounds: int = 3
    """Looks from smaller models that move prices to what is seen there, first from ones without sharing, then, as long
    as that gains, from the best that share; 0 for none."""
    include: Annotated[tuple[str, ...], arg(metavar="PATTERN …")] = ("*",)
    """Patterns of layer names in scope."""
    exclude: Annotated[tuple[str, ...], arg(metavar="PATTERN …", help_behavior_hint="(optional)")] = ()
    """Patterns of layer names left alone."""
    memory: OptionalText = None
    """What the process may hold while it measures and prices, like 8GB: statistics are gathered for as many layers at a
    time as fit, each time with a pass over the data, and are read from disk when they are needed. The model itself is
    held whole; smaller models that are looked from (--rounds) lie in files."""
    seed: int = 0
    """Of the directions that are sampled, and of the solver."""


def refine_steps(given: int) -> int:
    """What --refine asks for. Raises `ValueError` where that is below 0."""
    if given < 0:
        raise ValueError(f"--refine is {given}; it must be at least 0, which is none")
    return given


def settings(budget: Budget, source: Source) -> Settings:
    from geocolor.quantities import parse_size
    from geocolor.settings import Settings

    return Settings(
        memory=None if source.memory is None else parse_size(source.memory),
        keep=budget.keep,
        bases=budget.bases,
        max_flops=budget.max_flops,
        preset=budget.preset,
        solver=budget.solver,
        kinds=budget.kinds,
        aggregate=budget.aggregate,
        trust_region=budget.trust_region,
        flat_energy=budget.flat_energy,
        rank_fraction=budget.rank_fraction,
        axes=budget.axes,
        time_limit=budget.time_limit,
        estimate=source.estimate,
        damping=source.damping,
        shrinkage=source.shrinkage,
        draws=source.draws,
        rounds=source.rounds,
        include=source.include,
        exclude=source.exclude,
        seed=source.seed,
    )


@dataclass(frozen=True)
class Demo:
    """The main job on the embedded model: a language model of Python source, calibrated and tested on modules of the
    standard library that it never saw."""

    keep: float = 0.8
    """Fraction of the parameters in scope that may remain."""
    out: Folder = Path("geocolor-demo")
    """Output folder; a former demo in it is replaced."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, after timing a batch and each shape of layer."""
    json: OptionalFile = None
    """Also write the figures there."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands

        return commands.demo(console, self.keep, self.out, self.dry_run)


@dataclass(frozen=True)
class Compress:
    """Measure, price, plan, apply, save, load again and compare: from a model to a smaller model."""

    model: Model
    """Local directory, hub name, or module:function that returns a model."""
    data: Batches
    """Calibration data: text, JSONL with a "text" in every line, or module:function that returns batches."""
    out: Folder
    """Output folder."""
    test_data: OptionalBatches = None
    """Data to measure damage on; a held-out tail of the calibration data when not given."""
    budget: OmitArgPrefixes[Budget] = field(default_factory=Budget)
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    curvature: OptionalFile = None
    """What `geocolor measure` wrote, the folder or the curvature in it: measure no more."""
    refine: int = 0
    """Train bases and coefficients for so many steps before saving; `geocolor refine` has all its settings."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, after timing a batch and each shape of layer."""
    overwrite: Flag = False
    """Replace what the output folder holds."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands
        from geocolor.refinement import RefineSettings

        return commands.compress(
            console,
            self.model,
            self.data,
            self.test_data,
            self.out,
            settings(self.budget, self.source),
            self.source.sequence,
            self.source.batch_size,
            self.source.samples,
            self.overwrite,
            RefineSettings(steps=refine_steps(self.refine)) if self.refine else None,
            self.dry_run,
            self.curvature,
        )


@dataclass(frozen=True)
class Measure:
    """Measure and price only: writes curvature.safetensors and prices.safetensors, for `geocolor plan --curvature`.

    The only command for several processes and machines: `torchrun --nproc-per-node 8 -m geocolor measure …` deals out
    batches and pairs of layers. What is summed is recorded beside the folder, and the same command goes on.
    """

    model: Model
    """Local directory, hub name, or module:function that returns a model."""
    data: Batches
    """Calibration data: text, JSONL with a "text" in every line, or module:function that returns batches."""
    out: Folder
    """Output folder."""
    keep: float = 0.8
    """The size that plans will have, from which the layers are looked at."""
    kinds: tuple[Kind, ...] = ("in", "out", "both")
    """Basis kinds that pairs of layers are priced with."""
    aggregate: OptionalFloat = None
    """Power p of the damage of a layer in the price; when not given, 1 and 2."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    no_pairs: Flag = False
    """Price no pairs of layers; `geocolor plan` does."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, in one process."""
    overwrite: Flag = False
    """Replace what the output folder holds."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands

        budget = Budget(keep=self.keep, kinds=self.kinds, aggregate=self.aggregate)
        return commands.measure(
            console,
            self.model,
            self.data,
            self.out,
            settings(budget, self.source),
            self.source.sequence,
            self.source.batch_size,
            self.source.samples,
            not self.no_pairs,
            self.overwrite,
            self.dry_run,
        )


@dataclass(frozen=True)
class MakePlan:
    """Measure, price and search only: writes plan.json, curvature.safetensors and a picture of the coloring."""

    model: Model
    """Local directory, hub name, or module:function that returns a model."""
    data: Batches
    """Calibration data: text, JSONL with a "text" in every line, or module:function that returns batches."""
    out: Folder
    """Output folder."""
    budget: OmitArgPrefixes[Budget] = field(default_factory=Budget)
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    curvature: OptionalFile = None
    """What `geocolor measure` wrote, the folder or the curvature in it: measure no more."""
    graph: OptionalFile = None
    """Also write the cost graph there, as .graphml or .json."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, after timing a batch and each shape of layer."""
    overwrite: Flag = False
    """Replace what the output folder holds."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands

        return commands.make_plan(
            console,
            self.model,
            self.data,
            self.out,
            settings(self.budget, self.source),
            self.source.sequence,
            self.source.batch_size,
            self.source.samples,
            self.graph,
            self.overwrite,
            self.dry_run,
            self.curvature,
        )


@dataclass(frozen=True)
class Apply:
    """Carry out a plan: writes the smaller model."""

    model: Model
    """The model that the plan was made for: local directory, hub name, or module:function."""
    plan: PlanFile
    """Written by `geocolor plan`, or in the folder of a compressed model."""
    out: Folder
    """Output folder of the smaller model."""
    curvature: OptionalFile = None
    """Curvature file or the folder that holds it; the one beside the plan when not given."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected."""
    overwrite: Flag = False
    """Replace what the output folder holds."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands

        return commands.carry_out(
            console, self.model, self.plan, self.curvature, self.out, self.overwrite, self.dry_run
        )


@dataclass(frozen=True)
class Training:
    """How the factors are trained."""

    steps: int = 300
    """Optimizer steps, one batch each."""
    learning_rate: float = 3e-3
    """Peak of one cycle of AdamW."""
    labels: float = 0.0
    """Weight of the loss on the data's own labels; the divergence from the dense model has the rest."""
    norms: Flag = False
    """Also train normalisation layers."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; what is trained stays float32."""
    holdout: float = 0.1
    """Fraction of the batches never trained on, by which the best step is chosen."""
    evaluate_every: int = 50
    """Steps between two looks at the held-out batches."""
    patience: int = 0
    """Looks without a new best after which to stop early; 0 never stops early."""
    checkpoint_every: int = 100
    """Steps between two checkpoints; a run that is killed goes on from the last one when typed again."""
    seed: int = 0
    """Orders the batches."""


@dataclass(frozen=True)
class Refine:
    """Train bases and coefficients of a compressed model for a while to match the dense one; its size stays."""

    compressed: Annotated[Positional[str], arg(metavar="COMPRESSED")]
    """Folder of the compressed model."""
    dense: Annotated[Positional[str], arg(metavar="DENSE")]
    """The model it was made from: local directory, hub name, or module:function."""
    data: Batches
    """Calibration data: text, JSONL with a "text" in every line, or module:function that returns batches."""
    out: Folder
    """Output folder."""
    test_data: OptionalBatches = None
    """Data to measure damage on; a held-out tail of the calibration data when not given."""
    training: OmitArgPrefixes[Training] = field(default_factory=Training)
    sequence: int = 256
    """Tokens per sequence (causal language models) or at most per sentence (encoders)."""
    batch_size: int = 16
    """Sequences or sentences per batch."""
    samples: OptionalInt = None
    """Use at most this many sequences or sentences (all when not given)."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, after timing a batch and each shape of layer."""
    overwrite: Flag = False
    """Replace what the output folder holds."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands
        from geocolor.refinement import RefineSettings

        return commands.refined(
            console,
            self.compressed,
            self.dense,
            self.data,
            self.test_data,
            self.out,
            RefineSettings(**vars(self.training)),
            self.sequence,
            self.batch_size,
            self.samples,
            self.overwrite,
            self.dry_run,
        )


@dataclass(frozen=True)
class Evaluate:
    """Loss, perplexity, bits per byte or accuracy, parameters and latency of a model, dense or compressed."""

    model: Model
    """Local directory (dense or compressed), hub name, or module:function."""
    data: Batches
    """Test data."""
    reference: OptionalModel = None
    """Dense model to compare with (encoders need one: their loss is a distance to it)."""
    sequence: int = 256
    """Tokens per sequence, or at most per sentence."""
    batch_size: int = 8
    """Sequences or sentences per batch."""
    samples: OptionalInt = None
    """Use at most this many sequences or sentences (all when not given)."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, after timing a batch and each shape of layer."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands

        return commands.evaluation(
            console,
            self.model,
            self.data,
            self.reference,
            self.sequence,
            self.batch_size,
            self.samples,
            self.dry_run,
        )


@dataclass(frozen=True)
class Compare:
    """Race all solvers on one model's cost graph over several K: cost, bound, gap and time."""

    model: Model
    """Local directory, hub name, or module:function that returns a model."""
    data: Batches
    """Calibration data."""
    keep: float = 0.8
    """The price of a parameter is the one that meets this budget without sharing."""
    bases: Annotated[tuple[int, ...], arg(metavar="K …", help_behavior_hint="(optional)")] = ()
    """Values of K; a quarter, half and all of the layers when not given."""
    form: Form = "group"
    """Problem: group (rate-distortion), medoid (the paper's) or pairwise."""
    solvers: Annotated[tuple[str, ...], arg(metavar="NAME …", help_behavior_hint="(optional)")] = ()
    """Solvers to race; all that support the problem when not given."""
    time_limit: float = 10.0
    """Seconds for each solver and K."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    figure: OptionalFile = None
    """Draw the race there."""
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, after timing a batch and each shape of layer."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands

        budget = Budget(keep=self.keep, aggregate=1.0, time_limit=self.time_limit)
        return commands.compare(
            console,
            self.model,
            self.data,
            settings(budget, self.source),
            self.bases,
            self.form,
            self.solvers,
            self.figure,
            self.source.sequence,
            self.source.batch_size,
            self.source.samples,
            self.dry_run,
        )


@dataclass(frozen=True)
class Sweep:
    """Compress over a grid of sizes, solvers and presets: a row of figures each, resumed where it was stopped."""

    model: Model
    """Local directory, hub name, or module:function that returns a model."""
    data: Batches
    """Calibration data: text, JSONL with a "text" in every line, or module:function that returns batches."""
    out: Folder
    """Folder of the rows, results.jsonl; one with rows is gone on with."""
    keep: Annotated[tuple[float, ...], arg(metavar="KEEP …")] = (0.9, 0.8, 0.7, 0.6, 0.5)
    """Fractions of the parameters in scope that may remain."""
    solver: Annotated[tuple[str, ...], arg(metavar="NAME …")] = ("auto",)
    """Solvers by name."""
    preset: Annotated[tuple[str, ...], arg(metavar="NAME …")] = ("geocolor",)
    """The search (geocolor) and published methods, which search nothing and have one cell for all solvers."""
    test_data: OptionalBatches = None
    """Data to measure damage on; a held-out tail of the calibration data when not given."""
    time_limit: float = 60.0
    """Seconds for the search of every cell."""
    refine: int = 0
    """Train bases and coefficients for so many steps."""
    ray: OptionalText = None
    """Run cells on all machines of a Ray cluster: its address, "auto" for the one that runs here, "local" for one
    started here; needs geocolor[ray]. One after the other in this process when not given."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    dry_run: Flag = False
    """Only say what time, memory and disk are expected, after timing a batch and each shape of layer."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor.sweep_grid import absolute, grid, run_sweep

        common = {
            "model": absolute(self.model),
            "data": absolute(self.data),
            "test_data": absolute(self.test_data),
            "sequence": self.source.sequence,
            "batch_size": self.source.batch_size,
            "samples": self.source.samples,
            "refine": refine_steps(self.refine),
        }
        chosen = settings(Budget(keep=1.0, time_limit=self.time_limit), self.source)
        cells = grid(common, chosen, self.keep, self.solver, self.preset)
        return run_sweep(console, cells, self.out, self.ray, self.dry_run)


@dataclass(frozen=True)
class Show:
    """Draw a plan: the coloring as a grid of block and matrix kind, ranks, and predicted damage by layer."""

    plan: PlanFile
    """Written by `geocolor plan`, or in the folder of a compressed model."""
    out: Annotated[OptionalFile, arg(aliases=("-o",))] = None
    """Picture to write (.png, .svg or .pdf); beside the plan when not given."""
    json: OptionalFile = None
    """Also write there what is printed."""

    def run(self, console: Console) -> dict[str, Any]:
        from geocolor import commands

        return commands.show(console, self.plan, self.out)


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Compress, tyro.conf.subcommand("compress")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[MakePlan, tyro.conf.subcommand("plan")]
    | Annotated[Apply, tyro.conf.subcommand("apply")]
    | Annotated[Refine, tyro.conf.subcommand("refine")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Show, tyro.conf.subcommand("show")]
)
