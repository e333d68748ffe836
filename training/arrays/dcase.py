"""Recordings of the DCASE2022 data generator, and data sets laid out like them.

    <folder>/<scenario>/foa/fold1_room1_mix001.wav      four channels (or .../mic/...)
    <folder>/metadata/fold1_room1_mix001.csv            frame of 100 ms, class, track, azimuth,
                                                        elevation; no head line

(github.com/danielkrause/DCASE2022-data-generator). The data sets of DCASE's task 3 have the same
files in ``foa_dev/...`` and ``metadata_dev/...``, and may have a distance as a sixth column. Paper
001 takes the first-order Ambisonics format (``foa``) and the GCC-PHAT between its channels.
"""

from __future__ import annotations

import contextlib
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Literal

import numpy as np
import soundfile
import soxr

from luseel_model.angles import wrap_degrees
from luseel_model.errors import ConfigError

FRAME = 0.1  # seconds
CHANNELS = 4
#: Of DCASE 2022, task 3, in the order of their numbers, as queries.
CLASSES = ("woman speaking", "man speaking", "clapping", "telephone", "laughter",
           "domestic sounds", "footsteps", "door", "music", "musical instrument",
           "water tap", "bell", "knocking")


@dataclass(frozen=True)
class Event:
    """A sound in a recording.

    Attributes:
        label: what it is, in words.
        track: number that tells events of one class apart.
        frame: (n,) frames of 100 ms in which it is active, ascending.
        azimuth: (n,) degrees in [0, 360), counter-clockwise from the front.
        elevation: (n,) degrees.
    """

    label: str
    track: int
    frame: np.ndarray
    azimuth: np.ndarray
    elevation: np.ndarray

    def azimuth_at(self, times: np.ndarray) -> np.ndarray:
        """(T,) seconds → (T,) degrees, NaN where the event isn't active."""
        asked = np.floor(np.asarray(times) / FRAME + 1e-6).astype(np.int64)
        place = np.searchsorted(self.frame, asked).clip(max=len(self.frame) - 1)
        return np.where(self.frame[place] == asked, self.azimuth[place], np.nan)


@dataclass(frozen=True)
class Recording:
    """One mixture: its name, audio file and events."""

    name: str
    path: Path
    events: tuple[Event, ...]

    @property
    def fold(self) -> int:
        """The number after ``fold`` in the name, 0 where there is none."""
        digits = self.name.removeprefix("fold").split("_")[0]
        return int(digits) if digits.isdigit() else 0

    @property
    def room(self) -> str:
        """What the name says before the number of the mixture: ``fold1_room2``."""
        return self.name.split("_mix")[0]

    @contextlib.contextmanager
    def _open(self) -> Iterator[soundfile.SoundFile]:
        try:
            with soundfile.SoundFile(self.path) as file:
                if file.channels != CHANNELS:
                    raise ConfigError(
                        f"{self.path} has {file.channels} channels, {CHANNELS} are needed")
                yield file
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"{self.path} can't be read: {error}") from None

    def seconds(self) -> float:
        """Length of the audio.

        Raises:
            ConfigError: as :meth:`load`.
        """
        with self._open() as file:
            return file.frames / file.samplerate

    def load(self, sample_rate: int, start: float = 0.0, seconds: float | None = None
             ) -> np.ndarray:
        """Audio (4, N), float32 at ``sample_rate``.

        Args:
            start: second within the recording to begin at.
            seconds: how much; beyond the recording's end there is silence. None: all the rest.
        Raises:
            ConfigError: not four channels, or no audio file.
        """
        with self._open() as file:
            rate = file.samplerate
            file.seek(min(round(start * rate), file.frames))
            audio = file.read(-1 if seconds is None else round(seconds * rate), dtype="float32",
                              always_2d=True)
        if rate != sample_rate:
            audio = soxr.resample(audio, rate, sample_rate)
        audio = audio.T
        if seconds is not None:
            size = round(seconds * sample_rate)
            audio = np.pad(audio[:, :size], ((0, 0), (0, max(0, size - audio.shape[1]))))
        return np.ascontiguousarray(audio, dtype=np.float32)


def read_events(path: Path, classes: tuple[str, ...] = CLASSES) -> tuple[Event, ...]:
    """The events of a metadata file.

    Raises:
        ConfigError: a line that isn't one of frame, class, track, azimuth, elevation.
    """
    rows: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), 1):
            try:
                frame, kind, track = (int(value) for value in row[:3])
                azimuth, elevation = (float(value) for value in row[3:5])
                if not 0 <= kind < len(classes) or frame < 0:
                    raise ValueError
            except ValueError:
                raise ConfigError(
                    f"{path}, line {number}: {','.join(row)!r} is not frame, class (0 to "
                    f"{len(classes) - 1}), track, azimuth, elevation") from None
            rows.setdefault((kind, track), []).append((frame, azimuth, elevation))
    events = []
    for (kind, track), values in sorted(rows.items()):
        frame, azimuth, elevation = np.array(sorted(values), np.float64).T
        events.append(Event(classes[kind], track, frame.astype(np.int64),
                            np.asarray(wrap_degrees(azimuth)), elevation))
    return tuple(events)


def read_folder(folder: str | Path, audio_format: Literal["foa", "mic"] = "foa",
                classes: tuple[str, ...] = CLASSES) -> list[Recording]:
    """All recordings of a folder, by name.

    Raises:
        ConfigError: there are none of this format, or metadata is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}: expected recordings of the DCASE generator or data "
                          "set in it (docs/tsel.md)")
    metadata = {path.stem: path for path in folder.rglob("*.csv")
                if any(part.startswith("metadata") for part in path.relative_to(folder).parts)}
    found = []
    for path in sorted(folder.rglob("*.wav")):
        parts = path.relative_to(folder).parts[:-1]
        if not any(part == audio_format or part.startswith(f"{audio_format}_") for part in parts):
            continue
        if path.stem not in metadata:
            raise ConfigError(f"{path} has no metadata: expected "
                              f"{folder / 'metadata' / (path.stem + '.csv')}")
        found.append(Recording(path.stem, path, read_events(metadata[path.stem], classes)))
    if not found:
        raise ConfigError(f"no recordings of the format {audio_format!r} in {folder}: expected "
                          f"{folder}/<scenario>/{audio_format}/*.wav")
    return found


def windows(recording: Recording, sample_rate: int, seconds: float, times: np.ndarray
            ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Windows of a recording one after the other, the last one filled with silence.

    Args:
        times: (T,) seconds from a window's start at which directions are wanted.
    Yields:
        audio (4, seconds · sample_rate), and for each label that a query can mean, because only
        one event has it in this window, (T,) degrees, NaN where it isn't active.
    """
    audio, size = recording.load(sample_rate), round(seconds * sample_rate)
    for start in range(0, audio.shape[1], size):
        part = audio[:, start:start + size]
        part = np.pad(part, ((0, 0), (0, size - part.shape[1])))
        tracks: dict[str, list[np.ndarray]] = {}
        for event in recording.events:
            azimuth = event.azimuth_at(np.asarray(times) + start / sample_rate)
            if not np.isnan(azimuth).all():
                tracks.setdefault(event.label, []).append(azimuth)
        yield part, {label: found[0] for label, found in tracks.items() if len(found) == 1}
