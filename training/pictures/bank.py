"""Embeddings of the pictures and of many augmented versions of them, made once.

So the frozen image encoder never runs in a training step.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from luseel_model.config import to_dict
from luseel_model.errors import ConfigError
from luseel_model.images import ImageConfig, ImageEncoder
from training.pictures.augment import plain, version
from training.pictures.build import TABLE
from training.pictures.catalogue import CONCEPTS, SPLITS, read_concepts

FORMAT = "luseel-pictures-1"
_SAVE_EVERY = 50  # pictures
#: Versions of each picture: the first is the picture as it is.
VERSIONS = {"train": 12, "valid": 4, "test": 4}


def encoder_name(config: ImageConfig) -> str:
    """Short name of an encoder's file of embeddings, different for different encoders."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return f"{config.encoder}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def embed_pictures(folder: str | Path, config: ImageConfig, versions: dict[str, int] = VERSIONS,
                   seed: int = 1) -> Path:
    """Embed the packed pictures of ``folder`` into ``embeddings/<encoder>.safetensors`` in it.

    The versions of a picture depend on the seed and its path alone. Parts that are done are kept:
    an interrupted run goes on.
    """
    folder = Path(folder)
    rows = _table(folder)
    encoder = ImageEncoder(config)
    target = folder / "embeddings" / f"{encoder_name(config)}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)  # for the parts
    part = target.with_suffix(".part.npz")
    done: dict[str, np.ndarray] = {}
    if part.exists():
        with np.load(part) as file:
            done = dict(file)
    for i, row in enumerate(tqdm(rows, desc="embedding", unit="picture")):
        count, key = versions[row["split"]], row["package"] + "|" + row["path"]
        if key in done and len(done[key]) >= count:
            continue
        picture = Image.open(folder / row["file"])
        if row.get("right"):  # a part of a photograph
            picture = picture.crop([int(row[side]) for side in ("left", "top", "right", "bottom")])
        picture = picture.convert("RGBA")
        rng = np.random.default_rng(
            int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big"))
        images = [plain(picture, config.size)]
        images += [version(picture, config.size, rng) for _ in range(count - 1)]
        done[key] = encoder.embed_frames(np.stack(images)).cpu().numpy().astype(np.float16)
        if i % _SAVE_EVERY == _SAVE_EVERY - 1:
            _save_part(part, done)
    rows = [{**row, "versions": versions[row["split"]]} for row in rows]
    write_embeddings(target, [done[row["package"] + "|" + row["path"]][:row["versions"]]
                              for row in rows], rows, config)
    part.unlink(missing_ok=True)
    return target


def write_embeddings(path: Path, embeddings: Sequence[np.ndarray], rows: Sequence[dict],
                     config: ImageConfig) -> None:
    """Write what :meth:`PictureBank.load` reads: for each picture its versions' (n, E) embeddings
    and its row of the table, with ``versions``: n."""
    metadata = {"format": FORMAT, "image": json.dumps(to_dict(config)),
                "rows": json.dumps(list(rows))}
    temporary = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"embeddings": torch.from_numpy(np.concatenate(embeddings))}, temporary, metadata)
    temporary.chmod(0o644)
    os.replace(temporary, path)


def _save_part(path: Path, done: dict[str, np.ndarray]) -> None:
    temporary = path.with_name("new-" + path.name)
    np.savez(temporary, **done)
    os.replace(temporary, path)


