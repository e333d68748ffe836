"""DoA by votes of the time-frequency bins that the sought sound dominates (not in paper 000).

In a room the mean over time of what the ears receive mixes the direct sound with its reflections,
and masking distorts the ears' differences. So the mixture itself is looked at, bin by bin: each
votes for the directions whose responses explain it, as loudly as the extraction says that the bin
belongs to the sound; once over all bins, once over those that a direct sound is likely to
dominate: at onsets (precedence) and where the ears are coherent over neighbouring bins. Like
:class:`~luseel_model.luseel.head_search.MatchedLocalizer` it sees matches with responses, never the
responses themselves, so it holds for other heads.

Axis letters as in head_search.py; N queries of all mixtures.
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head_search import HeadSearch, MatchedLocalizer, moments, onsets, over_circle

_WIDTH = 0.08        # of a vote, as a share of the bin's energy that the direction leaves over
_LEVEL_POWER = 0.3   # of a bin's energy, as the loudness of its vote
_COHERENCE_POWER = 4
_LEAST_VOTE = 1e-3


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
        search: of the network.
        bands: (f', BANDS) weights of the bins in mel bands.
        width: of the network over azimuth.
    """

    EXTRA = 5  # evidence, the two candidates' bumps, logits of the tokens and of the match

    def __init__(self, search: HeadSearch, matched: MatchedLocalizer, width: int):
        super().__init__()
        self.directions = search.directions
        self.register_buffer("bands", matched.bands, persistent=False)
        self.register_buffer("match_bins", matched.match_bins, persistent=False)
        count = self.bands.shape[1]
        self.mix = nn.Conv1d(2 * (4 * count + self.EXTRA) + count, width, 1)
        self.blocks = nn.Sequential(*(_Block(width, d) for d in (1, 3, 6)))
        self.out = nn.Conv1d(width, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def mirrored(self, x: Tensor) -> Tensor:
        """(…, D) with front and back exchanged: azimuth → 180 − azimuth."""
        return x.flip(-1).roll(self.directions // 2 + 1, -1)

    @torch.no_grad()
    def features(self, mixture: Tensor, extracted: Tensor, forms: Sequence[Tensor], index: Tensor
                 ) -> tuple[Tensor, Tensor]:
        """What the bins say.

        Args:
            mixture: (B, 2, F, T) complex.
            extracted: (B, Q, 2, F, T) complex.
            forms, index: ``match_forms`` of the heads, (B,) which one is whose.
        Returns:
            (B, Q, 4·BANDS, D) matches and votes, (B, Q, BANDS) level of the bands.
        """
        x = moments(mixture[:, :, self.match_bins])                        # B f' 4 T
        own = extracted[:, :, :, self.match_bins].abs().square().sum(2)    # B Q f' T
        features, level = None, None
        for number in index.unique().tolist():
            rows = (index == number).nonzero()[:, 0].to(mixture.device)
            found = self._of_head(x[rows], own[rows], forms[number])
            if features is None:
                features, level = (v.new_zeros(len(index), *v.shape[1:]) for v in found)
            features[rows], level[rows] = found
        return features, level

    def _of_head(self, x: Tensor, own: Tensor, forms: Tensor) -> tuple[Tensor, Tensor]:
        level = x[:, :, :2].sum(2)                                         # b f' T
        floor = level.mean((1, 2), keepdim=True) * 1e-6 + 1e-12
        share = (own / (level + floor)[:, None]).clamp(max=1.0).square()   # b Q f' T
        onset = onsets(own, floor[:, None])
        local = F.avg_pool2d(x.transpose(1, 2), 3, 1, 1)                   # b 4 f' T
        coherence = (local[:, 2].square() + local[:, 3].square()) \
            / (local[:, 0] * local[:, 1] + floor.square())
        direct = share * onset * coherence.clamp(max=1.0).pow(_COHERENCE_POWER)[:, None]

        weight = torch.stack([share, direct], 2)                           # b Q 2 f' T
        mean = torch.einsum("bfkt,bqwft->bqwfk", x, weight)
        energy = mean[..., :2].sum(-1)                                     # b Q 2 f'
        mean = mean / (energy + energy.mean(-1, keepdim=True) * 1e-4 + 1e-12)[..., None]
        match = -torch.log(torch.einsum("fdk,bqwfk->bqwfd", forms, mean).clamp_min(0) + 3e-3)
        loud = (level + floor).pow(_LEVEL_POWER)[:, None, None] * weight
        left = (forms @ (x / (level + floor)[:, :, None])).clamp_min(0)    # b f' D T
        vote = torch.einsum("bfdt,bqwft->bqwfd", torch.exp(left / -_WIDTH), loud)
        voters = loud.sum(-1)                                              # b Q 2 f'

        importance = self.bands * (energy[:, :, :1, :, None] + 1e-12).pow(_LEVEL_POWER)
        share_of_band = importance.sum(3)                                  # b Q 1 bands
        match = torch.einsum("bqwfd,bqwfk->bqwkd", match, importance.expand(
            *energy.shape, -1)) / (share_of_band[..., None] + 1e-12)
        total = torch.einsum("bqwf,fk->bqwk", voters, self.bands)
        vote = torch.einsum("bqwfd,fk->bqwkd", vote, self.bands) / (
            total + total.mean(-1, keepdim=True) * 1e-3 + 1e-12)[..., None]
        parts = torch.cat([match, torch.log(vote + _LEAST_VOTE)], 2).flatten(2, 3)
        loudness = share_of_band[:, :, 0]
        loudness = torch.log(loudness / (loudness.mean(-1, keepdim=True) + 1e-12) + 1e-3)
        return parts - parts.mean(-1, keepdim=True), loudness

    def forward(self, features: Tensor, level: Tensor, hints: Tensor) -> Tensor:
        """
        Args:
            features, level: of :meth:`features`, for N queries of all mixtures.
            hints: (N, EXTRA, D).
        Returns:
            (N, 360) logits.
        """
        x = torch.cat([features, hints], 1)
        x = torch.cat([x, self.mirrored(x), level[..., None].expand(-1, -1, x.shape[-1])], 1)
        return over_circle(self.out(F.gelu(self.blocks(self.mix(x)))))

