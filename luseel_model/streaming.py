"""Extraction from an endless stream: chunks of any length in, gapless extracted audio out.

The stream is cut into hops. Each hop runs the model once, on the newest ``model.window`` seconds
(silence before the beginning), for all queries together. Successive windows overlap; their
extractions are joined by an equal-gain cross-fade, because they are estimates of the same sound
and therefore add up coherently. Sample counts are exact: every output block starts where the one
before ended, on the time line of the input.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Mapping, Sequence

import numpy as np
import soxr

from .errors import AudioError, ConfigError, LuseelError
from .inference import validate_query

# Louder than any scaling mistake (unscaled 32-bit integers reach 2e9): garbage, not sound.
SAMPLE_LIMIT = 4e9
MIN_RATE, MAX_RATE = 4000, 384000  # [Hz]


@dataclass(frozen=True)
class QueryEstimate:
    """What one hop says about one query.

    Attributes:
        key: the query's key, as given to `ExtractionStream.set_queries`.
        query: its words.
        first_sample: index of the first sample of `audio` on the time line of the input.
        audio: float32 (2, n), the extracted sound at the input's rate. n is one hop when the input
            has the model's rate, less (down to 0) at the start of a query; resampled streams give
            blocks of varying length. Blocks follow each other without gap or overlap, except after
            audio was dropped or the query failed; `first_sample` then tells.
        azimuth: degrees in [0, 360), counter-clockwise, 0 front, 90 left, from the whole window.
        likelihood: float32 (360,), bin i at i degrees, values in [0, 1].
        confidence: in [0, 1], that the sound is there.
    """

    key: str
    query: str
    first_sample: int
    audio: np.ndarray
    azimuth: float
    likelihood: np.ndarray
    confidence: float


@dataclass(frozen=True)
class StreamResult:
    """The outcome of one hop.

    Attributes:
        sample_rate: of the input and of the extracted audio, in Hz.
        hop_start, hop_end: the samples [hop_start, hop_end) that this hop added, on the time line
            of the input. The analysed window ends at `hop_end`.
        estimates: one `QueryEstimate` per query, in the order of the queries; empty without query.
        processing_time: seconds spent in `ExtractionStream.process`.
        restarts: how often the stream had started anew before this hop. The samples of different
            time lines may have the same numbers; this tells which is meant.
    """

    sample_rate: int
    hop_start: int
    hop_end: int
    estimates: tuple[QueryEstimate, ...]
    processing_time: float
    restarts: int


@dataclass
class StreamCounters:
    """What went wrong so far, in samples per channel of the input (never reset).

    Attributes:
        received: all samples pushed.
        dropped: never analysed as the newest hop, because the model was too slow.
        missing: skipped by `first_sample` (lost messages), replaced by silence where few.
        repeated: pushed twice (`first_sample` went back a little), ignored the second time.
        invalid: NaN, infinite or absurdly large, replaced by 0 (counted per ear).
        restarts: how often the time line was started anew.
    """

    received: int = 0
    dropped: int = 0
    missing: int = 0
    repeated: int = 0
    invalid: int = 0
    restarts: int = 0


@dataclass
class _Join:
    """Where the output of one query stands. Positions are in samples at the model's rate."""

    epoch: int
    position: int  # the next block starts here
    tail: np.ndarray  # (2, crossfade), the latest extraction from `position` on
    resampler: soxr.ResampleStream | None = None
    next_sample: int | None = None  # input time line; None until the first block


