"""Multi-clue target sound extraction (paper 003): a DCCRN that any subset of clues conditions.

Letters: B mixtures, Q queries, N samples, F frequencies, T frames, C channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network import Network
from .attention import Clues, ClueProcessing
from .complex_layers import ComplexConv2d, ComplexConvTranspose2d, ComplexLSTM, complex_cat
from .config import DCCRNConfig, MultiClueConfig

_EPS = 1e-8


@dataclass
class MultiClueOutput:
    """Attributes:
        audio: (B, Q, N).
        spectrum: (B, Q, F + 1, T) complex, of ``audio``.
        attention: (B, Q, heads, T_a, L), rows sum to 1; the places of L are those of
            ``config.clue_slots``.
        presence_logits: (B, Q), or None.
        match: (B, Q, T, bands) how well bottleneck and clue match, or None.
    """

    audio: Tensor
    spectrum: Tensor
    attention: Tensor
    presence_logits: Tensor | None = None
    match: Tensor | None = None


@dataclass
class Encoded:
    """What doesn't depend on the queries: ``level`` (B, 1) of the mixture, its ``spectrum``
    (B, F + 1, T), ``skips`` of the encoder's layers (B, C_i, F_i, T), ``frames`` of the sound
    encoder (B, T_a, C), ``tokens`` of the bottleneck to compare with clues (B, T, bands, M), or
    None."""

    level: Tensor
    spectrum: Tensor
    skips: list[Tensor]
    frames: Tensor
    tokens: Tensor | None = None


def stft(audio: Tensor, config: DCCRNConfig) -> Tensor:
    """(..., N) to (..., n_fft / 2 + 1, T), complex, frame k centred on sample k · hop."""
    *lead, samples = audio.shape
    window = torch.hann_window(config.frame, device=audio.device)
    spectrum = torch.stft(audio.reshape(-1, samples), config.n_fft, config.hop, config.frame,
                          window, return_complex=True)
    return spectrum.unflatten(0, tuple(lead))


def istft(spectrum: Tensor, config: DCCRNConfig, samples: int) -> Tensor:
    """Inverse of :func:`stft`: (..., n_fft / 2 + 1, T) to (..., samples)."""
    window = torch.hann_window(config.frame, device=spectrum.device)
    audio = torch.istft(spectrum.flatten(0, -3), config.n_fft, config.hop, config.frame, window,
                        length=samples)
    return audio.unflatten(0, tuple(spectrum.shape[:-2]))


def bounded_mask(spectrum: Tensor, mask: Tensor) -> Tensor:
    """DCCRN's mask in polar form ('E'): the magnitude is multiplied by tanh of the mask's, the
    phase is turned by the mask's.

    Args:
        spectrum: (..., F, T) complex.
        mask: (..., F, T, 2) real and imaginary part.
    """
    mask = mask.float()
    size = (mask.square().sum(-1, keepdim=True) + _EPS).sqrt()
    return spectrum * torch.view_as_complex((mask * torch.tanh(size) / size).contiguous())


class DCCRN(nn.Module):
    """Encoder, complex LSTM and decoder; the clue is added before the LSTM."""

    def __init__(self, config: DCCRNConfig, sound_width: int):
        """``sound_width``: of the sound encoder's frames."""
        super().__init__()
        self.config = config
        channels = (4 if config.log_input else 2, *config.channels)
        self.encoder = nn.ModuleList(
            nn.Sequential(ComplexConv2d(channels[i], channels[i + 1], config.kernel, stride),
                          self._norm(channels[i + 1]), nn.PReLU())
            for i, stride in enumerate(config.strides))
        self.lstm = ComplexLSTM(config.width, config.lstm_hidden, config.lstm_layers)
        decoder: list[nn.Module] = []
        for i in reversed(range(len(config.strides))):
            layer = [ComplexConvTranspose2d(2 * channels[i + 1], channels[i] if i else 2,
                                            config.kernel, config.strides[i])]
            if i:  # no normalisation of the mask
                layer += [self._norm(channels[i]), nn.PReLU()]
            decoder.append(nn.Sequential(*layer))
        self.decoder = nn.ModuleList(decoder)
        # half the mixture is the best guess before anything is known
        with torch.no_grad():
            self.decoder[-1][0].bias.copy_(torch.tensor([0.55, 0.0]))
            for kernel in (self.decoder[-1][0].real, self.decoder[-1][0].imaginary):
                kernel.mul_(0.1)
        self.films = nn.ModuleList()
        if config.film:
            self.films.extend(nn.Linear(config.width, 2 * c) for c in reversed(config.channels))
            for film in self.films:
                nn.init.zeros_(film.weight)
                nn.init.zeros_(film.bias)
        if config.matching:
            self.match_sound = nn.Linear(config.channels[-1], config.matching)
            self.match_context = nn.Linear(sound_width, config.matching)
            self.match_clue = nn.Linear(config.width, config.matching)
            self.match_lstm = nn.Linear(config.bands, config.width)
            self.match_skips = nn.ParameterList(
                nn.Parameter(torch.zeros(c)) for c in reversed(config.channels))

    def _norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if self.config.norm == "batch" else \
            nn.GroupNorm(2, channels)

    def encode(self, spectrum: Tensor) -> list[Tensor]:
        """(B, F + 1, T) complex to the outputs of the encoder's layers (B, C_i, F_i, T)."""
        x = torch.view_as_real(spectrum[:, 1:]).permute(0, 3, 1, 2)
        size = (x.square().sum(1, keepdim=True) + _EPS).sqrt()
        if self.config.compression != 1:
            x = x * size.pow(self.config.compression - 1)
        if self.config.log_input:
            real, imaginary = x.chunk(2, 1)
            log = torch.log(size + 1e-2) / 3
            x = torch.cat([real, log, imaginary, torch.zeros_like(log)], 1)
        skips = []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
        return skips

    def tokens(self, bottleneck: Tensor, frames: Tensor) -> Tensor | None:
        """Bottleneck (B, C, bands, T) and the sound encoder's frames (B, T_a, C) in the space of
        the matching: (B, T, bands, M); None without one."""
        if not self.config.matching:
            return None
        context = F.interpolate(self.match_context(frames).transpose(1, 2), bottleneck.shape[-1],
                                mode="linear").transpose(1, 2)
        return self.match_sound(bottleneck.permute(0, 3, 2, 1)) + context[:, :, None]

    def compare(self, tokens: Tensor, clue: Tensor) -> Tensor:
        """Products of tokens (..., bands, M) and clues (..., D): (..., bands), of unit scale."""
        clue = self.match_clue(clue)
        return torch.einsum("...fm,...m->...f", tokens, clue) / clue.shape[-1] ** 0.5

    def forward(self, skips: list[Tensor], clue: Tensor, tokens: Tensor | None = None
                ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mask for each query.

        Args:
            skips: of :meth:`encode` for each mixture.
            clue: (B, Q, T, D).
            tokens: of :meth:`tokens`.
        Returns:
            (B·Q, 2, F, T) mask, (B·Q, T, 2 D) features after the LSTM, and the match
            (B·Q, T, bands) or None.
        """
        config = self.config
        count = clue.shape[1]
        clue = clue.flatten(0, 1)
        bottleneck = skips[-1]
        width = config.channels[-1] // 2

        def repeated(x: Tensor) -> Tensor:
            return x.repeat_interleave(count, 0) if count > 1 else x

        real, imaginary = (
            repeated(part.permute(0, 3, 1, 2).flatten(2)) for part in bottleneck.split(width, 1))
        shown, match = clue, None
        if config.matching:
            match = self.compare(repeated(tokens), clue)
            shown = clue + self.match_lstm(match)
        real, imaginary = self.lstm(real + shown, imaginary + shown)
        features = torch.cat([real, imaginary], dim=-1)
        x = torch.cat([part.unflatten(2, (width, config.bands)).permute(0, 2, 3, 1)
                       for part in (real, imaginary)], dim=1)
        for i, layer in enumerate(self.decoder):
            skip = repeated(skips[-1 - i])
            if config.matching:
                near = match.transpose(1, 2)[:, None]
                near = near.repeat_interleave(skip.shape[2] // config.bands, 2)
                skip = skip * (1 + self.match_skips[i][:, None, None] * torch.tanh(near))
            if config.film:
                scale, shift = self.films[i](clue).transpose(1, 2)[:, :, None].chunk(2, 1)
                skip = skip * (1 + scale) + shift
            x = layer(complex_cat([x, skip]))
        return x, features, match


class MultiClue(Network):
    """The whole network. Audio of one ear at a time: both ears share the weights.

    Works at any level: the mixture is brought to unit RMS, and the output back.
    """

    def __init__(self, config: MultiClueConfig):
        super().__init__()
        self.config = config
        self.backbone = DCCRN(config.backbone, config.sound.channels[-1])
        self.clues = ClueProcessing(config)
        if config.presence:
            self.presence = nn.Linear(4 * config.backbone.width, 1)


    def encode(self, mixture: Tensor) -> Encoded:
        """(B, N) to what all queries share."""
        level = mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        audio = mixture / level
        spectrum = stft(audio.float(), self.config.backbone)
        skips, frames = self.backbone.encode(spectrum), self.clues.sound(audio)
        return Encoded(level, spectrum, skips, frames, self.backbone.tokens(skips[-1], frames))

    def forward(self, mixture: Tensor, clues: Clues) -> MultiClueOutput:
        """Extract.

        Args:
            mixture: (B, N).
            clues: of Q queries for each mixture.
        """
        return self.extract(self.encode(mixture), clues, mixture.shape[-1])

    def extract(self, encoded: Encoded, clues: Clues, samples: int) -> MultiClueOutput:
        """The part of :meth:`forward` after :meth:`encode`."""
        fused, weights = self.clues(encoded.frames, clues)
        batch, count = fused.shape[:2]
        frames = encoded.spectrum.shape[-1]
        # one fused clue for each frame of the backbone
        fused = F.interpolate(fused.flatten(0, 1).transpose(1, 2), frames, mode="linear")
        fused = fused.transpose(1, 2).unflatten(0, (batch, count))
        mask, features, match = self.backbone(encoded.skips, fused, encoded.tokens)
        mask = F.pad(mask, (0, 0, 1, 0)).unflatten(0, (batch, count)).permute(0, 1, 3, 4, 2)
        level = encoded.level[..., None]
        spectrum = bounded_mask(encoded.spectrum[:, None], mask) * level[..., None]
        audio = istft(spectrum, self.config.backbone, samples)
        presence = None
        if self.config.presence:
            pooled = torch.cat([features.mean(1), features.amax(1)], dim=-1)
            presence = self.presence(pooled)[:, 0].unflatten(0, (batch, count))
        if match is not None:
            match = match.unflatten(0, (batch, count))
        return MultiClueOutput(audio, spectrum, weights, presence, match)

    def kind_matches(self, encoded: Encoded, keys: Tensor) -> Tensor:
        """How each place of the bottleneck matches each of K clues alone.

        Args:
            keys: (K, D) clues in the unified space, one a kind.
        Returns:
            (B, T · bands, K), the frequencies fastest.
        Raises:
            ValueError: the network has no matching.
        """
        if encoded.tokens is None:
            raise ValueError("backbone.matching is 0: there is nothing to compare")
        clue = self.backbone.match_clue(self.clues.single(keys))
        return encoded.tokens.flatten(1, 2) @ clue.T / clue.shape[-1] ** 0.5
