"""Sound from everywhere at once: the diffuse field of a head.

A head measured in the horizontal plane alone stands for the whole sphere by its lateral angles: in
a field that is even over the sphere, the sine of the lateral angle is uniform, so that a horizontal
direction counts as much as the cosine of its angle to the median plane.
"""

from __future__ import annotations

import math

import torch

from .heads import AZIMUTHS, Head


def sphere_weights() -> torch.Tensor:
    """Share of each of the 360 horizontal directions in a field even over the sphere; sum 1."""
    weight = torch.cos(torch.arange(AZIMUTHS, dtype=torch.float64) * (math.pi / 180)).abs()
    return weight / weight.sum()


def diffuse_filter(head: Head, length: int) -> torch.Tensor:
    """What makes two independent white noises the diffuse field of a head.

    Returns:
        (2, 2, length // 2 + 1) complex64: for each frequency the lower triangular root L of the
        cross-spectral matrix R of both ears, L L* = R, so that ``einsum("ij...,j...->i...", L,
        noise)`` of noises of variance 1 has the powers and the coherence that infinitely many
        independent sources all around would give. The powers of both ears are averaged: the head's
        own sides differ by chance of the measurement.
    """
    # The correlations of responses end after their length: found on a short grid, they give every
    # frequency of a long one exactly.
    short = 1 << math.ceil(math.log2(2 * head.taps))
    left, right = torch.fft.rfft(head.hrir.cpu().double(), short).unbind(1)
    products = torch.stack([left.abs().square() + 0j, right.abs().square() + 0j,
                            left.conj() * right])
    mean = (sphere_weights()[:, None] * products).sum(1)
    lags = torch.fft.irfft(mean, short)
    long = torch.zeros(3, length, dtype=torch.float64)
    half = min(short, length) // 2
    long[:, :half], long[:, -half:] = lags[:, :half], lags[:, -half:]
    spectrum = torch.fft.rfft(long)
    power = (0.5 * (spectrum[0] + spectrum[1])).real.clamp(min=1e-20)
    cross = spectrum[2] * (power / (spectrum[0] * spectrum[1]).real.clamp(min=1e-40).sqrt())
    root = power.sqrt()
    below = (power - cross.abs().square() / power).clamp(min=0).sqrt()
    result = torch.zeros(2, 2, length // 2 + 1, dtype=torch.complex64)
    result[0, 0], result[1, 0], result[1, 1] = root, cross / root, below
    return result


def diffuse_noise(head: Head, samples: int, generator: torch.Generator) -> torch.Tensor:
    """White noise from all around as a head hears it, (2, samples) float32, without a seam.

    The mean power of both ears is 1; the end goes on at the beginning, so that it may be read in a
    circle. Only the head gives it a spectrum.

    Args:
        samples: even.
    """
    white = torch.fft.rfft(torch.randn(2, samples, generator=generator))
    noise = torch.fft.irfft(torch.einsum("ijf,jf->if", diffuse_filter(head, samples), white),
                            samples)
    return noise / noise.square().mean().sqrt()
