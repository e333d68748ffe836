"""The networks that separate what the picture's embedding asks for (paper 002, tables 2 and 3).

Axis letters: B batch (one ear and one picture each), N samples, F bins, R rows (bins or bands),
T frames, E width of the picture's embedding, W width of the network.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conformer import ConformerBlock, ConformerConfig, FeatureModulation
from ..lass.network import ResUNet
from .config import ConvTasNetConfig, IDUSSConfig


class Heard(NamedTuple):
    """What the conformer makes of a mixture without any picture."""

    frames: Tensor               # (B, T, W)
    tokens: Tensor | None        # (B, T·bands, V) audio side of the tagging space, bands fastest


class ConformerSeparator(nn.Module):
    """Spectrum of each frame in, spectrum or mask of each frame out, conformer blocks between."""

    def __init__(self, config: IDUSSConfig):
        super().__init__()
        stack: ConformerConfig = config.conformer
        self.embed = nn.Linear(config.rows, stack.width)
        self.plain = nn.ModuleList(ConformerBlock(stack, 0) for _ in range(stack.plain_blocks))
        self.blocks = nn.ModuleList(ConformerBlock(stack, config.projection)
                                    for _ in range(stack.blocks - stack.plain_blocks))
        self.out = nn.Linear(stack.width, config.rows)
        self.tagging = config.tagging
        if config.tagging.width:
            self.tokens = nn.Sequential(
                nn.LayerNorm(stack.width),
                nn.Linear(stack.width, config.tagging.bands * config.tagging.width))
            self.fit = nn.Linear(config.tagging.bands, stack.width)
            # bands that fit the picture raise their rows' mask directly
            self.raise_rows = nn.Linear(config.tagging.bands, config.rows)
            nn.init.zeros_(self.raise_rows.weight)
            nn.init.zeros_(self.raise_rows.bias)

    def hear(self, spectrum: Tensor) -> Heard:
        """(B, R, T) → frames and tag tokens, once for all pictures."""
        x = self.embed(spectrum.transpose(1, 2))
        for block in self.plain:
            x = block(x)
        tokens = None
        if self.tagging.width:
            tokens = self.tokens(x).unflatten(-1, (self.tagging.bands, -1)).flatten(1, 2)
        return Heard(x, tokens)

    def separate(self, frames: Tensor, condition: Tensor, fit: Tensor | None) -> Tensor:
        """Frames (B, T, W), the picture's embedding (B, E) and how well the bands of each frame fit
        the picture, (B, T, bands), or None → (B, R, T)."""
        x = frames if fit is None else frames + self.fit(fit)
        for block in self.blocks:
            x = block(x, condition)
        x = self.out(x)
        if fit is not None:
            x = x + self.raise_rows(fit)
        return x.transpose(1, 2)


class ResUNetSeparator(nn.Module):
    """LASS-Net's ResUNet (luseel_model/lass) with the picture in the place of the sentence."""

    def __init__(self, config: IDUSSConfig):
        super().__init__()
        self.network = ResUNet(config.resunet, config.projection, config.projection)
        self.pooled = config.resunet.pooled

    def forward(self, spectrum: Tensor, condition: Tensor) -> Tensor:
        """(B, R, T), R with the Nyquist bin, which takes its neighbour's mask → (B, R, T)."""
        frames = spectrum.shape[-1]
        x = F.pad(spectrum[:, None, :-1], (0, -frames % self.pooled[1]))
        query = condition if self.network.config.film_encoder else None
        logits = self.network.decode(self.network.encode(x, query), condition, None)[..., :frames]
        return torch.cat([logits, logits[:, -1:]], 1)


class ConvTasNetSeparator(nn.Module):
    """Conv-TasNet on the waveform: learnt filters, a temporal convolutional network that gives a
    mask for them, and learnt filters back. FiLM follows each of its blocks."""

    def __init__(self, config: ConvTasNetConfig, condition: int):
        super().__init__()
        self.kernel, stride = config.kernel, config.kernel // 2
        self.encoder = nn.Conv1d(1, config.filters, config.kernel, stride, bias=False)
        self.decoder = nn.ConvTranspose1d(config.filters, 1, config.kernel, stride, bias=False)
        self.norm = nn.GroupNorm(1, config.filters, eps=1e-8)
        self.bottleneck = nn.Conv1d(config.filters, config.bottleneck, 1)
        self.blocks, self.films = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.repeats):
            for place in range(config.blocks):
                self.blocks.append(nn.Sequential(
                    nn.Conv1d(config.bottleneck, config.hidden, 1),
                    nn.PReLU(), nn.GroupNorm(1, config.hidden, eps=1e-8),
                    nn.Conv1d(config.hidden, config.hidden, config.taps, dilation=2 ** place,
                              padding=config.taps // 2 * 2 ** place, groups=config.hidden),
                    nn.PReLU(), nn.GroupNorm(1, config.hidden, eps=1e-8),
                    nn.Conv1d(config.hidden, config.bottleneck, 1)))
                self.films.append(FeatureModulation(condition, config.bottleneck, 0))
        self.mask = nn.Sequential(nn.PReLU(), nn.Conv1d(config.bottleneck, config.filters, 1),
                                  nn.Sigmoid())

    def forward(self, audio: Tensor, condition: Tensor) -> Tensor:
        """(B, N) and (B, E) → (B, N)."""
        samples, stride = audio.shape[-1], self.kernel // 2
        frames = max(1, math.ceil((samples - self.kernel) / stride) + 1)
        padded = F.pad(audio, (0, (frames - 1) * stride + self.kernel - samples))
        heard = F.relu(self.encoder(padded[:, None]))
        x = self.bottleneck(self.norm(heard))
        for block, film in zip(self.blocks, self.films):
            x = x + film(block(x).transpose(1, 2), condition).transpose(1, 2)
        return self.decoder(heard * self.mask(x))[:, 0, :samples]
