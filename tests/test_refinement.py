"""Refinement brings a model nearer the dense one, moves only factors, and goes on bit for bit when killed."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import geocolor
from geocolor.backend import factored_layers
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph
from geocolor.parameters import parameter_count
from geocolor.refinement import RefineSettings, one_cycle, refine, split, trainable
from geocolor.tensor_files import read_tensors, write_tensors

Batches = list[tuple[Tensor, Tensor]]
QUICK = RefineSettings(steps=40, evaluate_every=10, checkpoint_every=10, holdout=0.25)


@pytest.fixture
def smaller(network: nn.Module, graph: CostGraph, curvature: Curvature) -> nn.Module:
    return geocolor.apply(network, geocolor.plan(graph, keep=0.5, solver="greedy"), curvature)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(values(one).values(), values(other).values(), strict=True))


def test_it_comes_nearer_the_dense_model_and_moves_only_factors(
    network: nn.Module, smaller: nn.Module, batches: Batches
) -> None:
    before = values(smaller)
    found = refine(smaller, network, batches, QUICK)
    assert found.after < 0.8 * found.before
    assert found.before == found.trace[0][2]
    assert all(torch.equal(before[name], value) for name, value in values(smaller).items())
    factors = set(trainable(smaller))
    moved = {name for name, value in values(found.model).items() if not torch.equal(value, before[name])}
    assert moved == factors
    assert parameter_count(found.model) == parameter_count(smaller)
    assert [p.requires_grad for p in found.model.parameters()] == [p.requires_grad for p in smaller.parameters()]
    assert all(p.grad is None for p in found.model.parameters())


def test_a_loader_of_torch_gives_batches_too(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    found = refine(smaller, network, DataLoader(batches, batch_size=None), RefineSettings(steps=2, holdout=0))
    assert found.trace == refine(smaller, network, batches, RefineSettings(steps=2, holdout=0)).trace


def test_sharing_stays(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    refined = refine(smaller, network, batches, QUICK).model

    def shared(model: nn.Module) -> list[tuple[str, ...]]:
        readers: dict[int, list[str]] = {}
        for name, layer in factored_layers(model).items():
            for basis in layer.bases().values():
                readers.setdefault(id(basis), []).append(name)
        return sorted(map(tuple, readers.values()))

    assert shared(refined) == shared(smaller)


def test_a_killed_run_goes_on_bit_for_bit(
    network: nn.Module, smaller: nn.Module, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = refine(smaller, network, batches, QUICK)
    checkpoint, steps = tmp_path / "refinement.safetensors", 0
    step = geocolor.refinement._step

    def dies(*arguments: object) -> float:
        nonlocal steps
        steps += 1
        if steps == 28:
            raise KeyboardInterrupt
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("geocolor.refinement._step", dies)
    with pytest.raises(KeyboardInterrupt):
        refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    assert checkpoint.exists()
    resumed = refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    assert steps == 28 + 20
    assert same(resumed.model, whole.model)
    assert resumed.trace[1:] == whole.trace[1:]
    assert not checkpoint.exists()


def test_the_checkpoint_of_another_run_is_refused(
    network: nn.Module, smaller: nn.Module, batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "refinement.safetensors"
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="its steps is 40, not 80"):
        refine(smaller, network, batches, RefineSettings(steps=80, evaluate_every=10), checkpoint=checkpoint)
    with torch.no_grad():
        next(iter(trainable(smaller).values())).mul_(2)
    with pytest.raises(ValueError, match="another run: its start is"):
        refine(smaller, network, batches, QUICK, checkpoint=checkpoint)


def test_a_checkpoint_beyond_the_end_or_without_a_look_is_refused(
    network: nn.Module, smaller: nn.Module, batches: Batches, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "refinement.safetensors"
    refine(smaller, network, batches, QUICK, checkpoint=checkpoint, keep_checkpoint=True)
    tensors, header = read_tensors(checkpoint, "refinement")
    for change, sentence in (({"step": 2**60}, "it is at step 1152921504606846976 of 40"), ({"trace": []}, "trace")):
        write_tensors(checkpoint, "refinement", tensors, header | change)
        with pytest.raises(ValueError, match=sentence):
            refine(smaller, network, batches, QUICK, checkpoint=checkpoint)


def test_low_precision_is_trained_in_float32(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    low = smaller.to(torch.bfloat16)
    inputs = [(x.to(torch.bfloat16), y) for x, y in batches]
    found = refine(low, network.to(torch.bfloat16), inputs, RefineSettings(steps=40, learning_rate=1e-3))
    assert found.after < found.before
    assert {p.dtype for p in found.model.parameters()} == {torch.bfloat16}


def test_it_stops_early_and_keeps_the_best(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    settings = RefineSettings(steps=400, learning_rate=0.3, evaluate_every=5, patience=3, holdout=0.25)
    found = refine(smaller, network, batches, settings)
    assert found.steps < 400
    assert found.steps == found.best_step + 15
    assert found.after == min(judged for _, _, judged in found.trace) <= found.before


def test_norms_and_labels_may_take_part(network: nn.Module, batches: Batches) -> None:
    model = nn.Sequential(network, nn.LayerNorm(5)).eval()
    curvature = geocolor.measure(model, batches)
    smaller = geocolor.apply(model, geocolor.plan(geocolor.price(model, curvature), keep=0.5), curvature)
    assert set(trainable(smaller, norms=True)) - set(trainable(smaller)) == {"1.weight", "1.bias"}
    found = refine(smaller, model, batches, RefineSettings(steps=30, norms=True, labels=0.1, holdout=0.0))
    assert found.best_step == 30
    assert not torch.equal(found.model[1].weight, smaller[1].weight)  # type: ignore[index]


def test_what_is_not_finite_ends_it_with_a_warning(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    torn = [*batches[:-1], (batches[-1][0] * float("nan"), batches[-1][1])]
    with pytest.warns(UserWarning, match="lower learning rate"):
        found = refine(smaller, network, torn, RefineSettings(steps=40, holdout=0.0))
    assert all(bool(torch.isfinite(p).all()) for p in found.model.parameters())


def test_bad_input_gets_a_sentence(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    with pytest.raises(ValueError, match="no factored layers"):
        refine(network, network, batches)
    with pytest.raises(ValueError, match="needs batches"):
        refine(smaller, network, [])
    for wrong in ({"steps": -1}, {"learning_rate": 0.0}, {"labels": 2.0}, {"holdout": 1.0}, {"precision": "int8"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RefineSettings(**wrong)  # type: ignore[arg-type]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert max(rates) == rates[30] == 1.0
    assert rates[0] == pytest.approx(0.04)
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_the_hold_out_is_spread_and_never_all() -> None:
    training, judged = split(list(range(10)), 0.3)
    assert sorted(training + judged) == list(range(10))
    assert len(judged) == 3
    assert min(after - before for before, after in pairwise(judged)) >= 3
    assert split([1], 0.5) == ([1], [])
    assert [len(part) for part in split([1, 2], 0.9)] == [1, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors, metadata: metadata.pop("step"), "step: Field required"),
        (lambda tensors, metadata: metadata.update(trace=[1]), "trace.0: "),
        (lambda tensors, metadata: metadata.update(run=[]), "run: "),
        (lambda tensors, metadata: tensors.pop(next(iter(tensors))), "is missing or of another shape; remove it"),
        (lambda tensors, metadata: tensors.update({n: torch.ones(1) for n in tensors}), "or of another shape"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    network: nn.Module,
    smaller: nn.Module,
    batches: Batches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Tensor], dict[str, Any]], object],
    sentence: str,
) -> None:
    checkpoint = tmp_path / "refinement.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    tensors, metadata = read_tensors(checkpoint, "refinement")
    change(tensors, metadata)
    write_tensors(checkpoint, "refinement", tensors, metadata)
    with pytest.raises(ValueError, match=sentence):
        refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
