"""A picture of what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..heads import Head
from .measurement import Measurement, delay_model

_LOUDEST_DB = 25.0  # of the colours of the ears' level difference


def plot_measurement(measurement: Measurement, path: str | Path, head: Head | None = None) -> None:
    """Write a picture of delays and levels over azimuth: measured, fitted, and after correction.

    Args:
        path: PNG, SVG or PDF.
        head: of :func:`measure_head`: how much louder one ear is, by direction and frequency.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = measurement.calibration
    figure, panels = plt.subplots(2 + bool(head), 1, figsize=(8, 10.5 if head else 7), sharex=True,
                                  layout="constrained")
    _plot_delays(panels[0], measurement)
    _plot_levels(panels[1], measurement)
    for axes in panels[:2]:
        axes.axhline(0, color="0.8", lw=1, zorder=0)
        axes.legend(fontsize="small")
    if head:
        _plot_head(figure, panels[2], head,
                   [(d.azimuth - found.turn_degrees) % 360 for d in found.measured])
    panels[-1].set(xlabel="azimuth in degrees (90 left)", xlim=(-5, 365),
                   xticks=[0, 90, 180, 270, 360])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_delays(axes, measurement: Measurement) -> None:
    found = measurement.calibration
    azimuth = np.arange(0, 361)
    axes.plot(azimuth, measurement.delay_at(azimuth), color="tab:orange",
              label="a symmetric head with this bias")
    perfect = measurement.shape.copy()
    perfect[[0, 2]] = 0
    axes.plot(azimuth, delay_model(perfect, azimuth.astype(float)), color="tab:green", ls="--",
              label="after the correction")
    axes.errorbar([d.azimuth for d in found.measured], [d.delay_us for d in found.measured],
                  [d.spread_us for d in found.measured], fmt="o", color="tab:blue", capsize=3,
                  label="measured")
    axes.set(ylabel="lag of channel 2 in µs", title=f"swap {'yes' if found.swap else 'no'}, delay "
             f"{found.delay_us:.0f} µs, gain {found.gain_db:.1f} dB, turn "
             f"{found.turn_degrees:.1f}°")


def _plot_levels(axes, measurement: Measurement) -> None:
    found = measurement.calibration
    at = np.array([d.azimuth for d in found.measured])
    levels = np.array([d.level_db for d in found.measured])
    sign = -1 if found.swap else 1
    axes.plot(at, levels, "o", color="tab:blue", label="measured")
    axes.plot(np.mod(at - found.turn_degrees, 360), sign * levels - found.gain_db, "x",
              color="tab:green", label="after the correction")
    axes.set(ylabel="level of channel 2 in dB")


def _plot_head(figure, axes, head: Head, claps: list[float]) -> None:
    spectrum = np.abs(np.fft.rfft(head.hrir.numpy(), 512)) + 1e-6
    level = 20 * np.log10(spectrum[:, 0] / spectrum[:, 1])
    image = axes.imshow(level.T, origin="lower", aspect="auto", extent=(-0.5, 359.5, 0, 8),
                        cmap="RdBu_r", vmin=-_LOUDEST_DB, vmax=_LOUDEST_DB)
    figure.colorbar(image, ax=axes, label="left ear louder by dB")
    axes.plot(claps, np.full(len(claps), 7.8), "v", color="black", label="claps")
    axes.legend(fontsize="small")
    axes.set(ylabel="kHz", ylim=(0, 8), title="the head's responses")
