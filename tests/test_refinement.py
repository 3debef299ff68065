"""Refinement brings a model nearer the dense one, moves only factors, and goes on bit for bit when killed."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
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
from geocolor.forecast import forecast_refinement
from geocolor.graph import CostGraph
from geocolor.losses import Classification, Custom, Embedding
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


@pytest.fixture
def dies_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """The step of that number is interrupted, counted from 1; gives the list of all that are begun."""

    def dies_at(number: int) -> list[int]:
        begun: list[int] = []
        step = geocolor.refinement._step

        def dies(*arguments: object) -> float:
            begun.append(len(begun))
            if len(begun) == number:
                raise KeyboardInterrupt
            return step(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("geocolor.refinement._step", dies)
        return begun

    return dies_at


def test_a_killed_run_goes_on_bit_for_bit(
    network: nn.Module, smaller: nn.Module, batches: Batches, tmp_path: Path, dies_at: Callable[[int], list[int]]
) -> None:
    whole = refine(smaller, network, batches, QUICK)
    checkpoint, begun = tmp_path / "refinement.safetensors", dies_at(28)
    with pytest.raises(KeyboardInterrupt):
        refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    assert checkpoint.exists()
    resumed = refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    assert len(begun) == 28 + 20
    assert same(resumed.model, whole.model)
    assert resumed.trace[1:] == whole.trace[1:]
    assert not checkpoint.exists()


class Experts(nn.Module):
    """Every sample is for the expert that its first input names."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if bool((chosen := x[:, 0] == number).any()):
                y[chosen] = expert(x[chosen])
        z: Tensor = self.head(torch.tanh(y))
        return z


def test_experts_that_no_batch_has_met_yet_go_on_bit_for_bit_too(
    tmp_path: Path, dies_at: Callable[[int], list[int]]
) -> None:
    model, x, y = Experts().eval(), torch.randn(240, 8), torch.randint(3, (240,))
    x[:, 0] = torch.arange(240) % 4
    curvature = geocolor.measure(model, [(x, y)], include=("experts.[012]",))
    plan = geocolor.plan(geocolor.price(model, curvature, kinds=("in",)), keep=0.5, solver="private")
    smaller = geocolor.apply(model, plan, curvature)
    assert set(factored_layers(smaller)) == {"experts.0", "experts.1", "experts.2"}
    few = [(x[number::4], y[number::4]) for number in (0, 1, 3, 3)]  # none for 2, and 3 is dense
    settings = RefineSettings(steps=12, checkpoint_every=1, evaluate_every=4, holdout=0.0)
    assert forecast_refinement(smaller, model, few[2:], settings, few).seconds["refine"] > 0
    whole = refine(smaller, model, few, settings)
    assert whole.after < whole.before
    moved = {name[:9] for name, value in values(smaller).items() if not torch.equal(value, values(whole.model)[name])}
    assert moved == {"experts.0", "experts.1"}
    for number in (2, 3, 7):
        dies_at(number)
        with pytest.raises(KeyboardInterrupt):
            refine(smaller, model, few, settings, checkpoint=tmp_path / "checkpoint")
        resumed = refine(smaller, model, few, settings, checkpoint=tmp_path / "checkpoint")
        assert same(resumed.model, whole.model)
        assert resumed.trace[1:] == whole.trace[1:]


def test_the_checkpoint_of_another_run_is_refused(
    network: nn.Module, smaller: nn.Module, batches: Batches, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "refinement.safetensors"
    refine(smaller, network, batches, QUICK, checkpoint=checkpoint, keep_checkpoint=True)
    changed = copy.deepcopy(network), copy.deepcopy(smaller)
    for model in changed:
        with torch.no_grad():
            next(model.parameters()).mul_(2)
    other: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("with steps 40, not 80", (smaller, network, batches, replace(QUICK, steps=80)), {}),
        ("with batches 4, not 3", (smaller, network, batches[:3], QUICK), {}),
        ("with another data", (smaller, network, [*batches[:3], (-batches[3][0], batches[3][1])], QUICK), {}),
        ("with another dense model", (smaller, changed[0], batches, QUICK), {}),
        ("with another compressed model", (changed[1], network, batches, QUICK), {}),
        ("with another loss", (smaller, network, batches, QUICK), {"loss": Custom(lambda m, b: m(b[0]).mean())}),
    ]
    for sentence, arguments, named in other:
        with pytest.raises(ValueError, match=f"{checkpoint} is the checkpoint of another run, {sentence}: remove it"):
            refine(*arguments, checkpoint=checkpoint, **named)
    again = refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    assert again.steps == 40


def test_what_is_no_checkpoint_is_named(
    network: nn.Module, smaller: nn.Module, batches: Batches, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "refinement.safetensors"
    refine(smaller, network, batches, QUICK, checkpoint=checkpoint, keep_checkpoint=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-40] + bytes(40))
    with pytest.raises(ValueError, match=rf"{checkpoint} is damaged: .*\. Remove it to begin anew"):
        refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    checkpoint.write_bytes(b"torn")
    with pytest.raises(ValueError, match=rf"{checkpoint} is damaged .*\. Remove it to begin anew"):
        refine(smaller, network, batches, QUICK, checkpoint=checkpoint)
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        refine(smaller, network, batches, QUICK, checkpoint=tmp_path)


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


