"""The packed pictures of training.pictures, by the kinds of recordings they go with."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from luseel_model.errors import ConfigError
from luseel_model.image_files import read_image
from training.pictures.build import TABLE
from training.pictures.catalogue import read_concepts


def read_pictures(folder: str | Path, split: str, most: int | None = None
                  ) -> dict[str, list[np.ndarray]]:
    """Pictures of each kind, (H, W, 3) uint8 RGB on white.

    Args:
        folder: what ``python -m training.pictures build`` packed.
        split: ``train``, ``valid`` or ``test``.
        most: pictures of a concept, the first ones; None: all.
    Raises:
        ConfigError: the folder has no pictures.
    """
    path = Path(folder) / TABLE
    if not path.is_file():
        raise ConfigError(f"{path} is missing: run `python -m training.pictures build` first "
                          "(docs/id_uss.md), or leave the pictures empty for no video clues")
    concepts, shown = read_concepts(), {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            some = shown.setdefault(row["concept"], [])
            if row["split"] == split and (most is None or len(some) < most):
                some.append(read_image(Path(folder) / row["file"]))
    return {kind: pictures for concept, pictures in shown.items() if pictures
            for kind in concepts.get(concept, ())}
