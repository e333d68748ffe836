"""What a picture extracts, to look at: spectrograms of a mixture and of its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import soundfile
from matplotlib.figure import Figure

from luseel_model.errors import ConfigError
from luseel_model.image_files import read_image
from luseel_model.inference import Extractor
from luseel_model.plotting import draw_spectrogram
from luseel_model.query import Query

_RANGE_DB = 40.0

def extraction_figure(model: Extractor, sounds: Sequence[str | Path],
                      pictures: Sequence[str | Path], out: str | Path,
                      seconds: float = 4.0) -> None:
    """Mix recordings of two ears, ask for each with its picture, draw what comes out.

    Args:
        sounds: their files, all of one sample rate.
        pictures: a file for each.
        out: PNG, SVG or PDF.
    Raises:
        ConfigError: what was given doesn't fit together.
    """
    tracks = [soundfile.read(path, dtype="float32", always_2d=True) for path in sounds]
    if len({rate for _, rate in tracks}) != 1 or len(sounds) != len(pictures):
        raise ConfigError("give recordings of one sample rate, and a picture for each")
    rate = tracks[0][1]
    audio = [track.T[:, :round(seconds * rate)] for track, _ in tracks]
    if any(part.shape != (2, round(seconds * rate)) for part in audio):
        raise ConfigError(f"the recordings need two ears and {seconds:g} s each")
    shown = [read_image(path) for path in pictures]
    mixture = np.sum(audio, 0)
    found = model.extract(mixture, rate, [Query(image=picture) for picture in shown],
                          progress=False)
    rows = len(sounds)
    figure = Figure(figsize=(11, 1 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False, width_ratios=(0.7, 1, 1, 1))
    top = None
    for row, picture, result, true in zip(axes, shown, found, audio):
        row[0].imshow(picture)
        row[0].set_axis_off()
        row[0].set_title("shown")
        top = draw_spectrogram(row[1], mixture, rate, "heard", top)
        draw_spectrogram(row[2], result.audio, rate, "extracted", top)
        draw_spectrogram(row[3], true, rate, "the sound itself", top)
        for panel in row[1:]:  # what matters is loud
            panel.images[0].set_clim(top - _RANGE_DB, top)
        for panel in row[2:]:
            panel.set(ylabel="", yticklabels=[])
    for row in axes[:-1, 1:].flat:
        row.set(xlabel="")
    figure.savefig(out, dpi=80)
