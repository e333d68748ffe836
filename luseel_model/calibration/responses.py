"""A head's responses from claps all around it.

What a network needs of a head (luseel/head_search.py) is how the ears differ, and in this whoever
claps cancels out: a clap tells the ratio of the ears at its direction. A few claps tell it badly at
low frequencies, for they are short, and where they are weak. There one head is much like another, so
what is measured is by how much this head differs from a known one, trusted as far as the clap stands
out of the noise, and interpolated between the claps.
"""

from __future__ import annotations

import json
from typing import Sequence

import numpy as np
import torch

from ..config import AZIMUTH_BINS
from ..heads import MIT_KEMAR, Head, gaps, neighbours
from .ears import CalibrationError
from .measurement import Measurement
from .sounds import Sound, direct_sound, noise_power

SAMPLE_RATE = 16000  # of a Head
_WIDEST_GAP = 45.0    # degrees between neighbours
_TAPS, _EARLIER = 192, 16  # samples; room for what an ear may hear earlier than the known head's
_FFT = 1024
_DIRECT, _FADE = 0.002, 0.001  # [s] of a clap: before the floor, 1 m below, from 1.7 m
_SMOOTH = 8.0        # bins, 125 Hz: less than the window's resolution
#: By how much heads differ, nepers or radians: so much at 0 Hz, and so much more for each kHz.
_HEADS_DIFFER = 0.1, 0.15


