"""Drawing a new version of the catalogue, or putting an old one right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from luseel_model.errors import ConfigError
from training import SAMPLE_RATE
from training.benchmark.catalogue import (
    ROOMS,
    BenchmarkScene,
    Catalogue,
    Sound,
    draw_rooms,
    find_recordings,
    usable_recordings,
    write_catalogue,
)
from training.captions import Captions
from training.evaluation import without_clashes
from training.pool import ClipPool


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


def _clashing(present: Collection[str], captions: Captions) -> set[str]:
    """Kinds that are there, and all that sound like one of them."""
    return set(present).union(*(captions.confusable(kind) for kind in present))


def _absent(kinds: Sequence[str], present: Collection[str], captions: Captions,
            generator: np.random.Generator) -> str:
    """One of the kinds that isn't there and sounds like none that is."""
    clashing = _clashing(present, captions)
    far = [kind for kind in kinds if kind not in clashing]
    if not far:
        raise ConfigError("too few kinds: nothing is left to ask for that isn't there")
    return far[generator.integers(len(far))]


#: How the bank of test rooms is made: arguments of `training.rooms.RoomBank.build`.
ROOM_BANK = {"rooms": 60, "positions": 10, "split": "test", "seed": 0, "rt60": [0.2, 0.8]}
#: Of v1 and v2.
SEED, AMEND_SEED = 20261121, 20261122


