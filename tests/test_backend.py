"""The backend: factored layers compute the product of their factors, share one basis object, and evaluate it once."""

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from geocolor import backend
from geocolor.backend import (
    SharedBasis,
    factored_layers,
    install,
    merge_to_dense,
    skeleton,
)
from geocolor.bases import Factors
from geocolor.layers import find_layers
from geocolor.parameters import parameter_count
from tests.handmade import factors_of, plan_of

D = 12


class Attention(nn.Module):
    """q, k and v read one input; o reads another."""

    def __init__(self, d: int = D, small: int = 8) -> None:
        super().__init__()
        self.q = nn.Linear(d, d)
        self.k = nn.Linear(d, small, bias=False)
        self.v = nn.Linear(d, small)
        self.o = nn.Linear(d, d)
        self.head = nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        kv = torch.cat([self.k(x), self.v(x)], -1)
        return self.head(self.o(torch.tanh(self.q(x))) + kv[..., :D])


class Mixed(nn.Module):
    """Every form of layer the backend knows, with names that a head rule leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 10, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
                nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
                nn.Conv2d(10, 8, 1),
            ]
        )
        self.lines = nn.ModuleList([nn.Linear(8, 6), Conv1D(5, 8), Conv1D(6, 9)])

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        a, b = self.convs[0](x), self.convs[1](x)
        pooled = (self.convs[2](a) + b).mean((2, 3))
        return self.lines[0](pooled), self.lines[1](pooled), self.lines[2](z)


def mixed_classes() -> list[tuple[Any, ...]]:
    return [
        ("in", ["convs.0", "convs.1"], 5),
        ("out", ["lines.0", "lines.2"], 4),
        ("in", ["lines.1"], 3),
        ("both", ["convs.2"], 4, 6),
    ]


def compressed(model: nn.Module, classes: list[tuple[Any, ...]], **options: Any) -> nn.Module:
    plan = plan_of(model, classes)
    return install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan, **options)


@contextmanager
def counted_evaluations(basis: SharedBasis) -> Iterator[Callable[[], int]]:
    """How often the linear map of `basis` really ran, without a hook on it (a hook switches the memo off)."""
    calls = []
    true_forward = nn.Linear.forward

    def counting(module: nn.Linear, x: Tensor) -> Tensor:
        if module is basis.map:
            calls.append(1)
        return true_forward(module, x)

    nn.Linear.forward = counting  # type: ignore[method-assign]
    try:
        yield lambda: len(calls)
    finally:
        nn.Linear.forward = true_forward  # type: ignore[method-assign]


@pytest.fixture
def attention() -> nn.Module:
    torch.manual_seed(0)
    return compressed(Attention(), [("in", ["q", "k", "v"], 5)])


# --- what the layers compute


def test_factored_layers_compute_what_the_multiplied_factors_compute() -> None:
    torch.manual_seed(0)
    model = Mixed().double()
    plan = plan_of(model, mixed_classes())
    factors = factors_of(model, plan)
    smaller = install(model, plan.shareable_layers(), factors)
    for cls in factors:
        for name in cls.layers:
            original = copy.deepcopy(model.get_submodule(name))
            stored = (
                cls.dense(name).T if isinstance(original, Conv1D) else cls.dense(name).reshape(original.weight.shape)
            )
            original.weight.data.copy_(stored)
            x = torch.randn(4, 3, 9, 8) if name in ("convs.0", "convs.1") else torch.randn(4, 10, 5, 5)
            x = x if name.startswith("convs") else torch.randn(4, 7, 9 if name == "lines.2" else 8)
            torch.testing.assert_close(smaller.get_submodule(name)(x.double()), original(x.double()))


@pytest.mark.parametrize(
    "classes",
    [
        [("in", ["convs.0"], 5)],
        [("out", ["convs.0"], 4)],
        [("both", ["convs.0"], 4, 5)],
        [("out", ["convs.1", "convs.2"], 3)],
        [("both", ["lines.2"], 3, 5)],
        mixed_classes(),
    ],
)
def test_merging_back_gives_the_same_function_in_the_original_types(classes: list[tuple[Any, ...]]) -> None:
    torch.manual_seed(1)
    model = Mixed().double()
    smaller = compressed(model, classes)
    merged = merge_to_dense(smaller)
    inputs = torch.randn(2, 3, 9, 8).double(), torch.randn(4, 9).double()
    for a, b in zip(smaller(*inputs), merged(*inputs), strict=True):
        torch.testing.assert_close(a, b)
    assert [type(m) for m in merged.modules()] == [type(m) for m in model.modules()]
    assert {k: v.shape for k, v in merged.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert not factored_layers(merged)
    assert not hasattr(merged, "geocolor_plan")
    assert factored_layers(smaller), "the compressed model itself is left alone"


def test_a_basis_is_one_object_in_all_layers_of_its_class(attention: nn.Module) -> None:
    q, k, v = (attention.get_submodule(name) for name in "qkv")
    assert q.right is k.right is v.right
    assert attention.to(torch.float64).q.right is attention.k.right
    duplicate = copy.deepcopy(attention)
    assert duplicate.q.right is duplicate.k.right is not attention.q.right


def test_parameters_are_counted_live_and_each_storage_once(attention: nn.Module) -> None:
    d, r = D, 5
    bases_and_coefficients = r * d + r * (d + 8 + 8) + d + 8
    others = (d * d + d) + (3 * d + 3)
    assert parameter_count(attention) == bases_and_coefficients + others
    tied = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    tied[1].weight = nn.Parameter(tied[0].weight.detach())  # another Parameter, the same storage
    assert parameter_count(tied) == 16
    assert parameter_count(nn.Linear(4, 4, device="meta")) == 20


def test_the_live_count_is_the_one_the_plan_states() -> None:
    model = Mixed()
    plan = plan_of(model, mixed_classes())
    smaller = install(model, plan.shareable_layers(), factors_of(model, plan))
    outside = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))
    assert parameter_count(smaller) == plan.parameters + outside


def test_dtype_training_mode_and_biases_are_kept() -> None:
    torch.manual_seed(0)
    model = Attention().to(torch.bfloat16).eval()
    smaller = compressed(model, [("in", ["q", "k"], 5), ("out", ["v"], 3), ("both", ["o"], 4, 5)])
    assert {p.dtype for p in smaller.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in smaller.modules())
    for name in "qvo":
        assert torch.equal(smaller.get_submodule(name).bias, model.get_submodule(name).bias)
    assert smaller.k.bias is None
    assert (smaller.q.in_features, smaller.k.out_features) == (D, 8)


def test_installing_leaves_the_model_alone_unless_told_otherwise() -> None:
    torch.manual_seed(0)
    model = Attention()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smaller = compressed(model, [("in", ["q"], 5)])
    assert smaller is not model
    assert not factored_layers(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert compressed(model, [("in", ["q"], 5)], inplace=True) is model
    assert list(factored_layers(model)) == ["q"]


def test_hooks_on_a_replaced_layer_go_on_and_can_still_be_removed() -> None:
    model = Attention()
    seen: list[str] = []
    handles = [
        model.q.register_forward_hook(lambda module, x, y: seen.append("forward")),
        model.q.register_forward_pre_hook(lambda module, x: seen.append("before")),
        model.q.register_full_backward_hook(lambda module, x, y: seen.append("backward")),
    ]
    smaller = compressed(model, [("in", ["q", "k"], 5)], inplace=True)
    smaller(torch.randn(2, D)).sum().backward()
    assert seen == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    smaller(torch.randn(2, D)).sum().backward()
    assert len(seen) == 3


def test_installing_draws_no_random_numbers() -> None:
    model = Attention()
    plan = plan_of(model, [("in", ["q", "k", "v"], 5)])
    factors = factors_of(model, plan)
    state = torch.get_rng_state()
    install(model, plan.shareable_layers(), factors)
    assert torch.equal(state, torch.get_rng_state())


def test_weight_is_the_real_matrix_in_its_original_layout_with_a_gradient() -> None:
    torch.manual_seed(0)
    model = Mixed()
    smaller = compressed(model, mixed_classes())
    for name in factored_layers(smaller):
        assert smaller.get_submodule(name).weight.shape == model.get_submodule(name).weight.shape
    layer = smaller.lines[0]
    x = torch.randn(5, 8)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x))
    layer.weight.sum().backward()
    assert layer.coefficients.weight.grad is not None
    assert "lines.0.weight" not in smaller.state_dict()


def test_torch_kernels_that_take_the_weight_without_calling_the_layer_compute_the_same() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.TransformerEncoderLayer(D, 2, 20, batch_first=True)])}).eval()
    smaller = compressed(model, [("in", ["blocks.0.linear1"], 5), ("out", ["blocks.0.linear2"], 5)])["blocks"][0]
    x = torch.randn(2, 4, D)
    called = smaller(x)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), called)  # torch's fused kernel


def test_a_skeleton_on_the_meta_device_has_the_names_and_shapes_of_the_installed_model() -> None:
    model = Mixed()
    plan = plan_of(model, mixed_classes())
    smaller = install(model, plan.shareable_layers(), factors_of(model, plan))
    with torch.device("meta"):
        empty = skeleton(Mixed(), plan)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in smaller.state_dict().items()}
    assert empty.convs[0].right is empty.convs[1].right


def test_gradients_reach_the_basis_from_every_layer_of_its_class(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    for name in "qkv":
        attention.zero_grad()
        attention.get_submodule(name)(x).sum().backward()
        assert attention.q.right.map.weight.grad.abs().sum() > 0


def test_compiled_and_exported_models_compute_the_same(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad():
        expected = attention(x)
        exported = torch.export.export(attention, (x,)).module()
        torch.testing.assert_close(exported(x), expected)
        torch.testing.assert_close(torch.compile(attention, backend="eager", fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.jit.trace(attention, x)(2 * x), attention(2 * x))


# --- Bᵀx is evaluated once where that is safe


def run_qkv(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [model.get_submodule(name)(x) for name in "qkv"]


def reference(model: nn.Module, x: Tensor) -> list[Tensor]:
    return [nn.functional.linear(x, m.weight, m.bias) for m in (model.q, model.k, model.v)]


def assert_right(model: nn.Module, x: Tensor) -> None:
    for found, expected in zip(run_qkv(model, x), reference(model, x), strict=True):
        torch.testing.assert_close(found, expected)


def test_layers_reading_one_input_evaluate_the_basis_once(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad(), counted_evaluations(attention.q.right) as count:
        assert_right(attention, x)
        assert count() == 1
        attention(x)
        assert count() == 2, "the next pass evaluates anew"


def test_equal_values_in_another_tensor_are_evaluated_again(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad(), counted_evaluations(attention.q.right) as count:
        attention.q(x)
        attention.k(x.clone())
        attention.v(x[:])
        assert count() == 3


def test_an_alias_with_a_version_counter_of_its_own_is_another_tensor(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad():
        attention.q(x)
        x.mul_(2)
        alias = x.data  # same memory and shape, and its counter says 0, as that of x did
        torch.testing.assert_close(attention.k(alias), nn.functional.linear(alias, attention.k.weight))


def test_nothing_is_reused_under_autograd(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with counted_evaluations(attention.q.right) as count:
        run_qkv(attention, x)
        assert count() == 3
        with torch.no_grad():
            attention.q(x)
        attention.k(x).sum().backward()
        assert count() == 5
    assert attention.q.right.map.weight.grad is not None


def test_nothing_is_reused_in_inference_mode_where_changes_cannot_be_seen(attention: nn.Module) -> None:
    with torch.inference_mode(), counted_evaluations(attention.q.right) as count:
        x = torch.randn(3, D)
        attention.q(x)
        x.mul_(2)
        torch.testing.assert_close(attention.k(x), nn.functional.linear(x, attention.k.weight))
        assert count() == 2
        inference_tensor = x
    ordinary = torch.randn(3, D)
    with torch.inference_mode(), counted_evaluations(attention.q.right) as count:
        assert_right(attention, ordinary)
        assert count() == 3
    with torch.no_grad(), counted_evaluations(attention.q.right) as count:
        run_qkv(attention, inference_tensor)
        assert count() == 3


def change_input(model: nn.Module, x: Tensor) -> None:
    x.mul_(2)


def swap_input_data(model: nn.Module, x: Tensor) -> None:
    x.data = torch.randn_like(x)


def change_input_through_a_view(model: nn.Module, x: Tensor) -> None:
    x[0].zero_()


def change_weight(model: nn.Module, x: Tensor) -> None:
    model.q.right.map.weight.mul_(2)


def replace_weight(model: nn.Module, x: Tensor) -> None:
    model.q.right.map.weight = nn.Parameter(torch.randn_like(model.q.right.map.weight))


def replace_weight_at_its_address(model: nn.Module, x: Tensor) -> None:
    memory = model.q.right.map.weight.data
    del model.q.right.map.weight
    memory.mul_(2)
    model.q.right.map.weight = nn.Parameter(memory)


def swap_weight_data(model: nn.Module, x: Tensor) -> None:
    model.q.right.map.weight.data = torch.randn_like(model.q.right.map.weight)


def load_other_weights(model: nn.Module, x: Tensor) -> None:
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})


def replace_map(model: nn.Module, x: Tensor) -> None:
    model.q.right.map = nn.Linear(D, 5, bias=False)


def optimizer_step(model: nn.Module, x: Tensor) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    "change",
    [
        change_input,
        swap_input_data,
        change_input_through_a_view,
        change_weight,
        replace_weight,
        replace_weight_at_its_address,
        swap_weight_data,
        load_other_weights,
        replace_map,
        optimizer_step,
    ],
)
def test_a_change_between_two_layers_is_seen(attention: nn.Module, change: Callable[[nn.Module, Tensor], None]) -> None:
    x = torch.randn(3, D)
    with torch.no_grad():
        attention.q(x)
        change(attention, x)
        torch.testing.assert_close(attention.k(x), nn.functional.linear(x, attention.k.weight))


def test_edits_that_no_counter_sees_are_seen_by_the_next_pass(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad():
        for edit in (attention.q.right.map.weight.data, x.data):
            run_qkv(attention, x)
            edit.mul_(3)
            assert_right(attention, x)


def test_another_dtype_is_seen(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad():
        attention.q(x)
        attention.half()
        assert attention.q.right._memo.held is None, "the new weight may come to lie at the old address"
        attention.float()
        torch.testing.assert_close(attention.k(x), nn.functional.linear(x, attention.k.weight))
        attention.q(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert attention.k(x).dtype == torch.bfloat16
        assert attention.v(x).dtype == torch.float32


def test_a_consumer_that_edits_what_it_was_given_spoils_nothing(attention: nn.Module) -> None:
    x = torch.randn(3, D)

    def spoil(module: nn.Module, args: tuple[Tensor]) -> None:
        args[0].zero_()

    attention.q.coefficients.register_forward_pre_hook(spoil)
    with torch.no_grad():
        attention.q(x)
        torch.testing.assert_close(attention.k(x), nn.functional.linear(x, attention.k.weight))


def test_hooks_on_the_basis_run_for_every_layer(attention: nn.Module) -> None:
    seen = []
    attention.q.right.map.register_forward_hook(lambda *args: seen.append(1))
    with torch.no_grad():
        run_qkv(attention, torch.randn(3, D))
    assert len(seen) == 3


def test_what_is_remembered_dies_with_the_input(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad():
        run_qkv(attention, x)
    assert attention.q.right._memo.held is not None
    del x
    gc.collect()
    assert attention.q.right._memo.held is None


def test_copies_and_pickles_work_and_start_without_memory(attention: nn.Module) -> None:
    x = torch.randn(3, D)
    with torch.no_grad():
        attention.q(x)
        for duplicate in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
            assert duplicate.q.right._memo.held is None
            assert duplicate.q.right is duplicate.v.right
            assert_right(duplicate, x)
            torch.testing.assert_close(duplicate(x), attention(x))


def test_adapters_and_quantizers_find_a_plain_linear_in_the_basis(attention: nn.Module) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 1

    x = torch.randn(3, D)
    with torch.no_grad():
        before = run_qkv(attention, x)
        attention.q.right.map = Adapted(attention.q.right.map)
        assert not any(torch.allclose(a, b) for a, b in zip(before, run_qkv(attention, x), strict=True))
    with pytest.raises(ValueError, match="merge or remove adapters"):
        merge_to_dense(attention)


# --- refusals


def random_factors(kind: Any, name: str, m: int, n: int, left: int | None, right: int | None) -> Factors:
    coefficients = torch.randn(left or m, right or n).double()
    return Factors(
        kind,
        (name,),
        {name: coefficients},
        None if left is None else torch.randn(m, left).double(),
        None if right is None else torch.randn(n, right).double(),
    )


@pytest.mark.parametrize(
    ("kind", "left", "right"), [("in", None, D), ("out", 8, None), ("both", 8, 5), ("both", 4, D), ("in", None, D + 1)]
)
def test_full_ranks_are_refused(kind: Any, left: int | None, right: int | None) -> None:
    model = Attention()
    layers = plan_of(model, []).shareable_layers()
    with pytest.raises(ValueError, match=r"layer 'k': .* rank .* keep the layer dense"):
        install(model, layers, [random_factors(kind, "k", 8, D, left, right)], inplace=True)
    assert not factored_layers(model)


def test_coefficients_never_have_the_shape_of_the_weight_they_replace() -> None:
    """Else a load without geocolor would take them for the weight."""
    for m, n in ((4, 4), (3, 5), (5, 3)):
        for module in (nn.Linear(n, m), Conv1D(m, n), nn.Conv2d(n, m, 1)):
            model = nn.ModuleDict({"block": nn.ModuleList([module])})
            layers = plan_of(model, []).shareable_layers()
            for left in (None, *range(1, m)):
                for right in (None, *range(1, n)):
                    if left is None and right is None:
                        continue
                    kind = "in" if left is None else "out" if right is None else "both"
                    smaller = install(model, layers, [random_factors(kind, "block.0", m, n, left, right)])
                    assert smaller["block"][0].coefficients.weight.shape != module.weight.shape


def test_factors_for_another_model_are_refused_by_name_and_nothing_is_changed() -> None:
    model = Attention()
    layers = plan_of(model, []).shareable_layers()
    good = random_factors("in", "q", D, D, None, 4)
    for bad, message in (
        (random_factors("in", "nowhere", 8, D, None, 4), "'nowhere'"),
        (random_factors("in", "k", 9, D, None, 4), "layer 'k': coefficients of shape"),
        (random_factors("in", "k", 8, D + 1, None, 4), "layer 'k': right basis of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            install(model, layers, [good, bad], inplace=True)
        assert not factored_layers(model)
    other = nn.ModuleDict({"q": nn.Linear(D, 5), "k": nn.Conv2d(1, 1, 1)})
    with pytest.raises(ValueError, match="layer 'q' is a Linear of 5 × 12 in this model, not a linear of 12 × 12"):
        install(other, layers, [good])
    with pytest.raises(ValueError, match="no layer 'o'"):
        install(other, layers, [random_factors("in", "o", D, D, None, 4)])


def test_factors_too_large_for_the_dtype_are_refused() -> None:
    model = Attention().half()
    factors = random_factors("in", "q", D, D, None, 4)
    huge = Factors("in", ("q",), {"q": factors.coefficients["q"] * 1e6}, None, factors.right)
    with pytest.raises(ValueError, match="layer 'q': coefficients hold values that float16 cannot"):
        install(model, plan_of(model, []).shareable_layers(), [huge])


def test_layers_of_different_dtypes_cannot_share() -> None:
    model = Attention()
    model.k.half()
    with pytest.raises(
        ValueError, match=r"'q' and 'k' cannot share a basis: dtype torch.float32 against torch.float16"
    ):
        compressed(model, [("in", ["q", "k"], 5)])


def test_a_plan_that_the_live_model_does_not_follow_is_refused(attention: nn.Module) -> None:
    model = Attention()
    for classes, message in (
        ([("in", ["q", "k", "v"], 4)], "rank 5 in the model and 4 in the plan"),
        ([("in", ["q", "k"], 5)], "'v' is factored in the model and dense in the plan"),
        ([("in", ["q", "k", "v"], 5), ("out", ["o"], 3)], "'o' is of kind 'dense' in the model and 'out' in the plan"),
    ):
        with pytest.raises(ValueError, match=message):
            backend.attach_plan(attention, plan_of(model, classes))
    apart = compressed(model, [("in", ["q"], 5), ("in", ["k", "v"], 5)])
    with pytest.raises(ValueError, match="'q' and 'k' share a basis in the plan, not in the model"):
        backend.attach_plan(apart, plan_of(model, [("in", ["q", "k", "v"], 5)]))


# --- adapters on a shared basis, and compressing twice


def test_an_adapter_is_refused_on_a_shared_basis_and_welcome_elsewhere() -> None:
    class Adapter(nn.Module):
        def __init__(self, wrapped: nn.Module) -> None:
            super().__init__()
            self.wrapped = wrapped

        def get_base_layer(self) -> nn.Module:
            return self.wrapped

        def merge(self) -> None: ...

    model = compressed(Attention(), [("in", ["q", "k", "v"], 5), ("in", ["o"], 4)])
    for changed in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=r"shared by 3 layers.*target_modules=\[\"coefficients\"\]"):
            changed.k.right.map = Adapter(changed.k.right.map)
        changed.o.right.map = Adapter(changed.o.right.map)
        changed.k.coefficients = Adapter(changed.k.coefficients)
        changed.q.right.map = nn.Identity()  # what a quantizer does


def test_low_rank_adapters_of_peft_train_and_merge_on_coefficients(attention: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    x = torch.randn(4, D)
    with pytest.raises(ValueError, match="shared by 3 layers"):
        peft.get_peft_model(copy.deepcopy(attention), peft.LoraConfig(target_modules=["map"]))
    adapted = peft.get_peft_model(attention, peft.LoraConfig(target_modules=["coefficients"], init_lora_weights=False))
    expected = adapted(x)
    merged = adapted.merge_and_unload()
    assert torch.allclose(merged(x), expected, atol=1e-5)
    assert merged.q.right is merged.k.right
    assert type(merged.q.coefficients) is nn.Linear


def test_a_compressed_model_is_not_compressed_again(attention: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"compressed already: 'q', 'k', 'v' are factored.*merge_to_dense"):
        find_layers(attention)
    assert [layer.name for layer in find_layers(merge_to_dense(attention))] == ["q", "k", "v", "o"]
