"""Evaluation: mean losses over all that counts, and sizes that count shared storage once."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from geocolor.divergence import divergence_of
from geocolor.evaluation import evaluate, evaluate_pair, latency
from geocolor.losses import NextToken, SquaredError
from geocolor.parameters import parameter_bytes, parameter_count

LLAMA = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
BERT = BertConfig(vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_language_model_has_a_perplexity_and_bits_per_byte():
    model, tokens = LlamaForCausalLM(LLAMA).eval(), torch.randint(0, 11, (5, 6))
    result = evaluate(model, iter(tokens.split(2)), bytes_per_unit=2.0)
    expected = model(tokens, labels=tokens).loss.item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.units == 5 * 5
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(expected / math.log(2) / 2, rel=1e-6)
    assert result.accuracy is None
    assert evaluate(model, [tokens], repeats=0).bits_per_byte is None


def test_a_classifier_has_an_accuracy_over_batches_of_unequal_size():
    model = nn.Linear(4, 3)
    x, y = torch.randn(10, 4), torch.randint(0, 3, (10,))
    result = evaluate(model, list(zip(x.split(4), y.split(4), strict=True)))
    assert result.loss == pytest.approx(cross_entropy(model(x), y).item(), rel=1e-6)
    assert result.accuracy == pytest.approx((model(x).argmax(1) == y).float().mean().item())
    assert result.unit == "nats per sample"
    assert result.perplexity is None


def test_an_encoder_is_compared_with_its_reference():
    model, other, batch = BertModel(BERT), BertModel(BERT), {"input_ids": torch.randint(0, 17, (3, 5))}
    assert evaluate(model, [batch], reference=model).similarity == 1.0
    result = evaluate(other, [batch], reference=model)
    assert result.loss == pytest.approx(1 - result.similarity)
    assert result.loss > 0
    with pytest.raises(ValueError, match="pass the dense model as reference="):
        evaluate(model, [batch])


def test_a_pair_is_evaluated_in_one_pass_each_and_says_how_far_apart_it_is():
    torch.manual_seed(0)
    dense, other = LlamaForCausalLM(LLAMA), LlamaForCausalLM(LLAMA)
    batches = torch.randint(0, 11, (5, 6)).split(2)
    passes = []
    dense.register_forward_hook(lambda *_: passes.append(1))
    pair = evaluate_pair(dense, other, batches, bytes_per_unit=2.0, repeats=0)
    assert len(passes) == len(batches)
    assert pair.dense == evaluate(dense, batches, bytes_per_unit=2.0, repeats=0)
    assert pair.compressed == evaluate(other, batches, bytes_per_unit=2.0, repeats=0)
    assert pair.divergence == pytest.approx(divergence_of(dense, other, batches, NextToken()))
    assert evaluate_pair(dense, dense, batches, repeats=0).divergence == 0.0
    with pytest.raises(ValueError, match="no batches to evaluate on"):
        evaluate_pair(dense, other, [])


def test_encoders_are_evaluated_as_a_pair_against_the_first():
    dense, other, batch = BertModel(BERT), BertModel(BERT), {"input_ids": torch.randint(0, 17, (3, 5))}
    pair = evaluate_pair(dense, other, [batch])
    assert pair.dense.loss == 0.0
    assert pair.compressed.loss == pair.divergence == evaluate(other, [batch], reference=dense).loss > 0


def test_metrics_are_called_on_the_model_in_evaluation_mode_and_modes_come_back():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    batch = (torch.randn(6, 4), torch.randint(0, 3, (6,)))
    result = evaluate(model, [batch], metrics={"training": lambda model: model.training, "seven": lambda model: 7})
    assert result.metrics == {"training": 0.0, "seven": 7.0}
    assert result.loss == evaluate(model, [batch]).loss
    assert model.training
    with pytest.raises(ZeroDivisionError):
        evaluate(model, [batch], metrics={"broken": lambda model: 1 / 0})
    assert model.training


def test_shared_storage_counts_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    assert parameter_count(model) == 60
    model[1].weight = model[0].weight
    model[2].weight.data = model[0].weight.data
    assert parameter_count(model) == 16 + 3 * 4
    assert parameter_bytes(copy.deepcopy(model).half()) == 2 * (2 * 16 + 12)  # .half() un-shares mere views
    result = evaluate(model, [(torch.randn(2, 4), torch.randn(2, 4))], SquaredError())
    assert (result.parameters, result.parameter_bytes) == (28, 112)


def test_latency_is_the_median_of_the_repeats(monkeypatch: pytest.MonkeyPatch):
    ticks = iter([0, 100, 0, 100, 0, 1, 0, 3, 0, 50])  # two warm-ups, then 1, 3 and 50 seconds
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert latency(nn.Linear(2, 2), torch.ones(1, 2), repeats=3, loss=SquaredError()) == 3


def test_nothing_to_evaluate_on_is_refused():
    model = LlamaForCausalLM(LLAMA)
    with pytest.raises(ValueError, match="no batches to evaluate on"):
        evaluate(model, [])
    ignored = {"input_ids": torch.ones(2, 4).long(), "labels": torch.full((2, 4), -100)}
    with pytest.raises(ValueError, match="no token in these batches counts"):
        evaluate(model, [ignored], NextToken())
