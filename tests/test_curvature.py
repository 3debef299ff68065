"""Curvature: sums over data that add, are normalised as documented, and leave the model as it was."""

import math
import os
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from geocolor.curvature import Curvature, accumulate, finish, load_curvature, load_sums, measure
from geocolor.curvature.estimate import Room, second_moment
from geocolor.layers import Layer, find_layers, input_rows
from geocolor.losses import Classification, Custom, Embedding, NextToken, SquaredError

LLAMA = LlamaConfig(
    vocab_size=23,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=False,
)
BERT = BertConfig(vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA)


def token_batches(count: int = 4, sequence: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 23, (3, sequence), generator=generator) for _ in range(count)]


class Classifier(nn.Module):
    """Two layers that read one input, a third after them, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(5, 4)
        self.right = nn.Linear(5, 4)
        self.mix = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.mix(torch.tanh(self.left(x)) * self.right(x)).tanh()
        self.unused(hidden)
        return self.head(hidden)


def classifier(count: int = 40) -> tuple[Classifier, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = Classifier()
    x = torch.randn(count, 5)
    return model, [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(8)]


def quiet(*args, **kwargs) -> Curvature:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure(*args, **kwargs)


def assert_same(one: Curvature, other: Curvature, **tolerance: float) -> None:
    assert one.layers == other.layers
    assert one.units == other.units
    for layer in one.layers:
        torch.testing.assert_close(one.A[layer.name], other.A[layer.name], **tolerance)
        torch.testing.assert_close(one.G[layer.name], other.G[layer.name], **tolerance)


def test_a_is_the_mean_over_positions_and_g_the_sum_over_predicted_tokens_per_unit():
    """Held against hooks on a plain backward pass with the same random directions."""
    model, batches = llama(), token_batches(1)
    curvature = quiet(model, batches, damping=0.0, seed=5)
    module, seen = model.get_submodule("model.layers.1.mlp.down_proj"), {}
    module.register_forward_hook(lambda m, args, out: seen.update(x=args[0].detach().flatten(0, 1).double()))
    module.register_full_backward_hook(lambda m, i, o: seen.update(g=o[0].flatten(0, 1).double()))
    logits = model(batches[0]).logits[:, :-1].flatten(0, 1)
    key = 5 * 1_000_003 * 1_009  # the generator of batch 0, draw 0
    p, v = logits.detach().softmax(-1), torch.randn(logits.shape, generator=torch.Generator().manual_seed(key))
    direction = torch.stack([(torch.diag(q.sqrt()) - torch.outer(q, q.sqrt())) @ w for q, w in zip(p, v, strict=True)])
    (logits * direction).sum().backward()
    name = "model.layers.1.mlp.down_proj"
    assert curvature.units == 3 * 5
    assert curvature.positions[name] == 3 * 6
    torch.testing.assert_close(curvature.A[name], seen["x"].T @ seen["x"] / 18, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(curvature.G[name], seen["g"].T @ seen["g"] / 15, rtol=1e-4, atol=1e-9)


def test_two_parts_merge_to_the_whole_and_a_run_is_carried_on():
    model, batches = llama(), token_batches()
    layers = find_layers(model)
    whole = accumulate(model, batches, NextToken(), layers)
    first = accumulate(model, batches[:1], NextToken(), layers)
    second = accumulate(model, batches[1:], NextToken(), layers, first=1)
    merged = first + second
    assert merged.tensors.keys() == whole.tensors.keys()
    for key, tensor in whole.tensors.items():
        torch.testing.assert_close(merged.tensors[key], tensor, rtol=1e-12, atol=0)
    assert (merged.units, merged.samples, merged.batches) == (whole.units, whole.samples, whole.batches)
    assert_same(quiet(model, batches[1:], NextToken(), sums=first), quiet(model, batches, NextToken()))


def test_sums_of_something_else_are_not_added():
    model, batches = llama(), token_batches(1)
    layers = find_layers(model)
    sums = accumulate(model, batches, NextToken(), layers)
    with pytest.raises(ValueError, match="estimate 'activation', not 'kronecker'"):
        sums + accumulate(model, batches, NextToken(), layers, estimate="activation")
    with pytest.raises(ValueError, match="other layers"):
        sums + accumulate(model, batches, NextToken(), layers[:3])
    with pytest.raises(ValueError, match="share_inputs=False"):
        sums + accumulate(model, batches, NextToken(), layers, share_inputs=False)


@pytest.mark.parametrize(
    ("estimate", "draws", "backward"), [("kronecker", 1, 1), ("kronecker", 3, 3), ("activation", 3, 0)]
)
def test_every_batch_runs_forward_once_and_back_once_for_every_draw(estimate: str, draws: int, backward: int):
    model, batches, ran = llama(), token_batches(), {"forward": 0, "backward": 0}

    def note(way: str) -> None:
        ran[way] += 1

    head = model.get_output_embeddings()
    model.register_forward_hook(lambda *_: note("forward"))
    head.register_full_backward_hook(lambda *_: note("backward"))
    quiet(model, batches, estimate=estimate, draws=draws)
    assert ran == {"forward": len(batches), "backward": backward * len(batches)}


def test_the_same_seed_gives_the_same_curvature_and_more_draws_come_closer_to_the_expectation():
    model, batches = classifier()
    assert_same(quiet(model, batches, seed=3), quiet(model, batches, seed=3), rtol=0, atol=0)
    batches = batches[:1]
    exact = quiet(model, batches, draws=2_000).G["left"]
    errors = [
        sum(((quiet(model, batches, draws=draws, seed=seed).G["left"] - exact).norm() ** 2).item() for seed in range(8))
        for draws in (1, 16)
    ]
    assert errors[1] < errors[0] / 4  # 1/16 in expectation


def test_layers_that_read_the_same_tensor_share_one_input_factor():
    model = llama()
    curvature = quiet(model, token_batches(2))
    block = "model.layers.1."
    for name in ("k_proj", "v_proj"):
        assert curvature.inputs[f"{block}self_attn.{name}"] == f"{block}self_attn.q_proj"
        assert curvature.A[f"{block}self_attn.{name}"] is curvature.A[f"{block}self_attn.q_proj"]
    assert curvature.inputs[f"{block}mlp.up_proj"] == f"{block}mlp.gate_proj"
    assert curvature.inputs[f"{block}mlp.down_proj"] == f"{block}mlp.down_proj"
    apart = quiet(model, token_batches(2), share_inputs=False)
    assert all(first == name for name, first in apart.inputs.items())
    assert_same(curvature, apart)


def test_a_tensor_changed_in_place_is_another_input():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            first = self.layers[0](x)
            x += 1
            return first + self.layers[1](x)

    x = torch.randn(30, 4)
    curvature = measure(InPlace(), [(x, x)], SquaredError(), damping=0.0)
    assert curvature.inputs["layers.1"] == "layers.1"
    torch.testing.assert_close(curvature.A["layers.1"], ((x + 1).T @ (x + 1) / 30).double(), rtol=1e-5, atol=1e-6)


def test_convolutions_of_unlike_windows_read_unlike_patches_of_one_image():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(2, 3, k, padding=k // 2) for k in (3, 3, 1)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(layer(x) for layer in self.layers)

    x = torch.randn(70, 2, 5, 5)
    curvature = measure(Branches(), [(x, torch.zeros(70, 3, 5, 5))], SquaredError())
    assert dict(curvature.inputs) == {"layers.0": "layers.0", "layers.1": "layers.0", "layers.2": "layers.2"}
    assert {name: len(A) for name, A in curvature.A.items()} == {"layers.0": 18, "layers.1": 18, "layers.2": 2}


def test_layers_that_share_some_inputs_but_not_all_are_measured_apart():
    class Relative(nn.Module):
        """An attention whose key projects positions too, with q, k and v in one order or another."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
            self.register_buffer("positions", torch.randn(9, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key, value = (layer(x) for layer in self.layers)
            return query * key * value + key * self.layers[1](self.positions).mean(0)

    model = Relative().double()
    batches = [(torch.randn(40, 4).double(), torch.zeros(40, 4).double()) for _ in range(2)]
    shared = measure(model, batches, SquaredError())
    alone = measure(model, batches, SquaredError(), share_inputs=False)
    assert dict(shared.inputs) == {"layers.0": "layers.0", "layers.1": "layers.1", "layers.2": "layers.0"}
    for name in alone.A:
        torch.testing.assert_close(shared.A[name], alone.A[name])
        torch.testing.assert_close(shared.G[name], alone.G[name])
    assert dict(shared.positions)["layers.1"] == 98


def test_a_model_whose_sharing_of_inputs_changes_is_refused_with_a_way_out():
    class Fickle(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            copy = x.clone() if x.sum() > 0 else x
            return self.head(self.mix(self.left(x) * self.right(copy)))

    model = Fickle()
    batches = [(-torch.ones(8, 5), torch.zeros(8).long()), (torch.ones(8, 5), torch.zeros(8).long())]
    with pytest.raises(ValueError, match="'left' and 'right' read the same input at first but not always"):
        quiet(model, batches)
    assert "right" in quiet(model, batches, share_inputs=False).A


def test_layers_that_see_no_gradient_are_dropped_with_a_warning():
    model, batches = classifier()
    with pytest.warns(UserWarning, match=r"left as they are: 'unused' \(no gradient reaches it\)"):
        curvature = measure(model, batches)
    assert [layer.name for layer in curvature.layers] == ["left", "right", "mix"]
    with pytest.raises(KeyError, match="no curvature of layer 'unused'"):
        curvature.damage("unused", torch.zeros(4, 4))


def test_when_the_loss_depends_on_no_layer_that_is_said():
    model, batches = classifier()
    with pytest.raises(ValueError, match="does not depend on any of the layers in scope"):
        quiet(model, batches, include=("unused",), loss=Custom(lambda model, batch: batch[0].mean()))
    with pytest.raises(ValueError, match=r"no layer can be measured: 'unused' \(no gradient reaches it\)"):
        quiet(model, batches, include=("unused", "head"), exclude=("head",), loss=Custom(_half_constant))


def _half_constant(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return model.unused(torch.ones(1, 4)).sum() * 0.0


def test_padded_positions_do_not_enter_the_input_factor():
    torch.manual_seed(0)
    model = BertModel(BERT)
    ids, mask = torch.randint(1, 17, (4, 9)), torch.ones(4, 9, dtype=torch.long)
    ids[:2, 6:], mask[:2, 6:] = 0, 0
    with pytest.warns(UserWarning, match=r"'pooler.dense' \(no gradient reaches it\)"):
        padded = measure(model, [{"input_ids": ids, "attention_mask": mask}], draws=1)
    apart = [{"input_ids": ids[:2, :6], "attention_mask": mask[:2, :6]}, {"input_ids": ids[2:]}]
    unpadded = quiet(model, apart)
    name = "encoder.layer.1.intermediate.dense"
    assert padded.positions[name] == unpadded.positions[name] == 2 * 6 + 2 * 9
    assert padded.units == 4
    assert padded.unit == Embedding().unit
    torch.testing.assert_close(padded.A[name], unpadded.A[name], rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was_even_after_an_error():
    model, batches = classifier()
    model.train()
    model.mix.eval()
    model.left.weight.requires_grad_(False)
    state = {name: (p.requires_grad, p.grad, p.clone()) for name, p in model.named_parameters()}
    quiet(model, batches)
    with pytest.raises(ValueError, match="NaN"):
        quiet(model, [(torch.full((8, 5), float("nan")), torch.zeros(8).long())])
    assert model.training
    assert not model.mix.training
    for name, parameter in model.named_parameters():
        assert (parameter.requires_grad, parameter.grad) == state[name][:2]
        assert torch.equal(parameter, state[name][2])
    assert not any(module._forward_hooks for module in model.modules())


def test_measuring_inside_no_grad_works():
    model, batches = classifier()
    with torch.no_grad():
        assert_same(quiet(model, batches), quiet(model, batches))


def test_what_gradients_do_not_pass_is_refused_and_inputs_made_without_them_are_taken():
    model, batches = classifier()
    with torch.inference_mode():
        frozen, without_versions = classifier()
        with pytest.raises(ValueError, match=r"measure it outside"):
            measure(model, batches)
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        measure(frozen, batches)
    assert_same(quiet(model, without_versions), quiet(model, batches))


def test_few_samples_are_counted_and_warned_of():
    model, x, y = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), torch.randn(64, 3), torch.randint(0, 3, (64,))
    with pytest.warns(UserWarning, match=r"calibrated on 63 sequences or samples, 64 or more are wanted.*Pass more"):
        measure(model, [(x[:40], y[:40]), (x[41:], y[41:])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(model, [(x, y)])
        measure(model, [(x[:1], y[:1])], estimate="identity")


def test_inputs_that_are_not_finite_name_the_layer_and_the_batch():
    model, batches = classifier()
    broken = [batches[0], (batches[1][0] * float("inf"), batches[1][1])]
    with pytest.raises(ValueError, match=r"layer 'left': its inputs in calibration batch 1 hold NaN or infinite"):
        quiet(model, broken)


def test_gradients_that_are_not_finite_name_the_layer():
    model, batches = classifier()
    loss = Custom(lambda model, batch: model(batch[0]).sum().clamp(min=0).sqrt() * 0)  # sqrt has no slope at 0
    model.head.weight.data.zero_()
    model.head.bias.data.zero_()
    with pytest.raises(ValueError, match=r"layer 'mix': its output gradients in calibration batch 0"):
        quiet(model, batches, loss)


def test_too_few_samples_are_said_to_bound_the_rank():
    model, batches = classifier(count=3)
    with pytest.warns(UserWarning, match=r"layer 'left': calibration covariance has rank ≤ 3 of 5; pass more samples"):
        curvature = measure(model, batches, exclude=("unused",))
    assert torch.linalg.eigvalsh(curvature.A["left"])[0] > 0  # damped


def test_damping_adds_a_fraction_of_the_mean_eigenvalue():
    model, batches = classifier()
    bare, damp = quiet(model, batches, damping=0.0), quiet(model, batches, damping=0.5)
    for factor in ("A", "G"):
        before, after = getattr(bare, factor)["mix"], getattr(damp, factor)["mix"]
        torch.testing.assert_close(after, before + 0.5 * before.trace() / len(before) * torch.eye(4).double())
    with pytest.raises(ValueError, match="damping is -1"):
        quiet(model, batches, damping=-1)


def test_damage_is_half_the_trace_of_g_delta_a_delta():
    model, batches = classifier()
    curvature, delta = quiet(model, batches), torch.randn(4, 5)
    G, A = curvature.G["left"], curvature.A["left"]
    expected = 0.5 * delta.flatten().double() @ torch.kron(G, A) @ delta.flatten().double()
    assert curvature.damage("left", delta) == pytest.approx(expected.item(), rel=1e-9)
    with pytest.raises(ValueError, match="the change is \\(5, 4\\), the weight 4 × 5"):
        curvature.damage("left", delta.T)


def test_a_convolution_is_measured_by_its_patches_also_before_an_in_place_relu():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    x, y = torch.randn(6, 2, 5, 5), torch.zeros(6).long()
    curvature = quiet(model, [(x, y)], damping=0.0)
    patches = input_rows(curvature.layers[0], x).flatten(0, 1).double()
    assert curvature.positions["0"] == 6 * 25
    assert curvature.units == 6
    torch.testing.assert_close(curvature.A["0"], patches.T @ patches / 150, rtol=1e-5, atol=1e-7)
    model[1].inplace = False
    torch.testing.assert_close(quiet(model, [(x, y)], damping=0.0).G["0"], curvature.G["0"])


def test_wide_second_moments_are_symmetric_and_exact():
    """Wider than one strip, where only the upper triangle is computed."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(600, 2)).double(), torch.randn(40, 600, dtype=torch.float64)
    curvature = quiet(model, [(x, torch.zeros(40, 2, dtype=torch.float64))], SquaredError(), damping=0.0)
    torch.testing.assert_close(curvature.A["0"], x.T @ x / 40, rtol=1e-12, atol=1e-12)


def test_a_moment_is_written_over_the_one_before_and_measuring_keeps_them_apart():
    """Two layers of one width and two batches share the room of a product, and their sums must not."""
    layer, room = Layer("0", 2, 300, "linear"), Room()
    first, second = (torch.randn(40, 300, dtype=torch.float64) for _ in range(2))
    held = second_moment(first, layer, "inputs", 0, room)
    assert second_moment(second, layer, "inputs", 1, room).data_ptr() == held.data_ptr()
    torch.testing.assert_close(held, second.T @ second)
    assert second_moment(first, layer, "inputs", 2).data_ptr() != held.data_ptr()
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    batches = [(torch.randn(40, 6, dtype=torch.float64), torch.zeros(40, 6, dtype=torch.float64)) for _ in range(2)]
    curvature = quiet(model, batches, SquaredError(), damping=0.0, shrinkage=0.0)
    inputs = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(curvature.A["0"], inputs.T @ inputs / 80)
    hidden = model[0](inputs).detach()
    torch.testing.assert_close(curvature.A["1"], hidden.T @ hidden / 80)


def test_activation_keeps_a_and_ignores_the_loss():
    model, batches = classifier()
    curvature = quiet(model, batches, estimate="activation", damping=0.0)
    assert torch.equal(curvature.A["left"], quiet(model, batches, damping=0.0, shrinkage=0.0).A["left"])
    assert torch.equal(curvature.G["left"], torch.eye(4).double())
    x, delta = torch.cat([x for x, _ in batches]), torch.randn(4, 5)
    assert curvature.damage("left", delta) == pytest.approx(0.5 * (x @ delta.T).square().sum(1).mean().item(), rel=1e-5)


def test_diagonal_is_the_row_sum_of_squared_sample_gradients():
    model, batches = llama(), token_batches(1)
    name = "model.layers.0.mlp.up_proj"
    curvature = quiet(model, batches, Custom(_mean_loss), estimate="diagonal", damping=0.0)
    squares = torch.zeros(12, dtype=torch.float64)
    for sample in batches[0]:
        model.zero_grad()
        _mean_loss(model, sample[None]).backward()
        squares += model.get_submodule(name).weight.grad.double().square().sum(1)
    assert torch.equal(curvature.A[name], torch.eye(8).double())
    torch.testing.assert_close(curvature.G[name], torch.diag(squares / (8 * 3)), rtol=1e-4, atol=1e-12)


def _mean_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch, labels=batch).loss


def test_identity_reads_no_data():
    model, _ = classifier()
    curvature = measure(model, [], estimate="identity")
    delta = torch.randn(4, 5)
    assert curvature.damage("left", delta) == pytest.approx(0.5 * delta.square().sum().item(), rel=1e-6)


def test_wrong_requests_are_refused():
    model, batches = classifier()
    with pytest.raises(ValueError, match="no curvature estimate is called 'magic'; there are kronecker, activation"):
        measure(model, batches, estimate="magic")
    with pytest.raises(ValueError, match="no calibration batches"):
        measure(model, [])
    with pytest.raises(ValueError, match="draws is 0"):
        measure(model, batches, draws=0)


def test_a_curvature_and_its_sums_survive_saving(tmp_path: Path):
    model, batches = llama(), token_batches(2)
    curvature = quiet(model, iter(batches), draws=2, seed=4)
    curvature.save(tmp_path / "curvature.safetensors")
    loaded = load_curvature(tmp_path / "curvature.safetensors")
    assert_same(curvature, loaded, rtol=0, atol=0)
    assert loaded.inputs == curvature.inputs
    assert loaded.A["model.layers.0.mlp.up_proj"] is loaded.A["model.layers.0.mlp.gate_proj"]
    assert (loaded.draws, loaded.seed, loaded.unit) == (2, 4, "nats per token")
    sums = accumulate(model, batches, NextToken(), find_layers(model), draws=2, seed=4)
    sums.save(tmp_path / "sums.safetensors")
    assert_same(finish(load_sums(tmp_path / "sums.safetensors")), curvature, rtol=0, atol=0)
    identity = measure(model, [], estimate="identity")
    identity.save(tmp_path / "identity.safetensors")
    assert_same(load_curvature(tmp_path / "identity.safetensors"), identity)


def test_files_that_are_no_curvature_are_refused(tmp_path: Path):
    model, batches = classifier()
    path = tmp_path / "curvature.safetensors"
    quiet(model, batches).save(path)
    with pytest.raises(ValueError, match="is not a sums file"):
        load_sums(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        load_curvature(path)
    with pytest.raises(FileNotFoundError, match="no curvature file at"):
        load_curvature(tmp_path / "none.safetensors")


def test_a_predicted_damage_is_close_to_the_measured_one():
    """A small change of one layer of a trained model, averaged over signs, so that the gradient cancels."""
    model, batches = classifier(200)
    batches = [(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()) for x, _ in batches]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    for _ in range(150):
        optimizer.zero_grad()
        (cross_entropy(model(x) + 0.5 * torch.randn(200, 3), y)).backward()
        optimizer.step()
    curvature, loss = quiet(model, batches, Classification(), draws=100), Classification()
    predicted = measured = 0.0
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        delta, weight = 0.1 * torch.randn(4, 5, generator=generator), model.left.weight.data
        model.left.weight.data = weight + delta
        up = loss.value(model, (x, y))[0] / 200
        model.left.weight.data = weight - delta
        down = loss.value(model, (x, y))[0] / 200
        model.left.weight.data = weight
        measured += (up + down) / 2 - loss.value(model, (x, y))[0] / 200
        predicted += curvature.damage("left", delta)
    assert math.isclose(predicted, measured, rel_tol=0.3)  # the Fisher information of this model is 26 % below


def _one_process(rank: int, folder: str) -> None:
    meet = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timedelta(minutes=10))
    try:
        quiet(llama(), token_batches(3), NextToken()).save(Path(folder) / f"{rank}.safetensors")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="gloo's file rendezvous is for POSIX")
def test_two_processes_measure_the_same_as_one(tmp_path: Path):
    other = torch.multiprocessing.get_context("spawn").Process(target=_one_process, args=(1, str(tmp_path)))
    other.start()
    _one_process(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    alone = quiet(llama(), token_batches(3), NextToken())
    for rank in range(2):
        together = load_curvature(tmp_path / f"{rank}.safetensors")
        assert_same(together, alone, rtol=1e-10, atol=1e-14)
        assert together.samples == alone.samples


def test_more_damping_is_as_if_measured_with_it(
    network: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    little = measure(network, batches, damping=1e-3)
    more = little.damped_to(0.1)
    expected = measure(network, batches, damping=0.1)
    for name in expected.A:
        torch.testing.assert_close(more.A[name], expected.A[name])
        torch.testing.assert_close(more.G[name], expected.G[name])
    first, second = (layer.name for layer in expected.layers[:2])
    assert more.A[first] is more.A[second]
    with pytest.raises(ValueError, match="damping can only grow"):
        more.damped_to(1e-3)
