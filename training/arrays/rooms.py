"""Rooms for microphone arrays: multichannel responses, made once and kept as a bank.

    python -m training.arrays.rooms --rooms 60 --split train     # a square, sources all around
    python -m training.arrays.rooms --path --rooms 16            # sources along a circle, in order

The rooms are those of paper 001, section VI.A: 5 to 15 m long, wide and high, RT60 0.5 to 1 s, a
square of four microphones 0.10 to 0.13 m apart, 1 to 1.2 m high. The image sources of the first
120 ms come from pyroomacoustics. From 80 ms on they give way to noise that decays as the room
should, with the coherence that a diffuse field has between the microphones and the level that the
image sources had reached: the images of a whole second take 50 s a source on one core, and no
microphone tells them from that noise.

Each room is a file of its own; what is there already is not made again. The paper doesn't say where
the sources are: here they are 1 to 4 m away, at most 0.5 m above or below the microphones.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Sequence

import numpy as np
import scipy.fft
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from luseel_model.arrays import SOUND_SPEED, MicrophoneArray, load_array, square_array
from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.rooms import SPLITS

DATA_FOLDER = Path("data") / "arrays"
FORMAT = "luseel-array-room-1"

#: Where image sources give way to noise: seconds after the direct sound's arrival.
_FADE = (0.080, 0.120)
#: Samples between the start of a response and the direct sound's arrival at the array's middle.
ONSET = 40
#: Taps of the filter that delays by parts of a sample.
_SINC = 40
_DISTANCE = (1.0, 4.0)
_TO_WALL = 0.5
_RISE = 0.5


@dataclass(frozen=True)
class ArrayRoom:
    """What chance decides about a room with P sources.

    Attributes:
        size: (3,) metres.
        rt60: seconds.
        array: the microphones, seen from their middle.
        middle: (3,) where that is, metres.
        look: direction of the array's front, degrees counter-clockwise from the room's x axis.
        azimuth: (P,) of the sources, degrees counter-clockwise from the array's front.
        distance, rise: (P,) metres: along the ground, and above the array.
        seed: of the noise.
    """

    size: np.ndarray
    rt60: float
    array: MicrophoneArray
    middle: np.ndarray
    look: float
    azimuth: np.ndarray
    distance: np.ndarray
    rise: np.ndarray
    seed: int

    @property
    def sources(self) -> np.ndarray:
        """(P, 3) metres."""
        turn = np.deg2rad(self.look + self.azimuth)
        way = np.stack([np.cos(turn) * self.distance, np.sin(turn) * self.distance, self.rise], 1)
        return self.middle + way

    @property
    def microphones(self) -> np.ndarray:
        """(M, 3) metres."""
        c, s = math.cos(math.radians(self.look)), math.sin(math.radians(self.look))
        places = np.array(self.array.positions)
        return self.middle + places @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def draw_room(positions: int, split: str = "train", seed: int = 0, index: int = 0,
              array: MicrophoneArray | None = None, path: bool = False) -> ArrayRoom:
    """Draw room number ``index`` of a split; every split has rooms of its own for every seed.

    Args:
        array: the microphones; None: a square, each room its own side from 0.10 to 0.13 m.
        path: sources in order along a circle, 360 / positions degrees apart; else anywhere, one
            in each of as many sectors.
    """
    random = np.random.default_rng(
        np.random.SeedSequence([seed, SPLITS.index(split), index, int(path)]))
    size = random.uniform(5.0, 15.0, 3)
    array = array or square_array(round(float(random.uniform(0.10, 0.13)), 4))
    margin = 1.6
    middle = np.array([*random.uniform(margin, size[:2] - margin), random.uniform(1.0, 1.2)])
    look = random.uniform(0.0, 360.0)
    spread = 0.0 if path else random.uniform(size=positions)
    azimuth = np.mod((np.arange(positions) + spread) * 360 / positions
                     + random.uniform(0.0, 360.0), 360.0)
    turn = np.deg2rad(look + azimuth)
    way = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    left = np.where(way > 0, size[:2] - _TO_WALL - middle[:2], middle[:2] - _TO_WALL)
    reach = np.minimum((left / np.maximum(np.abs(way), 1e-9)).min(1), _DISTANCE[1])
    if path:
        distance = np.full(positions, random.uniform(_DISTANCE[0], reach.min()))
        rise = np.full(positions, random.uniform(-_RISE, _RISE))
    else:
        distance = random.uniform(_DISTANCE[0], reach)
        rise = random.uniform(-_RISE, _RISE, positions)
    return ArrayRoom(size, float(random.uniform(0.5, 1.0)), array, middle, float(look), azimuth,
                     distance, rise, int(random.integers(2**31)))


def _image_sources(room: ArrayRoom) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per source: places (n, 3) of its images within reach, the source first, and their gains."""
    import pyroomacoustics as pra

    reach = _FADE[1] * SOUND_SPEED + room.distance.max()
    # Eyring: Sabine's formula would ask walls to take more than everything
    surface = 2 * (room.size * np.roll(room.size, 1)).sum()
    volume = room.size.prod()
    taken = 1 - math.exp(-24 * math.log(10) / SOUND_SPEED * volume / (surface * room.rt60))
    order = math.ceil(reach * math.sqrt((1 / room.size**2).sum())) + 2
    box = pra.ShoeBox(room.size, fs=SAMPLE_RATE, materials=pra.Material(taken), max_order=order,
                      air_absorption=False)
    for source in room.sources:
        box.add_source(source)
    box.add_microphone(room.middle)
    box.image_source_model()
    found = []
    for source in box.sources:
        distance = np.linalg.norm(source.images - room.middle[:, None], axis=0)
        near = distance - distance.min() < _FADE[1] * SOUND_SPEED
        rank = distance[near].argsort()
        found.append((source.images[:, near].T[rank].astype(np.float64),
                      source.damping[:, near].mean(0)[rank].astype(np.float64)))
    return found


