"""Signal features: STFT as HTDemucs aligns it, interaural inputs, GCC-PHAT.

Axis letters: B batch, C audio channels (ears: left, right), N samples, F frequency bins, T frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-8


def _window(n_fft: int, like: Tensor) -> Tensor:
    return torch.hann_window(n_fft, device=like.device, dtype=like.dtype)


def stft(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    """Complex spectrogram whose frame k is centred on sample (k + 1/2)·hop.

    As in HTDemucs (demucs/htdemucs.py ``_spec``): reflect padding of (n_fft - hop)/2, Hann
    window, unitary scaling, ceil(N / hop) frames, Nyquist bin dropped.

    Args:
        audio: (..., N), N of at least n_fft (the reflection needs it).
    Returns:
        (..., n_fft/2, ceil(N / hop)), complex.
    """
    *lead, samples = audio.shape
    frames = -(-samples // hop)
    pad = (n_fft - hop) // 2
    x = F.pad(audio.reshape(-1, 1, samples), (pad, pad + frames * hop - samples), mode="reflect")
    z = torch.stft(x[:, 0], n_fft, hop, window=_window(n_fft, x), center=False, normalized=True,
                   return_complex=True)
    return z[:, :-1].reshape(*lead, n_fft // 2, frames)


def istft(spectrum: Tensor, n_fft: int, hop: int, samples: int) -> Tensor:
    """Inverse of :func:`stft`.

    Args:
        spectrum: (..., n_fft/2, T), complex; the Nyquist bin is taken as zero.
    Returns:
        (..., samples)
    """
    *lead, bins, frames = spectrum.shape
    pad = (n_fft - hop) // 2
    side = n_fft // (2 * hop)
    z = F.pad(spectrum.reshape(-1, bins, frames), (side, side, 0, 1))
    x = torch.istft(z, n_fft, hop, window=_window(n_fft, z.real), center=True, normalized=True,
                    length=frames * hop + 2 * pad)
    return x[:, pad: pad + samples].reshape(*lead, samples)


def interaural_inputs(spectrum: Tensor) -> Tensor:
    """Network inputs that show the interaural cues openly.

    Args:
        spectrum: (B, 2, F, T), complex, at a level where the mixture's RMS is about 1.
    Returns:
        (B, 9, F, T): compressed real and imaginary parts of both ears (magnitude to the power
        0.3), log magnitude of both ears, level difference left - right (log), and the cosine and
        sine of the phase difference left - right.
    """
    magnitude = spectrum.abs()
    unit = spectrum / (magnitude + _EPS)
    compressed = torch.view_as_real(unit * magnitude.pow(0.3))  # B 2 F T 2
    log = torch.log(magnitude + 1e-4)
    cross = unit[:, 0] * unit[:, 1].conj()
    return torch.cat([
        compressed[..., 0], compressed[..., 1],
        log / 4.0,
        ((log[:, :1] - log[:, 1:]) / 2.0).clamp(-3, 3),
        cross.real[:, None], cross.imag[:, None],
    ], dim=1)


def gcc_phat(audio: Tensor, hop: int, lags: int = 24, n_fft: int | None = None) -> Tensor:
    """Generalised cross-correlation with phase transform between the two ears.

    Frames are centred on 0, hop, 2·hop … (zero padding at both ends), Hann-windowed.

    Args:
        audio: (B, 2, N).
        hop: samples between frames.
        lags: even number of lags kept, -lags/2 … lags/2 - 1 samples. A positive lag means that
            the right ear hears the sound later: the source is on the left.
        n_fft: frame length in samples, twice the hop by default.
    Returns:
        (B, N // hop + 1, lags), values in [-1, 1].
    """
    n_fft = n_fft or 2 * hop
    batch, channels, samples = audio.shape
    if channels != 2:
        raise ValueError(f"GCC-PHAT needs two channels, got {channels}")
    z = torch.stft(audio.reshape(-1, samples), n_fft, hop, window=_window(n_fft, audio),
                   center=True, pad_mode="constant", return_complex=True)
    z = z.reshape(batch, 2, *z.shape[-2:])
    cross = z[:, 1] * z[:, 0].conj()
    # a floor relative to the clip keeps silent frames at zero instead of amplified rounding noise
    floor = cross.abs().amax(dim=(1, 2), keepdim=True) * 1e-9 + _EPS**2
    correlation = torch.fft.irfft(cross / (cross.abs() + floor), n=n_fft, dim=1)  # B lag T
    half = lags // 2
    kept = torch.cat([correlation[:, -half:], correlation[:, :half]], dim=1)
    return kept.transpose(1, 2)
