"""The Qwen3 network of the `demo` model in plain torch, small enough to train on two cores.

Owns the layers, the masked loss and the int4 rounding that evaluation and the last training
phase use. Parameter names are those of a Qwen3 checkpoint, so `state_dict` is the file to ship.
It does not know the tasks (`demo_conversations.py`) nor the schedule (`train_demo_model.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch  # noqa: TID253 - training is the one place that needs it
from demo_tokenizer import IGNORED_LABEL
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253

GROUP_SIZE = 128  # NNCF's default group for int4, nncf.compress_weights docs, 3.4


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; every width that int4 groups run along is a multiple of 128."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10_000.0  # contexts are short: Qwen3's 1e6 leaves most pairs unturned
    rms_norm_eps: float = 1e-6


def round_to_int4(weight: Tensor, group_size: int = GROUP_SIZE) -> Tensor:
    """Return `weight` after symmetric int4 rounding, data-free.

    Args:
        weight: Float [out, in]; `in` is a multiple of `group_size`.
        group_size: Input columns that share one scale.

    Returns:
        Same shape and dtype; each value is one of 16 levels of its group.

    Source:
        NNCF 3.4 INT4_SYM: scale = signed value of largest magnitude / -8, levels -8 to 7.
    """
    groups = weight.float().reshape(weight.shape[0], -1, group_size)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = extreme / -8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).to(torch.bfloat16).float()
    levels = torch.clamp(torch.round(groups / scale), -8, 7)
    return (levels * scale).reshape(weight.shape).to(weight.dtype)


def round_to_int8(weight: Tensor) -> Tensor:
    """Return `weight` [out, in] after int8 rounding with one scale and zero point a row.

    Source:
        NNCF 3.4 INT8_ASYM, the default for embeddings and the output head.
    """
    low = weight.float().amin(-1, keepdim=True).clamp(max=0)
    high = weight.float().amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-8)
    zero = torch.round(-low / scale)
    levels = torch.clamp(torch.round(weight.float() / scale) + zero, 0, 255)
    return ((levels - zero) * scale).to(weight.dtype)


class Linear(nn.Linear):
    """A projection without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys, as in Qwen3."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, size = shape.hidden_size, shape.head_dim
        self.q_proj = Linear(width, shape.num_heads * size)
        self.k_proj = Linear(width, shape.num_kv_heads * size)
        self.v_proj = Linear(width, shape.num_kv_heads * size)
        self.o_proj = Linear(shape.num_heads * size, width)
        self.q_norm = nn.RMSNorm(size, eps=shape.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, eps=shape.rms_norm_eps)

    def forward(self, values: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Mix `values` [batch, tokens, width] causally; `angles` are cos and sin."""
        batch, tokens, _ = values.shape
        heads = (batch, tokens, -1, self.shape.head_dim)
        q = _rotate(self.q_norm(self.q_proj(values).view(heads)).transpose(1, 2), angles)
        k = _rotate(self.k_norm(self.k_proj(values).view(heads)).transpose(1, 2), angles)
        v = self.v_proj(values).view(heads).transpose(1, 2)
        repeats = self.shape.num_heads // self.shape.num_kv_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        # Plain operations: on CPU the fused kernel's backward pass is a third of a step.
        scores = (q @ k.transpose(-1, -2)).float() * self.shape.head_dim**-0.5
        future = torch.full((tokens, tokens), float("-inf")).triu(1)
        mixed = torch.softmax(scores + future, -1).to(v.dtype) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    """Gated feed-forward block (SwiGLU)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        """Transform `values` [..., width] token by token."""
        return self.down_proj(functional.silu(self.gate_proj(values)) * self.up_proj(values))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, values: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Add attention, then the feed-forward block, to `values` [batch, tokens, width]."""
        values = values + self.self_attn(self.input_layernorm(values), angles)
        return values + self.mlp(self.post_attention_layernorm(values))


class Decoder(nn.Module):
    """Embedding, layers and last norm: the part a checkpoint calls `model`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return hidden states [batch, tokens, width] of `token_ids` [batch, tokens]."""
        size, theta = self.shape.head_dim, self.shape.rope_theta
        rates = theta ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
        turns = torch.arange(token_ids.shape[1], dtype=torch.float32)[:, None] * rates
        turns = torch.cat([turns, turns], -1)
        values = self.embed_tokens(token_ids)
        for layer in self.layers:
            values = layer(values, (turns.cos(), turns.sin()))
        return self.norm(values)


class Network(nn.Module):
    """A causal language model whose output head is its embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Decoder(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                spread = 0.02 if "o_proj" not in name and "down_proj" not in name else 0.007
                nn.init.normal_(parameter, std=spread)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return logits [batch, tokens, vocab] of `token_ids` [batch, tokens]."""
        return functional.linear(self.model(token_ids), self.model.embed_tokens.weight)

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over labelled positions only.

        Args:
            hidden: What the decoder gave, float [batch, tokens, width].
            labels: int64 [batch, tokens], already shifted; `IGNORED_LABEL` elsewhere.
        """
        wanted = labels != IGNORED_LABEL
        logits = functional.linear(hidden[wanted], self.model.embed_tokens.weight)
        return functional.cross_entropy(logits.float(), labels[wanted])


def _rotate(values: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to `values` [batch, heads, tokens, head_dim]."""
    cos, sin = (angle.to(values.dtype) for angle in angles)
    first, second = values.chunk(2, -1)
    return values * cos + torch.cat([-second, first], -1) * sin


def compressed_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's weights after int4 projections and int8 embeddings.

    Args:
        weights: Tensors by Qwen3 checkpoint name; not modified.

    Returns:
        New tensors of the same shapes and dtypes; norms are shared, not copied.
    """
    rounded = {}
    for name, weight in weights.items():
        if "embed_tokens" in name:
            rounded[name] = round_to_int8(weight)
        elif weight.dim() == 2:
            rounded[name] = round_to_int4(weight)
        else:
            rounded[name] = weight
    return rounded


@contextmanager
def compressed_parameters(network: Network) -> Iterator[None]:
    """Lend `network` its compressed weights, so that gradients are those of int4.

    State:
        On exit the parameters have their values of before; gradients stay.
    """
    kept = {name: value.detach().clone() for name, value in network.named_parameters()}
    rounded = compressed_weights(kept)
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(rounded[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(kept[name])
