"""Picture of the attention to the clues (paper 003, Figure 2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .extractor import ClueAttention

_COLOURS = {"text": "#33658a", "video": "#5fa777", "tag": "#d9722e"}


def attention_figure(attention: ClueAttention, title: str = "") -> Figure:
    """Spectrogram of the mixture above, below it the weight of every token, frame and tag over
    time; at the right the mean weight of each."""
    height = 2.6 + 0.22 * len(attention.labels)
    figure = Figure(figsize=(8, height), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(2, 0.22 * len(attention.labels) + 0.6),
                               width_ratios=(4, 1))
    sound, places = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    total = figure.add_subplot(grid[1, 1], sharey=places)
    level = attention.spectrogram
    sound.imshow(level, origin="lower", aspect="auto", cmap="magma", vmin=level.max() - 70,
                 extent=(0, attention.duration, 0, attention.sample_rate / 2000))
    sound.set(ylabel="kHz", title=title or "mixture")
    sound.tick_params(labelbottom=False)
    rows = len(attention.labels)
    image = places.imshow(attention.weights.T, aspect="auto", cmap="viridis", vmin=0,
                          extent=(0, attention.duration, rows - 0.5, -0.5))
    places.set(xlabel="s", yticks=range(rows), yticklabels=attention.labels)
    for tick, clue in zip(places.get_yticklabels(), attention.clues):
        tick.set_color(_COLOURS[clue])
    figure.colorbar(image, ax=places, label="weight", pad=0.01)
    total.barh(np.arange(rows), attention.weights.mean(0),
               color=[_COLOURS[clue] for clue in attention.clues])
    total.tick_params(labelleft=False)
    total.set(xlabel="mean weight")
    return figure


def save_attention(attention: ClueAttention, path: str | Path, title: str = "") -> None:
    """Write :func:`attention_figure` as PNG, SVG or PDF, by the suffix of ``path``."""
    attention_figure(attention, title).savefig(path, dpi=120)
