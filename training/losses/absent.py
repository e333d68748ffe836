"""What to extract for a sound that isn't there: nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def absent_energy(estimate: Tensor, mixture: Tensor, floor_db: float = -30.0) -> Tensor:
    """Level of the output below the mixture, for queries without a target; lower is better.

    SI-SNR and spectral convergence are undefined for a silent target. This is the loss for
    inactive sources of Wisdom et al. (ICASSP 2021): 10 log10(|estimate|^2 / |mixture|^2 + tau).

    Args:
        estimate: (B, ears, samples), the extraction of an absent sound.
        mixture: (B, ears, samples).
        floor_db: soft threshold 10 log10(tau); below it there is little left to gain.

    Returns:
        (B,) dB relative to the mixture, at least `floor_db`.
    """
    energy = estimate.float().flatten(1).square().sum(1)
    reference = mixture.detach().float().flatten(1).square().sum(1).clamp_min(1e-10)
    return 10.0 * torch.log10(energy / reference + 10.0 ** (floor_db / 10.0))


def absent_queries(audio: Tensor, mixture: Tensor, present: Tensor) -> Tensor:
    """`absent_energy` of those queries that ask for what isn't there.

    Args:
        audio: (B, Q, ...) extractions.
        mixture: (B, ...).
        present: (B, Q) bool.

    Returns:
        (number of them,) dB, mixture by mixture.
    """
    rows, _ = (~present).nonzero(as_tuple=True)
    return absent_energy(audio[~present], mixture[rows])
