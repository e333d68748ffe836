"""Conformer blocks that a query modulates (paper 002, section 2.2 and figure 2).

A block is Gulati et al.'s (*Conformer*, Interspeech 2020), feed-forward, self-attention and
convolution, each with a residual connection; FiLM follows the feed-forward module, and the
convolution has a squeeze-excitation layer. The libraries' blocks (transformers, torchaudio) leave
no place for either, so they are written here; their parts are the references of the tests.

Axis letters: B batch, T frames, W width, E width of the query's embedding.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import require, require_at_least, require_share


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
    """A stack of blocks; the defaults are the paper's.

    Attributes:
        blocks: how many.
        width, heads, feed_forward: of the attention, and of the feed-forward module within.
        feed_forwards: feed-forward modules of a block: 1 in the paper's words and by its count of
            parameters, 2 half steps around the others in Gulati et al.'s.
        kernel: frames that the depthwise convolution spans, odd.
        reduction: of the squeeze-excitation layer.
        film: width within the perceptrons that give scale and shift; 0: one linear layer each.
        plain_blocks: so many first blocks have no FiLM: they run once for all queries.
        dropout: of each module's output.
    """

    blocks: int = 16
    width: int = 256
    heads: int = 4
    feed_forward: int = 1024
    feed_forwards: int = 1
    kernel: int = 31
    reduction: int = 8
    film: int = 1024
    plain_blocks: int = 0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "blocks", "width", "heads", "feed_forward", "kernel", "reduction")
        require_at_least(self, 0, "film", "plain_blocks")
        require_share(self, "dropout")
        require(self.feed_forwards in (1, 2), "feed_forwards must be 1 or 2")
        require(self.kernel % 2 == 1, f"kernel must be odd, got {self.kernel}")
        require(self.width % (2 * self.heads) == 0, "width must be a multiple of 2 * heads")
        require(self.width % self.reduction == 0, "width must be a multiple of reduction")
        require(self.plain_blocks < self.blocks, "plain_blocks must be fewer than blocks")


class FeatureModulation(nn.Module):
    """FiLM: g1(e)·h + g2(e) (paper, equation 2), an identity before training.

    Args:
        condition: E.
        width: W.
        hidden: width within g1 and g2; 0: one linear layer each.
    """

    def __init__(self, condition: int, width: int, hidden: int):
        super().__init__()
        self.scale, self.shift = (
            nn.Sequential(nn.Linear(condition, hidden), nn.ReLU(), nn.Linear(hidden, width))
            if hidden else nn.Sequential(nn.Linear(condition, width)) for _ in range(2))
        for layer, value in ((self.scale[-1], 1.0), (self.shift[-1], 0.0)):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.constant_(layer.bias, value)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """(B, T, W) and (B, E) → (B, T, W)."""
        return self.scale(condition)[:, None] * h + self.shift(condition)[:, None]


class FeedForward(nn.Sequential):
    """Norm, widen, swish, narrow: (B, T, W) → (B, T, W)."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(),
                         nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout))


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al., *RoFormer*): (B, heads, T, D) turned by the frame's number, so
    that the product of two frames depends on how far apart they are."""
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class SelfAttention(nn.Module):
    """Norm and multi-head self-attention with rotary positions: (B, T, W) → (B, T, W)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(self.norm(x)).unflatten(
            -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(rotate(query), rotate(key), value)
        return self.dropout(self.out(heard.transpose(1, 2).flatten(2)))


class SqueezeExcitation(nn.Module):
    """A gain in (0, 1) for each channel, from all channels' means over time: (B, W, T)."""

    def __init__(self, width: int, reduction: int):
        super().__init__()
        self.gains = nn.Sequential(nn.Linear(width, width // reduction), nn.ReLU(),
                                   nn.Linear(width // reduction, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gains(x.mean(-1))[..., None]


class Convolution(nn.Module):
    """Norm, gate, depthwise convolution along time, swish, squeeze-excitation: (B, T, W) same out.

    The norm within is over the channels: with a batch norm a window's output would hang on what
    the training batches were like.
    """

    def __init__(self, width: int, kernel: int, reduction: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.inner_norm = nn.LayerNorm(width)
        self.excitation = SqueezeExcitation(width, reduction)
        self.out = nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(F.glu(self.gate(self.norm(x).transpose(1, 2)), 1))
        x = F.silu(self.inner_norm(x.transpose(1, 2)).transpose(1, 2))
        return self.dropout(self.out(self.excitation(x)).transpose(1, 2))


class ConformerBlock(nn.Module):
    """One block.

    Args:
        config: of the stack.
        condition: E, width of the query's embedding; 0: a block without FiLM.
    """

    def __init__(self, config: ConformerConfig, condition: int):
        super().__init__()
        width, dropout = config.width, config.dropout
        self.step = 1.0 / config.feed_forwards
        self.feed_forward = FeedForward(width, config.feed_forward, dropout)
        self.film = FeatureModulation(condition, width, config.film) if condition else None
        self.attention = SelfAttention(width, config.heads, dropout)
        self.convolution = Convolution(width, config.kernel, config.reduction, dropout)
        self.second = FeedForward(width, config.feed_forward, dropout) \
            if config.feed_forwards == 2 else None
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, T, W) and the query's embedding (B, E) → (B, T, W)."""
        h = self.feed_forward(x)
        if self.film is not None:
            h = self.film(h, condition)
        x = x + self.step * h
        x = x + self.attention(x)
        x = x + self.convolution(x)
        if self.second is not None:
            x = x + self.step * self.second(x)
        return self.norm(x)
