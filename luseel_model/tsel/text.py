"""CLAP's and BERT's embeddings of queries, beside the encoders that all families share.

CLAP (paper 001, sections IV.A and IV.B) gives one vector a text and one an audio clip.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Sequence

import numpy as np
import soxr
import torch
from torch import Tensor

from ..config import TextConfig
from ..errors import LuseelError
from ..query import validate_query
from ..text import TextEncoder
from .config import TselTextConfig

_CACHED_QUERIES = 4096


def _from_hub(loader: Any, weights: str, what: str, **options: Any) -> Any:
    try:
        return loader.from_pretrained(weights, **options)
    except (OSError, ValueError) as error:
        raise LuseelError(
            f"can't load {what} {weights!r}: {error}\nGive text.weights a local folder, or use a "
            "machine that reaches the model hub.") from error


class FrozenText:
    """CLAP's or BERT's text encoder, with the interface of :class:`~luseel_model.text.TextEncoder`.
    """

    def __init__(self, config: TselTextConfig, device: str | torch.device = "cpu"):
        from transformers import AutoModel, AutoTokenizer, ClapTextModelWithProjection

        self.config, self.device = config, torch.device(device)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._pooled = config.encoder == "clap"
        loader = ClapTextModelWithProjection if self._pooled else AutoModel
        self.tokenizer = _from_hub(AutoTokenizer, config.weights, "the tokenizer")
        self.model = _from_hub(loader, config.weights, "the text encoder", use_safetensors=True)
        size = self.model.config
        width = size.projection_dim if self._pooled else size.hidden_size
        if width != config.embedding:
            raise LuseelError(
                f"text.embedding is {config.embedding}, but {config.weights} gives {width}")
        self.model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, queries: Sequence[str]) -> list[Tensor]:
        """Embeddings of each query, (L_i, E) float32, with L_i = 1 from CLAP."""
        queries = [validate_query(query) for query in queries]
        for query in dict.fromkeys(queries):
            if query not in self._cache:
                inputs = self.tokenizer(query, truncation=True, return_tensors="pt",
                                        max_length=self.config.max_tokens).to(self.device)
                output = self.model(**inputs)
                self._cache[query] = (output.text_embeds if self._pooled else
                                      output.last_hidden_state[0]).float()
            self._cache.move_to_end(query)
        result = [self._cache[query] for query in queries]
        while len(self._cache) > _CACHED_QUERIES:
            self._cache.popitem(last=False)
        return result


def text_encoder(config: TselTextConfig, device: str | torch.device = "cpu"
                 ) -> FrozenText | TextEncoder:
    """The frozen encoder that a configuration names.

    Raises:
        LuseelError: its weights aren't there.
    """
    if config.encoder in ("clap", "bert"):
        return FrozenText(config, device)
    return TextEncoder(TextConfig(config.encoder, config.weights, config.embedding,
                                  max_tokens=config.max_tokens), device)


class ClapAudio:
    """CLAP's embedding of audio clips (paper 001, equation 3), of the mean of the microphones."""

    def __init__(self, config: TselTextConfig, device: str | torch.device = "cpu"):
        from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

        self.device = torch.device(device)
        self.features = _from_hub(ClapFeatureExtractor, config.weights, "the features of")
        self.model = _from_hub(ClapAudioModelWithProjection, config.weights, "the audio encoder",
                               use_safetensors=True)
        self.model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, audio: Tensor, sample_rate: int) -> Tensor:
        """(B, M, N) → (B, E)."""
        mono = audio.mean(1).cpu().numpy()
        rate = self.features.sampling_rate
        clips = [np.asarray(soxr.resample(clip, sample_rate, rate), np.float32) for clip in mono]
        inputs = self.features(clips, sampling_rate=rate, return_tensors="pt").to(self.device)
        return self.model(**inputs).audio_embeds.float()
