"""Heads: horizontal head-related impulse responses on a 1° grid at 16 kHz, calibrated.

    python -m training.heads --out data/heads

MIT KEMAR comes with the package (``luseel_model/head_data``). FABIAN and the KEMAR of TU Berlin are under
GPL-3+: the command above takes them from their Debian package, on the user's machine. Any SOFA file
with a free-field head can be given by its path instead of a name.

A head on a shelf is never mounted quite straight, and its two microphones differ. Each one is
calibrated by its own interaural delays: turned until the delay is zero in front and behind and odd
between, the ears' delays and levels balanced over all directions (:class:`Calibration`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import soundfile
import soxr
import torch

from luseel_model.errors import ConfigError
from luseel_model.heads import AZIMUTHS, MIT_KEMAR, Head, gaps, neighbours
from training import SAMPLE_RATE

TAPS = 192
DATA_FOLDER = Path("data") / "heads"

#: Low-pass for the interaural delay (Hz): above it the correlation has several peaks; far below,
#: the microphones' own phase differs by up to 20 µs.
_DELAY_CUTOFF = 3000.0
_MAX_DELAY = 1.2e-3
_UPSAMPLING = 16
#: Harmonics of the delay over azimuth that the calibration looks at; the rest is noise.
_HARMONICS = 9


@dataclass(frozen=True)
class Calibration:
    """What was found wrong with a head, and put right.

    Attributes:
        azimuth_offset: degrees by which the head looked to the left of 0; its data were turned
            back by as much.
        level_bias_db: mean level of the left ear over the right one, dB.
        delay_bias_us: mean lead of the left ear over the right one, microseconds.
        residual_us: root mean square of what is even in the delay after the calibration.
        max_delay_us: largest interaural delay after the calibration.
    """

    azimuth_offset: float
    level_bias_db: float
    delay_bias_us: float
    residual_us: float
    max_delay_us: float


def interaural_delay(hrir: np.ndarray, rate: float) -> np.ndarray:
    """Lead of the left ear over the right one in seconds, (n,), of responses (n, 2, taps).

    Peak of the correlation of both ears below 3 kHz, found on a 16 times finer grid.
    """
    length = 1 << int(np.ceil(np.log2(2 * hrir.shape[-1])))
    spectrum = np.fft.rfft(np.asarray(hrir, np.float64), length)
    frequency = np.fft.rfftfreq(length, 1 / rate)
    low = np.where(frequency < _DELAY_CUTOFF, np.cos(np.pi * frequency / (2 * _DELAY_CUTOFF)), 0)
    return _correlation_peak(spectrum[:, 0] * low, spectrum[:, 1] * low, length, rate, _MAX_DELAY)


def _correlation_peak(first: np.ndarray, second: np.ndarray, length: int, rate: float,
                      limit: float) -> np.ndarray:
    """Delay of ``second`` behind ``first`` in seconds, from their spectra (n, bins)."""
    fine = length * _UPSAMPLING
    correlation = np.fft.irfft(np.conj(first) * second, fine)
    reach = int(np.ceil(limit * rate * _UPSAMPLING))
    lags = np.arange(-reach, reach + 1)
    window = correlation[:, lags % fine]
    peak = np.clip(window.argmax(-1), 1, lags.size - 2)
    rows = np.arange(len(window))
    before, centre, after = (window[rows, peak + i] for i in (-1, 0, 1))
    curvature = before - 2 * centre + after
    shift = 0.5 * (before - after) / np.where(curvature < 0, curvature, -np.inf)
    return (lags[peak] + np.clip(shift, -0.5, 0.5)) / (rate * _UPSAMPLING)


def interpolate(azimuth: np.ndarray, hrir: np.ndarray, rate: float,
                wanted: np.ndarray) -> np.ndarray:
    """Responses between measured directions, time-aligned so that no comb filter arises.

    The delay between two neighbours is found per ear by correlation; both are moved by their share
    of it, mixed linearly, and the mix so lies at the delay in between.

    Args:
        azimuth: (n,) degrees, rising, in [0, 360).
        hrir: (n, 2, taps).
        wanted: (m,) degrees, any wrap.

    Returns:
        (m, 2, taps).
    """
    taps = hrir.shape[-1]
    length = 1 << int(np.ceil(np.log2(2 * taps)))
    spectrum = np.fft.rfft(np.asarray(hrir, np.float64), length)
    following = np.roll(spectrum, -1, axis=0)
    # No head turns by a degree and changes one ear's delay by more than about 10 µs.
    limit = float(gaps(azimuth).max()) * 15e-6 + 20e-6
    step = np.stack([_correlation_peak(spectrum[:, ear], following[:, ear], length, rate, limit)
                     for ear in (0, 1)], axis=1)
    low, _, part = neighbours(azimuth, wanted)
    omega = 2j * np.pi * np.fft.rfftfreq(length, 1 / rate)
    part, delay = part[:, None, None], step[low][:, :, None]
    mixed = ((1 - part) * spectrum[low] * np.exp(-omega * part * delay)
             + part * following[low] * np.exp(omega * (1 - part) * delay))
    return np.fft.irfft(mixed, length)[..., :taps]


def estimate_calibration(azimuth: np.ndarray, hrir: np.ndarray, rate: float) -> Calibration:
    """Estimate offset, level bias and delay bias of a head from its own ears.

    Args and shapes as :func:`interpolate`. The offset is the turn that leaves the least energy in
    the even part of the interaural delay, within ±30°; residual and maximum are of the data as
    they would be after the calibration.
    """
    # A dense regular grid: harmonics then are a plain Fourier transform.
    itd = interaural_delay(interpolate(azimuth, hrir, rate, np.arange(AZIMUTHS)), rate)
    series = np.fft.rfft(itd) / AZIMUTHS
    order = np.arange(1, _HARMONICS + 1)
    turn = np.deg2rad(np.arange(-30, 30, 0.01))
    even = np.square(np.real(series[order] * np.exp(1j * np.outer(turn, order)))).sum(-1)
    best = int(even.argmin())
    level = 10 * np.log10(np.square(hrir[:, 0]).sum(-1)
                          / np.square(hrir[:, 1]).sum(-1))
    after = gaps(azimuth)
    weight = after + np.roll(after, 1)
    return Calibration(
        azimuth_offset=round(float(np.rad2deg(turn[best])), 2),
        level_bias_db=round(float(np.average(level, weights=weight)), 3),
        delay_bias_us=round(float(series[0].real) * 1e6, 2),
        residual_us=round(float(np.sqrt(2 * even[best])) * 1e6, 2),
        max_delay_us=round(float(np.abs(itd - series[0].real).max()) * 1e6, 1))


def make_head(name: str, azimuth: np.ndarray, hrir: np.ndarray, rate: float,
              metadata: dict[str, str] | None = None, taps: int = TAPS,
              calibrate: bool = True) -> Head:
    """Turn measured responses into a :class:`Head`: calibrated, 1° grid, 16 kHz, mean energy 1.

    Args:
        azimuth: (n,) degrees, counter-clockwise; any order, covering the circle.
        hrir: (n, 2, length) at ``rate``.
        taps: length of the result; 16 samples (1 ms) stay before the first onset.

    Raises:
        ConfigError: directions too sparse, or left and right (or their order) swapped.
    """
    azimuth, first = np.unique(np.round(np.mod(azimuth, 360.0), 3) % 360.0, return_index=True)
    hrir = np.asarray(hrir, np.float64)[first]
    widest = gaps(azimuth).max() if azimuth.size else 360.0
    if widest > 15.5:
        raise ConfigError(f"head {name}: a gap of {widest:.0f}° between directions; 15° at most")
    # Room for responses that a turn or a fractional delay moves past either end.
    hrir = np.pad(hrir, ((0, 0), (0, 0), (int(0.002 * rate), int(0.001 * rate))))
    if rate != SAMPLE_RATE:  # before the calibration: levels above 8 kHz are none of its business
        hrir = np.stack([soxr.resample(ears.T, rate, SAMPLE_RATE, quality="VHQ").T
                         for ears in hrir])
        rate = SAMPLE_RATE
    found = estimate_calibration(azimuth, hrir, rate)
    wanted = np.arange(AZIMUTHS, dtype=np.float64)
    hrir = interpolate(azimuth, hrir, rate, wanted + (found.azimuth_offset if calibrate else 0.0))
    if calibrate:
        hrir *= 10 ** (np.array([-0.5, 0.5]) * found.level_bias_db / 20)[:, None]
        hrir = delayed(hrir, np.array([0.5, -0.5]) * found.delay_bias_us * 1e-6 * rate)
    if not interaural_delay(hrir[90:91], SAMPLE_RATE)[0] > 0:
        raise ConfigError(f"head {name}: a sound at 90° reaches the right ear first; azimuth must "
                          "run counter-clockwise (90 = left) and the left ear come first")
    envelope = np.abs(hrir).max(axis=(0, 1))
    onset = int(np.argmax(envelope > 0.1 * envelope.max()))
    begin = max(onset - 16, 0)
    hrir = hrir[..., begin:begin + taps]
    hrir = np.pad(hrir, ((0, 0), (0, 0), (0, taps - hrir.shape[-1])))
    fade = np.cos(np.linspace(0, np.pi / 2, max(taps // 6, 2))) ** 2
    hrir[..., -fade.size:] *= fade
    hrir[..., :8] *= np.sin(np.linspace(0, np.pi / 2, 8)) ** 2
    hrir /= np.sqrt(np.square(hrir).sum(-1).mean())
    about = dict(metadata or {})
    if calibrate:
        about["calibration"] = json.dumps(asdict(found))
    return Head(name, torch.from_numpy(hrir.astype(np.float32)), about)


def delayed(signal: np.ndarray, samples: np.ndarray | float) -> np.ndarray:
    """(..., n) delayed by fractional samples, one delay for all or one for each of the (...)."""
    count = signal.shape[-1]
    length = 1 << int(np.ceil(np.log2(2 * count)))
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(length) * np.asarray(samples)[..., None])
    return np.fft.irfft(np.fft.rfft(signal, length) * turn, length)[..., :count]


def read_sofa(path: str | Path) -> tuple[np.ndarray, np.ndarray, float, dict[str, str]]:
    """Horizontal directions of a SOFA file (convention SimpleFreeFieldHRIR).

    Returns:
        azimuth (n,) degrees, responses (n, 2, taps) with the file's own delays applied, sampling
        rate, and licence, title and origin as the file states them.
    """
    import sofar

    try:
        sofa = sofar.read_sofa(str(path), verify=False, verbose=False)
        response = np.asarray(sofa.Data_IR, np.float64)
        rate = float(np.ravel(sofa.Data_SamplingRate)[0])
        position = np.asarray(sofa.SourcePosition, np.float64)
        kind, units = sofa.SourcePosition_Type, str(sofa.SourcePosition_Units)
        receivers = np.asarray(sofa.ReceiverPosition, np.float64).reshape(-1, 3)
    except Exception as error:
        raise ConfigError(f"{path} can't be read as SOFA impulse responses: {error}") from None
    if response.ndim != 3 or response.shape[1] != 2:
        raise ConfigError(f"{path}: expected two ears, got responses {response.shape}")
    if kind == "cartesian":
        x, y, z = position.T
        ground = np.hypot(x, y)
        position = np.stack([np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, ground)),
                             np.hypot(ground, z)], axis=1)
    elif units.lower().startswith("rad"):
        position = position * [180 / np.pi, 180 / np.pi, 1]
    delay = np.broadcast_to(np.asarray(getattr(sofa, "Data_Delay", 0.0), np.float64),
                            response.shape[:2])
    level = np.abs(position[:, 1]) < 0.5
    if not level.any():
        raise ConfigError(f"{path} has no directions in the horizontal plane")
    farthest = position[level][:, 2].max()  # one distance: the most like a plane wave
    level &= np.abs(position[:, 2] - farthest) < 0.01
    response, delay = response[level], delay[level]
    if len(receivers) == 2 and "spherical" not in str(sofa.ReceiverPosition_Type) and (
            receivers[0, 1] < receivers[1, 1]):
        response, delay = response[:, ::-1], delay[:, ::-1]  # the right ear came first
    if np.any(delay):
        room = int(np.ceil(delay.max())) + 1
        response = delayed(np.pad(response, ((0, 0), (0, 0), (0, room))), delay)
    about = {"licence": str(getattr(sofa, "GLOBAL_License", "") or "not stated"),
             "title": str(getattr(sofa, "GLOBAL_Title", "") or Path(path).stem),
             "source": Path(path).name}
    return position[level][:, 0], response, rate, about


def read_ssr_wav(path: str | Path) -> tuple[np.ndarray, np.ndarray, float, dict[str, str]]:
    """A 720-channel file of the SoundScape Renderer: left, right of 0°, then 1°, ... 359°."""
    audio, rate = soundfile.read(str(path), dtype="float64", always_2d=True)
    if audio.shape[1] != 2 * AZIMUTHS:
        raise ConfigError(f"{path}: expected 720 channels, got {audio.shape[1]}")
    hrir = audio.T.reshape(AZIMUTHS, 2, -1)
    return np.arange(AZIMUTHS, dtype=np.float64), hrir, float(rate), {"source": Path(path).name}


@dataclass(frozen=True)
class Known:
    """A head in a Debian package."""

    package: str
    path: str
    licence: str
    attribution: str


_SSR = "usr/share/ssr/impulse_responses/hrirs"
KNOWN = {
    "mit_kemar": Known(
        "libmysofa1", "usr/share/libmysofa/MIT_KEMAR_normal_pinna.sofa",
        "free with attribution",
        "Copyright 1994 by the MIT Media Laboratory. It is provided free with no restrictions on "
        "use, provided the authors are cited when the data is used in any research or commercial "
        "application. Bill Gardner and Keith Martin, HRTF Measurements of a KEMAR Dummy-Head "
        "Microphone, MIT Media Lab Perceptual Computing Technical Report 280, 1994."),
    "tu_kemar": Known(
        "soundscaperenderer-common", f"{_SSR}/hrirs_kemar.wav", "GPL-3+",
        "Hagen Wierstorf, Matthias Geier, Alexander Raake, Sascha Spors. A Free Database of "
        "Head-Related Impulse Response Measurements in the Horizontal Plane with Multiple "
        "Distances. 130th Convention of the Audio Engineering Society, 2011."),
    "fabian": Known(
        "soundscaperenderer-common", f"{_SSR}/hrirs_fabian_min_phase_eq.wav", "GPL-3+",
        "Alexander Lindau, Stefan Weinzierl. FABIAN - Schnelle Erfassung binauraler "
        "Raumimpulsantworten in mehreren Freiheitsgraden. Fortschritte der Akustik, DAGA "
        "Stuttgart, 2007."),
}


def _unpacked(package: str, folder: Path) -> Path:
    """Download a Debian package to ``folder`` and unpack it; returns the root of its files."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise ConfigError(
                f"{tool} is missing, so the Debian package {package} can't be fetched here: unpack "
                "it on a Debian or Ubuntu machine and give its root folder with --root")
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True,
                            text=True)
    archives = sorted(folder.glob(f"{package}_*.deb"))
    if not archives:
        raise ConfigError(f"`apt-get download {package}` failed: {result.stderr.strip()[-300:]}; "
                          "run `apt-get update` once, or give the unpacked package with --root")
    subprocess.run(["dpkg", "-x", str(archives[-1]), str(folder / "root")], check=True)
    return folder / "root"


