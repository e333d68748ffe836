"""Bearing of an extracted sound from its two ears alone: GCC-PHAT on the circle.

For models that extract each ear on its own and learn no direction. The phase differences of all
bins are compared with those that a sound from each azimuth would have (GCC-PHAT evaluated at the
delay of each azimuth instead of at whole samples), bins that the extraction left nothing of
counting little. Without the responses of the head it is a sphere, to which a sound from the front
and one from behind are alike; the likelihood then has both peaks, see :func:`front_back_doubt`.

Knapp and Carter, *The generalized correlation method for estimation of time delay*, 1976; delay of
a sphere: Woodworth, *Experimental Psychology*, 1938.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .config import AZIMUTH_BINS
from .errors import ConfigError

#: Of a sphere that has the delays of an average head, metres.
RADIUS = 0.0875
SPEED_OF_SOUND = 343.0
_HEAD_RATE = 16000
_FFT = 1024            # 64 ms at 16 kHz: long against the delay and a room's first reflections
_BAND = (150.0, 6000.0)
_EMPTY = 0.5           # power of a bin's energy that it counts by
_SHARPNESS = 40.0
#: A picture comes from a camera, which looks ahead: of two equal peaks the one in front is taken.
_BEHIND = 0.999


def sphere_delay(azimuth: Tensor, radius: float = RADIUS) -> Tensor:
    """By how many seconds the right ear hears a far sound later, of degrees, any shape."""
    side = torch.asin(torch.sin(torch.deg2rad(azimuth.double())).clamp(-1, 1))
    return (radius / SPEED_OF_SOUND * (side + torch.sin(side))).to(azimuth.dtype)


@functools.lru_cache(maxsize=8)
def _sphere(sample_rate: int, radius: float) -> Tensor:
    """Unit cross-spectra left · conj(right) of all azimuths, (360, F) complex."""
    delay = sphere_delay(torch.arange(AZIMUTH_BINS, dtype=torch.float64), radius)
    frequency = torch.fft.rfftfreq(_FFT, 1 / sample_rate, dtype=torch.float64)
    return torch.polar(torch.ones(1, dtype=torch.float64),
                       2 * math.pi * delay[:, None] * frequency).to(torch.complex64)


def head_cross_spectra(hrir: Tensor, sample_rate: int) -> Tensor:
    """Unit cross-spectra left · conj(right) of all azimuths, (360, 513) complex, of a head's
    responses (360, 2, taps), see :class:`~luseel_model.heads.Head`.

    They hold more than a delay: its change with frequency tells front from back.

    Raises:
        ConfigError: another rate than the responses' 16 kHz.
    """
    if sample_rate != _HEAD_RATE:
        raise ConfigError(f"a head's responses are at {_HEAD_RATE} Hz, but the model works at "
                          f"{sample_rate} Hz: leave the head out")
    spectra = torch.fft.rfft(hrir.float(), _FFT)
    cross = spectra[:, 0] * spectra[:, 1].conj()
    return cross / cross.abs().clamp_min(1e-12)


def interaural_likelihood(audio: Tensor, sample_rate: int, expected: Tensor | None = None
                          ) -> Tensor:
    """Likelihood of each azimuth.

    Args:
        audio: (..., 2 ears [left, right], samples), 64 ms or more.
        sample_rate: Hz.
        expected: (360, 513) complex, from :func:`head_cross_spectra`; None: a sphere's.
    Returns:
        (..., 360) in [0, 1], bin i at i degrees. The highest value is the coherence of the ears
        for that azimuth: near 1 for one source without a room, near 0 for noise from all around.
        All zero for silence.
    """
    *lead, ears, samples = audio.shape
    if ears != 2:
        raise ValueError(f"a bearing needs two ears, got {ears} channels")
    if expected is None:
        expected = _sphere(sample_rate, RADIUS)
    expected = expected.to(audio.device)
    window = torch.hann_window(_FFT, device=audio.device)
    signal = audio.reshape(-1, samples).float()
    level = signal.reshape(-1, 2 * samples).abs().amax(1).repeat_interleave(2)
    signal = signal / level.clamp_min(1e-30)[:, None]  # powers of quiet sounds would vanish
    z = torch.stft(signal, _FFT, _FFT // 4, window=window,
                   pad_mode="constant", return_complex=True).unflatten(0, (-1, 2))
    cross = z[:, 0] * z[:, 1].conj()                                        # n F T
    size = cross.abs()
    unit = cross / size.clamp_min(1e-30)
    frequency = torch.fft.rfftfreq(_FFT, 1 / sample_rate, device=audio.device)
    kept = ((frequency >= _BAND[0]) & (frequency <= _BAND[1])).float()[:, None]
    weight = size ** _EMPTY * kept
    summed = (unit * weight).sum(-1)                                        # n F
    match = torch.real(summed @ expected.conj().T) / weight.sum((1, 2)).clamp_min(1e-20)[:, None]
    best = match.amax(-1, keepdim=True)
    likelihood = best.clamp(0, 1) * torch.exp(_SHARPNESS * (match - best))
    behind = torch.arange(AZIMUTH_BINS, device=audio.device)
    likelihood = torch.where((behind > 90) & (behind < 270), _BEHIND * likelihood, likelihood)
    return likelihood.reshape(*lead, AZIMUTH_BINS)


def front_back_doubt(likelihood: Tensor) -> Tensor:
    """How likely the mirrored direction is against the best: (..., 360) → (...) in [0, 1].

    0: front and back are told apart; near 1: the bearing may as well be its mirror image behind
    (or before) the ears, as always with a sphere. A sound right beside an ear has no mirror image.
    """
    peak = likelihood.argmax(-1, keepdim=True)
    mirrored = (AZIMUTH_BINS // 2 - peak) % AZIMUTH_BINS
    apart = (peak - mirrored + AZIMUTH_BINS // 2) % AZIMUTH_BINS - AZIMUTH_BINS // 2
    best = likelihood.gather(-1, peak).clamp_min(1e-20)
    doubt = likelihood.gather(-1, mirrored) / best
    return torch.where(apart.abs() > 10, doubt, torch.zeros_like(doubt))[..., 0]
