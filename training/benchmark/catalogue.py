"""The catalogue: all that is needed to make the benchmark's mixtures, in a few small files.

A version is a folder (``v1`` beside this module) that never changes once it is published:

``catalogue.json``   version, length, cells, and the SHA-256 of all of it;
``recordings.csv``   the test recordings: name, kind, samples, SHA-256 of the samples;
``scenes.csv``       per mixture: level, absent sound, room, noise;
``sounds.csv``       per sound: recording, place in it, direction, level, paraphrase.

A *set* is a list of scenes ("two", "three", "same"), a *cell* is a set heard by one head in one
kind of surroundings. Cells share their sets, so that heads and rooms are compared on equal terms.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.captions import Captions
from training.evaluation import without_clashes
from training.pool import ClipPool
from training.rooms import Room, draw_room

FORMAT = "luseel-benchmark-1"
DEFAULT = Path(__file__).parent / "v1"
ROOMS = ("none", "room", "noise")
#: What a cell asks for: each sound by its label or in held-out words, and a sound that isn't there.
ASKED = ("label", "held_out", "absent")
_TABLES = ("recordings", "scenes", "sounds")


@dataclass(frozen=True)
class BenchmarkRecording:
    """A recording of the test split.

    Attributes:
        name: as in the packed table, unique.
        kind: its label in words.
        group: recordings of one series share it.
        samples: length at 16 kHz.
        sha256: of the int16 little-endian samples, first 16 hexadecimal digits.
    """

    name: str
    kind: str
    group: str
    samples: int
    sha256: str


@dataclass(frozen=True)
class Sound:
    """One sound of a scene.

    Attributes:
        set, mixture, source: where it belongs; source 0 is the anchor of the levels.
        recording: number of the row in ``recordings.csv``, from 0.
        azimuth: degrees in [0, 360), in cells without a room.
        position: index into the room's positions, in cells with one.
        room_azimuth: degrees in [0, 360) of that position.
        snr_db: level of the anchor over this sound before head and room.
        offset: sample of the recording that is heard first.
        gap: samples of silence before the recording starts again.
        held_out: a wording of its kind that training does not use.
    """

    set: str
    mixture: int
    source: int
    recording: int
    azimuth: float
    position: int
    room_azimuth: float
    snr_db: float
    offset: int
    gap: int
    held_out: str


@dataclass(frozen=True)
class BenchmarkScene:
    """What the sounds of a mixture share.

    Attributes:
        set, mixture: which.
        absent: a kind that is not in the mixture and sounds like none in it.
        level_db: root mean square of the mixture over both ears, dB re full scale.
        room: index into the bank of test rooms.
        rt60: the reverberation time asked of it, seconds.
        noise_db: level of all sounds over the diffuse noise, both ears together.
        noise_tilt: slope of the noise's spectrum, dB per octave.
        noise_seed: of the noise.
    """

    set: str
    mixture: int
    absent: str
    level_db: float
    room: int
    rt60: float
    noise_db: float
    noise_tilt: float
    noise_seed: int


@dataclass(frozen=True)
class Cell:
    """A set of scenes under one condition.

    Attributes:
        name: of the cell, e.g. "mit_kemar-2-none".
        set: of scenes: "two", "three", or "same" (two recordings of one kind).
        head: name of the head.
        room: "none", "room", or "noise" (room and noise).
        asked: of ASKED.
    """

    name: str
    set: str
    head: str
    room: str
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """A version of the benchmark, read-only.

    Attributes:
        version: its name.
        seconds: length of every mixture.
        seed: it was written from.
        rooms: what the bank of test rooms was made from.
        cells: by name, in the order in which they are evaluated.
        recordings: the recordings that sounds refer to.
        scenes, sounds: by set, then by mixture (and source).
        sha256: identity of the content, 64 hexadecimal digits.
        doubtful: recordings whose label their name doesn't bear out, and why; a remark, which
            changes no mixture and isn't part of the content.
    """

    version: str
    seconds: float
    seed: int
    rooms: Mapping[str, Any]
    cells: Mapping[str, Cell]
    recordings: tuple[BenchmarkRecording, ...]
    scenes: Mapping[str, tuple[BenchmarkScene, ...]]
    sounds: Mapping[str, tuple[tuple[Sound, ...], ...]]
    sha256: str
    doubtful: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Version and short hash: what a report names."""
        return f"{self.version} ({self.sha256[:12]})"

    @property
    def samples(self) -> int:
        """Length of a mixture at 16 kHz."""
        return round(self.seconds * SAMPLE_RATE)

    def size(self, cell: Cell | str) -> int:
        """Number of mixtures of a cell."""
        cell = self.cells[cell] if isinstance(cell, str) else cell
        return len(self.scenes[cell.set])

    def choose(self, names: Sequence[str] | None = None) -> list[Cell]:
        """Cells by name, all without names, in the catalogue's order; "*" stands for anything.

        Raises:
            ConfigError: a name that fits no cell.
        """
        from fnmatch import fnmatchcase

        if not names:
            return list(self.cells.values())
        chosen = set()
        for name in names:
            found = [cell for cell in self.cells if fnmatchcase(cell, name)]
            if not found:
                raise ConfigError(f"no cell {name!r}: there are {', '.join(self.cells)}")
            chosen.update(found)
        return [cell for name, cell in self.cells.items() if name in chosen]


