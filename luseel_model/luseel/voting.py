"""DoA by votes of the time-frequency bins that the sought sound dominates (not in paper 000).

In a room the mean over time of what the ears receive mixes the direct sound with its reflections,
and masking distorts the ears' differences. So the mixture itself is looked at, bin by bin: each
votes for the directions whose responses explain it, as loudly as the extraction says that the bin
belongs to the sound; once over all bins, once over those that a direct sound is likely to
dominate: at onsets (precedence) and where the ears are coherent over neighbouring bins. In the
network's own frames the first reflections lie together with the direct sound, so short ones may
vote as well, whose onsets are ahead of them. Like
:class:`~luseel_model.luseel.head_search.MatchedLocalizer` it sees matches with responses, never the
responses themselves, so it holds for other heads.

Axis letters as in head_search.py; N queries of all mixtures, W weightings of the bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head_search import HeadSearch, MatchedLocalizer, mel_bands, moments, onsets, over_circle

_WIDTH = 0.08        # of a vote, as a share of the bin's energy that the direction leaves over
_LEVEL_POWER = 0.3   # of a bin's energy, as the loudness of its vote
_LEAST_VOTE = 1e-3


@dataclass(frozen=True)
class _Look:
    """How frames of one length are weighed: the share of the sound, and for each of ``onsets``
    (frames before, power of the coherence) that share where a direct sound is likely. Coherence of
    the ears is taken over ``around`` (bins, frames)."""

    onsets: tuple[tuple[int, int], ...]
    around: tuple[int, int]

    @property
    def weightings(self) -> int:
        return 1 + len(self.onsets)


_LONG = _Look(((2, 4),), (3, 3))
_SHORT = _Look(((2, 2), (8, 0)), (1, 3))


class _Block(nn.Module):
    """Residual circular convolution over azimuth."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 9, padding=4 * dilation, dilation=dilation,
                              padding_mode="circular")
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.conv(F.gelu(x))))


