"""The catalogue: all that is needed to make the benchmark's mixtures, in a few small files.

A version is a folder (``v1``, ``v2`` beside this module) that never changes once it is published:

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
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.pool import ClipPool
from training.rooms import Room, draw_room

FORMAT = "luseel-benchmark-1"
VERSIONS = ("v1", "v2")  # that come with the package
DEFAULT = VERSIONS[-1]
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
    """Read a version and check its hash.

    Args:
        folder: of the version, or the name of one of VERSIONS; None: the newest of these.

    Raises:
        ConfigError: a file is missing or was changed.
    """
    folder = DEFAULT if folder is None else folder
    folder = Path(__file__).parent / folder if folder in VERSIONS else Path(folder)
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


def shared_mixtures(one: Catalogue, other: Catalogue, name: str) -> list[int]:
    """Numbers of the mixtures of a set that two versions have in common, in sound and queries."""
    def content(catalogue: Catalogue, mixture: int) -> Any:
        sounds = catalogue.sounds[name][mixture]
        return (catalogue.seconds, catalogue.rooms, catalogue.scenes[name][mixture],
                [replace(sound, recording=0) for sound in sounds],
                [catalogue.recordings[sound.recording] for sound in sounds])

    common = min(len(c.scenes.get(name, ())) for c in (one, other))
    return [number for number in range(common) if content(one, number) == content(other, number)]


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
