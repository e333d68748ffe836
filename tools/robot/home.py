"""Simulated homes, and what the ears of a robot hear that drives and turns in them.

A home is a shoebox room with furniture (boxes that the base can't enter, but sound passes),
recordings of the test split as sources, and a start. Room responses come from
:func:`training.rooms.render_room`: image sources through a measured head, diffuse late part. The
robot's pose changes from hop to hop: each hop of ear signals is heard through the response at its
beginning and through the one at its end, and cross-faded between both. The direct sound arrives
without the travel time, so there is no Doppler effect.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np
import scipy.fft
import torch
from base import RADIUS, Floor, Pose

from luseel_model.errors import ConfigError
from luseel_model.heads import Head
from training import SAMPLE_RATE, rooms
from training.noise import diffuse_noise
from training.pool import ClipPool

EAR_HEIGHT = 1.1  # [m]
RT60 = (0.2, 0.6)  # [s]
HOP = 0.1  # [s] between two room responses
NEAREST = 0.4  # [m]; a source is never heard from closer
NEAREST_START = 3.0  # [m] from the target
LEVEL = 0.05  # RMS of the target at 1 m while it sounds
NOISE_DB = -50.0  # of the diffuse noise at the ears, against the target at 1 m
TARGET, QUERY = "baby crying", "a baby is crying"
#: What else may sound in a home, out of the labels of the corpus.
OTHERS = (
    "dog barking", "person speaking", "footsteps", "clock ticking", "water running", "guitar",
    "piano note", "telephone ringing", "cat meowing", "person sneezing", "eating or drinking",
    "crowd of people talking", "door opening or closing", "dog panting", "xylophone",
    "glass breaking or clinking", "hammering", "knocking on wood", "chair dragged on the floor",
    "violin", "harmonica", "paper rustling")
_GRID = 0.05  # [m] of the search for the shortest way


@dataclass(frozen=True)
class Source:
    """Something that sounds.

    Attributes:
        label: what it is, in words.
        name: of the recording.
        audio: (samples,) float32 at 16 kHz, as heard at 1 m; the whole run.
        times: (n,) seconds, rising; ``places`` (n, 3) metres: where it is then, on straight lines
            between.
    """

    label: str
    name: str
    audio: np.ndarray
    times: np.ndarray
    places: np.ndarray

    @property
    def moves(self) -> bool:
        """Whether it isn't always at the same place."""
        return len(self.times) > 1

    def at(self, time: float) -> np.ndarray:
        """Where it is, (3,) metres."""
        return np.array([np.interp(time, self.times, axis) for axis in self.places.T])

    def sounds(self, time: float) -> bool:
        """Whether it is heard within the 0.1 s from ``time`` on."""
        begin = round(time * SAMPLE_RATE)
        piece = self.audio[begin:begin + SAMPLE_RATE // 10]
        return bool(piece.size) and float(np.sqrt(np.square(piece).mean())) > 0.03 * LEVEL


@dataclass(frozen=True)
class Home:
    """A room with furniture and sounds; the target is the first source.

    Attributes:
        seed: it was drawn with.
        size: (3,) metres.
        rt60, band_rt60: as in :class:`training.rooms.Room`.
        boxes: (n, 4) x0, y0, x1, y1 of the furniture.
        sources: the target, then the competing ones.
        start: of the robot.
        seconds: length of the sources' audio.
        shortest: metres of the shortest way from the start to 1 m from where the target is then.
    """

    seed: int
    size: np.ndarray
    rt60: float
    band_rt60: np.ndarray
    boxes: np.ndarray
    sources: list[Source]
    start: Pose
    seconds: float
    shortest: float = field(default=math.nan)

    @property
    def target(self) -> Source:
        """What is looked for."""
        return self.sources[0]

    @property
    def floor(self) -> Floor:
        """For the base."""
        return Floor((float(self.size[0]), float(self.size[1])), self.boxes)

    def distance(self, pose: Pose, time: float) -> float:
        """Metres on the ground from there to the target."""
        x, y, _ = self.target.at(time)
        return math.hypot(x - pose.x, y - pose.y)


# -- drawing -------------------------------------------------------------------------------------


def draw_home(seed: int, pool: ClipPool, competing: int | None = None, seconds: float = 90.0,
              moving: bool = True) -> Home:
    """Draw a home.

    Rooms of 4 to 7 m by 4 to 6 m; up to four pieces of furniture that leave ways of 0.7 m; the
    target 3 m or more from the start; competing sounds 1.5 m or more from the target, between 6
    dB softer and 6 dB louder than it at the same distance. Half of the competing sounds walk about
    (``moving``), half come and go. The target stays where it is and pauses for up to 1.5 s.

    Args:
        pool: the test split (or any with babies).
        competing: sounds beside the target; None: one or two.
    """
    random = np.random.default_rng(np.random.SeedSequence([777, seed]))
    while True:
        size = np.array([random.uniform(4.0, 7.0), random.uniform(4.0, 6.0),
                         random.uniform(2.4, 3.0)])
        wanted = random.uniform(*RT60)
        high, low = random.uniform(0.5, 0.9), random.uniform(0.9, 1.2)
        octave = np.log2(rooms.BANDS / math.sqrt(500.0 * 1000.0))
        ratio = np.interp(octave, [octave[0], -0.5, 0.5, octave[-1]], [low, 1.0, 1.0, high])
        surface = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
        # Eyring: as in training.rooms, the walls can't take more than 90%
        if 24 * math.log(10) / rooms.SOUND_SPEED * size.prod() / (
                surface * wanted * ratio.min()) < -math.log(0.1):
            break
    boxes = _draw_boxes(random, size)
    floor = Floor((size[0], size[1]), boxes)
    others = int(random.integers(1, 3)) if competing is None else competing
    while True:
        places = _free_places(random, floor, 2 + others)
        apart = np.linalg.norm(places[:, None] - places[None], axis=2)
        if apart[0, 1] < NEAREST_START or (apart[1, 2:] < 1.5).any() or (apart[0, 2:] < 1.0).any():
            continue
        shortest = shortest_way(floor, places[0], places[1], 1.0)
        if math.isfinite(shortest):
            break
    start = Pose(*places[0], random.uniform(-math.pi, math.pi))
    labels = [TARGET, *map(str, random.permutation(
        [label for label in OTHERS if label in pool.labels])[:others])]
    sources = []
    for i, label in enumerate(labels):
        height = EAR_HEIGHT + random.uniform(-0.25, 0.25)
        first = np.append(places[1 + i], height)
        walks = i > 0 and moving and random.random() < 0.5
        comes = i > 0 and random.random() < 0.5
        gain_db = 0.0 if i == 0 else random.uniform(-6.0, 6.0)
        name, audio = _draw_sound(random, pool, label, seconds, comes)
        times, way = _draw_walk(random, floor, first, places[1], seconds) if walks else (
            np.zeros(1), first[None])
        sources.append(Source(label, name, audio * np.float32(LEVEL * 10 ** (gain_db / 20)),
                              times, way))
    return Home(seed, size, float(wanted), wanted * ratio, boxes, sources, start, seconds, shortest)


def _draw_boxes(random: np.random.Generator, size: np.ndarray) -> np.ndarray:
    """Furniture: against a wall, or 0.7 m or more from all else."""
    boxes: list[np.ndarray] = []
    for _ in range(int(random.integers(1, 5))):
        for _ in range(50):
            extent = random.uniform(0.4, 1.2, 2)
            corner = random.uniform(0, 1, 2) * (size[:2] - extent)
            side = random.integers(6)  # two of six stand free
            if side < 4:
                axis, far = divmod(int(side), 2)
                corner[axis] = size[axis] - extent[axis] if far else 0.0
            box = np.concatenate([corner, corner + extent])
            gaps = np.concatenate([corner, size[:2] - box[2:]])
            gaps = gaps[gaps > 1e-9]
            apart = [max(*(box[:2] - b[2:]), *(b[:2] - box[2:])) for b in boxes]
            if gaps.min() >= 0.7 and all(a >= 0.7 for a in apart):
                boxes.append(box)
                break
    return np.array(boxes).reshape(-1, 4)


def _free_places(random: np.random.Generator, floor: Floor, count: int) -> np.ndarray:
    """(count, 2) places with half a metre around them."""
    found: list[np.ndarray] = []
    while len(found) < count:
        place = random.uniform(0.5, np.array(floor.size) - 0.5)
        if floor.clearance(*place) >= 0.5:
            found.append(place)
    return np.array(found)


def _draw_walk(random: np.random.Generator, floor: Floor, first: np.ndarray, target: np.ndarray,
               seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Somebody walks between places, 1.2 m or more from the target, and stands in between."""
    times, places, now = [0.0], [first], 0.0
    while now < seconds:
        for _ in range(200):
            place = np.append(_free_places(random, floor, 1)[0], first[2])
            way = np.linspace(places[-1][:2], place[:2], 40)
            if (floor.clearance(*way.T).min() > 0.1
                    and np.linalg.norm(way - target, axis=1).min() > 1.2):
                break
        else:
            place = places[-1]
        rest = now + random.uniform(1.0, 6.0)
        now = rest + np.linalg.norm(place - places[-1]) / random.uniform(0.3, 0.7) + 1e-3
        times += [rest, now]
        places += [places[-1], place]
    return np.array(times), np.array(places)


def _draw_sound(random: np.random.Generator, pool: ClipPool, label: str, seconds: float,
                comes: bool) -> tuple[str, np.ndarray]:
    """A recording of this label, again and again with pauses; RMS 1 while it sounds.

    Args:
        comes: it also stays away, for 3 to 8 s at a time.
    """
    which = [i for i, name in enumerate(pool.labels) if name == label]
    if not which:
        raise ConfigError(f"no recording of {label!r} among the packed ones (docs/data.md)")
    index = int(random.choice(which))
    begin, length = int(pool.start[index]), int(pool.length[index])
    clip = pool.samples[begin:begin + length].numpy().astype(np.float32)
    clip = clip[:30 * SAMPLE_RATE]
    blocks = np.square(clip[:len(clip) // 160 * 160].reshape(-1, 160)).mean(1)
    clip /= math.sqrt(blocks[blocks > 1e-3 * blocks.max()].mean())
    fade = min(80, len(clip) // 2)
    clip[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
    clip[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    total = round(seconds * SAMPLE_RATE)
    audio = np.zeros(total, np.float32)
    place = round(random.uniform(0.0, 0.5) * SAMPLE_RATE)
    while place < total:
        piece = clip[:total - place]
        audio[place:place + len(piece)] = piece
        place += len(clip) + round(random.uniform(0.2, 1.5) * SAMPLE_RATE)
    if comes:
        on, now = bool(random.integers(2)), 0.0
        while now < seconds:
            end = now + (random.uniform(4.0, 12.0) if on else random.uniform(3.0, 8.0))
            if not on:
                audio[round(now * SAMPLE_RATE):round(end * SAMPLE_RATE)] = 0
            on, now = not on, end
    return pool.names[index], audio


def shortest_way(floor: Floor, start: np.ndarray, goal: np.ndarray, within: float) -> float:
    """Metres that the base must drive from a place until it is ``within`` metres of another.

    On a grid of 5 cm with 16 neighbours: up to 3% more than the truth. Infinite where there is no
    way.
    """
    nx, ny = (int(extent / _GRID) + 1 for extent in floor.size)
    x, y = np.meshgrid(np.arange(nx) * _GRID, np.arange(ny) * _GRID, indexing="ij")
    free = floor.clearance(x, y) >= RADIUS
    done = np.hypot(x - goal[0], y - goal[1]) <= within
    first = tuple(int(round(v / _GRID)) for v in start)
    steps = [(a, b, _GRID * math.hypot(a, b)) for a in range(-2, 3) for b in range(-2, 3)
             if math.gcd(a, b) == 1]
    best = {first: 0.0}
    heap = [(0.0, first)]
    while heap:
        cost, place = heapq.heappop(heap)
        if cost > best[place]:
            continue
        if done[place]:
            return cost
        for a, b, length in steps:
            there = place[0] + a, place[1] + b
            if not (0 <= there[0] < nx and 0 <= there[1] < ny and free[there]):
                continue
            if cost + length < best.get(there, math.inf):
                best[there] = cost + length
                heapq.heappush(heap, (cost + length, there))
    return math.inf


# -- hearing -------------------------------------------------------------------------------------


class Ears:
    """What two ears on the robot hear, hop by hop.

    Args:
        home: where.
        head: whose ears.
        noise: whether there is diffuse noise.
    """

    def __init__(self, home: Home, head: Head, noise: bool = True):
        self.home, self.head = home, head
        self.taps = round(1.05 * home.band_rt60.max() * SAMPLE_RATE) + 320
        self._size = scipy.fft.next_fast_len(self.taps + round(HOP * SAMPLE_RATE), real=True)
        self._known: dict = {}
        self._noise = np.zeros((2, SAMPLE_RATE), np.float32)
        if noise:
            generator = torch.Generator().manual_seed(home.seed)
            self._noise = diffuse_noise(head, 10 * SAMPLE_RATE, generator).numpy() * np.float32(
                LEVEL * 10 ** (NOISE_DB / 20))

    def response(self, pose: Pose, time: float) -> np.ndarray:
        """Of all sources at one pose, (P, 2, taps), rounded to 1 cm and half a degree."""
        return self._find(pose, time)[0]

    def _find(self, pose: Pose, time: float) -> tuple[np.ndarray, np.ndarray]:
        places = np.round(np.stack([s.at(time) for s in self.home.sources]), 2)
        x, y = round(pose.x, 2), round(pose.y, 2)
        look = round(2 * math.degrees(pose.yaw)) / 2
        key = (x, y, look, places.tobytes())
        if key not in self._known:
            while len(self._known) > 4:  # the newest few: a robot that stands needs no new ones
                self._known.pop(next(iter(self._known)))
            response = self._render(np.array([x, y, EAR_HEIGHT]), look, places)
            self._known[key] = response, scipy.fft.rfft(response, self._size)
        return self._known[key]

    def _render(self, head: np.ndarray, look: float, places: np.ndarray) -> np.ndarray:
        offset = places - head
        ground = np.hypot(offset[:, 0], offset[:, 1])
        turn = np.rad2deg(np.arctan2(offset[:, 1], offset[:, 0]))
        ground = np.maximum(ground, NEAREST)
        room = rooms.Room(
            self.home.size, self.home.rt60, self.home.band_rt60, head, look,
            np.mod(turn - look, 360.0), np.hypot(ground, offset[:, 2]), offset[:, 2], 1.0,
            self.home.seed)
        return rooms.render_room(room, self.head)

    def hear(self, time: float, before: Pose, after: Pose, seconds: float = HOP) -> np.ndarray:
        """The ear signals of one hop, (2, samples) float32 at 16 kHz.

        Args:
            time: at which the hop begins; the robot is at ``before`` then and at ``after`` at its
                end. Both at most 0.1 s apart.
        """
        begin, count = round(time * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
        first = self._wet(begin, count, self._find(before, time)[1])
        second = self._wet(begin, count, self._find(after, time + seconds)[1])
        fade = (np.arange(count, dtype=np.float32) + 0.5) / count
        out = first + fade * (second - first)
        index = np.arange(begin, begin + count) % self._noise.shape[1]
        return out + self._noise[:, index]

    def _wet(self, begin: int, count: int, spectrum: np.ndarray) -> np.ndarray:
        """``count`` samples from ``begin`` on of all sources through these responses."""
        past = self.taps - 1
        dry = np.zeros((len(self.home.sources), past + count), np.float32)
        for row, source in zip(dry, self.home.sources):
            piece = source.audio[max(begin - past, 0):begin + count]
            offset = max(past - begin, 0)
            row[offset:offset + len(piece)] = piece
        mixed = np.einsum("pf,pef->ef", scipy.fft.rfft(dry, self._size), spectrum)
        return scipy.fft.irfft(mixed, self._size)[:, past:past + count]
