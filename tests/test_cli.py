"""The command line: as a process where the process matters, within this one where only the answer does."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from geocolor import commands, compression, processes
from geocolor.curvature import load_curvature
from geocolor.embedded import MODEL
from geocolor.graph import KINDS
from geocolor.plans import read_plan
from geocolor.refinement import RefineSettings
from geocolor.report import write_report
from geocolor.settings import Settings
from geocolor_cli import options
from geocolor_cli.interrupts import SENTENCE
from geocolor_cli.run import run

TEXT = "def f(x, y):\n    return [x for _ in range(y)]\n\n" * 40
SMALL = ["--sequence", "32", "--time-limit", "2"]
FIGURES = {
    "kept",
    "parameters_dense",
    "parameters",
    "loss_dense",
    "loss",
    "damage_predicted",
    "damage_measured",
    "seconds",
    "bases",
    "solver",
    "lower_bound",
    "gap",
}
OF_A_PLAN = FIGURES - {"loss_dense", "loss", "damage_measured"}

PROGRAM = '''
import os, signal, torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

def wider():
    return nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))

def trained_further():
    model = network()
    with torch.no_grad():
        model[2].weight.mul_(1.1)
    return model

def broken():
    model = network()
    with torch.no_grad():
        model[2].weight[3, 4] = float("nan")
    return model

def nothing_to_share():
    return nn.Sequential(nn.LayerNorm(8))

def depthwise():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Unflatten(1, (8, 1, 1)))
    return nn.Sequential(net, nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(), nn.Linear(8, 3))

class Interrupted(nn.Linear):
    """Ctrl-C at its third pass."""

    passes = 0

    def __call__(self, x):
        self.passes += 1
        if self.passes == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__call__(x)

def interrupted():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), Interrupted(8, 3))

def data():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 8, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(6)
    ]

def narrow_data():
    return [(inputs[:, :5], labels) for inputs, labels in data()]

def narrow_at_the_end():
    return data() + narrow_data()

def other_labels():
    return data() + [(inputs, labels + 3) for inputs, labels in data()]

def breaking():
    yield data()[0]
    raise RuntimeError("the disk is gone")

def huge():
    return nn.Linear(2**24, 2**26)

def much_data():
    import numpy
    return numpy.empty(2**58)

class Hungry(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.empty(2**48).sum()

def hungry():
    return nn.Sequential(nn.Linear(8, 8), Hungry(8, 3))

def without_weights():
    with torch.device("meta"):
        return network()
'''


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random language model (`llama`), a text, a text of one line, and a program."""
    place = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(place / "llama")
    for file in MODEL.glob("tokenizer*"):
        shutil.copy(file, place / "llama")
    (place / "text.txt").write_text(TEXT)
    (place / "short.txt").write_text("def f")
    (place / "program_of_the_cli_tests.py").write_text(PROGRAM)
    return place


