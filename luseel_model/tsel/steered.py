"""Steered network: words choose where in time and frequency, geometry says from which direction.

Not in the paper. A LASS network (luseel_model/lass) hears the magnitudes and the words, and masks
time and frequency: where does the described sound stand out? The phases of all pairs of microphones
under these masks are steered to 360 directions by the array's geometry (SRP-PHAT), and a network
that treats all directions alike reads the peaks. So nothing about the array has to be learnt:
another one can be given, and turning the scene turns the answer.

Axis letters: B batch, Q queries, M microphones, P pairs, F frequencies (F' those that are steered),
T frames, R bands of the separator, H masks, K bands that are steered on their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arrays import MicrophoneArray
from ..lass.network import LASSNet
from ..text import sentence_embedding
from .config import TselConfig
from .features import pair_phases, spectra, steered_response, steering, without_common

_EPS = 1e-10
_MASKS = 4                        # see SteeredNetwork.weights
_SURE, _NOT, _ALL = 1, 2, 3       # three of them
_SCALE = 20.0                     # of logits to maps, whose peaks are below 1


@dataclass
class Heard:
    """What the separator says of each query.

    Attributes:
        logits: (B, Q, R, T) of the described sound's share in the separator's R bands.
        presence: (B, Q) logits that the sound is there.
    """

    logits: Tensor
    presence: Tensor


@dataclass
class Steered:
    """What the steered network says.

    Attributes:
        logits: (B, Q, 360), or (B, Q, T', 360) of a moving sound.
        presence, share: as :class:`Heard`.
    """

    logits: Tensor
    presence: Tensor
    share: Tensor


class CircleReader(nn.Module):
    """Reads steered maps over the directions, all of them alike: circular convolutions.

    At first the answer is the peak of the maps of the mask ``_SURE``. Where that is high, what comes
    from where the rest comes from counts less; where it is low, what the words picked has no
    direction (an additive sound's bands, say), and all that has one speaks. ``over_time`` lets
    neighbouring frames of a moving sound know of each other.
    """

    def __init__(self, bands: int, channels: int, layers: int, over_time: bool):
        super().__init__()
        maps, part = _MASKS * bands, 1 / bands ** 0.5
        self.first = nn.Conv2d(2 * maps, channels, 1)  # maps and the heights of their peaks
        nn.init.zeros_(self.first.weight[:, maps:])
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
        nn.init.zeros_(self.last.weight)
        self.direct = nn.Conv2d(maps, 1, 1, bias=False)
        nn.init.zeros_(self.direct.weight)
        nn.init.constant_(self.direct.weight[:, _of(_SURE, bands)], _SCALE * part)
        # what is added where the peak is high, and where it is low. Numbers found on scenes of the
        # valid split (docs/tsel.md), and learnt from there: scaled, since steps of the learning rate
        # would leave weights as large as those of ``direct`` as they are
        self.blend = nn.Conv2d(maps, 2, 1, bias=False)
        nn.init.zeros_(self.blend.weight)
        nn.init.constant_(self.blend.weight[0, _of(_NOT, bands)], -0.3 * part)
        nn.init.constant_(self.blend.weight[1, _of(_ALL, bands)], part)
        self.low = nn.Parameter(torch.tensor([0.8, 5.0]))  # a low peak, and how sharp that is
        self.register_load_state_dict_pre_hook(_grow_reader)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, maps, T, 360) → (B, T, 360)."""
        heights = maps.amax(-1, keepdim=True).expand_as(maps)
        x = self.first(torch.cat([maps, heights], 1))
        for i, (conv, norm) in enumerate(zip(self.layers, self.norms)):
            around = 3 * conv.dilation[1]
            y = F.gelu(conv(F.pad(norm(x), (around, around, 0, 0), mode="circular")))
            if len(self.times):
                y = y + self.times[i](y)
            x = x + y
        direct, blend = self.direct(maps), _SCALE * self.blend(maps)
        high = ((direct.amax(-1, keepdim=True) - self.low[0]) * self.low[1]).sigmoid()
        blend = high * blend[:, :1] + (1 - high) * blend[:, 1:]
        return (self.last(x) + direct + blend)[:, 0]


def _of(mask: int, bands: int) -> slice:
    """The maps of a mask."""
    return slice(mask * bands, (mask + 1) * bands)


def _grow_reader(reader: CircleReader, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Weights of a reader that knew nothing of the heights: what they lack adds nothing."""
    first, wanted = f"{prefix}first.weight", reader.first.weight
    if first in state and state[first].shape[1] < wanted.shape[1]:
        grown = torch.zeros_like(wanted)
        grown[:, :state[first].shape[1]] = state[first]
        state[first] = grown
        state[f"{prefix}blend.weight"] = torch.zeros_like(reader.blend.weight)
        state[f"{prefix}low"] = reader.low.detach().clone()


class SteeredNetwork(nn.Module):
    """See the head of this file; ``config.array`` can be replaced by :meth:`set_array`."""

    def __init__(self, config: TselConfig):
        super().__init__()
        self.config = config
        size, stft = config.steered, config.steered.separator.stft
        self.separator = LASSNet(size.separator)
        frequency = torch.arange(stft.n_fft // 2 + 1) * (config.sample_rate / stft.n_fft)
        self._used = slice(int((frequency < size.lowest).sum()),
                           int((frequency <= size.highest).sum()))
        self._edges = _band_edges(frequency[self._used], size.bands)
        self.reader = CircleReader(size.bands, size.circle, size.circle_layers, size.frame > 0)
        self.set_array(config.array)

    def set_array(self, array: MicrophoneArray) -> None:
        """Listen with another array, of any number of microphones."""
        self.array = array
        steers = steering(array, self.config.steered.separator.stft.n_fft, self.config.sample_rate)
        self.register_buffer("steers", steers[:, self._used].to(self.reader.last.weight.device),
                             persistent=False)

    # -- what is heard

    def hear(self, magnitude: Tensor, sentence: Tensor) -> Heard:
        """The separator without its audio.

        Args:
            magnitude: (B, F, T).
            sentence: (B, Q, E) of unit length.
        """
        network = self.separator.separator
        batch, queries = sentence.shape[:2]
        with torch.autocast(magnitude.device.type, enabled=False):
            x = self.separator.inputs(magnitude)
        encoded = network.encode(x, None)
        similarity, fit = network.match(encoded, sentence)
        logits = network.decode(encoded, self.separator.query(sentence).flatten(0, 1), fit)
        return Heard(logits.float().unflatten(0, (batch, queries))[..., :magnitude.shape[-1]],
                     network.tagger.presence(similarity))

    def weights(self, logits: Tensor) -> Tensor:
        """Separator's logits (B, Q, R, T) → masks (B, Q, H, F', T) in [0, 1]: the separator's own;
        what is surely of the sound; what surely isn't; everything."""
        mask = self.separator.masks(logits, logits.shape[-1])[..., self._used, :]
        power = self.config.steered.sharpness
        return torch.stack([mask, mask ** power, (1 - mask) ** power, torch.ones_like(mask)], 2)

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
            (B, Q, H·K, T', 360) in [-1, 1], where a band counts by the root of its share in its
            mask: a sound isn't in all bands. T' is 1 for a clip.
        """
        spectrum = spectrum[:, :, self._used]
        phases = pair_phases(spectrum, self.array.pairs)
        loud = spectrum.abs().mean(1)
        loud = (loud / (loud.mean(dim=(1, 2), keepdim=True) + 1e-12) + 1e-6)
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
        whole = total.sum(-1, keepdim=True)
        maps = []
        for low, high in zip(self._edges, self._edges[1:]):
            response = steered_response(both[..., low:high], self.steers[:, low:high])
            mass = total[..., low:high].sum(-1, keepdim=True)
            maps.append(response / (pairs * (mass * whole + _EPS).sqrt()))
        return torch.stack(maps, 3).flatten(2, 3)

    def forward(self, audio: Tensor, tokens: Tensor, mask: Tensor) -> Steered:
        """(B, M, N) and text (B, Q, L, E) with its mask (B, Q, L) → :class:`Steered`."""
        stft = self.config.steered.separator.stft
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = spectra(audio, stft.n_fft, stft.hop)
        heard = self.hear(spectrum.abs().mean(1), sentence_embedding(tokens.float(), mask))
        with torch.autocast(audio.device.type, enabled=False):
            maps = self.locate(spectrum, self.weights(heard.logits))
            answer = self.reader(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        if not self.config.steered.frame:
            answer = answer[:, :, 0]
        return Steered(answer, heard.presence, heard.logits)


def _band_edges(frequency: Tensor, bands: int) -> list[int]:
    """Edges of bands that are equally wide on the mel scale, as indices into ``frequency``."""
    mel = torch.log1p(frequency / 700.0)
    wanted = torch.linspace(float(mel[0]), float(mel[-1]) + 1e-6, bands + 1)
    edges = torch.searchsorted(mel, wanted).tolist()
    for i in range(1, len(edges)):  # a band has one frequency at least
        edges[i] = max(edges[i], edges[i - 1] + 1)
    return edges
