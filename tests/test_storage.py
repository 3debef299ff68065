"""Files: what is saved loads bit-equal with its sharing, and nothing already on disk is ever lost."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from geocolor.backend import factored_layers, install
from geocolor.manifest import MANIFEST_FILE, write_manifest
from geocolor.parameters import parameter_count
from geocolor.storage import export_dense, load, save
from tests.handmade import factors_of, plan_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(10, 16)
        self.down = nn.Linear(16, 10, bias=False)
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(torch.tanh(self.up(x)))


class Network(nn.Module):
    """A plain module with convolutions, a buffer, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 10)
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(10, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.conv(x[:, None]).mean(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


CLASSES: list[tuple[Any, ...]] = [
    ("in", ["blocks.0.up", "blocks.1.up"], 4),
    ("both", ["blocks.0.down", "blocks.1.down"], 5, 6),
    ("out", ["conv"], 3),
]
TOKENS = torch.arange(14).reshape(2, 7) % 7


def compressed(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = Network().to(dtype).eval()
    plan = plan_of(model, CLASSES)
    return install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(compressed(), tmp_path / "model")
    return tmp_path / "model"


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def nothing_beside(folder: Path) -> bool:
    return [entry.name for entry in folder.parent.iterdir()] == [folder.name]


# --- loading again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["model", "factory"])
def test_a_saved_model_loads_bit_equal_with_its_sharing(tmp_path: Path, dtype: torch.dtype, how: str) -> None:
    model = compressed(dtype)
    save(model, tmp_path / "model")
    dense = Network()
    loaded = load(dense if how == "model" else Network, tmp_path / "model").eval()
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert loaded(TOKENS).dtype == dtype
    assert loaded.blocks[0].up.right is loaded.blocks[1].up.right
    assert loaded.blocks[0].down.left is loaded.blocks[1].down.left
    assert loaded.head.weight is loaded.embedding.weight
    assert parameter_count(loaded) == parameter_count(model)
    assert loaded.geocolor_plan == model.geocolor_plan
    assert not factored_layers(dense), "the model passed is left alone"


def test_each_shared_tensor_is_written_once(saved: Path) -> None:
    model = compressed()
    stored = (saved / "model.safetensors").stat().st_size
    needed = 4 * (parameter_count(model) + sum(buffer.numel() for buffer in model.buffers()))
    assert needed <= stored < needed + 4096


def test_a_loaded_model_saves_and_loads_again(saved: Path) -> None:
    loaded = load(Network, saved)
    save(loaded, saved.parent / "again")
    again = load(Network, saved.parent / "again").eval()
    assert torch.equal(again(TOKENS), compressed()(TOKENS))
    first, second = (
        safetensors.torch.load_file(folder / "model.safetensors") for folder in (saved, saved.parent / "again")
    )
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (saved / "geocolor.json").read_text() == (saved.parent / "again" / "geocolor.json").read_text()


def test_no_file_is_a_pickle(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == [
        "geocolor.json",
        "geocolor_manifest.json",
        "model.safetensors",
    ]
    assert json.loads((saved / "geocolor.json").read_text())["format_version"] == 1


def test_a_dense_export_needs_no_geocolor_and_says_that_the_saving_is_gone(tmp_path: Path) -> None:
    model = compressed()
    message = export_dense(model, tmp_path / "dense")
    assert "saving is gone" in message
    assert f"{parameter_count(model):,}" in message
    assert f"{parameter_count(Network()):,}" in message
    script = (
        "import sys, torch, safetensors.torch; sys.path.insert(0, sys.argv[2]); sys.modules['geocolor'] = None\n"
        "from plain_network import Network\n"
        "model = Network(); safetensors.torch.load_model(model, sys.argv[1] + '/model.safetensors')\n"
        "torch.save(model.eval()(torch.arange(14).reshape(2, 7) % 7), sys.argv[1] + '/out.pt')\n"
    )
    source = Path(__file__).read_text()
    classes = source[source.index("class Block") : source.index("CLASSES:")]
    (tmp_path / "plain_network.py").write_text(f"import torch\nfrom torch import Tensor, nn\n{classes}")
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "dense"), str(tmp_path)], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "dense" / "out.pt"), model(TOKENS), rtol=1e-4, atol=1e-5)
    assert factored_layers(model)
    with pytest.raises(ValueError, match="dense already"):
        export_dense(Network(), tmp_path / "other")


# --- what does not fit


