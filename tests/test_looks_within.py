"""Looks and verdicts where memory is bounded: what stands for weights lies in a file, gradients come one by one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor import calibration
from geocolor.curvature import load_curvature
from geocolor.graph import CostGraph
from geocolor.mapped import Spool, Spooled
from geocolor.stand_ins import planned, without_sharing

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def bounded(network: nn.Module, batches: Batches, tmp_path: Path) -> CostGraph:
    geocolor.measure(network, batches).save(tmp_path / "c.safetensors")
    return geocolor.price(network, load_curvature(tmp_path / "c.safetensors", 40_000))


@pytest.fixture
def plan(bounded: CostGraph) -> geocolor.Plan:
    return geocolor.plan(bounded, 0.6, solver="greedy", time_limit=2)


def test_tensors_of_a_spool_are_read_as_they_were_put() -> None:
    spool = Spool()
    tensors = [torch.randn(3, 5, dtype=torch.float64), torch.randn(7).bfloat16(), torch.zeros(0, 2), torch.tensor(3)]
    put = [spool.put(tensor.T if tensor.ndim == 2 else tensor) for tensor in tensors]
    for held, tensor in zip(reversed(put), reversed(tensors), strict=True):
        found = held.read()
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor.T if tensor.ndim == 2 else tensor)
        assert found.data_ptr() % 64 == 0


def test_stand_ins_lie_in_a_file_and_looks_from_them_see_the_same(
    network: nn.Module, batches: Batches, bounded: CostGraph, plan: geocolor.Plan
) -> None:
    free = geocolor.price(network, geocolor.measure(network, batches))
    assert bounded.bounded
    assert not free.bounded
    loss = geocolor.losses.default_loss(network, batches[0])
    for make in (lambda graph: planned(graph, plan), lambda graph: without_sharing(graph, 0.6)):
        held, loose = make(bounded), make(free)
        assert all(isinstance(each.held, Spooled) for each in held)
        assert all(each.weight is each.held for each in loose)
        assert held
        for one, other in zip(held, loose, strict=True):
            assert one.layer == other.layer
            assert torch.equal(one.weight, other.weight)
        seen = [calibration._slopes(network, each, batches, loss) for each in (held, loose)]
        assert seen[0] == seen[1]


def test_gradients_are_let_go_of_one_by_one_and_those_of_the_user_stay(
    network: nn.Module, batches: Batches, bounded: CostGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins = without_sharing(bounded, 0.6)
    weights = {each.layer.name: calibration.parameter(network, each.layer) for each in stand_ins}
    own = {name: torch.full_like(weight, 3.0) for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.grad = own[name].clone()
        weight.requires_grad_(False)
    held, inner = [], calibration._gradients_of

    def counted(asked, seen):  # type: ignore[no-untyped-def]
        def told(name: str, gradient: Tensor) -> None:
            held.append(sum(weight.grad is not None for weight in asked.values()))
            seen(name, gradient)

        return inner(asked, told)

    monkeypatch.setattr(calibration, "_gradients_of", counted)
    loss = geocolor.losses.default_loss(network, batches[0])
    slopes, damage = calibration._slopes(network, stand_ins, batches, loss)
    assert held == [1] * (len(stand_ins) * len(batches))
    assert damage > 0
    assert any(slope != 0 for slope in slopes.values())
    for name, weight in weights.items():
        assert weight.grad is not None
        assert torch.equal(weight.grad, own[name])
        assert not weight.requires_grad


def test_a_borrowing_copy_has_what_is_not_planned_in_common(
    network: nn.Module, batches: Batches, bounded: CostGraph, plan: geocolor.Plan
) -> None:
    own = geocolor.apply(network, plan, bounded.curvature)
    borrowing = geocolor.apply(network, plan, bounded.curvature, borrowing=True)
    x = batches[0][0]
    assert torch.equal(own(x), borrowing(x))
    dense = {id(parameter) for parameter in network.parameters()}
    assert not dense & {id(parameter) for parameter in own.parameters()}
    assert dense & {id(parameter) for parameter in borrowing.parameters()}


def test_factors_in_files_are_the_same(
    network: nn.Module, batches: Batches, bounded: CostGraph, plan: geocolor.Plan, tmp_path: Path
) -> None:
    expected = geocolor.apply(network, plan, bounded.curvature)
    (tmp_path / "files").mkdir()
    for inplace in (False, True):
        found = geocolor.apply(network, plan, bounded.curvature, inplace=inplace, files=tmp_path / "files")
        assert found.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())
    assert list((tmp_path / "files").iterdir()) == []