def geocolor_process(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "geocolor_cli", *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


Refuse = Callable[..., str]


@pytest.fixture
def refuse(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that has to be refused; gives the sentence."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refused(*arguments: str, status: int = 2) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(arguments)
        written = capsys.readouterr()
        assert stopped.value.code == status, written.err
        assert "Traceback" not in written.err
        return written.err

    return refused


@pytest.fixture(scope="session")
def planned(place: Path) -> Path:
    """A plan of the plain network, made once."""
    here = Path.cwd()
    os.chdir(place)
    try:
        run([*plain("plan"), "--keep", "0.6", "-o", "planned"])
    finally:
        os.chdir(here)
    return place / "planned"


def plain(command: str, model: str = "network", data: str = "data") -> list[str]:
    program = "program_of_the_cli_tests"
    return [command, f"{program}:{model}", "--data", f"{program}:{data}", "--time-limit", "2"]


def strict_json(path: Path) -> Any:
    """Decoded, with NaN and Infinity, which JSON has not, refused."""

    def refuse_constant(name: str) -> None:
        raise AssertionError(f"{path} holds {name}, which is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse_constant)


def test_compress_does_the_whole_job(place: Path) -> None:
    done = geocolor_process(
        place, "compress", "llama", "--data", "text.txt", "--keep", "0.7", "-o", "smaller", "--json", "r.json", *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert "Loading weights" not in done.stderr
    assert "Writing model" not in done.stderr
    report = strict_json(place / "r.json")
    assert report.keys() >= FIGURES
    assert 0.6 < report["kept"] <= 0.7
    assert report["kept"] == pytest.approx(report["parameters"] / report["parameters_dense"])
    assert report["damage_measured"] == pytest.approx(report["loss"] - report["loss_dense"])
    assert report["bits_per_byte_dense"] == pytest.approx(report["loss_dense"] / math.log(2), rel=1e-6)
    assert {"measure", "price", "plan", "apply", "save", "evaluate"} <= report["seconds"].keys()
    assert report["bytes_on_disk_dense"] == sum(file.stat().st_size for file in (place / "llama").glob("*.safetensors"))
    assert strict_json(place / "smaller" / "report.json") == report
    assert strict_json(place / "smaller" / "config.json")["dtype"] == "float16"
    assert "damage predicted" in done.stdout
    assert "smaller/plan.json" in done.stdout
    assert {"config.json", "plan.json", "plan.png", "tokenizer.json"} <= {
        file.name for file in (place / "smaller").iterdir()
    }


def test_plan_apply_evaluate_show_give_the_same_figures(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    data = ["--data", "text.txt", "--sequence", "32"]
    chain = {
        "planned.json": ["plan", "llama", *data, "--keep", "0.8", "--time-limit", "2", "-o", "chain/plan"],
        "applied.json": ["apply", "llama", "chain/plan/plan.json", "-o", "chain/model"],
        "evaluated.json": ["evaluate", "chain/model", *data, "--reference", "llama"],
        "shown.json": ["show", "chain/plan/plan.json", "-o", "chain/coloring.svg"],
    }
    for name, command in chain.items():
        if command[0] in ("apply", "show"):
            run([*command, "--json", name])
            continue
        done = geocolor_process(place, *command, "--json", name)
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stderr
        assert "it/s]" not in done.stderr
    made, applied, evaluated, shown = (strict_json(place / name) for name in chain)
    assert all(report.keys() >= OF_A_PLAN for report in (made, applied, shown))
    assert evaluated.keys() >= FIGURES
    for key in OF_A_PLAN - {"seconds"}:
        assert made[key] == applied[key] == shown[key] == evaluated[key], key
    removed = evaluated["model_parameters_dense"] - evaluated["model_parameters"]
    assert removed == made["parameters_dense"] - made["parameters"] > 0
    assert evaluated["damage_measured"] == pytest.approx(evaluated["loss"] - evaluated["loss_dense"])
    assert "<svg" in (place / "chain" / "coloring.svg").read_text()


def test_compare_races_solvers_over_bases(place: Path) -> None:
    command = ["compare", "llama", "--data", "text.txt", *SMALL, "--bases", "3", "5", "--solvers", "greedy", "random"]
    done = geocolor_process(place, *command, "--figure", "race.png", "--json", "race.json")
    assert done.returncode == 0, done.stderr
    report = strict_json(place / "race.json")
    assert [(row["K"], row["solver"]) for row in report["rows"]] == [
        (3, "greedy"),
        (3, "random"),
        (5, "greedy"),
        (5, "random"),
    ]
    assert all(row["lower_bound"] is None or row["cost"] is None or row["lower_bound"] <= row["cost"] + 1e-9
               for row in report["rows"])  # fmt: skip
    assert (place / "race.png").stat().st_size > 0


def test_evaluating_and_racing_are_foreseen(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    small = ["--data", "text.txt", "--sequence", "32", "--dry-run"]
    run(["evaluate", "llama", *small, "--json", "evaluate.json"])
    run(["compare", "llama", *small, "--bases", "3", "5", "--time-limit", "2", "--json", "compare.json"])
    assert list(strict_json(place / "evaluate.json")["seconds"]) == ["evaluate"]
    expected = strict_json(place / "compare.json")
    assert list(expected["seconds"]) == ["measure", "calibrate", "price", "race"]
    assert expected["search_seconds_at_most"] % 4 == 0 < expected["search_seconds_at_most"]


def test_ctrl_c_leaves_nothing_behind_and_exits_130(place: Path) -> None:
    before = {file.name for file in place.iterdir()}
    done = geocolor_process(place, *plain("compress", "interrupted"), "--keep", "0.5", "-o", "never")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped" in done.stderr
    assert {file.name for file in place.iterdir()} - before <= {"__pycache__"}


WATCHING = """
import os, signal, sys

watched = sys.argv[1]

class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == watched:
            {act}

sys.meta_path.insert(0, Watcher())
from geocolor_cli import main
sys.argv = ["geocolor", *sys.argv[2:]]
main()
"""


def watching(act: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program with something done when a module is first looked for."""
    script = WATCHING.format(act=act)
    command = [sys.executable, "-c", script, module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("module", ["tyro", "torch", "transformers", "scipy", "geocolor.commands"])
def test_ctrl_c_while_modules_load_is_a_sentence_too(module: str) -> None:
    done = watching("os.kill(os.getpid(), signal.SIGINT)", module, "show", "no-such-plan.json")
    assert done.returncode == 130
    assert done.stderr == SENTENCE + "\n"


def test_help_loads_no_torch() -> None:
    for module in ("torch", "transformers", "numpy"):
        done = watching("raise AssertionError(name)", module, "compress", "--help")
        assert done.returncode == 0, done.stderr
        assert "--keep" in done.stdout


def test_without_its_extra_the_program_says_what_to_install() -> None:
    for module in ("tyro", "torch"):
        done = watching("raise ModuleNotFoundError(name)", module, "show", "no-such-plan.json")
        assert done.returncode == 2
        assert "pip install 'geocolor[models]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_options_name_the_kinds_and_forms_that_there_are() -> None:
    assert set(get_args(options.Kind)) == set(KINDS) == set(options.Budget().kinds)
    assert get_args(options.Form) == get_args(commands.Form)
    assert options.settings(options.Budget(), options.Source()) == Settings()
    assert RefineSettings(**vars(options.Training())) == RefineSettings()


def test_ctrl_c_while_writing_keeps_what_was_there(
    place: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = place / "kept" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")

    def interrupted(_model: nn.Module, folder: Path, **_: Any) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(compression, "save", interrupted)
    before = {file.name for file in place.iterdir()}
    refuse(*plain("compress"), "--keep", "0.5", "-o", "kept", "--overwrite", status=130)
    assert mine.read_text() == "mine"
    assert [file.name for file in mine.parent.iterdir()] == ["mine.txt"]
    assert {file.name for file in place.iterdir()} == before | {"kept.partial"}  # which the same command goes on from
    shutil.rmtree(place / "kept.partial")


@pytest.mark.parametrize(
    ("step", "command"),
    [
        ("compress_into", [*plain("compress"), "--keep", "0.6", "-o", "mine", "--overwrite"]),
        ("measure_into", [*plain("measure")[:-2], "-o", "mine", "--overwrite"]),
        ("Pipeline", [*plain("plan"), "--keep", "0.6", "-o", "mine", "--overwrite"]),
        ("load_curvature", ["apply", "program_of_the_cli_tests:network", "plan.json", "-o", "mine", "--overwrite"]),
        ("_model", ["refine", "smaller", "llama", "--data", "text.txt", "-o", "mine", "--overwrite"]),
        ("evaluate", [*plain("evaluate")[:-2], "--json", "mine/mine.txt"]),
        ("race", [*plain("compare"), "--json", "mine/mine.txt"]),
        ("compress", ["sweep", *plain("compress")[1:], "--keep", "0.6", "-o", "mine"]),
        ("run_demo", ["demo", "-o", "of-demo"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ctrl_c_in_any_command_is_a_sentence_and_keeps_what_was_there(
    planned: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, step: str, command: list[str]
) -> None:
    for name in ("program_of_the_cli_tests.py", "planned/plan.json", "planned/curvature.safetensors"):
        shutil.copy(planned.parent / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")

    def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(commands, step, interrupted)
    before = {file.name for file in tmp_path.iterdir()}
    said = refuse(*command, status=130)
    assert said.endswith(SENTENCE + "\n")
    assert mine.read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} - before <= {"__pycache__"}


def test_mistake_as_a_process_is_one_sentence_and_status_2(place: Path) -> None:
    done = geocolor_process(place, *plain("compress", "broken"), "--keep", "0.5", "-o", "never")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the model's 2.weight[3, 4] is nan, and 1 of its 64 weights")
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not (place / "never").exists()


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        (["--keep", "0"], "above 0 and at most 1; got 0"),
        (["--keep", "1.5"], "above 0 and at most 1; got 1.5"),
        (["--keep", "-1"], "above 0 and at most 1; got -1"),
        (["--keep", "nan"], "above 0 and at most 1; got nan"),
        (["--keep", "0.01"], "cannot be reached"),
        (["--bases", "0"], "--bases is 0; it must be at least 1"),
        (["--bases", "4"], "more than the 3 layers in scope"),
        ([], "Pass --keep"),
        (["--keep", "0.5", "--solver", "simplex"], "there is no solver 'simplex'; the solvers are auto,"),
        (["--keep", "0.5", "--solver", "benders"], "takes a MedoidProblem, not a GroupProblem; solvers that are: auto"),
        (["--bases", "2", "--solver", "subset_dp"], "takes a GroupProblem, not a MedoidProblem"),
        (["--keep", "0.5", "--rounds", "-1"], "--rounds is -1; it must be at least 0"),
        (["--keep", "0.5", "--draws", "0"], "--draws is 0; it must be at least 1"),
        (["--keep", "0.5", "--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--keep", "0.5", "--estimate", "guess"], "there are kronecker,"),
        (["--keep", "0.5", "--trust-region", "0"], "--trust-region is 0; it must be above 0"),
        (["--keep", "0.5", "--time-limit", "0"], "--time-limit is 0 seconds"),
        (["--keep", "0.5", "--damping", "nan"], "--damping is nan; it must be at least 0"),
        (["--keep", "0.5", "--shrinkage", "2"], "--shrinkage is 2; it must lie between 0 (none) and 1"),
        (["--keep", "0.5", "--samples", "0"], "--samples is 0"),
        (["--keep", "0.5", "--refine", "-4"], "--refine is -4; it must be at least 0"),
        (["--keep", "0.5", "--include", "encoder.*"], "include pattern 'encoder.*' matches no layer"),
    ],
)
def test_impossible_budgets_and_settings(place: Path, refuse: Refuse, budget: list[str], sentence: str) -> None:
    assert sentence in refuse(*plain("compress"), *budget, "-o", "never")
    assert not (place / "never").exists()


@pytest.mark.parametrize(
    ("model", "data", "sentence"),
    [
        ("network", "none_such", "has no function 'none_such'; it has network"),
        ("network", "narrow_data", "narrow_data: the model does not run on a batch of shape (8, 5) and float32 (Runt"),
        ("network", "narrow_at_the_end", "the model does not run on a batch of shape (8, 5)"),
        ("network", "other_labels", "the model tells 3 classes apart, 0 to 2"),
        ("network", "breaking", "RuntimeError: the disk is gone"),
        ("without_weights", "data", "0.weight has a shape and no values"),
        ("nothing_to_share", "data", "no layer that can share a basis"),
        ("data", "data", "returned a list, not a torch.nn.Module"),
    ],
)
def test_models_and_data_that_do_not_fit(refuse: Refuse, model: str, data: str, sentence: str) -> None:
    assert sentence in refuse(*plain("plan", model, data), "--keep", "0.5", "-o", "never")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["llama", "--data", "short.txt"], "short.txt has 5 tokens, one sequence needs 32"),
        (["llama", "--data", "missing.txt"], "data file missing.txt does not exist"),
        (["./missing", "--data", "text.txt"], "model folder ./missing does not exist"),
        (["./text.txt", "--data", "text.txt"], "model folder ./text.txt is a file"),
        (["missing:model", "--data", "text.txt"], "no module 'missing' here"),
        (["llama", "--data", "text.txt", "--sequence", "65"], "the model takes at most 64 tokens"),
    ],
)
def test_missing_and_too_short_input(refuse: Refuse, arguments: list[str], sentence: str) -> None:
    assert sentence in refuse("plan", "--keep", "0.5", "-o", "never", "--sequence", "32", *arguments)


@pytest.mark.parametrize("command", ["compress", "plan", "measure"])
def test_what_is_left_out_is_said(
    place: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    program = "program_of_the_cli_tests"
    options = ["--data", f"{program}:data", "--dry-run", *([] if command == "measure" else ["--keep", "0.5"])]
    run([command, f"{program}:depthwise", *options, "--out", "depthwise"])
    assert "left out: 1 × Conv2d (72 parameters), depthwise convolution" in capsys.readouterr().out
    run([command, f"{program}:network", *options, "--out", "depthwise"])
    assert "left out" not in capsys.readouterr().out


def test_occupied_output_is_refused_and_nothing_is_lost(place: Path, refuse: Refuse) -> None:
    mine = place / "occupied" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    for command in ("compress", "plan"):
        said = refuse(*plain(command), "--keep", "0.5", "-o", "occupied")
        assert "occupied already holds something" in said
        assert "--overwrite" in said
        assert "text.txt is a file" in refuse(*plain(command), "--keep", "0.5", "-o", "text.txt")
    assert "already holds something" in refuse("demo", "-o", "occupied")
    assert "'.' has no name of its own" in refuse(*plain("plan"), "--keep", "0.5", "-o", ".")
    for held in ("llama", "../" + place.name):
        said = refuse("compress", "llama", "--data", "text.txt", "--keep", "0.5", "-o", held, "--overwrite")
        assert f"{held} would replace llama, which is read" in said
    assert (place / "llama" / "config.json").exists()
    assert mine.read_text() == "mine"
    assert len(list(mine.parent.iterdir())) == 1
    assert (place / "text.txt").read_text() == TEXT


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that even root cannot write in")
def test_read_only_places_are_refused_before_the_work(
    planned: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_model", lambda *_: pytest.fail("the model was loaded first"))
    budget = ["--keep", "0.5"]
    for arguments in (
        [*plain("compress"), *budget, "-o", "/proc/smaller"],
        [*plain("plan"), *budget, "-o", "/proc/below/plan"],
        [*plain("plan"), *budget, "-o", "never", "--json", "/proc/report.json"],
        [*plain("plan"), *budget, "-o", "never", "--graph", "/proc/graph.json"],
        [*plain("compare"), "--figure", "/proc/race.png"],
        ["show", str(planned / "plan.json"), "-o", "/proc/plan.png"],
        ["apply", "llama", str(planned / "plan.json"), "-o", "/proc/smaller"],
        ["demo", "-o", "/proc/demo"],
    ):
        said = refuse(*arguments)
        assert "cannot write /proc/" in said
        assert "choose another place" in said


@pytest.mark.parametrize(("keep", "said"), [("0.6", True), ("0.7", False)])
def test_a_plan_says_that_its_coefficients_are_not_those_of_compress(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep: str, said: bool
) -> None:
    monkeypatch.chdir(place)
    run([*plain("plan"), "--keep", keep, "-o", f"says-{keep}"])
    assert ("`geocolor apply` leaves it out" in " ".join(capsys.readouterr().err.split())) == said


def test_several_processes_have_no_dry_run(place: Path, monkeypatch: pytest.MonkeyPatch, refuse: Refuse) -> None:
    monkeypatch.setattr(processes, "world", lambda: 2)
    assert "without torchrun" in refuse(*plain("measure")[:4], "--dry-run", "-o", "never")


def test_plan_for_another_model_is_refused(planned: Path, refuse: Refuse) -> None:
    program = "program_of_the_cli_tests"
    assert "another model" in refuse("apply", f"{program}:wider", str(planned / "plan.json"), "-o", "never")
    assert "no layer '0'" in refuse("apply", "llama", str(planned / "plan.json"), "-o", "never")


@pytest.mark.parametrize(
    ("model", "data", "amount"),
    [("huge", "data", "4500 TB"), ("network", "much_data", "2.00 EiB"), ("hungry", "data", "1130 TB")],
)
def test_memory_that_ran_out_is_a_sentence(refuse: Refuse, model: str, data: str, amount: str) -> None:
    program = "program_of_the_cli_tests"
    ran_out = f"error: memory ran out ({amount} more were asked for): try"
    said = refuse(*plain("plan", model, data), "--keep", "0.5", "-o", "never")
    assert f"{ran_out} --memory, a smaller --batch-size or a smaller --sequence" in said
    said = refuse("evaluate", f"{program}:{model}", "--data", f"{program}:{data}")
    assert f"{ran_out} a smaller --batch-size or a smaller --sequence" in said


def test_defects_are_not_hidden(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(commands, "_plan", lambda _: [][0])
    with pytest.raises(IndexError):
        run(["show", "plan.json"])


def test_damaged_plans_are_refused(planned: Path, tmp_path: Path, refuse: Refuse) -> None:
    text = (planned / "plan.json").read_text()
    document = json.loads(text)
    factored = next(entry for entry in document["classes"] if entry["rank"])
    factored["rank"] += 1
    damaged = {
        "truncated.json": (text[: len(text) // 2], "is not whole JSON"),
        "edited.json": (json.dumps(document), "its ranks make"),
        "newer.json": (json.dumps(document | {"format_version": 2}), "plan format 2 is not one"),
        "list.json": ("[]", "is not one this geocolor reads"),
    }
    for name, (content, sentence) in damaged.items():
        (tmp_path / name).write_text(content)
        for command in (["show"], ["apply", "program_of_the_cli_tests:network", "-o", "never"]):
            assert sentence in refuse(*command, str(tmp_path / name)), name
        assert (tmp_path / name).read_text() == content
    assert "no plan at" in refuse("show", str(tmp_path / "missing.json"))
    assert "name the plan.json in it" in refuse("show", str(planned))


def test_a_damaged_plan_beside_a_model_is_told_before_the_work(
    tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_model", lambda *_: pytest.fail("the model was loaded first"))
    (tmp_path / "plan.json").write_text("{")
    assert f"{tmp_path / 'plan.json'} is not whole JSON" in refuse("evaluate", str(tmp_path), "--data", "text.txt")


def test_apply_says_what_is_wrong_with_its_model(planned: Path, tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "config.json").write_text("{}")
    plan = [str(planned / "plan.json"), "-o", "never"]
    assert "no model 'nowhere/llama': neither a folder here nor" in refuse("apply", "nowhere/llama", *plan)
    assert f"the weights {tmp_path / 'model.safetensors'} are missing" in refuse("apply", str(tmp_path), *plan)
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert f"{tmp_path}: its config.json is of no model" in refuse("apply", str(tmp_path), *plan)


def test_names_are_printed_as_they_are(
    planned: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = ["--data", "text.txt", "--keep", "0.5", "-o", "never"]
    assert "error: nomod:x: no module 'nomod' here" in refuse("plan", "nomod:x", *never)
    for odd in ("./:x:", "./[bold]a", "./a[/b]", "./\\[bold]"):
        assert f"error: model folder {odd} does not exist" in refuse("plan", odd, *never)
    (tmp_path / "[bold]:x:").mkdir()
    monkeypatch.chdir(tmp_path)
    run(["show", str(planned / "plan.json"), "-o", "[bold]:x:/a.png"])
    assert "figure  [bold]:x:/a.png" in capsys.readouterr().out


def test_plan_without_its_curvature_says_how_to_get_it(planned: Path, tmp_path: Path, refuse: Refuse) -> None:
    shutil.copy(planned / "plan.json", tmp_path)
    said = refuse("apply", "program_of_the_cli_tests:network", str(tmp_path / "plan.json"), "-o", "never")
    assert "--curvature" in said
    assert "geocolor plan" in said


def test_plain_module_is_compressed_and_evaluated_against_its_program(
    place: Path, planned: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    program = "program_of_the_cli_tests"
    run(["apply", f"{program}:network", str(planned / "plan.json"), "-o", "plain", "--curvature", str(planned)])
    data = ["--data", f"{program}:data"]
    assert "--reference module:function" in refuse("evaluate", "plain", *data)
    run(["evaluate", "plain", *data, "--reference", f"{program}:network", "--json", "plain.json"])
    report = strict_json(place / "plain.json")
    assert report.keys() >= FIGURES
    assert "accuracy" in report
    assert report["model_parameters"] < report["model_parameters_dense"]


def test_refine_brings_a_compressed_model_nearer_the_dense_one(
    place: Path,
    planned: Path,
    refuse: Refuse,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    program = "program_of_the_cli_tests"
    run(["apply", f"{program}:network", str(planned / "plan.json"), "-o", "coarse"])
    command = ["refine", "coarse", f"{program}:network", "--data", f"{program}:data", "-o", "fine"]
    run([*command, "--steps", "60", "--learning-rate", "1e-3", "--holdout", "0", "--json", "fine.json"])
    report = strict_json(place / "fine.json")
    assert report.keys() >= FIGURES | {"steps", "best_step", "divergence_before", "divergence_after"}
    assert report["divergence_after"] < report["divergence_before"]
    assert report == strict_json(place / "fine" / "report.json")
    run(["evaluate", "fine", "--data", f"{program}:data", "--reference", f"{program}:network", "--json", "seen.json"])
    assert strict_json(place / "seen.json")["model_parameters"] == report["model_parameters"]
    assert not list(place.glob("*.safetensors"))
    assert "--overwrite" in refuse(*command)
    assert "steps must be 0 or more" in refuse(*command[:-1], "never", "--steps", "-1")
    assert "geocolor compress" in refuse("refine", "llama", "llama", "--data", "text.txt", "-o", "never", *SMALL[:2])
    other = refuse("refine", "coarse", f"{program}:trained_further", "--data", f"{program}:data", "-o", "never")
    assert f"{program}:trained_further is not the model that coarse was made from: the plan was made for other" in other
    for batches, on in (("16", "held-out calibration data"), ("8", "the calibration data it was trained on")):
        run([*command, "--overwrite", "--steps", "1", "--samples", batches])
        assert f"divergence on {on}: " in capsys.readouterr().out


def test_statistics_of_another_model_are_refused(
    place: Path, planned: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    program = "program_of_the_cli_tests"
    run(["measure", *plain("measure")[1:4], "-o", "of the network", "--rounds", "0", "--no-pairs"])
    mine = load_curvature(planned / "curvature.safetensors")
    assert mine.fingerprint == read_plan(planned / "plan.json").fingerprint.sha256
    assert load_curvature(place / "of the network" / "curvature.safetensors").fingerprint == mine.fingerprint
    for command in ("compress", "plan"):
        for known in (planned, place / "of the network"):
            said = refuse(
                *plain(command, "trained_further"),
                "--keep",
                "0.6",
                "-o",
                "never",
                "--curvature",
                str(known),
                "--dry-run",
            )
            assert "was measured on another model: one of the same layers with other weights" in said
    theirs = tmp_path / "theirs.safetensors"
    replace(mine, fingerprint="of another model").save(theirs)
    apply = ["apply", f"{program}:network", str(planned / "plan.json"), "-o", "never", "--dry-run", "--curvature"]
    assert f"{theirs} was measured on another model" in refuse(*apply, str(theirs))
    replace(mine, fingerprint=None).save(theirs)  # as files were written before
    run([*apply, str(theirs)])
    assert "no curvature file at nowhere: `geocolor measure` and" in refuse(*apply, "nowhere")


def test_a_reference_that_the_model_was_not_made_from_is_told(
    place: Path, planned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    program = "program_of_the_cli_tests"
    run(["apply", f"{program}:network", str(planned / "plan.json"), "-o", "referred"])
    command = ["evaluate", "referred", "--data", f"{program}:data", "--dry-run", "--reference"]
    capsys.readouterr()
    run([*command, f"{program}:network"])
    assert "warning" not in capsys.readouterr().err
    run([*command, f"{program}:trained_further"])
    said = f"warning: {program}:trained_further is not the model that referred was made from, and figures beside it"
    assert said in " ".join(capsys.readouterr().err.split())


def test_what_is_not_finite_is_null_in_a_report(tmp_path: Path) -> None:
    report = {"gap": math.inf, "rows": [{"cost": -math.inf, "seconds": {"plan": math.nan}, "K": 2}], "loss": 0.5}
    write_report(report, tmp_path / "report.json")
    assert strict_json(tmp_path / "report.json") == {
        "gap": None,
        "rows": [{"cost": None, "seconds": {"plan": None}, "K": 2}],
        "loss": 0.5,
    }


def test_our_own_warnings_are_still_said(place: Path, refuse: Refuse) -> None:
    said = refuse(*plain("plan"), "--keep", "0.01", "--samples", "2", "-o", "never")
    assert "warning:" in said
    assert "samples" in said


@pytest.mark.parametrize(
    "command", ["demo", "compress", "measure", "plan", "apply", "refine", "evaluate", "compare", "show"]
)
def test_every_command_has_help_and_a_json_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run([command, "--help"])
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out