def fetch_head(name: str, root: str | Path | None = None, calibrate: bool = True) -> Head:
    """A head from its Debian package.

    Args:
        name: of :data:`KNOWN`.
        root: folder with unpacked packages (holding ``usr/share``); default: this machine's own
            files where they are installed, else a download.
        calibrate: False leaves it as its makers packaged it, turned and unbalanced.

    Raises:
        ConfigError: the package can't be fetched; says what to do.
    """
    if name not in KNOWN:
        raise ConfigError(f"unknown head {name!r}; known are {', '.join(KNOWN)}")
    known = KNOWN[name]
    path = Path(root or "/") / known.path
    with tempfile.TemporaryDirectory(prefix="luseel-heads-") as temporary:
        if not path.is_file() and root:
            raise ConfigError(f"{known.path} is not below {root}")
        if not path.is_file():
            path = _unpacked(known.package, Path(temporary)) / known.path
        read = read_sofa if path.suffix == ".sofa" else read_ssr_wav
        azimuth, hrir, rate, _ = read(path)
    about = {"source": f"Debian package {known.package}, {known.path}",
             "licence": known.licence, "attribution": known.attribution}
    return make_head(name, azimuth, hrir, rate, about, calibrate=calibrate)


def prepare_heads(out_folder: str | Path, names: Sequence[str] = tuple(KNOWN),
                  root: str | Path | None = None) -> list[Head]:
    """Make heads from their Debian packages and write them to ``out_folder/<name>.safetensors``.

    Args:
        names: of :data:`KNOWN`.
        root: folder with unpacked packages (holding ``usr/share``); default: this machine's own
            files where they are installed, else a download.

    Raises:
        ConfigError: a package can't be fetched; says what to do.
    """
    heads = []
    for name in names:
        heads.append(fetch_head(name, root))
        heads[-1].save(Path(out_folder) / f"{name}.safetensors")
    return heads


