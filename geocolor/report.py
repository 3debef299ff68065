"""What a run says of itself: figures of a plan and of dense against compressed, as plain data for `--json`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from geocolor.atomic import write_atomically
from geocolor.evaluation import Comparison
from geocolor.flops import plan_flops, plan_flops_dense, slow_layers
from geocolor.plans import Plan
from geocolor.refinement import Refinement

Report = dict[str, Any]


def plan_report(plan: Plan) -> Report:
    """What a plan says of itself."""
    return {
        "kept": plan.kept,
        "keep": plan.keep,
        "max_flops": plan.max_flops,
        "parameters_dense": plan.parameters_dense,
        "parameters": plan.parameters,
        "bytes_dense": plan.parameters_dense * _value_bytes(plan),
        "bytes": plan.parameters * _value_bytes(plan),
        "flops_per_position_dense": plan_flops_dense(plan),
        "flops_per_position": sum(plan_flops(plan).values()),
        "layers_slower_than_dense": len(slow_layers(plan)),
        "damage_predicted": plan.predicted_damage,
        "bases": plan.basis_count,
        "classes_shared": sum(len(cls.layers) > 1 for cls in plan.classes),
        "solver": plan.solver,
        "lower_bound": plan.lower_bound,
        "gap": plan.gap,
    }


def _value_bytes(plan: Plan) -> int:
    """Bytes of a parameter in the dtype that the plan's model was held in; of several the widest."""
    dtypes = [getattr(torch, name, None) for name in plan.fingerprint.dtype.split(",")]
    return max((dtype.itemsize for dtype in dtypes if isinstance(dtype, torch.dtype)), default=4)


def comparison_report(compared: Comparison) -> Report:
    """Dense against compressed. Parameters are those of the whole live models, shared storage counted once."""
    dense, smaller = compared.dense, compared.compressed
    report: Report = {
        "model_parameters_dense": dense.parameters,
        "model_parameters": smaller.parameters,
        "loss_unit": dense.unit,
        "loss_dense": dense.loss,
        "loss": smaller.loss,
        "damage_measured": smaller.loss - dense.loss,
        "divergence": compared.divergence,
        "latency_seconds_dense": dense.latency_seconds,
        "latency_seconds": smaller.latency_seconds,
    }
    for name in ("perplexity", "bits_per_byte", "accuracy", "similarity"):
        if getattr(dense, name) is not None:
            report[f"{name}_dense"] = getattr(dense, name)
            report[name] = getattr(smaller, name)
    return report


def run_report(plan: Plan, compared: Comparison) -> Report:
    """The figures of a whole run; `kept` and `parameters` are counted on the live model, not taken from the plan."""
    report = plan_report(plan) | comparison_report(compared)
    elsewhere = plan.curvature.get("unit", compared.dense.unit) != compared.dense.unit
    if elsewhere or plan.curvature.get("estimate") == "lanczos":
        report["damage_predicted"] = None  # of errors weighed by something else than the loss, or along some axes alone
    in_scope = compared.compressed.parameters - (compared.dense.parameters - plan.parameters_dense)
    return report | {"kept": in_scope / plan.parameters_dense, "parameters": in_scope}


def refinement_report(found: Refinement) -> Report:
    """How far refinement came."""
    return {
        "steps": found.steps,
        "best_step": found.best_step,
        "divergence_before": found.before,
        "divergence_after": found.after,
        "batches_held_out": found.held_out,
    }


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files in a saved model."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """JSON, whole or not at all; it has no infinity and no NaN, so what is not finite is null."""
    text = json.dumps(finite(report), indent=1, default=str, allow_nan=False) + "\n"
    write_atomically(Path(path), lambda temporary: temporary.write_text(text))


def finite(value: Any) -> Any:
    """The value with null for every float in it that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
