"""Losses: sampled gradients belong to the same loss that is evaluated, and padding never counts."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from geocolor.curvature import measure
from geocolor.evaluation import evaluate
from geocolor.losses import (
    Classification,
    Custom,
    Embedding,
    NextToken,
    SquaredError,
    default_loss,
    move,
    positions,
    samples_in,
)

LLAMA = LlamaConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
)
BERT = BertConfig(
    vocab_size=17, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_labels=3
)
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LLAMA).eval()


@pytest.fixture(scope="module")
def bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BERT).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_next_token_loss_is_that_of_transformers(llama):
    total, units = NextToken().value(llama, TOKENS)
    assert units == 8
    assert total / units == pytest.approx(llama(TOKENS, labels=TOKENS).loss.item(), rel=1e-6)


def test_padding_and_ignored_labels_are_not_predicted(llama):
    batch = {"input_ids": TOKENS, "attention_mask": MASK}
    assert NextToken().value(llama, batch)[1] == 4 + 2
    assert NextToken().sampled(llama, batch, generator())[1] == 6
    labels = TOKENS.masked_fill(TOKENS < 4, -100)
    total, units = NextToken().value(llama, batch | {"labels": labels})
    assert units == 2 + 2
    expected = llama(**batch, labels=labels.masked_fill(MASK == 0, -100)).loss.item()
    assert total / units == pytest.approx(expected, rel=1e-6)


def test_sampled_gradients_have_the_hessian_of_the_cross_entropy_as_their_covariance():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(50_000, 1).requires_grad_()
    total, units = Classification().sample(logits, None, generator())
    assert units == 50_000
    [g] = torch.autograd.grad(total, logits)
    p = logits[0].detach().softmax(-1)
    torch.testing.assert_close(g.T @ g / units, torch.diag(p) - torch.outer(p, p), atol=5e-3, rtol=0)
    torch.testing.assert_close(g.mean(0), torch.zeros(3), atol=1e-2, rtol=0)


def test_a_confident_model_needs_few_samples():
    """Of drawn labels one in a thousand would count here, and 64 samples would mostly see no gradient at all."""
    logits = torch.tensor([[0.0, 6.9]]).repeat(64, 1).requires_grad_()
    p = logits[0].detach().softmax(-1)
    for seed in range(5):
        total, _ = Classification().sample(logits, None, torch.Generator().manual_seed(seed))
        [g] = torch.autograd.grad(total, logits)
        assert (g.T @ g / 64)[0, 0].item() == pytest.approx((p[0] * p[1]).item(), rel=0.6)


def test_classification_takes_pairs_and_mappings_and_any_integer_labels():
    model = nn.Linear(4, 3)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.int8)
    expected = cross_entropy(model(x), y.long(), reduction="sum").item()
    for batch in ((x, y), [x, y], {"input": x, "labels": y}):
        assert Classification().value(model, batch) == (pytest.approx(expected, rel=1e-6), 6)
    with pytest.raises(ValueError, match=r"needs labels: pass batches \(inputs, labels\)"):
        Classification().value(model, x)
    with pytest.raises(ValueError, match=r"needs logits \[batch, classes\].*\(2, 6, 3\)"):
        Classification().value(model, (x.expand(2, 6, 4), y))


def test_embedding_loss_is_the_cosine_distance_of_means_over_the_mask(bert):
    torch.manual_seed(1)
    other = BertModel(BERT).eval()
    batch = {"input_ids": TOKENS, "attention_mask": MASK}

    def mean(model: BertModel) -> torch.Tensor:
        hidden = model(**batch).last_hidden_state
        return torch.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])

    expected = (1 - cosine_similarity(mean(bert), mean(other))).sum().item()
    assert Embedding().value(other, batch, bert) == (pytest.approx(expected, rel=1e-5), 2)
    assert Embedding().value(bert, batch, bert)[0] == 0
    with pytest.raises(ValueError, match="pass the dense model as reference="):
        Embedding().value(bert, batch)


def test_squared_error_needs_targets_of_the_output_shape():
    model = nn.Linear(4, 2)
    x, t = torch.randn(3, 4), torch.randn(3, 2)
    expected = 0.5 * (model(x) - t).square().sum().item()
    assert SquaredError().value(model, (x, t)) == (pytest.approx(expected, rel=1e-6), 3)
    with pytest.raises(ValueError, match=r"targets of shape \(3, 2\), got \(3,\)"):
        SquaredError().value(model, (x, t[:, 0]))


def test_a_custom_loss_is_a_mean_over_samples():
    model = nn.Linear(4, 1)
    loss = Custom(lambda model, batch: model(batch).square().mean())
    x = torch.randn(5, 4)
    total, units = loss.value(model, x)
    assert units == 5
    assert total / units == pytest.approx(model(x).square().mean().item(), rel=1e-6)
    assert "empirical" in loss.name
    with pytest.raises(ValueError, match="tensor of one element"):
        Custom(lambda model, batch: model(batch)).value(model, x)


def test_several_positional_inputs_reach_the_model():
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    a, b = torch.randn(3, 2), torch.randn(3, 2)
    assert SquaredError().value(Sum(), ((a, b), a + b)) == (0.0, 3)


def test_default_losses():
    ids = {"input_ids": TOKENS}
    assert default_loss(LlamaForCausalLM(LLAMA), TOKENS) == NextToken()
    assert default_loss(BertModel(BERT), ids) == Embedding()
    assert default_loss(LlamaModel(LLAMA), ids) == Embedding()
    assert default_loss(BertForSequenceClassification(BERT), ids) == Classification()
    assert default_loss(nn.Linear(2, 3), (torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))) == Classification()


def test_without_an_obvious_loss_the_message_names_the_argument():
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for model in (BertForMaskedLM(BERT), BertForTokenClassification(BERT), t5):
        with pytest.raises(ValueError, match=rf"no default loss for a {type(model).__name__}.*loss="):
            default_loss(model, {"input_ids": TOKENS})
    with pytest.raises(ValueError, match=r"no default loss for a Linear.*loss="):
        default_loss(nn.Linear(2, 1), (torch.randn(4, 2), torch.randn(4)))


@pytest.mark.parametrize("loss", [nn.functional.cross_entropy, nn.CrossEntropyLoss(), Classification, "mse"])
def test_what_is_no_loss_is_refused_wherever_it_is_given(loss):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    batches = [(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]))]
    for step in (measure, evaluate):
        with pytest.raises(TypeError, match=r"no loss of geocolor\.losses: pass an object.*Custom\(function\)"):
            step(model, batches, loss)


def test_a_batch_that_does_not_fit_is_told_by_its_shapes():
    wrong = {"x": torch.randn(4, 5), "labels": torch.tensor([0, 1, 2, 0])}
    with pytest.raises(ValueError, match=r"does not run on a batch of \{x: shape \(4, 5\) and float32\} \(TypeError: "):
        Classification().forward(nn.Linear(2, 3), wrong)


def test_a_label_that_is_no_class_of_the_model_is_named():
    labels = torch.tensor([0, -100, 3, 1])
    with pytest.raises(ValueError, match=r"holds the label 3, and the model tells 3 classes apart, 0 to 2"):
        Classification().value(nn.Linear(2, 3), (torch.randn(4, 2), labels))
    assert Classification().value(nn.Linear(2, 4), (torch.randn(4, 2), labels))[1] == 3


def test_a_model_that_returns_no_tensor_is_refused():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x]

    with pytest.raises(ValueError, match=r"the model returned a list.*loss=Custom"):
        Classification().forward(Odd(), torch.randn(2, 2))


def test_batches_of_any_nesting_are_moved_counted_and_masked():
    batch = ({"input_ids": TOKENS, "attention_mask": MASK}, [torch.zeros(2), "name"])
    moved = move(batch, "meta")
    assert moved[0]["input_ids"].is_meta
    assert moved[1][0].is_meta
    assert moved[1][1] == "name"
    assert samples_in(batch) == 2
    assert torch.equal(positions(batch), MASK.bool())
    assert positions(TOKENS) is None


def test_units_are_what_the_losses_are_summed_over() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = {"input_ids": torch.tensor([[1, 2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    logits = torch.randn(1, 4, 5, generator=generator)
    assert NextToken().units(logits, tokens) == NextToken().sample(logits, tokens, generator)[1] == 2
    classes = torch.randn(3, 5, generator=generator)
    assert Classification().units(classes, (None, None)) == Classification().sample(classes, None, generator)[1] == 3
