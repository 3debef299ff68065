"""A fused model computes what the compressed one does, from fewer products, and can be taken apart again."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import geocolor
from geocolor.backend import factored_layers, install
from geocolor.few_positions import product
from geocolor.flops import flops
from geocolor.fused_layers import FusedInput, FusedLayer
from geocolor.fusion import fuse, unfuse
from geocolor.parameters import parameter_count
from geocolor.storage import load, save
from tests.compressed import arguments, assert_shared, llama, result
from tests.handmade import factors_of, plan_of
from tests.test_transformers import TOKENS, bert, bert_classes, output
from tests.test_transformers import compressed as compressed_of


class Readers(nn.Module):
    """Five layers of one input, with biases and without, and one of another."""

    def __init__(self, bias: tuple[bool, ...] = (True, False, True, False, True)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 12, bias=has) for has in bias)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(sum(layer(x) for layer in self.layers))  # type: ignore[arg-type]
        return y


def known(model: nn.Module, classes: list[tuple[Any, ...]], inputs: dict[str, str]) -> nn.Module:
    """`model` compressed by a plan that knows which layers read one tensor."""
    plan = plan_of(model, classes).model_copy(update={"inputs": inputs})
    return install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan)


EVERY_KIND: list[tuple[Any, ...]] = [
    ("in", ["layers.0", "layers.1"], 5),
    ("both", ["layers.2", "layers.3"], 4, 6),
    ("out", ["layers.4"], 3),
]
FIVE = {f"layers.{i}": "layers.0" for i in range(1, 5)}


def readers() -> nn.Module:
    torch.manual_seed(0)
    return known(Readers().eval(), EVERY_KIND, FIVE)


def with_inputs(model: nn.Module) -> nn.Module:
    """Where q, k and v (or gate and up) of one module are factored, they read one tensor."""
    inputs = {}
    for name in factored_layers(model):
        for first, others in (
            ("q_proj", ("k_proj", "v_proj")),
            ("gate_proj", ("up_proj",)),
            ("query", ("key", "value")),
        ):
            stem, _, last = name.rpartition(".")
            if last in others and f"{stem}.{first}" in factored_layers(model):
                inputs[name] = f"{stem}.{first}"
    model.geocolor_plan = model.geocolor_plan.model_copy(update={"inputs": inputs})  # type: ignore[union-attr, operator]
    return model


X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
MODELS: list[Any] = [
    pytest.param(readers, X, id="every kind"),
    pytest.param(lambda: with_inputs(llama()), TOKENS, id="llama"),
    pytest.param(lambda: with_inputs(compressed_of(bert(), bert_classes())), TOKENS, id="bert"),
]


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in {"mm", "addmm", "bmm"}
        return func(*args, **(kwargs or {}))


def products(model: nn.Module, x: Tensor) -> int:
    with Products() as counted:
        result(model, x)
    return counted.count


@pytest.mark.parametrize(("make", "x"), MODELS)
def test_outputs_and_gradients_are_the_same_from_fewer_products(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = make()
    fused = fuse(model)
    assert any(isinstance(module, FusedLayer) for module in fused.modules())
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(result(fused, x), result(model, x), rtol=1e-4, atol=1e-5)
    assert products(fused, x) < products(model, x)
    result(fused, x).square().sum().backward()
    result(model, x).square().sum().backward()
    back = dict(unfuse(fused).named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.Embedding) and module.weight.grad is not None:
            torch.testing.assert_close(fused.get_submodule(name).weight.grad, module.weight.grad, rtol=1e-3, atol=1e-5)  # type: ignore[operator, union-attr]
        assert type(back[name]) is type(module)


def test_five_layers_of_one_input_take_six_products() -> None:
    """One for all that reads x, one for [C_0; C_1], one for [S_2; S_3], and three for left bases; twelve apart."""
    fused = fuse(readers())
    with torch.no_grad():
        assert products(fused, X) == 6 + 1
    (group,) = {module for module in fused.modules() if isinstance(module, FusedInput)}
    assert group.stacked is not None
    assert group.stacked.out_features == 5 + 6 + 3
    assert group._waiting is None, "nothing is held once every layer has its output"


def test_parameters_stay_as_many_and_unfusing_gives_the_very_same_model() -> None:
    for make, x in ((readers, X), (lambda: with_inputs(llama()), TOKENS)):
        model = make()
        fused = fuse(model)
        added = sum(b is None for layer in factored_layers(model).values() for b in [layer.bias]) * 12
        assert parameter_count(model) <= parameter_count(fused) <= parameter_count(model) + added
        back = unfuse(fused)
        assert torch.equal(result(back, x), result(model, x))
        assert_shared(back, model)
        assert back.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())
        assert flops(back) == flops(model)


def test_a_basis_that_other_inputs_read_is_not_copied() -> None:
    model = known(
        nn.Sequential(Readers(), nn.Linear(4, 16), Readers()).eval(),
        [("in", [f"{block}.layers.{i}" for block in (0, 2) for i in (0, 1)], 5), ("in", ["0.layers.2"], 4)],
        {"0.layers.1": "0.layers.0", "0.layers.2": "0.layers.0", "2.layers.1": "2.layers.0"},
    )
    fused = fuse(model)
    assert parameter_count(fused) == parameter_count(model) + 12 * 2, "but for zero biases"
    groups = [module for module in fused.modules() if isinstance(module, FusedInput)]
    assert groups[0].shared[0] is groups[-1].shared[0]
    torch.testing.assert_close(fused(X), model(X))
    assert_shared(unfuse(fused), model)


def test_a_copy_in_place_leaves_no_factor_behind() -> None:
    model = readers()
    before = result(model, X)
    assert fuse(model, inplace=True) is model
    assert not any(isinstance(module, geocolor.backend.FactoredLayer) for module in model.modules())
    torch.testing.assert_close(result(model, X), before)
    assert unfuse(model, inplace=True) is model
    assert torch.equal(result(model, X), before)


def test_values_of_one_pass_never_reach_another() -> None:
    model, x = readers(), X.clone()
    fused = fuse(model)
    first, second = fused.layers[0], fused.layers[1]  # type: ignore[index]
    apart = model.layers[1]  # type: ignore[index]
    with torch.no_grad():
        first(x)
        x.add_(1.0)  # written to before the second layer reads it
        torch.testing.assert_close(second(x), apart(x))
        first(x)
        torch.testing.assert_close(second(x.clone()), apart(x))
        first(x)
        second(x)
        fused.layers[0].fused.coefficients[0].weight.zero_()  # type: ignore[index, union-attr]
        assert not second(x).any(), "asked twice, a layer evaluates anew"


@pytest.mark.parametrize(("make", "x"), MODELS)
def test_it_compiles_and_exports_as_one_graph_with_each_product_once(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = make()
    fused = fuse(model)
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(fused, backend=keep, fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(
                compiled(x, **arguments(model))[0],
                result(model, x) if isinstance(model, PreTrainedModel) else result(model, x)[0],
                rtol=1e-4,
                atol=1e-5,
            )
        exported = torch.export.export(fused, (x,), arguments(model))
    assert len(graphs) == 1
    linears = [sum("linear" in str(node.target) for node in graph.graph.nodes) for graph in (graphs[0], exported)]
    with torch.no_grad():
        assert linears[0] == linears[1] == sum(_linears(fused, x))


def _linears(model: nn.Module, x: Tensor) -> list[int]:
    calls: list[int] = []
    handles = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for module in model.modules()
        if type(module) is nn.Linear
    ]
    result(model, x)
    for handle in handles:
        handle.remove()
    return calls


def test_inductor_compiles_it() -> None:
    fused = fuse(with_inputs(llama()))
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fused, fullgraph=True)(TOKENS)[0], output(fused))


def test_generation_with_a_cache_writes_the_same() -> None:
    model = with_inputs(llama())
    wanted = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)}
    written = fuse(model).generate(TOKENS, use_cache=True, **wanted)  # type: ignore[operator]
    assert torch.equal(written, model.generate(TOKENS, use_cache=True, **wanted))  # type: ignore[operator]


@pytest.mark.parametrize(("make", "x"), MODELS)
def test_copies_moves_and_state_dicts_work_as_for_any_module(make: Callable[[], nn.Module], x: Tensor) -> None:
    fused = fuse(make())
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert torch.equal(result(other, x), result(fused, x))
    other = copy.deepcopy(fused)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(fused.state_dict())
    assert torch.equal(result(other, x), result(fused, x))
    assert unfuse(fused).double().state_dict().keys() == unfuse(fused.double()).state_dict().keys()
    assert {p.dtype for p in fused.parameters()} == {torch.float64}


def test_coefficients_taller_than_wide_are_laid_out_by_columns_and_back() -> None:
    fused = fuse(readers())
    tall = fused.layers[0].fused.coefficients[0].weight  # type: ignore[index, union-attr]
    assert tall.shape == (24, 5)
    assert tall.stride() == (1, 24)
    assert fused.layers[4].left.map.weight.stride() == (1, 12)  # type: ignore[index, union-attr]
    assert fused.layers[0].fused.stacked.weight.is_contiguous()  # type: ignore[index, union-attr]
    assert all(parameter.is_contiguous() for parameter in unfuse(fused).parameters())
    assert copy.deepcopy(fused).layers[0].fused.coefficients[0].weight.stride() == (1, 24)  # type: ignore[index, union-attr]


@pytest.mark.parametrize("bias", [True, False])
def test_one_position_in_bfloat16_is_the_same_product_read_two_rows_at_a_time(bias: bool) -> None:
    torch.manual_seed(0)
    tall = nn.Linear(512, 2048, bias=bias).bfloat16()
    with torch.no_grad():
        for shape in ((1, 512), (1, 1, 512), (512,), (2, 512)):
            x = torch.randn(shape).bfloat16()
            torch.testing.assert_close(product(tall, x), tall(x), rtol=2e-2, atol=2e-2)
    calls: list[int] = []
    apart = nn.Linear(512, 2048, bias=bias).bfloat16()
    apart.load_state_dict(tall.state_dict())
    apart.register_forward_hook(lambda *_: calls.append(1))
    x, seen = (torch.randn(1, 512).bfloat16().requires_grad_() for _ in range(2))
    seen.data.copy_(x.data)
    product(tall, x).float().square().sum().backward()
    product(apart, seen).float().square().sum().backward()
    assert calls == [1], "where a hook waits, the map itself is called"
    assert x.grad is not None
    torch.testing.assert_close(x.grad, seen.grad, rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(tall.weight.grad, apart.weight.grad, rtol=5e-2, atol=5e-2)


def test_a_layer_alone_holds_no_input() -> None:
    model = known(Readers().eval(), [("in", ["layers.0"], 5)], {})
    fused = fuse(model)
    torch.testing.assert_close(fused(X), model(X))
    assert fused.layers[0].fused._waiting is None  # type: ignore[index, union-attr]


def test_tied_embeddings_stay_tied() -> None:
    model = with_inputs(llama())
    model.lm_head.weight = model.model.embed_tokens.weight  # type: ignore[union-attr]
    fused = fuse(model)
    assert fused.lm_head.weight is fused.model.embed_tokens.weight  # type: ignore[union-attr]
    torch.testing.assert_close(result(fused, TOKENS), result(model, TOKENS))


def test_the_weight_of_a_fused_layer_is_real() -> None:
    model = readers()
    for one, other in zip(fuse(model).layers, model.layers, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(one.weight, other.weight)


def test_hooks_go_on() -> None:
    model, seen = readers(), []
    model.layers[1].register_forward_hook(lambda *_: seen.append(1))  # type: ignore[index, union-attr]
    fused = fuse(model)
    fused(X)
    assert seen == [1]
    unfuse(fused)(X)
    assert seen == [1, 1]


def test_saving_a_fused_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    for model in (readers(), with_inputs(llama())):
        fused = fuse(model)
        with pytest.raises(ValueError, match="is fused, which is a form to run"):
            save(fused, tmp_path / "model")
        with pytest.raises(ValueError, match="is fused, which is a form to run"):
            geocolor.merge_to_dense(fused)
    with pytest.raises(ValueError, match="save it before fusing"):
        fused.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    back = unfuse(fused)
    save(back, tmp_path / "model")
    assert torch.equal(output(load(None, tmp_path / "model")), output(with_inputs(llama())))  # type: ignore[arg-type]


def test_what_cannot_be_stacked_is_left_alone() -> None:
    for model in (with_inputs(llama()), readers()):
        for layer in factored_layers(model).values():
            layer.coefficients.register_forward_hook(lambda *_: None)
        assert not any(isinstance(module, FusedLayer) for module in fuse(model).modules())


def test_slow_layers_can_be_merged_first() -> None:
    torch.manual_seed(0)
    classes: list[tuple[Any, ...]] = [("in", ["layers.0", "layers.1"], 5), ("both", ["layers.2", "layers.3"], 11, 15)]
    model = known(Readers().eval(), classes, {"layers.1": "layers.0", "layers.2": "layers.0", "layers.3": "layers.0"})
    run = fuse(geocolor.merge_slow(model))
    assert [type(layer) for layer in run.layers] == [FusedLayer] * 2 + [nn.Linear] * 3  # type: ignore[arg-type, union-attr]
    torch.testing.assert_close(run(X), model(X), rtol=1e-4, atol=1e-5)


def test_a_measured_plan_knows_what_can_be_fused(network: nn.Module, curvature: Any, graph: Any) -> None:
    smaller = geocolor.apply(network, geocolor.plan(graph, 0.5), curvature)
    fused = fuse(smaller)
    x = torch.randn(4, 6, 8)
    torch.testing.assert_close(fused(x), smaller(x))
    names = [name for name, module in fused.named_modules() if isinstance(module, FusedLayer)]
    assert names == list(factored_layers(smaller))
    assert fused.blocks[0].q.fused is fused.blocks[0].k.fused  # type: ignore[index, union-attr]
    assert fused.blocks[0].q.fused is not fused.blocks[0].o.fused  # type: ignore[index, union-attr]
