"""LuSeeL: language-queried binaural sound extraction and localization (paper section 2).

One network for the paper's configuration and for small ones: what differs is in
:class:`~luseel_model.luseel.config.LuSeeLConfig`. Text enters after the audio encoders, so that
these run once for any number of queries.

Axis letters: B mixtures, Q queries per mixture, C audio channels (ears: left, right), N samples,
F frequency bins, T frames, L tokens, E width of the frozen text embedding, K phrases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AZIMUTH_BINS
from ..features import gcc_phat, interaural_inputs, istft, stft
from ..layers import (DConv, DecoderLayer, EncoderLayer, FiLM, FrequencyEmbedding, LayerScale,
                      PhraseMatcher, Tagger, rescale_convolutions)
from ..network import Network
from ..text import sentence_embedding
from .config import LuSeeLConfig
from .head_search import (STATISTICS, Candidates, CandidateTagger, CandidateYAMNet, HeadSearch,
                          MatchedLocalizer, PreparedHead)
from .localization import ExtractedLocalizer, TokenLocalizer
from .transformer import AttentionLayer, CrossDomainTransformer, TextAdapter
from .voting import VotingLocalizer

INTERAURAL_CHANNELS = 9
CANDIDATE_CHANNELS = 3
LABEL_PEAK = 0.17841  # peak of the normalised DoA label (variance 5 deg²): 1/sqrt(2π·5)


@dataclass
class LuSeeLOutput:
    """What :meth:`LuSeeL.forward` returns; entries that the configuration lacks are None."""

    audio: Tensor                            # (B, Q, C, N) extracted ears
    doa_logits: Tensor | None = None         # (B, Q, 360) the estimate
    token_doa_logits: Tensor | None = None   # (B, Q, 360) the paper's head alone
    tag_tokens: Tensor | None = None         # (B, L, W) audio side of the tagging space
    presence_logits: Tensor | None = None    # (B, Q) is the sound there
    gate_logits: Tensor | None = None        # (B, Q) of the gain that `audio` has by the presence
    candidates: Candidates | None = None     # what the search with the head's responses found
    candidate_tags: Tensor | None = None     # (B, 2, W) candidates' tags, tagger by tagger
    selection_logits: Tensor | None = None   # (B, Q) the first candidate, not the second
    trust_logits: Tensor | None = None       # (B, Q) the candidate rather than the masked mixture
    masked: Tensor | None = None             # (B, Q, 2, F, T) complex, the masked mixture alone
    chosen: Tensor | None = None             # (B, Q, 2, F, T) complex, the chosen candidate alone


@dataclass
class Encoded:
    """The query-independent part of the computation."""

    mixture: Tensor
    spectrum: Tensor
    x: Tensor
    skips: list[Tensor]
    mean: Tensor
    std: Tensor
    xt: Tensor | None
    skips_t: list[Tensor]
    lengths_t: list[int]
    mean_t: Tensor
    std_t: Tensor
    gcc: Tensor | None
    tag_tokens: Tensor | None
    candidates: Candidates | None = None
    candidate_tags: Tensor | None = None
    heads: Sequence[PreparedHead] = ()
    head_index: Tensor | None = None


@dataclass
class _Mixed:
    """Of :meth:`LuSeeL._mix`, for B·Q queries."""

    spectrum: Tensor   # (B·Q, 2, F, T)
    masked: Tensor
    chosen: Tensor
    selection: Tensor  # (B·Q,) logits
    trust: Tensor      # (B·Q,) logits


def spectrum_level(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """RMS of each complex spectrum (B, C, F, T), and what to divide it by, never 0: (B, 1, 1, 1)."""
    rms = spectrum.abs().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return rms, rms + 1e-5


def _repeat(x: Tensor, queries: int) -> Tensor:
    return x if queries == 1 else x.repeat_interleave(queries, dim=0)


class LuSeeL(Network):
    """Joint extraction and localization of the described sound.

    Args:
        config: see :class:`~luseel_model.luseel.config.LuSeeLConfig`.
    """

    def __init__(self, config: LuSeeLConfig):
        super().__init__()
        self.config = config
        net, loc = config.backbone, config.localization
        channels = net.layer_channels
        ears = config.audio_channels
        inputs = INTERAURAL_CHANNELS if net.inputs == "interaural" else 2 * ears
        outputs = 2 * ears
        searching = bool(config.head_search.azimuths)
        if searching:  # candidates in; trust and choice out
            inputs, outputs = inputs + CANDIDATE_CHANNELS, outputs + 2

        def dconv(wanted: bool, width: int) -> DConv | None:
            return DConv(width, net.dconv_compress, net.dconv_depth, net.dconv_init) \
                if wanted else None

        def branch(frequency: bool, first: int, last: int):
            encoder, decoder = nn.ModuleList(), nn.ModuleList()
            for i, (stride, width) in enumerate(zip(net.strides, channels)):
                below_in, below_out = (first, last) if i == 0 else (channels[i - 1],) * 2
                encoder.append(EncoderLayer(
                    below_in, width, stride, frequency=frequency, context=net.encoder_context[i],
                    groups=net.norm_groups, dconv=dconv(net.dconv_encoder, width)))
                decoder.insert(0, DecoderLayer(
                    width, below_out, stride, frequency=frequency, context=net.decoder_context,
                    groups=net.norm_groups, dconv=dconv(net.dconv_decoder, width), last=i == 0))
            return encoder, decoder

        self.frequency_encoder, self.frequency_decoder = branch(True, inputs, outputs)
        if net.time_branch:
            self.time_encoder, self.time_decoder = branch(False, ears, ears)
        if net.frequency_embedding:
            self.frequency_embedding = FrequencyEmbedding(
                config.stft.bins // net.strides[0], channels[0])
        if net.rescale:
            rescale_convolutions(self, net.rescale)

        width = config.width
        if width != channels[-1]:
            self.widen, self.narrow = (nn.Conv1d(a, b, 1) for a, b in
                                       ((channels[-1], width), (width, channels[-1])))
            if net.time_branch:
                self.widen_t, self.narrow_t = (nn.Conv1d(a, b, 1) for a, b in
                                               ((channels[-1], width), (width, channels[-1])))
        self.text_adapter = TextAdapter(config.text)
        self.shared_layers = nn.ModuleList(
            AttentionLayer(width, config.transformer, cross=False)
            for _ in range(config.transformer.shared_layers))
        if config.transformer.shared_layers:
            self.shared_norm = nn.LayerNorm(width)
        self.transformer = CrossDomainTransformer(
            width, config.transformer, config.text.width, net.time_branch)
        if config.transformer.film_skips:
            self.film_skips = nn.ModuleList(
                FiLM(config.text.width, w) for w in reversed(channels))
        if config.tagging.width:
            self.tagger = Tagger(width, config.text.embedding, config.tagging.width)
            self.tag_inject = nn.Sequential(nn.Linear(1, width), LayerScale(width, 0.1, True))
        if searching:
            self.head_search = HeadSearch(config)
            self.candidate_tagger = CandidateTagger(config)
            if config.head_search.yamnet_blocks:
                self.candidate_yamnet = CandidateYAMNet(config)
                self.tagger_weights = nn.Parameter(torch.full((2,), 0.5))
            self.matched_localizer = MatchedLocalizer(self.head_search)
            if config.head_search.voting:
                self.voting_localizer = VotingLocalizer(
                    self.head_search, self.matched_localizer, config.head_search.voting)
            self.direction_trust = nn.Sequential(
                nn.Linear(STATISTICS + 3, 32), nn.GELU(), nn.Linear(32, 1))
            self.agreement = nn.Parameter(torch.tensor(4.0))
            self.trust = nn.Sequential(nn.Linear(STATISTICS + 5, 32), nn.GELU(), nn.Linear(32, 1))
            self.candidate_presence = nn.Parameter(torch.zeros(1))
            self.audibility = nn.Parameter(torch.tensor([0.5, 4.0]))
        if config.use_localization:
            self.token_localizer = TokenLocalizer(config)
            if loc.extracted:
                self.extracted_localizer = ExtractedLocalizer(
                    config.stft.bins, loc.extracted_hidden, loc.dropout)

    # -- the query-independent part

    def encode(self, mixture: Tensor, heads: Sequence[PreparedHead] | None = None,
               head_index: Tensor | None = None) -> Encoded:
        """Run the audio encoders.

        Args:
            mixture: (B, C, N); with localization N must be at least ``config.window_samples``.
            heads, head_index: whose ears heard mixture b: ``heads[head_index[b]]``. Without them
                the head that the network brings. Only for networks that search with it.
        """
        config, net = self.config, self.config.backbone
        spectrum = stft(mixture, config.stft.n_fft, config.stft.hop)
        candidates = candidate_tags = None
        if net.inputs == "interaural":
            rms, level = spectrum_level(spectrum)
            x = interaural_inputs(spectrum / level)
            if config.head_search.azimuths:
                heads = heads or (self.head_search.prepared(),)
                if head_index is None:
                    head_index = torch.zeros(len(mixture), dtype=torch.long)
                candidates, candidate_tags, shown = self.search(
                    spectrum / level, heads, head_index, samples=mixture.shape[-1])
                x = torch.cat([x, shown], 1)
                candidates.images = candidates.images * level[..., None]
            mean, std = torch.zeros_like(rms), rms
        else:
            x = torch.view_as_real(spectrum).permute(0, 1, 4, 2, 3).flatten(1, 2)
            mean, std = (f(x, dim=(1, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
            x = (x - mean) / (1e-5 + std)
        skips = []
        for i, layer in enumerate(self.frequency_encoder):
            x = layer(x)
            if i == 0 and net.frequency_embedding:
                x = x + net.frequency_embedding * self.frequency_embedding()
            skips.append(x)

        mean_t, std_t = (f(mixture, dim=(1, 2), keepdim=True) for f in (torch.mean, torch.std))
        xt, skips_t, lengths_t = None, [], []
        if net.time_branch:
            xt = (mixture - mean_t) / (1e-5 + std_t)
            for layer in self.time_encoder:
                lengths_t.append(xt.shape[-1])
                xt = layer(xt)
                skips_t.append(xt)

        if hasattr(self, "widen"):
            x = self.widen(x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
            xt = self.widen_t(xt) if net.time_branch else None
        x = self._shared(x)
        tag_tokens = None
        if config.tagging.width:
            tag_tokens = self.tagger.audio(x.permute(0, 3, 2, 1).flatten(1, 2))
        gcc = None
        if config.use_localization and config.use_gcc_phat:
            gcc = gcc_phat(mixture.float(), config.gcc_hop_samples, config.localization.gcc_lags)
        return Encoded(mixture, spectrum, x, skips, mean, std, xt, skips_t, lengths_t,
                       mean_t, std_t, gcc, tag_tokens, candidates, candidate_tags,
                       heads or (), head_index)

    def search(self, spectrum: Tensor, heads: Sequence[PreparedHead], index: Tensor,
               images: Tensor | None = None, samples: int | None = None
               ) -> tuple[Candidates, Tensor, Tensor]:
        """Search with the head's responses.

        Args:
            spectrum: (B, 2, F, T) complex, of RMS 1.
            heads, index: see :meth:`encode`.
            images: (B, 2, 2, F, T) to be taken for the candidates' instead of those found.
            samples: of the mixture; None: those of a window.
        Returns:
            what was found, the candidates' tags (B, 2, W), and what the encoder is shown
            (B, 3, F, T).
        """
        with torch.autocast(spectrum.device.type, enabled=False):
            found = self.head_search.forward_heads(spectrum, heads, index)
            if images is not None:
                found.images = images
            if self.training:  # neither place may mean anything
                swap = torch.rand(len(spectrum), device=spectrum.device) < 0.5
                order = torch.stack([swap.long(), 1 - swap.long()], 1)
                rows = torch.arange(len(spectrum), device=spectrum.device)[:, None]
                found.images = found.images[rows, order]
                found.azimuth = found.azimuth[rows, order]
            power = found.images.abs().square().sum(2)                     # B 2 F T
            features = [self.candidate_tagger.features(
                power, spectrum.abs().square().sum(1, keepdim=True))]
            if self.config.head_search.yamnet_blocks:
                size = self.config.stft
                features.append(self.candidate_yamnet.features(
                    istft(found.images, size.n_fft, size.hop,
                          samples or self.config.window_samples)))
            log = 0.5 * torch.log(power + 1e-8)
            shown = torch.cat([log / 4.0, ((log[:, :1] - log[:, 1:]) / 2.0).clamp(-3, 3)], 1)
        tags = torch.cat([tagger(some).float() for tagger, some in
                          zip(self._candidate_taggers(), features)], -1)
        return found, tags.unflatten(0, (-1, 2)), shown

    def _candidate_taggers(self) -> list[PhraseMatcher]:
        if self.config.head_search.yamnet_blocks:
            return [self.candidate_tagger, self.candidate_yamnet]
        return [self.candidate_tagger]

    def candidate_similarities(self, tags: Tensor, sentence: Tensor) -> list[Tensor]:
        """How well the candidates match phrases, as each tagger of them says.

        Args:
            tags: (B, 2, W) of :meth:`search`.
            sentence: (K, E) or (B, K, E).
        Returns:
            of each tagger (B, 2, K).
        """
        taggers = self._candidate_taggers()
        return [tagger.similarity(some, sentence) for tagger, some in
                zip(taggers, tags.chunk(len(taggers), -1))]

    def candidate_similarity(self, tags: Tensor, sentence: Tensor) -> Tensor:
        """The same of all taggers together: (B, 2, K)."""
        each = self.candidate_similarities(tags, sentence)
        if len(each) == 1:
            return each[0]
        return sum(weight * some for weight, some in zip(self.tagger_weights, each))

    def _shared(self, x: Tensor) -> Tensor:
        if not self.shared_layers:
            return x
        batch, channels, bins, frames = x.shape
        tokens = self.shared_norm(x.permute(0, 3, 2, 1).flatten(1, 2))
        for layer in self.shared_layers:
            tokens = layer(tokens)
        return tokens.view(batch, frames, bins, channels).permute(0, 3, 2, 1)

    # -- the part that depends on the queries

    def extract(self, encoded: Encoded, tokens: Tensor, mask: Tensor) -> LuSeeLOutput:
        """Extract and localize what the queries describe.

        Args:
            encoded: from :meth:`encode`, B mixtures.
            tokens: (B, Q, L, E) frozen token embeddings of the queries.
            mask: (B, Q, L) bool, True at real tokens.
        """
        config, net = self.config, self.config.backbone
        batch, queries = tokens.shape[:2]
        text = self.text_adapter(tokens.flatten(0, 1), mask.flatten(0, 1))

        x = _repeat(encoded.x, queries)
        presence = None
        if config.tagging.width:
            sentence = sentence_embedding(tokens, mask)
            similarity = self.tagger.similarity(encoded.tag_tokens, sentence)  # B L Q
            presence = self.presence(similarity, encoded.candidate_tags, sentence)
            match = similarity.transpose(1, 2).flatten(0, 1)[..., None]        # B·Q L 1
            injected = self.tag_inject(match).view(
                batch * queries, x.shape[3], x.shape[2], -1)
            x = x + injected.permute(0, 3, 2, 1)

        xt = _repeat(encoded.xt, queries) if net.time_branch else None
        x, xt, layer_tokens = self.transformer(x, xt, text)
        if hasattr(self, "narrow"):
            x = self.narrow(x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
            xt = self.narrow_t(xt) if net.time_branch else None

        bins = config.stft.bins
        sizes = [bins]
        for stride in net.strides[:-1]:
            sizes.append(sizes[-1] // stride)
        for i, layer in enumerate(self.frequency_decoder):
            skip = _repeat(encoded.skips[-1 - i], queries)
            if config.transformer.film_skips:
                skip = self.film_skips[i](skip, text, channel_dim=1)
            x = layer(x, skip, sizes[-1 - i])
        selection = mixed = gate = None
        x = x.float()
        if encoded.candidates is not None:
            match = self.candidate_similarity(encoded.candidate_tags, sentence)    # B 2 Q
            with torch.autocast(x.device.type, enabled=False):
                mixed = self._mix(x, encoded, queries, (match[:, 0] - match[:, 1]).flatten())
            gain, bias = self.audibility
            gate = gain * presence + bias
            spectrum = mixed.spectrum * torch.sigmoid(gate).flatten()[:, None, None, None]
            selection = mixed.selection
        else:
            spectrum = self._output_spectrum(x, encoded, queries)
        samples = encoded.mixture.shape[-1]
        audio = istft(spectrum, config.stft.n_fft, config.stft.hop, samples)
        if net.time_branch:
            for i, layer in enumerate(self.time_decoder):
                xt = layer(xt, _repeat(encoded.skips_t[-1 - i], queries),
                           encoded.lengths_t[-1 - i])
            audio = audio + xt.float() * _repeat(encoded.std_t, queries) \
                + _repeat(encoded.mean_t, queries)

        token_doa = doa = None
        if config.use_localization:
            gcc = None if encoded.gcc is None else _repeat(encoded.gcc, queries)
            token_doa = doa = self.token_localizer(layer_tokens, gcc).float()
            if config.localization.extracted:
                if net.time_branch:
                    spectrum = stft(audio, config.stft.n_fft, config.stft.hop)
                with torch.autocast(audio.device.type, enabled=False):
                    doa = token_doa + self.extracted_localizer(spectrum)
            if encoded.candidates is not None:
                with torch.autocast(audio.device.type, enabled=False):
                    doa = self._searched_doa(doa, spectrum, audio, encoded, queries, mixed)
        shape = (batch, queries)
        return LuSeeLOutput(
            audio=audio.unflatten(0, shape),
            doa_logits=None if doa is None else doa.unflatten(0, shape),
            token_doa_logits=None if token_doa is None else token_doa.unflatten(0, shape),
            tag_tokens=encoded.tag_tokens,
            presence_logits=presence,
            gate_logits=gate,
            candidates=encoded.candidates,
            candidate_tags=encoded.candidate_tags,
            selection_logits=None if mixed is None else selection.unflatten(0, shape),
            trust_logits=None if mixed is None else mixed.trust.unflatten(0, shape),
            masked=None if mixed is None else mixed.masked.unflatten(0, shape),
            chosen=None if mixed is None else mixed.chosen.unflatten(0, shape),
        )

    def presence(self, similarity: Tensor, candidate_tags: Tensor | None, sentence: Tensor
                 ) -> Tensor:
        """Logits that a phrase's sound is there.

        Args:
            similarity: (B, L, K) of the tokens with the phrases.
            candidate_tags: (B, 2, W) or None.
            sentence: (K, E) or (B, K, E).
        Returns:
            (B, K).
        """
        logits = self.tagger.presence(similarity)
        if candidate_tags is not None:
            match = self.candidate_similarity(candidate_tags, sentence)
            logits = logits + self.candidate_presence * torch.logsumexp(match, 1)
        return logits

    def _searched_doa(self, logits: Tensor, spectrum: Tensor, audio: Tensor, encoded: Encoded,
                      queries: int, mixed: "_Mixed") -> Tensor:
        """(B·Q, 360) logits, added to those given: the match of the extracted ears with the head's
        directions, the chosen candidate's direction as far as the search is to be trusted, and
        the votes of the mixture's bins."""
        found = encoded.candidates
        index = _repeat(encoded.head_index, queries)
        forms = [head.match_forms for head in encoded.heads]
        evidence = _repeat(found.evidence, queries)
        match = self.matched_localizer(spectrum, forms, index, evidence)
        trust = mixed.trust.detach()
        clear = torch.stack([trust.clamp(-10, 10) / 3,
                             mixed.selection.detach().abs().clamp(max=10) / 3,
                             trust.sigmoid()], 1)
        weight = F.softplus(self.direction_trust(
            torch.cat([_repeat(found.statistics, queries), clear], 1)) - 1.0)
        bins = torch.arange(AZIMUTH_BINS, device=spectrum.device)
        distance = (bins - found.azimuth[..., None] + 180) % 360 - 180     # B 2 360
        bump = _repeat(torch.exp(-distance.square() / 10.0), queries)
        first = torch.sigmoid(mixed.selection)[:, None]
        prior = first * bump[:, 0] + (1 - first) * bump[:, 1]
        searched = weight * torch.log(prior + 3e-3)
        if self.config.head_search.voting:
            step = AZIMUTH_BINS // self.config.head_search.azimuths
            other = first * bump[:, 1] + (1 - first) * bump[:, 0]
            hints = [torch.exp(-8.0 * evidence), prior[:, ::step], other[:, ::step]]
            hints += [v[:, ::step].log_softmax(-1) / 4 for v in (logits, match + searched)]
            looks = [self.voting_localizer.features(
                encoded.spectrum, spectrum.unflatten(0, (-1, queries)), forms, encoded.head_index)]
            if frame := self.head_search.short_frame:
                mixture, sound = (stft(x.float(), frame, frame // 2)
                                  for x in (encoded.mixture, audio))
                looks.append(self.voting_localizer.features(
                    mixture, sound.unflatten(0, (-1, queries)),
                    [head.short_forms for head in encoded.heads], encoded.head_index, short=True))
            searched = searched + self.voting_localizer(
                [(features.flatten(0, 1), level.flatten(0, 1)) for features, level in looks],
                torch.stack(hints, 1).detach())
        return logits + match + searched

    def _mix(self, x: Tensor, encoded: Encoded, queries: int, selection: Tensor) -> "_Mixed":
        """The masked mixture or a candidate, bin by bin.

        Which candidate: what their tags say (``selection``, (B·Q,)), and which one the masked
        mixture agrees with. Whether: how clear the search's outcome is, and the same agreement.
        """
        masked = self._output_spectrum(x[:, :-2], encoded, queries)
        images = _repeat(encoded.candidates.images, queries)               # B·Q 2 2 F T
        with torch.no_grad():
            flat, both = masked.flatten(1), images.flatten(2)
            product = torch.einsum("bkn,bn->bk", both, flat.conj()).abs().square()
            level, levels = flat.abs().square().sum(1), both.abs().square().sum(2)
            agreement = product / (level[:, None] * levels + 1e-12)        # B·Q 2
        selection = selection + self.agreement * (agreement[:, 0] - agreement[:, 1])
        picked = torch.sigmoid(selection.detach())
        ratio = torch.log((picked * levels[:, 0] + (1 - picked) * levels[:, 1] + 1e-10)
                          / (level + 1e-10))
        features = torch.cat([
            _repeat(encoded.candidates.statistics, queries), agreement.amax(1, keepdim=True),
            agreement.sum(1, keepdim=True), ratio[:, None].clamp(-6, 6) / 3,
            selection.detach().abs().clamp(max=10)[:, None] / 3,
            (picked * agreement[:, 0] + (1 - picked) * agreement[:, 1])[:, None]], 1)
        trust = self.trust(features)[:, 0]
        share = torch.sigmoid(x[:, -2] + trust[:, None, None])[:, None]
        first = torch.sigmoid(x[:, -1] + selection[:, None, None])[:, None]
        chosen = first * images[:, 0] + (1 - first) * images[:, 1]
        return _Mixed((1 - share) * masked + share * chosen, masked, chosen, selection, trust)

    def _output_spectrum(self, x: Tensor, encoded: Encoded, queries: int) -> Tensor:
        """(B·Q, 2·C, F, T) decoder output → (B·Q, C, F, T) complex."""
        x = x.unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2)
        if self.config.backbone.output == "mask":
            # bounded parts keep a new network near the mixture's level
            mask = torch.view_as_complex(2 * torch.tanh(x / 2).contiguous())
            return mask * _repeat(encoded.spectrum, queries)
        std, mean = (_repeat(v, queries)[..., None] for v in (encoded.std, encoded.mean))
        return torch.view_as_complex((x * std + mean).contiguous())

    def forward(self, mixture: Tensor, tokens: Tensor, mask: Tensor,
                heads: Sequence[PreparedHead] | None = None,
                head_index: Tensor | None = None) -> LuSeeLOutput:
        """
        Args:
            mixture: (B, C, N) float, full scale ±1.
            tokens: (B, Q, L, E) frozen token embeddings of Q queries per mixture.
            mask: (B, Q, L) bool, True at real tokens.
            heads, head_index: see :meth:`encode`.
        """
        return self.extract(self.encode(mixture, heads, head_index), tokens, mask)

    def likelihood(self, logits: Tensor) -> Tensor:
        """DoA logits (…, 360) → likelihood in [0, 1] over azimuth, 1 where it is certain.

        The paper's sigmoid, or for a softmax head the probability relative to the peak of the
        label it was trained on.
        """
        if self.config.localization.activation == "sigmoid":
            return torch.sigmoid(logits)
        return (logits.softmax(-1) / LABEL_PEAK).clamp(max=1.0)
