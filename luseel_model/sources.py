"""Where live audio comes from: microphones (PortAudio) and files, with their capture times.

Nothing here knows of ROS: times are nanoseconds of whatever clock the caller reads them from.
"""

from __future__ import annotations

import collections
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Protocol, Sequence

import numpy as np

from .errors import AudioError
from .streaming import MAX_RATE, MIN_RATE

FLOOR_DB = -120.0  # what `level_db` says of silence
BANDWIDTH = 0.05  # [Hz] of the filter of capture times: slow clock drifts pass, jitter doesn't
MAX_DRIFT = 1e-3  # of the sound card's rate from its nominal one; cheap ones stay below 2e-4
MAX_ERROR = 0.05  # [s] a time this far from the expected one isn't jitter any more ...
PATIENCE = 4  # ... if so many blocks in a row agree
MAX_BLOCKS = 10000  # in the queue, whatever `buffer_seconds` says


@dataclass(frozen=True)
class Block:
    """A piece of live audio.

    Attributes:
        samples: float32 (2, n), [left, right], full scale is -1 to 1.
        sample_rate: in Hz.
        first_sample: index of the first of them, counted from the start; a jump means lost audio.
        time_ns: capture time of the first of them, in nanoseconds of the caller's clock.
    """

    samples: np.ndarray
    sample_rate: int
    first_sample: int
    time_ns: int


class Source(Protocol):
    """What `Microphone` and `FileSource` have in common."""

    sample_rate: int
    name: str
    live: bool  # whether the audio exists whether or not somebody reads it

    def read(self, timeout: float = 0.2) -> Block | None:
        """The next block, or None when none came within `timeout` seconds or at the end."""

    @property
    def ended(self) -> bool:
        """Whether no block will come any more."""

    def close(self) -> None:
        """Give the device or file back; any number of times."""


def level_db(samples: np.ndarray) -> np.ndarray:
    """RMS level of each channel in dB of full scale: (channels, n) -> (channels,), at least -120.

    What isn't finite counts as silence.
    """
    samples = np.asarray(samples, np.float64)
    if not samples.shape[-1]:
        return np.full(samples.shape[:-1], FLOOR_DB)
    with np.errstate(invalid="ignore", over="ignore"):
        power = np.mean(np.where(np.isfinite(samples), samples, 0.0) ** 2, axis=-1)
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))


def _two_channels(channels: Sequence[int], available: int, what: str) -> list[int]:
    """The columns of the left and the right ear."""
    columns = [int(channel) for channel in channels]
    if len(columns) != 2 or min(columns) < 0:
        raise AudioError(f"channels {list(channels)}: give two numbers, left and right ear, the "
                         "first channel being 0")
    if max(columns) >= available:
        raise AudioError(
            f"{what} has {available} channel(s), but channel {max(columns)} was asked for (the "
            "first is 0): binaural audio needs two, one for each ear")
    return columns


# -- time of capture -----------------------------------------------------------------------------


class CaptureClock:
    """When samples were captured, from jittering measurements of when blocks were.

    A delay-locked loop of second order: it follows the time and the true rate of the sound card
    (F. Adriaensen, "Using a DLL to filter time", 2005). Times are seconds of one steady clock.

    Args:
        sample_rate: nominal, in Hz.
        bandwidth: in Hz; the smaller, the smoother.
    """

    def __init__(self, sample_rate: float, bandwidth: float = BANDWIDTH):
        self._rate, self._bandwidth = float(sample_rate), bandwidth
        self._time: float | None = None  # of sample self._sample
        self._sample = 0
        self._period = 1.0 / self._rate  # seconds per sample, as it turned out
        self._count = 0

    @property
    def rate(self) -> float:
        """The true sample rate in Hz, as far as known."""
        return 1.0 / self._period

    def expected(self, sample: int) -> float | None:
        """When a sample should be captured, from all before; None before the first `update`."""
        if self._time is None:
            return None
        return self._time + (sample - self._sample) * self._period

    def update(self, sample: int, measured: float) -> float:
        """Take a measurement: sample number `sample` was captured at `measured`.

        Returns:
            when it was captured, as filtered.
        """
        expected = self.expected(sample)
        if expected is None or sample <= self._sample:
            self._time, self._sample, self._count = measured, sample, 1
            return measured
        error, step = measured - expected, sample - self._sample
        omega = 2 * math.pi * self._bandwidth * step / self._rate
        self._count += 1
        # In the beginning a plain mean, which is much faster.
        self._time = expected + max(min(math.sqrt(2) * omega, 1.0), 1 / self._count) * error
        self._sample = sample
        drift = (self._period + min(omega * omega, 1.0) * error / step) * self._rate
        self._period = min(max(drift, 1 - MAX_DRIFT), 1 + MAX_DRIFT) / self._rate
        return self._time

    def restart(self) -> None:
        """Forget the time, keep the rate."""
        self._time = None