def _table(folder: Path) -> list[dict[str, str]]:
    path = folder / TABLE
    if not path.is_file():
        raise ConfigError(f"{path} is missing: run `python -m training.pictures build` first "
                          "(docs/id_uss.md)")
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class PictureBank:
    """Embeddings of one split's pictures, by the kinds of recordings they go with.

    Args:
        embeddings: (n, E) of all versions.
        concept: (n,) what each shows.
        kinds: labels of the recordings, in the order of their pool.
        concepts: concept → labels.
        pictures: (n,) number of the picture that each is a version of.

    Attributes:
        kinds: those recordings' labels that have pictures.
        concept_of: (K,) int64 number of the concept of each of the pool's kinds, -1 without one.
        names: the concepts.
    """

    def __init__(self, embeddings: Tensor, concept: Sequence[str], kinds: Sequence[str],
                 concepts: dict[str, tuple[str, ...]], pictures: Sequence[int],
                 device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        shown = set(concept)
        self.names = [name for name in concepts if name in shown]
        number = {name: i for i, name in enumerate(self.names)}
        owner = {kind: number[name] for name in self.names for kind in concepts[name]}
        self.concept_of = torch.tensor([owner.get(kind, -1) for kind in kinds])
        self.kinds = [kind for kind in kinds if kind in owner]
        if not self.kinds:
            raise ConfigError("no picture shows any of the recordings' kinds")
        place = torch.tensor([number.get(name, -1) for name in concept])
        order = torch.argsort(place, stable=True)
        order = order[place[order] >= 0]
        self.embeddings = embeddings[order].to(self.device, torch.float32)
        self.concept = place[order]
        self.picture = torch.as_tensor(pictures)[order]
        self.count = torch.bincount(self.concept, minlength=len(self.names))
        self.first = torch.cumsum(self.count, 0) - self.count

    @classmethod
    def load(cls, folder: str | Path, split: str, config: ImageConfig, kinds: Sequence[str],
             device: torch.device | str = "cpu", plain_only: bool = False) -> "PictureBank":
        """Load the embeddings that :func:`embed_pictures` made.

        Args:
            plain_only: only the pictures as they are, without their augmented versions.
        Raises:
            ConfigError: they are missing, damaged, or of another encoder.
        """
        path = Path(folder) / "embeddings" / f"{encoder_name(config)}.safetensors"
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: one of {', '.join(SPLITS)}")
        if not path.is_file():
            raise ConfigError(f"{path} is missing: run `python -m training.pictures embed` first "
                              "(docs/id_uss.md)")
        try:
            with safe_open(path, framework="pt") as file:
                rows = json.loads((file.metadata() or {})["rows"])
                embeddings = file.get_tensor("embeddings")
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} can't be read ({error}): delete it and run "
                              "`python -m training.pictures embed` again") from None
        keep, concept, pictures, start = [], [], [], 0
        for i, row in enumerate(rows):
            count = 1 if plain_only else row["versions"]
            if row["split"] == split:
                keep += range(start, start + count)
                concept += [row["concept"]] * count
                pictures += [i] * count
            start += row["versions"]
        own = Path(folder) / "concepts.csv"
        concepts = read_concepts(own if own.is_file() else CONCEPTS)
        return cls(embeddings[keep], concept, kinds, concepts, pictures, device)

    def draw(self, concept: Tensor, generator: torch.Generator, blend: float = 0.0) -> Tensor:
        """A random picture of each concept.

        Args:
            concept: (...) int64 numbers of concepts, see ``concept_of``.
            generator: on the CPU.
            blend: share that are a random mean of two pictures of the concept. Pictures are few,
                and what lies between two of them shows the same.
        Returns:
            (..., E) on the bank's device.
        """
        first = self._random(concept, generator)
        if not blend:
            return first
        second = self._random(concept, generator)
        part = torch.rand((*concept.shape, 1), generator=generator)
        part = part * (torch.rand((*concept.shape, 1), generator=generator) < blend)
        return torch.lerp(first, second, part.to(self.device))

    def _random(self, concept: Tensor, generator: torch.Generator) -> Tensor:
        concept = concept.cpu()
        share = torch.rand(concept.shape, generator=generator)
        place = (share * self.count[concept]).long()
        place = self.first[concept] + torch.minimum(place, self.count[concept] - 1)
        return self.embeddings[place.to(self.device)]
