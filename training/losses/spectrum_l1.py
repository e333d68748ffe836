"""L1 distance of complex spectra, equation (7) of paper 003."""

from __future__ import annotations

import torch
from torch import Tensor


def complex_l1(estimate: Tensor, target: Tensor, mixture: Tensor) -> Tensor:
    """Mean over bins of the differences of real and of imaginary parts; lower is better.

    The paper writes a norm and leaves the level open: here its mean over the bins, in units of the
    mixture's root mean square bin, so that quiet recordings count as much as loud ones.

    Args:
        estimate, target, mixture: (B, ..., F, T) complex spectra of the same STFT.

    Returns:
        (B,).
    """
    difference = torch.view_as_real(estimate - target.detach()).abs().sum(-1).flatten(1).mean(1)
    level = mixture.detach().abs().square().flatten(1).mean(1).sqrt()
    return difference / level.clamp_min(1e-7)