# -- microphones ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MicrophoneInfo:
    """An input device, as PortAudio lists it."""

    index: int
    name: str
    host: str
    channels: int
    sample_rate: float
    default: bool


@dataclass
class CaptureCounters:
    """What was lost, in samples per channel, and how often.

    Attributes:
        overruns: times that the system threw audio away before we got it.
        lost: samples that went with it, as the times of the blocks tell (a close estimate).
        dropped: samples that nobody fetched within `buffer_seconds` (exact).
    """

    overruns: int = 0
    lost: int = 0
    dropped: int = 0


def _sounddevice():
    try:
        import sounddevice
    except ImportError:
        raise AudioError("microphones need the package sounddevice: "
                         "pip install 'luseel[mic]', or pip install sounddevice") from None
    except OSError as error:  # the package is there, the library isn't
        raise AudioError(f"microphones need the PortAudio library ({error}): "
                         "sudo apt-get install libportaudio2") from None
    return sounddevice


def list_microphones() -> list[MicrophoneInfo]:
    """All devices with an input, in PortAudio's order.

    Raises:
        AudioError: sounddevice or PortAudio is missing or fails.
    """
    sounddevice = _sounddevice()
    try:
        devices, hosts = sounddevice.query_devices(), sounddevice.query_hostapis()
        default = sounddevice.default.device[0]
    except sounddevice.PortAudioError as error:
        raise AudioError(f"PortAudio can't list the devices: {error}") from None
    return [MicrophoneInfo(index, device["name"], hosts[device["hostapi"]]["name"],
                           device["max_input_channels"], device["default_samplerate"],
                           index == default)
            for index, device in enumerate(devices) if device["max_input_channels"] > 0]


def find_microphone(wanted: str | int | None, devices: Sequence[MicrophoneInfo]
                    ) -> MicrophoneInfo:
    """The device of that index, or whose name (or "name, host") has these words in it.

    Args:
        wanted: None or empty: the default one, or the first.

    Raises:
        AudioError: there is none, or several; the text lists them.
    """
    if not devices:
        raise AudioError("no microphone: PortAudio sees no device with an input. Is it plugged in, "
                         "and may this user (group audio), or this container, use it?")
    listed = "; ".join(f"{d.index}: {d.name}, {d.host} ({d.channels} channels)" for d in devices)
    if wanted is None or wanted == "":
        return next((d for d in devices if d.default), devices[0])
    if isinstance(wanted, int) or str(wanted).strip().isdigit():
        found = [d for d in devices if d.index == int(wanted)]
    else:
        words = str(wanted).casefold()
        found = [d for d in devices if words in f"{d.name}, {d.host}".casefold()]
        exact = [d for d in found if words in (d.name.casefold(), f"{d.name}, {d.host}".casefold())]
        found = exact or found
    if not found:
        raise AudioError(f"no input device {wanted!r}. There are {listed}")
    if len(found) > 1:
        raise AudioError(f"{len(found)} input devices fit {wanted!r}: give an index. "
                         f"There are {listed}")
    return found[0]


def _open_portaudio(**settings):
    """A sounddevice.InputStream; its errors in our words."""
    sounddevice = _sounddevice()
    try:
        return sounddevice.InputStream(**settings)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioError(f"can't open the microphone: {error}") from None