def measure_head(recordings: Sequence[tuple[np.ndarray, float, Sequence[Sound]]],
                 found: Measurement, name: str = "own head", known: Head | None = None) -> Head:
    """The responses of the head that heard claps all around it, on its ears put right.

    Args:
        recordings: audio (2, N), channels as recorded, its rate in Hz, and its sounds, from
            :func:`analyse`.
        found: what the same sounds say of the ears; goes with the head wherever it is used.
        name: of the head.
        known: the head it is compared with; default: MIT KEMAR, as large as this one.

    Returns:
        head-related impulse responses whose ratio of the ears is the measured one. Both ears
        together are as loud as the known head's: claps don't tell.

    Raises:
        CalibrationError: the directions of claps that can be used leave too wide a gap.
    """
    from ..inference import resample  # which applies calibrations itself

    usable = [sound for _, _, sounds in recordings for sound in sounds if _is_usable(sound)]
    _check(usable)
    known = known or _kemar(found.calibration.head_delay_us)
    spectrum = np.fft.rfft(known.hrir.double().numpy(), _FFT)
    ratio = _without_front(spectrum[:, 1] / spectrum[:, 0])            # directions, bins
    claps: dict[float, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for audio, rate, sounds in recordings:
        audio = np.asarray(audio, np.float32)
        ears = np.asarray(found.calibration.apply(audio - audio.mean(1, keepdims=True), rate))
        ears = resample(ears, rate, SAMPLE_RATE)
        for sound in filter(_is_usable, sounds):
            azimuth = round(sound.azimuth - found.calibration.turn_degrees, 3) % 360.0
            claps.setdefault(azimuth, []).append(_spectra(ears, sound.time, rate))
    azimuth = np.array(sorted(claps))
    differs, trust = map(np.array, zip(*(
        _difference(claps[here], _between(ratio, here)) for here in azimuth)))
    hrir = _changed(spectrum, ratio * np.exp(_spread(azimuth, differs)))
    about = {key: known.metadata[key] for key in ("licence", "attribution") if key in known.metadata}
    return Head(name, torch.from_numpy(hrir.astype(np.float32)), {
        **about, "source": f"claps, luseel calibrate, compared with {known.name}",
        "directions": " ".join(f"{a:g}" for a in sorted({s.azimuth % 360.0 for s in usable})),
        "heard": _heard(trust.mean(0))})


def _spread(azimuth: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """Differences (n, bins) at (n,) directions, see :func:`_difference` → (360, bins)."""
    low, high, part = neighbours(azimuth, np.arange(AZIMUTH_BINS))
    part = part[:, None]
    level = (1 - part) * differs.real[low] + part * differs.real[high]
    phase = np.angle((1 - part) * np.exp(1j * differs.imag[low])
                     + part * np.exp(1j * differs.imag[high]))
    return level + 1j * phase


def _changed(spectrum: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """A head's spectra (360, 2, bins) and another ratio of the ears (360, bins) → impulse responses
    (360, 2, taps) with that ratio, as loud as the head's in both ears together."""
    left = np.sqrt(np.square(np.abs(spectrum)).sum(1) / (1 + np.square(np.abs(ratio))))
    left = left * np.exp(1j * np.angle(spectrum[:, 0]))
    hrir = np.fft.irfft(np.stack([left, left * ratio], 1), _FFT)
    hrir = np.roll(hrir, _EARLIER, -1)[..., :_TAPS]
    fade = np.sin(np.linspace(0, np.pi / 2, 16)) ** 2
    hrir[..., :16] *= fade
    hrir[..., -16:] *= fade[::-1]
    return hrir / np.sqrt(np.square(hrir).sum(-1).mean())


def _heard(trust: np.ndarray) -> str:
    """From which to which frequency a mean trust (bins,) of a half or more reaches, in words."""
    kilohertz = np.flatnonzero(trust >= 0.5) * SAMPLE_RATE / _FFT / 1000
    return f"{kilohertz[0]:.1f} to {kilohertz[-1]:.1f} kHz" if len(kilohertz) else "nowhere"


def _kemar(delay_us: float | None) -> Head:
    """MIT KEMAR of a size that delays by so much from the side."""
    head = Head.open(MIT_KEMAR)
    if not delay_us:
        return head
    return head.warped(delay_us / json.loads(head.metadata["calibration"])["max_delay_us"])


def _without_front(ratio: np.ndarray) -> np.ndarray:
    """(360, bins) ratios of the ears of a head that sounds alike from the front and from behind: the
    geometric mean of both. Which is which, claps alone shall tell."""
    behind = ratio[(AZIMUTH_BINS // 2 - np.arange(AZIMUTH_BINS)) % AZIMUTH_BINS]
    turn = np.exp(0.5j * np.angle(behind / ratio))
    return ratio * turn * np.sqrt(np.abs(behind / ratio))


def _is_usable(sound: Sound) -> bool:
    """A lasting sound is heard with the room's reflections."""
    return not (sound.clipped or sound.lasting)


def _check(sounds: Sequence[Sound]) -> None:
    at = np.unique(np.mod([sound.azimuth for sound in sounds], 360.0))
    if not at.size or gaps(at).max() > _WIDEST_GAP + 0.5:
        raise CalibrationError(
            f"the head's responses need claps all around, every {_WIDEST_GAP:g}° at least, that are "
            "short, not clipped and well above the noise; there are such at "
            f"{', '.join(f'{a:g}°' for a in at) or 'no direction'}. Every 30° is "
            "better: --directions 0 30 60 90 120 150 180 210 240 270 300 330")


def _between(ratio: np.ndarray, azimuth: float) -> np.ndarray:
    """(360, bins) ratios at a direction that needn't be whole degrees (bins,)."""
    low, high, part = neighbours(np.arange(AZIMUTH_BINS), azimuth)
    return (1 - part) * ratio[low] + part * ratio[high]


def _spectra(ears: np.ndarray, time: float, rate: float
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Powers of the ears (2, bins), their cross-spectrum (bins,) and the noise (2, bins), of a
    recording that had ``rate``: above its band there is but noise."""
    begin = round(time * SAMPLE_RATE)
    part = direct_sound(ears, SAMPLE_RATE, begin, _DIRECT, _FADE)
    spectrum = np.fft.rfft(part, _FFT)
    power = np.square(np.abs(spectrum))
    noise = noise_power(ears, SAMPLE_RATE, begin, part.shape[1], _FFT)
    beyond = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE) > 0.45 * rate
    return power, spectrum[1] * spectrum[0].conj(), np.where(beyond, power.max() + noise, noise)


def _difference(claps: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], known: np.ndarray
                ) -> tuple[np.ndarray, np.ndarray]:
    """Log of the ratio of the ears (right by left) over a known head's (bins,): nepers, and radians
    as imaginary part; the likeliest one, given how much heads differ and how exact the claps are.
    And how far the claps are trusted in this (bins,), 0 to 1."""
    from scipy.ndimage import gaussian_filter1d

    power, cross, noise = (np.sum(values, 0) for values in zip(*claps))
    known = np.where(np.abs(known) < 1e-3, 1e-3, known)
    scale = np.stack([np.ones_like(power[0]), np.abs(known)])
    # taken by the known head, they differ little from bin to bin; where a clap has a gap its
    # neighbours tell
    power, noise = (gaussian_filter1d(value / np.square(scale), _SMOOTH, axis=-1)
                    for value in (power, noise))
    cross = gaussian_filter1d(cross / known, _SMOOTH)
    sound = np.maximum(power - noise, 0.1 * power) + 1e-30
    heard = np.clip(power / (noise + 1e-30) - 1, 0, None).min(0)  # signal-to-noise ratio
    level, phase = 0.5 * np.log(sound[1] / sound[0]), np.angle(cross)
    hertz = np.maximum(np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE), 1.0)
    periods = hertz * (_DIRECT + _FADE / 2)  # in the window
    errs = 1 / (heard + 1e-9) / len(claps) + np.square(1 / periods)
    differ = np.square(_HEADS_DIFFER[0] + _HEADS_DIFFER[1] * hertz / 1000)
    trust = differ / (differ + errs)
    return trust * (level + 1j * phase), trust