def test_a_model_without_a_plan_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Network holds no geocolor plan: apply one first"):
        save(Network(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_changed_after_its_plan_is_not_saved(tmp_path: Path) -> None:
    model = compressed()
    model.blocks[0].up = nn.Linear(10, 16)
    with pytest.raises(ValueError, match=r"'blocks.0.up' is of kind 'dense' in the model and 'in' in the plan"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Wider(Network):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].up = nn.Linear(10, 17)


class Deeper(Network):
    def __init__(self) -> None:
        super().__init__()
        self.blocks.append(Block())


class OtherVocabulary(Network):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 10)
        self.head = nn.Linear(10, 8, bias=False)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (Wider, r"layer 'blocks.1.up' is a Linear of 17 × 10 in this model, not a linear of 16 × 10"),
        (Deeper, r"does not fit the model passed .*blocks.2.*; pass the model that was compressed"),
        (OtherVocabulary, r"does not fit the model passed .*embedding.*; pass the model that was compressed"),
        (lambda: nn.Linear(3, 3), r"the model has no layer 'blocks.0.up'"),
        (None, "pass the dense model, or a function that builds it"),
    ],
)
def test_loading_into_another_model_is_refused(saved: Path, factory: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(factory, saved)


def test_a_model_on_the_meta_device_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="on the meta device: build it on a real one"), torch.device("meta"):
        load(Network, saved)


# --- damaged files


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def edit(file: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def sign_again(folder: Path) -> None:
    """As whoever changes a file on purpose can: the checksums fit, so what is checked after them is reached."""
    if folder.exists():
        (folder / MANIFEST_FILE).unlink()
        write_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: truncate(folder / "model.safetensors", 1000), "truncated or damaged. Copy the file or save"),
        (lambda folder: truncate(folder / "model.safetensors", 4), "truncated or damaged. Copy the file or save"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "truncated or damaged. Copy the file or"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 500), "truncated or damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "are missing: copy the whole folder"),
        (
            lambda folder: truncate(folder / "geocolor.json", 300),
            "is not whole JSON .* truncated. Save the model again",
        ),
        (lambda folder: (folder / "geocolor.json").write_bytes(b"\x80\x81"), "is not whole JSON"),
        (lambda folder: (folder / "geocolor.json").write_text("[]"), "format None is not one this geocolor reads"),
        (lambda folder: (folder / "geocolor.json").unlink(), "holds no compressed model"),
        (
            lambda folder: edit(folder / "geocolor.json", lambda d: d.update(format_version=99)),
            "format 99 is not one this geocolor reads .*load it with the geocolor that saved it",
        ),
        (
            lambda folder: edit(folder / "geocolor.json", lambda d: d["plan"]["classes"][0].update(rank=3)),
            "geocolor.json: .*edited by hand",
        ),
        (lambda folder: edit(folder / "geocolor.json", lambda d: d.pop("plan")), "geocolor.json: plan format None"),
        (
            lambda folder: edit(
                folder / "geocolor.json", lambda d: d["plan"]["classes"][0].update(rank=3, parameters=3 * 42)
            ),
            "does not fit the model passed",
        ),
        (shutil.rmtree, "there is no folder .*: pass the folder that geocolor.save wrote"),
    ],
)
def test_damaged_files_are_told_with_what_where_and_what_to_try(
    saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved)
    sign_again(saved)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(Network, saved)
    assert str(saved) in str(caught.value), "it says where"


def test_a_changed_file_is_named_and_the_manifest_too(saved: Path) -> None:
    for name in ("model.safetensors", "geocolor.json", MANIFEST_FILE):
        file = saved / name
        whole = file.read_bytes()
        at = whole.index(b'"bytes": ') + 9 if name == MANIFEST_FILE else len(whole) // 2
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(file))):
            load(Network, saved)
        file.write_bytes(whole)
    load(Network, saved)


def test_whoever_changes_a_file_on_purpose_is_told_how_to_go_on(saved: Path) -> None:
    edit(saved / "geocolor.json", lambda document: document["plan"].update(seconds=1.0))
    with pytest.raises(ValueError, match=r"geocolor.json is not as it was saved .* delete geocolor_manifest.json"):
        load(Network, saved)
    (saved / MANIFEST_FILE).unlink()
    load(Network, saved)


def test_a_manifest_that_points_out_of_its_folder_is_refused(saved: Path) -> None:
    from geocolor.manifest import Entry, Manifest, _own_digest

    files = {"../secret": Entry(bytes=1, sha256="0" * 64)}
    (saved / MANIFEST_FILE).write_text(Manifest(files=files, sha256=_own_digest(files)).model_dump_json())
    with pytest.raises(ValueError, match=r"names '../secret', which lies outside of the folder"):
        load(Network, saved)


