"""Small models of many architectures, with data and a loss: what geocolor is said to support is tried on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from geocolor.losses import Custom, Loss

Batch = Any
WIDTH, HIDDEN, HEADS, VOCABULARY, LENGTH, SAMPLES = 16, 32, 4, 32, 10, 8


@dataclass(frozen=True)
class Case:
    """`make` builds the model with random weights, `batch` draws what it reads; no `loss`: the one found by default."""

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Loss | None = None


# --- data


def tokens(generator: torch.Generator) -> dict[str, Tensor]:
    """Sequences of several lengths, padded at the end."""
    ids = torch.randint(3, VOCABULARY, (SAMPLES, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (SAMPLES, 1), generator=generator)
    lengths[0] = LENGTH
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def labelled_tokens(generator: torch.Generator) -> dict[str, Tensor]:
    return {**tokens(generator), "labels": torch.randint(2, (SAMPLES,), generator=generator)}


def translations(generator: torch.Generator) -> dict[str, Tensor]:
    return {**tokens(generator), "labels": torch.randint(3, VOCABULARY, (SAMPLES, 6), generator=generator)}


def images(size: int) -> Callable[[torch.Generator], Batch]:
    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        pixels = torch.randn(SAMPLES, 3, size, size, generator=generator)
        return {"pixel_values": pixels, "labels": torch.randint(2, (SAMPLES,), generator=generator)}

    return draw


def captions(generator: torch.Generator) -> dict[str, Tensor]:
    words = tokens(generator)
    words["input_ids"][torch.arange(SAMPLES), words["attention_mask"].sum(1) - 1] = 2  # where a text ends
    return {**words, "pixel_values": torch.randn(SAMPLES, 3, 16, 16, generator=generator), "return_loss": True}


def speech(generator: torch.Generator) -> dict[str, Tensor]:
    labels = torch.randint(3, VOCABULARY, (SAMPLES, 6), generator=generator)
    return {"input_features": torch.randn(SAMPLES, 8, 16, generator=generator), "labels": labels}


def sounds(generator: torch.Generator) -> dict[str, Tensor]:
    waves = torch.randn(SAMPLES, 96, generator=generator)
    return {"input_values": waves, "labels": torch.randint(2, (SAMPLES,), generator=generator)}


def sequences(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(SAMPLES, LENGTH, WIDTH, generator=generator)
    return x, torch.randint(5, (SAMPLES,), generator=generator)


def pictures(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(SAMPLES, 3, 12, 12, generator=generator)
    return x, torch.randint(5, (SAMPLES,), generator=generator)


def own_loss(model: nn.Module, batch: Batch) -> Tensor:
    """A user's loss function: the one that the model states itself."""
    loss: Tensor = model(**batch).loss
    return loss


# --- plain modules


class Residual(nn.Module):
    """A residual block of a convolutional network, halving the image where `stride` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def residual_network(groups: Callable[[int], int] = lambda _: 1) -> nn.Module:
    blocks = [Residual(8, 8, 1, groups(8)), Residual(8, 16, 2, groups(16))]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.memory = kind(WIDTH, WIDTH, batch_first=True)
        self.hidden = nn.Linear(WIDTH, HIDDEN)
        self.head = nn.Linear(HIDDEN, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.hidden(self.memory(self.embed(x))[0][:, -1])))
        return y


class Attending(nn.Module):
    """torch's own encoder, whose attention keeps q, k and v in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(x).mean(1))
        return y


