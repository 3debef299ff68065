"""Models and data by name: what is wrong with them is said with the place and what to try."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from geocolor.data import batches, bytes_per_token, load_model, split_tail

WORDS = ["[PAD]", "a", "b", "c", "dd", "é"]
LLAMA = LlamaConfig(
    vocab_size=6, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
)
BERT = BertConfig(vocab_size=6, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)


def tokenizer(pad_token: str | None = "[PAD]") -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad_token)


@pytest.fixture(scope="module")
def causal() -> LlamaForCausalLM:
    return LlamaForCausalLM(LLAMA)


@pytest.fixture(scope="module")
def encoder() -> BertModel:
    return BertModel(BERT)


def written(folder: Path, text: str, name: str = "data.txt") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_saved_folder_loads_as_the_class_that_its_config_names(tmp_path: Path, causal):
    causal.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model, words = load_model(str(tmp_path), dtype=torch.float64)
    assert type(model) is LlamaForCausalLM
    assert not model.training
    assert model.dtype == torch.float64
    assert words("a b")["input_ids"] == [1, 2]


def test_a_folder_without_a_tokenizer_gives_none(tmp_path: Path, encoder):
    encoder.save_pretrained(tmp_path)
    model, words = load_model(tmp_path)
    assert type(model) is BertModel
    assert words is None


def test_a_model_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"model folder .*nowhere does not exist; pass a folder"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\xff" * 40, r"model.safetensors cannot be read \(.*header.*truncated or damaged"),
        (
            "config.json",
            b'{"model_type": "bert", "hidden_size": "wide"}',
            "config.json makes no sense|cannot be loaded",
        ),
        ("config.json", b'{"model_type": "bert", "architectures": [7]', "config.json is not whole JSON"),
    ],
)
def test_a_damaged_folder_is_told_in_a_sentence(tmp_path: Path, encoder, name: str, content: bytes, message: str):
    encoder.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def deep(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (folder / "config.json").write_text(json.dumps(config))


def pickled(folder: Path, name: str = "pytorch_model.bin") -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()


def pickled_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "pytorch_model.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    pickled(folder)


def pickle_named_by_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"transformers_weights": "adapter_model.bin"}
    (folder / "config.json").write_text(json.dumps(config))
    pickled(folder, "adapter_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (deep, r"config.json: 'num_hidden_layers' is 1000000000, but the weights hold only \d+ tensors"),
        (pickled, r"only pytorch_model.bin\. Pickles are not read: .* write it with save_pretrained"),
        (pickled_shard, "names 'pytorch_model.bin', which is no safetensors file"),
        (pickle_named_by_the_config, r"only adapter_model.bin\. Pickles are not read"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}"),
            "holds an adapter .*: merge it",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors are missing"),
    ],
)
@pytest.mark.parametrize("hub", [False, True])
def test_pickles_and_layers_without_end_are_refused_before_a_model_is_built(
    tmp_path: Path, encoder, spoil: Callable[[Path], object], message: str, hub: bool, monkeypatch: pytest.MonkeyPatch
):
    encoder.save_pretrained(tmp_path)
    spoil(tmp_path)
    monkeypatch.setattr(BertModel, "__init__", lambda *_, **__: pytest.fail("the model was built"))
    if hub:
        monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda _: BERT)
        monkeypatch.setattr("geocolor.data.folder_of", lambda _: tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model("someone/something" if hub else str(tmp_path))


def test_a_hub_model_of_pickles_is_told_how_to_convert_it(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **options: object) -> None:
        assert options["use_safetensors"]
        raise OSError("no file named model.safetensors. Please do not set `use_safetensors=True`.")

    config = BertConfig(architectures=["BertModel"])
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda _: config)
    monkeypatch.setattr("geocolor.data.folder_of", lambda _: None)
    monkeypatch.setattr("transformers.BertModel.from_pretrained", refuse)
    with pytest.raises(ValueError, match=r"someone/something has no weights in safetensors files.*save_pretrained"):
        load_model("someone/something")


def test_a_class_that_transformers_does_not_have_is_found_by_its_type(tmp_path: Path, encoder):
    encoder.save_pretrained(tmp_path)
    for odd in (["Nonsense"], ["logging"], [7], "BertModel", {}):
        config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": odd}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with contextlib.suppress(ValueError):
            assert type(load_model(tmp_path)[0]) is BertModel


def test_a_hub_name_that_gives_nothing_is_named(monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub\nsecond line")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    with pytest.raises(ValueError, match=r"no model 'someone/something'.*couldn't connect to the hub\); pass a folder"):
        load_model("someone/something")


def test_functions_of_the_current_folder_make_models_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = "import torch\ndef model(): return torch.nn.Linear(2, 3)\ndef pair(): return model(), 'words'\n"
    source += "def data(): return ((torch.ones(4, 2), torch.zeros(4)) for _ in range(5))\n"
    source += "def nothing(): pass\ndef empty(): return []\n"
    written(tmp_path, source, "made_here.py")
    monkeypatch.chdir(tmp_path)
    model, words = load_model("made_here:model")
    assert isinstance(model, nn.Linear)
    assert words is None
    assert load_model("made_here:pair")[1] == "words"
    assert len(batches("made_here:data", model, None)) == 5
    assert len(batches("made_here:data", model, None, limit=2)) == 2
    for name, kind in (("nothing", "nothing"), ("empty", "a list that is empty")):
        with pytest.raises(ValueError, match=f"made_here:{name} returned {kind}; it has to return an iterable"):
            batches(f"made_here:{name}", model, None)
    with pytest.raises(ValueError, match=r"made_here:nothing returned nothing, not a torch.nn.Module"):
        load_model("made_here:nothing")
    with pytest.raises(ValueError, match=r"module 'made_here' has no function 'date'; it has model, pair, data"):
        batches("made_here:date", model, None)
    with pytest.raises(ValueError, match=r"no module 'made_there'"):
        batches("made_there:data", model, None)


def test_a_module_that_fails_to_import_something_else_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path, "import not_installed_anywhere", "broken_here.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        batches("broken_here:data", nn.Linear(1, 1), None)


def test_text_for_a_causal_model_becomes_windows(tmp_path: Path, causal):
    path = written(tmp_path, "a b c dd\na b c dd\na b")
    found = batches(path, causal, tokenizer(), sequence=3, batch_size=2)
    assert [batch.tolist() for batch in found] == [[[1, 2, 3], [4, 1, 2]], [[3, 4, 1]]]
    assert len(batches(path, causal, tokenizer(), sequence=3, batch_size=2, limit=1)[0]) == 1


def test_text_for_an_encoder_becomes_padded_lines(tmp_path: Path, encoder):
    path = written(tmp_path, "a b c dd\n\n  \nb\na a\n")
    first, second = batches(path, encoder, tokenizer(), sequence=3, batch_size=2)
    assert first["input_ids"].tolist() == [[1, 2, 3], [2, 0, 0]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert second["input_ids"].tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="the tokenizer has no padding token"):
        batches(path, encoder, tokenizer(pad_token=None))


def test_jsonl_gives_texts_and_labels(tmp_path: Path, encoder, causal):
    lines = [{"text": "a b", "label": 1}, {"text": "c", "label": 0}]
    path = written(tmp_path, "\n".join(map(json.dumps, lines)) + "\n", "data.jsonl")
    (batch,) = batches(path, encoder, tokenizer())
    assert batch["labels"].tolist() == [1, 0]
    assert batches(path, causal, tokenizer(), sequence=3)[0].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"line 2: not JSON \(Expecting value, column 10\)"),
        ('{"text": "a"}\n\n["a"]\n', r'line 3: no string under "text"'),
        ('{"text": 5}', r'line 1: no string under "text"; write \{"text": "…"\}'),
        ('{"text": "\\ud800"}', "line 1: half a surrogate pair"),
        (f'{{"text": "a", "label": {2**40}}}', "line 1: label 1099511627776 is no number of a class"),
        (f'{{"text": "a", "label": 1{"0" * 5000}}}', "line 1: no JSON that can be read"),
        ("[" * 100_000, "line 1: no JSON that can be read"),
        ('{"text": "a", "label": 1}\n{"text": "b"}', r"1 of 2 lines have an integer label; give all or none one"),
        ("\n \n", r"data.jsonl is empty"),
    ],
)
def test_malformed_jsonl_is_refused_with_its_line(tmp_path: Path, encoder, content: str, message: str):
    with pytest.raises(ValueError, match=message):
        batches(written(tmp_path, content, "data.jsonl"), encoder, tokenizer())


def test_text_shorter_than_one_sequence_says_how_much_is_missing(tmp_path: Path, causal):
    path = written(tmp_path, "a " * 120)
    with pytest.raises(ValueError, match=r"has 120 tokens, one sequence needs 256; pass more text or a smaller --seq"):
        batches(path, causal, tokenizer())


def test_files_that_are_no_text_are_refused(tmp_path: Path, causal):
    with pytest.raises(FileNotFoundError, match=r"data file .*none.txt does not exist"):
        batches(tmp_path / "none.txt", causal, tokenizer())
    with pytest.raises(FileNotFoundError, match="is a folder"):
        batches(tmp_path, causal, tokenizer())
    with pytest.raises(ValueError, match=r"data.txt is empty; pass a file with text"):
        batches(written(tmp_path, ""), causal, tokenizer())
    (tmp_path / "binary.txt").write_bytes(b"ab\xff\xfe")
    with pytest.raises(ValueError, match=r"is not UTF-8 text \(byte 2\)"):
        batches(tmp_path / "binary.txt", causal, tokenizer())


def test_text_needs_a_tokenizer_and_sizes_must_be_positive(tmp_path: Path, causal):
    path = written(tmp_path, "a b c")
    with pytest.raises(ValueError, match="the model has no tokenizer, or none that loads; pass --data"):
        batches(path, causal, None)
    for wrong in ({"sequence": 0}, {"batch_size": -1}, {"limit": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            batches(path, causal, tokenizer(), **wrong)
    with pytest.raises(ValueError, match="a sequence of 1 token predicts nothing"):
        batches(path, causal, tokenizer(), sequence=1)


def test_the_tail_is_held_out_by_samples_not_by_batches():
    data = [(torch.arange(i, i + 4), torch.arange(i, i + 4)) for i in (0, 4)] + [(torch.arange(8, 10),) * 2]
    calibration, test = split_tail(data, 0.3)
    assert torch.cat([x for x, _ in calibration]).tolist() == list(range(7))
    assert torch.cat([y for _, y in test]).tolist() == [7, 8, 9]
    mapping = {"input_ids": torch.arange(5)[:, None], "extra": "same"}
    (head,), (tail,) = split_tail([mapping], 0.01)
    assert head["input_ids"].tolist() == [[0], [1], [2], [3]]
    assert tail == {"input_ids": torch.tensor([[4]]), "extra": "same"}


def test_nothing_can_be_held_out_of_one_sample_or_by_a_fraction_outside_0_and_1():
    with pytest.raises(ValueError, match="holds 1 sample, too few"):
        split_tail([torch.zeros(1, 5)])
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            split_tail([torch.zeros(4, 5)], fraction)


def test_bytes_per_token_counts_utf8_of_predicted_tokens():
    tokens = torch.tensor([[1, 4, 5]])  # a | dd é, that is "dd é": five bytes in two tokens
    assert bytes_per_token([tokens, {"input_ids": tokens}], tokenizer()) == pytest.approx(2.5)
