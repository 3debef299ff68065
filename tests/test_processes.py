"""Several processes measure as one: the same numbers, one writer, no hang when one is lost, and the work goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import geocolor
from geocolor import journal, processes
from geocolor.curvature import Curvature, load_curvature
from geocolor.graph import CostGraph
from geocolor.journal import kept
from geocolor.measured import measure_into, own_place
from geocolor.pipeline import Pipeline
from geocolor.prices import read_prices
from geocolor.settings import Settings
from geocolor_cli.run import run
from tests.conftest import Network

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
    pytest.mark.filterwarnings("ignore:calibrated on", "ignore:.*rank ≤", "ignore:.*fork"),
]

PROGRAM = """
import sys, torch
sys.path.insert(0, {repository!r})
from tests.conftest import Network

def network():
    torch.manual_seed(1)
    return Network().eval().double()

def data():
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 6, 8, generator=generator).double(), torch.randint(5, (16,), generator=generator))
        for _ in range(7)
    ]
"""
MEASURE = ["--data", "program_of_the_process_tests:data", "--sequence", "6"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    repository = str(Path(geocolor.__file__).parents[1])
    (tmp_path / "program_of_the_process_tests.py").write_text(PROGRAM.format(repository=repository))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journal, "SHARE", 0)
    return tmp_path


def model() -> Network:
    torch.manual_seed(1)
    return Network().eval().double()


def data(count: int = 7) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 6, 8, generator=generator).double(), torch.randint(5, (16,), generator=generator))
        for _ in range(count)
    ]


def forked(work: Callable[[int], object], folder: Path, count: int = 2) -> list[int]:
    """Exit statuses of `count` processes that meet over gloo and each do `work(rank)`; negative: killed by a signal."""
    children = []
    meet = f"file://{folder}/meeting-{len(list(folder.glob('meeting-*')))}"
    for rank in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(300)
                dist.init_process_group(
                    "gloo", init_method=meet, rank=rank, world_size=count, timeout=timedelta(minutes=4)
                )
                work(rank)
                dist.barrier()
                dist.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def measured(
    out: Path, network: nn.Module, batches: list[tuple[Tensor, Tensor]], settings: Settings, pairs: bool = True
) -> CostGraph:
    with kept(own_place(out), {}, {}, say=print) as pieces:
        return measure_into(out, Pipeline(network, batches, settings, journal=pieces), pairs=pairs)


def assert_same(one: Curvature, other: Curvature, tolerance: float = 1e-12) -> None:
    assert one.layers == other.layers
    assert dict(one.inputs) == dict(other.inputs)
    assert (one.units, one.samples) == (other.units, other.samples)
    for ours, theirs in ((one.A, other.A), (one.G, other.G)):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance)


def test_processes_do_all_of_measure_as_one_does(place: Path) -> None:
    def work(rank: int) -> None:
        measured(place / "two", model(), data(), Settings(keep=0.6, kinds=("in", "both")))

    assert forked(work, place) == [0, 0]
    graph = measured(place / "one", model(), data(), Settings(keep=0.6, kinds=("in", "both")))
    together = load_curvature(place / "two" / "curvature.safetensors")
    assert together.rounds == graph.curvature.rounds == 3
    assert_same(together, graph.curvature, tolerance=1e-8)  # slopes are differences of losses
    prices, alone = (read_prices(place / name / "prices.safetensors") for name in ("two", "one"))
    assert prices.hulls.keys() == alone.hulls.keys() == graph.known.keys()
    assert len(prices.hulls) > 10
    for group, hulls in prices.hulls.items():
        for power, hull in hulls.items():
            torch.testing.assert_close(hull.damage, alone.hulls[group][power].damage, rtol=1e-6, atol=1e-12)
    assert sorted(path.name for path in place.iterdir() if "meeting" not in path.name) == [
        "one",
        "program_of_the_process_tests.py",
        "two",
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_sums_are_those_of_one_process(place: Path, count: int) -> None:
    """Also with more processes than batches."""

    def work(rank: int) -> None:
        geocolor.measure(model(), data()).save(place / f"{rank}.safetensors")

    assert forked(work, place, count) == [0] * count
    alone = geocolor.measure(model(), data())
    for rank in range(count):
        assert_same(load_curvature(place / f"{rank}.safetensors"), alone)


@pytest.mark.parametrize("batches", [6, 7])
def test_a_model_sharded_by_fsdp2_is_measured_as_the_whole_one(place: Path, batches: int) -> None:
    def work(rank: int) -> None:
        sharded, mesh = model(), init_device_mesh("cpu", (2,))
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        assert processes.is_sharded(sharded)
        measured(place / "sharded", sharded, data(batches), Settings(keep=0.6, rounds=0))
        with pytest.raises(ValueError, match="--rounds 0"):
            measured(place / "never", sharded, data(batches), Settings(keep=0.6))

    assert forked(work, place) == [0, 0]
    graph = measured(place / "whole", model(), data(batches), Settings(keep=0.6, rounds=0))
    assert_same(load_curvature(place / "sharded" / "curvature.safetensors"), graph.curvature)
    assert read_prices(place / "sharded" / "prices.safetensors").fit(graph)


def test_when_one_process_dies_the_other_ends_with_a_sentence_and_the_command_goes_on(place: Path) -> None:
    counted = place / "passes"

    class Counted(Network):
        deadly = False

        def forward(self, x: Tensor) -> Tensor:
            with counted.open("a") as file:
                file.write("x")
            if self.deadly and processes.rank() == 1 and next(place.glob("out.1-of-2.partial/measured-*"), None):
                os._exit(9)
            return super().forward(x)

    def counting(deadly: bool) -> Counted:
        torch.manual_seed(1)
        network = Counted().eval().double()
        network.deadly = deadly
        return network

    def going_on(rank: int) -> None:
        measured(place / "out", counting(False), data(), Settings(keep=0.6, rounds=0))

    def dying(rank: int) -> None:
        with pytest.raises(ConnectionError, match="start the same command again"):
            measured(place / "out", counting(True), data(), Settings(keep=0.6, rounds=0))
        os._exit(2)

    assert forked(dying, place) == [2, 9]
    assert not (place / "out").exists()
    counted.unlink()
    assert forked(going_on, place) == [0, 0]
    assert len(counted.read_text()) == 2  # the batch in which the process died, and the one after it
    assert_same(load_curvature(place / "out" / "curvature.safetensors"), geocolor.measure(model(), data()))
    assert not list(place.glob("*.partial"))


def test_two_nodes_measure_as_one_process_does(place: Path) -> None:
    """Two torchrun agents on localhost, with one process each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test"]
    command += ["--monitor-interval", "0.1", "-m", "geocolor", "measure", "program_of_the_process_tests:network"]
    command += [*MEASURE, "-o", "nodes", "--rounds", "0", "--json", "said.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, env=environment, cwd=place, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n=====\n".join(said)
    assert sum("measured 6 layers" in text for text in said) == 1
    assert json.loads((place / "said.json").read_text())["processes"] == 2
    assert_same(load_curvature(place / "nodes" / "curvature.safetensors"), geocolor.measure(model(), data()))


def test_plan_takes_what_was_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "program_of_the_process_tests:network"
    run(["measure", program, *MEASURE, "-o", "measured", "--keep", "0.6"])
    small = ["--keep", "0.6", "--time-limit", "2", "--solver", "greedy"]
    run(["plan", program, *MEASURE, *small, "-o", "at once"])
    monkeypatch.setattr("geocolor.pipeline.measure", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr("geocolor.pipeline.calibrate", lambda *_, **__: pytest.fail("looked again"))
    run(["plan", program, *MEASURE, *small, "-o", "two steps", "--curvature", "measured"])
    plans = [geocolor.read_plan(place / name / "plan.json") for name in ("at once", "two steps")]
    assert plans[0].classes == plans[1].classes
    run(["compress", program, *MEASURE, *small, "-o", "smaller", "--curvature", "measured/curvature.safetensors"])
    assert geocolor.read_plan(place / "smaller" / "plan.json").classes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--draws", "2"], "--draws belongs to `geocolor measure`"),
        (["--preset", "svd"], "measure again with --estimate identity"),
        (["--preset", "two-sided"], "measure again with --rounds 0"),
        (["--preset", "geo-sharing"], "has no use for --curvature"),
    ],
)
def test_what_does_not_fit_the_measured_curvature_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    geocolor.calibrate(model(), geocolor.measure(model(), data()), data(), rounds=1).save(place / "c.safetensors")
    plan = ["plan", "program_of_the_process_tests:network", *MEASURE, "--keep", "0.6", "-o", "never"]
    with pytest.raises(SystemExit):
        run([*plan, *options, "--curvature", "c.safetensors"])
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_other_commands_refuse_to_run_in_several_processes(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        run(["plan", "program_of_the_process_tests:network", *MEASURE, "--keep", "0.6", "-o", "never"])
    assert "only `geocolor measure` runs in several processes" in " ".join(capsys.readouterr().err.split())
