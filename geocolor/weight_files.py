"""What is looked at in a folder before transformers builds a model from it: safetensors, and layers they can fill.

transformers reads pickles where it finds no safetensors, or where an index or an adapter names one, and builds as many
layers as a config tells it to, whatever the weights hold.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError

from geocolor.json_files import read_json
from geocolor.manifest import check_manifest
from geocolor.memory import ran_out

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SUFFIX = ".safetensors"
PICKLES = "pytorch_model*.bin"
REMEDY = "Save or download it again"

DEPTH = re.compile("layers?$|depth|blocks?$")
MOST_UNSEEN_LAYERS = 1000
"""Layers that a config may name although the weights hold fewer tensors: some settings count layers there are not."""


def check_folder(folder: Path) -> Any:
    """The decoded config of a transformers folder, once nothing in the folder speaks against building its model.

    Raises `FileNotFoundError` or `ValueError` with a sentence that names the file: one that is missing, is not as it
    was saved or cannot be read, weights that are pickles, a config of far more layers than there are weights.
    """
    config = read_json(folder / CONFIG_FILE, REMEDY)
    check_manifest(folder, lambda name: name.endswith(".json"))  # weights are long: they are checked once, by loading
    if isinstance(config, dict):
        files = weight_files(folder, config)
        for file in files:
            check_weights(file)
        tensors = sum(map(_tensors_in, files))
        check_depth(config, tensors, f"the weights hold only {tensors} tensors", folder / CONFIG_FILE)
    return config


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The safetensors files that transformers would read the weights from, whether they are there or not.

    Raises `ValueError` where it would read a pickle. Empty where the pieces of a training run are read all together.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter (adapter_config.json): merge it into its model (peft's merge_and_unload) and "
            "pass the folder that this is saved in"
        )
    name = config.get("transformers_weights")
    if not isinstance(name, str):
        name = INDEX_FILE if (folder / INDEX_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file() else WEIGHTS_FILE
    if name.endswith(f"{SUFFIX}.index.json"):
        return _shards(folder, name)
    if not name.endswith(SUFFIX):
        raise ValueError(no_safetensors(folder, name))
    if not (folder / name).is_file():
        if any(folder.glob(f"shard-*{SUFFIX}")):
            return []
        for pickle in folder.glob(PICKLES):
            raise ValueError(no_safetensors(folder, pickle.name))
    return [folder / name]


def no_safetensors(source: str | Path, pickle: str = "") -> str:
    """What is said of weights in another format."""
    found = f", only {pickle}" if pickle else ""
    return (
        f"{source} has no weights in safetensors files{found}. Pickles are not read: reading one can run any program. "
        "If you trust it, load it with transformers' own from_pretrained and write it with save_pretrained"
    )


def check_weights(file: Path) -> None:
    """Raise where a safetensors file is missing, or its header is not whole."""
    if not file.exists():
        raise FileNotFoundError(f"the weights {file} are missing: copy the whole folder, or save the model again")
    try:
        with safetensors.safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        if ran_out(error):
            raise
        raise ValueError(
            f"the weights {file} cannot be read ({error}): truncated or damaged? Copy the file or save the model again"
        ) from error


def check_depth(config: Any, most: int, because: str, file: Path) -> None:
    """Raise `ValueError` where a config announces so many layers that building them alone would take for ever."""
    holders: list[tuple[str, Any]] = [("", config)]
    for name, holder in holders:
        entries = holder.items() if isinstance(holder, dict) else ((name, entry) for entry in holder)
        for key, value in entries:
            if isinstance(value, dict | list):
                holders.append((key, value))
            elif isinstance(value, int) and DEPTH.search(str(key)) and value > max(MOST_UNSEEN_LAYERS, most):
                raise ValueError(f"{file}: {key!r} is {value!r:.30}, but {because}; damaged?")


def _shards(folder: Path, name: str) -> list[Path]:
    """The files that the index of that name tells; each lies in the folder itself."""
    file = folder / name
    index = read_json(file, REMEDY)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{file} maps no tensors to files: damaged? Save the model again")
    for name in names.values():
        if Path(name).name != name or not name.endswith(SUFFIX):
            raise ValueError(f"{file} names {name!r:.200}, which is no safetensors file of this folder")
    return [folder / name for name in sorted(set(names.values()))]


def _tensors_in(file: Path) -> int:
    with safetensors.safe_open(file, framework="pt") as opened:
        return len(opened.keys())
