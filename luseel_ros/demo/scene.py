"""The scene that the demo plays: sounds at known places, and the queries for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Sound:
    """One sound of a scene.

    Attributes:
        label: what it is, in words.
        azimuth: degrees, counter-clockwise from the front, 90 left.
        start, end: when it is there, in seconds.
        track: float32 (2, samples of the scene), the sound alone at both ears; 0 elsewhere.
    """

    label: str
    azimuth: float
    start: float
    end: float
    track: np.ndarray


@dataclass(frozen=True)
class Query:
    """Words that are published at `at` seconds and meant for `sound` until `until`."""

    text: str
    sound: Sound
    at: float
    until: float


@dataclass(frozen=True)
class Scene:
    """A scene: `mixture` (2, samples) float32 is the sum of the tracks of its sounds."""

    title: str
    sample_rate: int
    sounds: tuple[Sound, ...]
    queries: tuple[Query, ...]
    mixture: np.ndarray

    @property
    def seconds(self) -> float:
        """Length of the scene."""
        return self.mixture.shape[1] / self.sample_rate

    def sounds_at(self, time: float) -> list[Sound]:
        """What is there at a time in seconds."""
        return [sound for sound in self.sounds if sound.start <= time < sound.end]


def load_scene(path: str | Path = DATA / "scene.json") -> Scene:
    """Read a scene made by `python -m training.make_demo_scene`.

    Raises:
        ValueError: a missing or broken file, named.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "scene.json"
    try:
        about = json.loads(path.read_text())
        rate = int(about["sample_rate"])
        samples = round(about["seconds"] * rate)
        sounds = []
        for item in about["sounds"]:
            audio, track_rate = soundfile.read(
                path.parent / item["track"], dtype="float32", always_2d=True)
            start = round(item["start"] * rate)
            if track_rate != rate or audio.shape[1] != 2 or start + len(audio) > samples:
                raise ValueError(f"{item['track']} doesn't fit the scene")
            track = np.zeros((2, samples), np.float32)
            track[:, start:start + len(audio)] = audio.T
            sounds.append(Sound(item["label"], float(item["azimuth"]), float(item["start"]),
                                float(item["end"]), track))
        queries = tuple(
            Query(item["text"], sounds[item["sound"]], float(item["at"]), float(item["until"]))
            for item in about["queries"])
        return Scene(about["title"], rate, tuple(sounds), queries,
                     np.sum([sound.track for sound in sounds], axis=0))
    except (OSError, KeyError, IndexError, TypeError, ValueError,
            soundfile.LibsndfileError) as error:
        raise ValueError(f"the scene {path} can't be read: {error}") from error
