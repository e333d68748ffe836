"""All recordings of one split in memory on one device, ready for batched gathering."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from luseel_model.errors import ConfigError
from training.corpus.exclusions import DEFAULT_PATH, Exclusions

#: Samples of a block of the energy profile (10 ms).
BLOCK = 160
#: Samples of the longest recording (17 minutes): positions in it are exact in float32.
LONGEST = 1 << 24
#: Blocks this far below the loudest block of a recording count as silent (dB).
QUIET_DB = -30.0


class ClipPool:
    """Recordings of one split, concatenated.

    Attributes:
        samples: (total,) int16, 16 kHz mono.
        start, length: (n,) int64, samples.
        kind: (n,) int64 index into ``kinds``; -1 where the label is none of them.
        kinds: label words, the same list in the same order for all splits of a folder.
        names, groups, sources, labels, categories, flags: one string a recording.
        group: (n,) int64 number of the group.
        activity: (blocks + 1,) float64, running sum of the square root of the energy of 10 ms
            blocks that are not near-silent; recording i owns its steps from ``block_start[i]`` to
            ``block_start[i + 1]``.
        block_start: (n + 1,) int64.
        device: where the tensors are.
    """

    def __init__(self, samples: torch.Tensor, start: Sequence[int], length: Sequence[int],
                 labels: Sequence[str], kinds: Sequence[str], names: Sequence[str] | None = None,
                 groups: Sequence[str] | None = None, sources: Sequence[str] | None = None,
                 categories: Sequence[str] | None = None, flags: Sequence[str] | None = None,
                 device: torch.device | str = "cpu") -> None:
        count = len(labels)
        if count == 0:
            raise ConfigError("the pool has no recordings")
        self.device = torch.device(device)
        self.kinds = list(kinds)
        self.labels = list(labels)
        self.names = list(names) if names is not None else [str(i) for i in range(count)]
        self.groups = list(groups) if groups is not None else list(self.names)
        self.sources = list(sources) if sources is not None else [""] * count
        self.categories = list(categories) if categories is not None else [""] * count
        self.flags = list(flags) if flags is not None else [""] * count
        place = {kind: i for i, kind in enumerate(self.kinds)}
        numbers: dict[str, int] = {}
        self.kind = torch.tensor([place.get(label, -1) for label in self.labels], device=device)
        self.group = torch.tensor([numbers.setdefault(g, len(numbers)) for g in self.groups],
                                  device=device)
        self.start = torch.as_tensor(np.asarray(start, dtype=np.int64)).to(device)
        self.length = torch.as_tensor(np.asarray(length, dtype=np.int64)).to(device)
        end = int((self.start + self.length).max())
        if samples.dtype != torch.int16 or end > samples.numel() or int(self.length.min()) < 1:
            raise ConfigError("the packed samples don't fit their table: pack them again with "
                              "`luseel-corpus pack`")
        if int(self.length.max()) >= LONGEST:
            raise ConfigError(f"recordings must be shorter than {LONGEST} samples: cut them first")
        activity, block_start = _activity(samples.cpu().numpy(), self.start.tolist(),
                                          self.length.tolist(), self.names)
        self.activity = torch.as_tensor(activity).to(device)
        self.block_start = torch.as_tensor(block_start).to(device)
        self.samples = samples.to(device)

    def __len__(self) -> int:
        return len(self.names)

    def joined(self, other: "ClipPool") -> "ClipPool":
        """This pool with the other's recordings behind its own; the kinds stay this one's."""
        both = ((self.names, other.names), (self.groups, other.groups),
                (self.sources, other.sources), (self.categories, other.categories),
                (self.flags, other.flags))
        samples = torch.cat([self.samples, other.samples.to(self.device)])
        return ClipPool(
            samples, torch.cat([self.start.cpu(), other.start.cpu() + len(self.samples)]),
            torch.cat([self.length.cpu(), other.length.cpu()]), self.labels + other.labels,
            self.kinds, *(a + b for a, b in both), device=self.device)

    @classmethod
    def load(cls, folder: str | Path, split: str, device: torch.device | str = "cpu",
             exclusions: str | Path | None = DEFAULT_PATH) -> "ClipPool":
        """Load a split from a folder written by :mod:`training.corpus.pack`.

        Args:
            folder: the packed folder.
            split: ``train``, ``valid`` or ``test``.
            device: where the tensors go.
            exclusions: file of recordings to leave out or relabel
                (:mod:`training.corpus.exclusions`); None keeps all as packed. The test split is
                always loaded whole.

        Raises:
            ConfigError: the folder lacks the split, or nothing of it is left.
        """
        folder = Path(folder)
        needed = [folder / f"{split}.npy", folder / f"{split}.csv", folder / "kinds.txt"]
        for path in needed:
            if not path.is_file():
                raise ConfigError(
                    f"{path} is missing: run `luseel-corpus pack --catalogue FOLDER --out {folder}`"
                    " first (docs/data.md); for a first try `luseel-corpus toy` makes data/toy")
        with open(needed[1], newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}
        if not rows:
            raise ConfigError(f"{needed[1]} has no recordings")
        if exclusions is not None and split != "test":
            rows, changed = Exclusions.load(exclusions).apply(rows, split)
            if changed:
                print(changed.line(split))
            if not rows:
                raise ConfigError(f"{exclusions} leaves out all recordings of {needed[1]}")
            columns = {key: [row[key] for row in rows] for key in rows[0]}
        return cls(
            torch.from_numpy(np.load(needed[0])),
            [int(v) for v in columns["start"]], [int(v) for v in columns["length"]],
            columns["label"], needed[2].read_text(encoding="utf-8").splitlines(), columns["name"],
            columns["group"], columns["source"], columns["category"], columns["flags"], device)


def _activity(samples: np.ndarray, start: Sequence[int], length: Sequence[int],
              names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    threshold = 10 ** (QUIET_DB / 10)
    profiles = []
    for begin, count, name in zip(start, length, names):
        square = samples[begin:begin + count].astype(np.float64) ** 2
        energy = np.add.reduceat(square, np.arange(0, count, BLOCK))
        peak = energy.max()
        if peak == 0:
            raise ConfigError(f"recording {name} is silent: pack the recordings again")
        # The root keeps the quieter half of a recording in play: a bark's ring, not only its onset.
        profiles.append(np.where(energy >= threshold * peak, np.sqrt(energy / peak), 0.0))
    activity = np.concatenate([np.zeros(1), np.cumsum(np.concatenate(profiles))])
    block_start = np.concatenate([[0], np.cumsum([profile.size for profile in profiles])])
    return activity, block_start.astype(np.int64)
