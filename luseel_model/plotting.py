"""Pictures of an extraction: spectrograms and the direction on a circle.

matplotlib is imported when a picture is drawn, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from .inference import Extraction

#: Kinds of files that pictures are written to.
PICTURES = (".png", ".svg", ".pdf")
_RANGE_DB = 70.0


def spectrogram_db(audio: np.ndarray, sample_rate: int, n_fft: int = 1024
                   ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Level of both ears' mean power in dB, (frequencies, frames), and its extent for imshow."""
    from scipy.signal import stft  # ShortTimeFFT is newer than a robot's own SciPy (1.12)

    audio = np.pad(audio, ((0, 0), (0, max(0, n_fft - audio.shape[-1]))))
    _, _, spectrum = stft(audio, sample_rate, nperseg=n_fft, noverlap=n_fft - n_fft // 4)
    power = np.mean(np.abs(spectrum) ** 2, axis=0)
    return 10 * np.log10(power + 1e-12), (
        0.0, audio.shape[-1] / sample_rate, 0.0, sample_rate / 2000.0)


def draw_spectrogram(axes, audio: np.ndarray, sample_rate: int, title: str,
                     top_db: float | None = None) -> float:
    """Draw into ``axes``; returns the loudest level, for the same scale in the next picture."""
    level, extent = spectrogram_db(audio, sample_rate)
    top = float(level.max()) if top_db is None else top_db
    axes.imshow(level, origin="lower", aspect="auto", extent=extent, cmap="magma",
                vmin=top - _RANGE_DB, vmax=top, interpolation="nearest")
    axes.set(title=title, xlabel="time in s", ylabel="frequency in kHz")
    return top


def draw_directions(axes, likelihood: np.ndarray, azimuth: float | None, truth: float | None = None,
                    title: str = "") -> None:
    """Likelihood over azimuth on polar ``axes``: front is up, left is left."""
    angles = np.radians(np.arange(len(likelihood) + 1))
    closed = np.append(likelihood, likelihood[0])
    axes.set_theta_zero_location("N")
    axes.plot(angles, closed, color="tab:orange")
    axes.fill(angles, closed, color="tab:orange", alpha=0.3)
    top = max(float(closed.max()), 1e-3)
    if azimuth is not None:
        axes.plot([np.radians(azimuth)] * 2, [0, top], color="tab:red", lw=2,
                  label=f"estimate {azimuth:.0f}°")
    if truth is not None:
        axes.plot([np.radians(truth)] * 2, [0, top], color="tab:green", lw=2, ls="--",
                  label=f"truth {truth:.0f}°")
    axes.set_xticks(np.radians([0, 90, 180, 270]), ["front", "left", "back", "right"])
    axes.set_yticks([])
    axes.set_title(title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1.25, -0.12), fontsize="small")


def _draw_windows(axes, extraction: Extraction) -> None:
    """Azimuth of each window over time, the more opaque the surer that the sound is there."""
    windows = extraction.windows
    if not windows:
        axes.set_axis_off()
        return
    axes.scatter([w.start + w.duration / 2 for w in windows], [w.azimuth for w in windows],
                 alpha=[float(w.confidence) for w in windows], color="cyan", edgecolor="black")
    axes.set(ylim=(0, 360), yticks=[0, 90, 180, 270, 360], ylabel="azimuth in degrees")


def plot_extractions(mixture: np.ndarray, extractions: Sequence[Extraction],
                     path: str | Path, truth: Sequence[float] | None = None) -> None:
    """Write a picture: the mixture on top, then a row for each query with its sound, the azimuth
    of each window on it (dots, the more opaque the surer), and its likelihood on the circle.

    Args:
        mixture: (2, samples) at the extractions' rate.
        path: PNG, SVG or PDF.
        truth: true azimuth of each in degrees, drawn as well where it is known.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = 1 + len(extractions)
    figure = plt.figure(figsize=(11, 2.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2, width_ratios=[3, 1.2])
    rate = extractions[0].sample_rate
    top = draw_spectrogram(figure.add_subplot(grid[0, 0]), mixture, rate, "mixture")
    figure.add_subplot(grid[0, 1]).set_axis_off()
    for row, extraction in enumerate(extractions, start=1):
        axes = figure.add_subplot(grid[row, 0])
        title = f"“{extraction.query}”, confidence {extraction.confidence:.2f}"
        if extraction.audio is None:
            axes.set(title=title, xlabel="time in s", yticks=[])
        else:
            draw_spectrogram(axes, extraction.audio, rate, title, top)
        if extraction.likelihood is None:
            continue
        _draw_windows(axes.twinx(), extraction)
        draw_directions(figure.add_subplot(grid[row, 1], projection="polar"),
                        extraction.likelihood, extraction.azimuth,
                        None if truth is None else truth[row - 1])
    figure.savefig(path, dpi=110)
    plt.close(figure)