class VotingLocalizer(nn.Module):
    """Adds to the logits of DoA what the bins vote for.

    Args:
        search: of the network; with a ``search.short_frame`` short frames vote as well.
        matched: of the network; its bands are the long frames'.
        width: of the network over azimuth.
    """

    EXTRA = 5  # evidence, the two candidates' bumps, logits of the tokens and of the match

    def __init__(self, search: HeadSearch, matched: MatchedLocalizer, width: int):
        super().__init__()
        self.directions = search.directions
        self.register_buffer("bands", matched.bands, persistent=False)
        self.register_buffer("match_bins", matched.match_bins, persistent=False)
        count = self.bands.shape[1]
        # matches and votes, and the hints, twice (the other mirrored); then the bands' levels
        inputs = 2 * (2 * _LONG.weightings * count + self.EXTRA) + count
        if search.short_frame:
            bands = mel_bands(count, search.short_frame, search.sample_rate)[search.short_bins]
            self.register_buffer("short_bands", bands, persistent=False)
            self.register_buffer("short_bins", search.short_bins, persistent=False)
            inputs += (2 * 2 + 1) * _SHORT.weightings * count
        self.mix = nn.Conv1d(inputs, width, 1)
        self.blocks = nn.Sequential(*(_Block(width, d) for d in (1, 3, 6)))
        self.out = nn.Conv1d(width, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def mirrored(self, x: Tensor) -> Tensor:
        """(…, D) with front and back exchanged: azimuth → 180 − azimuth."""
        return x.flip(-1).roll(self.directions // 2 + 1, -1)

    @torch.no_grad()
    def features(self, mixture: Tensor, extracted: Tensor, forms: Sequence[Tensor], index: Tensor,
                 short: bool = False) -> tuple[Tensor, Tensor]:
        """What the bins say.

        Args:
            mixture: (B, 2, F, T) complex.
            extracted: (B, Q, 2, F, T) complex.
            forms, index: ``match_forms`` of the heads, or ``short_forms``; (B,) which one is whose.
            short: both spectra are of short frames.
        Returns:
            (B, Q, 2·W·BANDS, D) matches and votes, (B, Q, L) levels of the bands: L is BANDS, of
            short frames W·BANDS, with what the other weightings left of them.
        """
        bins = self.short_bins if short else self.match_bins
        x = moments(mixture[:, :, bins])                                   # B f' 4 T
        own = extracted[:, :, :, bins].abs().square().sum(2)               # B Q f' T
        features, level = None, None
        for number in index.unique().tolist():
            rows = (index == number).nonzero()[:, 0].to(mixture.device)
            found = self._of_head(x[rows], own[rows], forms[number], short)
            if features is None:
                features, level = (v.new_zeros(len(index), *v.shape[1:]) for v in found)
            features[rows], level[rows] = found
        return features, level

    def _of_head(self, x: Tensor, own: Tensor, forms: Tensor, short: bool) -> tuple[Tensor, Tensor]:
        bands = self.short_bands if short else self.bands
        level = x[:, :, :2].sum(2)                                         # b f' T
        floor = level.mean((1, 2), keepdim=True) * 1e-6 + 1e-12
        weight = self._weight(x, own, level, floor, _SHORT if short else _LONG)
        mean = torch.einsum("bfkt,bqwft->bqwfk", x, weight)
        energy = mean[..., :2].sum(-1)                                     # b Q W f'
        mean = mean / (energy + energy.mean(-1, keepdim=True) * 1e-4 + 1e-12)[..., None]
        match = -torch.log(torch.einsum("fdk,bqwfk->bqwfd", forms, mean).clamp_min(0) + 3e-3)
        loud = (level + floor).pow(_LEVEL_POWER)[:, None, None] * weight
        left = (forms @ (x / (level + floor)[:, :, None])).clamp_min(0)    # b f' D T
        vote = torch.einsum("bfdt,bqwft->bqwfd", torch.exp(left / -_WIDTH), loud)

        importance = bands * (energy[:, :, :1, :, None] + 1e-12).pow(_LEVEL_POWER)
        share_of_band = importance.sum(3)                                  # b Q 1 bands
        match = torch.einsum("bqwfd,bqwfk->bqwkd", match, importance.expand(
            *energy.shape, -1)) / (share_of_band[..., None] + 1e-12)
        voters = torch.einsum("bqwf,fk->bqwk", loud.sum(-1), bands)
        vote = torch.einsum("bqwfd,fk->bqwkd", vote, bands) / (
            voters + voters.mean(-1, keepdim=True) * 1e-3 + 1e-12)[..., None]
        parts = torch.cat([match, torch.log(vote + _LEAST_VOTE)], 2).flatten(2, 3)
        loudness = share_of_band[:, :, 0]
        loudness = torch.log(loudness / (loudness.mean(-1, keepdim=True) + 1e-12) + 1e-3)
        if short:  # long frames have no channels for it: networks were trained without
            kept = torch.log(voters[:, :, 1:] / (voters[:, :, :1] + 1e-6) + 1e-3) / 3
            loudness = torch.cat([loudness, kept.flatten(2)], -1)
        return parts - parts.mean(-1, keepdim=True), loudness

    @staticmethod
    def _weight(x: Tensor, own: Tensor, level: Tensor, floor: Tensor, look: _Look) -> Tensor:
        """(b, Q, W, f', T) how much a bin counts."""
        share = (own / (level + floor)[:, None]).clamp(max=1.0).square()   # b Q f' T
        local = F.avg_pool2d(x.transpose(1, 2), look.around, 1, tuple(n // 2 for n in look.around))
        coherence = (local[:, 2].square() + local[:, 3].square()) \
            / (local[:, 0] * local[:, 1] + floor.square())
        coherence = coherence.clamp(max=1.0)[:, None]
        direct = [share * onsets(own, floor[:, None], past) * coherence.pow(power)
                  for past, power in look.onsets]
        return torch.stack([share, *direct], 2)

    def forward(self, looks: Sequence[tuple[Tensor, Tensor]], hints: Tensor) -> Tensor:
        """
        Args:
            looks: of :meth:`features` for N queries of all mixtures: of long frames, then of short.
            hints: (N, EXTRA, D).
        Returns:
            (N, 360) logits.
        """
        inputs = []
        for i, (features, level) in enumerate(looks):
            x = torch.cat([features, hints], 1) if i == 0 else features
            inputs += [x, self.mirrored(x), level[..., None].expand(-1, -1, x.shape[-1])]
        return over_circle(self.out(F.gelu(self.blocks(self.mix(torch.cat(inputs, 1))))))
