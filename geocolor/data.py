"""Models and data as named on a command line: folders, hub names, text files, or `module:function`."""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn

from geocolor.losses import Batch, is_causal, samples_in
from geocolor.mapped import folder_of, in_dtype, made_in_memory, put_in_files
from geocolor.memory import ran_out
from geocolor.quantities import size
from geocolor.weight_files import SUFFIX, check_folder, no_safetensors
from solvers.atomic import writable_folder

Tokenizer = Any  # transformers.PreTrainedTokenizerBase, which transformers does not type
T = TypeVar("T")
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")

#: Bytes of weights that may be in memory for a moment without a word.
MUCH = 100_000_000


def load_model(
    source: str | Path, dtype: torch.dtype = torch.float32, mapped: Path | None = None
) -> tuple[nn.Module, Tokenizer | None]:
    """The model in evaluation mode and, where there is one, its tokenizer.

    `source` is a transformers folder or hub name, loaded with the class that its config names, or `module:function`,
    called without arguments and returning a module or a pair (module, tokenizer). Safetensors that hold `dtype` are
    read when they are used; with a folder `mapped` others are too, converted into files there that lose their names,
    and what transformers makes in memory is put there afterwards, with a warning where that is much. Raises
    FileNotFoundError or ValueError with a sentence when there is no such model.
    """
    if function := _callable(source):
        made = _result(source, function)
        model, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(model, nn.Module):
            raise ValueError(f"{source} returned {_kind(model)}, not a torch.nn.Module; return the model from it")
        return model.eval(), tokenizer
    config = config_of(source)
    if not Path(source).is_dir() and (downloaded := folder_of(source)):
        check_folder(downloaded)
    with in_dtype(source, dtype, mapped) as folder:
        try:
            model = _class_named(config).from_pretrained(folder, dtype=dtype, use_safetensors=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # nor has what models raise for odd settings and damaged weights
            if ran_out(error) or (isinstance(error, ValueError) and str(source) in str(error)):
                raise
            if isinstance(error, OSError) and SUFFIX in str(error):
                raise ValueError(no_safetensors(source)) from error
            raise ValueError(
                f"{source}: the model cannot be loaded ({_first_line(error)}): damaged, or settings and weights of "
                "different models? Save or download it again"
            ) from error
    if folder != source:
        model.name_or_path = model.config.name_or_path = str(source)
    if mapped is not None:
        _let_lie_in_files(model, str(source), mapped)
    return model.eval(), _load_tokenizer(source)


def config_of(source: str | Path) -> Any:
    """The config of a transformers folder or hub name; raises as `load_model` does."""
    if _looks_local(source) and not (Path(source) / "config.json").is_file():
        here = Path(source)
        problem = "has no config.json" if here.is_dir() else "is a file" if here.exists() else "does not exist"
        raise FileNotFoundError(
            f"model folder {source} {problem}; pass a folder saved with save_pretrained, a hub name, or module:function"
        )
    if Path(source).is_dir():
        check_folder(Path(source))
    try:
        return transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise ValueError(
                f"{source}: its config.json is of no model that transformers {transformers.__version__} knows "
                f"({_first_line(error)}); save or download it again"
            ) from error
        raise ValueError(
            f"no model {str(source)!r}: neither a folder here nor a model that the hub gives ({_first_line(error)}); "
            "pass a folder saved with save_pretrained, a hub name, or module:function"
        ) from error
    except Exception as error:  # what configurations raise for odd settings has no common type
        if ran_out(error):
            raise
        raise ValueError(
            f"{source}: its config.json makes no sense ({_first_line(error)}): damaged? Save or download it again"
        ) from error


def _let_lie_in_files(model: nn.Module, source: str, folder: Path) -> None:
    made = made_in_memory(model)
    held = sum(each.nbytes for each in made)
    if held > MUCH:
        warnings.warn(
            f"transformers has held {size(held)} of the weights of {source} in memory while it loaded them, as it does "
            "where it stacks the experts of a file, and they lie in files from now on; so that they are never held, "
            "save the model once by save_pretrained(folder, save_original_format=False) and pass that folder",
            stacklevel=3,
        )
    put_in_files(made, writable_folder(folder))


def batches(
    source: str | Path,
    model: nn.Module,
    tokenizer: Tokenizer | None,
    sequence: int = 256,
    batch_size: int = 8,
    limit: int | None = None,
) -> list[Batch]:
    """Batches for `measure` and `evaluate`.

    `source` is a text file, a .jsonl file with a "text" (and, for classifiers, an integer "label") per line, or
    `module:function`, called without arguments and returning an iterable of batches, taken as they are. For a causal
    language model the text is cut into windows of `sequence` tokens, a LongTensor [batch_size, sequence] each; for any
    other, each line that is not empty is one sample, cut after `sequence` tokens and padded within its batch, with its
    attention mask. `limit` is the greatest number of samples (windows, lines; of a callable: batches).
    """
    for name, value in (("sequence", sequence), ("batch size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"the {name} is {value}; it must be at least 1")
    if function := _callable(source):
        made, found = _result(source, lambda: _listed(function(), limit))
        if not found:
            what = f"{_kind(made)} that is empty" if isinstance(made, Iterable) else _kind(made)
            raise ValueError(f"{source} returned {what}; it has to return an iterable of at least one batch")
        return found
    texts, labels = _read(Path(source))
    if tokenizer is None:
        raise ValueError(
            f"{source} is text, but the model has no tokenizer, or none that loads; pass --data module:function that "
            "returns batches"
        )
    if is_causal(model):
        if sequence < 2:
            raise ValueError("a sequence of 1 token predicts nothing; pass a larger --sequence")
        return _windows(source, texts, tokenizer, sequence, batch_size, limit)
    if not labels:
        texts = [text for text in texts if text.strip()]
    texts, labels = texts[:limit], labels[:limit]
    return [
        _padded(tokenizer, texts[i : i + batch_size], labels[i : i + batch_size], sequence)
        for i in range(0, len(texts), batch_size)
    ]


def split_tail(batches: list[Batch], fraction: float = 0.2) -> tuple[list[Batch], list[Batch]]:
    """(calibration, test): the last `fraction` of the samples is held out, at least one on either side."""
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction is {fraction}; it must lie between 0 and 1")
    total = sum(samples_in(batch) for batch in batches)
    if total < 2:
        raise ValueError(f"the data holds {total} sample, too few to hold any out; pass more, or separate test data")
    first = min(max(total - round(total * fraction), 1), total - 1)
    calibration: list[Batch] = []
    test: list[Batch] = []
    seen = 0
    for batch in batches:
        size = samples_in(batch)
        cut = min(max(first - seen, 0), size)
        if cut:
            calibration.append(batch if cut == size else _slice(batch, 0, cut, size))
        if cut < size:
            test.append(batch if cut == 0 else _slice(batch, cut, size, size))
        seen += size
    return calibration, test


def bytes_per_token(batches: Iterable[Batch], tokenizer: Tokenizer) -> float:
    """Mean bytes of UTF-8 text per predicted token of a causal language model's batches."""
    size = tokens = 0
    for batch in batches:
        ids: Tensor = batch["input_ids"] if isinstance(batch, Mapping) else batch
        for text in tokenizer.batch_decode(ids[:, 1:].tolist(), skip_special_tokens=True):
            size += len(text.encode())
        tokens += ids[:, 1:].numel()
    return size / tokens


def _callable(source: str | Path) -> Callable[[], Any] | None:
    """The function that `module:function` names, or None where `source` is something else."""
    if (
        not isinstance(source, str)
        or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source)
        or Path(source).exists()
    ):
        return None
    module_name, function_name = source.split(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a console script does not look in the current folder
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there, something that it imports is not
        raise ValueError(
            f"{source}: no module {module_name!r} here or installed; run where {module_name} is"
        ) from error
    except Exception as error:
        if ran_out(error):
            raise
        raise ValueError(_failed(source, error)) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        listed = ", ".join(known[:8]) or "none"
        raise ValueError(f"{source}: module {module_name!r} has no function {function_name!r}; it has {listed}")
    return function  # type: ignore[no-any-return]


def _result(source: str | Path, function: Callable[[], T]) -> T:
    """What a function of the user's returns; what it raises becomes a ValueError that says where."""
    try:
        return function()
    except Exception as error:
        if ran_out(error):
            raise
        raise ValueError(_failed(source, error)) from error


def _listed(made: Any, limit: int | None) -> tuple[Any, list[Any]]:
    """What was made, and a list of it where it is iterable."""
    return made, list(islice(made, limit)) if isinstance(made, Iterable) else []


def _failed(source: str | Path, error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{source}: {error}"
    _, *frames = traceback.extract_tb(error.__traceback__)
    own = [f" in {frame.filename}, line {frame.lineno}" for frame in frames if "site-packages" not in frame.filename]
    return f"{source} failed{own[-1] if own else ''}: {type(error).__name__}: {_first_line(error)}"


def _class_named(config: Any) -> Any:
    """The class that the config names, where transformers has it."""
    names = getattr(config, "architectures", None)
    found = getattr(transformers, names[0], None) if isinstance(names, list) and names and names[0] else None
    return (
        found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else transformers.AutoModel
    )


def _looks_local(source: str | Path) -> bool:
    text = str(source)
    return isinstance(source, Path) or Path(text).exists() or text.startswith((".", "/", "~")) or text.count("/") > 1


def _load_tokenizer(source: str | Path) -> Tokenizer | None:
    folder = Path(source)
    if folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES):
        return None  # transformers would make up one that knows no word
    try:
        return transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # many models are not about text; where one is needed, `batches` says so


def _read(path: Path) -> tuple[list[str], list[int]]:
    """Texts (lines of a text file, "text" of a .jsonl line) and labels (all or none)."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"data file {path} {problem}; pass a text file, a .jsonl file or module:function")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    lines = content.split("\n")
    if not content.strip():
        raise ValueError(f"{path} is empty; pass a file with text")
    if path.suffix != ".jsonl":
        return lines, []
    entries = [_entry(path, i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    labels = [entry["label"] for entry in entries if isinstance(entry.get("label"), int)]
    if labels and len(labels) < len(entries):
        raise ValueError(f"{path}: {len(labels)} of {len(entries)} lines have an integer label; give all or none one")
    return [entry["text"] for entry in entries], labels


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}); repair it") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise ValueError(f"{path}, line {number}: no JSON that can be read ({error}); repair it") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError(f'{path}, line {number}: no string under "text"; write {{"text": "…"}} on every line')
    if any("\ud800" <= character <= "\udfff" for character in entry["text"]):
        raise ValueError(f'{path}, line {number}: half a surrogate pair in "text", which is no character; repair it')
    label = entry.get("label")
    if isinstance(label, int) and abs(label) >= 2**31:
        raise ValueError(f"{path}, line {number}: label {label!r:.20} is no number of a class; repair it")
    return entry


def _windows(
    source: str | Path, texts: list[str], tokenizer: Tokenizer, sequence: int, batch_size: int, limit: int | None
) -> list[Batch]:
    documents = texts if str(source).endswith(".jsonl") else ["\n".join(texts)]
    tokens = [token for document in documents for token in tokenizer(document, verbose=False)["input_ids"]]
    count = len(tokens) // sequence
    if count == 0:
        raise ValueError(
            f"{source} has {len(tokens)} tokens, one sequence needs {sequence}; pass more text or a smaller --sequence"
        )
    ids = torch.tensor(tokens[: count * sequence]).view(count, sequence)[:limit]
    return [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]


def _padded(tokenizer: Tokenizer, texts: list[str], labels: list[int], sequence: int) -> dict[str, Tensor]:
    if tokenizer.pad_token is None:
        raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token, or pass module:function")
    batch = dict(tokenizer(texts, padding=True, truncation=True, max_length=sequence, return_tensors="pt"))
    return batch | ({"labels": torch.tensor(labels)} if labels else {})


def _slice(batch: Batch, start: int, stop: int, size: int) -> Batch:
    """Samples `start` to `stop` of a batch of `size`: every tensor of that length, in whatever it is nested."""
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, Mapping):
        return {key: _slice(value, start, stop, size) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_slice(value, start, stop, size) for value in batch)
    return batch


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
