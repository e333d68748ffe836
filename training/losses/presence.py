"""Is the queried sound in the mixture at all?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def presence_bce(logits: Tensor, present: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of the presence of queries; lower is better, 0 at best.

    Args:
        logits: (B,), before the sigmoid that gives the confidence.
        present: (B,) bool or float in [0, 1].
        positive_weight: weight of present queries, to balance uneven shares.

    Returns:
        (B,) nats; ln 2 = 0.69 for a logit of 0.
    """
    logits = logits.float()
    weight = torch.as_tensor(positive_weight, dtype=logits.dtype, device=logits.device)
    return functional.binary_cross_entropy_with_logits(
        logits, present.to(logits.dtype), pos_weight=weight, reduction="none"
    )


def balanced_presence(logits: Tensor, present: Tensor, alike: Tensor | None = None) -> Tensor:
    """`presence_bce` where present and absent queries weigh the same, so that a confidence of 0.5
    is an even prior.

    Args:
        logits, present: (...), bool the latter.
        alike: (...) bool, queries that don't count as absent ones.

    Returns:
        () half the mean over the present queries and half that over the absent ones, nats.
    """
    loss = presence_bce(logits.flatten(), present.flatten()).view_as(logits)
    absent = ~present if alike is None else ~present & ~alike
    return 0.5 * ((loss * present).sum() / present.sum().clamp(min=1)
                  + (loss * absent).sum() / absent.sum().clamp(min=1))
