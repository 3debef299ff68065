"""A plan in a few phrases."""

from geocolor.flops import plan_flops, plan_flops_dense, slow_layers
from geocolor.plans import Plan
from geocolor.quantities import count, number, percent

#: Relative gap up to which a plan counts as optimal: float sums allow no less.
CLOSED_GAP = 1e-6


def summary(plan: Plan) -> list[str]:
    """Size, bases, FLOPs, predicted damage, solver and gap, each a phrase."""
    return [
        f"kept {percent(plan.kept)} of {count(plan.parameters_dense)} parameters in scope",
        f"{plural(plan.basis_count, 'basis', 'bases')} for {plural(len(plan.layers), 'layer')}",
        f"{percent(sum(plan_flops(plan).values()) / plan_flops_dense(plan))} of the FLOPs{_slow(plan)}",
        f"predicted damage {number(plan.predicted_damage)} {damage_unit(plan)}",
        f"solver {plan.solver}, {_proof(plan.gap)}",
    ]


def _slow(plan: Plan) -> str:
    slow = len(slow_layers(plan))
    return f" ({plural(slow, 'layer')} slower than dense until merged)" if slow else ""


def damage_unit(plan: Plan) -> str:
    """The unit of the loss that the curvature was measured for."""
    return str(plan.curvature.get("unit") or "units of the loss")


def plural(number_of: int, one: str, many: str | None = None) -> str:
    """
    >>> plural(1, "layer"), plural(0, "layer"), plural(2, "basis", "bases")
    ('1 layer', '0 layers', '2 bases')
    """
    return f"{number_of} {one if number_of == 1 else many or one + 's'}"


def _proof(gap: float) -> str:
    if not gap < 1:  # no bound, or only that damage is not negative
        return "no bound proven"
    return "proven optimal" if gap <= CLOSED_GAP else f"gap ≤ {percent(gap)}"
