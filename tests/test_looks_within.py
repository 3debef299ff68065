"""Looks and verdicts where memory is bounded: what stands for weights lies in a file, gradients come one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor import calibration, verification
from geocolor.curvature import load_curvature
from geocolor.graph import CostGraph
from geocolor.hulls_within import HullsWithin
from geocolor.journal import Journal
from geocolor.mapped import Spool, Spooled, put_in_files
from geocolor.stand_ins import planned, replaced, without_sharing
from tests.test_mapped import in_files, linux

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


@linux
def test_candidates_lie_in_files_and_verdicts_are_the_same(
    network: nn.Module,
    batches: Batches,
    bounded: CostGraph,
    plan: geocolor.Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried, inner = [], verification.divergence_of

    def told(model: nn.Module, candidate: nn.Module, *others: Any, **options: Any) -> float:
        own = {name for name, _ in candidate.named_parameters()} - {name for name, _ in model.named_parameters()}
        tried.append((own, own & in_files(candidate)))
        return inner(model, candidate, *others, **options)

    monkeypatch.setattr(verification, "divergence_of", told)
    free = geocolor.price(network, geocolor.measure(network, batches))
    verdicts = []
    for graph, journal in ((free, Journal()), (bounded, Journal(tmp_path))):
        tried.clear()
        verdicts.append(verification.verified(network, graph, [plan], batches, journal=journal))
        assert tried
        assert all(own and found == (own if graph.bounded else set()) for own, found in tried)
    assert verdicts[0].damage == verdicts[1].damage


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
    slopes, _, damage = calibration._slopes(network, stand_ins, batches, loss)
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


@linux
def test_the_smaller_model_that_is_looked_from_lies_in_files(
    network: nn.Module, batches: Batches, bounded: CostGraph
) -> None:
    free = geocolor.price(network, geocolor.measure(network, batches))
    dense = {name: weight.clone() for name, weight in network.named_parameters()}
    for graph in (bounded, free):
        stand_ins = without_sharing(graph, 0.6)
        places, values = set(), list[Tensor]()
        for _ in range(2):  # a look may have a pass over the data for every window of layers
            with replaced(network, stand_ins):
                own = {f"{each.layer.name}.weight" for each in stand_ins}
                assert own & in_files(network) == (own if graph.bounded else set())
                weights = [network.get_submodule(each.layer.name).weight for each in stand_ins]
                places.add(tuple(weight.data_ptr() for weight in weights))
                values = [weight.detach().clone() for weight in weights]
        assert len(places) == 1 or not graph.bounded
        assert all(torch.equal(v, e.weight.to(v)) for v, e in zip(values, stand_ins, strict=True))
        assert all(torch.equal(weight, dense[name]) for name, weight in network.named_parameters())


def test_a_full_disk_is_said_with_the_place(
    bounded: CostGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def write(self, _: object) -> None:
            raise OSError(28, "No space left on device")

        name, __enter__, __exit__ = "full", lambda self: self, lambda *_: None

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda **_: Full())
    known = HullsWithin(0)
    known[0,] = dict(bounded.hull((0,)) and bounded.known[0,])
    for write in (lambda: Spool().put(torch.ones(3)), known.set_aside):
        with pytest.raises(OSError, match=r"No space left on device\. Free some space in .*TMPDIR"):
            write()
    with pytest.raises(OSError, match=f"Free some space in {tmp_path} and type the same command again$"):
        put_in_files([nn.Parameter(torch.ones(3))], tmp_path)
