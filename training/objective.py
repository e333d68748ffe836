"""The training objective: paper equation 3, and auxiliary terms for small networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from luseel_model.luseel import LuSeeL, LuSeeLOutput, Tagger
from training.losses import (CompressedMagnitudeLoss, DeltaSpectrumLoss, clip_tag_loss,
                             dense_tag_loss, doa_cross_entropy, doa_squared_error,
                             negative_si_snr, presence_bce, token_energy_shares)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; 0 leaves a term out. The defaults are the paper's.

    ``doa`` is the paper's gamma; ``doa_kind`` 'squared' is equation 2 with the label scaled as
    ``doa_label`` says (training/losses/doa.py), 'cross_entropy' goes with a softmax head.
    ``doa_tokens``, ``dense_tags``, ``clip_tags``, ``presence`` and ``magnitude`` are ours.
    """

    si_snr: float = 1.0
    spectrum: float = 1.0
    doa: float = 10.0
    doa_kind: Literal["squared", "cross_entropy"] = "squared"
    doa_label: Literal["peak", "density", "mean"] = "peak"
    doa_tokens: float = 0.0
    dense_tags: float = 0.0
    clip_tags: float = 0.0
    presence: float = 0.0
    magnitude: float = 0.0


class Objective(nn.Module):
    """Total loss and its terms for a batch of B mixtures with Q queries each."""

    def __init__(self, config: LossConfig, network: LuSeeL):
        super().__init__()
        self.config = config
        self.spectrum = DeltaSpectrumLoss()
        self.magnitude = CompressedMagnitudeLoss()
        model = network.config
        self.grid = (model.spectral_tokens // model.frames, model.frames, model.stft.hop)

    def extraction(self, network: LuSeeL, output: LuSeeLOutput, mixture: Tensor, target: Tensor,
                   azimuth: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the queried sounds.

        Args:
            mixture: (B, C, N).
            target: (B, Q, C, N) binaural images of the queried sources.
            azimuth: (B, Q) degrees.
        """
        config, terms = self.config, {}
        estimate, target = output.audio.flatten(0, 1), target.flatten(0, 1)
        if config.si_snr:
            terms["si_snr"] = config.si_snr * negative_si_snr(estimate, target).mean()
        if config.spectrum:
            terms["spectrum"] = config.spectrum * self.spectrum(estimate, target).mean()
        if config.magnitude:
            queries = output.audio.shape[1]
            reference = mixture.repeat_interleave(queries, dim=0)
            terms["magnitude"] = config.magnitude * self.magnitude(
                estimate, target, reference).mean()
        azimuth = azimuth.flatten()
        if output.doa_logits is not None and config.doa:
            terms["doa"] = config.doa * self._doa(network, output.doa_logits, azimuth)
        if output.token_doa_logits is not None and config.doa_tokens \
                and network.config.localization.extracted:
            terms["doa_tokens"] = config.doa_tokens * self._doa(
                network, output.token_doa_logits, azimuth)
        return terms

    def _doa(self, network: LuSeeL, logits: Tensor, azimuth: Tensor) -> Tensor:
        logits = logits.flatten(0, 1)
        if self.config.doa_kind == "cross_entropy":
            return doa_cross_entropy(logits, azimuth).mean()
        return doa_squared_error(network.likelihood(logits), azimuth, self.config.doa_label).mean()

    def tags(self, network: LuSeeL, tag_tokens: Tensor, sentences: Tensor, sources: Tensor,
             kind: Tensor, confusable: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the tagging head.

        Args:
            tag_tokens: (B, L, W).
            sentences: (K, E), one wording of each kind.
            sources: (B, S, C, N) all sources of the mixtures.
            kind: (B, S) index into the K kinds, -1 for one that isn't among them.
            confusable: (K, K) bool; kinds that sound alike are no negatives of each other.
        """
        config, terms = self.config, {}
        if not (config.dense_tags or config.clip_tags or config.presence):
            return terms
        similarity = network.tagger.similarity(tag_tokens, sentences)
        known = kind.clamp(min=0)
        valid = (kind >= 0).to(similarity.dtype)
        if config.dense_tags:
            bins, frames, hop = self.grid
            shares, weight = token_energy_shares(sources, bins, frames, hop)
            terms["dense_tags"] = config.dense_tags * dense_tag_loss(
                similarity, known, shares * valid[:, None], weight).mean()
        if config.clip_tags:
            terms["clip_tags"] = config.clip_tags * clip_tag_loss(
                Tagger.pool(similarity), known,
                valid / valid.sum(1, keepdim=True).clamp(min=1)).mean()
        if config.presence:
            logits = network.tagger.presence(similarity)
            # added up, so that an unknown source never erases a known one of kind 0
            present = torch.zeros_like(logits).scatter_add_(1, known, valid.to(logits)) > 0
            ignored = (present.float() @ confusable.float() > 0) & ~present
            loss = presence_bce(logits.flatten(), present.flatten()).view_as(logits)
            negative = ~present & ~ignored
            # present and absent queries weigh the same: confidence 0.5 is an even prior
            terms["presence"] = config.presence * 0.5 * (
                (loss * present).sum() / present.sum().clamp(min=1)
                + (loss * negative).sum() / negative.sum().clamp(min=1))
        return terms
