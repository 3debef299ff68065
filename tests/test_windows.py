"""Statistics that do not fit in memory are gathered a window at a time and read from disk: the same, in less memory."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import geocolor
from geocolor.curvature import Curvature, load_curvature
from geocolor.curvature.on_disk import OnDisk
from geocolor.curvature.windows import bytes_of, input_groups, measure_within, windows
from geocolor.journal import Journal
from geocolor.layers import find_layers
from geocolor.losses import Classification
from geocolor.memory import peak
from geocolor.metrics import MetricsWithin, size_of
from geocolor.quantities import parse_size
from geocolor.storage import load
from geocolor.tensor_files import TensorFile, read_tensors, write_tensors
from geocolor_cli.run import run
from tests.conftest import Network

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:.*rank ≤")

Batches = list[tuple[Tensor, Tensor]]


def small(model: nn.Module, batches: Batches, folder: Path) -> Curvature:
    """Measured with room for two layers or three at a time."""
    layers = find_layers(model)
    groups = input_groups(model, batches[0], Classification(), layers)
    called = [layer for layer in layers if layer.name in groups]
    room = bytes_of(called[:2], groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geocolor.curvature.windows.peak", lambda: 0)
        patch.setattr("geocolor.journal.SHARE", 0)
        curvature = measure_within(room, model, batches, layers, journal=Journal(folder))
    assert len(windows(called, groups, room, room)) > 1
    return curvature


def test_windows_give_the_factors_of_one_pass(network: nn.Module, batches: Batches, tmp_path: Path) -> None:
    expected, found = geocolor.measure(network, batches), small(network, batches, tmp_path)
    assert isinstance(found.A, OnDisk)
    assert found.layers == expected.layers
    assert dict(found.inputs) == dict(expected.inputs)
    assert dict(found.positions) == dict(expected.positions)
    assert (found.units, found.samples) == (expected.units, expected.samples)
    for name in expected.A:
        assert torch.equal(found.A[name], expected.A[name])
        assert torch.equal(found.G[name], expected.G[name])


def test_what_follows_is_the_same_from_disk(network: nn.Module, batches: Batches, tmp_path: Path) -> None:
    """Looks, more damping, prices, plan and factors."""
    loose, tight = geocolor.measure(network, batches), small(network, batches, tmp_path)
    loose, tight = (geocolor.calibrate(network, each, batches).damped_to(0.01) for each in (loose, tight))
    assert isinstance(tight.G, OnDisk)
    for name in loose.A:
        torch.testing.assert_close(tight.A[name], loose.A[name], rtol=1e-12, atol=0)
        torch.testing.assert_close(tight.G[name], loose.G[name], rtol=1e-7, atol=0)  # slopes are differences of losses
    graphs = [geocolor.price(network, each) for each in (loose, tight)]
    assert isinstance(graphs[1].metrics, MetricsWithin)
    plans = [geocolor.plan(graph, 0.6, solver="greedy", time_limit=5) for graph in graphs]
    assert classes(plans[0]) == classes(plans[1])
    smaller = [geocolor.apply(network, plans[0], each) for each in (loose, tight)]
    x = batches[0][0]
    torch.testing.assert_close(smaller[0](x), smaller[1](x))
    tight.save(tmp_path / "saved.safetensors")
    again = load_curvature(tmp_path / "saved.safetensors")
    assert all(torch.equal(again.G[name], tight.G[name]) for name in tight.G)


def classes(plan: geocolor.Plan) -> list[tuple[object, ...]]:
    return [(cls.layers, cls.kind, cls.rank) for cls in plan.classes]


def test_metrics_within_a_bound_are_those_without(network: nn.Module, batches: Batches, tmp_path: Path) -> None:
    curvature = geocolor.measure(network, batches)
    curvature.save(tmp_path / "c.safetensors")
    one = max(map(size_of, curvature.layers))
    bounded = geocolor.price(network, load_curvature(tmp_path / "c.safetensors", one)).metrics
    expected = geocolor.price(network, curvature).metrics
    assert list(bounded) == list(expected)
    assert isinstance(bounded, MetricsWithin)
    for _ in range(2):
        for name, metric in expected.items():
            assert torch.equal(bounded[name].spectrum, metric.spectrum)
            assert torch.equal(bounded[name].gram, metric.gram)
            assert len(bounded._kept) == 1


def test_a_run_stopped_between_windows_goes_on(network: nn.Module, batches: Batches, tmp_path: Path) -> None:
    expected, passes = geocolor.measure(network, batches), []
    handle = network.get_submodule("head").register_forward_pre_hook(lambda *_: passes.append(1))
    small(network, batches, tmp_path)
    whole = len(passes)
    for file in tmp_path.iterdir():
        file.unlink()
    network.get_submodule("head").register_forward_pre_hook(lambda *_: 1 / 0 if len(passes) == whole + 6 else None)
    with pytest.raises(ZeroDivisionError):
        small(network, batches, tmp_path)
    before, _ = len(passes), passes.append(1)
    found = small(network, batches, tmp_path)
    handle.remove()
    assert len(passes) - before < whole
    assert all(torch.equal(found.G[name], expected.G[name]) for name in expected.G)


def test_layers_that_never_run_are_said_once_and_left_out(batches: Batches, tmp_path: Path) -> None:
    class Idle(Network):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.ModuleList([nn.Linear(8, 8)])

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = small(Idle(), batches * 8, tmp_path)
    assert len(found.layers) == 7
    assert sum("'idle.0' (never ran)" in str(each.message) for each in said) == 1
    assert len({str(each.message) for each in said}) == len(said)


def test_too_little_memory_is_said_with_what_would_do(network: nn.Module, batches: Batches) -> None:
    with pytest.raises(ValueError, match=r"1.00 MB is not enough.*allow"):
        measure_within(1_000_000, network, batches, find_layers(network))
    with pytest.raises(ValueError, match="not an amount of memory"):
        parse_size("much")


def test_files_are_written_tensor_by_tensor_and_read_so(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6).reshape(2, 3),
        "b/ü": torch.randn(4, dtype=torch.float64),
        "c": torch.tensor(True),
        "d": torch.zeros(0, 3, dtype=torch.bfloat16),
    }
    write_tensors(tmp_path / "t", "test", tensors, {"said": "é"})
    found, metadata = read_tensors(tmp_path / "t", "test")
    assert metadata == {"said": "é"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)
    raw = bytearray((tmp_path / "t").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "t").write_bytes(raw)
    file = TensorFile(tmp_path / "t", "test")
    assert torch.equal(file["a"], tensors["a"])
    with pytest.raises(ValueError, match="damaged"):
        file["c"]
    with pytest.raises(ValueError, match="is not"):
        write_tensors(tmp_path / "u", "test", {"a": torch.zeros(3).double()}, {}, {"a": (4,)})
    assert not (tmp_path / "u").exists()


PROGRAM = """
import torch
from torch import nn

