"""Mean absolute error of magnitude spectrograms, equation (5) of paper 004."""

from __future__ import annotations

from torch import Tensor


def spectral_mae(estimate: Tensor, target: Tensor, mixture: Tensor | None = None) -> Tensor:
    """Mean over bins and frames of | |S| - |S^| |; scale-sensitive, lower is better, 0 at best.

    The paper writes the norm, a sum; its mean over the bins has the same minimum.

    Args:
        estimate, target: (B, ..., F, T) magnitudes.
        mixture: (B, ..., F, T) magnitudes whose mean becomes the unit, so that quiet mixtures
            count as much as loud ones; without them the error is absolute, as in the paper.

    Returns:
        (B,).
    """
    error = (estimate.float() - target.detach().float()).abs().flatten(1).mean(1)
    if mixture is None:
        return error
    return error / mixture.detach().float().flatten(1).mean(1).clamp_min(1e-7)
