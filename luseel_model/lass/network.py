"""LASS-Net (paper 004, section 3): a query network and a ResUNet that predicts a magnitude mask.

UNet-Tag (section 5.2) is the same with tags in the place of words. The paper leaves some choices
open; those of the authors' public code were taken (github.com/liuxubo717/LASS): a ConvBlock between
encoder and decoder, transposed convolutions of kernel 3, shortcuts around ConvBlocks.

Axis letters: B mixtures, Q queries per mixture, M microphones, N samples, F bins, R rows (bins or
bands), T frames, W width of the query embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import StftConfig
from ..errors import ConfigError, LuseelError
from ..layers import FiLM, Tagger
from ..network import Network
from .config import LASSConfig, QueryConfig, ResUNetConfig

_SLOPE = 0.01    # of the leaky ReLU, PyTorch's default
_QUIET = 1e-3    # added to magnitudes before the logarithm, at a level of 1


# -- spectrogram -----------------------------------------------------------------------------------


def spectrogram(audio: Tensor, config: StftConfig) -> Tensor:
    """(..., N) → (..., n_fft/2 + 1, N // hop + 1) complex; 10 s at 32 kHz: 513 x 626.

    All bins, unlike :func:`luseel_model.features.stft`: a mask of ones gives the mixture back.
    """
    z = torch.stft(audio.reshape(-1, audio.shape[-1]), config.n_fft, config.hop,
                   window=torch.hann_window(config.n_fft, device=audio.device),
                   pad_mode="reflect", return_complex=True)
    return z.reshape(*audio.shape[:-1], *z.shape[-2:])


def waveform(spectrum: Tensor, config: StftConfig, samples: int) -> Tensor:
    """Inverse of :func:`spectrogram`: (..., F, T) → (..., samples)."""
    x = torch.istft(spectrum.reshape(-1, *spectrum.shape[-2:]), config.n_fft, config.hop,
                    window=torch.hann_window(config.n_fft, device=spectrum.device), length=samples)
    return x.reshape(*spectrum.shape[:-2], samples)


def band_shapes(bands: int, bins: int) -> Tensor:
    """(bands, bins) triangles that sum to 1 at each bin.

    Their distance is one bin at the lowest frequencies and grows in proportion to the frequency
    higher up, like that of mel bands, which would leave the lowest ones without any bin.
    """
    low, high = 1e-3, 1e7  # knee, in bins: knee * log(1 + last / knee) = bands - 1
    for _ in range(100):
        knee = math.sqrt(low * high)
        too_many = knee * math.log1p((bins - 1) / knee) > bands - 1
        low, high = (low, knee) if too_many else (knee, high)
    place = knee * torch.log1p(torch.arange(bins) / knee)
    place = place * ((bands - 1) / place[-1])
    return (1 - (place - torch.arange(bands)[:, None]).abs()).clamp(min=0)


# -- queries ---------------------------------------------------------------------------------------


class QueryNet(nn.Module):
    """Query embedding (paper, section 3.2): features of the words or tags, a fully connected layer
    and ReLU.

    What :meth:`forward` takes depends on the encoder: token numbers (…, L) int64, 0 where there is
    none, for BERT; a unit-length sentence embedding (…, E); or tags as a multi-hot (…, tags).
    """

    def __init__(self, config: QueryConfig):
        super().__init__()
        self.encoder, self.features = config.encoder, config.embedding
        if config.encoder == "bert":
            from transformers import BertConfig, BertModel

            self.bert = BertModel(BertConfig(
                hidden_size=config.embedding, num_hidden_layers=config.layers,
                num_attention_heads=config.heads, intermediate_size=4 * config.embedding,
                hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout),
                add_pooling_layer=False)
        elif config.encoder == "tags":
            self.features = len(config.tags)
            if not self.features:
                raise ConfigError("query.tags is empty: name the tags (training takes those of its "
                                  "corpus)")
        self.linear = nn.Linear(self.features, config.width)

    def load_pretrained(self, weights: str) -> None:
        """Start from a pretrained BERT: ``weights`` is a local folder or a name on the model hub.

        Raises:
            LuseelError: it can't be loaded, or is of another size.
        """
        from transformers import BertModel

        try:
            given = BertModel.from_pretrained(weights, add_pooling_layer=False)
            self.bert.load_state_dict(given.state_dict())
        except (OSError, ValueError, RuntimeError) as error:
            raise LuseelError(
                f"can't load the query network {weights!r}: {error}\nGive query.weights a local "
                "folder, or use a machine that reaches the model hub.") from error

    def forward(self, features: Tensor) -> Tensor:
        """Features (…, L), (…, E) or (…, tags) → (…, W)."""
        if self.encoder == "bert":
            lead, ids = features.shape[:-1], features.flatten(0, -2)
            states = self.bert(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
            features = states[:, 0].unflatten(0, lead)
        elif self.encoder == "sentence":  # unit length has tiny entries
            features = features * features.shape[-1] ** 0.5
        return F.relu(self.linear(features))


# -- separation ------------------------------------------------------------------------------------


class PerceptronFiLM(nn.Module):
    """γ·x + β with (γ, β) from two fully connected layers, each followed by ReLU (equation 6).

    Starts near the identity. ``shift_only``: β alone, as in the authors' code.
    """

    def __init__(self, width: int, channels: int, shift_only: bool):
        super().__init__()
        self.shift_only = shift_only
        self.hidden = nn.Linear(width, 2 * channels)
        self.output = nn.Linear(2 * channels, channels if shift_only else 2 * channels)
        if not shift_only:
            nn.init.constant_(self.output.bias[:channels], 1.0)

    def forward(self, x: Tensor, query: Tensor, channel_dim: int = 1) -> Tensor:
        """``x`` (B, C, R, T), ``query`` (B, W)."""
        values = F.relu(self.output(F.relu(self.hidden(query))))[..., None, None]
        if self.shift_only:
            return x + values
        scale, shift = values.chunk(2, dim=1)
        return scale * x + shift


def _film(config: ResUNetConfig, width: int, channels: int) -> nn.Module:
    if config.film == "linear":
        return FiLM(width, channels)
    return PerceptronFiLM(width, channels, config.film == "shift")


class ConvBlock(nn.Module):
    """Batch normalisation, leaky ReLU, convolution and FiLM, ``depth`` times; a shortcut around."""

    def __init__(self, inputs: int, outputs: int, config: ResUNetConfig, width: int | None):
        super().__init__()
        self.kernel = config.kernel
        sizes = [inputs] + [outputs] * config.depth
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in sizes[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(a, b, config.kernel, bias=False)
                                   for a, b in zip(sizes, sizes[1:]))
        self.films = nn.ModuleList(
            _film(config, width, outputs) if width else nn.Identity() for _ in self.convs)
        self.conditioned = bool(width)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        # the authors' code shifts the shortcut too; the paper has FiLM after ConvBlocks alone
        self.shortcut_film = _film(config, width, outputs) \
            if width and self.shortcut is not None and config.film == "shift" else None

    def forward(self, x: Tensor, query: Tensor | None) -> Tensor:
        """(B, C, R, T) → (B, C', R, T)"""
        before, after = (self.kernel - 1) // 2, self.kernel // 2
        origin = x
        for norm, conv, film in zip(self.norms, self.convs, self.films):
            x = conv(F.pad(F.leaky_relu(norm(x), _SLOPE), (before, after, before, after)))
            if self.conditioned:
                x = film(x, query, channel_dim=1)
        if self.shortcut is not None:
            origin = self.shortcut(origin)
            if self.shortcut_film is not None:
                origin = self.shortcut_film(origin, query)
        return origin + x


class DecoderBlock(nn.Module):
    """Transposed convolution up, the encoder's output beside it, two ConvBlocks."""

    def __init__(self, inputs: int, outputs: int, skip: int, pool: tuple[int, int],
                 config: ResUNetConfig, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.up = nn.ConvTranspose2d(inputs, outputs, tuple(2 * p - 1 for p in pool), pool,
                                     bias=False)
        self.blocks = nn.ModuleList([ConvBlock(outputs + skip, outputs, config, width),
                                     ConvBlock(outputs, outputs, config, width)])

    def forward(self, x: Tensor, skip: Tensor, query: Tensor) -> Tensor:
        """``x`` (B, C, R/p, T/p'), ``skip`` (B, S, R, T) → (B, C', R, T)"""
        x = self.up(F.relu(self.norm(x)))[..., :skip.shape[-2], :skip.shape[-1]]
        x = torch.cat([x, skip], 1)
        for block in self.blocks:
            x = block(x, query)
        return x


@dataclass
class Encoded:
    """What the encoder makes of B spectrograms: the input of each level, the end, tag tokens."""

    skips: list[Tensor]                    # (B, C, R, T) before each pooling
    x: Tensor                              # (B, C, r, t)
    tag_tokens: Tensor | None = None       # (B, t·r, V), time first


class ResUNet(nn.Module):
    """Separation network: spectrogram and query embedding → mask logits of the same shape."""

    def __init__(self, config: ResUNetConfig, width: int, features: int):
        super().__init__()
        self.config = config
        channels = config.channels
        heard = width if config.film_encoder else None
        inputs = 2 if config.inputs == "log" else 1
        self.encoder = nn.ModuleList()
        for before, after in zip((inputs, *channels), channels):
            self.encoder.append(nn.ModuleList([ConvBlock(before, after, config, heard),
                                               ConvBlock(after, after, config, heard)]))
        self.middle = ConvBlock(channels[-1], channels[-1], config, heard)
        shown = 1 if config.tag_width else 0  # how well the query fits, at every level
        self.decoder = nn.ModuleList()
        below = (channels[-1], *reversed(channels))
        for inputs, outputs, pool in zip(below, reversed(channels), reversed(config.pools)):
            self.decoder.append(
                DecoderBlock(inputs, outputs, outputs + shown, pool, config, width))
        self.after = ConvBlock(channels[0], channels[0], config, width)
        self.last = nn.Conv2d(channels[0], 1, 1)
        if config.tag_width:
            self.tagger = Tagger(channels[-1], features, config.tag_width)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def encode(self, x: Tensor, query: Tensor | None) -> Encoded:
        """``x`` (B, 1 or 2, R, T), T a multiple of the pools; ``query`` (B, W) or None."""
        skips = []
        for blocks, pool in zip(self.encoder, self.config.pools):
            for block in blocks:
                x = block(x, query)
            skips.append(x)
            x = F.avg_pool2d(x, pool)
        x = self.middle(x, query)
        tokens = None
        if self.config.tag_width:
            tokens = self.tagger.audio(x.permute(0, 3, 2, 1).flatten(1, 2))
        return Encoded(skips, x, tokens)

    def match(self, encoded: Encoded, features: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, Q, E) against what is heard → similarity (B, L, Q) of the tag tokens, and the
        same as ``fit`` for :meth:`decode`."""
        similarity = self.tagger.similarity(encoded.tag_tokens, features)
        rows, frames = encoded.x.shape[-2:]
        fit = similarity.transpose(1, 2).flatten(0, 1).unflatten(-1, (frames, rows))
        return similarity, fit.transpose(1, 2)[:, None]

    def decode(self, encoded: Encoded, query: Tensor, fit: Tensor | None) -> Tensor:
        """``query`` (B·Q, W), ``fit`` (B·Q, 1, r, t) or None → (B·Q, R, T) logits."""
        count = len(query) // len(encoded.x)
        x = encoded.x.repeat_interleave(count, 0)
        for block, skip in zip(self.decoder, reversed(encoded.skips)):
            skip = skip.repeat_interleave(count, 0)
            if fit is not None:
                skip = torch.cat([skip, F.interpolate(fit.to(skip), skip.shape[-2:])], 1)
            x = block(x, skip, query)
        return self.last(self.after(x, query))[:, 0]


@dataclass
class LASSOutput:
    """What :meth:`LASSNet.forward` returns; entries that the configuration lacks are None."""

    audio: Tensor                             # (B, Q, M, N)
    mask: Tensor                              # (B, Q, M or 1, F, T) in [0, 1]
    spectrum: Tensor                          # (B, M, F, T) complex, the mixture's
    tag_tokens: Tensor | None = None          # (B or B·M, L, V), audio side of the tagging space
    similarity: Tensor | None = None          # (B or B·M, Q, L) of the tokens with the queries
    presence_logits: Tensor | None = field(default=None)  # (B, Q) is the sound there


class LASSNet(Network):
    """Language-queried separation with the mixture's phase.

    Args:
        config: see :class:`~luseel_model.lass.config.LASSConfig`.
    """

    def __init__(self, config: LASSConfig):
        super().__init__()
        self.config = config
        self.query = QueryNet(config.query)
        self.separator = ResUNet(config.separator, config.query.width, self.query.features)
        if config.separator.bands:
            shapes = band_shapes(config.separator.bands, config.stft.bins)
            self.register_buffer("band_up", shapes.t().contiguous(), persistent=False)
            self.register_buffer("band_down", shapes / shapes.sum(1, keepdim=True),
                                 persistent=False)

    def inputs(self, magnitude: Tensor) -> Tensor:
        """Magnitudes (B, F, T) → what the separator sees, (B, 1 or 2, R, T'), T' a multiple of its
        pools."""
        config, frames = self.config.separator, magnitude.shape[-1]
        x = magnitude[:, :self.config.stft.bins]  # the Nyquist bin takes its neighbour's mask
        if config.inputs == "log":
            level = x.square().mean((1, 2), keepdim=True).sqrt()
            x = x / (level + 1e-8)
        if config.bands:
            x = torch.matmul(self.band_down, x.square()).sqrt()
        if config.inputs == "log":
            x = torch.log(x + _QUIET) / 4
        x = F.pad(x, (0, -frames % config.pooled[1]))[:, None]
        if config.inputs == "log":
            place = torch.linspace(-1, 1, x.shape[2], device=x.device)[:, None]
            x = torch.cat([x, place.expand_as(x)], 1)
        return x

    def masks(self, logits: Tensor, frames: int) -> Tensor:
        """Separator's logits (..., R, T') → masks (..., F, T) in [0, 1], the Nyquist bin too."""
        mask = torch.sigmoid(logits[..., :frames].float())
        if self.config.separator.bands:
            mask = torch.matmul(self.band_up, mask)
        return torch.cat([mask, mask[..., -1:, :]], -2)

    def forward(self, mixture: Tensor, features: Tensor) -> LASSOutput:
        """
        Args:
            mixture: (B, M, N) float, full scale ±1.
            features: (B, Q, ...) of the queries, see :class:`QueryNet`.
        """
        config = self.config
        batch, queries = features.shape[:2]
        with torch.autocast(mixture.device.type, enabled=False):
            spectrum = spectrogram(mixture.float(), config.stft)
            if config.binaural == "mid":
                heard = spectrum.mean(1).abs()
            else:
                heard = spectrum.flatten(0, 1).abs()
            x = self.inputs(heard)
        ears = len(heard) // batch
        query = self.query(features).repeat_interleave(ears, 0)          # B·ears Q W
        if config.separator.film_encoder:
            encoded = self.separator.encode(x.repeat_interleave(queries, 0), query.flatten(0, 1))
        else:
            encoded = self.separator.encode(x, None)
        similarity = presence = fit = None
        if encoded.tag_tokens is not None:
            similarity, fit = self.separator.match(encoded, features.repeat_interleave(ears, 0))
            presence = self.separator.tagger.presence(similarity)
            presence = presence.unflatten(0, (batch, ears)).amax(1)
            similarity = similarity.transpose(1, 2)
        logits = self.separator.decode(encoded, query.flatten(0, 1), fit)
        with torch.autocast(mixture.device.type, enabled=False):
            mask = self.masks(logits, spectrum.shape[-1])
            mask = mask.unflatten(0, (batch, ears, queries)).transpose(1, 2)
            audio = waveform(mask * spectrum[:, None], config.stft, mixture.shape[-1])
        return LASSOutput(audio, mask, spectrum, encoded.tag_tokens, similarity, presence)
