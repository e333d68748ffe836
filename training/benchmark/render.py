"""The audio of the benchmark, made from its catalogue by plain NumPy and SciPy.

It is kept apart from the training's simulation on purpose: that may grow, these mixtures stay.
Random noise comes from NumPy's legacy generator, whose stream is frozen (NEP 19).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal
import torch

from luseel_model.angles import angular_error
from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.benchmark.catalogue import Catalogue, Cell, find_recordings
from training.heads import Head
from training.noise import diffuse_filter
from training.pool import ClipPool
from training.rooms import RoomBank


def hash_of(responses: torch.Tensor) -> str:
    """Identity of responses, 12 hexadecimal digits."""
    return hashlib.sha256(responses.contiguous().numpy().tobytes()).hexdigest()[:12]


@dataclass
class BenchmarkMixture:
    """One mixture of S sounds, N samples at 16 kHz.

    Attributes:
        index: its number in the set.
        audio: (2, N) float32, the sum of `sources` and `noise`.
        sources: (S, 2, N) the sounds at the ears, with the room's reverberation.
        noise: (2, N), or None.
        azimuth: (S,) degrees in [0, 360).
        kind, recording, held_out: S labels, names and paraphrases.
        absent: a kind that is not in it.
        rt60: seconds, 0 without a room.
        noise_db: level of the sounds over the noise, NaN without noise.
    """

    index: int
    audio: np.ndarray
    sources: np.ndarray
    noise: np.ndarray | None
    azimuth: np.ndarray
    kind: list[str]
    recording: list[str]
    held_out: list[str]
    absent: str
    rt60: float
    noise_db: float


def looped(samples: np.ndarray, offset: int, gap: int, count: int, before: int = 0) -> np.ndarray:
    """A recording that repeats, with a pause in between.

    Args:
        samples: (n,) int16 or float.
        offset: position in the recording (or its pause) at the first returned sample but `before`.
        gap: samples of silence before it starts again.
        count: samples of the window.
        before: samples that are returned ahead of it.

    Returns:
        (before + count,) float64, int16 scaled to ±1.
    """
    scale = 32768.0 if samples.dtype == np.int16 else 1.0
    period = samples.size + gap
    position = (np.arange(-before, count) + offset) % period
    heard = position < samples.size
    return np.where(heard, samples[np.where(heard, position, 0)] / scale, 0.0)


def coloured_noise(head: Head, count: int, tilt: float, seed: int) -> np.ndarray:
    """Diffuse noise as a head hears it, (2, count) float64 of mean power 1.

    Args:
        tilt: slope of the power spectrum before the head, dB per octave, from 50 Hz on.
        seed: of the noise.
    """
    white = np.random.RandomState(seed).standard_normal((2, count))
    # Coherence and colour of the head vary slowly with frequency: 4096 bins are plenty.
    coarse = diffuse_filter(head, 8192).numpy()
    frequency = scipy.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    grid = scipy.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    spectrum = scipy.fft.rfft(white)
    colour = 10 ** (tilt * np.log2(np.maximum(frequency, 50.0) / 1000.0) / 20)
    colour = colour * np.minimum(frequency / 50.0, 1.0) ** 2  # no rumble below 50 Hz
    fine = {}
    for i, j in ((0, 0), (1, 0), (1, 1)):
        value = coarse[i, j].astype(np.complex128)
        fine[i, j] = np.interp(frequency, grid, value.real) \
            + 1j * np.interp(frequency, grid, value.imag)
    both = np.stack([fine[0, 0] * spectrum[0],
                     fine[1, 0] * spectrum[0] + fine[1, 1] * spectrum[1]])
    noise = scipy.fft.irfft(both * colour, count)
    return noise / np.sqrt(np.square(noise).mean())


def check_rooms(catalogue: Catalogue, bank: RoomBank) -> None:
    """Whether a bank holds the rooms that the catalogue speaks of.

    Raises:
        ConfigError: it doesn't; says what to do.
    """
    again = "build it again with `luseel-benchmark-set build --rebuild`"
    rooms, positions = bank.azimuth.shape
    if (rooms, positions) != (catalogue.rooms["rooms"], catalogue.rooms["positions"]):
        raise ConfigError(f"the bank of test rooms of {bank.head} has {rooms} rooms with "
                          f"{positions} positions, not those of {catalogue.identity}: {again}")
    for name, sets in catalogue.sounds.items():
        for scene, sounds in zip(catalogue.scenes[name], sets):
            for sound in sounds:
                found = float(bank.azimuth[scene.room, sound.position])
                if angular_error(found, sound.room_azimuth) > 0.02:
                    raise ConfigError(
                        f"room {scene.room}, position {sound.position} of {bank.head} lies at "
                        f"{found:.2f}°, in the catalogue at {sound.room_azimuth:.2f}°: the bank "
                        f"isn't that of {catalogue.identity}; {again}")


class Renderer:
    """Makes the mixtures of one cell.

    Args:
        catalogue: the version.
        cell: one of its cells.
        pool: packed recordings of the test split.
        head: the cell's head.
        rooms: bank of test rooms of that head, where the cell needs one.

    Attributes:
        missing: numbers of mixtures whose recordings aren't all there.

    Raises:
        ConfigError: the bank isn't the catalogue's.
    """

    def __init__(self, catalogue: Catalogue, cell: Cell, pool: ClipPool, head: Head,
                 rooms: RoomBank | None = None):
        self.catalogue, self.cell, self.pool, self.head = catalogue, cell, pool, head
        if cell.room != "none":
            if rooms is None:
                raise ConfigError(f"cell {cell.name} needs the test rooms of {cell.head}: build "
                                  "them with `luseel-benchmark-set build`")
            check_rooms(catalogue, rooms)
        self.rooms = rooms
        self.scenes, self.sounds = catalogue.scenes[cell.set], catalogue.sounds[cell.set]
        self._place = find_recordings(catalogue, pool).place
        self._samples = pool.samples.cpu().numpy()
        self.missing = {scene.mixture for scene, sounds in zip(self.scenes, self.sounds)
                        if any(self._place[sound.recording] < 0 for sound in sounds)}

    def __len__(self) -> int:
        return len(self.scenes)

    def inputs(self) -> dict[str, str]:
        """Identity of the responses that the cell is heard with, 12 hexadecimal digits each."""
        parts = {"head": self.head.hrir}
        if self.cell.room != "none":
            parts["rooms"] = self.rooms.response
        return {name: hash_of(value) for name, value in parts.items()}

    def _response(self, index: int, azimuth: float, position: int) -> np.ndarray:
        """(2, taps) float64, as loud as without a room."""
        azimuth = torch.tensor(azimuth, dtype=torch.float64)
        direct = self.head.at(azimuth).numpy().astype(np.float64)
        if self.cell.room == "none":
            return direct
        response = self.rooms.response[self.scenes[index].room, position].numpy()
        response = response.astype(np.float64)
        end = np.flatnonzero(response.any(0))[-1] + 1
        response = response[:, :end]
        return response * np.sqrt(np.square(direct).sum() / np.square(response).sum())

    def __getitem__(self, index: int) -> BenchmarkMixture:
        scene, sounds = self.scenes[index], self.sounds[index]
        count, in_room = self.catalogue.samples, self.cell.room != "none"
        azimuth = np.array([sound.room_azimuth if in_room else sound.azimuth for sound in sounds])
        images, anchor = [], 0.0
        for sound, direction in zip(sounds, azimuth):
            place = int(self._place[sound.recording])
            if place < 0:
                raise ConfigError(f"recording {self.catalogue.recordings[sound.recording].name} of "
                                  "the benchmark is missing here")
            start, length = int(self.pool.start[place]), int(self.pool.length[place])
            response = self._response(index, float(direction), sound.position)
            before = response.shape[-1] - 1
            dry = looped(self._samples[start:start + length], sound.offset, sound.gap, count,
                         before)
            root = np.sqrt(np.square(dry[before:]).mean())
            if sound.source == 0:
                anchor = root
            gain = anchor / root * 10 ** (-sound.snr_db / 20)
            images.append(scipy.signal.fftconvolve(gain * dry[None], response, "valid", axes=-1))
        sources = np.stack(images)
        mixture, noise = sources.sum(0), None
        if self.cell.room == "noise":
            noise = coloured_noise(self.head, count, scene.noise_tilt, scene.noise_seed)
            noise *= np.sqrt(np.square(mixture).mean() * 10 ** (-scene.noise_db / 10))
            mixture = mixture + noise
        scale = 10 ** (scene.level_db / 20) / np.sqrt(np.square(mixture).mean())
        scale = min(scale, 1.0 / np.abs(mixture).max())
        names = [self.catalogue.recordings[sound.recording] for sound in sounds]
        return BenchmarkMixture(
            index, (scale * mixture).astype(np.float32), (scale * sources).astype(np.float32),
            None if noise is None else (scale * noise).astype(np.float32), azimuth,
            [recording.kind for recording in names], [recording.name for recording in names],
            [sound.held_out for sound in sounds], scene.absent, scene.rt60 if in_room else 0.0,
            scene.noise_db if noise is not None else float("nan"))

