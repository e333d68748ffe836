"""Extraction from an endless stream: chunks of any length in, gapless extracted audio out.

The stream is cut into hops. Each hop runs the model once, on the newest ``model.window`` seconds
(silence before the beginning), for all queries together. Successive windows overlap; their
extractions are joined by an equal-gain cross-fade, because they are estimates of the same sound
and therefore add up coherently. Sample counts are exact: every output block starts where the one
before ended, on the time line of the input. A `Profile` says how often the model runs and how much
of the end of each window is held back; docs/streaming.md has what was measured.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Mapping, Sequence

import numpy as np
import soxr
import torch

from .errors import AudioError, ConfigError, LuseelError
from .query import Query, as_query

# Louder than any scaling mistake (unscaled 32-bit integers reach 2e9): garbage, not sound.
SAMPLE_LIMIT = 4e9
MIN_RATE, MAX_RATE = 4000, 384000  # [Hz]
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Profile:
    """What is traded between latency, quality and computing time.

    The length of the model's window comes from its training and is the same in all profiles; what
    differs is how often a window is analysed and how much of its end is kept back.

    Attributes:
        hop: seconds between runs of the model.
        crossfade: seconds over which successive windows are blended; at most `hop`.
        lookahead: seconds at the end of each window that are kept back: what the model hears after
            a sound improves its extraction.
        precision: "float32", "bfloat16" (autocast), or "auto": bfloat16 where the processor
            is faster in it.
    """

    hop: float
    crossfade: float
    lookahead: float
    precision: str = "auto"

    @property
    def latency(self) -> float:
        """Longest wait of a sample for its extraction, in seconds, without processing time."""
        return self.hop + self.crossfade + self.lookahead


PROFILES: dict[str, Profile] = {
    "low_latency": Profile(hop=0.25, crossfade=0.05, lookahead=0.05),
    "balanced": Profile(hop=0.5, crossfade=0.1, lookahead=0.1),
    "accurate": Profile(hop=0.5, crossfade=0.25, lookahead=0.25, precision="float32"),
}


def find_profile(profile: str | Profile) -> Profile:
    """A profile by its name; a `Profile` is given back as it is.

    Raises:
        ConfigError: no profile has this name.
    """
    if isinstance(profile, Profile):
        return profile
    if not isinstance(profile, str) or profile not in PROFILES:
        raise ConfigError(f"no profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[profile]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the CPU or on a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in words or "can't allocate memory" in words)


@functools.lru_cache(maxsize=8)
def fast_precision(device: str) -> str:
    """"bfloat16" where a processor ("cpu", "cuda") is faster in it, else "float32".

    A CPU that has the instructions is tried, once in a process, some tenths of a second long: one
    with fast matrix units saves a third, another loses as much on the conversions. bfloat16 has to
    be faster by a tenth, so that chance doesn't decide.
    """
    fast = False
    if device == "cuda":
        fast = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    elif device == "cpu":
        # emulated, as on processors without these instructions, bfloat16 is slower than float32
        with contextlib.suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            words = {word for line in lines if line.startswith(("flags", "Features"))
                     for word in line.split()}
            fast = bool(words & {"avx512_bf16", "amx_bf16", "bf16"}) and (
                _seconds("bfloat16") < 0.9 * _seconds("float32"))
    return "bfloat16" if fast else "float32"


def _seconds(precision: str) -> float:
    """How long a CPU takes for what the models are made of, a convolution and a transformer layer:
    the shortest of five."""
    with torch.random.fork_rng(devices=[]):  # first weights are random numbers
        convolution = torch.nn.Conv2d(64, 64, 3, padding=1)
        layer = torch.nn.TransformerEncoderLayer(192, 4, 384, batch_first=True).eval()
    image, tokens = torch.zeros(1, 64, 64, 63), torch.zeros(1, 252, 192)
    shortest = math.inf
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
        for _ in range(5):
            start = time.perf_counter()
            layer(tokens), torch.relu(convolution(image))
            shortest = min(shortest, time.perf_counter() - start)
    return shortest


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """What a `Profile`'s precision comes to on that device."""
    return fast_precision(torch.device(device).type) if precision == "auto" else precision


def autocast(precision: str, device: torch.device | str):
    """The context in which a model on `device` computes in that precision (see `Profile`)."""
    if resolve_precision(precision, device) == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


