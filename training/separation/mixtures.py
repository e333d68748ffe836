"""The mixtures: two test recordings at 0 dB, the first of them asked for (paper 004, section 4).

A version is a folder as the benchmark's (training/benchmark/catalogue.py), with ``queries.csv``
beside: what each target is asked for by. The same mixtures are heard plain ("mono", as in the
paper) or by the two ears of a head.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luseel_model.errors import ConfigError
from luseel_model.heads import Head
from training import SAMPLE_RATE
from training.benchmark.catalogue import (BenchmarkScene, Catalogue, Sound, load_catalogue,
                                          usable_recordings, write_catalogue)
from training.benchmark.draw import spread_kinds, start_in_window
from training.captions import Captions
from training.evaluation import without_clashes
from training.heads import load_head
from training.pool import ClipPool

DEFAULT = Path(__file__).parent / "v1"
MONO = "mono"
_COLUMNS = ("mixture", "label", "caption", "held_out", "other")


@dataclass(frozen=True)
class Queries:
    """What the target of a mixture is asked for by.

    Attributes:
        label: the kind's label.
        caption: a wording that training uses, in the place of AudioCaps' captions.
        held_out: wordings that training doesn't use, in the place of other people's descriptions.
        other: label of the other sound.
    """

    label: str
    caption: str
    held_out: tuple[str, ...]
    other: str


@dataclass(frozen=True)
class Mixtures:
    """A version: the catalogue, and queries by mixture."""

    catalogue: Catalogue
    queries: tuple[Queries, ...]


def head_of(cell: str) -> Head:
    """The cell's head; for mono one that changes nothing."""
    return Head(MONO, torch.ones(360, 2, 1)) if cell == MONO else load_head(cell)


def _table(queries: Sequence[Queries]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for i, q in enumerate(queries):
        writer.writerow([i, q.label, q.caption, "|".join(q.held_out), q.other])
    return text.getvalue()


def make_mixtures(folder: str | Path, pool: ClipPool, captions: Captions, version: str = "v1",
                  seed: int = 20261121, mixtures: int = 320, seconds: float = 10.0,
                  heads: Sequence[str] = ("mit_kemar",)) -> Mixtures:
    """Draw a new version from recordings of the test split and write it.

    Raises:
        ConfigError: the folder holds another version.
    """
    generator = np.random.default_rng(seed)
    window = round(seconds * SAMPLE_RATE)
    recordings, clips = usable_recordings(pool)
    kinds = [recording.kind for recording in recordings]
    near = {kind: captions.confusable(kind) for kind in pool.kinds}
    slots = without_clashes(spread_kinds(kinds, 2 * mixtures, generator).reshape(mixtures, 2), kinds,
                            near, generator)
    scenes, sounds, queries = [], [], []
    for mixture, row in enumerate(slots.tolist()):
        scenes.append(BenchmarkScene("two", mixture, "", -25.0, 0, 0.0, 0.0, 0.0, 0))
        for source, i in enumerate(row):
            offset, gap = start_in_window(clips[i], window, generator)
            azimuth = round(float(generator.uniform(0.0, 359.95)), 1)
            sounds.append(Sound("two", mixture, source, i, azimuth, 0, 0.0, 0.0, offset, gap,
                                captions.held_out(kinds[i])))
        kind, other = (kinds[i] for i in row)
        wordings = captions.phrases(kind)[1:] or [kind]
        queries.append(Queries(kind, wordings[int(generator.integers(len(wordings)))],
                               tuple(captions.held_out_variants(kind)), other))
    cells = [{"name": name, "set": "two", "head": name, "room": "none", "asked": ["label"]}
             for name in (MONO, *heads)]
    text = _table(queries)
    head = {"version": version, "seconds": seconds, "seed": seed, "rooms": {}, "cells": cells,
            "queries_sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_catalogue(folder, head, recordings, scenes, sounds)
    (Path(folder) / "queries.csv").write_text(text, encoding="utf-8", newline="")
    return load_mixtures(folder)


def load_mixtures(folder: str | Path | None = None) -> Mixtures:
    """Read a version (default: the one that comes with the package) and check its hashes.

    Raises:
        ConfigError: a file is missing or was changed.
    """
    folder = Path(folder) if folder is not None else DEFAULT
    catalogue = load_catalogue(folder)
    try:
        head: Mapping[str, Any] = json.loads((folder / "catalogue.json").read_text("utf-8"))
        text = (folder / "queries.csv").read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is not a catalogue of mixtures: {error}") from None
    if hashlib.sha256(text.encode()).hexdigest() != head.get("queries_sha256"):
        raise ConfigError(f"{folder}/queries.csv was changed after it was written: take it from "
                          "the repository again")
    rows = list(csv.DictReader(io.StringIO(text)))
    return Mixtures(catalogue, tuple(
        Queries(row["label"], row["caption"], tuple(row["held_out"].split("|")), row["other"])
        for row in rows))
