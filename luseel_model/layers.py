"""Encoder and decoder layers of the hybrid backbone (paper section 2.1.2; HTDemucs).

The sub-module names follow the public ``demucs`` package, so that weights of its HTDemucs load by
renaming prefixes (test/test_parity.py). Axis letters: B batch, C channels, F frequencies, T time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_PERIOD = 10000.0  # of sinusoidal positions


class LayerScale(nn.Module):
    """Learnt gain per channel, starting small, that fades a residual branch in."""

    def __init__(self, channels: int, init: float, channel_last: bool = False):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(init)))
        self.channel_last = channel_last

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale if self.channel_last else self.scale[:, None])


class DConv(nn.Module):
    """Residual branch of dilated convolutions along time, in a compressed space."""

    def __init__(self, channels: int, compress: int, depth: int, init: float):
        super().__init__()
        hidden = max(1, channels // compress)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels, hidden, 3, dilation=2**d, padding=2**d),
                nn.GroupNorm(1, hidden), nn.GELU(),
                nn.Conv1d(hidden, 2 * channels, 1),
                nn.GroupNorm(1, 2 * channels), nn.GLU(1),
                LayerScale(channels, init),
            )
            for d in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T), or (B, C, F, T) with each frequency on its own; same shape out."""
        if x.dim() == 4:
            batch, channels, bins, frames = x.shape
            y = x.transpose(1, 2).reshape(batch * bins, channels, frames)
            return self(y).view(batch, bins, channels, frames).transpose(1, 2)
        for layer in self.layers:
            x = x + layer(x)
        return x


def _norm(groups: int, channels: int) -> nn.Module:
    return nn.GroupNorm(groups, channels) if groups else nn.Identity()


class EncoderLayer(nn.Module):
    """Strided convolution, GELU, DConv branch, gated 1x1 (or wider) 'rewrite' convolution.

    Works along frequency on (B, C, F, T) when ``frequency``, else along time on (B, C, T).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, frequency: bool, context: int,
                 groups: int, dconv: DConv | None):
        super().__init__()
        self.frequency, self.stride = frequency, stride
        conv = nn.Conv2d if frequency else nn.Conv1d
        kernel, step, pad = 2 * stride, stride, stride // 2
        self.conv = conv(inputs, outputs, (kernel, 1), (step, 1), (pad, 0)) if frequency else \
            conv(inputs, outputs, kernel, step, pad)
        self.norm1 = _norm(groups, outputs)
        self.rewrite = conv(outputs, 2 * outputs, 1 + 2 * context, padding=context)
        self.norm2 = _norm(groups, 2 * outputs)
        self.dconv = dconv

    def forward(self, x: Tensor) -> Tensor:
        if not self.frequency and x.shape[-1] % self.stride:
            x = F.pad(x, (0, self.stride - x.shape[-1] % self.stride))
        x = F.gelu(self.norm1(self.conv(x)))
        if self.dconv is not None:
            x = self.dconv(x)
        return F.glu(self.norm2(self.rewrite(x)), dim=1)


class DecoderLayer(nn.Module):
    """Mirror of :class:`EncoderLayer`: adds the skip, rewrites, convolves back up."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, frequency: bool, context: int,
                 groups: int, dconv: DConv | None, last: bool):
        super().__init__()
        self.frequency, self.last, self.trim = frequency, last, stride // 2
        conv = nn.Conv2d if frequency else nn.Conv1d
        transposed = nn.ConvTranspose2d if frequency else nn.ConvTranspose1d
        self.rewrite = conv(inputs, 2 * inputs, 1 + 2 * context, padding=context)
        self.norm1 = _norm(groups, 2 * inputs)
        self.dconv = dconv
        kernel = 2 * stride
        self.conv_tr = transposed(inputs, outputs, (kernel, 1), (stride, 1)) if frequency else \
            transposed(inputs, outputs, kernel, stride)
        # no normalisation of the network's own output
        self.norm2 = _norm(0 if last else groups, outputs)

    def forward(self, x: Tensor, skip: Tensor, length: int) -> Tensor:
        """``length``: size of the restored axis (frequencies, or samples of the time branch)."""
        x = F.glu(self.norm1(self.rewrite(x + skip)), dim=1)
        if self.dconv is not None:
            x = self.dconv(x)
        x = self.norm2(self.conv_tr(x))
        x = x.narrow(2, self.trim, length)
        return x if self.last else F.gelu(x)


