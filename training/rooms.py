"""Rooms: binaural room responses of a head, made once and kept as a bank.

    python -m training.rooms --heads mit_kemar tu_kemar --rooms 150 --positions 12 --split train

Each room is a shoebox with walls that damp high frequencies more, a head somewhere in it, turned
at random, and sources all around at about the height of its ears. The image sources of the first
60 ms come from pyroomacoustics and are heard through the head, each from its own direction; from
40 ms on they give way to noise that decays as the room should, with the coherence of a diffuse
field between the ears and the level that the image sources had reached.

The heads here are measured in the horizontal plane only. An image above or below it is heard from
the horizontal direction with the same lateral angle (so with about the same interaural delay and
level difference) on the same side, front or back. What the pinna adds by elevation is missing.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Sequence

import numpy as np
import scipy.fft
import scipy.signal
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from luseel_model.errors import ConfigError

from . import SAMPLE_RATE
from .heads import Head, load_head
from .noise import diffuse_filter

SPLITS = ("train", "valid", "test")
DATA_FOLDER = Path("data") / "rooms"
SOUND_SPEED = 343.0

#: Octave bands of the walls' absorption (Hz), those of pyroomacoustics at 16 kHz.
BANDS = np.array([125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0])
#: Where image sources give way to noise: seconds after the sound was made.
_FADE = (0.040, 0.060)
#: The heads' responses begin this many samples after the sound has arrived (training.heads).
_ONSET = 16
#: Samples ahead of an image, where its filter rings before the sound.
_AHEAD = 32
_IMAGE_LENGTH = 320
#: Nearest a source comes to the head, and farthest (m).
_DISTANCE = (0.8, 4.0)
#: Least distance of the head from a wall, and of a source (m).
_HEAD_TO_WALL, _SOURCE_TO_WALL = 1.05, 0.2
#: Sources are at most this far above or below the ears (m). At the very same height, images over
#: the ceiling and under the floor would arrive in pairs at the same instant.
_RISE = 0.25


@dataclass(frozen=True)
class Room:
    """What chance decides about a room with P sources.

    Attributes:
        size: (3,) length, width, height, metres.
        rt60: reverberation time asked for at 500 Hz and 1 kHz, seconds.
        band_rt60: (7,) the same in the octave bands :data:`BANDS`; lower at high frequencies.
        head: (3,) centre of the head, metres.
        look: direction the head faces, degrees counter-clockwise from the room's x axis.
        azimuth: (P,) of the sources, degrees counter-clockwise from where the head looks.
        distance: (P,) metres.
        rise: (P,) height of the sources above the ears, metres.
        head_size: stretch of the head's responses in time.
        seed: of the noise in the tail.
    """

    size: np.ndarray
    rt60: float
    band_rt60: np.ndarray
    head: np.ndarray
    look: float
    azimuth: np.ndarray
    distance: np.ndarray
    rise: np.ndarray
    head_size: float
    seed: int

    @property
    def sources(self) -> np.ndarray:
        """Where the sources are, (P, 3) metres."""
        turn = np.deg2rad(self.look + self.azimuth)
        ground = np.sqrt(self.distance ** 2 - self.rise ** 2)
        way = np.stack([ground * np.cos(turn), ground * np.sin(turn), self.rise], axis=1)
        return self.head + way


def draw_room(positions: int, split: str = "train", seed: int = 0, index: int = 0,
              rt60: tuple[float, float] = (0.2, 0.8),
              head_size: tuple[float, float] | None = None) -> Room:
    """Draw room number ``index`` of a split; every split has rooms of its own for every seed.

    The sources lie in equal sectors around the head, one in each, anywhere in it; the distance is
    uniform between 0.8 m and 4 m or the wall.
    """
    random = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), index]))
    while True:
        size = np.array([*random.uniform(3.0, 8.0, 2), random.uniform(2.4, 3.5)])
        wanted = random.uniform(*rt60)
        # Lower by up to half at 8 kHz, as air and soft things take the high frequencies first.
        high, low = random.uniform(0.5, 0.9), random.uniform(0.9, 1.2)
        octave = np.log2(BANDS / math.sqrt(500.0 * 1000.0))
        ratio = np.interp(octave, [octave[0], -0.5, 0.5, octave[-1]], [low, 1.0, 1.0, high])
        # A large room can't be as short as a small one: its walls would have to take everything.
        if _absorption(size, wanted * ratio).max() < 0.9:
            break
    head = np.array([*random.uniform(_HEAD_TO_WALL, size[:2] - _HEAD_TO_WALL),
                     random.uniform(1.0, 1.8)])
    look = random.uniform(0.0, 360.0)
    azimuth = np.mod((np.arange(positions) + random.uniform(size=positions)) * 360 / positions
                     + random.uniform(0.0, 360.0), 360.0)
    turn = np.deg2rad(look + azimuth)
    way = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    room_left = np.where(way > 0, size[:2] - _SOURCE_TO_WALL - head[:2], head[:2] - _SOURCE_TO_WALL)
    reach = (room_left / np.maximum(np.abs(way), 1e-9)).min(1)
    distance = random.uniform(_DISTANCE[0], np.minimum(reach, _DISTANCE[1]))
    rise = random.uniform(-_RISE, _RISE, positions)
    scale = 1.0 if head_size is None else float(np.exp(random.uniform(*np.log(head_size))))
    return Room(size, float(wanted), wanted * ratio, head, float(look), azimuth, distance, rise,
                round(scale, 4), int(random.integers(2 ** 31)))


def _absorption(size: np.ndarray, rt60: np.ndarray) -> np.ndarray:
    """Absorption of the walls by Eyring's formula."""
    surface = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    return 1 - np.exp(-24 * math.log(10) / SOUND_SPEED * size.prod() / (surface * rt60))


