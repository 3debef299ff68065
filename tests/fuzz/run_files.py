"""What runs leave and read again: journals, checkpoints, the cells of sweeps; and data."""

import contextlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, GPT2LMHeadModel, PreTrainedTokenizerFast

from geocolor import data
from geocolor.journal import FAILED_FILE, LEDGER_FILE, RUN_FILE, kept
from geocolor.losses import SquaredError
from geocolor.refinement import RefineSettings, refine
from geocolor.sweep import CELLS, digest, sweep
from tests.fuzz.model_files import Small, _sign_tensors, _tensors, dense_model, plain_model
from tests.fuzz.reader import Json, Reader, values_of

# --- a journal


class KilledError(BaseException):
    pass


BASIS, SETTINGS = {"model": "ab", "data": "cd"}, {"keep": 0.5}
VALUE = {"damage": 0.25, "layers": ["a", "b"], "bound": None}
FACTORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float64)}


def _journal(path: Path) -> object:
    """A run that goes on from what is there, makes what is not, and is killed before it ends."""
    (path / FAILED_FILE).unlink(missing_ok=True)
    found: list[object] = []
    with (
        contextlib.suppress(KilledError),
        kept(path.with_suffix(""), BASIS, SETTINGS, say=lambda _: None) as journal,
    ):
        found += [journal.value("plan/0", lambda: VALUE), journal.value("verdict/0", lambda: 0.5)]
        found.append(values_of(journal.tensors("factors-0", lambda: FACTORS)))
        raise KilledError
    return values_of(found)


def _lines(path: Path) -> Json:
    return [json.loads(line.partition(" ")[2]) for line in (path / LEDGER_FILE).read_text().splitlines()]


def _sign_lines(path: Path, document: Json) -> None:
    texts = [json.dumps(entry) for entry in document] if isinstance(document, list) else [json.dumps(document)]
    (path / LEDGER_FILE).write_text("".join(f"{zlib.crc32(text.encode()):08x} {text}\n" for text in texts))


# --- a checkpoint of refinement


def _refined(path: Path) -> object:
    torch.manual_seed(0)
    dense, batches = Small().eval(), [(torch.randn(2, 4), torch.zeros(2, 3)) for _ in range(2)]
    settings = RefineSettings(steps=2, evaluate_every=1, checkpoint_every=1, holdout=0.0)
    found = refine(plain_model(), dense, batches, settings, loss=SquaredError(), checkpoint=path, keep_checkpoint=True)
    return found.best_step, found.steps, values_of(found.model)


# --- the cells of a sweep

ONE_CELL = {"model": "m", "keep": 0.5}
CELL_FILE = f"{CELLS}/{digest(ONE_CELL)}.json"


def _swept(path: Path) -> object:
    return sweep([ONE_CELL], lambda _: {"damage": 0.25}, path)


def _sign_cell(path: Path, document: Json) -> None:
    if isinstance(document, dict) and isinstance(document.get("row"), dict):
        document = {**document, "checksum": digest(document["row"])}
    (path / CELL_FILE).write_text(json.dumps(document))


# --- data


def words() -> PreTrainedTokenizerFast:
    known = {word: i for i, word in enumerate(["[PAD]", "a", "b", "c", "dd", "é", "text"])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


def encoder() -> BertModel:
    return BertModel(
        BertConfig(vocab_size=7, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    )


def _data(model: Callable[[], GPT2LMHeadModel | BertModel]) -> Callable[[Path], object]:
    built, tokenizer = model(), words()
    return lambda path: values_of(data.batches(path, built, tokenizer, 3, 2))


def _write_entries(path: Path, document: Json) -> None:
    entries = document if isinstance(document, list) else [document]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


ENTRIES = [{"text": "a b dd"}, {"text": "é c a a"}, {"text": "b"}]
LABELLED = [{"text": "a b dd", "label": 0}, {"text": "é", "label": 1}, {"text": "", "label": 7}]


RUN_FILES = [
    Reader(
        "journal",
        _journal,
        _journal,
        _lines,
        _sign_lines,
        (RUN_FILE, LEDGER_FILE, "factors-0.safetensors"),
        ".partial",
        named=False,
    ),
    Reader("checkpoint", _refined, _refined, _tensors, _sign_tensors),
    Reader("sweep", _swept, _swept, lambda path: json.loads((path / CELL_FILE).read_text()), _sign_cell, (CELL_FILE,)),
    Reader(
        "lines of text",
        lambda path: _write_entries(path, ENTRIES),
        _data(dense_model),
        lambda _: ENTRIES,
        _write_entries,
        suffix=".jsonl",
        checked=False,
    ),
    Reader(
        "labelled lines",
        lambda path: _write_entries(path, LABELLED),
        _data(encoder),
        lambda _: LABELLED,
        _write_entries,
        suffix=".jsonl",
        checked=False,
    ),
    Reader(
        "text",
        lambda path: path.write_text("a b dd\n é c\n" * 2),
        _data(dense_model),
        lambda path: path.read_text(),
        lambda path, document: path.write_text(str(document), errors="replace"),
        suffix=".txt",
        checked=False,
    ),
]
