"""What a run is asked for."""

from dataclasses import dataclass

from geocolor.bases import FactoredKind
from geocolor.geo_sharing import AXES
from geocolor.graph import KINDS
from geocolor.presets import SEARCHED, find_preset

#: Powers of a layer's damage that plans are made under; which one serves best belongs to the model and the budget, and
#: plans without sharing do not tell: those of ResNet-56 at keep 0.8 do 0.053 under power 1 and 0.076 under power 2,
#: colorings 0.042 and 0.021 (calibration data).
AGGREGATES = (1.0, 2.0)


@dataclass(frozen=True)
class Settings:
    """What a run is asked for; every field is an option of the command line.

    `preset` other than "geocolor" is a published method (`geocolor.presets`) and has its own `estimate` and `damping`;
    what belongs to the search then stays at its defaults, but for "geo-sharing", which takes `solver`, `time_limit`,
    `bases` with `rank_fraction`, `trust_region` (0.01 when None) and `axes`, which it alone takes. Without `aggregate`
    each of `AGGREGATES` makes a plan, and calibration data chooses among them. `memory` bounds the bytes that the
    process holds while it measures and prices (half of what the model leaves of them is for layers and classes that are
    kept, the rest for what is computed of a pair); smaller models that are looked from or tried lie in files.
    """

    preset: str = SEARCHED

    keep: float | None = None
    bases: int | None = None
    max_flops: float | None = None
    solver: str = "auto"
    kinds: tuple[FactoredKind, ...] = KINDS
    aggregate: float | None = None
    estimate: str | None = None
    damping: float | None = None
    shrinkage: float | None = None
    draws: int = 1
    rounds: int = 3
    trust_region: float | None = None
    flat_energy: float = 0.05
    rank_fraction: float = 0.5
    axes: int = AXES
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    time_limit: float = 60.0
    memory: int | None = None
    seed: int = 0

    @property
    def size(self) -> float | None:
        """The fraction that may remain, of the parameters or else of the FLOPs; None where bases are counted alone."""
        return self.keep or self.max_flops

    @property
    def powers(self) -> tuple[float, ...]:
        """The powers of a layer's damage that plans are made under; calibration data chooses among several."""
        several = self.aggregate is None and self.size is not None and self.rounds > 0
        return AGGREGATES if several else (self.aggregate or 1.0,)

    @property
    def weighed_by(self) -> str:
        """The curvature's name: the estimate that is asked for, or else that of the preset."""
        preset = find_preset(self.preset)
        return self.estimate or ("kronecker" if preset is None else preset.estimate)
