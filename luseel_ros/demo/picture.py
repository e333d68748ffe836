"""One picture of the whole demo: what went in, what came out, what was true, and from where."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from luseel_model.plotting import draw_spectrogram

from .checks import Heard, Verdict, assemble
from .scene import Scene


def draw(path: Path, scene: Scene, heard: Sequence[Heard], verdicts: Sequence[Verdict]) -> None:
    """Write a PNG: a row per query with mixture, extraction, truth, and the likelihood over time.

    The last column is polar: angle as seen from above (front up, left left), radius is time from
    the query (middle) to the next (rim), brightness is the likelihood. All times are counted from
    the query.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(17, 3.9 * len(heard) + 0.5), layout="constrained")
    figure.suptitle(scene.title, fontsize="x-large")
    rate = scene.sample_rate
    rows = figure.subfigures(len(heard), 1, squeeze=False)[:, 0]
    for part, item, verdict in zip(rows, heard, verdicts):
        query = item.query
        part.suptitle(f"“{query.text}”, asked at {query.at:g} s", fontweight="bold")
        grid = part.add_gridspec(1, 4, width_ratios=[1, 1, 1, 0.8])
        start, stop = round(query.at * rate), round(query.until * rate)
        first, audio = assemble(item, scene)
        extracted = np.zeros_like(scene.mixture)
        extracted[:, first:first + audio.shape[1]] = audio
        top = None
        for column, (name, signal) in enumerate((
                ("mixture", scene.mixture),
                (f"extracted, SI-SNRi {verdict.si_snri:.1f} dB", extracted),
                (f"truth: {query.sound.label}", query.sound.track))):
            axes = part.add_subplot(grid[column])
            top = draw_spectrogram(axes, signal[:, start:stop], rate, name, top)
            if column:
                axes.set_ylabel("")
        draw_likelihood(part.add_subplot(grid[3], projection="polar"), item, verdict)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def draw_likelihood(axes, heard: Heard, verdict: Verdict) -> None:
    """Likelihood over time on polar axes."""
    query = heard.query
    estimates = [e for e in heard.estimates if query.at <= e.time <= query.until + 1e-6]
    axes.set_theta_zero_location("N")  # counter-clockwise is matplotlib's own sense
    axes.set(rlim=(-2.0, query.until - query.at))
    axes.grid(False)  # or pcolormesh warns in some versions; it would hide the likelihood anyway
    if estimates:
        times = np.array([e.time - query.at for e in estimates])
        hop = np.median(np.diff(times)) if len(times) > 1 else 0.5
        values = np.stack([e.likelihood for e in estimates])
        values = values / np.maximum(values.max(1, keepdims=True), 1e-9)
        axes.pcolormesh(np.radians(np.arange(361) - 0.5), np.append(times - hop, times[-1]),
                        values, cmap="Blues", shading="flat", rasterized=True)
        axes.plot(np.radians([e.azimuth for e in estimates]), times - hop / 2, ".",
                  color="tab:red", label="estimate")
    axes.plot(np.radians([query.sound.azimuth] * 2), [0, query.until - query.at], "--",
              color="tab:green", label="truth", marker="o", markevery=[1], clip_on=False)
    axes.set_xticks(np.radians([0, 90, 180, 270]), ["front", "left", "back", "right"])
    axes.set_yticks([])
    axes.set_title(f"direction over time, median error {verdict.error:.0f}°")
    axes.legend(loc="lower right", bbox_to_anchor=(1.25, -0.1), fontsize="small")
