"""The training objective: paper equation 3, and auxiliary terms for small networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luseel_model.features import stft
from luseel_model.luseel.network import LuSeeL, LuSeeLOutput
from training.losses import (CompressedMagnitudeLoss, DeltaSpectrumLoss, absent_queries,
                             doa_cross_entropy, doa_squared_error, inversion, negative_si_snr,
                             tagged_sound_loss, token_energy_shares)
from training.tag_terms import TagWeights, tag_terms


@dataclass(frozen=True)
class LossConfig(TagWeights):
    """Weights of the terms; 0 leaves a term out. The defaults are the paper's.

    ``doa`` is the paper's gamma; ``doa_kind`` 'squared' is equation 2 with the label scaled as
    ``doa_label`` says (training/losses/doa.py), 'cross_entropy' goes with a softmax head.
    ``doa_tokens``, those of the tags, ``magnitude``, ``absent`` (level of the extraction of a sound
    that isn't there) and ``polarity`` (of each ear, which SI-SNR doesn't see) are ours; so are, for
    a search with the head's responses, ``candidate_tags`` (a candidate's kinds), ``tagged_candidates``
    (a kind's candidates among the batch's), ``selection`` (which candidate is meant), ``trust`` (is
    it better than the masked mixture) and ``masked`` (SI-SNR of the latter alone).
    """

    si_snr: float = 1.0
    spectrum: float = 1.0
    doa: float = 10.0
    doa_kind: Literal["squared", "cross_entropy"] = "squared"
    doa_label: Literal["peak", "density", "mean"] = "peak"
    doa_tokens: float = 0.0
    magnitude: float = 0.0
    absent: float = 0.0
    polarity: float = 0.0
    candidate_tags: float = 0.0
    tagged_candidates: float = 0.0
    selection: float = 0.0
    trust: float = 0.0
    masked: float = 0.0


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
                   azimuth: Tensor, present: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted terms of the queried sounds.

        Args:
            mixture: (B, C, N).
            target: (B, Q, C, N) binaural images of the queried sources.
            azimuth: (B, Q) degrees.
            present: (B, Q) bool, False for sounds that aren't there; all are without it.
        """
        config, terms = self.config, {}
        estimate, target = output.audio.flatten(0, 1), target.flatten(0, 1)
        heard = slice(None) if present is None else present.flatten()
        if present is not None and config.absent and not present.all():
            terms["absent"] = config.absent * absent_queries(
                output.audio, mixture, present).sum() / present.numel()
        if present is not None and not present.any():
            return terms
        estimate, target = estimate[heard], target[heard]
        if config.si_snr:
            terms["si_snr"] = config.si_snr * negative_si_snr(
                estimate, target, upright=bool(config.polarity)).mean()
        if config.polarity:
            terms["polarity"] = config.polarity * inversion(estimate, target).mean()
        if config.spectrum:
            terms["spectrum"] = config.spectrum * self.spectrum(estimate, target).mean()
        if config.magnitude:
            queries = output.audio.shape[1]
            reference = mixture.repeat_interleave(queries, dim=0)[heard]
            terms["magnitude"] = config.magnitude * self.magnitude(
                estimate, target, reference).mean()
        azimuth = azimuth.flatten()[heard]
        if output.doa_logits is not None and config.doa:
            terms["doa"] = config.doa * self._doa(
                network, output.doa_logits.flatten(0, 1)[heard], azimuth)
        if output.token_doa_logits is not None and config.doa_tokens \
                and network.config.localization.extracted:
            terms["doa_tokens"] = config.doa_tokens * self._doa(
                network, output.token_doa_logits.flatten(0, 1)[heard], azimuth)
        return terms

    def _doa(self, network: LuSeeL, logits: Tensor, azimuth: Tensor) -> Tensor:
        if self.config.doa_kind == "cross_entropy":
            return doa_cross_entropy(logits, azimuth).mean()
        return doa_squared_error(network.likelihood(logits), azimuth, self.config.doa_label).mean()

    def tags(self, network: LuSeeL, tag_tokens: Tensor, sentences: Tensor, sources: Tensor,
             kind: Tensor, confusable: Tensor, candidate_tags: Tensor | None = None
             ) -> dict[str, Tensor]:
        """Weighted terms of the tagging head.

        Args:
            tag_tokens: (B, L, W).
            sentences: (K, E), one wording of each kind.
            sources: (B, S, C, N) all sources of the mixtures.
            kind: (B, S) index into the K kinds, -1 for one that isn't among them.
            confusable: (K, K) bool; kinds that sound alike are no negatives of each other.
            candidate_tags: (B, 2, W) where there are candidates.
        """
        if not self.config.tagging:
            return {}
        return tag_terms(
            self.config, network.tagger.similarity(tag_tokens, sentences), kind,
            lambda: token_energy_shares(sources, *self.grid),
            lambda similarity: network.presence(similarity, candidate_tags, sentences), confusable)

    def candidates(self, network: LuSeeL, output: LuSeeLOutput, sentences: Tensor,
                   sources: Tensor, kind: Tensor, confusable: Tensor,
                   asked: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted terms of the candidates of the search with the head's responses.

        A candidate's kinds are those of the sources, by their coherence with it.

        Args:
            sentences: (K, E), one wording of each kind.
            sources: (B, S, C, N) all sources of the mixtures.
            kind: (B, S) index into the K kinds, -1 for one that isn't among them.
            confusable: (K, K) bool; kinds that sound alike, and each with itself.
            asked: (B, Q) which source each query asks for, -1 for an absent one.
        """
        config, terms = self.config, {}
        found = output.candidates
        if found is None or not (config.candidate_tags or config.tagged_candidates
                                 or config.selection or config.trust or config.masked):
            return terms
        model = network.config
        with torch.no_grad():
            truth = stft(sources.float(), model.stft.n_fft, model.stft.hop).flatten(2)  # B S n
            images = found.images.flatten(2)                                            # B 2 n
            product = torch.einsum("bkn,bsn->bks", images, truth.conj()).abs().square()
            energy = images.abs().square().sum(-1)[..., None] \
                * truth.abs().square().sum(-1)[:, None] + 1e-12
            coherence = product / energy                                                # B 2 S
            valid = (kind >= 0).to(coherence.dtype)[:, None]
            share = coherence.square() * valid
            share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
            weight = (coherence * valid).amax(-1)
        if config.candidate_tags or config.tagged_candidates:
            # each tagger by itself: together they learn what one of them knows already
            similarities = torch.stack(network.candidate_similarities(output.candidate_tags,
                                                                      sentences))      # n B 2 K
            index = kind.clamp(min=0)[:, None].expand(-1, 2, -1)
            if config.candidate_tags:
                log = F.log_softmax(similarities, -1)
                loss = -(share * log.gather(-1, index.expand(len(log), -1, -1, -1))).sum(-1) * weight
                terms["candidate_tags"] = config.candidate_tags * loss.mean()
            if config.tagged_candidates:
                of_kind = torch.zeros_like(similarities[0]).scatter_add_(
                    -1, index, share * weight[..., None]).flatten(0, 1)
                loss = torch.stack([tagged_sound_loss(some.flatten(0, 1), of_kind, confusable)
                                    for some in similarities])
                terms["tagged_candidates"] = config.tagged_candidates * loss.mean()
        if config.selection and asked is not None:
            known = asked >= 0
            of_asked = coherence.gather(2, asked.clamp(min=0)[:, None].expand(-1, 2, -1))  # B 2 Q
            difference = of_asked[:, 0] - of_asked[:, 1]
            loss = F.binary_cross_entropy_with_logits(
                output.selection_logits.float(), (difference > 0).float(), reduction="none")
            terms["selection"] = config.selection * (
                loss * difference.abs() * known).sum() / known.sum().clamp(min=1)
        if (config.trust or config.masked) and asked is not None and bool((asked >= 0).any()):
            rows, places = (asked >= 0).nonzero(as_tuple=True)
            target = truth[rows, asked[rows, places]]
            masked, chosen = (_spectral_si_snr(v[rows, places].flatten(1), target)
                              for v in (output.masked, output.chosen))
            if config.masked:
                terms["masked"] = -config.masked * masked.mean()
            if config.trust:
                better = torch.sigmoid((chosen - masked).detach() / 2.0)
                terms["trust"] = config.trust * F.binary_cross_entropy_with_logits(
                    output.trust_logits[rows, places].float(), better)
        return terms


def _spectral_si_snr(estimate: Tensor, target: Tensor) -> Tensor:
    """SI-SNR of complex spectra (N, bins), dB: that of their signals but for the windows' overlap."""
    scale = (estimate.conj() * target).real.sum(1) / (target.abs().square().sum(1) + 1e-10)
    scale = scale.clamp_min(0)  # inverted is no estimate
    part = scale[:, None] * target
    return 10 * torch.log10((part.abs().square().sum(1) + 1e-8)
                            / ((estimate - part).abs().square().sum(1) + 1e-8))