class Microphone:
    """A stereo microphone through PortAudio.

    The capture time of a block is PortAudio's inputBufferAdcTime, filtered with the sample count
    (`CaptureClock`) and shifted from the stream's clock to the caller's. Where the host API gives
    none, it is the time of the callback less the block and the stream's input latency.

    Args:
        device: index or part of a name; None: the default one.
        sample_rate: in Hz; None: the device's own.
        channels: which channels are [left, right], the first being 0.
        block_seconds: length of the blocks.
        buffer_seconds: how much may wait to be read; the oldest beyond that is dropped.
        now_ns: the caller's clock.
        open_stream: makes the stream, as ``sounddevice.InputStream`` does (for tests).
        devices: lists the devices, as `list_microphones` does (for tests).

    Attributes:
        name: of the device.
        sample_rate: in Hz.
        counters: what was lost.
        gone: whether the device ended the stream by itself (unplugged).

    Raises:
        AudioError: no such device, or it can't be opened like that.
    """

    live = True

    def __init__(self, device: str | int | None = None, sample_rate: int | None = None,
                 channels: Sequence[int] = (0, 1), block_seconds: float = 0.05,
                 buffer_seconds: float = 5.0, now_ns: Callable[[], int] = time.time_ns,
                 open_stream: Callable = _open_portaudio,
                 devices: Callable[[], Sequence[MicrophoneInfo]] = list_microphones):
        if not (0 < block_seconds <= 10 and buffer_seconds >= block_seconds):
            raise AudioError(f"block_seconds {block_seconds}, buffer_seconds {buffer_seconds}: "
                             "expected up to 10 s, and a buffer of a block at least")
        info = find_microphone(device, devices())
        self.name = f"{info.name}, {info.host}"
        self._columns = _two_channels(channels, info.channels, f"the device {self.name!r}")
        self.sample_rate = int(round(sample_rate or info.sample_rate))
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise AudioError(
                f"sample rate {self.sample_rate} Hz: expected {MIN_RATE} to {MAX_RATE}")
        self.counters = CaptureCounters()
        self._now_ns = now_ns
        self._clock = CaptureClock(self.sample_rate)
        self._position = 0  # first sample of the next block
        self._strange = 0  # blocks in a row whose time isn't as expected
        self._blocks: collections.deque[Block] = collections.deque()
        self._waiting = 0  # samples in _blocks
        self._limit = round(buffer_seconds * self.sample_rate)
        self._condition = threading.Condition()
        self._finished = self.gone = False
        self._stream = None
        self._stream = open_stream(
            device=info.index, samplerate=self.sample_rate, channels=max(self._columns) + 1,
            dtype="float32", blocksize=round(block_seconds * self.sample_rate),
            callback=self._on_block, finished_callback=self._on_finished)
        try:
            self._stream.start()
        except Exception as error:  # PortAudioError, which needn't be there to be named
            self._stream.close()
            raise AudioError(f"can't start the microphone {self.name!r}: {error}") from None

    @property
    def true_rate(self) -> float:
        """The sample rate that the device has by the clock of this machine, in Hz."""
        return self._clock.rate

    @property
    def ended(self) -> bool:
        """Whether the device has gone, or was closed, and all blocks were read."""
        with self._condition:
            return self._finished and not self._blocks

    def read(self, timeout: float = 0.2) -> Block | None:
        """The next block, or None when none came within `timeout` seconds or at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._blocks or self._finished, timeout)
            if not self._blocks:
                return None
            block = self._blocks.popleft()
            self._waiting -= block.samples.shape[1]
            return block

    def close(self) -> None:
        """Stop and give the device back; any number of times."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._on_finished()

    # -- in PortAudio's thread ---------------------------------------------------------------

    def _on_finished(self) -> None:
        with self._condition:
            self.gone |= self._stream is not None and not self._finished
            self._finished = True
            self._condition.notify_all()

    def _on_block(self, indata, frames: int, times, status) -> None:
        stream = self._stream
        if stream is None or not frames:
            return  # closing
        samples = np.ascontiguousarray(np.asarray(indata)[:, self._columns].T, np.float32)
        stream_time, now = self._both_clocks(stream)
        captured = float(times.inputBufferAdcTime)
        if not (0 < captured <= stream_time and stream_time - captured < 10):
            # some host APIs say 0, or the time of another clock
            captured = stream_time - frames / self.sample_rate - _latency(stream)
        overflow = bool(status and status.input_overflow)
        filtered = self._filter(captured, frames, overflow)
        block = Block(samples, self.sample_rate, self._position,
                      now + round(1e9 * (filtered - stream_time)))
        self._position += frames
        with self._condition:
            self._blocks.append(block)
            self._waiting += frames
            while self._waiting > self._limit or len(self._blocks) > MAX_BLOCKS:
                gone = self._blocks.popleft().samples.shape[1]
                self._waiting -= gone
                self.counters.dropped += gone
            self._condition.notify_all()

    def _both_clocks(self, stream) -> tuple[float, int]:
        """Time of the stream [s] and of the caller's clock [ns] at the same moment."""
        best = None
        for _ in range(3):  # another thread may come between: take the closest of three
            before = self._now_ns()
            stream_time = float(stream.time)
            after = self._now_ns()
            if best is None or after - before < best[0]:
                best = (after - before, stream_time, (before + after) // 2)
            if best[0] < 200_000:
                break
        return best[1], best[2]

    def _filter(self, captured: float, frames: int, overflow: bool) -> float:
        """Filtered capture time of the block; finds out how much was lost before it."""
        expected = self._clock.expected(self._position)
        if expected is None:
            return self._clock.update(self._position, captured)
        error = captured - expected
        lost = 0
        if overflow:
            self.counters.overruns += 1
            # less than a quarter of a block may as well be jitter
            if error > 0.25 * frames / self.sample_rate:
                lost = round(error * self.sample_rate)
        elif abs(error) > MAX_ERROR:
            self._strange += 1
            if self._strange < PATIENCE:
                return expected
            if error > 0:  # the host API lost audio and didn't say so
                self.counters.overruns += 1
                lost = round(error * self.sample_rate)
        self._strange = 0
        if lost or abs(error) > MAX_ERROR:
            self.counters.lost += lost
            self._position += lost
            self._clock.restart()
        return self._clock.update(self._position, captured)


def _latency(stream) -> float:
    latency = getattr(stream, "latency", 0.0)
    latency = latency[0] if isinstance(latency, (tuple, list)) else latency
    return float(latency or 0.0)


# -- files ---------------------------------------------------------------------------------------


class FileSource:
    """A stereo file, handed over as a microphone would: each block when its last sample is over.

    Args:
        path: WAV, FLAC, OGG, ...
        channels: which channels are [left, right], the first being 0.
        block_seconds: length of the blocks (the last may be shorter).
        speed: 1 is real time, 4 four times as fast, 0 as fast as it is read.
        loop: begin again at the end; the sample count goes on.
        start_ns: capture time of the first sample; None: `now_ns` at the first `read`.
        now_ns: the caller's clock.
        paced_by: clock that sets the pace, in seconds; None: the machine's own.

    Raises:
        AudioError: it can't be read, has less channels, or an impossible rate.
    """

    live = False

    def __init__(self, path: str | Path, channels: Sequence[int] = (0, 1),
                 block_seconds: float = 0.05, speed: float = 1.0, loop: bool = False,
                 start_ns: int | None = None, now_ns: Callable[[], int] = time.time_ns,
                 paced_by: Callable[[], float] | None = None):
        import soundfile

        if not (0 < block_seconds <= 10 and speed >= 0):
            raise AudioError(f"block_seconds {block_seconds}, speed {speed}: expected up to 10 s, "
                             "and a speed of 0 (as fast as possible) or more")
        self.name, self.speed, self.loop = str(path), speed, loop
        try:
            self._file = soundfile.SoundFile(str(path))
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(f"can't read {path}: {error}") from None
        try:
            self._columns = _two_channels(channels, self._file.channels, str(path))
            self.sample_rate = int(self._file.samplerate)
            if not MIN_RATE <= self.sample_rate <= MAX_RATE:
                raise AudioError(f"{path}: sample rate {self.sample_rate} Hz: expected {MIN_RATE} "
                                 f"to {MAX_RATE}")
            if not self._file.frames:
                raise AudioError(f"{path} holds no audio")
        except AudioError:
            self._file.close()
            raise
        self.counters = CaptureCounters()
        self._error = soundfile.LibsndfileError
        self._size = max(1, round(block_seconds * self.sample_rate))
        self._start_ns, self._now_ns = start_ns, now_ns
        self._own_clock = paced_by is None
        self._clock = paced_by or time.monotonic
        self._begin: float | None = None
        self._position = 0
        self._next: np.ndarray | None = None  # read, but not yet due
        self._ended = False

    @property
    def seconds(self) -> float:
        """Length of the file."""
        return self._file.frames / self.sample_rate

    @property
    def ended(self) -> bool:
        """Whether all was handed over."""
        return self._ended

    def read(self, timeout: float = 0.2) -> Block | None:
        """The next block, or None when none was due within `timeout` seconds or at the end."""
        if self._ended:
            return None
        if self._begin is None:
            self._begin = self._clock()
            if self._start_ns is None:
                self._start_ns = int(self._now_ns())
        if self._next is None:
            self._next = self._read_file()
            if self._next is None:
                self._ended = True
                return None
        if self.speed:
            due = self._begin + (
                self._position + self._next.shape[1]) / self.sample_rate / self.speed
            give_up = time.monotonic() + timeout
            while (rest := due - self._clock()) > 0:
                patience = give_up - time.monotonic()
                if patience <= 0:
                    return None
                # of another clock it isn't known how fast it goes
                time.sleep(min(patience, rest if self._own_clock else 0.005))
        samples, self._next = self._next, None
        block = Block(samples, self.sample_rate, self._position, self._start_ns + round(
            self._position * 1_000_000_000 / self.sample_rate))
        self._position += samples.shape[1]
        return block

    def close(self) -> None:
        """Close the file; any number of times."""
        self._ended = True
        self._file.close()

    def _read_file(self) -> np.ndarray | None:
        try:
            samples = self._file.read(self._size, dtype="float32", always_2d=True)
            if not len(samples) and self.loop:
                self._file.seek(0)
                samples = self._file.read(self._size, dtype="float32", always_2d=True)
        except self._error as error:
            raise AudioError(f"can't read on in {self.name}: {error}") from None
        if not len(samples):
            return None
        return np.ascontiguousarray(samples[:, self._columns].T)
