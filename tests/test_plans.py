"""plan.json: what is written is read, and what is damaged is refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import geocolor
from geocolor.graph import CostGraph
from geocolor.plans import Plan
from geocolor.schema import LayerShape
from tests.conftest import Network


@pytest.fixture
def plan(graph: CostGraph) -> Plan:
    return geocolor.plan(graph, 0.5)


def test_a_plan_survives_its_file(plan: Plan, tmp_path: Path) -> None:
    geocolor.write_plan(plan, tmp_path / "plan.json")
    assert geocolor.read_plan(tmp_path / "plan.json") == plan


def test_an_unknown_bound_survives_as_infinity(plan: Plan, tmp_path: Path) -> None:
    unbounded = plan.model_copy(update={"lower_bound": float("-inf"), "gap": float("inf")})
    geocolor.write_plan(unbounded, tmp_path / "plan.json")
    assert geocolor.read_plan(tmp_path / "plan.json") == unbounded


def test_the_coloring_follows_the_order_of_the_layers(plan: Plan) -> None:
    coloring = plan.coloring()
    names = list(plan.layers)
    for cls in plan.classes:
        assert len({coloring[names.index(name)] for name in cls.layers}) == 1
    assert coloring.number_of_colors == len(plan.classes)


def test_it_knows_its_model_also_where_layers_are_sorted_by_name(plan: Plan, network: nn.Module) -> None:
    names = sorted(plan.layers)
    assert names != list(plan.layers)
    by_name = plan.model_copy(update={"layers": {name: plan.layers[name] for name in names}})
    by_name.check(network)
    with torch.no_grad():
        network.get_submodule(names[0]).weight.mul_(1.1)  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="made for other weights"):
        by_name.check(network)


def test_parameters_are_those_of_the_live_modules(plan: Plan, network: nn.Module, graph: CostGraph) -> None:
    smaller = geocolor.apply(network, plan, graph.curvature)
    unique = {id(p): p.numel() for p in smaller.parameters()}
    outside = sum(p.numel() for p in network.parameters()) - plan.parameters_dense
    assert sum(unique.values()) - outside == plan.parameters


def test_a_truncated_file_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    geocolor.write_plan(plan, path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(ValueError, match=r"not whole JSON.*truncated"):
        geocolor.read_plan(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no plan at .*nowhere\.json"):
        geocolor.read_plan(tmp_path / "nowhere.json")


def test_an_entry_that_is_there_twice_is_refused(plan: Plan, tmp_path: Path) -> None:
    geocolor.write_plan(plan, tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"keep":', '"keep": 1.0,\n "keep":', 1))
    with pytest.raises(ValueError, match=r"plan.json is not whole JSON \(the key 'keep' is there twice\)"):
        geocolor.read_plan(tmp_path / "plan.json")


def twice(document: Any) -> None:
    document["classes"].append(document["classes"][0])


def lost(document: Any) -> None:
    document["classes"].pop()


def other_rank(document: Any) -> None:
    factored = next(cls for cls in document["classes"] if cls["kind"] != "dense")
    factored["rank"] += 1


def full_rank(document: Any) -> None:
    factored = next(cls for cls in document["classes"] if cls["kind"] in ("in", "out"))
    factored["parameters"] = factored["parameters"] // factored["rank"] * 8
    factored["rank"] = 8


def version(document: Any) -> None:
    document["format_version"] = 99


def no_rank(document: Any) -> None:
    next(cls for cls in document["classes"] if cls["kind"] != "dense")["rank"] = None


def word(document: Any) -> None:
    document["classes"][0]["kind"] = "sideways"


def extra(document: Any) -> None:
    document["colour"] = "red"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (twice, "is in two classes"),
        (lost, "is in no class"),
        (other_rank, "its ranks make"),
        (full_rank, "must be below the width"),
        (version, "format 99 is not one this geocolor reads"),
        (no_rank, "needs a rank"),
        (word, "edited by hand"),
        (extra, "colour"),
    ],
)
def test_a_plan_edited_by_hand_is_refused(plan: Plan, tmp_path: Path, edit: Any, sentence: str) -> None:
    document = json.loads(plan.model_dump_json())
    edit(document)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=sentence) as caught:
        geocolor.read_plan(path)
    assert str(path) in str(caught.value)


def test_a_plan_for_another_model_is_refused(plan: Plan, graph: CostGraph) -> None:
    with pytest.raises(ValueError, match="made for another model: this one has no layer"):
        geocolor.apply(Network(blocks=1), plan, graph.curvature)
    with pytest.raises(ValueError, match="is 9 × 9 in this model, not 8 × 8"):
        geocolor.apply(Network(width=9), plan, graph.curvature)


def test_a_plan_for_other_weights_is_refused(plan: Plan, network: nn.Module, graph: CostGraph) -> None:
    with torch.no_grad():
        network.get_submodule("blocks.0.q").weight.mul_(1.001)  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match="other weights: names and shapes agree"):
        geocolor.apply(network, plan, graph.curvature)


def test_a_plan_for_a_smaller_model_says_what_it_does_not_know(plan: Plan) -> None:
    with pytest.raises(ValueError, match=r"other weights: it does not know layer 'blocks.2.q', and the hash"):
        plan.check(Network(blocks=3))


def test_a_plan_changed_on_purpose_is_told_how_to_go_on(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    geocolor.write_plan(plan, path)
    document = json.loads(path.read_text())
    document["seconds"] = 5.0
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"plan.json: its checksum does not agree.*delete the entry 'checksum'"):
        geocolor.read_plan(path)
    del document["checksum"]
    path.write_text(json.dumps(document))
    assert geocolor.read_plan(path) == plan.model_copy(update={"seconds": 5.0})


def test_a_geometry_that_is_none_is_refused() -> None:
    good = {"m": 4, "n": 18, "form": "conv2d", "geometry": [3, 3, 1, 1, 0, 0, 1, 1]}
    LayerShape.model_validate(good)
    for change, sentence in (
        ({"geometry": [3, 3]}, "geometry is kernel, stride"),
        ({"geometry": [3, 3, 0, 1, 0, 0, 1, 1]}, "geometry is kernel, stride"),
        ({"n": 20}, "no multiple of the kernel's 3 × 3"),
        ({"form": "linear"}, "'linear' has no geometry"),
    ):
        with pytest.raises(ValueError, match=sentence):
            LayerShape.model_validate({**good, **change})
