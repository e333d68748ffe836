"""Scenes out of recordings in the DCASE generator's layout: windows with the directions of their
events, for training and for tests.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Iterator, Literal, Sequence

import numpy as np
import torch
from torch import Tensor

from luseel_model.angles import wrap_degrees
from luseel_model.config import require
from luseel_model.errors import ConfigError
from luseel_model.tsel.config import TselConfig
from training.arrays.dcase import CLASSES, FRAME, Event, Recording, read_folder
from training.arrays.scenes import Scenes

#: A sound is asked for where this many of its frames (of 100 ms) are in the window, or all.
_LEAST_FRAMES = 5
_HELD_BACK = 8  # of one room's mixtures, one in so many is for validation
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class DcaseConfig:
    """Recordings of the DCASE2022 generator or of DCASE's task 3.

    Attributes:
        folder: see :mod:`training.arrays.dcase`; ``audio_format``: which of its recordings.
        classes: words of the numbers in the metadata; the generator's NIGENS has others than these.
        test_folds: folds that are kept for tests; none given: the last one, where there are more.
        valid_folds: folds for validation; none given: the last room of the others, and where these
            have one room, one mixture in eight.
    """

    folder: str = "data/dcase"
    audio_format: Literal["foa", "mic"] = "foa"
    classes: tuple[str, ...] = CLASSES
    valid_folds: tuple[int, ...] = ()
    test_folds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.classes) > 0, "classes must name at least one class")
        both = set(self.valid_folds) & set(self.test_folds)
        require(not both, f"folds {sorted(both)} are in both valid_folds and test_folds")


def read_splits(config: DcaseConfig) -> dict[str, list[Recording]]:
    """The recordings for ``train``, ``valid`` and ``test``. A mixture that is there several times,
    with noise and without, say, is all in one split.

    Raises:
        ConfigError: there are no such recordings or folds, or none are left to train with.
    """
    recordings = read_folder(config.folder, config.audio_format, config.classes)
    folds = sorted({recording.fold for recording in recordings})
    if missing := sorted({*config.valid_folds, *config.test_folds} - set(folds)):
        raise ConfigError(f"{config.folder} has no recordings of the folds {missing}: it has those "
                          f"of {folds}")
    left = [fold for fold in folds if fold not in config.valid_folds]
    test_folds = config.test_folds or (left[-1:] if len(left) > 1 else [])
    test = [r for r in recordings if r.fold in test_folds]
    others = [r for r in recordings if r.fold not in test_folds]
    if config.valid_folds:
        held = {r.name for r in others if r.fold in config.valid_folds}
    else:
        rooms = sorted({r.room for r in others})
        names = sorted({r.name for r in others})
        held = {r.name for r in others if r.room == rooms[-1]} if len(rooms) > 1 \
            else set(names[-max(1, len(names) // _HELD_BACK):])
    train = [r for r in others if r.name not in held]
    if not train or not held:
        raise ConfigError(
            f"{config.folder} has too few recordings: of the folds {folds}, {sorted(test_folds)} "
            f"are kept for tests, {len(held)} mixtures for validation, and {len(train)} recordings "
            "are left to train with")
    return {"train": train, "valid": [r for r in others if r.name in held], "test": test}


class DcaseScenes:
    """Windows of recordings, each with a sound that words can mean: the only one of its class in
    the window.

    Args:
        recordings: of a split.
        classes: words of the classes; a scene's kind is an index into them.
        model: its window, rate and output; a network for clips is given a sound's mean direction,
            which counts the less the more it moves (the length of the mean of unit vectors).
        split: for messages.
    Raises:
        ConfigError: there is no such window, or a recording can't be read.
    """

    def __init__(self, recordings: Sequence[Recording], classes: Sequence[str], model: TselConfig,
                 device: torch.device | str = "cpu", split: str = "train"):
        self.model, self.device = model, device
        self.kinds = list(classes)
        self.recordings = list(recordings)
        self._size = max(1, round(model.window / FRAME))  # frames of 100 ms
        seconds = [recording.seconds() for recording in self.recordings]
        #: length of all recordings together
        self.seconds = sum(seconds)
        self._askable = [self._windows(*pair) for pair in zip(self.recordings, seconds)]
        #: recordings and, of each, the frames at which a window may begin
        self._starts = [(i, np.flatnonzero(askable.any(0)))
                        for i, askable in enumerate(self._askable) if askable.any()]
        if not self._starts:
            raise ConfigError(
                f"nothing to ask for in the {len(self.recordings)} recordings of the {split} split:"
                f" their metadata has no events, or always several of a class within "
                f"{model.window:g} s")

    def _windows(self, recording: Recording, seconds: float) -> np.ndarray:
        """(events, frames at which a window may begin) bool: is this the sound that the word for it
        means, and long enough in the window?"""
        frames = int(np.ceil(seconds / FRAME - 1e-6))
        starts = np.arange(max(1, frames - self._size + 1))
        events = recording.events
        active = np.zeros((len(events), max(frames, self._size) + 1), np.int64)
        for row, event in zip(active, events):
            row[event.frame[event.frame < frames] + 1] = 1
        total = active.cumsum(1)
        inside = total[:, starts + self._size] - total[:, starts]
        least = np.array([min(_LEAST_FRAMES, len(event.frame)) for event in events])
        same = np.array([[a.label == b.label for b in events] for a in events], np.int64)
        if not len(events):
            return np.zeros((0, len(starts)), bool)
        return (inside >= least[:, None]) & (same @ (inside > 0) == 1)

    def draw(self, size: int, generator: torch.Generator) -> Scenes:
        """``size`` random windows."""
        uniform = torch.rand(size, 2, generator=generator, dtype=torch.float64).tolist()
        picks = []
        for first, second in uniform:
            index, starts = self._starts[int(first * len(self._starts))]
            picks.append((index, int(starts[int(second * len(starts))])))
        return self._scenes(picks)

    def fixed(self, count: int | None, size: int) -> Iterator[tuple[Scenes, Tensor, list[str]]]:
        """Windows one after the other, in batches; each of their sounds that can be asked for once.

        Args:
            count: at most so many, spread over all; None: all.
        Yields:
            up to ``size`` scenes, which of its sounds each is asked for (B, 1), and the names of
            the recordings.
        """
        rows = [(index, start, event) for index, askable in enumerate(self._askable)
                for start in range(0, askable.shape[1], self._size)
                for event in np.flatnonzero(askable[:, start]).tolist()]
        if not rows:  # short sounds between the windows
            rows = [(index, int(starts[0]), int(self._askable[index][:, starts[0]].argmax()))
                    for index, starts in self._starts]
        if count is not None and count < len(rows):
            rows = [rows[i * len(rows) // count] for i in range(count)]
        for begin in range(0, len(rows), size):
            part = rows[begin:begin + size]
            asked = torch.tensor([[self._heard(index, start).index(event)]
                                  for index, start, event in part], device=self.device)
            yield (self._scenes([row[:2] for row in part]), asked,
                   [self.recordings[index].name for index, _, _ in part])

    def _heard(self, index: int, start: int) -> list[int]:
        """The events of a recording that are active in a window."""
        return [number for number, event in enumerate(self.recordings[index].events)
                if ((event.frame >= start) & (event.frame < start + self._size)).any()]

    def _scenes(self, picks: list[tuple[int, int]]) -> Scenes:
        with ThreadPoolExecutor(_THREADS) as threads:  # reading and resampling
            audio = list(threads.map(lambda pick: self.recordings[pick[0]].load(
                self.model.sample_rate, pick[1] * FRAME, self.model.window), picks))
        heard = [self._heard(*pick) for pick in picks]
        shape = (len(picks), max(map(len, heard)))
        over_time = (len(self.model.frame_times),) if self.model.output == "frames" else ()
        azimuth = np.full((*shape, *over_time), np.nan, np.float32)
        weight = np.zeros_like(azimuth)
        kind, askable = np.zeros(shape, np.int64), np.zeros(shape, bool)
        for row, ((index, start), events) in enumerate(zip(picks, heard)):
            for place, number in enumerate(events):
                event = self.recordings[index].events[number]
                azimuth[row, place], weight[row, place] = self._direction(event, start)
                kind[row, place] = self.kinds.index(event.label)
                askable[row, place] = self._askable[index][number, start]
        weight[~askable] = 0
        return Scenes(*(torch.from_numpy(value).to(self.device) for value in
                        (np.stack(audio), azimuth, weight, kind, askable)))

    def _direction(self, event: Event, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Degrees in a window, and how much they count: (T,) over time, or of all of it."""
        if self.model.output == "frames":
            azimuth = event.azimuth_at(start * FRAME + np.array(self.model.frame_times))
            return azimuth, ~np.isnan(azimuth)
        inside = (event.frame >= start) & (event.frame < start + self._size)
        mean = np.exp(1j * np.radians(event.azimuth[inside])).mean()
        return wrap_degrees(np.degrees(np.angle(mean))), np.abs(mean)
