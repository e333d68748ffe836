"""Clues that belong to one recording each: its own caption, and its own video around the event, as
``clues.csv`` of :mod:`training.clues.manifests` names them. Embedded once, kept beside the data.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from luseel_model.errors import ConfigError, QueryError
from luseel_model.images import ImageEncoder
from luseel_model.multi_clue import MultiClueConfig
from luseel_model.query import validate_query
from luseel_model.text import TextEncoder
from training.clues.manifests import EVENT_SECONDS
from training.clues.videos import event_frames
from training.pool import ClipPool

TABLE = "clues.csv"
#: Folder of the embeddings, in that of the packed recordings.
EMBEDDINGS = "clue_embeddings"
#: Captions or videos that are embedded before they are written; an interruption loses no more.
BLOCK = 32

T = TypeVar("T")


@dataclass(frozen=True)
class RecordedClue:
    """``caption`` ('' without one), ``video`` file (None without one), ``start`` of the event in it
    in s."""

    caption: str = ""
    video: Path | None = None
    start: float = 0.0


def read_clues(packed: str | Path, split: str, names: Sequence[str]) -> list[RecordedClue] | None:
    """Clues of the recordings called ``names``, in their order; None where the folder has no table.
    Videos are looked for from the current folder, then from ``packed``.

    Raises:
        ConfigError: the table has other columns, lacks a recording, or none of its videos is there.
    """
    path = Path(packed) / TABLE
    if not path.is_file():
        return None
    told: dict[str, RecordedClue] = {}
    named = 0
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        needed = {"name", "split", "caption", "video", "start"}
        if lacking := needed - set(reader.fieldnames or ()):
            raise ConfigError(f"{path} lacks the column(s) {', '.join(sorted(lacking))}: write it "
                              "with `python -m training.clues.manifests`")
        for row in reader:
            if row["split"] != split or row["name"] in told:
                continue
            try:
                start = float(row["start"] or 0)
            except ValueError:
                raise ConfigError(f"{path}: {row['name']}: the start {row['start']!r} is not a "
                                  "number of seconds") from None
            video = None
            if row["video"]:
                named += 1
                places = (Path(row["video"]), Path(packed) / row["video"])
                video = next((place for place in places if place.exists()), None)
            told[row["name"]] = RecordedClue(row["caption"], video, start)
    if unknown := [name for name in names if name not in told]:
        raise ConfigError(f"{path} says nothing of {len(unknown)} recordings of {split} such as "
                          f"{unknown[0]}: run `python -m training.clues.manifests` again")
    if named and not any(clue.video for clue in told.values()):
        raise ConfigError(f"none of the {named} videos of {split} that {path} names is there: run "
                          "this where the manifests were made, or empty the column video")
    return [told[name] for name in names]


class ByKind:
    """Recordings of each kind, to draw from.

    Attributes:
        count: (K,) int64.
    """

    def __init__(self, kind: Tensor, kinds: int):
        """``kind``: (n,) of each recording, -1 for one that isn't drawn."""
        order = kind.argsort(stable=True)
        self._order = order[kind[order] >= 0]
        self.count = torch.bincount(kind[kind >= 0], minlength=kinds)
        self._first = self.count.cumsum(0) - self.count

    def draw(self, kind: Tensor, generator: torch.Generator) -> Tensor:
        """A random recording for each entry of ``kind`` (...): (...), -1 for kinds without."""
        uniform = torch.rand(kind.shape, generator=generator).to(kind.device)
        count = self.count[kind]
        if not len(self._order):
            return torch.full_like(kind, -1)
        pick = self._first[kind] + (uniform * count).long().clamp(max=(count - 1).clamp(min=0))
        return torch.where(count > 0, self._order[pick.clamp(max=len(self._order) - 1)], -1)


class RecordingBank:
    """One embedded clue of each recording, which some may lack: words or frames.

    Attributes:
        embeddings: (total, E) float16, of all recordings one after another.
        length: (n,) int64 of each recording, 0 for one without.
        count: (K,) recordings of each kind that have it.
    """

    def __init__(self, sequences: Sequence[Tensor], kind: Tensor, kinds: int,
                 device: str | torch.device = "cpu"):
        """``sequences``: n of (L_i, E); ``kind``: (n,) as in the pool, of ``kinds``."""
        self.embeddings = torch.cat(list(sequences)).to(device)
        self.length = torch.tensor([len(sequence) for sequence in sequences], device=device)
        self._first = self.length.cumsum(0) - self.length
        self._by_kind = ByKind(kind.to(device).masked_fill(self.length == 0, -1), kinds)
        self.count = self._by_kind.count

    def of(self, recording: Tensor) -> Tensor:
        """``recording`` (...), -1 for those without this clue (and for -1)."""
        return torch.where((recording >= 0) & (self.length[recording] > 0), recording, -1)

    def draw(self, kind: Tensor, generator: torch.Generator) -> Tensor:
        """A random recording with this clue for each entry of ``kind`` (...), -1 for kinds without.
        """
        return self._by_kind.draw(kind, generator)

    def batch(self, recording: Tensor) -> tuple[Tensor, Tensor]:
        """(...) recordings to embeddings (..., L, E) float32, zeros where there are none, and the
        (..., L) mask; L is the longest among them, 1 at least."""
        length = torch.where(recording >= 0, self.length[recording], 0)
        steps = torch.arange(max(1, int(length.max())), device=length.device)
        mask = steps < length[..., None]
        if not len(self.embeddings):
            return torch.zeros(*mask.shape, self.embeddings.shape[1], device=mask.device), mask
        rows = (self._first[recording][..., None] + steps).masked_fill(~mask, 0)
        return self.embeddings[rows].float() * mask[..., None], mask