def _image_sources(room: Room) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per source: positions (n, 3) of its images up to 60 ms away, and their gains (7, n)."""
    import pyroomacoustics as pra

    reach = _FADE[1] * SOUND_SPEED
    walls = pra.Material(energy_absorption={
        "description": "walls", "coeffs": _absorption(room.size, room.band_rt60).tolist(),
        "center_freqs": BANDS.tolist()})
    # The images within reach lie in a ball; the walls passed add up to this many at most.
    order = math.ceil(reach * math.sqrt((1 / room.size ** 2).sum())) + 2
    box = pra.ShoeBox(room.size, fs=SAMPLE_RATE, materials=walls, max_order=order,
                      air_absorption=False)
    for source in room.sources:
        box.add_source(source)
    box.add_microphone(room.head)
    box.image_source_model()
    found = []
    for source in box.sources:
        near = np.linalg.norm(source.images - room.head[:, None], axis=0) < reach
        # The reflected images by their distance, the direct sound first.
        images, gains = source.images[:, near].T.astype(np.float64), source.damping[:, near]
        rank = np.linalg.norm(images - room.head, axis=1).argsort()
        found.append((images[rank], gains[:, rank].astype(np.float64)))
    return found


def _to_azimuth(directions: np.ndarray) -> np.ndarray:
    """Horizontal azimuth (n,) with the lateral angle and the side, front or back, of (n, 3).

    Directions are unit vectors seen from the head: x to the front, y to the left.
    """
    front, left = directions[:, 0], np.clip(directions[:, 1], -1.0, 1.0)
    depth = np.sqrt(1 - left ** 2) * np.where(front < 0, -1.0, 1.0)
    return np.mod(np.rad2deg(np.arctan2(left, depth)), 360.0)


def _band_shares(frequency: np.ndarray) -> np.ndarray:
    """(7, frequencies) raised cosines over log frequency around the bands; sum 1 everywhere."""
    place = np.clip(np.log2(np.maximum(frequency, 1.0) / BANDS[0]), 0, len(BANDS) - 1)
    near = np.clip(1 - np.abs(place[None] - np.arange(len(BANDS))[:, None]), 0, None)
    return 0.5 - 0.5 * np.cos(np.pi * near)


def render_room(room: Room, head: Head) -> np.ndarray:
    """Binaural responses of all sources of a room, (P, 2, taps) float32 at 16 kHz.

    The direct sound is the head's response to its direction divided by the distance in metres, at
    the delay of the anechoic response; all else follows as late as it comes.
    """
    head = head.warped(room.head_size)
    rate = SAMPLE_RATE
    taps = round(1.05 * room.band_rt60.max() * rate) + _IMAGE_LENGTH
    rotation = np.deg2rad(room.look)
    turn = np.array([[math.cos(rotation), math.sin(rotation), 0],
                     [-math.sin(rotation), math.cos(rotation), 0], [0, 0, 1]])
    padded = np.pad(head.hrir.numpy(), ((0, 0), (0, 0), (_AHEAD, _IMAGE_LENGTH - _AHEAD
                                                          - head.taps)))
    hrtf = scipy.fft.rfft(padded)  # (360, 2, bins)
    frequency = scipy.fft.rfftfreq(_IMAGE_LENGTH, 1 / rate)
    shares = _band_shares(frequency)
    omega = (-2j * np.pi * frequency / rate).astype(np.complex64)
    early = np.zeros((len(room.azimuth), 2, taps + _AHEAD), np.float32)
    window_energy = np.zeros(len(BANDS))
    images = _image_sources(room)
    for p, (place, gains) in enumerate(images):
        offset = (place - room.head) @ turn.T
        distance = np.linalg.norm(offset, axis=1)
        moment = distance / SOUND_SPEED
        late = (moment >= _FADE[0]) & (moment < _FADE[1])
        window_energy += np.square(gains[:, late] / distance[late]).sum(1)
        fade = np.cos(0.5 * np.pi * np.clip((moment - _FADE[0]) / (_FADE[1] - _FADE[0]), 0, 1))
        delay = (distance - distance[0]) / SOUND_SPEED * rate
        whole = np.floor(delay).astype(np.int64)
        azimuth = _to_azimuth(offset / distance[:, None])
        azimuth[0] = room.azimuth[p]  # the direct sound's is true: it is what the network learns
        low = np.floor(azimuth).astype(np.int64)
        part = (azimuth - low)[:, None, None].astype(np.float32)
        spectrum = (1 - part) * hrtf[low % 360] + part * hrtf[(low + 1) % 360]
        level = np.exp(np.log(gains).T @ shares) * (fade / distance)[:, None]
        spectrum *= (level * np.exp(omega * (delay - whole)[:, None]))[:, None]
        sound = scipy.fft.irfft(spectrum, _IMAGE_LENGTH).astype(np.float32)
        index = (whole[:, None] + np.arange(_IMAGE_LENGTH)).ravel()
        fits = index < early.shape[-1]
        for ear in (0, 1):
            early[p, ear] += np.bincount(index[fits], sound[:, ear].ravel()[fits],
                                         early.shape[-1]).astype(np.float32)
    response = early[..., _AHEAD:]
    response += _tail(room, head, window_energy / len(images), taps)
    return response


def _tail(room: Room, head: Head, window_energy: np.ndarray, taps: int) -> np.ndarray:
    """The noise after the image sources, (P, 2, taps).

    Args:
        window_energy: (7,) energy of the image sources within the fade, that of one at 1 m being 1.
    """
    random = np.random.default_rng(room.seed)
    rate, count = SAMPLE_RATE, len(room.azimuth)
    length = scipy.fft.next_fast_len(taps + 2 * head.taps, real=True)
    length += length % 2
    root = diffuse_filter(head, length).numpy()
    white = scipy.fft.rfft(random.standard_normal((count, 2, length), np.float32))
    noise = np.einsum("ijf,pjf->pif", root, white)
    shares = _band_shares(scipy.fft.rfftfreq(length, 1 / rate)).astype(np.float32)
    tail = np.zeros((count, 2, taps), np.float32)
    start = room.distance[:, None] / SOUND_SPEED  # when the direct sound arrives
    moment = start + (np.arange(taps) - _ONSET) / rate
    rise = np.sin(0.5 * np.pi * np.clip((moment - _FADE[0]) / (_FADE[1] - _FADE[0]), 0, 1))
    window = np.arange(*_FADE, 1 / rate)
    for band, rt60 in enumerate(room.band_rt60):
        decay = -3 * math.log(10) / rt60  # of the amplitude: 60 dB in rt60
        level = math.sqrt(window_energy[band] / np.exp(2 * decay * window).sum())
        envelope = (level * rise * np.exp(decay * moment)).astype(np.float32)
        tail += envelope[:, None] * scipy.fft.irfft(noise * shares[band], length)[..., :taps]
    return tail


def measured_rt60(response: np.ndarray) -> float:
    """Reverberation time at 500 Hz and 1 kHz, seconds: T30 by Schroeder integration.

    Args:
        response: (..., taps) at 16 kHz; the mean over all responses.
    """
    from pyroomacoustics.experimental import measure_rt60

    edge = [500 / math.sqrt(2), 1000 * math.sqrt(2)]
    sections = scipy.signal.butter(4, edge, "bandpass", fs=SAMPLE_RATE, output="sos")
    flat = np.asarray(response, np.float64).reshape(-1, response.shape[-1])
    return float(np.mean([measure_rt60(scipy.signal.sosfilt(sections, row), SAMPLE_RATE,
                                       decay_db=30) for row in flat]))


def _truncated(response: np.ndarray) -> np.ndarray:
    """Cut where the energy still to come is 60 dB below the whole, with a short fade."""
    energy = np.square(response.astype(np.float64)).sum((0, 1))
    left = energy[::-1].cumsum()[::-1]
    end = int(np.searchsorted(-left, -1e-6 * left[0]))
    end = min(max(end, _IMAGE_LENGTH), len(energy))
    fade = np.cos(np.linspace(0, np.pi / 2, 80)) ** 2
    response = response[..., :end].copy()
    response[..., -80:] *= fade.astype(np.float32)
    return response


def _make_room(index: int, head: Head, positions: int, split: str, seed: int,
               rt60: tuple[float, float], head_size: tuple[float, float] | None) -> dict:
    torch.set_num_threads(1)
    room = draw_room(positions, split, seed, index, rt60, head_size)
    response = _truncated(render_room(room, head))
    sized = head.warped(room.head_size)
    direct = (sized.at(torch.from_numpy(room.azimuth)).numpy() / room.distance[:, None, None])
    rest = response.copy()
    rest[..., :head.taps] -= direct
    drr = 10 * np.log10(np.square(direct).sum((1, 2)) / np.square(rest).sum((1, 2)))
    return {"response": response.astype(np.float16), "azimuth": room.azimuth,
            "distance": room.distance, "drr_db": drr, "rt60": measured_rt60(response),
            "rt60_asked": room.rt60, "size": room.size, "head_size": room.head_size}


@dataclass
class RoomBank:
    """Responses of R rooms with P sources each, for one head.

    Attributes:
        head: its name.
        split: whose recordings may be heard in these rooms.
        response: (R, P, 2, taps) float16 at 16 kHz; zero after the end of a shorter one. The
            direct sound comes at the delay of the head's own response, its level is that at 1 m
            divided by the distance.
        azimuth: (R, P) float32 degrees in [0, 360), counter-clockwise from the front of the head.
        distance: (R, P) metres.
        drr_db: (R, P) direct sound over all the rest, both ears.
        rt60, rt60_asked: (R,) seconds, at 500 Hz and 1 kHz.
        size: (R, 3) length, width, height, metres.
        head_size: (R,) stretch of the head's responses.
        metadata: how it was made, and the head's licence; strings.
    """

    head: str
    split: str
    response: torch.Tensor
    azimuth: torch.Tensor
    distance: torch.Tensor
    drr_db: torch.Tensor
    rt60: torch.Tensor
    rt60_asked: torch.Tensor
    size: torch.Tensor
    head_size: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    _TENSORS = ("response", "azimuth", "distance", "drr_db", "rt60", "rt60_asked", "size",
                "head_size")

    def __len__(self) -> int:
        return len(self.response)

    @property
    def taps(self) -> int:
        """Length of the responses, samples."""
        return self.response.shape[-1]

    @staticmethod
    def path(folder: str | Path, head: str, split: str) -> Path:
        """Where a folder of banks holds that of a head and a split."""
        return Path(folder) / f"{head}_{split}.safetensors"

    @classmethod
    def build(cls, head: Head | str, rooms: int, positions: int, split: str = "train",
              seed: int = 0, rt60: tuple[float, float] = (0.2, 0.8),
              head_size: tuple[float, float] | None = None, jobs: int = 1,
              progress: bool = False) -> "RoomBank":
        """Make a bank; the same arguments give the same one, however many processes make it.

        Args:
            jobs: processes; 1: this one.
            progress: show a bar.

        Raises:
            ConfigError: no room asked for, or pyroomacoustics is missing.
        """
        if rooms < 1 or positions < 1:
            raise ConfigError("rooms and positions must be 1 or more")
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is none of {', '.join(SPLITS)}")
        if not 0.15 <= rt60[0] <= rt60[1] <= 3.0:
            raise ConfigError(f"rt60: {rt60} must be (lowest, highest) within 0.15 s and 3 s")
        try:
            import pyroomacoustics  # noqa: F401
        except ImportError:
            raise ConfigError("rooms need pyroomacoustics: `pip install pyroomacoustics`") from None
        head = load_head(head) if isinstance(head, str) else head
        make = functools.partial(_make_room, head=head, positions=positions, split=split, seed=seed,
                                 rt60=rt60, head_size=head_size)
        bar = functools.partial(tqdm, total=rooms, desc=f"{head.name} {split}", unit="room",
                                disable=not progress)
        if jobs == 1:
            made = list(bar(map(make, range(rooms))))
        else:
            # Not forked: torch's threads don't survive that.
            with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
                made = list(bar(pool.map(make, range(rooms))))
        taps = max(room["response"].shape[-1] for room in made)
        response = np.zeros((rooms, positions, 2, taps), np.float16)
        for index, room in enumerate(made):
            response[index, ..., :room["response"].shape[-1]] = room["response"]
        values = {name: torch.from_numpy(np.array([room[name] for room in made], np.float32))
                  for name in cls._TENSORS[1:]}
        about = {"seed": str(seed), "head_metadata": json.dumps(head.metadata),
                 "made_by": "training.rooms"}
        return cls(head.name, split, torch.from_numpy(response), **values, metadata=about)

    def save(self, folder: str | Path) -> Path:
        """Write ``<folder>/<head>_<split>.safetensors`` atomically; returns the path."""
        path = self.path(folder, self.head, self.split)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        save_file({name: getattr(self, name).contiguous() for name in self._TENSORS},
                  str(temporary), {"format": "luseel-rooms-1", "head": self.head,
                                   "split": self.split, **self.metadata})
        temporary.chmod(0o644)  # safetensors writes 0600
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "RoomBank":
        """Read a file written by :meth:`save`.

        Raises:
            ConfigError: it is missing, or not a bank; says what to do.
        """
        path = Path(path)
        if not path.is_file():
            head, _, split = path.stem.rpartition("_")
            raise ConfigError(f"{path} is missing: run `python -m training.rooms --heads "
                              f"{head or 'HEAD'} --split {split} --out {path.parent}`")
        try:
            with safe_open(str(path), "pt") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in cls._TENSORS}
        except Exception as error:  # safetensors raises its own classes and OSError alike
            raise ConfigError(f"{path} is not a bank made by training.rooms: {error}") from None
        if about.pop("format", "") != "luseel-rooms-1":
            raise ConfigError(f"{path} is not a bank made by training.rooms")
        return cls(about.pop("head"), about.pop("split"), **tensors, metadata=about)

    def summary(self) -> str:
        """One line: how many rooms, how long they sound, direct over reverberant sound."""
        def span(values: torch.Tensor) -> str:
            low, middle, high = values.flatten().quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
            return f"{low:.2f}, {middle:.2f}, {high:.2f}"

        rooms, positions, _, taps = self.response.shape
        return (f"{self.head} {self.split}: {rooms} rooms, {positions} positions, {taps} taps; "
                f"5%, 50%, 95%: RT60 {span(self.rt60)} s, DRR {span(self.drr_db)} dB, "
                f"distance {span(self.distance)} m")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see ``python -m training.rooms --help``."""
    parser = argparse.ArgumentParser(prog="python -m training.rooms",
                                     description="Make binaural room responses for the simulation.")
    parser.add_argument("--heads", nargs="+", default=["mit_kemar"],
                        help="names, or paths of .sofa files")
    parser.add_argument("--rooms", type=int, default=150)
    parser.add_argument("--positions", type=int, default=12, help="sources in each room")
    parser.add_argument("--split", choices=SPLITS, default="train",
                        help="every split has rooms of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rt60", type=float, nargs=2, default=(0.2, 0.8),
                        metavar=("LOWEST", "HIGHEST"), help="seconds at 500 Hz and 1 kHz")
    parser.add_argument("--head-size", type=float, nargs=2, default=None,
                        metavar=("LEAST", "MOST"),
                        help="stretch the head differently in each room, e.g. 0.93 1.08")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=DATA_FOLDER)
    options = parser.parse_args(arguments)
    try:
        for head in options.heads:
            bank = RoomBank.build(
                head, options.rooms, options.positions, options.split, options.seed,
                tuple(options.rt60), options.head_size and tuple(options.head_size),
                options.jobs, progress=True)
            path = bank.save(options.out)
            print(f"{bank.summary()}\n{path}: {path.stat().st_size / 1e6:.0f} MB")
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