class _History:
    """The newest `capacity` samples of a stereo stream; before its beginning there is silence."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._data = np.zeros((2, 2 * capacity), np.float32)
        self._used = 0
        self.end = 0

    def append(self, samples: np.ndarray) -> None:
        self.end += samples.shape[1]
        samples = samples[:, -self._capacity:]
        count = samples.shape[1]
        if self._used + count > self._data.shape[1]:
            keep = min(self._used, self._capacity)
            self._data[:, :keep] = self._data[:, self._used - keep:self._used].copy()
            self._used = keep
        self._data[:, self._used:self._used + count] = samples
        self._used += count

    def read(self, start: int, stop: int) -> np.ndarray:
        """(2, stop - start); `stop` must lie in the stream, `start` may lie before it."""
        out = np.zeros((2, stop - start), np.float32)
        count = min(stop - start, stop, self._used - (self.end - stop))
        if count > 0:
            last = self._used - (self.end - stop)
            out[:, -count:] = self._data[:, last - count:last]
        return out


class ExtractionStream:
    """Runs a model over a stream of binaural audio, for one or several queries at a time.

    `push` takes audio as it arrives (from one thread), `process` runs the model (from another,
    usually a worker that sleeps in `wait`); `set_queries` may be called from anywhere, and none of
    them waits for the model but `process` itself.

    Latency: a sample waits at most `latency` = hop + crossfade + lookahead seconds, and at least
    crossfade + lookahead, until its extraction is ready; add the processing time and, where the
    input has another rate than the model, up to 0.2 s in the two resamplers.

    Args:
        model: an `Extractor` (anything with `sample_rate`, `window` and `infer_window`).
        sample_rate: of the input, in Hz, 4000 to 384000.
        hop: seconds between runs of the model.
        crossfade: seconds over which successive windows are blended; at most `hop`.
        lookahead: seconds at the end of each window that are kept back: the extraction is better
            when the model hears what follows.
        buffer_seconds: when more than this waits for the model, the oldest is dropped and the
            stream goes on at the newest hop; at least two hops.
        max_gap: a jump of `first_sample` of up to this many seconds forward is bridged with
            silence, and up to as much backward is ignored as repetition; beyond, the stream starts
            anew.

    Raises:
        ConfigError: the times contradict each other.
        AudioError: an impossible sample rate.
    """

    def __init__(self, model, sample_rate: int, hop: float = 0.5, crossfade: float = 0.1,
                 lookahead: float = 0.1, buffer_seconds: float = 4.0, max_gap: float = 1.0):
        if not MIN_RATE <= sample_rate <= MAX_RATE:
            raise AudioError(f"sample rate {sample_rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
        if not (hop > 0 and 0 <= crossfade <= hop and lookahead >= 0 and max_gap >= 0):
            raise ConfigError(f"hop {hop}, crossfade {crossfade}, lookahead {lookahead}: expected "
                              "hop > 0, 0 <= crossfade <= hop and lookahead >= 0")
        if hop + crossfade + lookahead > model.window + 1e-9:
            raise ConfigError(f"hop {hop} + crossfade {crossfade} + lookahead {lookahead} exceed "
                              f"the model's window of {model.window} s")
        if buffer_seconds < 2 * hop:
            raise ConfigError(f"buffer_seconds {buffer_seconds}: expected two hops of {hop} s")
        self.model = model
        self.sample_rate = int(sample_rate)
        rate = int(model.sample_rate)
        self._window = round(model.window * rate)
        self._hop = round(hop * rate)
        self._fade = round(crossfade * rate)
        self._hold = self._fade + round(lookahead * rate)
        self._buffer = round(buffer_seconds * rate)
        self._max_gap = round(max_gap * sample_rate)
        self._ratio = Fraction(self.sample_rate, rate)  # input samples per model sample
        ramp = (np.arange(self._fade) + 0.5) / max(self._fade, 1)
        self._fade_in = np.sin(0.5 * math.pi * ramp).astype(np.float32) ** 2

        self.counters = StreamCounters()
        self._ready = threading.Condition()  # guards all below but _joins
        self._queries: dict[str, str] = {}
        self._epoch = 0
        self._start_anew(0)
        self._next: int | None = None  # input index expected next; None before the first push
        self._running = threading.Lock()  # one process() at a time; guards _joins
        self._joins: dict[tuple[str, str], _Join] = {}

    @property
    def latency(self) -> float:
        """Longest wait of a sample for its extraction, in seconds, without processing time."""
        return (self._hop + self._hold) / self.model.sample_rate

    @property
    def delay(self) -> float:
        """By how many seconds the extracted audio ends before the newest hop does."""
        return self._hold / self.model.sample_rate

    @property
    def ready(self) -> bool:
        """Whether `process` has a hop to work on."""
        with self._ready:
            return self._has_hop()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until a hop is ready, for at most `timeout` seconds; tells whether one is."""
        with self._ready:
            return self._ready.wait_for(self._has_hop, timeout)

    def set_queries(self, queries: Mapping[str, str] | Sequence[str]) -> None:
        """Replace the queries, from the next hop on.

        Args:
            queries: words by key, or a sequence of words (each its own key). Empty: the stream
                goes on without running the model. A query that stays, with key and words, goes
                on without a seam; a new one fades in.

        Raises:
            QueryError: words that are empty, over-long or not a string; the queries stay as
                they were.
        """
        if not isinstance(queries, Mapping):
            queries = {query: query for query in queries}
        checked = {key: validate_query(query) for key, query in queries.items()}
        with self._ready:
            self._queries = checked

    def push(self, samples, first_sample: int | None = None) -> int:
        """Add audio to the stream.

        Args:
            samples: (2, n) [left, right], floats, any n. Values that are not finite become 0.
            first_sample: index of the first of them, counted by the source; None: they follow
                those before.

        Returns:
            the index of the first sample on the stream's time line (`first_sample` if given).

        Raises:
            AudioError: not (2, n).
        """
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 2 or samples.shape[0] != 2:
            raise AudioError(f"audio of shape {samples.shape}: expected (2, samples), both ears")
        bad = ~(np.abs(samples) <= SAMPLE_LIMIT)  # NaN compares false
        invalid = int(bad.sum())
        if invalid:
            samples = np.where(bad, np.float32(0), samples)
        with self._ready:
            self.counters.invalid += invalid
            self.counters.received += samples.shape[1]
            if self._next is None:
                self._start_anew(first_sample or 0)
            start = self._next if first_sample is None else int(first_sample)
            skipped = start - self._next
            if abs(skipped) > self._max_gap:
                self.counters.missing += max(skipped, 0)
                self.counters.restarts += 1
                self._start_anew(start)
            elif skipped > 0:
                self.counters.missing += skipped
                self._append(np.zeros((2, skipped), np.float32))
            elif skipped < 0:
                self.counters.repeated += min(-skipped, samples.shape[1])
                samples = samples[:, -skipped:]
            self._append(samples)
            if self._has_hop():
                self._ready.notify_all()
        return start

    def process(self) -> StreamResult | None:
        """Run the model on the next hop, if one is ready.

        Returns:
            its result, or None when not enough audio waits.

        Raises:
            LuseelError: the model gave values that are not finite. Whatever the model raises
                passes through. The hop is lost then, the stream can go on.
        """
        with self._running:
            with self._ready:
                if not self._has_hop():
                    return None
                begin = time.perf_counter()
                start, end = self._done, self._done + self._hop
                self._done = end
                epoch, origin, queries = self._epoch, self._origin, dict(self._queries)
                restarts = self.counters.restarts
                window = self._history.read(end - self._window, end) if queries else None
            estimates = ()
            self._joins = {key: join for key, join in self._joins.items()
                           if join.epoch == epoch and key in queries.items()}
            if queries:
                out = self.model.infer_window(window, list(queries.values()))
                if not (np.isfinite(out.audio).all() and np.isfinite(out.confidence).all()
                        and np.isfinite(out.likelihood).all()):
                    raise LuseelError("the model gave values that are not finite")
                estimates = tuple(
                    self._estimate(key, query, index, out, start, epoch, origin)
                    for index, (key, query) in enumerate(queries.items()))
            return StreamResult(
                self.sample_rate, origin + self._to_input(start), origin + self._to_input(end),
                estimates, time.perf_counter() - begin, restarts)

    # -- under _ready ------------------------------------------------------------------------

    def _has_hop(self) -> bool:
        return self._history.end - self._done >= self._hop

    def _start_anew(self, origin: int) -> None:
        """Forget all audio; the next sample is number `origin` of the input."""
        self._epoch += 1
        self._origin = self._next = int(origin)
        self._done = 0  # hops before this position are done
        self._history = _History(self._window + self._buffer + self._hop)
        self._resampler = None
        if self._ratio != 1:
            self._resampler = soxr.ResampleStream(
                self.sample_rate, self.model.sample_rate, 2, dtype="float32", quality="HQ")

    def _append(self, samples: np.ndarray) -> None:
        self._next += samples.shape[1]
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(np.ascontiguousarray(samples.T)).T
        self._history.append(samples)
        waiting = self._history.end - self._done
        if waiting > self._buffer:
            newest = self._done + (waiting // self._hop - 1) * self._hop
            self.counters.dropped += self._to_input(newest) - self._to_input(self._done)
            self._done = newest

    # -- under _running ----------------------------------------------------------------------

    def _to_input(self, position: int) -> int:
        return math.floor(position * self._ratio)

    def _estimate(self, key, query, index, out, start, epoch, origin) -> QueryEstimate:
        join = self._joins.get((key, query))
        if join is None or join.position != start - self._hold:  # new, or a hop was left out
            join = _Join(epoch, start - self._hold, np.zeros((2, self._fade), np.float32))
            self._joins[key, query] = join
        audio = np.asarray(out.audio[index], np.float32)
        stop = audio.shape[-1] - self._hold
        block = audio[:, stop - self._hop:stop].copy()
        block[:, :self._fade] = (
            block[:, :self._fade] * self._fade_in + join.tail * self._fade_in[::-1])
        join.tail = audio[:, stop:stop + self._fade].copy()
        position, join.position = join.position, join.position + self._hop
        if position < 0:  # before the beginning of the stream
            block, position = block[:, -position:], 0
        first, block = self._at_input_rate(join, position, block, origin)
        return QueryEstimate(
            key, query, first, block, float(out.azimuth[index]),
            np.asarray(out.likelihood[index], np.float32), float(out.confidence[index]))

    def _at_input_rate(self, join, position, block, origin) -> tuple[int, np.ndarray]:
        if join.next_sample is None:
            # A resampler starts where the two grids meet, so that its output is on the input's.
            lead = position % self._ratio.denominator
            join.next_sample = origin + self._to_input(position - lead)
            if self._ratio != 1:
                join.resampler = soxr.ResampleStream(
                    self.model.sample_rate, self.sample_rate, 2, dtype="float32", quality="HQ")
                block = np.concatenate([np.zeros((2, lead), np.float32), block], 1)
        if join.resampler is not None:
            block = join.resampler.resample_chunk(np.ascontiguousarray(block.T)).T
        first = join.next_sample
        join.next_sample += block.shape[1]
        return first, np.ascontiguousarray(block, np.float32)