class ListedExperts(nn.Module):
    """A mixture whose experts are modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        mixed = sum(weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts))
        y: Tensor = self.head((x + mixed).mean(1))
        return y


# --- transformers families

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 32,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**SIZES, **SPECIAL, "num_key_value_heads": 2}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    **SPECIAL,
}
VISION = {key: SIZES[key] for key in SIZES if key not in ("vocab_size", "max_position_embeddings")}


def of(model: Any, config: Any, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        made: nn.Module = model(config(**settings))
        return made

    return make


CASES = [
    # decoders
    Case("LLaMA", of(hf.LlamaForCausalLM, hf.LlamaConfig, **DECODER), tokens),
    Case("Mistral", of(hf.MistralForCausalLM, hf.MistralConfig, **DECODER), tokens),
    Case("Qwen2 (bias, tied)", of(hf.Qwen2ForCausalLM, hf.Qwen2Config, **DECODER, tie_word_embeddings=True), tokens),
    Case("Qwen3", of(hf.Qwen3ForCausalLM, hf.Qwen3Config, **DECODER, head_dim=8), tokens),
    Case("Gemma", of(hf.GemmaForCausalLM, hf.GemmaConfig, **DECODER, head_dim=4), tokens),
    Case("Phi", of(hf.PhiForCausalLM, hf.PhiConfig, **DECODER), tokens),
    Case("Phi-3 (fused qkv, gate_up)", of(hf.Phi3ForCausalLM, hf.Phi3Config, **DECODER), tokens),
    Case(
        "OPT",
        of(hf.OPTForCausalLM, hf.OPTConfig, **SIZES, **SPECIAL, ffn_dim=HIDDEN, word_embed_proj_dim=WIDTH),
        tokens,
    ),
    Case(
        "GPT-2 (Conv1D)",
        of(
            hf.GPT2LMHeadModel,
            hf.GPT2Config,
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=WIDTH,
            n_layer=2,
            n_head=HEADS,
            **SPECIAL,
        ),
        tokens,
    ),
    Case("GPT-NeoX (fused qkv)", of(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, **SIZES, **SPECIAL), tokens),
    Case(
        "BLOOM",
        of(
            hf.BloomForCausalLM,
            hf.BloomConfig,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            n_layer=2,
            n_head=HEADS,
            **SPECIAL,
        ),
        tokens,
    ),
    Case(
        "Gemma-3 (windows)",
        of(hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, **DECODER, head_dim=4, sliding_window=4),
        tokens,
    ),
    Case(
        "Falcon (fused qkv, own Linear)",
        of(
            hf.FalconForCausalLM,
            hf.FalconConfig,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            **SPECIAL,
        ),
        tokens,
    ),
    Case(
        "GPT-J",
        of(
            hf.GPTJForCausalLM,
            hf.GPTJConfig,
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=WIDTH,
            n_layer=2,
            n_head=HEADS,
            rotary_dim=4,
            **SPECIAL,
        ),
        tokens,
    ),
    # mixtures of experts, state space
    Case("Mixtral", of(hf.MixtralForCausalLM, hf.MixtralConfig, **DECODER, **EXPERTS), tokens),
    Case(
        "Qwen2-MoE",
        of(
            hf.Qwen2MoeForCausalLM,
            hf.Qwen2MoeConfig,
            **DECODER,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=16,
        ),
        tokens,
    ),
    Case(
        "Qwen3-MoE",
        of(
            hf.Qwen3MoeForCausalLM,
            hf.Qwen3MoeConfig,
            **DECODER,
            head_dim=4,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
        ),
        tokens,
    ),
    Case(
        "DeepSeek-V3 (latent attention)",
        of(
            hf.DeepseekV3ForCausalLM,
            hf.DeepseekV3Config,
            **SIZES,
            **SPECIAL,
            num_key_value_heads=HEADS,
            moe_intermediate_size=24,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=4,
        ),
        tokens,
    ),
    Case(
        "gpt-oss (transposed, bias)",
        of(hf.GptOssForCausalLM, hf.GptOssConfig, **DECODER, **EXPERTS, head_dim=4),
        tokens,
    ),
    Case(
        "Mamba",
        of(
            hf.MambaForCausalLM,
            hf.MambaConfig,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            state_size=4,
            num_hidden_layers=2,
            **SPECIAL,
        ),
        tokens,
    ),
    Case(
        "Mamba-2",
        of(
            hf.Mamba2ForCausalLM,
            hf.Mamba2Config,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            state_size=4,
            num_hidden_layers=2,
            num_heads=4,
            head_dim=8,
            n_groups=1,
            chunk_size=4,
            **SPECIAL,
        ),
        tokens,
    ),
    # encoders
    Case("BERT", of(hf.BertForSequenceClassification, hf.BertConfig, **SIZES), labelled_tokens),
    Case("BERT (embeddings)", of(hf.BertModel, hf.BertConfig, **SIZES), tokens),
    Case("RoBERTa", of(hf.RobertaForSequenceClassification, hf.RobertaConfig, **SIZES, **SPECIAL), labelled_tokens),
    Case(
        "DeBERTa-v2",
        of(
            hf.DebertaV2ForSequenceClassification,
            hf.DebertaV2Config,
            **SIZES,
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["c2p", "p2c"],
            share_att_key=True,
        ),
        labelled_tokens,
    ),
    Case(
        "DistilBERT",
        of(
            hf.DistilBertForSequenceClassification,
            hf.DistilBertConfig,
            vocab_size=VOCABULARY,
            dim=WIDTH,
            hidden_dim=HIDDEN,
            n_layers=2,
            n_heads=HEADS,
            max_position_embeddings=32,
        ),
        labelled_tokens,
    ),
    Case(
        "ALBERT (one block, called twice)",
        of(hf.AlbertForSequenceClassification, hf.AlbertConfig, **SIZES, embedding_size=8),
        labelled_tokens,
    ),
    # encoder–decoders
    Case(
        "T5",
        of(
            hf.T5ForConditionalGeneration,
            hf.T5Config,
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=4,
            d_ff=HIDDEN,
            num_layers=2,
            num_heads=HEADS,
            decoder_start_token_id=0,
        ),
        translations,
        Custom(own_loss),
    ),
    Case(
        "BART",
        of(
            hf.BartForConditionalGeneration,
            hf.BartConfig,
            **SEQ2SEQ,
            max_position_embeddings=32,
            decoder_start_token_id=2,
        ),
        translations,
        Custom(own_loss),
    ),
    Case(
        "Whisper",
        of(
            hf.WhisperForConditionalGeneration,
            hf.WhisperConfig,
            **SEQ2SEQ,
            max_source_positions=8,
            max_target_positions=16,
            num_mel_bins=8,
            decoder_start_token_id=1,
        ),
        speech,
        Custom(own_loss),
    ),
    Case(
        "wav2vec 2.0",
        of(
            hf.Wav2Vec2ForSequenceClassification,
            hf.Wav2Vec2Config,
            **VISION,
            conv_dim=(8, 8),
            conv_stride=(4, 2),
            conv_kernel=(4, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            classifier_proj_size=8,
            mask_time_prob=0.0,
        ),
        sounds,
    ),
    # images, images with text
    Case("ViT", of(hf.ViTForImageClassification, hf.ViTConfig, **VISION, image_size=16, patch_size=4), images(16)),
    Case(
        "Swin",
        of(
            hf.SwinForImageClassification,
            hf.SwinConfig,
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        images(16),
    ),
    Case(
        "ConvNeXt (depthwise)",
        of(
            hf.ConvNextForImageClassification,
            hf.ConvNextConfig,
            image_size=32,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 2, 1],
        ),
        images(32),
    ),
    Case(
        "ResNet",
        of(
            hf.ResNetForImageClassification,
            hf.ResNetConfig,
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[2, 2],
            layer_type="basic",
        ),
        images(16),
    ),
    Case(
        "CLIP",
        of(
            hf.CLIPModel,
            hf.CLIPConfig,
            text_config={**SIZES, **SPECIAL},
            vision_config={**VISION, "image_size": 16, "patch_size": 4},
            projection_dim=12,
        ),
        captions,
        Custom(own_loss),
    ),
    Case(
        "SigLIP (in_proj)",
        of(
            hf.SiglipModel,
            hf.SiglipConfig,
            text_config={**SIZES, **SPECIAL, "projection_size": WIDTH},
            vision_config={**VISION, "image_size": 16, "patch_size": 4},
        ),
        captions,
        Custom(own_loss),
    ),
    # plain modules
    Case("residual CNN", residual_network, pictures),
    Case("CNN, grouped", lambda: residual_network(lambda _: 2), pictures),
    Case("CNN, depthwise", lambda: residual_network(lambda channels: channels), pictures),
    Case("nn.TransformerEncoder (in_proj)", Attending, sequences),
    Case("nn.LSTM", lambda: Recurrent(nn.LSTM), sequences),
    Case("nn.GRU", lambda: Recurrent(nn.GRU), sequences),
    Case("experts in a ModuleList", ListedExperts, sequences),
]
