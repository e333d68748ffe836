"""Which packed recordings are left out of training, or trained on under another label.

``exclusions.csv`` beside this module is the outcome of :mod:`training.corpus.clean` on the
recordings of docs/data.md. It concerns training and validation; test recordings always stay.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping

from luseel_model.errors import ConfigError
from training import SAMPLE_RATE

DEFAULT_PATH = Path(__file__).with_name("exclusions.csv")
#: Columns of the file; ``relabel`` is empty where the recording is left out.
COLUMNS = ("split", "clip", "label", "seconds", "relabel", "reason", "figures")
#: Packed durations may differ by this much between two builds of one recording.
TOLERANCE = 0.06


def clip_of(name: str) -> str:
    """A recording's name without that of its set, which is only the name of a folder."""
    return name.split("/", 1)[-1]


@dataclass(frozen=True)
class Exclusion:
    """One row: what happens to a recording, why, and the figures that say so.

    A recording is known by its clip, label and packed duration together, so that another
    recording that happens to have the same file name is never meant.
    """

    split: str
    clip: str
    label: str
    seconds: float
    relabel: str
    reason: str
    figures: str


@dataclass
class Changed:
    """How many recordings were left out, for each reason, and how many got another label."""

    left_out: Counter = field(default_factory=Counter)
    relabelled: int = 0

    def __bool__(self) -> bool:
        return bool(self.left_out or self.relabelled)

    def line(self, split: str) -> str:
        """For people, in one line."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        return (f"{split}: {sum(self.left_out.values())} recordings left out"
                f"{f' ({reasons})' if reasons else ''}, {self.relabelled} relabelled")


@dataclass(frozen=True)
class Exclusions:
    """The rows of an exclusions file, ready to be looked up."""

    rows: Mapping[tuple[str, str], tuple[Exclusion, ...]] = field(default_factory=dict)
    digest: str = ""

    @classmethod
    def load(cls, path: str | Path = DEFAULT_PATH) -> Exclusions:
        """Read an exclusions file.

        Raises:
            ConfigError: it is missing, lacks a column, or a row makes no sense.
        """
        path = Path(path)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"can't read the exclusions {path}: {error}") from None
        reader = csv.DictReader(raw.decode("utf-8").splitlines())
        missing = set(COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise ConfigError(f"{path} lacks the column(s) {', '.join(sorted(missing))}")
        rows = []
        for number, row in enumerate(reader, 2):
            if row["split"] not in ("train", "valid"):
                raise ConfigError(f"{path}, line {number}: split {row['split']!r}: only recordings "
                                  "of train and valid can be left out, the test stays as it is")
            try:
                seconds = float(row["seconds"])
            except (TypeError, ValueError):
                raise ConfigError(f"{path}, line {number}: seconds {row['seconds']!r} is no number"
                                  ) from None
            rows.append(Exclusion(**{**{key: row[key] for key in COLUMNS}, "seconds": seconds}))
        return cls.of(rows, hashlib.sha256(raw).hexdigest())

    @classmethod
    def of(cls, rows: Iterable[Exclusion], digest: str = "") -> Exclusions:
        """From rows in memory."""
        found: dict[tuple[str, str], list[Exclusion]] = {}
        for row in rows:
            found.setdefault((row.split, row.clip), []).append(row)
        return cls({key: tuple(value) for key, value in found.items()}, digest)

    def find(self, split: str, name: str, label: str, seconds: float) -> Exclusion | None:
        """The row about a recording (``name`` with its set, ``seconds`` as packed), or None."""
        for row in self.rows.get((split, clip_of(name)), ()):
            if row.label == label and abs(row.seconds - seconds) <= TOLERANCE:
                return row
        return None

    def apply(self, rows: Iterable[dict[str, str]], split: str
              ) -> tuple[list[dict[str, str]], Changed]:
        """The rows of a packed table that stay, relabelled ones as copies, and what changed."""
        kept, changed = [], Changed()
        for row in rows:
            seconds = int(row["length"]) / SAMPLE_RATE
            found = self.find(split, row["name"], row["label"], seconds)
            if found is None:
                kept.append(row)
            elif found.relabel:
                changed.relabelled += 1
                kept.append({**row, "label": found.relabel})
            else:
                changed.left_out[found.reason] += 1
        return kept, changed
