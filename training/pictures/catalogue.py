"""The catalogue of pictures, and what recordings they go with."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from training.corpus.debian import CorpusError

CATALOGUE = Path(__file__).with_name("catalogue.csv")
CONCEPTS = Path(__file__).with_name("concepts.csv")
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Picture:
    """One row of the catalogue.

    Attributes:
        package: of Debian, or of npm where it begins with ``@``.
        path: inside the unpacked package; ``unz/...`` for a member of a container in it,
            ``font.ttf#1f415`` for the glyph of a character in a colour font.
        concept: what it shows.
        split: train, valid or test.
        licence: of the picture.
    """

    package: str
    path: str
    concept: str
    split: str
    licence: str


def read_catalogue(path: str | Path = CATALOGUE) -> list[Picture]:
    """Raises:
        CorpusError: missing file or column, an unknown split, or a picture named twice.
    """
    rows = _read(path, Picture.__dataclass_fields__)
    pictures = [Picture(**{name: row[name] for name in Picture.__dataclass_fields__})
                for row in rows]
    seen: set[tuple[str, str]] = set()
    for picture in pictures:
        if picture.split not in SPLITS:
            raise CorpusError(f"{path}: {picture.path}: the split {picture.split!r} is none of "
                              f"{', '.join(SPLITS)}")
        if (picture.package, picture.path) in seen:
            raise CorpusError(f"{path}: {picture.path} is there twice")
        seen.add((picture.package, picture.path))
    return pictures


def read_concepts(path: str | Path = CONCEPTS) -> dict[str, tuple[str, ...]]:
    """Concept → labels of the recordings it goes with.

    Raises:
        CorpusError: missing file or column, or a kind that two concepts share: a picture must say
            which of a mixture's sounds is meant.
    """
    concepts = {row["concept"]: tuple(row["kinds"].split(";"))
                for row in _read(path, ("concept", "kinds"))}
    owner: dict[str, str] = {}
    for concept, kinds in concepts.items():
        for kind in kinds:
            if owner.setdefault(kind, concept) != concept:
                raise CorpusError(f"{path}: {kind!r} belongs to {owner[kind]!r} and {concept!r}")
    return concepts


def _read(path: str | Path, columns) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise CorpusError(f"{path}: column {', '.join(missing)} is missing")
            return list(reader)
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error}") from error