def test_a_plan_whose_convolution_slides_otherwise_is_for_another_model(saved: Path) -> None:
    edit(saved / "geocolor.json", lambda d: d["plan"]["layers"]["conv"].update(geometry=[3, 3, 2, 2, 1, 1, 1, 1]))
    sign_again(saved)
    with pytest.raises(ValueError, match="'conv' slides otherwise in this model"):
        load(Network, saved)


# --- nothing on disk is lost


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for write in (save, export_dense):
        with pytest.raises(FileExistsError, match="already holds something: choose another output folder"):
            write(compressed(), folder)
    with pytest.raises(FileExistsError, match="is a file, not a folder"):
        save(compressed(), folder / "thesis.txt")
    assert content(folder) == {"thesis.txt": b"years of work"}
    assert nothing_beside(folder)


def test_an_empty_folder_is_filled_and_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    save(compressed(), folder)
    (folder / "stale.txt").write_text("of the run before")
    save(compressed(), folder, overwrite=True)
    assert sorted(content(folder)) == ["geocolor.json", "geocolor_manifest.json", "model.safetensors"]
    assert nothing_beside(folder)


def test_a_model_can_replace_the_files_it_was_loaded_from(saved: Path) -> None:
    model = load(Network, saved).eval()
    expected = model(TOKENS)
    save(model, saved, overwrite=True)
    assert torch.equal(load(Network, saved).eval()(TOKENS), expected)
    assert nothing_beside(saved)


def test_a_companion_that_fails_leaves_the_old_folder(saved: Path) -> None:
    class Failing:
        def save_pretrained(self, save_directory: Path, /) -> None:
            (save_directory / "half").write_text("ha")
            raise RuntimeError("interrupted")

    before = content(saved)
    with pytest.raises(RuntimeError, match="interrupted"):
        save(compressed(), saved, overwrite=True, tokenizer=Failing())
    assert content(saved) == before
    assert nothing_beside(saved)


FORKS = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def imports_done_once() -> None:
    """Every child is a process of its own, forked from one that has imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path or os.getcwd() for path in sys.path))
        FORKS.set_forkserver_preload([__name__])
        forkserver.ensure_running()


def save_in_child(target: Path, spoil: Callable[[], object], told: Connection) -> None:
    model = compressed()
    spoil()
    try:
        save(model, target, overwrite=True)
    except OSError as error:
        told.send(f"{type(error).__name__}: {error}")


def run_child(target: Path, spoil: Callable[[], object]) -> tuple[int | None, str]:
    """Save in a process of its own after `spoil` has run there. Returns its exit code and what it was told."""
    here, there = FORKS.Pipe()
    child = FORKS.Process(target=save_in_child, args=(target, spoil, there))
    child.start()
    child.join()
    return child.exitcode, here.recv() if here.poll() else ""


def signal_while_writing(number: int) -> None:
    def half(model: nn.Module, file: str) -> None:
        Path(file).write_bytes(b"half")
        os.kill(os.getpid(), number)

    safetensors.torch.save_model = half  # type: ignore[assignment]


def allow_small_files_only() -> None:
    """What a full disk looks like: no file may grow past 2 KB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


def become_nobody() -> None:
    """Root may write anywhere, so a test of refusal must not be root."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_a_killed_run_leaves_the_old_folder(saved: Path) -> None:
    before = content(saved)
    assert run_child(saved, partial(signal_while_writing, signal.SIGKILL)) == (-signal.SIGKILL, "")
    assert content(saved) == before
    assert all(entry == saved or entry.name.startswith(".model.") for entry in saved.parent.iterdir())


def test_ctrl_c_leaves_the_old_folder_and_nothing_else(saved: Path) -> None:
    before = content(saved)
    assert run_child(saved, partial(signal_while_writing, signal.SIGINT)) == (1, "")
    assert content(saved) == before
    assert nothing_beside(saved)


def test_a_full_disk_is_told_and_leaves_the_old_folder(saved: Path) -> None:
    before = content(saved)
    code, told = run_child(saved, allow_small_files_only)
    assert code == 0
    assert f"could not write the model to {saved}" in told
    assert "What was there before is untouched" in told
    assert content(saved) == before
    assert nothing_beside(saved)


def test_a_read_only_folder_is_told_before_anything_is_written() -> None:
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        place.chmod(0o555)
        code, told = run_child(place / "model", become_nobody)
        assert code == 0
        assert told.startswith(
            f"PermissionError: cannot write {place / 'model'}: nothing can be made in {place}; choose another place"
        )
        assert not list(place.iterdir())
    finally:
        shutil.rmtree(place)