# -- files -----------------------------------------------------------------------------------------


def _rows(kind: type, items: Sequence[Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(item) for item in items)
    return text.getvalue()


def _parse(kind: type, text: str, where: str) -> list[Any]:
    convert = {"int": int, "float": float, "str": str}
    types = {f.name: convert[f.type] for f in fields(kind)}
    reader = csv.DictReader(io.StringIO(text))
    if reader.fieldnames != list(types):
        raise ConfigError(f"{where}: columns {reader.fieldnames}, expected {list(types)}")
    return [kind(**{key: types[key](value) for key, value in row.items()}) for row in reader]


def _digest(head: Mapping[str, Any], tables: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    plain = {key: value for key, value in head.items() if key != "sha256"}
    digest.update(json.dumps(plain, sort_keys=True).encode())
    for name in _TABLES:
        digest.update(f"\n{name}\n".encode() + tables[name].encode())
    return digest.hexdigest()


def write_catalogue(folder: str | Path, head: Mapping[str, Any],
                    recordings: Sequence[BenchmarkRecording], scenes: Sequence[BenchmarkScene],
                    sounds: Sequence[Sound]) -> Catalogue:
    """Write a version's files and read them back.

    Args:
        head: version, seconds, seed, rooms and cells (a list of dicts).

    Raises:
        ConfigError: the folder holds a version with other content.
    """
    folder = Path(folder)
    tables = {"recordings": _rows(BenchmarkRecording, recordings),
              "scenes": _rows(BenchmarkScene, scenes), "sounds": _rows(Sound, sounds)}
    head = {"format": FORMAT, **head}
    head = {**head, "sha256": _digest(head, tables)}
    try:
        existing = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError):
        existing = head["sha256"]
    if existing != head["sha256"]:
        raise ConfigError(f"{folder} holds another catalogue ({existing[:12]}): a version never "
                          "changes; write to a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    (folder / "catalogue.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
    return load_catalogue(folder)


def load_catalogue(folder: str | Path | None = None) -> Catalogue:
    """Read a version (default: the one that comes with the package) and check its hash.

    Raises:
        ConfigError: a file is missing or was changed.
    """
    folder = Path(folder) if folder is not None else DEFAULT
    try:
        head = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        tables = {name: (folder / f"{name}.csv").read_bytes().decode() for name in _TABLES}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is not a benchmark catalogue: {error}") from None
    if head.get("format") != FORMAT:
        raise ConfigError(f"{folder}: format {head.get('format')!r}, expected {FORMAT}")
    if _digest(head, tables) != head.get("sha256"):
        raise ConfigError(f"{folder} was changed after it was written: its content does not have "
                          "the hash it names. Take the version from the repository again (or write "
                          "a new one with `luseel-benchmark-set write`)")
    scenes, sounds = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for scene in _parse(BenchmarkScene, tables["scenes"], f"{folder}/scenes.csv"):
        scenes[scene.set].append(scene)
    for sound in _parse(Sound, tables["sounds"], f"{folder}/sounds.csv"):
        sounds[sound.set][sound.mixture].append(sound)
    cells = [Cell(**{**cell, "asked": tuple(cell["asked"])}) for cell in head["cells"]]
    return Catalogue(
        head["version"], float(head["seconds"]), head["seed"], head["rooms"],
        {cell.name: cell for cell in cells},
        tuple(_parse(BenchmarkRecording, tables["recordings"], f"{folder}/recordings.csv")),
        {name: tuple(items) for name, items in scenes.items()},
        {name: tuple(tuple(mixtures[scene.mixture]) for scene in scenes[name])
         for name, mixtures in sounds.items()},
        head["sha256"], _doubtful(folder / "doubtful_labels.csv"))


def _doubtful(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["recording"]: row["why"] for row in csv.DictReader(file)}


# -- the recordings here ---------------------------------------------------------------------------


def sample_hash(samples: np.ndarray) -> str:
    """Identity of a recording's int16 samples, 16 hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(samples, "<i2").tobytes()).hexdigest()[:16]


def usable_recordings(pool: ClipPool) -> tuple[list[BenchmarkRecording], list[np.ndarray]]:
    """The recordings of a pool that are of a kind that training has, and their samples."""
    start, length = pool.start.tolist(), pool.length.tolist()
    samples = pool.samples.cpu().numpy()
    usable = [i for i in range(len(pool)) if int(pool.kind[i]) >= 0]
    clips = [samples[start[i]:start[i] + length[i]] for i in usable]
    return [BenchmarkRecording(pool.names[i], pool.labels[i], pool.groups[i], length[i],
                               sample_hash(clip)) for i, clip in zip(usable, clips)], clips


@dataclass(frozen=True)
class Found:
    """Where the catalogue's recordings are in a pool.

    Attributes:
        place: index into the pool per recording of the catalogue, -1 where it is missing.
        missing: names of recordings that aren't there.
        altered: names of recordings that are there with other samples (another codec's version).
    """

    place: np.ndarray
    missing: tuple[str, ...]
    altered: tuple[str, ...]


def _clip(name: str) -> str:
    """Name of a recording without its source set, which is called as the folder it lay in."""
    return name.partition("/")[2] or name


def find_recordings(catalogue: Catalogue, pool: ClipPool) -> Found:
    """Look the catalogue's recordings up in a pool.

    By their samples, so that it doesn't matter how somebody called the sets; else by name and
    length (within 1%), for those that another version of a codec has decoded.
    """
    start, length = pool.start.tolist(), pool.length.tolist()
    samples = pool.samples.cpu().numpy()
    by_samples = {sample_hash(samples[s:s + n]): i for i, (s, n) in enumerate(zip(start, length))}
    by_name = {_clip(name): i for i, name in enumerate(pool.names)}
    place = np.full(len(catalogue.recordings), -1, dtype=np.int64)
    missing, altered = [], []
    for number, wanted in enumerate(catalogue.recordings):
        i = by_samples.get(wanted.sha256, -1)
        if i < 0:
            i = by_name.get(_clip(wanted.name), -1)
            if i < 0 or abs(length[i] - wanted.samples) > 0.01 * wanted.samples:
                missing.append(wanted.name)
                continue
            altered.append(wanted.name)
        place[number] = i
    return Found(place, tuple(missing), tuple(altered))


def draw_rooms(about: Mapping[str, Any]) -> list[Room]:
    """The test rooms as chance decided them: sizes, directions; nothing is heard yet."""
    return [draw_room(about["positions"], about["split"], about["seed"], index,
                      tuple(about["rt60"])) for index in range(about["rooms"])]


# -- writing a new version -------------------------------------------------------------------------


def quotas(counts: Mapping[str, int], slots: int) -> dict[str, int]:
    """How often each kind is heard: all equally, but no recording twice as often as the average.

    Args:
        counts: recordings of each kind.
        slots: number of sounds to fill.

    Returns:
        uses per kind; they sum to ``slots``.
    """
    cap = -(-2 * slots // sum(counts.values()))
    room = {kind: cap * number for kind, number in counts.items()}
    uses = dict.fromkeys(counts, 0)
    left = slots
    while left:
        open_kinds = [kind for kind in sorted(counts) if uses[kind] < room[kind]]
        for kind in open_kinds[:left] if left < len(open_kinds) else open_kinds:
            uses[kind] += 1
            left -= 1
    return uses


def spread_kinds(kinds: Sequence[str], slots: int, generator: np.random.Generator) -> np.ndarray:
    """Recordings (slots,) in random order, kinds after `quotas`, recordings of a kind in turn."""
    members = defaultdict(list)
    for index, kind in enumerate(kinds):
        members[kind].append(index)
    uses = quotas({kind: len(m) for kind, m in members.items()}, slots)
    chosen: list[int] = []
    for kind in sorted(members):
        turns = -(-uses[kind] // len(members[kind]))
        order = [i for _ in range(turns) for i in generator.permutation(members[kind]).tolist()]
        chosen += order[:uses[kind]]
    return generator.permutation(np.array(chosen, dtype=np.int64))


def _pairs_of_one_kind(kinds: Sequence[str], mixtures: int,
                       generator: np.random.Generator) -> np.ndarray:
    """(mixtures, 2) different recordings of one kind, kinds equally often."""
    members = defaultdict(list)
    for index, kind in enumerate(kinds):
        members[kind].append(index)
    several = sorted(kind for kind, m in members.items() if len(m) > 1)
    if not several:
        raise ConfigError("no kind has two recordings: there can be no same-kind mixtures")
    turns = -(-mixtures // len(several))
    order = [k for _ in range(turns) for k in generator.permutation(several).tolist()][:mixtures]
    return np.array([generator.choice(members[kind], 2, replace=False) for kind in order])


def start_in_window(samples: np.ndarray, window: int, generator: np.random.Generator
                    ) -> tuple[int, int]:
    """Where a recording starts and how long it pauses before it repeats, in samples.

    A recording longer than the window is cut where its energy is at most 6 dB below its mean.
    """
    longest = min(round(0.8 * SAMPLE_RATE), window // 4)  # never silence alone
    gap = int(generator.integers(min(round(0.1 * SAMPLE_RATE), longest - 1), longest))
    spare = samples.size - window
    if spare <= 0:
        return int(generator.integers(samples.size + gap)), gap
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    needed = 0.25 * energy[-1] / samples.size * window
    for _ in range(50):
        offset = int(generator.integers(spare + 1))
        if energy[offset + window] - energy[offset] >= needed:
            break
    return offset, gap


#: How the bank of test rooms is made: arguments of `training.rooms.RoomBank.build`.
ROOM_BANK = {"rooms": 60, "positions": 10, "split": "test", "seed": 0, "rt60": [0.2, 0.8]}


def make_catalogue(folder: str | Path, pool: ClipPool, captions: Captions,
                   rooms: Mapping[str, Any] | None = None, version: str = "v1",
                   seed: int = 20261121, mixtures: int = 300, seconds: float = 10.0,
                   heads: Sequence[str] = ("mit_kemar", "fabian")) -> Catalogue:
    """Draw a new version from recordings and write it.

    Args:
        folder: to write to.
        pool: recordings of the test split; those of kinds that training doesn't have are left out.
        captions: held-out words, and kinds that sound alike.
        rooms: how the bank of test rooms is made, as ROOM_BANK; None: no cells with rooms.
        mixtures: per set.
        heads: the first is the seen one.

    Raises:
        ConfigError: too few kinds, or the folder holds another version.
    """
    generator = np.random.default_rng(seed)
    window = round(seconds * SAMPLE_RATE)
    recordings, clips = usable_recordings(pool)
    kinds = [recording.kind for recording in recordings]
    near = {kind: captions.confusable(kind) for kind in pool.kinds}
    drawn = draw_rooms(rooms) if rooms else []
    scenes, sounds = [], []
    for name, count in (("two", 2), ("three", 3), ("same", 2)):
        if name == "same":
            slots = _pairs_of_one_kind(kinds, mixtures, generator)
        else:
            spread = spread_kinds(kinds, mixtures * count, generator)
            slots = without_clashes(spread.reshape(mixtures, count), kinds, near, generator)
        for mixture, row in enumerate(slots.tolist()):
            present = {kinds[i] for i in row}
            far = [kind for kind in pool.kinds
                   if kind not in present.union(*(near.get(kind, set()) for kind in present))]
            if not far:
                raise ConfigError("too few kinds: nothing is left to ask for that isn't there")
            room, position, azimuth, rt60 = 0, [0] * count, [0.0] * count, 0.0
            if rooms:
                room = mixture % len(drawn)
                position = generator.choice(rooms["positions"], count, replace=False).tolist()
                azimuth = [float(drawn[room].azimuth[p]) for p in position]
                rt60 = drawn[room].rt60
            scenes.append(BenchmarkScene(
                name, mixture, far[generator.integers(len(far))],
                round(float(generator.uniform(-35.0, -20.0)), 2), room, round(rt60, 3),
                round(float(generator.uniform(5.0, 20.0)), 2),
                round(float(generator.uniform(-6.0, 0.0)), 2), int(generator.integers(2 ** 31))))
            for source, i in enumerate(row):
                offset, gap = start_in_window(clips[i], window, generator)
                snr = 0.0 if source == 0 else round(float(generator.uniform(-5.0, 5.0)), 2)
                sounds.append(Sound(
                    name, mixture, source, i, round(float(generator.uniform(0.0, 359.95)), 1),
                    position[source], round(azimuth[source], 2), snr, offset, gap,
                    captions.held_out(kinds[i])))
    cells = []
    for room in ROOMS if rooms else ROOMS[:1]:
        for name, count in (("two", 2), ("three", 3)):
            for head in heads:
                asked = ["label", "absent"]
                if (name, head, room) == ("two", heads[0], "none"):
                    asked.insert(1, "held_out")
                cells.append({"name": f"{head}-{count}-{room}", "set": name, "head": head,
                              "room": room, "asked": asked})
    cells.append({"name": f"{heads[0]}-same-none", "set": "same", "head": heads[0], "room": "none",
                  "asked": ["label"]})
    about = {"version": version, "seconds": seconds, "seed": seed,
             "rooms": dict(rooms or {}), "cells": cells}
    return write_catalogue(folder, about, recordings, scenes, sounds)
