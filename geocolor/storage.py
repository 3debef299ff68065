"""Compressed models on disk: a folder that is whole or not there, and loads bit-equal with its sharing (DESIGN §8)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from geocolor.atomic import refuse_occupied, replace_directory
from geocolor.backend import attach_plan, factored_layers, merge_to_dense, plan_of, skeleton
from geocolor.json_files import read_json
from geocolor.manifest import check_manifest, write_manifest
from geocolor.mapped import copied, made_in_memory, put_in_files
from geocolor.memory import ran_out
from geocolor.parameters import parameter_count
from geocolor.plans import FORMAT_VERSION, parse_plan
from geocolor.transformers_format import QUANT_METHOD, GeocolorConfig
from geocolor.weight_files import CONFIG_FILE, WEIGHTS_FILE, check_folder, check_weights

PLAN_FILE = "geocolor.json"


class SavesItself(Protocol):
    """A companion of a model, such as a tokenizer."""

    def save_pretrained(self, save_directory: Path, /) -> object: ...


def save(
    model: nn.Module,
    path: str | Path,
    overwrite: bool = False,
    tokenizer: SavesItself | None = None,
    max_shard_size: str = "50GB",
) -> None:
    """Write a model that holds a plan into the folder `path`.

    A transformers model is written in transformers' own format: with `import geocolor` its Auto classes load it,
    without they fail. Any other module becomes `model.safetensors` and `geocolor.json`, for `geocolor.load`. The folder
    appears as a whole or not at all; one that already holds something is refused (`FileExistsError`) unless
    `overwrite`, and then replaced as a whole. Raises `ValueError` where the model has no plan or was changed since,
    `OSError` with a sentence where the disk is full or read-only.
    """
    plan = plan_of(model)
    if plan is None:
        raise ValueError(
            f"this {type(model).__name__} holds no geocolor plan: apply one first (geocolor.apply), "
            "or save an ordinary model with its own save_pretrained or safetensors.torch.save_model"
        )
    attach_plan(model, plan)
    _refuse_quantized(model)
    if isinstance(model, PreTrainedModel):

        def write(folder: Path) -> None:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
    else:
        document = {"format_version": FORMAT_VERSION, "plan": plan.model_dump(mode="json")}

        def write(folder: Path) -> None:
            safetensors.torch.save_model(model, str(folder / WEIGHTS_FILE))
            (folder / PLAN_FILE).write_text(json.dumps(document, indent=1) + "\n")

    _write_folder(Path(path), write, overwrite, tokenizer, manifest=True)


def load(
    model_or_factory: nn.Module | Callable[[], nn.Module] | None, path: str | Path, *, files: Path | None = None
) -> nn.Module:
    """Read what `save` wrote; outputs are bit-equal to those of the model saved, and layers share what they shared.

    For a transformers model pass None, or the class to load. For any other module pass the dense model (a changed
    copy is returned; its values do not matter) or a function that builds it. With a folder `files` parameters lie in
    files there, not in memory, but for those that transformers reads from its own when they are used. Raises
    `FileNotFoundError` where nothing is there, `ValueError` with a sentence that names the file or folder where it is
    damaged or of another model.
    """
    path = Path(path)
    try:
        return _load(model_or_factory, path, files)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _load(model_or_factory: nn.Module | Callable[[], nn.Module] | None, path: Path, files: Path | None) -> nn.Module:
    if _is_transformers_folder(path):
        loaded = _load_transformers(model_or_factory, path)
        if files is not None:
            put_in_files(made_in_memory(loaded), files)
        return loaded
    document = _read_json(path / PLAN_FILE, path)
    check_manifest(path, read=[PLAN_FILE, WEIGHTS_FILE])
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{path / PLAN_FILE}: format {version!r:.80} is not one this geocolor reads ({FORMAT_VERSION}); "
            "load it with the geocolor that saved it, or save it again"
        )
    plan = parse_plan(document.get("plan"), str(path / PLAN_FILE))
    if model_or_factory is None:
        raise ValueError(f"{path} holds a plain torch module: pass the dense model, or a function that builds it")
    weights = path / WEIGHTS_FILE
    check_weights(weights)
    if isinstance(model_or_factory, nn.Module):
        factored = plan.factored_layers
        replaced = [p for name, p in model_or_factory.named_parameters() if name.removesuffix(".weight") in factored]
        model = copied(model_or_factory, files, replaced)
    else:
        model = model_or_factory()
    skeleton(model, plan)
    _adopt_dtypes(model, weights)
    if files is not None:
        put_in_files(model.parameters(), files, written=True)
    try:
        safetensors.torch.load_model(model, weights)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not fit the model passed ({' '.join(str(error).split())}); "
            "pass the model that was compressed, built with the same settings"
        ) from error
    attach_plan(model, plan)
    return model


def export_dense(
    model: nn.Module, path: str | Path, overwrite: bool = False, tokenizer: SavesItself | None = None
) -> str:
    """Multiply the factors out and write an ordinary model, for runtimes that know nothing of geocolor.

    The saving is then gone: the folder is as large as that of the model before compression. Returns a sentence that
    says so, with the numbers. Outputs agree with the compressed model's up to rounding.
    """
    refuse_occupied(Path(path), overwrite)
    if not factored_layers(model):
        raise ValueError(f"this {type(model).__name__} has no factored layers: it is dense already, save it as it is")
    dense = merge_to_dense(model)

    def write(folder: Path) -> None:
        if isinstance(dense, PreTrainedModel):
            dense.save_pretrained(folder)
        else:
            safetensors.torch.save_model(dense, str(folder / WEIGHTS_FILE))

    _write_folder(Path(path), write, overwrite, tokenizer)
    return (
        f"wrote a dense model to {path}: {parameter_count(dense):,} parameters where the compressed model has "
        f"{parameter_count(model):,}. The factors are multiplied out, so the saving is gone"
    )


def _refuse_quantized(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor:
            raise ValueError(
                f"parameter {name!r} is a {type(parameter.data).__name__}, which this format cannot hold: save the "
                "model before it is quantized (or sharded), and do that again after loading"
            )


def _write_folder(
    path: Path,
    write: Callable[[Path], None],
    overwrite: bool,
    tokenizer: SavesItself | None,
    manifest: bool = False,
) -> None:
    def write_all(folder: Path) -> None:
        write(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if manifest:
            write_manifest(folder)

    refuse_occupied(path, overwrite)
    try:
        replace_directory(path, write_all, overwrite)
    except (SafetensorError, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # a sentence already
        raise OSError(
            f"could not write the model to {path}: {error}. What was there before is untouched; "
            "free some space or choose another folder"
        ) from error


def _is_transformers_folder(path: Path) -> bool:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: pass the folder that geocolor.save wrote")
    if not (path / CONFIG_FILE).exists():
        if not (path / PLAN_FILE).exists():
            raise FileNotFoundError(
                f"{path} holds no compressed model: neither {CONFIG_FILE} nor {PLAN_FILE} is there; "
                "pass the folder that geocolor.save wrote"
            )
        return False
    if (path / PLAN_FILE).exists():
        return False
    config = _read_json(path / CONFIG_FILE, path)
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
        raise ValueError(
            f"{path} holds a transformers model that geocolor did not write: {path / CONFIG_FILE} has no plan; "
            "load it with transformers' own from_pretrained"
        )
    return True


def _load_transformers(wanted: Any, path: Path) -> nn.Module:
    config = check_folder(path)
    GeocolorConfig.from_dict(config["quantization_config"])  # a damaged plan is told before anything is built
    if wanted is None:
        names = config.get("architectures")
        name = names[0] if isinstance(names, list) and names else None
        loader: Any = getattr(transformers, name, None) if isinstance(name, str) else None
        if not (isinstance(loader, type) and issubclass(loader, PreTrainedModel)):
            raise ValueError(f"{path / CONFIG_FILE}: transformers has no class {name!r}; pass the class to load")
    elif isinstance(wanted, nn.Module):
        loader = type(wanted)
    else:
        loader = wanted
    if not hasattr(loader, "from_pretrained"):
        raise ValueError(f"{path} holds a transformers model: pass None or its class, not {loader!r}")
    try:
        model, info = loader.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    except ValueError:
        raise
    except Exception as error:  # what transformers' configurations and models raise for odd settings has no common type
        if ran_out(error):
            raise
        raise ValueError(
            f"the weights under {path} do not fit their {CONFIG_FILE} ({' '.join(str(error).split())}); "
            "was one of the two edited or copied from elsewhere? Save the model again"
        ) from error
    missing = sorted(info["missing_keys"]) if wanted is None else _missing_factors(model, info["missing_keys"])
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors of the model, the first is {missing[0]!r}; save the model again"
        )
    loaded: nn.Module = model
    return loaded


def _missing_factors(model: nn.Module, missing: set[str]) -> list[str]:
    """A head of another class may be new; a factor may not."""
    prefixes = tuple(f"{name}." for name in factored_layers(model))
    return sorted(key for key in missing if key.startswith(prefixes))


def _adopt_dtypes(model: nn.Module, weights: Path) -> None:
    """Bring the model to the dtypes of the file, so that loading does not round; tied parameters stay tied."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with safetensors.safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            held = tensors.get(name)
            if held is None:
                continue
            if held.device.type == "meta":
                raise ValueError(
                    f"parameter {name!r} of the model passed is on the meta device: build it on a real one"
                )
            dtype = file.get_tensor(name).dtype
            if held.dtype != dtype and held.is_floating_point() and dtype.is_floating_point:
                held.data = held.data.to(dtype)


def _read_json(file: Path, folder: Path) -> Any:
    try:
        return read_json(file, "Save the model again")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has no {file.name}: copy the whole folder, or save the model again"
        ) from None
