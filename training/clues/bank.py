"""Embedded clips of each kind, made once, ready to be drawn in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.clues.clips import moving_clip

#: (T, H, W, 3) uint8 frames to (T, E).
Embed = Callable[[np.ndarray], Tensor]


class ClipBank:
    """Clips of each kind as embeddings; a kind may have none.

    Attributes:
        embeddings: (V, T, E) float32.
        count, first: (K,) int64, clips of each kind and the first of them.
    """

    def __init__(self, embeddings: Tensor, kind: Tensor, kinds: int,
                 device: str | torch.device = "cpu"):
        """``kind``: (V,) of each clip, in ascending order."""
        self.embeddings = embeddings.float().to(device)
        self.count = torch.bincount(kind, minlength=kinds).to(device)
        self.first = self.count.cumsum(0) - self.count

    @classmethod
    def build(cls, pictures: Mapping[str, Sequence[np.ndarray]], kinds: Sequence[str], embed: Embed,
              frames: int, clips: int, size: int, seed: int, device: str | torch.device = "cpu"
              ) -> ClipBank:
        """Make and embed ``clips`` clips of each picture.

        Args:
            pictures: of each kind, (H, W, 3) uint8; kinds that aren't in ``kinds`` are left out.
        """
        generator = torch.Generator().manual_seed(seed)
        wanted = [pictures.get(kind, ()) for kind in kinds]
        # kinds may share pictures: a drum stands for several sounds
        different = list({id(picture): picture for some in wanted for picture in some}.values())
        made: dict[int, list[Tensor]] = {}
        for picture in tqdm(different, desc="clips", leave=False, disable=len(different) < 20):
            shots = (moving_clip(picture, frames, size, generator) for _ in range(clips))
            made[id(picture)] = [embed(clip).cpu() for clip in shots]
        parts = [clip for some in wanted for picture in some for clip in made[id(picture)]]
        kind = [number for number, some in enumerate(wanted) for _ in range(len(some) * clips)]
        embeddings = torch.stack(parts) if parts else torch.zeros(0, frames, 1)
        return cls(embeddings, torch.tensor(kind, dtype=torch.long), len(kinds), device)

    def draw(self, kind: Tensor, generator: torch.Generator) -> Tensor:
        """A random clip for each entry of ``kind`` (...): indices (...), -1 for kinds without."""
        uniform = torch.rand(kind.shape, generator=generator).to(kind.device)
        count = self.count[kind]
        pick = self.first[kind] + (uniform * count).long().clamp(max=(count - 1).clamp(min=0))
        return torch.where(count > 0, pick, -1)

    def batch(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """(...) clips to embeddings (..., T, E), zeros for -1, and the (..., T) mask."""
        here = clip >= 0
        values = self.embeddings[clip.clamp(min=0)] * here[..., None, None]
        return values, here[..., None].expand(*here.shape, self.embeddings.shape[1])
