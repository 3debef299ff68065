"""Modules that hold several matrices in one parameter, opened into layers of their own and closed again.

Torch's attention keeps q, k and v in `in_proj_weight`; mixtures of experts in transformers stack the matrices of all
experts in one 3-D parameter. Neither calls a layer for them, so none can share a basis before it is opened.
"""

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from geocolor.mapped import copied, put_in_files
from solvers.atomic import writable_folder

#: What transformers' experts tell of themselves (`transformers.integrations.moe.use_experts_implementation`).
_EXPERTS_INTERFACE = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")


def unpack(model: nn.Module, inplace: bool = False, files: Path | None = None) -> nn.Module:
    """The same function with layers where matrices were packed together: attention by torch, stacked experts.

    A copy is changed unless `inplace`. Values, dtypes and devices (also "meta") stay; outputs agree up to rounding.
    Opened experts run one after the other, over the tokens that chose them, as transformers' eager experts do. With a
    folder `files` the layers' parameters lie in files there, not in memory (`geocolor.mapped`).
    """
    files = None if files is None else writable_folder(files)
    target = model if inplace else copied(model, files)
    for name in [name for name, module in target.named_modules() if is_packed(module)]:
        module = target.get_submodule(name)
        opened = OpenAttention(module) if isinstance(module, nn.MultiheadAttention) else OpenExperts(module, files)
        if files is not None and isinstance(opened, OpenAttention):
            put_in_files(opened.parameters(), files)
        if not name:
            return opened
        target.set_submodule(name, opened)
    return target


def pack(model: nn.Module, files: Path | None = None) -> nn.Module:
    """Undo `unpack` in place, where all layers of a module are plain again; with `files` as there."""
    for name in [name for name, module in model.named_modules() if isinstance(module, OpenAttention | OpenExperts)]:
        module = model.get_submodule(name)
        assert isinstance(module, OpenAttention | OpenExperts)
        closed = module.close()
        if files is not None:
            put_in_files(closed.parameters(), files)
        if not name:
            return closed
        model.set_submodule(name, closed)
    return model


def unpack_as_planned(model: nn.Module, layers: Iterable[str], files: Path | None = None) -> None:
    """Open the modules of `model`, in place, if one of these planned layers lies inside of a packed one.

    `files` as for `unpack`.
    """
    packed = [name for name, module in model.named_modules() if name and is_packed(module)]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    inside = tuple(f".{spelling}." for name in packed for spelling in (name, name.removeprefix(prefix)))
    if inside and any(part in f".{layer}." for layer in layers for part in inside):
        unpack(model, inplace=True, files=files)


def is_packed(module: nn.Module) -> bool:
    """Whether `unpack` opens this module."""
    if isinstance(module, nn.MultiheadAttention):
        plain = type(module).forward is nn.MultiheadAttention.forward and "forward" not in module.__dict__
        return plain and module.bias_k is None and not module.add_zero_attn
    if not all(hasattr(module, name) for name in _EXPERTS_INTERFACE):
        return False
    matrices = [getattr(module, name, None) for name in (_up(module), "down_proj")]
    return all(isinstance(matrix, nn.Parameter) and matrix.ndim == 3 for matrix in matrices)


class OpenAttention(nn.Module):
    """What an nn.MultiheadAttention computes, with `q`, `k`, `v` and `out` as layers."""

    #: Torch's encoder layers read this and then call the module instead of their fused kernel.
    _qkv_same_embed_dim = False

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = packed.embed_dim, packed.num_heads, packed.head_dim
        self.batch_first, self.dropout = packed.batch_first, packed.dropout
        self.kdim, self.vdim = packed.kdim, packed.vdim
        if packed._qkv_same_embed_dim:
            weights: tuple[Tensor, ...] = packed.in_proj_weight.chunk(3)
        else:
            weights = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
        biases = (None, None, None) if packed.in_proj_bias is None else packed.in_proj_bias.chunk(3)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        self.out = _linear(packed.out_proj.weight, packed.out_proj.bias)
        self.register_buffer("in_proj_weight", _mark(weights[0], 3, 1))
        self.register_buffer("in_proj_bias", weights[0].detach().new_empty(0), persistent=False)  # some models fill it
        self.train(packed.training)

    def close(self) -> nn.MultiheadAttention:
        like = self.q.weight
        with torch.device("meta"):
            bias = self.q.bias is not None
            packed = nn.MultiheadAttention(
                self.embed_dim,
                self.num_heads,
                self.dropout,
                bias,
                kdim=self.kdim,
                vdim=self.vdim,
                batch_first=self.batch_first,
                dtype=like.dtype,
            )
        packed.to_empty(device=like.device)
        layers = (self.q, self.k, self.v)
        with torch.no_grad():
            if packed._qkv_same_embed_dim:
                packed.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
            else:
                for name, layer in zip("qkv", layers, strict=True):
                    getattr(packed, f"{name}_proj_weight").copy_(layer.weight)
            packed.out_proj.weight.copy_(self.out.weight)
            if bias:
                packed.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
                packed.out_proj.bias.copy_(self.out.bias)
        return packed.train(self.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention; `is_causal` is a hint beside `attn_mask`, as it is there."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is missing")
        batched, across = query.ndim == 3, query.ndim == 3 and not self.batch_first
        q, k, v = (
            self._heads(projected.transpose(0, 1) if across else projected if batched else projected.unsqueeze(0))
            for projected in (self.q(query), self.k(key), self.v(value))
        )
        mask = _mask(
            q, k, attn_mask, key_padding_mask if batched or key_padding_mask is None else key_padding_mask[None]
        )
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
            weights = dropout((scores if mask is None else scores + mask).softmax(-1), rate, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = scaled_dot_product_attention(q, k, v, mask, rate)
        y = self.out(y.transpose(1, 2).flatten(2))
        return (y.transpose(0, 1) if across else y if batched else y[0]), weights

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, heads, length, head_dim] of [batch, length, width]."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        return heads


