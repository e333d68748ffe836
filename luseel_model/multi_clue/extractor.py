"""Multi-clue extraction in use: tags, words and pictures in any combination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from ..calibration import Calibration
from ..errors import AudioError, QueryError
from ..heads import Head
from ..images import ImageEncoder, validate_image
from ..inference import Extractor, WindowTensors, energy_share, resample, validate_audio
from ..interaural_direction import head_cross_spectra, interaural_likelihood
from ..query import Capabilities, Query
from ..recording import window_starts
from ..text import TextEncoder, pad_embeddings
from .attention import Clues
from .config import MultiClueConfig
from .network import MultiClue

_KNOWN_TAGS_SHOWN = 12


@dataclass
class ClueAttention:
    """Which clue the network attends to, and when (paper 003, Figure 2).

    Attributes:
        weights: (T_a, L) in [0, 1], each row sums to 1: means over ears and attention heads.
        clues: L names, 'text', 'video' or 'tag'.
        labels: L names of the places: a token, 'frame 1', the tag.
        times: (T_a,) seconds, the middle of each row's stretch.
        spectrogram: (F, T) dB of the louder ear, for the picture above.
        duration: seconds.
        sample_rate: Hz.
    """

    weights: np.ndarray
    clues: list[str]
    labels: list[str]
    times: np.ndarray
    spectrogram: np.ndarray
    duration: float
    sample_rate: int

    def of_clue(self, name: str) -> np.ndarray:
        """(T_a,) total weight of 'text', 'video' or 'tag'."""
        return self.weights[:, [clue == name for clue in self.clues]].sum(1)


class MultiClueExtractor(Extractor):
    """See :class:`~luseel_model.inference.Extractor`. A query may hold a tag, words, a picture and
    moving pictures, or any of them. Both ears are extracted with the same weights; the direction is
    read from the extracted ears.

    Args:
        text, image: encoders; default: those that the network's configuration names, the image
            encoder's weights being read at the first picture.
    """

    def __init__(self, network: MultiClue, name: str = "", info: dict | None = None,
                 calibration: Calibration | None = None, text: TextEncoder | None = None,
                 image: ImageEncoder | None = None):
        super().__init__(network, name, info, calibration)
        self._text = text or TextEncoder(self.config.text, self.device)
        self._image = image
        self._tags = {tag: i for i, tag in enumerate(self.info.get("kinds", ()))
                      if tag not in self.info.get("unseen", ())}
        self._expected: Tensor | None = None

    @staticmethod
    def capabilities_of(config: MultiClueConfig) -> Capabilities:
        return Capabilities(frozenset({"text", "tag", "image", "frames"}), together=True)

    def set_head(self, head: Head) -> None:
        """Read directions with a head's responses instead of a sphere's, to which front and back
        are alike."""
        self._expected = head_cross_spectra(head.hrir, self.sample_rate).to(self.device)

    def check_query(self, query: str | Query) -> Query:
        query = super().check_query(query)
        if query.tag and query.tag not in self._tags:
            some = ", ".join(list(self._tags)[:_KNOWN_TAGS_SHOWN])
            raise QueryError(f"the model {self.name} has no tag {query.tag!r}; it has "
                             f"{len(self._tags)}, such as {some}. Words may say anything else.")
        if "image" in query.clues or "frames" in query.clues:
            self._frames(query)  # pictures that show nothing
        return query

    def clues(self, queries: Sequence[Query]) -> Clues:
        """Clues (1, Q, ...) of checked queries."""
        config, found = self.config, Clues()
        if any(query.tag for query in queries):
            found.tag = torch.zeros(1, len(queries), config.tags, device=self.device)
            for row, query in enumerate(queries):
                if query.tag:
                    found.tag[0, row, self._tags[query.tag]] = 1.0
        nothing = torch.zeros(0, config.text.embedding, device=self.device)
        if any(query.text for query in queries):
            found.text, found.text_mask = (part[None] for part in pad_embeddings(
                [self._text.embed([query.text])[0] if query.text else nothing
                 for query in queries]))
        pictures = [self._frames(query) for query in queries]
        if any(pictures):
            if self._image is None:
                self._image = ImageEncoder(config.video.image, self.device)
            found.video, found.video_mask = (part[None] for part in pad_embeddings(
                [self._image.embed(frames) if frames else
                 torch.zeros(0, config.video.image.embedding, device=self.device)
                 for frames in pictures]))
        return found

    def _frames(self, query: Query) -> list[np.ndarray]:
        """Pictures of a query, at most as many as the network reads, evenly picked. Those of one
        colour (a cut, a flash) are left out.

        Raises:
            QueryError: nothing is left.
        """
        frames = [] if query.frames is None else list(query.frames)
        most = self.config.video.frames - (query.image is not None)
        if len(frames) > most:
            frames = [frames[i] for i in np.linspace(0, len(frames) - 1, max(0, most)).round()
                      .astype(int)]
        if query.image is not None:
            frames.append(query.image)
        kept, error = [], None
        for frame in frames:
            try:
                kept.append(validate_image(frame))
            except QueryError as found:
                error = found
        if frames and not kept:
            raise error
        return kept

    def _infer(self, mixture: Tensor, queries: Sequence[Query]) -> WindowTensors:
        clues = self.clues(queries)
        ears = mixture.flatten(0, 1)
        clues = Clues(*(v if v is None else v.expand(len(ears), *v.shape[1:])
                        for v in vars(clues).values()))
        output = self.network(ears, clues)
        audio = output.audio.unflatten(0, (-1, 2)).transpose(1, 2)
        if output.presence_logits is None:
            confidence = energy_share(audio, mixture)
        else:
            confidence = output.presence_logits.sigmoid().unflatten(0, (-1, 2)).amax(1)
        likelihood = interaural_likelihood(audio, self.sample_rate, self._expected)
        return WindowTensors(audio, confidence, likelihood)

    @torch.inference_mode()
    def attention(self, window: Tensor | np.ndarray, query: str | Query) -> ClueAttention:
        """Which clue counts when.

        Args:
            window: (2, n) at the model's rate, n up to ``window_samples``.
        Raises:
            AudioError, QueryError: what was given can't be used; the message says why.
        """
        query = self.check_query(query)
        window = torch.as_tensor(window).detach().float().to(self.device)
        samples = window.shape[-1]
        if window.dim() != 2 or len(window) != 2 or not 0 < samples <= self.window_samples:
            raise AudioError(f"a window must have shape (2, 1..{self.window_samples}), got "
                             f"{tuple(window.shape)}")
        window = torch.nn.functional.pad(window, (0, self.window_samples - samples))
        window = self.calibration.apply(window[None], self.sample_rate)[0]
        clues = self.clues([query])
        both = Clues(*(v if v is None else v.expand(2, *v.shape[1:]) for v in vars(clues).values()))
        encoded = self.network.encode(window)
        weights = self.network.clues(encoded.frames, both)[1][:, 0].mean((0, 1))
        taken, names, labels, start = [], [], [], 0
        for name, count in self.config.clue_slots.items():
            here = self._labels(name, query)
            taken += range(start, start + len(here))
            names += [name] * len(here)
            labels += here
            start += count
        louder = int(window.square().sum(-1).argmax())
        power = (encoded.spectrum[louder] * encoded.level[louder]).abs().square()
        duration = self.window_samples / self.sample_rate
        rows = len(weights)
        return ClueAttention(
            weights[:, taken].cpu().numpy(), names, labels,
            (np.arange(rows) + 0.5) * duration / rows,
            (10 * torch.log10(power + 1e-12)).cpu().numpy(), duration, self.sample_rate)

    def attention_of(self, audio: np.ndarray, sample_rate: float, query: str | Query
                     ) -> ClueAttention:
        """:meth:`attention` in the loudest window of a recording of any length and rate.

        Args:
            audio: (2, samples), full scale ±1.
        """
        audio = resample(validate_audio(audio, sample_rate, self.microphones), sample_rate,
                         self.sample_rate)
        starts = window_starts(audio.shape[1], self.window_samples)
        windows = [audio[:, start: start + self.window_samples] for start in starts]
        return self.attention(max(windows, key=lambda window: np.square(window).sum()), query)

    def _labels(self, name: str, query: Query) -> list[str]:
        if name == "tag":
            return [query.tag] if query.tag else []
        if name == "video":
            return [f"frame {i + 1}" for i in range(len(self._frames(query)))]
        if not query.text:
            return []
        tokenizer = self._text.tokenizer
        ids = tokenizer(query.text, truncation=True,
                        max_length=self.config.text.max_tokens)["input_ids"]
        return tokenizer.convert_ids_to_tokens(ids)
