"""Terms of what is heard where, shared by the families whose encoder is trained as a tagger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from luseel_model.config import require
from luseel_model.layers import Tagger
from training.losses import balanced_presence, clip_tag_loss, dense_tag_loss


@dataclass(frozen=True)
class TagWeights:
    """Weights of the terms; 0 leaves a term out: ``dense_tags`` and ``clip_tags`` (what is heard
    where, and at all) and ``presence``."""

    dense_tags: float = 0.0
    clip_tags: float = 0.0
    presence: float = 0.0

    @property
    def tagging(self) -> bool:
        """Is there any term?"""
        return bool(self.dense_tags or self.clip_tags or self.presence)

    def check_tags(self, tag_steps: int, width: int, key: str) -> None:
        """A :class:`ConfigError` unless a model whose ``key`` is ``width`` can be trained so."""
        require(not (self.tagging or tag_steps) or width > 0,
                "loss.dense_tags, clip_tags and presence and tag_steps need a model with " + key)
        require(not tag_steps or self.tagging,
                "tag_steps need a weight in loss.dense_tags, clip_tags or presence")


def tag_terms(weights: TagWeights, similarity: Tensor, kind: Tensor,
              shares: Callable[[], tuple[Tensor, Tensor]],
              presence: Callable[[Tensor], Tensor], confusable: Tensor | None = None
              ) -> dict[str, Tensor]:
    """Weighted terms of tag tokens.

    Args:
        similarity: (B, L, K) of the tokens with each kind.
        kind: (B, S) index into the K kinds, -1 for one that isn't among them.
        shares: gives the sounds' shares (B, L, S) in the energy of the tokens, and the tokens'
            weights (B, L); asked where it is needed.
        presence: logits (B, K) of a similarity.
        confusable: (K, K) bool; kinds that sound alike are no negatives of each other.
    """
    terms = {}
    known, valid = kind.clamp(min=0), (kind >= 0).to(similarity.dtype)
    if weights.dense_tags:
        share, weight = shares()
        terms["dense_tags"] = weights.dense_tags * dense_tag_loss(
            similarity, known, share * valid[:, None], weight).mean()
    if weights.clip_tags:
        terms["clip_tags"] = weights.clip_tags * clip_tag_loss(
            Tagger.pool(similarity), known,
            valid / valid.sum(1, keepdim=True).clamp(min=1)).mean()
    if weights.presence:
        logits = presence(similarity)
        # added up, so that an unknown source never erases a known one of kind 0
        present = torch.zeros_like(logits).scatter_add_(1, known, valid.to(logits)) > 0
        alike = None if confusable is None else present.float() @ confusable.float() > 0
        terms["presence"] = weights.presence * balanced_presence(logits, present, alike)
    return terms
