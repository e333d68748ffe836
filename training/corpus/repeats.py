"""Find recordings that hold the same waveform, however they were cut, scaled or named.

Sound packages copy from each other: without a look, a test recording may lie in the training too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from tqdm import tqdm

from training import SAMPLE_RATE

_HOP = SAMPLE_RATE // 100
_SIZE = 512
_FRAMES = 24
_BANDS = 32
#: Coherence of the differentiated waveforms (+6 dB per octave) that copies have at least.
DETAIL = 0.8


@dataclass(frozen=True)
class Repeat:
    """Two recordings, by number (``first`` < ``second``), and how alike their waveforms are.

    Attributes:
        coherence: 0 … 1, see :func:`coherence`.
        seconds: length of the piece that was compared.
    """

    first: int
    second: int
    coherence: float
    seconds: float


def _mel_bands() -> np.ndarray:
    points = 700 * (10 ** (np.linspace(40, 2700, _BANDS + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(_SIZE, 1 / SAMPLE_RATE)
    rise = (frequency - points[:-2, None]) / np.diff(points)[:-1, None]
    fall = (points[2:, None] - frequency) / np.diff(points)[1:, None]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


_MEL = _mel_bands().T
_WINDOW = np.hanning(_SIZE).astype(np.float32)


def patches(clip: np.ndarray, most: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel patches of 0.24 s at the steepest rises of energy, which a cut doesn't move.

    Args:
        clip: (samples,) int16 at 16 kHz.
        most: patches of one recording.

    Returns:
        (n, 768) float32 of unit length, whatever the level, and (n,) the samples they start at.
    """
    energy = np.add.reduceat(clip.astype(np.float32) ** 2, np.arange(0, clip.size, _HOP))
    before = np.concatenate([np.zeros(3, np.float32), energy])[:energy.size]
    rise = energy - before
    starts: list[int] = []
    found = []
    while len(starts) < most and rise.max() > 0:
        block = int(rise.argmax())
        rise[max(0, block - _FRAMES // 2):block + _FRAMES // 2] = 0
        # to the sample, so that it doesn't depend on where the blocks happen to lie
        begin = max(0, block - 3) * _HOP
        near = np.abs(clip[begin:(block + 1) * _HOP].astype(np.int32))
        start = begin + int(np.argmax(2 * near >= near.max()))
        piece = clip[start:start + _FRAMES * _HOP + _SIZE].astype(np.float32)
        piece = np.pad(piece, (0, _FRAMES * _HOP + _SIZE - piece.size))
        frames = np.lib.stride_tricks.sliding_window_view(piece, _SIZE)[::_HOP][:_FRAMES]
        mel = np.abs(np.fft.rfft(frames * _WINDOW)).astype(np.float32) ** 2 @ _MEL
        patch = np.log(mel + 1e-5 * mel.max() + 1e-9).ravel()
        patch -= patch.mean()
        starts.append(start)
        found.append(patch / max(float(np.linalg.norm(patch)), 1e-9))
    return np.array(found, np.float32).reshape(-1, _FRAMES * _BANDS), np.array(starts, np.int64)


def coherence(first: np.ndarray, second: np.ndarray, start: int, other: int,
              seconds: float = 0.5, slack: float = 0.03) -> tuple[float, float]:
    """How alike two waveforms are from given samples on, for any level and sign.

    Args:
        first, second: (samples,) of any level.
        start, other: where to compare; up to ``slack`` seconds of shift between them are tried.
        seconds: length of the comparison; less where a recording ends.

    Returns:
        the largest normalised cross-correlation, 0 … 1 (1: the same waveform), and the seconds
        that it was computed over.
    """
    shift = round(slack * SAMPLE_RATE)
    size = min(round(seconds * SAMPLE_RATE), first.size - start, second.size - other)
    if size < SAMPLE_RATE // 20:
        return 0.0, size / SAMPLE_RATE
    piece = first[start:start + size].astype(np.float64)
    begin, end = other - shift, other + size + shift
    around = second[max(begin, 0):end].astype(np.float64)
    around = np.pad(around, (max(-begin, 0), 0))
    around = np.pad(around, (0, size + 2 * shift - around.size))
    length = 1 << (around.size - 1).bit_length()  # no wrap: only shifts inside are looked at
    product = np.fft.irfft(np.fft.rfft(around, length) * np.fft.rfft(piece, length).conj(),
                           length)[:2 * shift + 1]
    running = np.concatenate([[0.0], np.cumsum(around ** 2)])
    energy = running[size:size + 2 * shift + 1] - running[:2 * shift + 1]
    norm = np.sqrt(np.sum(piece ** 2) * np.maximum(energy, 1e-3 * energy.max() + 1e-9))
    return float(np.max(np.abs(product) / np.maximum(norm, 1e-9))), size / SAMPLE_RATE


def find_repeats(clips: Sequence[np.ndarray], of: Sequence[int] | None = None,
                 similar: float = 0.9, coherent: float = 0.9, neighbours: int = 12,
                 progress: bool = False) -> list[Repeat]:
    """Pairs of recordings with the same waveform at one of their loudest moments.

    Recordings with similar patches are compared sample by sample. A recording at another speed or
    pitch isn't found, nor one that was mixed with another sound of the same level.

    Args:
        clips: (samples,) int16 each.
        of: numbers of recordings; only pairs with at least one of them are looked for (much
            faster than all).
        similar: cosine between two patches from which on waveforms are compared.
        coherent: coherence from which on two recordings count as the same.
        neighbours: nearest patches of each patch that are looked at.
    """
    prints, starts, owner = [], [], []
    for number, clip in enumerate(tqdm(clips, "fingerprints", disable=not progress)):
        found, at = patches(np.asarray(clip))
        prints.append(found)
        starts += at.tolist()
        owner += [number] * len(found)
    if not starts:
        return []
    return compare(clips, np.concatenate(prints), np.array(starts), np.array(owner), of, similar,
                   coherent, neighbours, progress)


def compare(clips: Sequence[np.ndarray], table: np.ndarray, starts: np.ndarray, owner: np.ndarray,
            of: Sequence[int] | None = None, similar: float = 0.9, coherent: float = 0.9,
            neighbours: int = 12, progress: bool = False) -> list[Repeat]:
    """The second half of :func:`find_repeats`: from the patches (P, 768) of all recordings, the
    samples they start at and the number of the recording they are from, each (P,)."""
    asked = np.arange(len(table)) if of is None else np.flatnonzero(np.isin(owner, of))
    best: dict[tuple[int, int], Repeat] = {}
    count = min(neighbours + 2, len(table))
    for begin in tqdm(range(0, len(asked), 256), "comparing", disable=not progress):
        part = asked[begin:begin + 256]
        likeness = table[part] @ table.T
        near = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        for row, values, columns in zip(part, likeness, near):
            for column in columns[values[columns] >= similar]:
                (a, at), (b, other) = sorted([(int(owner[row]), int(starts[row])),
                                              (int(owner[column]), int(starts[column]))])
                if a == b or best.get((a, b), Repeat(a, b, 0.0, 0.0)).coherence > 0.99:
                    continue
                value, seconds = coherence(clips[a], clips[b], at, other)
                if value < coherent or ((a, b) in best and value <= best[a, b].coherence):
                    continue
                # Two dull thumps are much the same wave; only copies agree in their treble too.
                treble = [np.diff(clips[n].astype(np.float32)) for n in (a, b)]
                if coherence(*treble, at, other)[0] >= DETAIL:
                    best[a, b] = Repeat(a, b, value, seconds)
    return [best[pair] for pair in sorted(best)]
