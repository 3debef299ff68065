"""Plans, statistics, prices and models, as geocolor writes them."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from geocolor import data, storage, weight_files
from geocolor.backend import install
from geocolor.curvature import Sums, accumulate, finish, load_curvature, load_sums
from geocolor.curvature.lanczos import Axes, LanczosCurvature, load_axes
from geocolor.graph import CostGraph, price
from geocolor.layers import find_layers
from geocolor.losses import SquaredError
from geocolor.manifest import MANIFEST_FILE, write_manifest
from geocolor.plans import _checksum, read_plan, write_plan
from geocolor.prices import read_prices, write_prices
from geocolor.tensor_files import DTYPES, _digest, _whole, data_of
from tests.fuzz.reader import Json, Reader, quietly, values_of
from tests.handmade import factors_of, plan_of

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


def dense_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


def transformers_model() -> nn.Module:
    model = dense_model()
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


def _curvature(path: Path) -> object:
    curvature = load_curvature(path)
    return values_of({key: values_of(value) for key, value in vars(curvature).items()})


def _sums(path: Path) -> object:
    found = load_sums(path)
    with contextlib.suppress(ValueError), quietly():  # too little may be in it; anything else is a defect
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


def _on_disk(path: Path) -> object:
    curvature = load_curvature(path, 1 << 20)
    factors = [
        {layer.name: values_of(side[layer.name]) for layer in curvature.layers} for side in (curvature.A, curvature.G)
    ]
    return values_of({key: value for key, value in vars(curvature).items() if key not in "AG"}), values_of(factors)


def _plain(path: Path) -> object:
    return values_of(storage.load(Small, path))


def _transformers(path: Path) -> object:
    with quietly():
        return values_of(storage.load(None, path))


# --- how checksums are made to fit


def _json(path: Path) -> Json:
    return json.loads(path.read_text())


def _sign_plan(path: Path, document: Json) -> None:
    if isinstance(document, dict):
        bare = {key: value for key, value in document.items() if key != "checksum"}
        document = {**bare, "checksum": _checksum(bare)}
    path.write_text(json.dumps(document))


def _tensors(path: Path) -> Json:
    raw = path.read_bytes()
    text = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["geocolor"]
    held = {
        name: {
            "dtype": str(each.dtype).removeprefix("torch."),
            "shape": list(each.shape),
            "values": each.view(-1).tolist(),
        }
        for name, each in load(raw).items()
    }
    return {"header": json.loads(text), "tensors": held}


def _sign_tensors(path: Path, document: Json) -> None:
    if not isinstance(document, dict):
        document = {"header": document}
    told = document.get("tensors")
    tensors = load(path.read_bytes()) if not isinstance(told, dict) else {k: _tensor(v) for k, v in told.items()}
    text = json.dumps(document.get("header"))
    found = {name: _digest(name, tuple(each.shape), each.dtype, data_of(each)) for name, each in tensors.items()}
    digests = json.dumps(found)
    header = {"geocolor": text, "digests": digests, "sha256": _whole(text, digests)}
    path.write_bytes(save(tensors, header))


def _tensor(told: Json) -> Tensor:
    """What `told` says, as far as there is such a tensor."""
    try:
        dtype = getattr(torch, told["dtype"])
        made = torch.tensor(told["values"], dtype=dtype if dtype in DTYPES else torch.float64)
        return made.reshape([int(size) for size in told["shape"]])
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError, AttributeError):
        return torch.zeros(1)


def _sign_folder(name: str) -> Callable[[Path, Json], None]:
    def sign(path: Path, document: Json) -> None:
        (path / name).write_text(json.dumps(document))
        (path / MANIFEST_FILE).unlink()
        write_manifest(path)

    return sign


def _sign_manifest(path: Path, document: Json) -> None:
    files = document.get("files") if isinstance(document, dict) else None
    if isinstance(files, dict) and all(isinstance(entry, dict) for entry in files.values()):
        entries = {name: [entry.get("bytes"), entry.get("sha256")] for name, entry in files.items()}
        text = json.dumps(entries, sort_keys=True)
        document = {**document, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (path / MANIFEST_FILE).write_text(json.dumps(document))


def _sign_config(path: Path, document: Json) -> None:
    """Sizes of a dense model are what transformers makes of them; other than of depth, those that only take long are
    left out."""
    if isinstance(document, dict):
        document = {
            key: value
            for key, value in document.items()
            if not isinstance(value, int) or abs(value) < 1000 or weight_files.DEPTH.search(key)
        }
    (path / "config.json").write_text(json.dumps(document))


MODEL_FILES = [
    Reader("plan", lambda path: write_plan(plain_model().geocolor_plan, path), read_plan, _json, _sign_plan),  # type: ignore[arg-type]
    Reader("curvature", lambda path: finish(sums()).save(path), _curvature, _tensors, _sign_tensors),
    Reader("curvature on disk", lambda path: finish(sums()).save(path), _on_disk, _tensors, _sign_tensors),
    Reader("sums", lambda path: sums().save(path), _sums, _tensors, _sign_tensors),
    Reader("sketched curvature", lambda path: finish(sketched_sums()).save(path), _curvature, _tensors, _sign_tensors),
    Reader("sketched sums", lambda path: sketched_sums().save(path), _sums, _tensors, _sign_tensors),
    Reader("prices", lambda path: write_prices(graph(), "0" * 64, path), _prices, _tensors, _sign_tensors),
    Reader("axes", lambda path: axes().save(path), _axes, _tensors, _sign_tensors),
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
    Reader(
        "manifest",
        lambda path: storage.save(plain_model(), path),
        _plain,
        lambda path: _json(path / MANIFEST_FILE),
        _sign_manifest,
        (MANIFEST_FILE,),
    ),
    Reader(
        "sharded model",
        lambda path: storage.save(transformers_model(), path, max_shard_size="1KB"),
        _transformers,
        lambda path: _json(path / weight_files.INDEX_FILE),
        _sign_folder(weight_files.INDEX_FILE),
        (weight_files.INDEX_FILE, "model-00001-of-00002.safetensors", MANIFEST_FILE),
    ),
    Reader(
        "dense model",
        lambda path: dense_model().save_pretrained(path),
        lambda path: values_of(data.load_model(str(path))[0].state_dict()),
        lambda path: _json(path / "config.json"),
        _sign_config,
        ("config.json", "model.safetensors", "generation_config.json"),
        checked=False,
        named=False,
    ),
]