@dataclass
class RecordedClues:
    """Captions and videos of a pool's recordings, and what may be asked for (by kind)."""

    texts: RecordingBank
    videos: RecordingBank
    recordings: ByKind

    def asked(self, recording: Tensor, asked: Tensor, wanted: Tensor, generator: torch.Generator
              ) -> Tensor:
        """Whose clues are given: (B, Q) of the sounds ``asked`` for (B, Q) among ``recording``
        (B, S); for one that isn't there, a random recording of the kind ``wanted`` (B, Q)."""
        other = self.recordings.draw(wanted, generator)
        return torch.where(asked >= 0, recording.gather(1, asked.clamp(min=0)), other)

    def describe(self) -> str:
        counts = [int((bank.length > 0).sum()) for bank in (self.texts, self.videos)]
        return (f"of {len(self.texts.length)} recordings {counts[0]} have a caption, {counts[1]} "
                "a video")


def load_recorded(packed: str | Path, split: str, pool: ClipPool, model: MultiClueConfig,
                  given: Sequence[str]) -> RecordedClues | None:
    """Clues of each recording of ``pool``, None where its folder has no ``clues.csv``. Embedded at
    the first run, and what is missing or has changed at later ones.

    Recordings that have none of the clues ``given`` can't be asked for: their kind in the pool
    becomes -1.

    Raises:
        ConfigError: see :func:`read_clues`.
    """
    clues = read_clues(packed, split, pool.names)
    if clues is None:
        return None
    folder, device, kinds = Path(packed) / EMBEDDINGS, pool.device, len(pool.kinds)
    text, image, frames = model.text, model.video.image, model.video.frames
    text_encoder = cache(lambda: TextEncoder(text, device))
    image_encoder = cache(lambda: ImageEncoder(image, device))
    texts = embed_blocks(
        [_words(clue.caption) for clue in clues], lambda words: words,
        lambda words: text_encoder().embed([words])[0], text.embedding,
        folder / _name("captions", split, text.encoder, text.weights, text.max_tokens),
        f"captions of {split}")
    videos = embed_blocks(
        [clue if clue.video else None for clue in clues],
        lambda clue: [clue.video.name, clue.video.stat().st_size, clue.start],
        lambda clue: image_encoder().embed(
            event_frames(clue.video, clue.start, EVENT_SECONDS, frames)), image.embedding,
        folder / _name("videos", split, image.encoder, image.weights, image.size, frames),
        f"videos of {split}")
    usable = torch.full((len(clues),), "tag" in given)
    for name, sequences in (("text", texts), ("video", videos)):
        if name in given:
            usable |= torch.tensor([len(sequence) > 0 for sequence in sequences])
    pool.kind = pool.kind.masked_fill(~usable.to(device), -1)
    return RecordedClues(RecordingBank(texts, pool.kind, kinds, device),
                         RecordingBank(videos, pool.kind, kinds, device),
                         ByKind(pool.kind, kinds))


def _name(what: str, split: str, *settings: object) -> str:
    """A folder for each encoder, too."""
    return f"{what}_{split}_{_digest(settings)[:8]}"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _words(caption: str) -> str:
    """A caption as a query takes it, '' where it can't."""
    try:
        return validate_query(caption) if caption else ""
    except QueryError as error:
        tqdm.write(f"left out: the caption {caption[:40]!r}: {error}")
        return ""


def embed_blocks(items: Sequence[T], key: Callable[[T], object], embed: Callable[[T], Tensor],
                 width: int, folder: Path, what: str) -> list[Tensor]:
    """Embeddings (L_i, width) float16 of each item, L_i = 0 for those that are None or ''. Read
    from ``folder``, or made and kept there block by block: an interrupted run goes on where it was.
    What ``embed`` refuses with a QueryError is said and left empty.

    Args:
        key: what an item's embedding depends on, for JSON.
        what: beside the progress bar.
    """
    nothing = torch.zeros(0, width, dtype=torch.float16)
    found = [nothing] * len(items)
    some = [number for number, item in enumerate(items) if item]
    with tqdm(total=len(some), desc=what, leave=False, disable=len(some) < 20) as bar:
        for begin in range(0, len(some), BLOCK):
            places = some[begin: begin + BLOCK]
            path = folder / f"{begin // BLOCK:05d}.safetensors"
            digest = _digest([key(items[place]) for place in places])
            block = _read_block(path, digest)
            if block is None:
                block = []
                for place in places:
                    try:
                        block.append(embed(items[place]).half().cpu())
                    except QueryError as error:
                        tqdm.write(f"left out: {error}")
                        block.append(nothing)
                _write_block(path, digest, block)
            for place, sequence in zip(places, block):
                found[place] = sequence
            bar.update(len(places))
    return found


def _write_block(path: Path, digest: str, block: Sequence[Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({"embeddings": torch.cat(list(block)),
               "length": torch.tensor([len(sequence) for sequence in block])}, temporary,
              {"key": digest})
    os.replace(temporary, path)


def _read_block(path: Path, digest: str) -> list[Tensor] | None:
    """A block that was kept, None where there is none of these items."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != digest:
                return None
            return list(file.get_tensor("embeddings").split(file.get_tensor("length").tolist()))
    except (SafetensorError, OSError):
        return None
