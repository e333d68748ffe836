"""Right or wrong: directions and extractions of the demo against the truth of its scene."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import numpy as np

from luseel_model.angles import angular_error

from .scene import Query, Scene

WINDOW = 2.0  # [s] that an estimate looks back over; until then a query's result is settling in
ACTIVE_DB = -20.0  # a hop is judged when the sound is at least this loud in it, re the whole track
MAX_ERROR = 10.0  # [degrees], median over the judged hops
MIN_SI_SNRI = 3.0  # [dB]


@dataclass(frozen=True)
class Estimate:
    """One SoundEvent, as the demo keeps it. Times in seconds of the scene, angles in degrees."""

    time: float  # of the end of the newest hop
    azimuth: float
    confidence: float
    active: bool
    likelihood: np.ndarray  # (360,)


@dataclass
class Heard:
    """All that came back for one query."""

    query: Query
    estimates: list[Estimate] = field(default_factory=list)
    blocks: list[tuple[int, np.ndarray]] = field(default_factory=list)  # first sample, (2, n)


@dataclass(frozen=True)
class Verdict:
    """How well one query went. NaN where nothing came back.

    Attributes:
        judged: number of hops whose direction counts.
        azimuth: their median estimate, degrees in [0, 360).
        error: median absolute error over them, degrees.
        within_10: share of them within 10 degrees.
        confidence: their mean confidence.
        si_snr_in, si_snr: of the mixture and of the extraction against the truth, dB.
        seconds: length of the audio that was compared.
    """

    judged: int
    azimuth: float
    error: float
    within_10: float
    confidence: float
    si_snr_in: float
    si_snr: float
    seconds: float

    @property
    def si_snri(self) -> float:
        """Improvement of the SI-SNR, dB."""
        return self.si_snr - self.si_snr_in

    @property
    def direction_right(self) -> bool:
        """Whether the median error is small enough."""
        return bool(self.error <= MAX_ERROR)  # NaN is not

    @property
    def extraction_right(self) -> bool:
        """Whether the extraction is closer to the truth than the mixture, by enough."""
        return bool(self.si_snri >= MIN_SI_SNRI)

    @property
    def right(self) -> bool:
        """Both."""
        return self.direction_right and self.extraction_right


def si_snr(estimate: np.ndarray, target: np.ndarray) -> float:
    """Scale-invariant signal-to-noise ratio in dB, zero mean, of (2, n): mean over the ears."""
    estimate = estimate.astype(np.float64)
    target = target.astype(np.float64)
    estimate = estimate - estimate.mean(-1, keepdims=True)
    target = target - target.mean(-1, keepdims=True)
    scale = (estimate * target).sum(-1, keepdims=True) / np.maximum(
        (target * target).sum(-1, keepdims=True), 1e-20)
    wanted = ((scale * target) ** 2).sum(-1)
    noise = ((estimate - scale * target) ** 2).sum(-1)
    return float(np.mean(10 * np.log10((wanted + 1e-20) / (noise + 1e-20))))


def assemble(heard: Heard, scene: Scene) -> tuple[int, np.ndarray]:
    """The extracted audio of a query: its first sample in the scene, and (2, n), 0 where none."""
    if not heard.blocks:
        return 0, np.zeros((2, 0), np.float32)
    first = min(start for start, _ in heard.blocks)
    last = max(start + audio.shape[1] for start, audio in heard.blocks)
    out = np.zeros((2, last - first), np.float32)
    for start, audio in heard.blocks:
        out[:, start - first:start - first + audio.shape[1]] = audio
    return first, out[:, :max(scene.mixture.shape[1] - first, 0)]


def is_judged(estimate: Estimate, query: Query, scene: Scene, hop: float) -> bool:
    """Whether a direction counts: the window holds the query's scene, the hop holds its sound."""
    if not query.at + WINDOW <= estimate.time <= query.until + 1e-6:
        return False
    stop = round(estimate.time * scene.sample_rate)
    newest = query.sound.track[:, max(stop - round(hop * scene.sample_rate), 0):stop]
    sounding = query.sound.track[:, query.sound.track.any(0)]
    return bool(np.square(newest).mean() > 10 ** (ACTIVE_DB / 10) * np.square(sounding).mean())


def circular_median(angles: Sequence[float]) -> float:
    """The angle among these with the least mean distance to all, degrees."""
    angles = np.asarray(angles)
    return float(angles[np.argmin(angular_error(angles[:, None], angles[None]).mean(0))])


def judge(heard: Heard, scene: Scene, hop: float) -> Verdict:
    """Compare what came back for a query with the truth, from when it was asked until the next."""
    query = heard.query
    judged = [e for e in heard.estimates if is_judged(e, query, scene, hop)]
    azimuth = error = within = confidence = float("nan")
    if judged:
        errors = angular_error(np.array([e.azimuth for e in judged]), query.sound.azimuth)
        azimuth = circular_median([e.azimuth for e in judged])
        error, within = float(np.median(errors)), float(np.mean(errors <= 10.0))
        confidence = float(np.mean([e.confidence for e in judged]))
    first, audio = assemble(heard, scene)
    start = max(first, round(query.at * scene.sample_rate))
    stop = min(first + audio.shape[1], round(query.until * scene.sample_rate))
    before = after = float("nan")
    if stop > start:
        truth = query.sound.track[:, start:stop]
        before = si_snr(scene.mixture[:, start:stop], truth)
        after = si_snr(audio[:, start - first:stop - first], truth)
    return Verdict(len(judged), azimuth, error, within, confidence, before, after,
                   max(stop - start, 0) / scene.sample_rate)
