"""Direction-of-arrival losses: squared error of paper 000, equation (2), and cross-entropy.

The paper writes the label as a Gaussian density with variance 5 and sums the squared error over
360 bins, then weighs it by 10. How the label is scaled decides how much the direction counts next
to the extraction, and the paper leaves it open. For a likelihood of all zeros the error is

    "peak"     label with peak 1, summed             3.96   (times 10: 39.6)
    "density"  the true density, summed              0.126  (times 10: 1.26)
    "mean"     label with peak 1, mean over 360      0.011  (times 10: 0.11)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from luseel_model.angles import angular_error

LABEL_SCALINGS = ("peak", "density", "mean")


def gaussian_label(
    azimuth: Tensor, scaling: str = "peak", variance: float = 5.0, bins: int = 360
) -> Tensor:
    """Gaussian around the true direction, wrapped over the circle.

    Args:
        azimuth: (...) degrees, any angle, off the grid too.
        scaling: "peak" and "mean" give a peak of 1 (they differ in `doa_squared_error`),
            "density" gives N(theta; azimuth, variance) per degree.
        variance: in degrees squared.
        bins: bin i lies at i * 360 / bins degrees.

    Returns:
        (..., bins).
    """
    if scaling not in LABEL_SCALINGS:
        raise ValueError(f"label scaling is {scaling!r}; use one of {', '.join(LABEL_SCALINGS)}")
    azimuth = azimuth.float()
    centres = torch.arange(bins, device=azimuth.device, dtype=torch.float32) * (360.0 / bins)
    distance = angular_error(centres, azimuth[..., None])
    label = torch.exp(-distance.square() / (2.0 * variance))
    if scaling == "density":
        label = label / math.sqrt(2.0 * math.pi * variance)
    return label


def doa_squared_error(
    likelihood: Tensor, azimuth: Tensor, scaling: str = "peak", variance: float = 5.0
) -> Tensor:
    """Squared error against the Gaussian label, equation (2); lower is better, 0 at best.

    Args:
        likelihood: (B, bins) in [0, 1], after the sigmoid.
        azimuth: (B,) degrees.
        scaling: see the head of this file; "mean" divides the sum by the number of bins.

    Returns:
        (B,).
    """
    likelihood = likelihood.float()
    label = gaussian_label(azimuth, scaling, variance, likelihood.shape[-1])
    error = (likelihood - label).square().sum(-1)
    return error / likelihood.shape[-1] if scaling == "mean" else error


def doa_cross_entropy(logits: Tensor, azimuth: Tensor, variance: float = 5.0) -> Tensor:
    """Cross-entropy over directions against the normalised Gaussian label; lower is better.

    Used by `luseel-small`, where it learns faster than equation (2): one softmax over the circle
    instead of 360 separate sigmoids.

    Args:
        logits: (B, bins), before any sigmoid or softmax.
        azimuth: (B,) degrees.

    Returns:
        (B,) nats: ln 360 = 5.89 for uniform logits, the label's entropy (2.22) at best.
    """
    label = gaussian_label(azimuth, "peak", variance, logits.shape[-1])
    label = label / label.sum(-1, keepdim=True)
    return -(label * functional.log_softmax(logits.float(), -1)).sum(-1)
