"""Earth mover's distance losses over directions, paper 001, section IV.D.

The paper's text speaks of the earth mover's distance (Yu et al., MetricNet, 2021), which compares
cumulative distributions; its equation 8 as printed sums |softmax(o_i) - y_i| without accumulating.
Both are here. The circle has no first bin to accumulate from: the circular distance is the least
over all of them, which the median of the differences gives (Rabin, Delon and Gousseau,
"Transportation distances on the circle", 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.doa import gaussian_label


def azimuth_distribution(azimuth: Tensor, variance: float = 5.0, bins: int = 360) -> Tensor:
    """The label, equation 7: a Gaussian around the direction, (...) → (..., bins), sum 1."""
    label = gaussian_label(azimuth, "peak", variance, bins)
    return label / label.sum(-1, keepdim=True)


def printed_emd(logits: Tensor, azimuth: Tensor, variance: float = 5.0) -> Tensor:
    """Equation 8 as printed: sum of |softmax(o_i) - y_i|; lower is better, 0 to 2.

    Args:
        logits: (..., bins).
        azimuth: (...) degrees.
    Returns:
        (...).
    """
    label = azimuth_distribution(azimuth, variance, logits.shape[-1])
    return (logits.float().softmax(-1) - label).abs().sum(-1)


def circular_emd(logits: Tensor, azimuth: Tensor, variance: float = 5.0) -> Tensor:
    """Least work that turns the answer into the label, in degrees; lower is better, 0 to 180.

    Args:
        logits: (..., bins).
        azimuth: (...) degrees.
    Returns:
        (...) degrees that the probability is moved by, on average.
    """
    bins = logits.shape[-1]
    label = azimuth_distribution(azimuth, variance, bins)
    moved = torch.cumsum(logits.float().softmax(-1) - label, dim=-1)
    # the amount that crosses the first edge is free: the median makes the sum least
    middle = moved.detach().median(-1, keepdim=True).values
    return (moved - middle).abs().sum(-1) * (360.0 / bins)
