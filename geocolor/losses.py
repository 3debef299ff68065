"""Losses: what the model is for. Each one knows how to sample output gradients and how to score a compressed model.

All but `Custom` sample their gradients from the model's own output, which gives the Fisher / generalised Gauss-Newton
matrix (Martens 2020, arXiv:1412.1193); real labels would give the empirical Fisher.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel

from geocolor.memory import ran_out

Batch = Any  # a tensor, a tuple or list (inputs, targets), or a mapping of keyword arguments
IGNORED = -100  # the label that transformers gives to positions that do not count

#: Logits that are made double at a time, in six matrices of them: 50 MB.
IN_DOUBLE = 2**20


class Loss(ABC):
    """`J` is the mean over units of what `total` sums; `forward` gives the outputs that `total` and `sample` need."""

    name: str
    unit: str

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The outputs, with the sample as first dimension (`Custom`: the mean loss)."""

    @abstractmethod
    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        """A scalar sum whose gradients `g` satisfy `E[g gᵀ]` = Gauss-Newton matrix, and the number of units in it."""

    @abstractmethod
    def total(self, outputs: Tensor, batch: Batch, reference: Tensor | None) -> tuple[Tensor, int]:
        """The differentiable sum of the loss over its units, and their number; `reference`: outputs to compare with."""

    @abstractmethod
    def divergence(self, outputs: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """How far outputs are from the dense model's, summed over units: what `½ δᵀHδ` is the second order of."""

    def sampled(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        return self.sample(self.forward(model, batch), batch, generator)

    def value(self, model: nn.Module, batch: Batch, reference: nn.Module | None = None) -> tuple[float, int]:
        """Sum of the loss over the batch and number of units, without gradients."""
        with torch.no_grad():
            expected = self.forward(reference, batch) if reference is not None and self.compares else None
            total, units = self.total(self.forward(model, batch), batch, expected)
        return total.item(), units

    def units(self, outputs: Tensor, batch: Batch) -> int:
        """How many units the loss of a batch is averaged over: samples, unless a loss says otherwise."""
        return len(outputs)

    @property
    def compares(self) -> bool:
        """Whether `total` is measured against the outputs of a reference model instead of labels."""
        return False


@dataclass(frozen=True)
class NextToken(Loss):
    """Next-token loss of a causal language model, in nats per predicted token.

    A batch is a LongTensor [batch, sequence] or a mapping with input_ids and, if wanted, attention_mask and labels.
    The last position of a sequence predicts nothing that is known, and does not count.
    """

    name: str = "next token"
    unit: str = "nats per token"

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits [batch, sequence, vocabulary]."""
        keywords = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        logits = _call(model, batch, **keywords)
        if logits.ndim != 3:
            raise ValueError(_wrong_shape("logits [batch, sequence, vocabulary]", logits, self))
        return logits

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        _, counted = self._targets(batch)
        return _sampled_cross_entropy(outputs[:, :-1][counted], generator)

    def total(self, outputs: Tensor, batch: Batch, reference: Tensor | None = None) -> tuple[Tensor, int]:
        targets, counted = self._targets(batch)
        return _cross_entropy(outputs[:, :-1][counted], targets[counted])

    def divergence(self, outputs: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, int]:
        _, counted = self._targets(batch)
        return _kullback_leibler(outputs[:, :-1][counted], reference[:, :-1][counted])

    def units(self, outputs: Tensor, batch: Batch) -> int:
        return int(self._targets(batch)[1].sum())

    @staticmethod
    def _targets(batch: Batch) -> tuple[Tensor, Tensor]:
        """Tokens to predict [batch, sequence - 1] and whether each counts."""
        tokens = _inputs(batch)
        if isinstance(tokens, Mapping):
            tokens = tokens["input_ids"]
        labels = _labels(batch)
        targets = (tokens if labels is None else labels)[:, 1:]
        counted = targets != IGNORED
        mask = positions(batch)
        return targets, counted if mask is None else counted & mask[:, 1:] & mask[:, :-1]


@dataclass(frozen=True)
class Classification(Loss):
    """Cross-entropy of logits [batch, classes], in nats per sample; a batch is (inputs, labels) or has "labels"."""

    name: str = "classification"
    unit: str = "nats per sample"

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = _call(model, batch)
        if logits.ndim != 2:
            raise ValueError(_wrong_shape("logits [batch, classes]", logits, self))
        return logits

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        return _sampled_cross_entropy(outputs, generator)

    def total(self, outputs: Tensor, batch: Batch, reference: Tensor | None = None) -> tuple[Tensor, int]:
        return _cross_entropy(outputs, self.labels(batch))

    def divergence(self, outputs: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return _kullback_leibler(outputs, reference)

    def labels(self, batch: Batch) -> Tensor:
        labels = _labels(batch)
        if labels is None:
            raise ValueError("classification needs labels: pass batches (inputs, labels) or mappings with 'labels'")
        return labels.long()


@dataclass(frozen=True)
class Embedding(Loss):
    """Cosine distance between the sentence embeddings of two encoders, per sentence.

    The embedding `e` is the mean of the last hidden states over the attention mask, of unit length. The distance
    `1 - <e, e'> = ½‖e - e'‖²` has the Gauss-Newton matrix `E[g gᵀ]` with `g` the gradient of `<e, v>`, `v ~ N(0, I)`.
    """

    name: str = "embedding"
    unit: str = "cosine distance per sentence"

    @property
    def compares(self) -> bool:
        return True

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Embeddings [batch, width]."""
        hidden = _call(model, batch)
        if hidden.ndim == 3:
            mask = positions(batch)
            if mask is None:
                hidden = hidden.mean(1)
            else:
                weights = mask.unsqueeze(-1).to(hidden.dtype)
                hidden = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        if hidden.ndim != 2:
            raise ValueError(_wrong_shape("hidden states [batch, sequence, width]", hidden, self))
        return normalize(hidden, dim=-1)

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        return (outputs * _normal_like(outputs, generator)).sum(), len(outputs)

    def total(self, outputs: Tensor, batch: Batch, reference: Tensor | None) -> tuple[Tensor, int]:
        if reference is None:
            raise ValueError("the embedding loss compares two encoders: pass the dense model as reference=")
        return 0.5 * (outputs - reference).square().sum(dtype=torch.float64), len(outputs)

    def divergence(self, outputs: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return self.total(outputs, batch, reference)


@dataclass(frozen=True)
class SquaredError(Loss):
    """`½‖y - t‖²` per sample; a batch is (inputs, targets). `g` is the gradient of `<y, v>`, `v ~ N(0, I)`."""

    name: str = "squared error"
    unit: str = "half squared error per sample"

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        return _call(model, batch)

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        return (outputs * _normal_like(outputs, generator)).sum(), len(outputs)

    def total(self, outputs: Tensor, batch: Batch, reference: Tensor | None = None) -> tuple[Tensor, int]:
        targets = _labels(batch)
        if targets is None or targets.shape != outputs.shape:
            shape = "none" if targets is None else tuple(targets.shape)
            raise ValueError(f"squared error needs targets of shape {tuple(outputs.shape)}, got {shape}")
        return 0.5 * (outputs - targets).square().sum(), len(outputs)

    def divergence(self, outputs: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return 0.5 * (outputs - reference).square().sum(dtype=torch.float64), len(outputs)


@dataclass(frozen=True)
class Custom(Loss):
    """Any function (model, batch) -> mean loss over the batch's samples.

    Nothing can be sampled from it, so its gradients are those of the real labels: the **empirical** Fisher, which is
    a poorer curvature (Kunstner et al. 2019, arXiv:1905.12558).
    """

    function: Callable[[nn.Module, Batch], Tensor]
    name: str = "custom (empirical Fisher)"
    unit: str = "loss per sample"

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        mean = self.function(model, batch)
        if not isinstance(mean, Tensor) or mean.numel() != 1:
            raise ValueError(f"a custom loss returns the mean loss as a tensor of one element, got {mean!r:.80}")
        return mean.reshape(())

    def sample(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> tuple[Tensor, int]:
        return self.total(outputs, batch, None)

    def total(self, outputs: Tensor, batch: Batch, reference: Tensor | None = None) -> tuple[Tensor, int]:
        return outputs * samples_in(batch), samples_in(batch)

    def units(self, outputs: Tensor, batch: Batch) -> int:
        return samples_in(batch)

    def divergence(self, outputs: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Nothing is known of the outputs but their loss: its rise, where there is one."""
        return (outputs - reference).clamp(min=0) * samples_in(batch), samples_in(batch)


def loss_for(model: nn.Module, batch: Batch, loss: Loss | None) -> Loss:
    """`loss`, or where it is None the one that fits the model and the batch. Raises TypeError for what is no `Loss`."""
    if loss is None:
        return default_loss(model, batch)
    if not isinstance(loss, Loss):
        raise TypeError(
            f"loss is {loss!r:.60}, no loss of geocolor.losses: pass an object like SquaredError(), or, for a function "
            "(model, batch) -> mean loss, Custom(function)"
        )
    return loss


def default_loss(model: nn.Module, batch: Batch) -> Loss:
    """The loss that fits the model and the batch. Raises ValueError, naming `loss=`, when none obviously does."""
    if isinstance(model, PreTrainedModel):
        if is_causal(model):
            return NextToken()
        classifies = type(model).__name__.endswith(
            ("SequenceClassification", "ImageClassification", "AudioClassification")
        )
        if classifies and getattr(model.config, "problem_type", None) in (None, "single_label_classification"):
            return Classification()
        if model.base_model is model and not getattr(model.config, "is_encoder_decoder", False):
            return Embedding()
    else:
        labels = _labels(batch)
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
            return Classification()
    raise ValueError(
        f"no default loss for a {type(model).__name__} and batches of type {type(batch).__name__}; give batches "
        "(inputs, labels) with a class for every sample, or, in Python, pass loss=NextToken(), Classification(), "
        "Embedding(), SquaredError() or Custom(function) of geocolor.losses"
    )


def is_causal(model: nn.Module) -> bool:
    """Whether the model is a transformers language model that predicts the next token."""
    if not isinstance(model, PreTrainedModel) or getattr(model.config, "is_encoder_decoder", False):
        return False
    return model.can_generate() and model.get_output_embeddings() is not None


def positions(batch: Batch) -> Tensor | None:
    """Mask [batch, sequence], true where there is a token and not padding; None where all positions count."""
    inputs = _inputs(batch)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def move(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with all its tensors on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(move(value, device) for value in batch)
    return batch


def head(batch: Batch, samples: int) -> Batch:
    """The batch with its first `samples` samples only."""
    if isinstance(batch, Tensor):
        return batch[:samples] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {key: head(value, samples) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(head(value, samples) for value in batch)
    return batch


def samples_in(batch: Batch) -> int:
    """Number of samples: the first dimension of the first tensor found."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((count for count in map(samples_in, parts) if count), 0)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _inputs(batch: Batch) -> Any:
    """What goes into the model: a tensor, a tuple of positional arguments, or a mapping of keyword arguments."""
    inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) in (1, 2) else batch
    if isinstance(inputs, Mapping):
        return {key: value for key, value in inputs.items() if key not in ("labels", "label")}
    return inputs


def _labels(batch: Batch) -> Tensor | None:
    if isinstance(batch, Mapping):
        labels = batch.get("labels", batch.get("label"))
    else:
        labels = batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else None
    return labels if isinstance(labels, Tensor) else None


def _call(model: nn.Module, batch: Batch, **keywords: Any) -> Tensor:
    """The model's main output, at least in float32: a tensor, or its `logits`, or its `last_hidden_state`."""
    inputs = _inputs(batch)
    try:
        if isinstance(inputs, Mapping):
            outputs = model(**inputs, **keywords)
        elif isinstance(inputs, tuple | list):
            outputs = model(*inputs, **keywords)
        else:
            outputs = model(inputs, **keywords)
    except (RuntimeError, IndexError, TypeError, AttributeError, KeyError) as error:
        if ran_out(error):
            raise
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the model does not run on a batch of {_described(inputs)} ({type(error).__name__}: {first}); make the "
            "data for this model"
        ) from error
    for attribute in ("logits", "last_hidden_state"):
        if getattr(outputs, attribute, None) is not None:
            outputs = getattr(outputs, attribute)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model returned a {type(outputs).__name__}: neither a tensor nor an object with logits or "
            "last_hidden_state; pass loss=Custom(function) that reads it"
        )
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def _described(inputs: Any) -> str:
    """The shapes and dtypes of what went into the model."""
    if isinstance(inputs, Tensor):
        return f"shape {tuple(inputs.shape)} and {str(inputs.dtype).removeprefix('torch.')}"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{key}: {_described(value)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, tuple | list):
        return "(" + ", ".join(map(_described, inputs)) + ")"
    return f"type {type(inputs).__name__}"


def _sampled_cross_entropy(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
    """`Σ <logits, B v>`, `v ~ N(0, I)`, `B = diag(√p) − p √pᵀ`, over logits [units, classes], and the number of units.

    `B Bᵀ = diag(p) − p pᵀ` is the Hessian of the cross-entropy in the logits, so `E[g gᵀ]` is the Fisher information,
    as with labels drawn from `p`. But here every unit contributes by its own uncertainty; of drawn labels the few
    improbable ones decide, and a confident model's factors rest on a handful of samples.
    """
    p = logits.detach().softmax(-1)
    if not torch.isfinite(p).all():
        raise ValueError("the model's logits are NaN or infinite; check the weights and the calibration data")
    scaled = p.sqrt() * _normal_like(p, generator)
    return (logits * (scaled - p * scaled.sum(-1, keepdim=True))).sum(), len(logits)


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise ValueError where a label is none of 0 … classes - 1, nor the one that does not count."""
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORED)]
    if len(wrong):
        raise ValueError(
            f"the data holds the label {int(wrong[0])}, and the model tells {classes} classes apart, 0 to "
            f"{classes - 1}: repair the labels, or take the model that they belong to"
        )


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    check_classes(labels, logits.shape[-1])
    each = cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    return each.sum(dtype=torch.float64), int((labels != IGNORED).sum())


def _kullback_leibler(logits: Tensor, reference: Tensor) -> tuple[Tensor, int]:
    """`Σ KL(p_reference ‖ p)` of logits [units, classes], in double precision some units at a time."""
    together = max(1, IN_DOUBLE // max(1, logits[:1].numel()))
    total = logits.new_zeros((), dtype=torch.float64)
    for p, q in zip(reference.split(together), logits.split(together), strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total = total + (log_p.exp() * (log_p - log_q)).sum()
    return total, len(logits)


def _normal_like(outputs: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(outputs.shape, dtype=outputs.dtype, device=outputs.device, generator=generator)


def _wrong_shape(wanted: str, outputs: Tensor, loss: Loss) -> str:
    return (
        f"the {loss.name} loss needs {wanted}, but the model returned shape {tuple(outputs.shape)}; pass another loss="
    )
