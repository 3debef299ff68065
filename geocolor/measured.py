"""What `geocolor measure` keeps for `geocolor plan` and `compress`: a curvature, and the prices of pairs under it."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from geocolor import processes
from geocolor.atomic import replace_directory
from geocolor.curvature import Curvature, load_curvature
from geocolor.graph import CostGraph
from geocolor.pipeline import Pipeline
from geocolor.plans import fingerprint
from geocolor.presets import GEO_SHARING, find_preset
from geocolor.prices import Prices, read_prices, write_prices
from geocolor.settings import Settings
from geocolor.tensor_files import checksum

CURVATURE = "curvature.safetensors"
PRICES = "prices.safetensors"


@dataclass(frozen=True)
class Measured:
    """A curvature and, where they lie beside it, the prices of classes under it."""

    path: Path
    curvature: Curvature
    prices: Prices | None

    def check(self, settings: Settings, model: nn.Module) -> None:
        """Raise ValueError where the settings ask for another curvature than this, or the model lacks its layers."""
        if settings.preset == GEO_SHARING:
            raise ValueError(f"--preset {GEO_SHARING} measures axes of the Hessian, and has no use for --curvature")
        default, preset = Settings(), find_preset(settings.preset)
        for name in ("damping", "shrinkage", "draws", "include", "exclude"):
            if getattr(settings, name) != getattr(default, name):
                raise ValueError(f"--{name} belongs to `geocolor measure`: {self.path} has been measured")
        asked = settings.estimate or (preset.estimate if preset else self.curvature.estimate)
        if asked != self.curvature.estimate:
            raise ValueError(
                f"{self.path} was measured with --estimate {self.curvature.estimate}, and {asked} is asked for: "
                f"measure again with --estimate {asked}"
            )
        if preset is not None and self.curvature.rounds:
            raise ValueError(
                f"--preset {preset.name} looks from no smaller models, and {self.path} was moved by such looks: "
                "measure again with --rounds 0"
            )
        modules = dict(model.named_modules())
        missing = [layer.name for layer in self.curvature.layers if layer.name not in modules]
        if missing:
            raise ValueError(f"{self.path} was measured on another model: this one has no layer {missing[0]!r}")
        check_weights_measured(self.curvature, self.path, fingerprint(model, self.curvature.layers).sha256)


def check_weights_measured(curvature: Curvature, path: Path, found: str) -> None:
    """Raise ValueError where the curvature of this file is known to be of other weights than those of hash `found`."""
    if curvature.fingerprint not in (None, found):
        raise ValueError(
            f"{path} was measured on another model: one of the same layers with other weights; measure this one with "
            "`geocolor measure`"
        )


def read_measured(path: Path, memory: int | None = None) -> Measured:
    """Reads a curvature, or the folder that `geocolor measure` wrote; within `memory` bytes (`load_curvature`).

    Raises FileNotFoundError, or ValueError naming a file that is damaged.
    """
    file = path / CURVATURE if path.is_dir() else path
    curvature, beside = load_curvature(file, memory), file.with_name(PRICES)
    prices = read_prices(beside) if beside.is_file() else None
    return Measured(file, curvature, prices if prices is not None and prices.curvature == checksum(file) else None)


def own_place(out: Path) -> Path:
    """Beside what the journal of this process lies: `out` itself, or of several processes one name for each."""
    several = processes.world() > 1
    return out.with_name(f"{out.name}.{processes.rank()}-of-{processes.world()}") if several else out


def measure_into(out: Path, run: Pipeline, *, pairs: bool = True, overwrite: bool = False) -> CostGraph:
    """Measure, calibrate and price pairs of layers, in all processes of the run; the first one writes the folder `out`.

    Each process goes on with what its journal holds.
    """
    journal, clock = run.journal, run.clock
    if run.settings.rounds and processes.is_sharded(run.model):
        raise ValueError(
            "the model's weights are sharded over the processes, and smaller models to look from need whole ones: "
            "pass --rounds 0 here; `geocolor plan --curvature` looks from the whole model"
        )
    curvature, graph = run.priced()
    if pairs:
        with clock("price"):
            graph.price_pairs(progress=run.progress, journal=journal)

    def write(folder: Path) -> None:
        replace(curvature, fingerprint=graph.fingerprint.sha256).save(folder / CURVATURE)
        if pairs:
            write_prices(graph, checksum(folder / CURVATURE), folder / PRICES)

    if processes.rank() == 0:
        overwrite = overwrite or journal.written
        journal.writes_now()
        with clock("write"):
            replace_directory(out, write, overwrite)
    processes.gathered(None)  # the journals are needed until the output stands
    return graph