def make_catalogue(folder: str | Path, pool: ClipPool, captions: Captions,
                   rooms: Mapping[str, Any] | None = None, version: str = "v1",
                   seed: int = SEED, mixtures: int = 300, seconds: float = 10.0,
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
            room, position, azimuth, rt60 = 0, [0] * count, [0.0] * count, 0.0
            if rooms:
                room = mixture % len(drawn)
                position = generator.choice(rooms["positions"], count, replace=False).tolist()
                azimuth = [float(drawn[room].azimuth[p]) for p in position]
                rt60 = drawn[room].rt60
            scenes.append(BenchmarkScene(
                name, mixture, _absent(pool.kinds, present, captions, generator),
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


# -- putting a version right -----------------------------------------------------------------------


class _LeastHeard:
    """Finds recordings for places that became free, so that kinds stay as even as they can.

    Args:
        kinds: of all recordings of the old version.
        kept: numbers of those that stay.
        uses: how often a set of the old version hears each.
    """

    def __init__(self, kinds: Sequence[str], kept: Collection[int], uses: Counter[int],
                 generator: np.random.Generator):
        self._kinds, self._kept, self._generator = kinds, sorted(kept), generator
        self._most = max(uses.values())
        self._uses = Counter({i: n for i, n in uses.items() if i in kept})

    def take(self, allowed: Collection[str], besides: Collection[int] = ()) -> int:
        """A recording of the kind heard least among ``allowed``, and of that kind the one heard
        least; ``besides`` these. None is heard more often than any was before, where there is a
        choice."""
        of_kind: Counter[str] = Counter()
        for i in self._kept:
            of_kind[self._kinds[i]] += self._uses[i]
        free = [i for i in self._kept if self._kinds[i] in allowed and i not in besides]
        if not free:
            raise ConfigError("too few recordings: nothing is left that fits a scene")
        chance = self._generator.permutation(len(free))
        found = min(zip(free, chance), key=lambda item: (
            self._uses[item[0]] >= self._most, of_kind[self._kinds[item[0]]],
            self._uses[item[0]], item[1]))[0]
        self._uses[found] += 1
        return found

    def pair(self, heard: Sequence[int]) -> list[int]:
        """Two recordings of one kind, of the same as ``heard`` where it has others."""
        members = Counter(self._kinds[i] for i in self._kept)
        several = {kind for kind, count in members.items() if count > 1}
        places = [i if i in self._kept and self._kinds[i] in several else None for i in heard]
        for place, i in enumerate(places):
            if i is None:
                there = [k for k in places if k is not None]
                kind = self._kinds[there[0] if there else heard[0]]
                allowed = {kind} if there or kind in several else several
                places[place] = self.take(allowed, there)
        return places

    def others(self, heard: Sequence[int], captions: Captions) -> list[int]:
        """``heard`` with those that don't stay replaced by recordings of kinds that don't clash."""
        places = [i if i in self._kept else None for i in heard]
        for place, i in enumerate(places):
            if i is None:
                there = {self._kinds[k] for k in places if k is not None}
                places[place] = self.take(set(self._kinds) - _clashing(there, captions))
        return places


def amend_catalogue(folder: str | Path, source: Catalogue, pool: ClipPool, captions: Captions,
                    without: Collection[str], version: str, seed: int = AMEND_SEED) -> Catalogue:
    """Write a version that is another one without some of its recordings.

    Scenes that don't hear them stay as they are, under the same number. In the others each such
    sound is replaced by another test recording, from the same direction at the same level; of two
    sounds of one kind both are, where the kind has no other recording. The absent sound is drawn
    anew where it would sound like the new one.

    Args:
        folder: to write to.
        source: the version that is put right.
        pool: recordings of the test split.
        captions: held-out words, and kinds that sound alike.
        without: names of recordings.
        version: name of the new version.
        seed: of what is drawn.

    Raises:
        ConfigError: a name that isn't the source's, recordings that are not in the pool, too few
            left, or the folder holds another version.
    """
    if version == source.version:
        raise ConfigError(f"{version} is the name of the version that is put right: name the new "
                          "one (--version)")
    recordings = source.recordings
    unknown = sorted(set(without) - {recording.name for recording in recordings})
    if unknown:
        raise ConfigError(f"not recordings of {source.identity}: {', '.join(unknown)}")
    found = find_recordings(source, pool)
    if found.missing or found.altered:
        raise ConfigError(f"{len(found.missing) + len(found.altered)} recordings of "
                          f"{source.identity} are not in the pool as they were")
    kinds = [recording.kind for recording in recordings]
    kept = {i for i, recording in enumerate(recordings) if recording.name not in without}
    number = {old: new for new, old in enumerate(sorted(kept))}
    generator = np.random.default_rng(seed)

    def clip(i: int) -> np.ndarray:
        start = int(pool.start[found.place[i]])
        return pool.samples[start:start + recordings[i].samples].cpu().numpy()

    # what a pack of recordings knows may change, what the version asks for doesn't
    absent = sorted({scene.absent for group in source.scenes.values() for scene in group})
    scenes, sounds = [], []
    for name, sets in source.sounds.items():
        stock = _LeastHeard(kinds, kept, Counter(s.recording for group in sets for s in group),
                            generator)
        for scene, group in zip(source.scenes[name], sets):
            heard = [sound.recording for sound in group]
            if not kept.issuperset(heard):
                heard = stock.pair(heard) if name == "same" else stock.others(heard, captions)
                present = {kinds[i] for i in heard}
                if scene.absent in _clashing(present, captions):
                    scene = replace(scene, absent=_absent(absent, present, captions, generator))
            scenes.append(scene)
            for sound, i in zip(group, heard):
                if i != sound.recording:
                    offset, gap = start_in_window(clip(i), source.samples, generator)
                    sound = replace(sound, offset=offset, gap=gap,
                                    held_out=captions.held_out(kinds[i]))
                sounds.append(replace(sound, recording=number[i]))
    about = {"version": version, "seconds": source.seconds, "seed": source.seed,
             "rooms": dict(source.rooms), "cells": [asdict(c) for c in source.cells.values()],
             "amends": {"version": source.version, "sha256": source.sha256, "seed": seed,
                        "without": sorted(without)}}
    return write_catalogue(folder, about, [recordings[i] for i in sorted(kept)], scenes, sounds)
