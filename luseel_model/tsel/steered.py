"""Steered network: words choose where in time and frequency, geometry says from which direction.

Not in the paper. A small network hears the log spectrum and the words, and gives masks over time
and frequency: where does the described sound stand out, and arrive straight? The phases of all
pairs of microphones under these masks are steered to 360 directions by the array's geometry
(SRP-PHAT), and a network that treats all directions alike reads the peaks. So nothing about the
array has to be learnt: another one can be given, and turning the scene turns the answer.

Axis letters: B batch, Q queries, M microphones, P pairs, F frequencies, T frames, W mel bands,
H masks, K bands that are steered on their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arrays import MicrophoneArray
from ..layers import FiLM, PhraseMatcher
from ..text import sentence_embedding
from .config import TselConfig
from .features import (mel_bands, pair_phases, spectra, steered_response, steering,
                       without_common)

_EPS = 1e-6


class Residual(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs):
            y = conv(F.gelu(norm(y)))
        return x + y


class Modulated(nn.Module):
    """One 3x3 convolution, modulated by the query, beside an identity."""

    def __init__(self, channels: int, text: int):
        super().__init__()
        self.norm, self.film = nn.GroupNorm(8, channels), FiLM(text, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        return x + self.conv(F.gelu(self.film(self.norm(x), query, channel_dim=1)))


@dataclass
class Steered:
    """What the steered network says.

    Attributes:
        logits: (B, Q, 360), or (B, Q, T', 360) of a moving sound.
        presence: (B, Q) logits that the sound is there.
        share: (B, Q, W/2, T) logits of the described sound's share in the energy.
        tokens: (B, W/8 · ceil(T/4), width), frequency fastest, to be matched with phrases.
    """

    logits: Tensor
    presence: Tensor
    share: Tensor
    tokens: Tensor


class CircleReader(nn.Module):
    """Reads steered maps over the directions, all of them alike: circular convolutions.

    ``over_time`` lets neighbouring frames of a moving sound know of each other.
    """

    def __init__(self, maps: int, channels: int, layers: int, over_time: bool):
        super().__init__()
        self.first = nn.Conv2d(maps, channels, 1)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, (1, 7), dilation=(1, 4**i)) for i in range(layers))
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(layers))
        self.times = nn.ModuleList(
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels)
            for _ in range(layers if over_time else 0))
        for conv in self.times:  # at first each frame is by itself, as in a clip
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.last = nn.Conv2d(channels, 1, 1)
        # from the start, the answer is the peak of the maps
        self.direct = nn.Conv2d(maps, 1, 1, bias=False)
        nn.init.constant_(self.direct.weight, 20.0 / maps)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, maps, T, 360) → (B, T, 360)."""
        x = self.first(maps)
        for i, (conv, norm) in enumerate(zip(self.layers, self.norms)):
            around = 3 * conv.dilation[1]
            y = F.gelu(conv(F.pad(norm(x), (around, around, 0, 0), mode="circular")))
            if len(self.times):
                y = y + self.times[i](y)
            x = x + y
        return (self.last(x) + self.direct(maps))[:, 0]


class SteeredNetwork(nn.Module):
    """See the head of this file; ``config.array`` can be replaced by :meth:`set_array`."""

    def __init__(self, config: TselConfig):
        super().__init__()
        self.config = config
        size, text = config.steered, config.steered.text
        first, second, third, fourth = size.widths
        self.query = nn.Sequential(nn.Linear(config.text.embedding, text), nn.GELU(),
                                   nn.Linear(text, text), nn.GELU())
        self.stem = nn.Conv2d(1, first, (5, 3), stride=(2, 1), padding=(2, 1))
        self.place = nn.Parameter(torch.zeros(1, first, size.mel_bands // 2, 1))
        self.encoder = nn.ModuleList(Residual(width) for width in size.widths[1:])
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1)
            for a, b in ((first, second), (second, third), (third, fourth)))
        self.context = nn.Conv2d(fourth, third, 1)
        self.dropout = nn.Dropout2d(size.dropout)
        self.tagger = PhraseMatcher(config.text.embedding, size.tags)
        self.tag = nn.Sequential(nn.LayerNorm(third), nn.Linear(third, size.tags))
        self.matched = nn.Conv2d(1, third, 1)
        self.decoder = nn.ModuleList(Modulated(width, text) for width in (third, second, first))
        self.up = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in ((third, second), (second, first)))
        self.masks = nn.Conv2d(first, 1 + size.masks, 1)
        self.presence = nn.Sequential(nn.Linear(first + 2, 32), nn.GELU(), nn.Linear(32, 1))

        mel = mel_bands(size.mel_bands, size.n_fft, config.sample_rate)
        self.register_buffer("mel", mel, persistent=False)
        # masks come in half as many bands; every frequency takes those of the nearest two
        coarse = mel_bands(size.mel_bands // 2, size.n_fft, config.sample_rate)
        frequency = torch.arange(size.n_fft // 2 + 1) * (config.sample_rate / size.n_fft)
        spread = coarse / coarse.sum(1, keepdim=True).clamp(min=_EPS)
        used = (int((frequency < size.lowest).sum()), int((frequency <= size.highest).sum()))
        self._used = slice(*used)
        self.register_buffer("spread", spread[self._used].T.contiguous(), persistent=False)
        self._edges = _band_edges(frequency[self._used], size.bands)
        maps = (size.masks + 2) * size.bands
        self.reader = CircleReader(maps, size.circle, size.circle_layers, size.frame > 0)
        self.set_array(config.array)

    def set_array(self, array: MicrophoneArray) -> None:
        """Listen with another array, of any number of microphones."""
        self.array = array
        steers = steering(array, self.config.steered.n_fft, self.config.sample_rate)
        self.register_buffer("steers", steers[:, self._used].to(self.spread.device),
                             persistent=False)

    # -- what is heard

    def encode(self, spectrum: Tensor) -> tuple[list[Tensor], Tensor]:
        """Log spectrum through the encoder, whatever is asked for.

        Args:
            spectrum: (B, M, F, T), complex.
        Returns:
            the features at four resolutions, the coarsest added to the one above; and tokens
            (B, L, width).
        """
        power = spectrum.abs().square().mean(1)  # B F T
        level = power.mean(dim=(1, 2), keepdim=True)
        mel = torch.einsum("bft,fw->bwt", power / (level + 1e-12), self.mel)
        x = torch.log(mel + 1e-4)[:, None]
        x = (x - x.mean(dim=(2, 3), keepdim=True)) / 3.0
        features = [self.stem(x) + self.place]
        for down, block in zip(self.down, self.encoder):
            features.append(block(down(features[-1])))
        third = features[2]
        around = F.interpolate(self.context(features[3]), third.shape[-2:], mode="nearest")
        features[2] = self.dropout(third + around)
        tokens = self.tag(features[2].permute(0, 3, 2, 1).flatten(1, 2))
        return features, tokens

    def decode(self, features: list[Tensor], tokens: Tensor, sentence: Tensor, query: Tensor
               ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for each query.

        Returns:
            (B·Q, 1 + H, W/2, T) logits, the first of the sound's share; features (B·Q, C, W/2, T);
            and similarity (B, L, Q).
        """
        queries = sentence.shape[1]
        similarity = self.tagger.similarity(tokens, sentence)
        third = features[2]
        match = similarity.transpose(1, 2).flatten(0, 1)  # B·Q L
        match = match.unflatten(1, (third.shape[3], third.shape[2])).transpose(1, 2)[:, None]
        x = third.repeat_interleave(queries, 0) + self.matched(match.to(third))
        x = self.decoder[0](x, query)
        for block, up, skip in zip(list(self.decoder)[1:], self.up, (features[1], features[0])):
            x = F.interpolate(up(x), skip.shape[-2:], mode="nearest")
            x = block(x + skip.repeat_interleave(queries, 0), query)
        return self.masks(x), x, similarity

    # -- where it comes from

    def _stretches(self, x: Tensor) -> Tensor:
        """The spectra that each direction of a moving sound is made from: (..., T) → (..., T', n).
        """
        size = self.config.steered
        half = size.smooth // 2
        return F.pad(x, (half, half)).unfold(-1, size.smooth, size.frame)

    def locate(self, spectrum: Tensor, weight: Tensor) -> Tensor:
        """Steered maps of phases under masks.

        Args:
            spectrum: (B, M, F, T).
            weight: (B, Q, H, F', T) at least 0; F' the frequencies that are steered.
        Returns:
            (B, Q, H·K, T', 360) in [-1, 1]; T' is 1 for a clip.
        """
        spectrum = spectrum[:, :, self._used]
        phases = pair_phases(spectrum, self.array.pairs)
        loud = spectrum.abs().mean(1)
        loud = (loud / (loud.mean(dim=(1, 2), keepdim=True) + 1e-12) + _EPS)
        weight = weight * loud.pow(self.config.steered.exponent)[:, None, None]
        parts = torch.view_as_real(phases).permute(0, 2, 1, 4, 3).flatten(2, 3)  # B F 2P T
        grouped = weight.flatten(1, 2).transpose(1, 2)  # B F QH T
        if self.config.steered.frame:
            taper = torch.hann_window(self.config.steered.smooth + 2, periodic=False,
                                      device=weight.device)[1:-1]
            grouped = self._stretches(grouped) * taper  # B F QH T' n
            parts = self._stretches(parts)  # B F 2P T' n
        else:
            grouped, parts = grouped[..., None, :], parts[..., None, :]
        total = grouped.sum(-1)  # B F QH T'
        both = grouped.transpose(2, 3) @ parts.permute(0, 1, 3, 4, 2)  # B F T' QH 2P
        total = total.permute(0, 2, 3, 1).unflatten(1, weight.shape[1:3])  # B Q H T' F
        both = both.permute(0, 3, 2, 4, 1).unflatten(1, weight.shape[1:3])  # B Q H T' 2P F
        pairs = len(self.array.pairs)
        both = both.unflatten(4, (pairs, 2)).transpose(5, 6).contiguous()
        both = without_common(torch.view_as_complex(both))  # B Q H T' P F
        maps = []
        for low, high in zip(self._edges, self._edges[1:]):
            response = steered_response(both[..., low:high], self.steers[:, low:high])
            mass = total[..., low:high].sum(-1, keepdim=True) * pairs
            maps.append(response / (mass + _EPS))
        return torch.stack(maps, 3).flatten(2, 3)

    def forward(self, audio: Tensor, tokens: Tensor, mask: Tensor) -> Steered:
        """(B, M, N) and text (B, Q, L, E) with its mask (B, Q, L) → :class:`Steered`."""
        size, batch, queries = self.config.steered, audio.shape[0], tokens.shape[1]
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = spectra(audio, size.n_fft, size.hop)
        sentence = sentence_embedding(tokens.float(), mask)
        query = self.query(sentence * sentence.shape[-1] ** 0.5).flatten(0, 1)
        features, heard = self.encode(spectrum)
        logits, x, similarity = self.decode(features, heard, sentence, query)
        with torch.autocast(audio.device.type, enabled=False):
            logits, x, similarity = logits.float(), x.float(), similarity.float()
            # the sound's share, free masks, and everything
            mask_values = torch.cat([logits.sigmoid(), torch.ones_like(logits[:, :1])], 1)
            weight = torch.einsum("nhwt,wf->nhft", mask_values, self.spread)
            maps = self.locate(spectrum, weight.unflatten(0, (batch, queries)))
            answer = self.reader(maps.flatten(0, 1)).unflatten(0, (batch, queries))
            share = logits[:, 0].sigmoid()
            pooled = torch.cat([
                (x * share[:, None]).sum((2, 3)) / (share.sum((1, 2)) + 1.0)[:, None],
                share.mean((1, 2))[:, None],
                torch.logsumexp(similarity, 1).flatten()[:, None]], dim=1)
            presence = self.presence(pooled).view(batch, queries)
        if not size.frame:
            answer = answer[:, :, 0]
        return Steered(answer, presence, logits[:, 0].unflatten(0, (batch, queries)), heard)


def _band_edges(frequency: Tensor, bands: int) -> list[int]:
    """Edges of bands that are equally wide on the mel scale, as indices into ``frequency``."""
    mel = torch.log1p(frequency / 700.0)
    wanted = torch.linspace(float(mel[0]), float(mel[-1]) + 1e-6, bands + 1)
    edges = torch.searchsorted(mel, wanted).tolist()
    for i in range(1, len(edges)):  # a band has one frequency at least
        edges[i] = max(edges[i], edges[i - 1] + 1)
    return edges