def deposit(delay: np.ndarray, gain: np.ndarray, taps: int) -> np.ndarray:
    """Impulses between the samples: windowed sinc functions, added up.

    Args:
        delay, gain: (n,) samples and amplitudes.
    Returns:
        (taps,)
    """
    whole = np.floor(delay).astype(np.int64)
    offset = np.arange(-_SINC // 2 + 1, _SINC // 2 + 1)
    apart = offset[None] - (delay - whole)[:, None]
    shape = np.sinc(apart) * np.cos(np.pi * apart / (_SINC + 2)) ** 2
    place = whole[:, None] + offset
    fits = (place >= 0) & (place < taps)
    return np.bincount(place[fits], (gain[:, None] * shape)[fits], taps)


def diffuse_noise(array: MicrophoneArray, samples: int, count: int, random: np.random.Generator
                  ) -> np.ndarray:
    """White noise from all around: between microphones d apart the coherence is sin(kd) / kd.

    Returns:
        (count, M, samples) float32 of variance 1, without a seam at the ends.
    """
    frequency = scipy.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    places = np.array(array.positions)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    coherence = np.sinc(2 * frequency[:, None, None] * apart / SOUND_SPEED)
    root = np.linalg.cholesky(coherence + 1e-6 * np.eye(len(places))).astype(np.float32)
    white = scipy.fft.rfft(random.standard_normal((count, len(places), samples), np.float32))
    return scipy.fft.irfft(np.einsum("fij,cjf->cif", root, white), samples).astype(np.float32)


def render_room(room: ArrayRoom) -> np.ndarray:
    """Responses of all sources of a room, (P, M, taps) float32 at 16 kHz.

    The direct sound arrives at the array's middle after :data:`ONSET` samples, with an amplitude
    of 1 / metres.
    """
    rate, count = SAMPLE_RATE, len(room.azimuth)
    taps = scipy.fft.next_fast_len(round(1.02 * room.rt60 * rate) + ONSET, real=True)
    response = np.zeros((count, room.array.microphones, taps), np.float32)
    window_energy = 0.0
    for p, (places, gains) in enumerate(_image_sources(room)):
        direct = np.linalg.norm(places[0] - room.middle)
        for m, microphone in enumerate(room.microphones):
            distance = np.linalg.norm(places - microphone, axis=1)
            moment = (distance - direct) / SOUND_SPEED
            late = (moment >= _FADE[0]) & (moment < _FADE[1])
            window_energy += np.square(gains[late] / distance[late]).sum()
            fade = np.cos(0.5 * np.pi * np.clip(
                (moment - _FADE[0]) / (_FADE[1] - _FADE[0]), 0, 1))
            response[p, m] = deposit(moment * rate + ONSET, gains * fade / distance, taps)
    window_energy /= count * room.array.microphones
    moment = (np.arange(taps) - ONSET) / rate
    decay = -3 * math.log(10) / room.rt60  # of the amplitude: 60 dB in rt60
    rise = np.sin(0.5 * np.pi * np.clip((moment - _FADE[0]) / (_FADE[1] - _FADE[0]), 0, 1))
    window = np.arange(*_FADE, 1 / rate)
    level = math.sqrt(window_energy / np.exp(2 * decay * window).sum())
    # a circle's sources hear one tail: neighbours blend without a change of the room's sound
    is_path = bool(np.ptp(room.distance) == 0) and count > 1
    noise = diffuse_noise(room.array, taps, 1 if is_path else count,
                          np.random.default_rng(room.seed))
    return response + noise * (level * rise * np.exp(decay * moment)).astype(np.float32)


def _truncated(response: np.ndarray) -> np.ndarray:
    """Cut where the energy still to come is 50 dB below the whole, with a short fade."""
    energy = np.square(response.astype(np.float64)).sum((0, 1))
    left = energy[::-1].cumsum()[::-1]
    end = min(max(int(np.searchsorted(-left, -1e-5 * left[0])), 400), len(energy))
    response = response[..., :end].copy()
    response[..., -80:] *= (np.cos(np.linspace(0, np.pi / 2, 80)) ** 2).astype(np.float32)
    return response


def _folder(folder: str | Path, name: str, split: str) -> Path:
    return Path(folder) / name / split


def _make(index: int, folder: Path, positions: int, split: str, seed: int,
          array: MicrophoneArray | None, path: bool) -> None:
    target = folder / f"{index:04d}.safetensors"
    asked = {"seed": seed, "positions": positions, "path": path,
             "array": None if array is None else [list(p) for p in array.positions]}
    if target.is_file():
        with safe_open(str(target), "pt") as file:
            if json.loads((file.metadata() or {}).get("asked", "null")) == asked:
                return
    torch.set_num_threads(1)
    room = draw_room(positions, split, seed, index, array, path)
    response = _truncated(render_room(room))
    tensors = {"response": torch.from_numpy(response.astype(np.float16)),
               "azimuth": torch.from_numpy(room.azimuth.astype(np.float32)),
               "distance": torch.from_numpy(np.hypot(room.distance, room.rise).astype(np.float32)),
               "rt60": torch.tensor(room.rt60), "size": torch.tensor(room.size),
               "microphones": torch.tensor(room.array.positions)}
    temporary = target.with_suffix(".part")
    save_file(tensors, str(temporary), {"format": FORMAT, "asked": json.dumps(asked)})
    temporary.chmod(0o644)
    os.replace(temporary, target)


def make_bank(folder: str | Path, name: str, split: str, rooms: int, positions: int,
              seed: int = 0, array: MicrophoneArray | None = None, path: bool = False,
              jobs: int = 1, progress: bool = False) -> "ArrayBank":
    """Make the rooms that aren't there yet in ``folder/name/split``.

    Args:
        jobs: processes; 1: this one.
    Raises:
        ConfigError: no room asked for, or pyroomacoustics is missing.
    """
    if rooms < 1 or positions < 1 or jobs < 1:
        raise ConfigError("rooms, positions and jobs must be 1 or more")
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is none of {', '.join(SPLITS)}")
    try:
        import pyroomacoustics  # noqa: F401
    except ImportError:
        raise ConfigError("rooms need pyroomacoustics: `pip install pyroomacoustics`") from None
    place = _folder(folder, name, split)
    place.mkdir(parents=True, exist_ok=True)
    make = functools.partial(_make, folder=place, positions=positions, split=split, seed=seed,
                             array=array, path=path)
    bar = functools.partial(tqdm, total=rooms, desc=f"{name} {split}", unit="room",
                            disable=not progress)
    if jobs == 1:
        list(bar(map(make, range(rooms))))
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            list(bar(pool.map(make, range(rooms))))
    return ArrayBank.load(folder, name, split)


@dataclass
class ArrayBank:
    """Responses of R rooms with P sources each.

    Attributes:
        name, split: of the bank.
        response: (R, P, M, taps) float16 at 16 kHz, zero after the end of a shorter one.
        azimuth: (R, P) degrees, counter-clockwise from the front of the array.
        distance: (R, P) metres.
        rt60: (R,) seconds, as asked for.
        microphones: (R, M, 3) places of the microphones, metres.
        is_path: the sources of a room lie in order along a circle.
    """

    name: str
    split: str
    response: torch.Tensor
    azimuth: torch.Tensor
    distance: torch.Tensor
    rt60: torch.Tensor
    microphones: torch.Tensor
    is_path: bool = False

    def __len__(self) -> int:
        return len(self.response)

    @classmethod
    def load(cls, folder: str | Path, name: str, split: str) -> "ArrayBank":
        """All rooms of ``folder/name/split``.

        Raises:
            ConfigError: there are none, or they don't belong together; says what to do.
        """
        place = _folder(folder, name, split)
        files = sorted(place.glob("*.safetensors"))
        if not files:
            raise ConfigError(
                f"no rooms in {place}: run `python -m training.arrays.rooms --name {name} "
                f"--split {split} --out {folder}`")
        rooms, asked = [], None
        for path in files:
            try:
                with safe_open(str(path), "pt") as file:
                    about = file.metadata() or {}
                    if about.get("format") != FORMAT:
                        raise ConfigError(f"{path} wasn't made by training.arrays.rooms")
                    rooms.append({key: file.get_tensor(key) for key in file.keys()})
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{path} can't be read ({error}): delete it and make the rooms "
                                  "again") from None
            if asked is not None and about["asked"] != asked:
                raise ConfigError(f"{place} holds rooms of different banks: give each bank a name "
                                  "of its own with --name")
            asked = about["asked"]
        taps = max(room["response"].shape[-1] for room in rooms)
        response = torch.zeros(len(rooms), *rooms[0]["response"].shape[:2], taps,
                               dtype=torch.float16)
        for row, room in zip(response, rooms):
            row[..., :room["response"].shape[-1]] = room["response"]
        parts = {key: torch.stack([room[key] for room in rooms]).float()
                 for key in ("azimuth", "distance", "rt60", "microphones")}
        return cls(name, split, response, **parts, is_path=json.loads(asked)["path"])

    def summary(self) -> str:
        """One line."""
        rooms, positions, microphones, taps = self.response.shape
        return (f"{self.name} {self.split}: {rooms} rooms, {positions} positions, {microphones} "
                f"microphones, {taps} taps, RT60 {self.rt60.min():.2f} to {self.rt60.max():.2f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: see ``python -m training.arrays.rooms --help``."""
    parser = argparse.ArgumentParser(
        prog="python -m training.arrays.rooms",
        description="Make room responses of a microphone array; the same command resumes.")
    parser.add_argument("--array", default="square", help="'square' (0.10 to 0.13 m, each room its "
                        "own), or a YAML file")
    parser.add_argument("--name", help="of the bank; default: the array's, with -path")
    parser.add_argument("--rooms", type=int, default=60)
    parser.add_argument("--positions", type=int, help="sources in a room (default: 12, with --path "
                        "72)")
    parser.add_argument("--path", action="store_true",
                        help="sources in order along a circle, for moving sounds")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=DATA_FOLDER)
    options = parser.parse_args(arguments)
    try:
        array = None if options.array == "square" else load_array(options.array)
        name = options.name or ((array.name if array else "square")
                                + ("-path" if options.path else ""))
        bank = make_bank(options.out, name, options.split, options.rooms,
                         options.positions or (72 if options.path else 12), options.seed, array,
                         options.path, options.jobs, progress=True)
        print(bank.summary())
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
