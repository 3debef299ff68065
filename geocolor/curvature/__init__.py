"""Curvature: how much the loss rises when a layer's weight changes. One protocol, several estimates, a file each."""

from geocolor.curvature.curvature import Curvature, load_curvature
from geocolor.curvature.exact import ExactCurvature, hessian_block
from geocolor.curvature.lanczos import Axes, LanczosCurvature, load_axes, measure_axes
from geocolor.curvature.measurement import ESTIMATES, accumulate, finish, measure
from geocolor.curvature.sums import Sums, load_sums

__all__ = [
    "ESTIMATES",
    "Axes",
    "Curvature",
    "ExactCurvature",
    "LanczosCurvature",
    "Sums",
    "accumulate",
    "finish",
    "hessian_block",
    "load_axes",
    "load_curvature",
    "load_sums",
    "measure",
    "measure_axes",
]
