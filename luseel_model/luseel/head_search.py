"""Which two directions explain the mixture? A head's responses used explicitly (not in the paper).

Two ears and two sounds make a solvable system: for a pair of directions, the inverse of the head's
2x2 responses unmixes the ears. The right pair gives the sparsest signals. :class:`HeadSearch`
finds it for all pairs of a grid at once and gives the two candidate sounds and the evidence for
every direction; the network learns when to trust them (not in rooms, noise, or with another head).

How sparse a pair is: per frequency, the negative log-likelihood of independent component analysis
with one scale per source and frequency. For a pair (i, j) the unmixed source i is what is left of
the mixture when direction j is nulled, divided by the determinant. So the cost of a pair is the
sum of one term for each direction, less the log determinant, and all pairs cost as little as all
directions.

Axis letters: B mixtures, Q queries, D directions, P pairs, F frequency bins, f those searched,
T frames, M mel bands, W tagging width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from ..config import AZIMUTH_BINS
from ..layers import PhraseMatcher, spectrogram_holes
from .config import LuSeeLConfig
from .yamnet import YAMNet

_FLOOR = 2e-3        # of a bin's root mean square: silence is not infinitely sparse
_POWER = 0.5         # of the generalised mean over frames
_WEIGHT_POWER = 0.15  # of a bin's energy, as its weight
_LEAST_DETERMINANT = 0.01
_REGULARISATION = 1e-3  # of the unmixing matrix, where two responses are nearly parallel
_LEVEL = 0.05        # RMS that YAMNet hears a candidate with
_QUIET = 3e-4        # mean square below which it isn't raised, 40 dB below the mixture's


@dataclass
class PreparedHead:
    """A head's responses in the forms that the search needs; see :meth:`HeadSearch.prepare`."""

    responses: Tensor     # (D, 2, F) complex
    search_forms: Tensor  # (f, D, 4)
    match_forms: Tensor   # (f', D, 4)
    pairs: Tensor         # (P, f) log determinant of each pair
    short_forms: Tensor | None = None  # (f'', D, 4) for short frames

    def to(self, device) -> "PreparedHead":
        """On another device."""
        return PreparedHead(*(None if value is None else value.to(device) for value in (
            getattr(self, field.name) for field in fields(self))))


@dataclass
class Candidates:
    """What the search found."""

    images: Tensor       # (B, 2 candidates, 2 ears, F, T) complex
    azimuth: Tensor      # (B, 2) degrees
    evidence: Tensor     # (B, D) cost of the best pair with this direction, above the best of all
    statistics: Tensor   # (B, STATISTICS) how clear the outcome is


STATISTICS = 6


def _forms(unit: Tensor) -> Tensor:
    """(D, 2, f) unit responses → (f, D, 4): quadratic forms of the null of each direction.

    |x₁h₂ − x₂h₁|² as a product with (|x₁|², |x₂|², Re x₁x₂*, −Im x₁x₂*).
    """
    left, right = unit[:, 0], unit[:, 1]
    cross = -2 * right * left.conj()
    return torch.stack([right.abs().square(), left.abs().square(), cross.real, cross.imag],
                       -1).transpose(0, 1).contiguous()


