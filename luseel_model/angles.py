"""Arithmetic on azimuths, for NumPy and torch alike.

Inside LuSeeL an azimuth is in degrees in [0, 360), counter-clockwise seen from above, 0 to the
front, 90 to the left (the SOFA convention). ROS wants radians in (-pi, pi] with the same zero and
sense (REP-103): `to_rep103` and `from_rep103` are the one place where the two meet.

Every function but `estimate_azimuth` takes Python numbers, NumPy arrays or torch tensors of any
shape and gives the same kind back (a Python number gives a NumPy scalar); torch results are
differentiable almost everywhere and stay on their device.
"""

from __future__ import annotations

import math

import numpy as np
import torch

# Below this mean resultant length a likelihood has no direction: its spread is reported as
# sqrt(-2 ln 1e-6) = 301 degrees instead of infinity, so that messages stay finite.
MIN_RESULTANT = 1e-6


def _float(value):
    """`value` as a floating-point tensor or array (integers become float)."""
    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() else value.to(torch.get_default_dtype())
    value = np.asarray(value)
    return value if np.issubdtype(value.dtype, np.floating) else value.astype(np.float64)


def _where(condition, a, b):
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, a, b)
    return np.where(condition, a, b)[()]


def _pair(a, b):
    """Both as floats of one library (torch wins)."""
    a, b = _float(a), _float(b)
    if isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        b = torch.as_tensor(b, dtype=a.dtype, device=a.device)
    elif isinstance(b, torch.Tensor) and not isinstance(a, torch.Tensor):
        a = torch.as_tensor(a, dtype=b.dtype, device=b.device)
    return a, b


def wrap_degrees(angle):
    """Any angle in degrees, (...), wrapped to [0, 360)."""
    wrapped = _float(angle) % 360.0
    # The remainder of a tiny negative number rounds up to 360 itself.
    return _where(wrapped >= 360.0, wrapped * 0.0, wrapped)


def angular_error(a, b):
    """Smallest angle between two directions: (...) and (...) in degrees -> (...) in [0, 180].

    The error of the cited DoA work, 180 - ||a - b| - 180|, for angles outside [0, 360) too.
    """
    a, b = _pair(a, b)
    return 180.0 - abs(abs(wrap_degrees(a - b)) - 180.0)


def mirror_front_back(angle):
    """The direction with the same interaural delay on the other side of the ears: 180 - angle."""
    return wrap_degrees(180.0 - _float(angle))


def compass(azimuth: float) -> str:
    """The nearest of eight directions in words, from "front" counter-clockwise, of degrees."""
    names = ("front", "front left", "left", "back left", "back", "back right", "right",
             "front right")
    return names[round(azimuth / 45.0) % 8]


def to_rep103(degrees):
    """Azimuth in degrees, (...), to radians in (-pi, pi], (...): same zero and sense."""
    wrapped = wrap_degrees(degrees)
    return _where(wrapped > 180.0, wrapped - 360.0, wrapped) * (math.pi / 180.0)


def from_rep103(radians):
    """Yaw in radians, (...), to azimuth in degrees in [0, 360), (...)."""
    return wrap_degrees(_float(radians) * (180.0 / math.pi))


def _resultant(weights):
    """Mean resultant vector (x, y) of weights (..., bins) over the circle, each (...)."""
    weights = _float(weights)
    bins = weights.shape[-1]
    theta = np.arange(bins) * (2.0 * math.pi / bins)
    if isinstance(weights, torch.Tensor):
        cos = torch.as_tensor(np.cos(theta), dtype=weights.dtype, device=weights.device)
        sin = torch.as_tensor(np.sin(theta), dtype=weights.dtype, device=weights.device)
        total = weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
    else:
        cos, sin = np.cos(theta), np.sin(theta)
        total = np.maximum(weights.sum(-1), np.finfo(weights.dtype).tiny)
    return (weights * cos).sum(-1) / total, (weights * sin).sum(-1) / total


def circular_mean(likelihood):
    """Mean direction of a likelihood over the circle.

    Args:
        likelihood: (..., bins), non-negative, bin i at i * 360 / bins degrees; needs no
            normalisation.

    Returns:
        (...) degrees in [0, 360). Without a direction (all zero, or uniform) it means nothing:
        look at `circular_std`.
    """
    x, y = _resultant(likelihood)
    angle = torch.atan2(y, x) if isinstance(x, torch.Tensor) else np.arctan2(y, x)
    return from_rep103(angle)


def circular_std(likelihood):
    """Spread of a likelihood over the circle, sqrt(-2 ln R), R its mean resultant length.

    Close to the ordinary standard deviation when the likelihood is one narrow peak (Mardia and
    Jupp, Directional Statistics, 2000, section 2.3).

    Args:
        likelihood: (..., bins), non-negative, bin i at i * 360 / bins degrees.

    Returns:
        (...) degrees, from 0 (one bin) to 301 (no direction at all: uniform or all zero).
    """
    x, y = _resultant(likelihood)
    square = x * x + y * y
    if isinstance(square, torch.Tensor):
        square = square.clamp(MIN_RESULTANT**2, 1.0)
        return torch.sqrt(-torch.log(square)) * (180.0 / math.pi)
    square = np.clip(square, MIN_RESULTANT**2, 1.0)
    return np.sqrt(-np.log(square)) * (180.0 / math.pi)


def estimate_azimuth(likelihood: np.ndarray, span: int = 3) -> np.ndarray:
    """Direction of the highest peak, refined by the centre of mass of ±``span`` bins.

    Args:
        likelihood: NumPy array (..., 360), bin i at i degrees.
    Returns:
        (...) degrees in [0, 360).
    """
    peak = likelihood.argmax(-1)
    offset = np.arange(-span, span + 1)
    near = (peak[..., None] + offset) % likelihood.shape[-1]
    weight = np.take_along_axis(likelihood, near, axis=-1)
    total = weight.sum(-1)
    shift = np.divide((weight * offset).sum(-1), total, out=np.zeros_like(total), where=total > 0)
    return wrap_degrees(peak + shift)
