"""A toy corpus of generated sounds, for trying the tools: no figure of it means anything.

    luseel-corpus toy --out data/toy

A dozen kinds of sounds with labels that the captions know, made by simple synthesis and packed as
real recordings are, so that ``luseel-train --config debug`` and ``luseel-evaluate`` run on a fresh
checkout. The same recordings every time.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.random import Generator
from scipy.signal import butter, sosfilt

from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.corpus.pack import read_catalogue, pack

#: Where the configuration ``debug`` expects it.
FOLDER = Path("data/toy")
SOURCE = "toy"
#: Recordings of each kind.
RECORDINGS = {"train": 6, "valid": 2, "test": 2}


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _tone(frequency: np.ndarray | float, time: np.ndarray, harmonics: int = 1) -> np.ndarray:
    """A tone whose frequency may vary, with harmonics that fall as 1 / number."""
    turns = np.cumsum(np.broadcast_to(frequency, time.shape)) / SAMPLE_RATE
    return sum(np.sin(2 * np.pi * n * turns) / n for n in range(1, harmonics + 1))


def _noise(random: Generator, samples: int, low: float, high: float) -> np.ndarray:
    """Band-limited noise of unit power."""
    band = butter(2, [low, high], "bandpass", fs=SAMPLE_RATE, output="sos")
    noise = sosfilt(band, random.standard_normal(samples))
    return noise / noise.std()


def _add(audio: np.ndarray, sound: np.ndarray, at: float) -> None:
    start = round(at * SAMPLE_RATE)
    part = sound[:max(0, audio.size - start)]
    audio[start:start + part.size] += part


def _clock(random: Generator, time: np.ndarray) -> np.ndarray:
    audio, short = np.zeros(time.size), _time(0.03)
    period, pitch = random.uniform(0.2, 0.45), random.uniform(2500, 3800)
    for i, at in enumerate(np.arange(0, time[-1], period)):
        click = np.sin(2 * np.pi * pitch * (1.0 - 0.2 * (i % 2)) * short) * np.exp(-short / 0.004)
        _add(audio, click, at)
    return audio


def _siren(random: Generator, time: np.ndarray) -> np.ndarray:
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * (random.uniform(0.4, 0.9) * time + random.uniform()))
    return _tone(random.uniform(450, 650) * 2.4 ** sweep, time, 4)


def _rain(random: Generator, time: np.ndarray) -> np.ndarray:
    drops = (random.random(time.size) < random.uniform(0.004, 0.012)) * random.exponential(
        1.0, time.size)
    audio = sosfilt(butter(2, [1200, 7000], "bandpass", fs=SAMPLE_RATE, output="sos"), drops)
    return audio / audio.std() + 0.4 * _noise(random, time.size, 800, 7500)


def _whistle(random: Generator, time: np.ndarray) -> np.ndarray:
    trill = np.sin(2 * np.pi * random.uniform(22, 38) * time)
    audio = _tone(random.uniform(2300, 3000) * (1 + 0.03 * trill), time) * (1 + 0.6 * trill)
    audio += 0.2 * _noise(random, time.size, 2000, 5000)
    return audio * (np.mod(time, random.uniform(0.7, 1.1)) < 0.5)


def _knocking(random: Generator, time: np.ndarray) -> np.ndarray:
    audio, short = np.zeros(time.size), _time(0.12)
    body = random.uniform(180, 320)
    for at in np.arange(0, 1, random.uniform(0.2, 0.3)) * time[-1]:
        knock = sum(np.sin(2 * np.pi * body * ratio * short) * np.exp(-short / decay)
                    for ratio, decay in ((1.0, 0.03), (2.3, 0.015), (4.1, 0.006)))
        _add(audio, knock * random.uniform(0.7, 1.0), at)
    return audio


def _bell(random: Generator, time: np.ndarray) -> np.ndarray:
    audio, pitch = np.zeros(time.size), random.uniform(350, 700)
    for at in np.arange(0, time[-1], random.uniform(0.7, 1.2)):
        # hum, prime, tierce, quint, nominal and above, as of a church bell
        for ratio, level, decay in ((0.5, 0.5, 1.2), (1, 0.8, 0.8), (1.2, 0.7, 0.6),
                                    (1.5, 0.4, 0.5), (2, 1, 0.5), (3, 0.4, 0.25), (4.2, 0.3, 0.12)):
            partial = np.sin(2 * np.pi * pitch * ratio * time) * np.exp(-time / decay)
            _add(audio, level * partial, at)
    return audio


def _crickets(random: Generator, time: np.ndarray) -> np.ndarray:
    pulses = np.clip(np.sin(2 * np.pi * random.uniform(45, 65) * time), 0, None) ** 2
    chirps = np.mod(time, random.uniform(0.22, 0.4)) < 0.12
    return _tone(random.uniform(4200, 5200), time) * pulses * chirps


def _cuckoo(random: Generator, time: np.ndarray) -> np.ndarray:
    audio, pitch = np.zeros(time.size), random.uniform(600, 720)
    for at in np.arange(0, time[-1], random.uniform(0.9, 1.2)):
        for ratio, length, begin in ((1.0, 0.16, 0.0), (0.82, 0.26, 0.3)):  # a third down
            note = _time(length)
            _add(audio, _tone(pitch * ratio, note, 2) * np.sin(np.pi * note / length) ** 0.5,
                 at + begin)
    return audio


def _horn(random: Generator, time: np.ndarray) -> np.ndarray:
    pitch = random.uniform(370, 440)
    audio = _tone(pitch, time, 9) + _tone(pitch * 1.26, time, 9)
    return audio * (np.mod(time, random.uniform(0.6, 1.0)) < 0.45)


def _helicopter(random: Generator, time: np.ndarray) -> np.ndarray:
    blades = np.mod(random.uniform(9, 14) * time, 1.0)
    return _noise(random, time.size, 60, 900) * np.exp(-4 * blades) + 0.1 * _noise(
        random, time.size, 200, 3000)


def _heart(random: Generator, time: np.ndarray) -> np.ndarray:
    audio, short = np.zeros(time.size), _time(0.15)
    period, pitch = random.uniform(0.6, 0.9), random.uniform(60, 90)
    for at in np.arange(0, time[-1], period):
        for begin, level, ratio in ((0.0, 1.0, 1.0), (0.28 * period, 0.7, 1.3)):
            beat = np.sin(2 * np.pi * pitch * ratio * short) * np.exp(-short / 0.035)
            _add(audio, level * beat, at + begin)
    return audio


def _wind(random: Generator, time: np.ndarray) -> np.ndarray:
    audio = np.zeros(time.size)
    for low, high in ((80, 250), (250, 500), (500, 1000)):  # gusts that wander between the bands
        gust = 1 + 0.8 * np.sin(2 * np.pi * (random.uniform(0.3, 1.2) * time + random.uniform()))
        audio += gust * _noise(random, time.size, low, high) * (150 / low) ** 0.5
    return audio


#: Label (as in captions.yaml) of each kind, its category, and how it is made.
KINDS: dict[str, tuple[str, Callable[[Generator, np.ndarray], np.ndarray]]] = {
    "clock ticking": ("domestic", _clock),
    "siren": ("alarm", _siren),
    "rain falling": ("nature", _rain),
    "whistle blowing": ("human", _whistle),
    "knocking on wood": ("domestic", _knocking),
    "bell ringing": ("alarm", _bell),
    "crickets chirping": ("animal", _crickets),
    "cuckoo calling": ("animal", _cuckoo),
    "car horn honking": ("vehicle", _horn),
    "helicopter flying": ("vehicle", _helicopter),
    "heartbeat": ("human", _heart),
    "wind blowing": ("nature", _wind),
}


def recording(label: str, split: str, number: int) -> np.ndarray:
    """One generated recording: float64 (samples,) mono at 16 kHz, 1 to 2 s, peak 0.5."""
    random = np.random.default_rng([*label.encode(), *split.encode(), number])
    audio = KINDS[label][1](random, _time(random.uniform(1.0, 2.0)))
    return 0.5 * audio / np.abs(audio).max()


def build(out: str | Path = FOLDER) -> dict:
    """Make the toy corpus, packed, in the folder ``out``; returns the manifest of :func:`pack`.

    Raises:
        ConfigError: ``out`` holds other recordings.
    """
    out = Path(out)
    try:
        with open(out / "train.csv", newline="", encoding="utf-8") as file:
            others = {row["source"] for row in csv.DictReader(file)} - {SOURCE}
    except FileNotFoundError:
        others = set()
    if others:
        raise ConfigError(f"{out} holds other recordings ({', '.join(sorted(others))}): choose "
                          "another folder for the toy corpus")
    with tempfile.TemporaryDirectory(prefix="luseel-toy-") as temporary:
        folder = Path(temporary)
        with open(folder / "catalogue.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", "label", "split", "category", "licence"])
            for label, (category, _) in KINDS.items():
                for split, count in RECORDINGS.items():
                    for number in range(count):
                        clip = f"{label.replace(' ', '_')}_{split}{number}.wav"
                        soundfile.write(folder / clip, recording(label, split, number), SAMPLE_RATE)
                        writer.writerow([clip, label, split, category, "generated"])
        return pack(read_catalogue(folder, SOURCE), out, progress=False)


def build_if_asked_for(packed: str | Path) -> None:
    """Make the toy corpus where a configuration asks for it and it isn't there yet."""
    if Path(packed) == FOLDER and not (FOLDER / "kinds.txt").is_file():
        print(f"making the toy corpus of generated sounds in {FOLDER}")
        build(FOLDER)
