"""What geocolor does with each architecture, found by doing it. `python -m tests.support` writes README's table."""

import copy
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import geocolor
from geocolor.backend import factored_layers
from geocolor.losses import default_loss
from geocolor.parameters import parameter_count
from geocolor.plans import Plan
from geocolor.scope import HEAD, TABLE, TIED, LeftOut, left_out
from tests.architectures import CASES, Batch, Case

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- support: made by python -m tests.support -->\n", "<!-- /support -->\n"
KEEP = 0.7


@dataclass(frozen=True)
class Examined:
    """One architecture that passed everything `examine` asks, and what was in scope of it."""

    name: str
    layers: Counter[str]
    left_out: tuple[LeftOut, ...]

    def row(self) -> str:
        """Tables, tied weights and heads stay as they are everywhere, and are not repeated."""
        reasons: dict[str, Counter[str]] = {}
        for entry in self.left_out:
            if entry.reason not in (TABLE, TIED, HEAD):
                reasons.setdefault(entry.reason, Counter())[entry.type] += 1
        left = "; ".join(f"{_counts(types)}: {reason}" for reason, types in reasons.items())
        return f"| {self.name} | {_counts(self.layers)} | {left} |\n"


def _counts(types: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in types.items())


def examine(case: Case) -> Examined:
    """Take a model through plan, apply, save, load, forward and backward. Raises AssertionError where one is wrong."""
    torch.manual_seed(0)
    made = case.make().eval()
    generator = torch.Generator().manual_seed(1)
    batches = [case.batch(generator) for _ in range(2)]
    model = geocolor.unpack(made)
    torch.testing.assert_close(output(model, batches[0]), output(made, batches[0]))
    calls: list[str] = []
    hooked = geocolor.find_layers(model)[0].name
    model.get_submodule(hooked).register_forward_hook(lambda *_: calls.append("hook"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="calibrated on|layer .*covariance|.*left out of the curvature")
        with torch.no_grad():
            curvature = geocolor.measure(model, batches, case.loss)
            graph = geocolor.price(model, curvature)
            plan = geocolor.plan(graph, keep=KEEP, solver="greedy")
            smaller = geocolor.apply(model, plan, curvature)
    assert 0 < plan.kept <= KEEP
    assert parameter_count(smaller) == parameter_count(model) - plan.parameters_dense + plan.parameters
    _check_hook(model, smaller, hooked, batches[0], calls)
    _check_ties(model, smaller)
    _check_padding(smaller, batches[0])
    _check_training(case, smaller, batches[0])
    for dtype in (torch.float32, torch.bfloat16):
        _check_file(case, copy.deepcopy(smaller).to(dtype), plan, batches[0])
    dense = geocolor.merge_to_dense(smaller)
    assert {k: v.shape for k, v in dense.state_dict().items()} == {k: v.shape for k, v in made.state_dict().items()}
    torch.testing.assert_close(output(dense, batches[0]), output(smaller, batches[0]), rtol=1e-4, atol=1e-5)
    half = model.to(torch.bfloat16)
    plan16 = plan.model_copy(update={"fingerprint": geocolor.price(half, curvature).fingerprint})
    assert output(geocolor.apply(half, plan16, curvature), batches[0]).isfinite().all()
    return Examined(
        case.name,
        Counter(_kind(made, model, name) for name in plan.layers),
        left_out(model, layers=plan.shareable_layers()),
    )


def _kind(made: nn.Module, model: nn.Module, name: str) -> str:
    kind = type(model.get_submodule(name)).__name__
    return kind if name in dict(made.named_modules()) else f"{kind} unpacked"


def output(model: nn.Module, batch: Batch) -> Tensor:
    """The first tensor that the model returns and that is not its loss; floating inputs take the model's dtype."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        if isinstance(batch, dict):
            result = model(**{key: _cast(value, dtype) for key, value in batch.items()})
        else:
            result = model(_cast(batch[0], dtype))
    for name in ("logits", "last_hidden_state", "logits_per_image"):
        if getattr(result, name, None) is not None:
            result = getattr(result, name)
    assert isinstance(result, Tensor)
    return result


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_hook(model: nn.Module, smaller: nn.Module, hooked: str, batch: Batch, calls: list[str]) -> None:
    counts = []
    for each in (model, smaller):
        calls.clear()
        output(each, batch)
        counts.append(len(calls))
        each.get_submodule(hooked)._forward_hooks.clear()  # torch's attention computes otherwise where there are hooks
    assert counts[0] == counts[1], f"the user's hook on {hooked} is called {counts[1]} times, was {counts[0]}"


def _check_ties(model: nn.Module, smaller: nn.Module) -> None:
    if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
        tied = [m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (model, smaller)]
        assert tied[0] == tied[1]


def _check_padding(smaller: nn.Module, batch: Batch) -> None:
    """What stands where there is padding changes nothing elsewhere."""
    if not isinstance(batch, dict) or "attention_mask" not in batch or "pixel_values" in batch:
        return
    mask = batch["attention_mask"].bool()
    other = {**batch, "input_ids": torch.where(mask, batch["input_ids"], 5)}
    found, expected = output(smaller, other), output(smaller, batch)
    if found.shape[:2] == mask.shape:
        found, expected = found[mask], expected[mask]
    torch.testing.assert_close(found, expected)


def _check_training(case: Case, smaller: nn.Module, batch: Batch) -> None:
    model = copy.deepcopy(smaller)
    loss = case.loss or default_loss(model, batch)
    reference = loss.forward(model, batch).detach() if loss.compares else None
    total, _ = loss.total(loss.forward(model, batch), batch, None if reference is None else reference + 0.1)
    total.backward()
    for name, layer in factored_layers(model).items():
        for parameter in layer.parameters():
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert parameter.grad.isfinite().all()


def _check_file(case: Case, smaller: nn.Module, plan: Plan, batch: Batch) -> None:
    """Saved and loaded, the model is bit-equal, and its layers share what they shared."""
    with tempfile.TemporaryDirectory() as folder:
        geocolor.save(smaller, Path(folder) / "model")
        source = None if isinstance(smaller, PreTrainedModel) else case.make
        loaded = geocolor.load(source, Path(folder) / "model").eval()
    loaded.to(next(smaller.parameters()).dtype)  # also buffers that are not saved, as the cast before saving did
    assert torch.equal(output(loaded, batch), output(smaller, batch))
    assert parameter_count(loaded) == parameter_count(smaller)
    for cls in plan.classes:
        if cls.kind != "dense":
            members = [factored_layers(loaded)[name].bases() for name in cls.layers]
            assert all(member[side] is members[0][side] for member in members for side in member)


def table(examined: list[Examined]) -> str:
    head = "| model | layers in scope | left as they are |\n| --- | --- | --- |\n"
    return BEGIN + head + "".join(each.row() for each in examined) + END


def in_readme() -> str:
    """The table between the markers, with them."""
    text = README.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


if __name__ == "__main__":
    made = table([examine(case) for case in CASES])
    README.write_text(README.read_text().replace(in_readme(), made))
    print(made)
