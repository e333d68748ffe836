"""Localization module (paper sections 2.1.4 and 3.3) and a head on the extracted ears.

Axis letters: B batch, L spectral tokens, C channels, F frequency bins, T frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import AZIMUTH_BINS
from .config import LuSeeLConfig


class TokenLocalizer(nn.Module):
    """The paper's localization module.

    One 1x1 convolution per transformer layer maps its tokens, taken as channels, to
    ``token_channels`` (1256 → 100); the layers' results (5 × 100 = 500) go through the F-DoA
    encoder (500 → 512 → 256 → 1), giving one value per transformer channel; with the flattened
    GCC-PHAT (384 + 504 = 888) they enter the DoA decoder (888 → 1024 ×5 → 360).
    """

    def __init__(self, config: LuSeeLConfig):
        super().__init__()
        loc = config.localization
        self.tokens = config.spectral_tokens
        self.frames, self.gcc_frames = config.frames, config.gcc_frames
        self.project = nn.ModuleList(
            nn.Conv1d(self.tokens, loc.token_channels, 1) for _ in range(config.transformer.layers))
        sizes = (config.transformer.layers * loc.token_channels, *loc.frame_channels)
        encoder: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
            encoder += [nn.ReLU(), nn.Dropout(loc.dropout)] if i else []
            encoder.append(nn.Conv1d(a, b, 1))
        self.frame_encoder = nn.Sequential(*encoder)
        sizes = (config.width + config.gcc_features, *[loc.hidden] * loc.hidden_layers)
        decoder: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:]):
            decoder += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(loc.dropout)]
        self.decoder = nn.Sequential(*decoder, nn.Linear(loc.hidden, AZIMUTH_BINS))

    def forward(self, layer_tokens: list[Tensor], gcc: Tensor | None) -> Tensor:
        """
        Args:
            layer_tokens: one (B, L, C) per transformer layer, frame by frame; L at least
                ``self.tokens``.
            gcc: (B, frames, lags) or None without GCC-PHAT.
        Returns:
            (B, 360) logits over azimuth. What is longer than in training is heard in pieces of that
            length, as few as cover it, and their probabilities are averaged.
        """
        bins = self.tokens // self.frames
        spare = layer_tokens[0].shape[1] // bins - self.frames
        if spare <= 0:
            return self._piece(layer_tokens, gcc)
        count = math.ceil(spare / self.frames) + 1
        pieces = []
        for i in range(count):
            part = i / (count - 1)
            start = round(part * spare) * bins
            tokens = [x[:, start:start + self.tokens] for x in layer_tokens]
            if gcc is not None:
                first = round(part * (gcc.shape[1] - self.gcc_frames))
            pieces.append(self._piece(tokens, None if gcc is None else
                                      gcc[:, first:first + self.gcc_frames]))
        return torch.stack(pieces).log_softmax(-1).logsumexp(0) - math.log(count)

    def _piece(self, layer_tokens: list[Tensor], gcc: Tensor | None) -> Tensor:
        features = torch.cat([conv(x) for conv, x in zip(self.project, layer_tokens)], dim=1)
        features = self.frame_encoder(features)[:, 0]
        if gcc is not None:
            features = torch.cat([features, gcc.flatten(1)], dim=1)
        return self.decoder(features)


class ExtractedLocalizer(nn.Module):
    """DoA from the *extracted* ears: their cross-spectrum and level difference per frequency,
    averaged over time with the energy as weight (not in the paper; see ../docs/model.md)."""

    def __init__(self, bins: int, hidden: int, dropout: float):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(4 * bins, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, AZIMUTH_BINS))

    @staticmethod
    def features(spectrum: Tensor) -> Tensor:
        """(B, 2, F, T) complex → (B, 4·F): real and imaginary coherence, ILD, relative level."""
        left, right = spectrum[:, 0], spectrum[:, 1]
        cross = (left * right.conj()).sum(-1)
        energy_left = left.abs().square().sum(-1)
        energy_right = right.abs().square().sum(-1)
        total = energy_left + energy_right
        floor = total.mean(-1, keepdim=True) * 1e-6 + 1e-12
        coherence = cross / (energy_left * energy_right + floor.square()).sqrt()
        ild = torch.log((energy_left + floor) / (energy_right + floor))
        level = torch.log((total + floor) / (total.mean(-1, keepdim=True) + floor))
        return torch.cat([coherence.real, coherence.imag, ild / 4, level / 4], dim=-1)

    def forward(self, spectrum: Tensor) -> Tensor:
        """(B, 2, F, T) complex spectrum of the extracted ears → (B, 360) logits."""
        return self.network(self.features(spectrum))