def network(width=256, layers=40):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)), nn.Linear(width, 4))

def shallow():
    return network(layers=6)

def narrow():
    return network(16, 4)

def data(width=256):
    drawn = torch.Generator().manual_seed(1)
    return [(torch.randn(64, width, generator=drawn), torch.randint(4, (64,), generator=drawn)) for _ in range(2)]

def narrow_data():
    return data(16)
"""

RISES = """
import sys
from geocolor.memory import peak, forget_peak
from geocolor_cli.run import _load_quietly, run
_load_quietly()

def rise(what, model, *options, allowed=None):
    forget_peak()
    before = peak()
    bound = [] if allowed is None else ["--memory", str(before + allowed)]
    run([what, "wide_program:" + model, *options, *bound])
    print("PEAK", peak() - before)
"""

MEASURE = (
    RISES
    + """
options = ["--data", "wide_program:data", "--no-pairs", "--rounds", "0"]
rise("measure", "network", *options, "-o", "warm")
rise("measure", "network", *options, "-o", "bounded", allowed=int(sys.argv[1]))
rise("measure", "network", *options, "-o", "free")
"""
)

PLAN = (
    RISES
    + """
options, allowed = ["--keep", "0.6", "--rounds", "0"], int(sys.argv[1])
plan = ["--data", "wide_program:data", *options]
rise("plan", "narrow", "--data", "wide_program:narrow_data", *options, "--solver", "greedy", "-o", "warm")
rise("apply", "narrow", "warm/plan.json", "-o", "warm applied")
rise("plan", "shallow", *plan, "--solver", "greedy", "-o", "bounded", allowed=allowed)
rise("plan", "network", *plan, "--solver", "private", "-o", "deep", allowed=10 * allowed)
rise("apply", "network", "deep/plan.json", "-o", "deep applied")
"""
)


def rises(script: str, allowed: int, folder: Path) -> list[int]:
    """Bytes that each command of a process held at its peak, beyond those that the process held before."""
    (folder / "wide_program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-c", script, str(allowed)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(part.split()[0]) for part in done.stdout.split("PEAK")[1:]]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read and forgotten as Linux does")
def test_memory_bounds_what_the_process_holds(tmp_path: Path) -> None:
    """41 layers of 256 × 256 have statistics of 43 MB, which one pass holds at once, beside 11 MB of weights."""
    allowed = 32_000_000
    _, bounded, free = rises(MEASURE, allowed, tmp_path)
    assert bounded <= 1.2 * allowed, (free, bounded)
    assert free > allowed + 12_000_000, (free, bounded)
    one, other = (load_curvature(tmp_path / name / "curvature.safetensors") for name in ("free", "bounded"))
    assert all(torch.equal(one.A[name], other.A[name]) and torch.equal(one.G[name], other.G[name]) for name in one.A)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read and forgotten as Linux does")
def test_memory_bounds_a_plan_and_applying_holds_one_class_beside_the_model(tmp_path: Path) -> None:
    """Statistics of 41 layers are 43 MB, and weights 11 MB, of which a class at a time becomes factors."""
    allowed = 40_000_000
    _, _, planned, _, applied = rises(PLAN, allowed, tmp_path)
    assert planned <= 1.1 * allowed
    assert (tmp_path / "deep" / "curvature.safetensors").stat().st_size > 42_000_000
    assert applied <= 50_000_000


def test_plan_and_compress_take_a_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wide_program.py").write_text(PROGRAM.replace("256", "16").replace("40", "4"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wide_program", raising=False)
    bound = ["--memory", f"{(peak() + 500_000_000) // 10**6}MB", "--time-limit", "2", "--solver", "greedy"]
    program = ["wide_program:network", "--data", "wide_program:data", "--keep", "0.6"]
    run(["plan", *program, *bound, "-o", "within"])
    run(["plan", *program, *bound[2:], "-o", "without"])
    plans = [geocolor.read_plan(tmp_path / name / "plan.json") for name in ("within", "without")]
    assert classes(plans[0]) == classes(plans[1])
    run(["compress", *program, *bound, "-o", "smaller"])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "smaller",
        "wide_program.py",
        "within",
        "without",
    ]


def test_a_transformers_model_within_a_memory_is_the_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 on disk, so that weights are converted, and changed where the dense model's are mapped."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=32
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "dense")
    (tmp_path / "wide_program.py").write_text(
        "import torch\ndef data():\n    return list(torch.randint(32, (6, 8, 12)).unbind())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wide_program", raising=False)
    bound = ["--memory", f"{(peak() + 500_000_000) // 10**6}MB"]
    program = ["compress", "./dense", "--data", "wide_program:data", "--keep", "0.5", "--rounds", "0"]
    for name, options in (("within", bound), ("without", [])):
        torch.manual_seed(0)
        run([*program, "--solver", "greedy", *options, "-o", name])
    assert same_results(tmp_path / "within", tmp_path / "without")
    assert torch.equal(*(load(None, tmp_path / name)(torch.arange(8)[None]).logits for name in ("within", "without")))


def same_results(one: Path, other: Path) -> bool:
    """The same weights, bit for bit, and the same figures of them."""
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, other)]
    figures = [(each["loss"], each["loss_dense"], each["divergence"], each["damage_predicted"]) for each in reports]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    return figures[0] == figures[1] and weights[0] == weights[1]
