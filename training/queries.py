"""Wordings of the kinds as frozen embeddings, ready to be drawn in batches.

The text encoder never runs in a training step: every wording of every kind is embedded once.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from luseel_model.text import TextEncoder, pad_embeddings, sentence_embedding
from training.captions import Captions


class QueryBank:
    """Embedded wordings of each kind.

    Args:
        kinds: K label words; wording 0 of a kind is the label itself.
        encoder: frozen text encoder.
        captions: paraphrases; None uses the labels alone.
        label_share: probability of drawing the bare label instead of any wording.
    """

    def __init__(self, kinds: Sequence[str], encoder: TextEncoder,
                 captions: Captions | None = None, label_share: float = 0.3,
                 device: str | torch.device = "cpu"):
        self.kinds, self.label_share = list(kinds), label_share
        variants = [captions.variants(k) if captions else [k] for k in self.kinds]
        phrases = [phrase for group in variants for phrase in group]
        tokens, mask = pad_embeddings(encoder.embed(phrases))
        self.tokens, self.mask = tokens.to(device), mask.to(device)      # (V, L, E), (V, L)
        self.sentences = sentence_embedding(self.tokens, self.mask)      # (V, E)
        counts = torch.tensor([len(group) for group in variants], device=device)
        self.count, self.first = counts, counts.cumsum(0) - counts
        confusable = torch.eye(len(self.kinds), dtype=torch.bool)
        index = {kind: i for i, kind in enumerate(self.kinds)}
        for kind in self.kinds if captions else ():
            for other in captions.confusable(kind):
                if other in index:
                    confusable[index[kind], index[other]] = True
        self.confusable = (confusable | confusable.T).to(device)         # (K, K)

    def draw(self, kind: Tensor, generator: torch.Generator) -> Tensor:
        """A random wording for each entry of ``kind`` (…,): indices into the wordings (…,)."""
        uniform = torch.rand((2, *kind.shape), generator=generator, device=generator.device)
        uniform = uniform.to(kind.device)
        count = self.count[kind]
        pick = (uniform[0] * count).long().clamp(max=count - 1)
        pick = torch.where(uniform[1] < self.label_share, torch.zeros_like(pick), pick)
        return self.first[kind] + pick

    def batch(self, wording: Tensor) -> tuple[Tensor, Tensor]:
        """(…,) wordings → tokens (…, L, E) and mask (…, L), cut to the longest among them."""
        mask = self.mask[wording]
        longest = int(mask.sum(-1).max())
        return self.tokens[wording][..., :longest, :], mask[..., :longest]

    def all_sentences(self, generator: torch.Generator | None) -> Tensor:
        """One sentence embedding per kind (K, E): a random wording, or the label without one."""
        if generator is None:
            return self.sentences[self.first]
        everything = torch.arange(len(self.kinds), device=self.first.device)
        return self.sentences[self.draw(everything, generator)]

    def missing(self, kind: Tensor) -> Tensor:
        """Mixtures of the sounds ``kind`` (B, S) → (B, K) bool: kinds that none of the sounds could
        be taken for."""
        return ~self.confusable[kind].any(1)


def ask_for_absent(asked: Tensor, wanted: Tensor, free: Tensor, share: float,
                   generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Let the last query of some mixtures ask for what isn't there.

    Args:
        asked: (B, Q) which sound each query asks for.
        wanted: (B, Q) the kind (or thing) it asks for.
        free: (B, K) bool, kinds that may be asked for as not there; a mixture without any keeps its
            query.
        share: of the mixtures.
        generator: on the CPU.
    Returns:
        ``asked`` with -1, and ``wanted`` with another kind, where that is so.
    """
    absent = torch.rand(len(asked), generator=generator) < share
    free = free.float().cpu()
    absent &= free.sum(1) > 0  # a small corpus may have nothing else
    other = torch.multinomial(free + 1e-9, 1, generator=generator)[:, 0]
    absent, other = absent.to(asked.device), other.to(asked.device)
    asked, wanted = asked.clone(), wanted.clone()
    asked[:, -1] = asked[:, -1].masked_fill(absent, -1)
    wanted[:, -1] = torch.where(absent, other, wanted[:, -1])
    return asked, wanted