def load_head(name_or_path: str | Path) -> Head:
    """Load a head by name (``mit_kemar``, or one made into ``data/heads``), or from a file.

    Files: ``.safetensors`` made here, or ``.sofa`` of any free-field head (calibrated on the way).

    Raises:
        ConfigError: there is no such head; says what to do.
    """
    path = Path(name_or_path)
    if path.suffix == ".sofa" and path.is_file():
        azimuth, hrir, rate, about = read_sofa(path)
        return make_head(path.stem, azimuth, hrir, rate, about)
    if path.suffix == ".safetensors" and path.is_file():
        return Head.open(path)
    checkout = Path(__file__).resolve().parent.parent
    for folder in (DATA_FOLDER, checkout / DATA_FOLDER, MIT_KEMAR.parent):
        found = folder / f"{name_or_path}.safetensors"
        if found.is_file():
            return Head.open(found)
    raise ConfigError(f"no head {str(name_or_path)!r}: run `python -m training.heads --out "
                      f"{DATA_FOLDER}` for {', '.join(KNOWN)}, or give the path of a .sofa file")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see ``python -m training.heads --help``."""
    parser = argparse.ArgumentParser(prog="python -m training.heads",
                                     description="Make calibrated heads for the simulation.")
    parser.add_argument("--out", type=Path, default=DATA_FOLDER)
    parser.add_argument("--heads", nargs="+", default=list(KNOWN), choices=list(KNOWN))
    parser.add_argument("--root", type=Path, help="folder with the unpacked Debian packages")
    options = parser.parse_args(arguments)
    try:
        heads = prepare_heads(options.out, options.heads, options.root)
    except ConfigError as error:
        parser.error(str(error))
    for head in heads:
        print(f"{head.name}: {head.metadata['licence']}; {head.metadata['calibration']}")


if __name__ == "__main__":
    main()