@pytest.mark.parametrize(("holdout", "on"), [(0.25, "held out"), (0.0, "on all batches")])
def test_the_bar_shows_losses(
    network: nn.Module, smaller: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch, holdout: float, on: str
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("geocolor.refinement.bar", lambda *_, **__: nullcontext(shown.append))
    settings = RefineSettings(steps=3, evaluate_every=2, holdout=holdout)
    (_, _, before), (_, second, after), (_, third, end) = refine(smaller, network, batches, settings).trace
    assert shown[0].endswith(f", {before:.4g} {on}")
    assert shown[1:] == [f"loss {second:.4g}, {after:.4g} {on}", f"loss {third:.4g}, {end:.4g} {on}"]


def test_autocast_trains_what_stays_float32(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    seen: set[torch.dtype] = set()
    hooks = [m.register_forward_hook(lambda _, __, y: seen.add(y.dtype)) for m in factored_layers(smaller).values()]
    found = refine(smaller, network, batches, replace(QUICK, precision="bfloat16"))
    for hook in hooks:
        hook.remove()
    assert seen == {torch.bfloat16, torch.float32}  # steps and looks
    assert found.after < 0.9 * found.before
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    assert found.trace[1:] != refine(smaller, network, batches, QUICK).trace[1:]


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


def torn(batches: Batches, number: int) -> Batches:
    return [(x * math.nan if index == number else x, y) for index, (x, y) in enumerate(batches)]


@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_a_loss_that_is_not_finite_ends_it_and_keeps_what_was_nearest(
    network: nn.Module, smaller: nn.Module, batches: Batches, holdout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = geocolor.refinement._step, 0

    def fails(*arguments: object) -> float:
        nonlocal taken
        taken += 1
        return math.nan if taken == 36 else step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("geocolor.refinement._step", fails)
    with pytest.warns(UserWarning, match=r"nan at step 35, on batch \d of 4: .* lower learning rate"):
        found = refine(smaller, network, batches, replace(QUICK, evaluate_every=50, holdout=holdout))
    assert (found.steps, found.best_step) == (35, 35)
    assert found.after < found.before
    assert not same(found.model, smaller)


def test_without_a_hold_out_weights_that_went_astray_are_not_kept(
    network: nn.Module, smaller: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geocolor.refinement.one_cycle", lambda step, *_: 3e-3 if step < 25 else 1e30)
    with pytest.warns(UserWarning, match="at step 26"):
        found = refine(smaller, network, batches, replace(QUICK, holdout=0.0))
    assert (found.best_step, found.held_out) == (20, 0)
    assert found.after == found.trace[2][2] < found.before
    assert all(bool(torch.isfinite(p).all()) for p in found.model.parameters())


def test_data_and_weights_that_are_not_finite_are_refused(
    network: nn.Module, smaller: nn.Module, batches: Batches
) -> None:
    [judged] = split(range(4), 0.25)[1]
    with pytest.raises(ValueError, match=f"the divergence from the dense model is nan on batch {judged + 1} of 4 bef"):
        refine(smaller, network, torn(batches, judged), QUICK)
    with pytest.raises(ValueError, match="is nan on batch 4 of 4 before any step"):
        refine(smaller, network, torn(batches, 3), replace(QUICK, holdout=0.0))
    everywhere = [torn(batches, number)[number] for number in range(4)]
    everywhere[judged] = batches[judged]
    with pytest.raises(ValueError, match=r"the loss or its gradient is nan on batch \d of 4 before any step"):
        refine(smaller, network, everywhere, QUICK)
    for called, models in (("compressed", (smaller, network)), ("dense", (smaller, network))):
        one, other = copy.deepcopy(models)
        with torch.no_grad():
            next((one if called == "compressed" else other).parameters()).view(-1)[0] = math.nan
        with pytest.raises(ValueError, match=rf"the {called} model's blocks.*\[0, 0\] is nan"):
            refine(one, other, batches, QUICK)


def test_a_number_is_the_number_of_steps(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    found = refine(smaller, network, batches, 3)
    assert found.steps == 3
    assert found.held_out == 1
    assert same(found.model, refine(smaller, network, batches, RefineSettings(steps=3)).model)


def test_bad_input_gets_a_sentence(network: nn.Module, smaller: nn.Module, batches: Batches) -> None:
    with pytest.raises(ValueError, match="no factored layers"):
        refine(network, network, batches)
    with pytest.raises(ValueError, match="needs batches"):
        refine(smaller, network, [])
    for steps in (1.5, "many", True):
        with pytest.raises(ValueError, match="steps must be 0 or more and whole"):
            refine(smaller, network, batches, steps)  # type: ignore[arg-type]
    wider = nn.Sequential(network, nn.Linear(5, 7)).eval()
    with pytest.raises(ValueError, match=r"the dense model gives outputs of shape \(16, 7\), the other of \(16, 5\)"):
        refine(smaller, wider, batches, QUICK, loss=Classification())
    with pytest.raises(ValueError, match="the embedding loss compares with the dense model, not with labels"):
        refine(smaller, network, batches, replace(QUICK, labels=0.5), loss=Embedding())
    with pytest.raises(ValueError, match="one batch leaves none"):
        refine(smaller, network, batches[:1], replace(QUICK, patience=2))
    for wrong in (
        {"steps": -1},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"clip": "a"},
        {"labels": 2.0},
        {"holdout": 1.0},
        {"patience": 2, "holdout": 0.0},
        {"precision": "int8"},
    ):
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
        (lambda tensors, metadata: metadata.update(taken={}), "does not say how many steps"),
        (lambda tensors, metadata: tensors.pop(next(iter(tensors))), r"is missing or of another shape\. Remove it"),
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
