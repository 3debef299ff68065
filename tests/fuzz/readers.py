"""The readers of files from strangers, each with a good file: what fuzzers change, and what must come of it."""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from geocolor import storage
from geocolor.backend import install
from geocolor.curvature import Sums, accumulate, finish, load_curvature, load_sums
from geocolor.curvature.lanczos import Axes, LanczosCurvature, load_axes
from geocolor.graph import CostGraph, price
from geocolor.layers import find_layers
from geocolor.losses import SquaredError
from geocolor.manifest import MANIFEST_FILE, write_manifest
from geocolor.plans import _checksum, read_plan, write_plan
from geocolor.prices import read_prices, write_prices
from geocolor.tensor_files import _bytes, _digest, _whole
from tests.handmade import factors_of, plan_of

Json = Any


@dataclass(frozen=True)
class Reader:
    """`write` makes a good file (or folder) at a path; `read` reads it into something that `==` compares.

    `files` are the names of the files in a folder, empty where the path is the file itself. `sign` makes checksums fit
    again after a change of the JSON inside, as a stranger would who means harm.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    document: Callable[[Path], Json]
    sign: Callable[[Path, Json], object]
    files: tuple[str, ...] = ()


# --- the good files


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks[2](torch.tanh(self.blocks[0](x) + self.blocks[1](x)))
        return y + self.conv(x[:, None, None, :].expand(-1, 1, 2, 4)).mean((1, 2))


def plain_model() -> nn.Module:
    torch.manual_seed(0)
    model = Small().eval()
    plan = plan_of(model, [("in", ["blocks.0", "blocks.1"], 2), ("out", ["conv"], 1)])
    return install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan)


def transformers_model() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    plan = plan_of(model, [("in", ["transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc"], 2)])
    return install(model, plan.shareable_layers(), factors_of(model, plan), plan=plan)


def sums() -> Sums:
    torch.manual_seed(0)
    model = Small()
    batches = [(torch.randn(4, 4), torch.zeros(4, 3))]
    return accumulate(model, batches, SquaredError(), find_layers(model, include=["blocks.0", "blocks.1"]))


def sketched_sums() -> Sums:
    torch.manual_seed(0)
    model, ranks = Small(), {"A/blocks.0": 2, "G/blocks.1": 1}
    layers = find_layers(model, include=["blocks.0", "blocks.1"])
    return accumulate(model, [(torch.randn(4, 4), torch.zeros(4, 3))], SquaredError(), layers, ranks=ranks)


def graph() -> CostGraph:
    torch.manual_seed(0)
    found = price(Small(), finish(sums()), aggregate=(1.0, 2.0))
    found.price_pairs()
    return found


def axes() -> LanczosCurvature:
    layers = find_layers(Small(), include=["blocks.0", "blocks.1"])
    found = {
        layer.name: Axes(layer, "minor", torch.ones(2, layer.m, layer.n), torch.ones(2).double(), 3.0, 0.1, 7)
        for layer in layers
    }
    return LanczosCurvature(layers, found, "minor", "gauss-newton", "squared error", "loss", 4, 4, 1e-3, 0)


# --- what is compared


def values_of(thing: object) -> object:
    """Nested tuples of plain values; tensors as their bytes."""
    if isinstance(thing, Tensor):
        return str(thing.dtype), tuple(thing.shape), thing.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(thing, nn.Module):
        return values_of(thing.state_dict()), thing.geocolor_plan.model_dump_json()  # type: ignore[operator,union-attr]
    if isinstance(thing, Mapping):
        return tuple((key, values_of(value)) for key, value in thing.items())
    return thing


def _curvature(path: Path) -> object:
    curvature = load_curvature(path)
    return values_of({key: values_of(value) for key, value in vars(curvature).items()})


def _sums(path: Path) -> object:
    found = load_sums(path)
    with contextlib.suppress(ValueError), _quietly():  # too little may be in it; anything else is a defect
        finish(found)
    return values_of({key: values_of(value) for key, value in vars(found).items()})


def _prices(path: Path) -> object:
    found = read_prices(path)
    hulls = {group: tuple(values_of(vars(hull)) for hull in each.values()) for group, each in found.hulls.items()}
    return repr((found.model, found.curvature, found.layers, found.kinds, found.aggregates, hulls))


def _axes(path: Path) -> object:
    found = load_axes(path)
    kept = {name: values_of(vars(each)) for name, each in found.axes.items()}
    return values_of(vars(found) | {"axes": tuple(kept.items())})


def _plain(path: Path) -> object:
    return values_of(storage.load(Small, path))


def _transformers(path: Path) -> object:
    with _quietly():
        return values_of(storage.load(None, path))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    import warnings

    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


# --- how checksums are made to fit


def _json(path: Path) -> Json:
    return json.loads(path.read_text())


def _sign_plan(path: Path, document: Json) -> None:
    if isinstance(document, dict):
        bare = {key: value for key, value in document.items() if key != "checksum"}
        document = {**bare, "checksum": _checksum(bare)}
    path.write_text(json.dumps(document))


def _header(path: Path) -> Json:
    raw = path.read_bytes()
    return json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["geocolor"])


def _sign_tensors(path: Path, document: Json) -> None:
    tensors, text = load(path.read_bytes()), json.dumps(document)
    found = {name: _digest(name, tuple(each.shape), each.dtype, _bytes(each)) for name, each in tensors.items()}
    digests = json.dumps(found)
    header = {"geocolor": text, "digests": digests, "sha256": _whole(text, digests)}
    path.write_bytes(save(tensors, header))


def _sign_folder(name: str) -> Callable[[Path, Json], None]:
    def sign(path: Path, document: Json) -> None:
        (path / name).write_text(json.dumps(document))
        (path / MANIFEST_FILE).unlink()
        write_manifest(path)

    return sign


READERS = [
    Reader("plan", lambda path: write_plan(plain_model().geocolor_plan, path), read_plan, _json, _sign_plan),  # type: ignore[arg-type]
    Reader("curvature", lambda path: finish(sums()).save(path), _curvature, _header, _sign_tensors),
    Reader("sums", lambda path: sums().save(path), _sums, _header, _sign_tensors),
    Reader("sketched curvature", lambda path: finish(sketched_sums()).save(path), _curvature, _header, _sign_tensors),
    Reader("sketched sums", lambda path: sketched_sums().save(path), _sums, _header, _sign_tensors),
    Reader("prices", lambda path: write_prices(graph(), "0" * 64, path), _prices, _header, _sign_tensors),
    Reader("axes", lambda path: axes().save(path), _axes, _header, _sign_tensors),
    Reader(
        "plain model",
        lambda path: storage.save(plain_model(), path),
        _plain,
        lambda path: _json(path / "geocolor.json"),
        _sign_folder("geocolor.json"),
        ("geocolor.json", "model.safetensors", MANIFEST_FILE),
    ),
    Reader(
        "transformers model",
        lambda path: storage.save(transformers_model(), path),
        _transformers,
        lambda path: _json(path / "config.json"),
        _sign_folder("config.json"),
        ("config.json", "model.safetensors", MANIFEST_FILE, "generation_config.json"),
    ),
]


def good(reader: Reader, path: Path) -> tuple[dict[str, bytes], object]:
    """Write a good file or folder: the bytes of its files by name ("" for the path itself), and what is read of it."""
    with _quietly():
        reader.write(path)
    names = reader.files or ("",)
    return {name: (path / name if name else path).read_bytes() for name in names}, reader.read(path)


def sentence(reader: Reader, path: Path) -> str | None:
    """None where `path` is read, else the sentence of the refusal; every other exception goes through."""
    try:
        reader.read(path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None
