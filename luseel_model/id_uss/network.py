"""ID-USS-Conformer (paper 002, section 2): extracts the sound of what a picture shows.

Monaural: each ear is heard on its own, with the same picture, and keeps its own phase; so the
extracted ears keep the interaural cues, from which interaural_direction.py takes the direction.

Axis letters: B mixtures, M microphones, Q pictures per mixture, N samples, F bins, R rows (bins or
bands), T frames, E width of the picture's features, V width of the tagging space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AZIMUTH_BINS
from ..lass.network import LASSNet, band_shapes, spectrogram, waveform
from ..layers import Tagger
from ..network import Network
from .config import IDUSSConfig
from .separators import ConformerSeparator, ConvTasNetSeparator, ResUNetSeparator

_QUIET = 1e-3  # added to magnitudes before the logarithm, at a level of 1


@dataclass
class IDUSSOutput:
    """Estimates for B mixtures and Q pictures.

    Attributes:
        audio: (B, Q, M, N).
        magnitude: (B, Q, M, F, T) of the estimate at a level where the mixture's RMS is 1, as the
            network gives it; None from Conv-TasNet, which has no spectrum.
        level: (B, 1, 1) RMS of the mixture.
        tokens: (B, M, T·bands, V) audio side of the tagging space, bands fastest, or None.
        presence_logits: (B, Q) that the sound is there, or None.
    """

    audio: Tensor
    magnitude: Tensor | None
    level: Tensor
    tokens: Tensor | None = None
    presence_logits: Tensor | None = None


def _level(audio: Tensor) -> Tensor:
    """(B, M, N) → (B, 1, 1) RMS over ears and samples, above 0."""
    return audio.square().mean((1, 2), keepdim=True).sqrt().clamp_min(1e-7)


class Words(nn.Module):
    """Which of ``things`` a picture shows, and their words: features (..., D) → a sentence embedding
    (..., E'), the mean of those of the things by their probability, of length 1."""

    def __init__(self, config: IDUSSConfig):
        super().__init__()
        self.things = nn.Linear(config.discriminant, config.things)
        self.names = nn.Linear(config.things, config.lass.query.embedding, bias=False)

    def forward(self, unit: Tensor) -> Tensor:
        return F.normalize(self.names(self.things(unit).softmax(-1)), dim=-1)


class IDUSS(Network):
    """The network; the frozen image encoder isn't part of it.

    Args:
        config: see :class:`~luseel_model.id_uss.config.IDUSSConfig`.
    """

    def __init__(self, config: IDUSSConfig):
        super().__init__()
        self.config = config
        embedding = config.image.embedding
        features = config.discriminant or embedding
        # what all pictures have in common, which training takes from its own; not in the paper
        self.register_buffer("common", torch.zeros(embedding))
        if config.discriminant:
            self.register_buffer("discriminant", torch.zeros(embedding, features))
            self.register_buffer("centre", torch.zeros(features))
        # responses of the head that the direction is taken with; zeros: none, a sphere's
        self.register_buffer("hrir", torch.zeros(AZIMUTH_BINS, 2, config.head_taps))
        if config.separator == "lass":
            self.separator, self.words = LASSNet(config.lass), Words(config)
            return
        self.projection = nn.Sequential(nn.Linear(features, config.projection), nn.ReLU())
        self.separator = (
            ConformerSeparator(config) if config.separator == "conformer" else
            ResUNetSeparator(config) if config.separator == "resunet" else
            ConvTasNetSeparator(config.conv_tasnet, config.projection))
        if config.tagging.width:
            self.tagger = Tagger(config.tagging.width, features, config.tagging.width)
            self.tagger.audio = nn.Identity()  # the separator gives the tokens
        if config.bands:
            shapes = band_shapes(config.bands, config.stft.bins + 1)
            self.register_buffer("band_up", shapes.t().contiguous(), persistent=False)
            self.register_buffer("band_down", shapes / shapes.sum(1, keepdim=True),
                                 persistent=False)


    # -- parts

    def spectra(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, N) → complex spectrum (B, M, F, T) at an RMS of 1 over ears and samples, and the
        RMS (B, 1, 1)."""
        level = _level(audio)
        return spectrogram(audio / level, self.config.stft), level

    def inputs(self, magnitude: Tensor) -> Tensor:
        """(B, F, T) magnitudes → (B, R, T), what the separator sees."""
        x = magnitude
        if self.config.bands:
            x = torch.matmul(self.band_down, x.square()).sqrt()
        # windows of N samples have a magnitude of about the square root of N: bring it to 1
        x = x / self.config.stft.n_fft ** 0.5
        return torch.log(x + _QUIET) / 4 + 1 if self.config.inputs == "log" else x

    def rooted(self, pictures: Tensor) -> Tensor:
        """Features of pictures (..., E) → with ``discriminant``, their square roots: few large ones
        would decide alone (power normalisation, Perronnin et al. 2010)."""
        x = pictures.float()
        return x.sign() * x.abs().sqrt() if self.config.discriminant else x

    def unit(self, pictures: Tensor) -> Tensor:
        """Features of pictures (..., E) → without what all have in common, of length 1: (..., E), or
        (..., D) with ``discriminant``."""
        config = self.config
        unit = F.normalize(self.rooted(pictures) - self.common, dim=-1)
        if not config.discriminant:
            return unit
        unit = F.normalize(unit @ self.discriminant - self.centre, dim=-1)
        if self.training and config.picture_noise:
            noise = torch.randn_like(unit) / unit.shape[-1] ** 0.5
            unit = F.normalize(unit + config.picture_noise * noise, dim=-1)
        return unit

    def condition(self, pictures: Tensor) -> Tensor:
        """(..., E) → (..., projection), equation 1."""
        if self.config.tagging.width or self.config.discriminant:
            x = self.unit(pictures)
            x = x * x.shape[-1] ** 0.5
        else:
            x = pictures.float() - self.common
        return self.projection(x)

    def similarity(self, tokens: Tensor, pictures: Tensor) -> Tensor:
        """(B, L, V) tokens and (K, E) or (B, K, E) pictures → (B, L, K)."""
        unit = self.unit(pictures)
        asked = self.words(unit) if self.config.separator == "lass" else unit
        return self._tagger.similarity(tokens, asked)

    def presence(self, similarity: Tensor) -> Tensor:
        """(B, L, K) → (B, K) logits."""
        return self._tagger.presence(similarity)

    @property
    def _tagger(self) -> Tagger:
        return self.separator.separator.tagger if self.config.separator == "lass" else self.tagger

    def hear(self, mixture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Conformer only: complex spectrum (B, M, F, T), level, frames (B·M, T, W) and tag tokens
        (B·M, L, V), without any picture."""
        with torch.autocast(mixture.device.type, enabled=False):
            spectrum, level = self.spectra(mixture.float())
            inputs = self.inputs(spectrum.flatten(0, 1).abs())
        heard = self.separator.hear(inputs)
        return spectrum, level, heard.frames, heard.tokens

    # -- whole

    def forward(self, mixture: Tensor, pictures: Tensor) -> IDUSSOutput:
        """
        Args:
            mixture: (B, M, N) float, full scale ±1.
            pictures: (B, Q, E) features of the image encoder.
        """
        config, (batch, ears, samples) = self.config, mixture.shape
        queries = pictures.shape[1]
        if config.separator == "lass":
            return self._separate_words(mixture, pictures)
        condition = self.condition(pictures)                              # B Q P

        def spread(x: Tensor) -> Tensor:
            """(B·M, ...) → (B·M·Q, ...)"""
            return x.repeat_interleave(queries, 0)

        asked = condition[:, None].expand(-1, ears, -1, -1).flatten(0, 2)
        if config.separator == "conv-tasnet":
            level = _level(mixture.float())
            audio = self.separator(spread((mixture.float() / level).flatten(0, 1)), asked)
            audio = audio.float().unflatten(0, (batch, ears, queries)).transpose(1, 2)
            return IDUSSOutput(audio * level[:, None], None, level)
        tokens = presence = None
        if config.separator == "conformer":
            spectrum, level, frames, tokens = self.hear(mixture)
            fit = None
            if tokens is not None:
                similarity = self.similarity(tokens, pictures.repeat_interleave(ears, 0))
                presence = self.tagger.presence(similarity)               # B·M Q
                presence = presence.unflatten(0, (batch, ears)).amax(1)
                fit = similarity.unflatten(1, (-1, config.tagging.bands))  # B·M T bands Q
                fit = fit.permute(0, 3, 1, 2).flatten(0, 1)
            output = self.separator.separate(spread(frames), asked, fit)
            tokens = tokens if tokens is None else tokens.unflatten(0, (batch, ears))
        else:
            spectrum, level = self.spectra(mixture.float())
            output = self.separator(spread(self.inputs(spectrum.flatten(0, 1).abs())), asked)
        with torch.autocast(mixture.device.type, enabled=False):
            audio, magnitude = self.resynthesis(output.float(), spectrum, level, samples)
        return IDUSSOutput(audio, magnitude, level, tokens, presence)

    def _separate_words(self, mixture: Tensor, pictures: Tensor) -> IDUSSOutput:
        level = _level(mixture.float())
        heard = self.separator(mixture, self.words(self.unit(pictures)))
        magnitude = heard.mask * heard.spectrum.abs()[:, None] / level[:, None, None]
        tokens = heard.tag_tokens
        if tokens is not None:
            tokens = tokens.unflatten(0, (len(mixture), -1))
        return IDUSSOutput(heard.audio, magnitude, level, tokens, heard.presence_logits)

    def resynthesis(self, output: Tensor, spectrum: Tensor, level: Tensor, samples: int
                    ) -> tuple[Tensor, Tensor]:
        """What the separator gives, (B·M·Q, R, T), and the mixture's spectrum (B, M, F, T) → audio
        (B, Q, M, N) and magnitudes (B, Q, M, F, T)."""
        batch, ears = spectrum.shape[:2]
        output = output.unflatten(0, (batch, ears, -1)).transpose(1, 2)   # B Q M R T
        heard = spectrum[:, None]
        if self.config.output == "mask":
            mask = torch.sigmoid(output)
            if self.config.bands:
                mask = torch.matmul(self.band_up, mask)
            magnitude = mask * heard.abs()
            estimate = mask * heard
        else:
            # softplus: a magnitude isn't negative, and a ReLU's would never come back from zero
            magnitude = F.softplus(output) * self.config.stft.n_fft ** 0.5
            estimate = magnitude * heard / heard.abs().clamp_min(1e-8)
        audio = waveform(estimate, self.config.stft, samples)
        return audio * level[:, None], magnitude