class OpenExperts(nn.Module):
    """What stacked experts compute, with lists of layers: `up` (with the gate, where there is one) and `down`.

    `shell` is the module that was opened, without its matrices: its activation, gate and norm.
    """

    up: nn.ModuleList
    down: nn.ModuleList
    shell: Any

    def __init__(self, packed: nn.Module, files: Path | None = None) -> None:
        super().__init__()
        self.num_experts = int(packed.num_experts)  # type: ignore[arg-type]
        matrices = {"up": _up(packed), "down": "down_proj"}
        for own, name in matrices.items():
            stacked, biases = getattr(packed, name), getattr(packed, f"{name}_bias", None)
            matrix = stacked.transpose(1, 2) if packed.is_transposed else stacked
            linears = nn.ModuleList()
            for i in range(len(matrix)):
                linears.append(_linear(matrix[i], None if biases is None else biases[i]))
                if files is not None:
                    put_in_files(linears[-1].parameters(), files)
            setattr(self, own, linears)
        self.register_buffer(_up(packed), _mark(getattr(packed, _up(packed)), 1, 2, 2))
        self.shell = copy.copy(packed)
        self.shell._parameters = {
            name: None if parameter is not None and name.startswith(tuple(matrices.values())) else parameter
            for name, parameter in packed._parameters.items()
        }
        self.shell._is_hf_initialized = True  # transformers would draw values for the matrices that are not there
        self.train(packed.training)

    def close(self) -> nn.Module:
        packed: nn.Module = copy.copy(self.shell)
        shell = self.shell
        packed.__dict__.pop("_is_hf_initialized", None)
        packed._parameters = dict(shell._parameters)
        for own, name in (("up", _up(shell)), ("down", "down_proj")):
            layers = getattr(self, own)
            stacked = torch.stack([layer.weight.detach() for layer in layers])
            stacked = stacked.transpose(1, 2).contiguous() if shell.is_transposed else stacked
            packed._parameters[name] = nn.Parameter(stacked, layers[0].weight.requires_grad)
            if layers[0].bias is not None:
                biases = torch.stack([layer.bias.detach() for layer in layers])
                packed._parameters[f"{name}_bias"] = nn.Parameter(biases, layers[0].bias.requires_grad)
        return packed.train(self.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[tokens, width] of tokens [tokens, width], the experts each chose [tokens, k] and their weights."""
        shell = self.shell
        result = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:
                continue  # stands for "no expert"
            token, choice = torch.where(top_k_index == expert)
            inner = self.up[expert](hidden_states[token])
            y = self.down[expert](shell._apply_gate(inner) if shell.has_gate else shell.act_fn(inner))
            y = shell.post_expert_norm(y) if shell.has_post_expert_norm else y
            result.index_add_(0, token, (y * top_k_weights[token, choice, None]).to(result.dtype))
        return result


def _up(module: nn.Module) -> str:
    """The name of the parameter that experts read their input by."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear


def _mark(like: Tensor, *shape: int) -> Tensor:
    """Stands under the name of the packed parameter, so that a load into a packed model fails on its shape.

    Of few numbers, but of as many dimensions: what splits and joins the parameter between file and model works on it.
    """
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def _mask(q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Both masks as one that is added to the scores [batch, heads, length, length of keys]."""
    total: Tensor | None = None
    if attn_mask is not None:
        total = _additive(attn_mask, q)
        total = total.unflatten(0, q.shape[:2]) if total.ndim == 3 else total
    if padding is not None:
        keys = _additive(padding, q)[:, None, None, :]
        total = keys if total is None else total + keys
    return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask.to(like.dtype)
