"""Cross-domain transformer with FiLM (paper section 2.1.3) and the text adapter (2.1.1).

Sub-module names follow the ``demucs`` package (see layers.py). Axis letters: B batch (or batch ×
queries), L tokens, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextConfig
from ..layers import FiLM, LayerScale, position_embedding_1d, position_embedding_2d
from .config import TransformerConfig


class TokenGroupNorm(nn.GroupNorm):
    """GroupNorm over all tokens and channels of (B, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class AttentionLayer(nn.Module):
    """Pre-norm attention and feed-forward with LayerScale, and a GroupNorm at the output.

    Self-attention when ``cross`` is False, else attention to another stream.
    """

    def __init__(self, width: int, config: TransformerConfig, cross: bool):
        super().__init__()
        self.cross = cross
        attention = nn.MultiheadAttention(width, config.heads, config.dropout, batch_first=True)
        hidden = int(width * config.feed_forward)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        if cross:
            self.cross_attn = attention
            self.norm3 = nn.LayerNorm(width)
        else:
            self.self_attn = attention
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)
        self.gamma_1 = LayerScale(width, config.layer_scale, channel_last=True)
        self.gamma_2 = LayerScale(width, config.layer_scale, channel_last=True)
        self.norm_out = TokenGroupNorm(1, width)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """``x`` (B, L, C), ``other`` (B, M, C) for a cross layer → (B, L, C)."""
        query = self.norm1(x)
        if self.cross:
            memory, attention, norm = self.norm2(other), self.cross_attn, self.norm3
        else:
            memory, attention, norm = query, self.self_attn, self.norm2
        attended = attention(query, memory, memory, need_weights=False)[0]
        x = x + self.gamma_1(self.dropout(attended))
        hidden = self.dropout(F.gelu(self.linear1(norm(x))))
        x = x + self.gamma_2(self.dropout(self.linear2(hidden)))
        return self.norm_out(x)


class CrossDomainTransformer(nn.Module):
    """Self-attention at layers 0, 2, 4, …, cross-attention between the spectral and the time
    stream at 1, 3, …, FiLM by the text before each self-attention layer.

    Without a time stream (``time_branch`` False) every layer attends to its own stream.
    """

    def __init__(self, width: int, config: TransformerConfig, text_width: int, time_branch: bool):
        super().__init__()
        self.width, self.time_branch = width, time_branch

        def stream():
            return nn.ModuleList(
                AttentionLayer(width, config, cross=time_branch and i % 2 == 1)
                for i in range(config.layers))

        def film():
            return nn.ModuleDict({str(i): FiLM(text_width, width)
                                  for i in range(config.layers) if not (time_branch and i % 2)})

        self.norm_in, self.layers, self.film = nn.LayerNorm(width), stream(), film()
        if time_branch:
            self.norm_in_t, self.layers_t, self.film_t = nn.LayerNorm(width), stream(), film()

    def forward(self, x: Tensor, xt: Tensor | None, text: Tensor
                ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """
        Args:
            x: (B, C, F, T) spectral stream.
            xt: (B, C, L) time stream, or None.
            text: (B, D) text embedding.
        Returns:
            both streams in the same shapes, and the spectral tokens (B, T·F, C) after each layer.
        """
        batch, channels, bins, frames = x.shape
        x = x.permute(0, 3, 2, 1).reshape(batch, frames * bins, channels)
        x = self.norm_in(x) + position_embedding_2d(bins, frames, channels, x.device)
        if self.time_branch:
            xt = self.norm_in_t(xt.transpose(1, 2))
            xt = xt + position_embedding_1d(xt.shape[1], channels, xt.device)
        spectral_tokens = []
        for i, layer in enumerate(self.layers):
            if layer.cross:
                x, xt = layer(x, xt), self.layers_t[i](xt, x)
            else:
                x = layer(self.film[str(i)](x, text))
                if self.time_branch:
                    xt = self.layers_t[i](self.film_t[str(i)](xt, text))
            spectral_tokens.append(x)
        x = x.view(batch, frames, bins, channels).permute(0, 3, 2, 1)
        return x, xt.transpose(1, 2) if self.time_branch else None, spectral_tokens


class TextAdapter(nn.Module):
    """Trainable self-attention layers on the frozen token embeddings, then their masked mean."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.project = nn.Identity() if config.embedding == config.width else \
            nn.Linear(config.embedding, config.width)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.feed_forward, config.dropout, activation="gelu",
            batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            tokens: (B, L, E) frozen token embeddings.
            mask: (B, L) bool, True at real tokens.
        Returns:
            (B, D) text embedding.
        """
        x = self.layers(self.project(tokens), src_key_padding_mask=~mask)
        weight = mask[..., None].to(x.dtype)
        return self.norm((x * weight).sum(1) / weight.sum(1).clamp(min=1))