def mel_bands(count: int, n_fft: int, sample_rate: int, low: float = 60.0, high: float = 7500.0
              ) -> Tensor:
    """(n_fft/2 + 1, count) weights of the bins in mel bands from ``low`` to ``high`` Hz."""
    bank = mel_filter_bank(n_fft // 2 + 1, count, low, high, sample_rate, mel_scale="htk")
    return torch.as_tensor(bank, dtype=torch.float32)


def moments(spectrum: Tensor) -> Tensor:
    """(B, 2, f, T) complex → (B, f, 4, T): levels of the ears, real and minus imaginary part of
    their cross-spectrum, as the forms of a head take them."""
    left, right = spectrum[:, 0], spectrum[:, 1]
    cross = left * right.conj()
    return torch.stack([left.abs().square(), right.abs().square(), cross.real, -cross.imag], 2)


class HeadSearch(nn.Module):
    """Searches all pairs of directions for the one that explains a mixture of two sounds best.

    The responses are a buffer: a checkpoint brings those of the head it was trained on, and
    another head's can be given instead.

    Args:
        config: the network's; ``config.head_search.azimuths`` directions evenly over the circle.
    """

    def __init__(self, config: LuSeeLConfig):
        super().__init__()
        self.bins, self.n_fft = config.stft.bins, config.stft.n_fft
        self.directions = config.head_search.azimuths
        self.sample_rate = config.sample_rate
        hertz = self.sample_rate / self.n_fft
        self.search_bins = torch.arange(round(60 / hertz), round(4700 / hertz), 3)
        self.match_bins = torch.arange(round(60 / hertz), round(7500 / hertz), 2)
        self.short_frame = config.head_search.voting_frame
        if self.short_frame:
            hertz = self.sample_rate / self.short_frame
            self.short_bins = torch.arange(max(round(60 / hertz), 1), round(7500 / hertz))
        self.register_buffer("responses", torch.zeros(self.directions, 2, self.bins, 2))
        self._prepared: PreparedHead | None = None

    def set_head(self, hrir: Tensor) -> None:
        """Use another head.

        Args:
            hrir: (360, 2, taps) impulse responses at the model's rate, row i at i degrees.
        """
        responses = self.spectra(hrir)
        self.responses.copy_(torch.view_as_real(responses))
        self._prepared = None

    def spectra(self, hrir: Tensor) -> Tensor:
        """(360, 2, taps) impulse responses → (D, 2, F) complex."""
        step = AZIMUTH_BINS // self.directions
        return torch.fft.rfft(hrir[::step].float(), self.n_fft)[..., :self.bins]

    def prepare(self, responses: Tensor) -> PreparedHead:
        """(D, 2, F) complex responses → what :meth:`forward` takes."""
        norm = responses.abs().square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
        unit = responses / norm
        search = unit[:, :, self.search_bins]
        first, second = self._pair_index(responses.device)
        determinant = (search[first, 0] * search[second, 1]
                       - search[first, 1] * search[second, 0]).abs()
        short = None
        if self.short_frame:  # their bins are every so manieth of the long frames'
            short = _forms(unit[:, :, self.short_bins * (self.n_fft // self.short_frame)])
        return PreparedHead(responses, _forms(search), _forms(unit[:, :, self.match_bins]),
                            determinant.clamp_min(_LEAST_DETERMINANT).log(), short)

    def prepared(self) -> PreparedHead:
        """The own head, prepared once."""
        if self._prepared is None or self._prepared.responses.device != self.responses.device:
            self._prepared = self.prepare(torch.view_as_complex(self.responses.float()))
        return self._prepared

    def _load_from_state_dict(self, *args, **kwargs):
        self._prepared = None
        super()._load_from_state_dict(*args, **kwargs)

    def _pair_index(self, device) -> tuple[Tensor, Tensor]:
        first, second = torch.triu_indices(self.directions, self.directions, 1, device=device)
        return first, second

    @torch.no_grad()
    def forward(self, spectrum: Tensor, head: PreparedHead) -> Candidates:
        """
        Args:
            spectrum: (B, 2, F, T), complex.
        """
        x = spectrum[:, :, self.search_bins.to(spectrum.device)]
        residual = (head.search_forms @ moments(x)).clamp_min(0).sqrt()   # B f D T
        level = x.abs().square().sum(1).mean(-1)                           # B f
        floor = level.sqrt()[..., None, None] * _FLOOR + 1e-7
        null = (residual + floor).pow(_POWER).mean(-1).log() / _POWER      # B f D
        weight = (level + 1e-12).pow(_WEIGHT_POWER)
        weight = weight / weight.sum(-1, keepdim=True)
        single = (weight[..., None] * null).sum(1)                         # B D
        first, second = self._pair_index(spectrum.device)
        cost = single[:, first] + single[:, second] - weight @ head.pairs.T  # B P
        least, best = cost.min(-1)
        best_of = torch.full_like(single, torch.inf)
        best_of = best_of.scatter_reduce(1, first.expand_as(cost), cost, "amin")
        best_of = best_of.scatter_reduce(1, second.expand_as(cost), cost, "amin")
        evidence = best_of - least[:, None]
        chosen = torch.stack([first[best], second[best]], 1)               # B 2
        images = self._images(spectrum, head.responses[chosen])
        energy = images.abs().square().sum((2, 3, 4))                      # B 2
        total = spectrum.abs().square().sum((1, 2, 3))[:, None] + 1e-10
        ordered = evidence.sort(-1).values
        share = ordered[:, [round(self.directions * q) for q in (0.06, 0.15, 0.5)]]
        statistics = torch.cat([
            (energy + 1e-10).div(total).log(), share * 4.0,
            (least - level.clamp_min(1e-12).log().mul(weight).sum(-1))[:, None] * 0.5], 1)
        azimuth = chosen * (360.0 / self.directions)
        return Candidates(images, azimuth.float(), evidence, statistics)

    @staticmethod
    def _images(spectrum: Tensor, responses: Tensor) -> Tensor:
        """(B, 2, F, T) and the pair's responses (B, 2, 2 ears, F) → (B, 2, 2, F, T)."""
        a, b = responses[:, 0], responses[:, 1]                            # B 2 F
        determinant = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
        size = (a.abs().square().sum(1) * b.abs().square().sum(1))
        inverse = determinant.conj() / (determinant.abs().square()
                                        + _REGULARISATION * size + 1e-12)
        left, right = spectrum[:, 0], spectrum[:, 1]
        source_a = (left * b[:, 1, :, None] - right * b[:, 0, :, None]) * inverse[..., None]
        source_b = (right * a[:, 0, :, None] - left * a[:, 1, :, None]) * inverse[..., None]
        return torch.stack([a[..., None] * source_a[:, None], b[..., None] * source_b[:, None]], 1)

    def forward_heads(self, spectrum: Tensor, heads: Sequence[PreparedHead], index: Tensor
                      ) -> Candidates:
        """As :meth:`forward`, with head ``index[b]`` of ``heads`` for mixture b."""
        if len(heads) == 1:  # as when listening: nothing to sort
            return self(spectrum, heads[0])
        batch = spectrum.shape[0]
        parts, order = [], []
        for number in index.unique().tolist():
            rows = (index == number).nonzero()[:, 0].to(spectrum.device)
            parts.append(self(spectrum[rows], heads[number]))
            order.append(rows)
        back = torch.empty(batch, dtype=torch.long, device=spectrum.device)
        back[torch.cat(order)] = torch.arange(batch, device=spectrum.device)
        return Candidates(*(torch.cat([getattr(p, name) for p in parts])[back] for name in
                            ("images", "azimuth", "evidence", "statistics")))


def onsets(level: Tensor, floor: Tensor | float, past: int = 2) -> Tensor:
    """(…, T) levels → how much each frame rises above the ``past`` ones before it, 0 to 1."""
    before = F.max_pool1d(F.pad(level.flatten(0, -2), (past, -1)), past, 1).view_as(level)
    return ((level - before) / (level + before + floor)).clamp_min(0)


def over_circle(logits: Tensor) -> Tensor:
    """(N, 1, D) at even azimuths → (N, 360), interpolated."""
    logits = torch.cat([logits, logits[..., :1]], -1)
    return F.interpolate(logits, AZIMUTH_BINS + 1, mode="linear", align_corners=True)[:, 0, :-1]


class MatchedLocalizer(nn.Module):
    """DoA from how well the extracted ears fit each of the head's directions.

    Sees only the match, never the response itself: what it learns on one head holds for another
    one whose responses are known.
    """

    BANDS = 12

    def __init__(self, search: HeadSearch, hidden: int = 48):
        super().__init__()
        bins = search.match_bins
        bands = mel_bands(self.BANDS, search.n_fft, search.sample_rate)[bins]  # f' bands
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("match_bins", bins, persistent=False)

        def conv(a, b, kernel):
            return nn.Conv1d(a, b, kernel, padding=kernel // 2, padding_mode="circular")

        self.network = nn.Sequential(
            conv(3 * self.BANDS + 1, hidden, 1), nn.GELU(), conv(hidden, hidden, 9), nn.GELU(),
            conv(hidden, hidden, 9), nn.GELU(), nn.Conv1d(hidden, 1, 1))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def features(self, spectrum: Tensor, forms: Sequence[Tensor], index: Tensor) -> Tensor:
        """(B, 2, F, T) complex → (B, 3·BANDS, D): match per band over the whole time and over the
        onsets alone (the direct sound comes before the room's), and the bands' levels."""
        whole = moments(spectrum[:, :, self.match_bins])                   # B f' 4 T
        level = whole[:, :, :2].sum(2)                                     # B f' T
        banded = []
        for weight in (None, onsets(level, 1e-10)):
            some = whole if weight is None else whole * weight[:, :, None]
            some = some.sum(-1)                                            # B f' 4
            energy = some[..., :2].sum(-1)                                 # B f'
            relative = some / (energy + energy.mean(-1, keepdim=True) * 1e-4 + 1e-10)[..., None]
            residual = torch.zeros(*energy.shape, forms[0].shape[1], device=spectrum.device)
            for number in index.unique().tolist():
                rows = (index == number).nonzero()[:, 0].to(spectrum.device)
                residual[rows] = torch.einsum("fdk,bfk->bfd", forms[number], relative[rows])
            match = -torch.log(residual.clamp_min(0) + 3e-3)               # B f' D
            weighted = self.bands[None] * (energy + 1e-10).pow(0.3)[..., None]
            share = weighted.sum(1)                                        # B bands
            mean = torch.einsum("bfd,bfk->bkd", match, weighted) / (share[..., None] + 1e-10)
            banded.append(mean - mean.mean(-1, keepdim=True))
            if weight is None:
                loud = torch.log(share / (share.mean(-1, keepdim=True) + 1e-10) + 1e-3)
        return torch.cat([*banded, loud[..., None].expand_as(banded[0])], 1)

    def forward(self, spectrum: Tensor, forms: Sequence[Tensor], index: Tensor,
                evidence: Tensor) -> Tensor:
        """
        Args:
            spectrum: (B, 2, F, T) of the extracted ears.
            forms: ``match_forms`` of the heads, ``index`` (B,) which one is whose.
            evidence: (B, D) from :class:`Candidates`.
        Returns:
            (B, 360) logits.
        """
        features = self.features(spectrum, forms, index)
        features = torch.cat([features, torch.exp(-8.0 * evidence)[:, None]], 1)
        return over_circle(self.network(features))


def _over_time(x: Tensor) -> Tensor:
    """(N, C, T) → (N, 2·C): mean and maximum over time."""
    return torch.cat([x.mean(-1), x.amax(-1)], -1)


class CandidateTagger(PhraseMatcher):
    """What does each candidate sound like: a small convolutional tagger on mel spectrograms."""

    def __init__(self, config: LuSeeLConfig):
        super().__init__(config.text.embedding, config.tagging.width)
        search = config.head_search
        mel = mel_bands(search.mel_bands, config.stft.n_fft, config.sample_rate, 50.0, 7800.0)
        self.register_buffer("mel", mel[:-1], persistent=False)
        layers: list[nn.Module] = []
        inputs = 2
        for width in search.tagger_channels:
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
                       nn.GELU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
                       nn.BatchNorm2d(width), nn.GELU(), nn.AvgPool2d(2)]
            inputs = width
        layers[0].stride = (2, 2)
        self.network = nn.Sequential(*layers)
        self.dropout = nn.Dropout(search.tagger_dropout)
        self.project = nn.Linear(2 * inputs, config.tagging.width)

    def features(self, power: Tensor, reference: Tensor) -> Tensor:
        """(B, C, F, T) candidates' power, (B, 1, F, T) the mixture's → (B·C, 2, M, T)."""
        mel, whole = (torch.einsum("bcft,fm->bcmt", p, self.mel) for p in (power, reference))
        scale = whole.mean((1, 2, 3), keepdim=True) + 1e-12
        floor = 1e-5
        log = torch.log(mel / scale + floor)
        # the candidate's own level says nothing about its kind
        own = torch.log(mel / (mel.mean((2, 3), keepdim=True) + scale * 1e-4) + floor)
        ratio = (log - torch.log(whole / scale + floor)).clamp(-6, 3)
        return torch.stack([own / 4 + 0.8, ratio / 3], 2).flatten(0, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 2, M, T) → (B, W). In training a band and a stretch of time are hidden."""
        if self.training:
            holes = spectrogram_holes(*features[:, 0].shape, features.device)
            features = features * holes[:, None]
        x = self.network(features).mean(2)                                 # B C T
        return self.project(self.dropout(_over_time(x)))


class CandidateYAMNet(PhraseMatcher):
    """What does each candidate sound like to YAMNet, which has heard more sounds than
    :class:`CandidateTagger`? The two err differently."""

    def __init__(self, config: LuSeeLConfig):
        super().__init__(config.text.embedding, config.tagging.width)
        self.network = YAMNet(config.head_search.yamnet_blocks)
        self.dropout = nn.Dropout(config.head_search.tagger_dropout)
        self.project = nn.Linear(2 * self.network.width, config.tagging.width)

    @torch.no_grad()
    def features(self, sounds: Tensor) -> Tensor:
        """(B, C, ears, samples) candidates in a mixture whose spectrum has an RMS of 1 → (B·C, T, M).

        The candidate's own level says nothing about its kind.
        """
        power = sounds.square().mean((2, 3)) + _QUIET
        scaled = sounds * (_LEVEL / power.sqrt())[..., None, None]
        return self.network.log_mel(scaled.flatten(0, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(N, T, M) → (N, W). In training a band and a stretch of time are hidden."""
        x = features
        if self.training:
            mean = x.mean((1, 2), keepdim=True)
            holes = spectrogram_holes(len(x), *x.shape[:0:-1], x.device)   # of bands and frames
            x = mean + (x - mean) * holes.transpose(1, 2)
        x = self.network(x).mean(3)                                        # N C T
        return self.project(self.dropout(_over_time(x)))
