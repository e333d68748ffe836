"""Clues that are partly wrong (paper 003, section 4.3, Table 2)."""

from __future__ import annotations

from typing import Sequence

import numpy as np

NOISE_DB = -2.5


def replace_words(text: str, vocabulary: Sequence[str], generator: np.random.Generator,
                  share: float = 1 / 3) -> str:
    """A third of the words, one at least, replaced with random other words of ``vocabulary``."""
    words = text.split()
    count = min(len(words), max(1, round(share * len(words))))
    for place in generator.choice(len(words), count, replace=False):
        others = [word for word in vocabulary if word.lower() != words[place].lower()]
        words[place] = others[int(generator.integers(len(others)))]
    return " ".join(words)


def noisy_frames(frames: np.ndarray, generator: np.random.Generator,
                 snr_db: float = NOISE_DB) -> np.ndarray:
    """(T, H, W, 3) uint8 frames in Gaussian noise ``snr_db`` below (here: above) their power, the
    mean square of the clip's values; clipped to what a uint8 holds."""
    values = frames.astype(np.float32)
    deviation = np.sqrt(np.mean(np.square(values)) * 10 ** (-snr_db / 10))
    noise = generator.standard_normal(values.shape, dtype=np.float32) * deviation
    return np.clip(np.rint(values + noise), 0, 255).astype(np.uint8)
