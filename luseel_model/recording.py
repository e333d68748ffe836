"""From windows to a whole recording: what the windows say is joined to one sound and direction."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .angles import estimate_azimuth
from .errors import ConfigError

GATE_MEMORY = 2.0  # [s] over which neighbouring windows' gates are averaged, exp(-t / GATE_MEMORY)
_GATE_REACH = 6.0  # [s] beyond which a window's gate no longer counts


def hop_samples(hop: float | None, size: int, sample_rate: int) -> int:
    """From one window to the next, in samples.

    Args:
        hop: seconds, or None for half a window.
        size: samples of a window.

    Raises:
        ConfigError: windows would not move, or leave gaps.
    """
    if hop is None:
        return size // 2
    if not 1 <= hop * sample_rate <= size:
        raise ConfigError(f"hop {hop:g} s must be above 0 and at most the model's window of "
                          f"{size / sample_rate:g} s")
    return round(hop * sample_rate)


def window_starts(samples: int, size: int, step: int | None = None) -> list[int]:
    """First samples of windows of ``size`` that cover ``samples``.

    Args:
        step: from one window to the next; None: half a window. The last window ends with the
            recording.
    """
    if samples <= size:
        return [0]
    return [*range(0, samples - size, step or size // 2), samples - size]


def cut_windows(audio: np.ndarray, starts: Sequence[int], size: int, batch: int
                ) -> Iterator[np.ndarray]:
    """The windows of (microphones, samples) from ``starts``, up to ``batch`` at a time.

    Returns:
        (W, microphones, size) each; what is shorter than a window is filled with zeros.
    """
    padded = np.pad(audio, ((0, 0), (0, max(0, size - audio.shape[1]))))
    for first in range(0, len(starts), batch):
        yield np.stack([padded[:, s:s + size] for s in starts[first:first + batch]])


@dataclass
class Joined:
    """Q sounds in a recording of N samples.

    Attributes:
        audio: (Q, 2, N) float32, or None from a model that extracts nothing.
        likelihood: (Q, 360) in [0, 1].
        azimuth: (Q,) degrees.
        confidence: (Q,) in [0, 1] in the window that shows the sound best.
        audible: (Q,) in [0, 1], the gain that that window gives the sound by its confidence.
    """

    audio: np.ndarray | None
    likelihood: np.ndarray
    azimuth: np.ndarray
    confidence: np.ndarray
    audible: np.ndarray


class WindowJoiner:
    """Joins the outputs of overlapping windows, in the order of their starts.

    The audio is cross-faded. The gain that a window gives a sound by its confidence (``gate``) is
    averaged with the neighbours' first: a sound that is heard before and after is there in
    between. Windows where the sound is there and loud say more about its direction.

    Args:
        queries: Q.
        samples: N, of the recording.
        size: samples of a window.
        sample_rate: Hz.
    """

    def __init__(self, queries: int, samples: int, size: int, sample_rate: int):
        self._samples, self._size, self._rate = samples, size, sample_rate
        length = max(samples, size)
        self._fade = _triangle(size) if samples > size else np.ones(size, np.float32)
        self._weight = np.zeros(length, np.float32)
        self._total = np.zeros((queries, 2, length), np.float32)
        self._heard = True
        self._times: list[float] = []
        self._gates: list[np.ndarray] = []
        self._evidence: list[tuple[np.ndarray, np.ndarray]] = []  # confidence, likelihood
        self._levels: list[np.ndarray] = []
        self._waiting: deque[tuple[int, int, np.ndarray]] = deque()  # number, start, audio

    def add(self, start: int, output) -> None:
        """A :class:`~luseel_model.inference.WindowOutput` for the window from sample ``start``."""
        number, now = len(self._times), start / self._rate
        self._times.append(now)
        self._evidence.append((output.confidence, output.likelihood))
        if output.audio is None:
            self._levels.append(np.ones(len(output.confidence)))
            self._heard = False
            return
        self._levels.append(np.sqrt(np.square(output.audio).mean((1, 2))))
        if output.gate is None:
            self._put(start, output.audio)
            return
        self._gates.append(np.asarray(output.gate, np.float64))
        self._waiting.append((number, start, output.audio))
        while now - self._waiting[0][1] / self._rate >= _GATE_REACH:
            self._release()

    def _release(self) -> None:
        number, start, audio = self._waiting.popleft()
        apart = np.abs(np.array(self._times) - self._times[number])
        near = apart <= _GATE_REACH
        weight = np.exp(-apart[near] / GATE_MEMORY)
        gate = weight @ np.stack(self._gates)[near] / weight.sum()
        gain = np.exp(_log_sigmoid(gate) - _log_sigmoid(self._gates[number]))
        self._put(start, audio * gain[:, None, None].astype(np.float32))

    def _put(self, start: int, audio: np.ndarray) -> None:
        self._total[..., start:start + self._size] += audio * self._fade
        self._weight[start:start + self._size] += self._fade

    def finish(self) -> Joined:
        """The whole, once all windows are in."""
        while self._waiting:
            self._release()
        confidence = np.stack([c for c, _ in self._evidence])              # W Q
        weight = confidence * np.stack(self._levels)
        weight = np.where(weight.sum(0) > 0, weight, 1.0)
        likelihood = np.einsum("wq,wqd->qd", weight / weight.sum(0),
                               np.stack([v for _, v in self._evidence]))
        audio = (self._total / self._weight)[..., :self._samples] if self._heard else None
        best = confidence.max(0)
        audible = np.exp(_log_sigmoid(np.max(self._gates, 0))) if self._gates \
            else np.ones_like(best)
        return Joined(audio, likelihood.astype(np.float32), estimate_azimuth(likelihood), best,
                      audible.astype(np.float32))


def _log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


def _triangle(size: int) -> np.ndarray:
    """Cross-fade weights (size,) of a window; never 0, so that any window covers all it hears."""
    ramp = (np.arange(size // 2, dtype=np.float32) + 0.5) / (size // 2)
    return np.concatenate([ramp, np.ones(size - 2 * len(ramp), np.float32), ramp[::-1]])
