"""geocolor: cross-layer parameter sharing of neural networks, as graph coloring.

    smaller = geocolor.compress(model, batches, keep=0.8)
    geocolor.save(smaller, "smaller")

or step by step:

    curvature = geocolor.measure(model, batches)
    graph = geocolor.price(model, curvature)
    plan = geocolor.plan(graph, keep=0.8)
    smaller = geocolor.apply(model, plan, curvature)

Importing geocolor registers the saved format with transformers, so that its Auto classes load such folders.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(
        "geocolor needs PyTorch and friends: pip install 'geocolor[models]' (the package `solvers` works without)"
    ) from error

from geocolor import transformers_quantizer as _register  # noqa: F401
from geocolor.backend import merge_to_dense, plan_of
from geocolor.calibration import calibrate
from geocolor.carry_out import apply
from geocolor.compression import compress
from geocolor.curvature import Curvature, load_curvature, measure
from geocolor.evaluation import Evaluation, evaluate
from geocolor.flops import merge_slow
from geocolor.fusion import fuse, unfuse
from geocolor.graph import CostGraph, price
from geocolor.layers import Layer, find_layers
from geocolor.planning import plan
from geocolor.plans import Plan, PlannedClass, read_plan, write_plan
from geocolor.refinement import Refinement, RefineSettings, refine
from geocolor.scope import LeftOut, left_out
from geocolor.shared_basis import each_linear_once
from geocolor.storage import export_dense, load, save
from geocolor.unpacking import pack, unpack

__version__ = "0.1.0"

__all__ = [
    "CostGraph",
    "Curvature",
    "Evaluation",
    "Layer",
    "LeftOut",
    "Plan",
    "PlannedClass",
    "RefineSettings",
    "Refinement",
    "apply",
    "calibrate",
    "compress",
    "each_linear_once",
    "evaluate",
    "export_dense",
    "find_layers",
    "fuse",
    "left_out",
    "load",
    "load_curvature",
    "measure",
    "merge_slow",
    "merge_to_dense",
    "pack",
    "plan",
    "plan_of",
    "price",
    "read_plan",
    "refine",
    "save",
    "unfuse",
    "unpack",
    "write_plan",
]