@functools.lru_cache(maxsize=32)
def resampling_delay(source: int, target: int) -> float:
    """By how many seconds a streaming resampler's output lags at most, found by trying."""
    if source == target:
        return 0.0
    resampler = _resampler(source, target)
    step, given, got, worst = max(1, source // 100), 0, 0, 0.0
    silence = np.zeros((step, 2), np.float32)
    for _ in range(200):  # two seconds
        given, got = given + step, got + len(resampler.resample_chunk(silence))
        worst = max(worst, given / source - got / target)
    return worst


def _resampler(source: int, target: int, channels: int = 2) -> soxr.ResampleStream:
    return soxr.ResampleStream(source, target, channels, dtype="float32", quality="HQ")


@dataclass(frozen=True)
class QueryEstimate:
    """What one hop says about one query.

    Attributes:
        key: the query's key, as given to `ExtractionStream.set_queries`.
        query: its words, or what it is called.
        first_sample: index of the first sample of `audio` on the time line of the input.
        audio: float32 (2, n), the extracted sound at the input's rate. n is one hop when the input
            has the model's rate, less (down to 0) at the start of a query or when the profile
            changes; resampled streams give blocks of varying length. Blocks follow each other
            without gap or overlap, except where more was lost than the window reaches back;
            `first_sample` then tells. Always empty from a model that extracts nothing.
        azimuth: degrees in [0, 360), counter-clockwise, 0 front, 90 left, from the whole window;
            NaN from a model without localization.
        likelihood: float32 (360,), bin i at i degrees, values in [0, 1]; 0 without localization.
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
        model_time: seconds of `processing_time` spent in the model.
    """

    sample_rate: int
    hop_start: int
    hop_end: int
    estimates: tuple[QueryEstimate, ...]
    processing_time: float
    restarts: int
    model_time: float = 0.0


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
        failed: hops for which the model raised or gave values that are not finite.
        halvings: how often the queries were split into smaller groups because memory ran out.
    """

    received: int = 0
    dropped: int = 0
    missing: int = 0
    repeated: int = 0
    invalid: int = 0
    restarts: int = 0
    failed: int = 0
    halvings: int = 0


@dataclass(frozen=True)
class _Times:
    """A profile in samples at the model's rate."""

    hop: int
    fade: int
    hold: int  # fade and look-ahead
    precision: str


@dataclass
class _Join:
    """Where the output of one query stands. Positions are in samples at the model's rate."""

    epoch: int
    position: int  # the next block starts here
    tail: np.ndarray  # (2, crossfade of its time), the latest extraction from `position` on
    resampler: soxr.ResampleStream | None = None
    next_sample: int | None = None  # input time line; None until the first block


class _History:
    """The newest `capacity` samples of a stream; before its beginning there is silence."""

    def __init__(self, channels: int, capacity: int):
        self._capacity = capacity
        self._data = np.zeros((channels, 2 * capacity), np.float32)
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
        """(channels, stop - start); `stop` must lie in the stream, `start` may lie before it."""
        out = np.zeros((len(self._data), stop - start), np.float32)
        count = min(stop - start, stop, self._used - (self.end - stop))
        if count > 0:
            last = self._used - (self.end - stop)
            out[:, -count:] = self._data[:, last - count:last]
        return out


class ExtractionStream:
    """Runs a model over a stream of audio, for one or several queries at a time.

    `push` takes audio as it arrives (from one thread), `process` runs the model (from another,
    usually a worker that sleeps in `wait`); `set_queries` may be called from anywhere, and none of
    them waits for the model but `process` itself.

    Latency: a sample waits at most `latency` seconds until its extraction is ready, and at least
    crossfade + lookahead; add the processing time. Memory: audio and queries of the past are
    forgotten; what waits for the model is bounded by `buffer_seconds`, for any number of queries.

    Args:
        model: an `Extractor` (anything with `sample_rate`, `window` and `infer_window`).
        sample_rate: of the input, in Hz, 4000 to 384000.
        profile: a name in `PROFILES`, or a `Profile`.
        hop, crossfade, lookahead, precision: in place of the profile's. The crossfade and the
            look-ahead of a profile are shortened where they don't fit `hop` and the window.
        buffer_seconds: when more than this waits for the model, the oldest is dropped and the
            stream goes on at the newest hop; at least two hops.
        max_gap: a jump of `first_sample` of up to this many seconds forward is bridged with
            silence, and up to as much backward is ignored as repetition; beyond, the stream starts
            anew.
        max_queries_at_once: more queries than this are given to the model in groups one after the
            other, which takes less memory and more time; None: all together.

    Raises:
        ConfigError: the times contradict each other, or there is no such profile or precision.
        AudioError: an impossible sample rate.
    """

    def __init__(self, model, sample_rate: int, profile: str | Profile = "balanced", *,
                 hop: float | None = None, crossfade: float | None = None,
                 lookahead: float | None = None, precision: str | None = None,
                 buffer_seconds: float = 4.0, max_gap: float = 1.0,
                 max_queries_at_once: int | None = None):
        if not MIN_RATE <= sample_rate <= MAX_RATE:
            raise AudioError(f"sample rate {sample_rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
        if not max_gap >= 0:
            raise ConfigError(f"max_gap {max_gap}: expected 0 or more seconds")
        self.model = model
        self.sample_rate = int(sample_rate)
        self.microphones = int(getattr(model, "microphones", 2))
        rate = int(model.sample_rate)
        self._window = round(model.window * rate)
        self._buffer_seconds = buffer_seconds
        self._profile = self._fitting(profile, hop, crossfade, lookahead, precision)
        self._times = self._in_samples(self._profile)
        self._buffer = round(buffer_seconds * rate)
        self._max_gap = round(max_gap * sample_rate)
        self._ratio = Fraction(self.sample_rate, rate)  # input samples per model sample
        self.max_queries_at_once = max_queries_at_once

        self.counters = StreamCounters()
        self._ready = threading.Condition()  # guards all below but _joins
        self._queries: dict[str, str | Query] = {}
        self._epoch = 0
        self._start_anew(0)
        self._next: int | None = None  # input index expected next; None before the first push
        self._running = threading.Lock()  # one process() at a time; guards _joins
        self._joins: dict[tuple[str, str], _Join] = {}  # by key and words

    # -- profile -----------------------------------------------------------------------------

    @property
    def profile(self) -> Profile:
        """The times and the precision in use."""
        return self._profile

    def set_profile(self, profile: str | Profile, *, hop: float | None = None,
                    crossfade: float | None = None, lookahead: float | None = None,
                    precision: str | None = None) -> None:
        """Change the profile from the next hop on, without a gap in the extracted audio.

        Args: as for the stream itself.

        Raises:
            ConfigError: as for the stream itself; the profile stays as it was.
        """
        fitting = self._fitting(profile, hop, crossfade, lookahead, precision)
        with self._ready:
            self._profile, self._times = fitting, self._in_samples(fitting)
            if self._has_hop():
                self._ready.notify_all()

    def _fitting(self, profile, hop, crossfade, lookahead, precision) -> Profile:
        wanted, window = find_profile(profile), self.model.window
        given = {"hop": hop, "crossfade": crossfade, "lookahead": lookahead,
                 "precision": precision}
        wanted = replace(wanted, **{k: v for k, v in given.items() if v is not None})
        hop = wanted.hop
        if crossfade is None:
            room = window - hop - (lookahead or 0.0)
            wanted = replace(wanted, crossfade=max(0.0, min(wanted.crossfade, hop, room)))
        if lookahead is None:
            room = window - hop - wanted.crossfade
            wanted = replace(wanted, lookahead=max(0.0, min(wanted.lookahead, room)))
        crossfade, lookahead = wanted.crossfade, wanted.lookahead
        if not (hop > 0 and 0 <= crossfade <= hop and lookahead >= 0):
            raise ConfigError(f"hop {hop}, crossfade {crossfade}, lookahead {lookahead}: expected "
                              "hop > 0, 0 <= crossfade <= hop and lookahead >= 0")
        if wanted.latency > window + 1e-9:
            raise ConfigError(f"hop {hop} + crossfade {crossfade} + lookahead {lookahead} exceed "
                              f"the model's window of {window} s")
        if not self._buffer_seconds >= 2 * hop:
            raise ConfigError(f"buffer_seconds {self._buffer_seconds}: expected two hops of "
                              f"{hop} s")
        if wanted.precision not in PRECISIONS:
            raise ConfigError(f"precision {wanted.precision!r}: expected one of "
                              f"{', '.join(PRECISIONS)}")
        return wanted

    def _in_samples(self, profile: Profile) -> _Times:
        rate = int(self.model.sample_rate)
        hop, fade = round(profile.hop * rate), round(profile.crossfade * rate)
        hold = min(fade + round(profile.lookahead * rate), self._window - hop)  # rounded times
        return _Times(hop, fade, hold, profile.precision)

    @property
    def precision(self) -> str:
        """In what the model computes on its device: "float32" or "bfloat16"."""
        return resolve_precision(self._profile.precision, getattr(self.model, "device", "cpu"))

    @property
    def lookahead(self) -> float:
        """Seconds that the model hears beyond any sound that is given out, at least."""
        return (self._times.hold - self._times.fade) / self.model.sample_rate

    @property
    def latency(self) -> float:
        """Longest wait of a sample for its extraction, in seconds, without processing time."""
        times, rate = self._times, int(self.model.sample_rate)
        return (times.hop + times.hold) / rate + resampling_delay(
            self.sample_rate, rate) + resampling_delay(rate, self.sample_rate)

    @property
    def delay(self) -> float:
        """By how many seconds the extracted audio ends before the newest hop does (more where it
        is resampled, see `resampling_delay`)."""
        return self._times.hold / self.model.sample_rate

    @property
    def max_queries_at_once(self) -> int | None:
        """Largest group of queries given to the model; None: all. May be set at any time, and is
        halved when memory runs out."""
        return self._at_once

    @max_queries_at_once.setter
    def max_queries_at_once(self, count: int | None) -> None:
        if count is not None and count < 1:
            raise ConfigError(f"max_queries_at_once {count}: expected 1 or more, or None")
        self._at_once = count

    # -- use ---------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether `process` has a hop to work on."""
        with self._ready:
            return self._has_hop()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until a hop is ready, for at most `timeout` seconds; tells whether one is."""
        with self._ready:
            return self._ready.wait_for(self._has_hop, timeout)

    def set_queries(self, queries: Mapping[str, str | Query] | Sequence[str]) -> None:
        """Replace the queries, from the next hop on.

        Args:
            queries: words, or `Query`s, by key, or a sequence of words (each its own key). Empty:
                the stream goes on without running the model. A query that stays, with key and
                words, goes on without a seam; a new one fades in.

        Raises:
            QueryError: words that are empty, over-long or not a string, or what the model can't
                use; the queries stay as they were.
        """
        if not isinstance(queries, Mapping):
            queries = {query: query for query in queries}
        checked = {key: self._checked(query) for key, query in queries.items()}
        with self._ready:
            self._queries = checked

    def _checked(self, query: str | Query) -> str | Query:
        found = as_query(query)
        if check := getattr(self.model, "check_query", None):
            check(found)
        # a Query stays the object that it is: it tells whether the query stayed
        return query if isinstance(query, Query) else found.text

    def push(self, samples, first_sample: int | None = None) -> int:
        """Add audio to the stream.

        Args:
            samples: (2, n) [left, right], or one row per microphone, floats, any n. Values that are not finite become 0.
            first_sample: index of the first of them, counted by the source; None: they follow
                those before.

        Returns:
            the index of the first sample on the stream's time line (`first_sample` if given).

        Raises:
            AudioError: not as many rows as the model takes microphones.
        """
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 2 or samples.shape[0] != self.microphones:
            raise AudioError(f"audio of shape {samples.shape}: expected ({self.microphones}, "
                             f"samples){', both ears' * (self.microphones == 2)}")
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
                self._append(np.zeros((self.microphones, skipped), np.float32))
            elif skipped < 0:
                self.counters.repeated += min(-skipped, samples.shape[1])
                samples = samples[:, -skipped:]
            self._append(samples)
            if self._has_hop():
                self._ready.notify_all()
        return start

    def process(self) -> StreamResult | None:
        """Run the model on the next hop, if one is ready.

        When memory runs out, the queries are given to the model in groups of half the size, from
        now on, and the hop is tried again.

        Returns:
            its result, or None when not enough audio waits.

        Raises:
            LuseelError: the model gave values that are not finite. Whatever the model raises
                passes through. The stream can go on; the next hop's audio begins where the last
                one's ended as far as the window reaches back.
        """
        with self._running:
            with self._ready:
                if not self._has_hop():
                    return None
                begin = time.perf_counter()
                times = self._times
                start, end = self._done, self._done + times.hop
                self._done = end
                epoch, origin, queries = self._epoch, self._origin, dict(self._queries)
                restarts = self.counters.restarts
                window = self._history.read(end - self._window, end) if queries else None
            estimates, model_time = (), 0.0
            self._joins = {key: join for key, join in self._joins.items()
                           if join.epoch == epoch and key in
                           {(name, _words(query)) for name, query in queries.items()}}
            if queries:
                asked = time.perf_counter()
                try:
                    out = self._infer(window, list(queries.values()), times.precision)
                    model_time = time.perf_counter() - asked
                    if not ((out.audio is None or np.isfinite(out.audio).all()) and np.isfinite(out.confidence).all()
                            and np.isfinite(out.likelihood).all()):
                        raise LuseelError("the model gave values that are not finite")
                except Exception:
                    self.counters.failed += 1
                    raise
                estimates = tuple(
                    self._estimate(key, query, index, out, times, start, epoch, origin)
                    for index, (key, query) in enumerate(queries.items()))
            return StreamResult(
                self.sample_rate, origin + self._to_input(start), origin + self._to_input(end),
                estimates, time.perf_counter() - begin, restarts, model_time)

    def finish(self) -> list[StreamResult]:
        """Process all that waits and give out what is held back, as if silence followed.

        The blocks of each query then end exactly with the input. What is pushed afterwards starts
        anew. Call it from the thread that calls `process`.

        Returns:
            the remaining hops.

        Raises:
            as `process`; what was left is lost then.
        """
        with self._ready:
            if self._next is None:
                return []
            last, times = self._next, self._times
            if self._resampler is not None:
                rest = self._resampler.resample_chunk(
                    np.zeros((0, self.microphones), np.float32), last=True)
                self._history.append(np.ascontiguousarray(rest.T))
            self._history.append(np.zeros((self.microphones, times.hop + times.hold), np.float32))
        results: list[StreamResult] = []
        try:
            while (result := self.process()) is not None:
                results.append(result)
            flushed = self._flush(results[-1] if results else None)
        finally:
            with self._ready:
                self._start_anew(last)
                self._next = None
        if flushed is not None:
            results[-1] = flushed
        return [_until(result, last) for result in results if result.hop_start < last or
                any(e.first_sample < last and e.audio.shape[1] for e in result.estimates)]

    # -- under _ready ------------------------------------------------------------------------

    def _has_hop(self) -> bool:
        return self._history.end - self._done >= self._times.hop

    def _start_anew(self, origin: int) -> None:
        """Forget all audio; the next sample is number `origin` of the input."""
        self._epoch += 1
        self._origin = self._next = int(origin)
        self._done = 0  # hops before this position are done
        # the last window reaches back from what waits; finish() adds up to another of silence
        self._history = _History(self.microphones, 2 * (self._window + self._buffer))
        self._resampler = None
        if self._ratio != 1:
            self._resampler = _resampler(
                self.sample_rate, self.model.sample_rate, self.microphones)

    def _append(self, samples: np.ndarray) -> None:
        self._next += samples.shape[1]
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(np.ascontiguousarray(samples.T)).T
        self._history.append(samples)
        waiting = self._history.end - self._done
        if waiting > self._buffer:
            hop = self._times.hop
            newest = self._done + (waiting // hop - 1) * hop
            self.counters.dropped += self._to_input(newest) - self._to_input(self._done)
            self._done = newest

    # -- under _running ----------------------------------------------------------------------

    def _to_input(self, position: int) -> int:
        return math.floor(position * self._ratio)

    def _infer(self, window: np.ndarray, queries: list[str | Query], precision: str) -> SimpleNamespace:
        """What the model says, in as many runs as memory asks for."""
        while True:
            group = min(self.max_queries_at_once or len(queries), len(queries))
            try:
                with autocast(precision, getattr(self.model, "device", "cpu")):
                    parts = [self.model.infer_window(window, queries[first:first + group])
                             for first in range(0, len(queries), group)]
                return SimpleNamespace(**{
                    name: None if getattr(parts[0], name) is None else
                    np.concatenate([np.asarray(getattr(part, name)) for part in parts])
                    for name in ("audio", "azimuth", "likelihood", "confidence")})
            except Exception as error:
                if group == 1 or not is_out_of_memory(error):
                    raise
            # out of the handler: the error's traceback held on to the tensors of that run
            self.max_queries_at_once = group // 2
            self.counters.halvings += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _estimate(self, key, query, index, out, times, start, epoch, origin) -> QueryEstimate:
        words = _words(query)
        said = (float(out.azimuth[index]), np.asarray(out.likelihood[index], np.float32),
                float(out.confidence[index]))
        if out.audio is None:
            nothing = np.zeros((2, 0), np.float32)
            return QueryEstimate(key, words, origin + self._to_input(start), nothing, *said)
        end = start + times.hop
        begin, stop = end - self._window, end - times.hold  # of the window, of what is given out
        join = self._joins.get((key, words))
        if join is None or join.position < begin:  # new, or too much was left out
            join = _Join(epoch, start - times.hold, np.zeros((2, times.fade), np.float32))
            self._joins[key, words] = join
        position, fade = join.position, join.tail.shape[1]
        if stop - position >= fade:
            audio = np.asarray(out.audio[index], np.float32)
            block = audio[:, position - begin:stop - begin].copy()
            rising = _ramp(fade)
            block[:, :fade] = block[:, :fade] * rising + join.tail * rising[::-1]
            join.tail = audio[:, stop - begin:stop - begin + times.fade].copy()
            join.position = stop
        else:  # a new profile holds back more than the old one: wait
            block = np.zeros((2, 0), np.float32)
        if position < 0:  # before the beginning of the stream
            block, position = block[:, -position:], 0
        first, block = self._at_input_rate(join, position, block, origin)
        return QueryEstimate(key, words, first, block, *said)

    def _flush(self, result: StreamResult | None) -> StreamResult | None:
        """The result with what is left in the output resamplers."""
        if result is None or self._ratio == 1:
            return None
        estimates, joins = [], {key: join for (key, _), join in self._joins.items()}
        for estimate in result.estimates:
            join = joins.get(estimate.key)
            if join is None:  # no sound from this model
                estimates.append(estimate)
                continue
            rest = join.resampler.resample_chunk(np.zeros((0, 2), np.float32), last=True)
            estimates.append(replace(
                estimate, audio=np.concatenate([estimate.audio, rest.T.astype(np.float32)], 1)))
        return replace(result, estimates=tuple(estimates))

    def _at_input_rate(self, join, position, block, origin) -> tuple[int, np.ndarray]:
        if join.next_sample is None:
            # A resampler starts where the two grids meet, so that its output is on the input's.
            lead = position % self._ratio.denominator
            join.next_sample = origin + self._to_input(position - lead)
            if self._ratio != 1:
                join.resampler = _resampler(self.model.sample_rate, self.sample_rate)
                block = np.concatenate([np.zeros((2, lead), np.float32), block], 1)
        if join.resampler is not None:
            block = join.resampler.resample_chunk(np.ascontiguousarray(block.T)).T
        first = join.next_sample
        join.next_sample += block.shape[1]
        return first, np.ascontiguousarray(block, np.float32)


def _words(query: str | Query) -> str:
    """What tells that a query stayed: the next picture of a camera only fades over."""
    return query.words if isinstance(query, Query) else query


@functools.lru_cache(maxsize=8)
def _ramp(samples: int) -> np.ndarray:
    """Equal-gain weights (samples,) that rise from 0 to 1: with their reverse they add up to 1."""
    ramp = (np.arange(samples) + 0.5) / max(samples, 1)
    return np.sin(0.5 * math.pi * ramp).astype(np.float32) ** 2


def _until(result: StreamResult, last: int) -> StreamResult:
    """The result without what lies at or after sample `last` of the input."""
    return replace(
        result, hop_start=min(result.hop_start, last), hop_end=min(result.hop_end, last),
        estimates=tuple(replace(e, audio=e.audio[:, :max(0, last - e.first_sample)])
                        for e in result.estimates))
