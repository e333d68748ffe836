"""Signal-to-noise ratio, equation (6) of paper 003: not scale-invariant, the gain counts."""

from __future__ import annotations

import torch
from torch import Tensor


def snr(estimate: Tensor, target: Tensor) -> Tensor:
    """SNR in dB of each signal, higher is better: (..., N) twice to (...).

    Within ±100 dB; NaN where the target is silent.
    """
    estimate, target = estimate.double(), target.double()
    signal = target.square().sum(-1)
    error = (target - estimate).square().sum(-1)
    ratio = (signal / error.clamp_min(1e-30)).clamp(1e-10, 1e10)
    value = 10.0 * torch.log10(ratio)
    return torch.where(signal > 0, value, torch.full_like(value, torch.nan)).float()


def snr_improvement(estimate: Tensor, target: Tensor, mixture: Tensor) -> Tensor:
    """SNRi in dB, averaged over the channels: (B, channels, N) each to (B,)."""
    return (snr(estimate, target) - snr(mixture, target)).mean(-1)


def negative_snr(estimate: Tensor, target: Tensor, mixture: Tensor, floor_db: float = -30.0
                 ) -> Tensor:
    """Negative SNR, averaged over the channels; lower is better.

    Args:
        estimate, target: (B, channels, N).
        mixture: (B, channels, N); signal and error are each kept above ``floor_db`` of its energy,
            so that a target that is silent in a channel, and a perfect estimate, leave gradients
            finite.

    Returns:
        (B,) dB.
    """
    estimate, target = estimate.float(), target.detach().float()
    unit = mixture.detach().float().square().sum(-1).clamp_min(1e-10)
    floor = 10.0 ** (floor_db / 10.0)
    signal = target.square().sum(-1) / unit + floor
    error = (target - estimate).square().sum(-1) / unit + floor
    return -10.0 * torch.log10(signal / error).mean(-1)
