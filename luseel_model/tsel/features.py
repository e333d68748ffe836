"""Features of several microphones: GCC-PHAT maps (paper 001, equation 1) and steered responses.

Axis letters: B batch, M microphones, P pairs, N samples, F frequencies, T frames, A azimuths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arrays import MicrophoneArray
from ..config import AZIMUTH_BINS
from ..features import gcc_phat

_EPS = 1e-8


def gcc_maps(audio: Tensor, pairs: list[tuple[int, int]], hop: int, lags: int,
             n_fft: int) -> Tensor:
    """GCC-PHAT of pairs of microphones (:func:`luseel_model.features.gcc_phat`).

    Args:
        audio: (B, M, N).
        lags: even; kept are -lags/2 … lags/2 - 1 samples. A positive lag means that the second
            microphone of the pair hears the sound later.
    Returns:
        (B, P, N // hop + 1, lags) in [-1, 1].
    """
    batch = audio.shape[0]
    both = audio[:, [index for pair in pairs for index in pair]]
    maps = gcc_phat(both.reshape(-1, 2, audio.shape[-1]), hop, lags, n_fft)
    return maps.view(batch, len(pairs), *maps.shape[1:])


def spectra(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    """Spectra of frames centred on 0, hop, 2·hop … as those of GCC-PHAT.

    Args:
        audio: (B, M, N).
    Returns:
        (B, M, n_fft/2 + 1, N // hop + 1), complex.
    """
    window = torch.hann_window(n_fft, device=audio.device)
    z = torch.stft(audio.float().flatten(0, 1), n_fft, hop, window=window, center=True,
                   pad_mode="constant", return_complex=True)
    return z.unflatten(0, audio.shape[:2])


def pair_phases(spectrum: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Cross-spectra of unit magnitude (0 in silence).

    Args:
        spectrum: (B, M, F, T), complex.
    Returns:
        (B, P, F, T), complex: second microphone times the conjugate of the first.
    """
    first, second = zip(*pairs)
    cross = spectrum[:, list(second)] * spectrum[:, list(first)].conj()
    magnitude = cross.abs()
    # relative to the clip: silence stays at zero instead of amplified rounding noise
    floor = magnitude.amax(dim=(1, 2, 3), keepdim=True) * 1e-9 + _EPS**2
    return cross / (magnitude + floor)


def steering(array: MicrophoneArray, n_fft: int, sample_rate: int) -> Tensor:
    """What undoes the phases of a plane wave from each azimuth, in the horizontal plane.

    Returns:
        (P, n_fft/2 + 1, 360), complex: times the phases of a wave from bin i it is 1 in bin i.
    """
    azimuth = torch.arange(AZIMUTH_BINS, dtype=torch.float64)
    frequency = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
    later = array.pair_delays(azimuth)  # P A
    angle = 2 * math.pi * frequency[None, :, None] * later[:, None]
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def steered_response(phases: Tensor, steers: Tensor) -> Tensor:
    """SRP-PHAT: how well phases fit a wave from each azimuth (DiBiase, 2000).

    Args:
        phases: (..., P, F) complex.
        steers: (P, F, A) complex.
    Returns:
        (..., A), the sum over pairs and frequencies.
    """
    lead = phases.shape[:-2]
    parts = torch.view_as_real(phases.reshape(-1, phases.shape[-2] * phases.shape[-1]))
    steers = steers.reshape(-1, steers.shape[-1])
    # Re(c·s) = Re c · Re s - Im c · Im s, as one real product
    real = torch.cat([steers.real, -steers.imag])
    return (torch.cat([parts[..., 0], parts[..., 1]], 1) @ real).view(*lead, steers.shape[-1])


def without_common(phases: Tensor) -> Tensor:
    """Sums of phases without what all pairs of microphones have in common at no delay.

    That is what reaches all microphones at once: sound from straight above, the paper's additive
    source, hum in the cables. It has no azimuth, but a square array alone makes peaks of it.

    Args:
        phases: (..., P, F) complex; three pairs or more, fewer are left as they are.
    """
    if phases.shape[-2] < 3:
        return phases
    return phases - phases.real.mean(-2, keepdim=True)