class FrequencyEmbedding(nn.Module):
    """Learnt, initially smooth embedding of the frequency axis (HTDemucs), scaled 10× so that it
    learns faster than the convolutions."""

    SCALE = 10.0

    def __init__(self, bins: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(bins, channels)
        smooth = torch.cumsum(self.embedding.weight.data, dim=0)
        smooth = smooth / torch.arange(1, bins + 1).to(smooth).sqrt()[:, None]
        self.embedding.weight.data[:] = smooth / self.SCALE

    def forward(self) -> Tensor:
        """(1, C, F, 1)"""
        return (self.embedding.weight * self.SCALE).t()[None, :, :, None]


def position_embedding_1d(length: int, width: int, device=None) -> Tensor:
    """Sinusoidal positions, (length, width): cosines, then sines (HTDemucs)."""
    half = width // 2
    position = torch.arange(length, device=device, dtype=torch.float32)[:, None]
    rates = _MAX_PERIOD ** (torch.arange(half, device=device) / (half - 1))
    phase = position / rates
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def position_embedding_2d(bins: int, frames: int, width: int, device=None) -> Tensor:
    """Sinusoidal positions of (frame, frequency) tokens, frequency fastest: (frames·bins, width).

    The first half of the channels carries the frame, the second the frequency, sine and cosine
    interleaved (HTDemucs).
    """
    half = width // 2
    rates = torch.exp(torch.arange(0, half, 2, device=device) * (-math.log(_MAX_PERIOD) / half))

    def interleaved(length: int) -> Tensor:
        phase = torch.arange(length, device=device, dtype=torch.float32)[:, None] * rates
        return torch.stack([phase.sin(), phase.cos()], dim=-1).reshape(length, half)

    time = interleaved(frames)[:, None].expand(frames, bins, half)
    frequency = interleaved(bins)[None].expand(frames, bins, half)
    return torch.cat([time, frequency], dim=-1).reshape(frames * bins, width)


class FiLM(nn.Module):
    """Feature-wise linear modulation by an embedding of the query: (1 + scale) · x + shift.

    Starts as the identity, so that a network without a query equals its backbone.
    """

    def __init__(self, query_width: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(query_width, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, query: Tensor, channel_dim: int = -1) -> Tensor:
        """``x`` any shape with the batch first, ``query`` (B, D)."""
        shape = [x.shape[0]] + [1] * (x.dim() - 1)
        shape[channel_dim] = x.shape[channel_dim]
        scale, shift = (part.view(shape) for part in self.linear(query).chunk(2, dim=-1))
        return x * (1 + scale) + shift


class PhraseMatcher(nn.Module):
    """Text side of a joint space of sounds and phrases: how well audio matches sentences.

    Args:
        embedding: width of the frozen text embedding.
        width: of the joint space.
    """

    def __init__(self, embedding: int, width: int):
        super().__init__()
        self.text = nn.Linear(embedding, width)
        self.width = width

    def similarity(self, audio: Tensor, sentence: Tensor) -> Tensor:
        """(B, N, W) audio and unit-length sentences (K, E) or (B, K, E) → (B, N, K)."""
        # unit-length sentences have tiny entries: bring them to unit variance for the projection
        text = self.text(sentence.float() * sentence.shape[-1] ** 0.5)
        return audio.float() @ text.transpose(-1, -2) / self.width ** 0.5


class Tagger(PhraseMatcher):
    """Matches spectral tokens with phrases in a joint space (not in the papers).

    The audio side projects encoder tokens, the text side the frozen sentence embedding (masked
    mean of the token embeddings, unit length). Trained with dense and clip labels.
    """

    def __init__(self, channels: int, embedding: int, width: int):
        super().__init__(embedding, width)
        self.audio = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(-6.0))

    @staticmethod
    def pool(similarity: Tensor) -> Tensor:
        """(B, L, K) → (B, K): how well the clip as a whole matches, a soft maximum over tokens."""
        return torch.logsumexp(similarity.float(), dim=1)

    def presence(self, similarity: Tensor) -> Tensor:
        """(B, L, K) → (B, K) logits."""
        return self.scale * self.pool(similarity) + self.bias


class SameConv2d(nn.Conv2d):
    """Convolution that pads as TensorFlow's 'SAME': one more behind than before, where it must."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
                 bias: bool = True):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride):
            pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [pad // 2, pad - pad // 2]
        if pads[::2] == pads[1::2]:  # the same on both sides: the convolution pads without a copy
            return F.conv2d(x, self.weight, self.bias, self.stride, (pads[2], pads[0]), 1,
                            self.groups)
        return super().forward(F.pad(x, pads))


def spectrogram_holes(batch: int, rows: int, columns: int, device) -> Tensor:
    """(batch, rows, columns) of ones with holes of zeros: up to an eighth of the rows and a fifth of
    the columns of each (SpecAugment, Park et al. 2019)."""
    holes = torch.ones(batch, rows, columns, device=device)
    for size, most, shape in ((rows, rows // 8, (-1, rows, 1)),
                              (columns, columns // 5, (-1, 1, columns))):
        width, place = torch.rand(2, batch, 1, device=device)
        width = width * most
        begin = place * (size - width)
        at = torch.arange(size, device=device)
        inside = (at >= begin) & (at < begin + width)
        holes = holes * (~inside).float().view(shape)
    return holes


def rescale_convolutions(module: nn.Module, reference: float) -> None:
    """HTDemucs' initialisation: each convolution's weights are divided by sqrt(std/reference)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
            scale = (layer.weight.std().detach() / reference) ** 0.5
            layer.weight.data /= scale
            if layer.bias is not None:
                layer.bias.data /= scale
