"""The benchmark of the price's form: aggregates are what their formulas say, and no form is judged by its own rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.price_forms import (
    BLOCKS,
    FAMILIES,
    Plans,
    aggregates,
    held_out,
    judged,
    markdown,
    rank_correlation,
    read_plans,
)
from benchmarks.subjects import embedded
from geocolor.layers import find_layers

FIDELITY = Path(__file__).parent.parent / "benchmarks" / "results" / "fidelity.json"


def drawn(power: float, seed: int) -> Plans:
    """Plans whose damages add up in this power, of two blocks with two layers and one."""
    damages = np.random.default_rng(seed).lognormal(sigma=1.5, size=(40, 3))
    return Plans(damages, (damages**power).sum(axis=1) ** (1 / power), (2, 1))


def test_every_family_holds_the_plain_sum() -> None:
    plans = drawn(1.0, 0)
    for family in FAMILIES.values():
        assert family.plain in family.constants
        assert family.of(plans, family.plain) == pytest.approx(plans.measured)


def test_aggregates_are_their_formulas() -> None:
    plans = Plans(np.array([[1.0, 4.0, 9.0], [0.0, 4.0, 0.0]]), np.ones(2), (2, 1))
    assert FAMILIES["power"].of(plans, 2.0) == pytest.approx([98**0.5, 4])
    assert FAMILIES["quadratic"].of(plans, 0.5) == pytest.approx([14 + 0.5 * 98 / 3, 4 + 0.5 * 16 / 3])
    assert FAMILIES["saturating"].of(plans, 3.0)[1] == pytest.approx(4 / 5)
    assert FAMILIES["coherent"].of(plans, 0.1) == pytest.approx([14 + 0.1 * (9 + 9), 4 + 0.1 * 4])


def test_rank_correlation_is_spearmans_with_ties_too() -> None:
    rng = np.random.default_rng(0)
    said, seen = rng.integers(6, size=(2, 30)).astype(float)
    assert rank_correlation(said, seen) == pytest.approx(spearmanr(said, seen).statistic)
    assert judged(np.array([2.0, 4, 6]), np.array([1.0, 2, 3])) == pytest.approx((1, np.log(2), 0))


def test_the_constant_of_a_model_is_chosen_on_the_others() -> None:
    cases = {("cubic", 0.8): drawn(3.0, 0), ("plain", 0.8): drawn(1.0, 1), ("plain, too", 0.8): drawn(1.0, 2)}
    rows = list(aggregates(cases))
    found = {row["form"]: row for row in held_out(cases, rows)}
    assert found["power"]["chosen"]["cubic"] == 1
    assert found["power"]["cases"][0]["gain"] == 0
    assert found["power"]["low"] <= found["power"]["gain"] <= found["power"]["high"]
    assert "on the one left out" in markdown([*rows, *found.values()])


def test_blocks_are_those_of_the_models_and_their_rows() -> None:
    subject = embedded()
    names = [layer.name.split(".")[2] for layer in find_layers(subject.model, subject.include)]
    assert [names.count(block) for block in dict.fromkeys(names)] == list(BLOCKS["embedded"])
    for (model, _), plans in read_plans(json.loads(FIDELITY.read_text())).items():
        assert plans.damages.shape == (len(plans.measured), sum(BLOCKS[model]))
