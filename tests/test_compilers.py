"""torch's compilers and exporters take a compressed model whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from geocolor.parameters import parameter_count
from tests.compressed import MODELS, arguments, llama, result
from tests.test_transformers import TOKENS, output


@pytest.mark.parametrize(("make", "x"), MODELS)
def test_it_compiles_as_one_graph_with_the_same_outputs_and_gradients(make: Callable[[], nn.Module], x: Tensor) -> None:
    model, reference = make(), make()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = compiled(x, **arguments(model))
    found, expected = y if isinstance(y, Tensor) else y[0], result(reference, x)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_it() -> None:
    model = llama()
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(TOKENS)[0], output(model))


@pytest.mark.parametrize(("make", "x"), MODELS)
def test_it_exports(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = make()
    exported = torch.export.export(model, (x,), arguments(model))
    held = {tensor.data_ptr(): tensor.numel() for tensor in exported.state_dict.values()}
    y = exported.module()(x, **arguments(model))
    torch.testing.assert_close(y if isinstance(y, Tensor) else y[0], result(model, x))
    assert sum(held.values()) <= parameter_count(model) + sum(buffer.numel() for buffer in model.buffers())


@pytest.mark.filterwarnings("ignore")
def test_it_becomes_onnx_with_each_shared_basis_once(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    class Logits(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.model(tokens, use_cache=False)[0]
            return logits

    model = llama()
    torch.onnx.export(Logits(model).eval(), (TOKENS,), dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "model.onnx")
    inputs = {written.graph.input[0].name: TOKENS.numpy()}
    found = torch.from_numpy(ReferenceEvaluator(written).run(None, inputs)[0])
    torch.testing.assert_close(found, output(model), rtol=1e-4, atol=1e-5)
    basis = model.model.layers[0].self_attn.q_proj.right.map.weight.detach()
    stored = [onnx.numpy_helper.to_array(entry) for entry in written.graph.initializer]
    assert sum(a.shape in {basis.shape, basis.T.shape} and abs(a).sum() == basis.abs().sum() for a in stored) <= 1
    assert sum(a.size for a in stored if a.ndim == 2) <= sum(p.numel() for p in model.parameters() if p.ndim == 2)
