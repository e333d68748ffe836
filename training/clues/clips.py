"""Short clips made of pictures: a stamp that moves, grows, is cut off (instead of real videos).

The paper's clips are the videos that the sounds come from. The open corpus has pictures of what
makes a sound, so that a clip shows the right thing, but nothing of when it sounds.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def moving_clip(picture: np.ndarray, frames: int, size: int, generator: torch.Generator
                ) -> np.ndarray:
    """A clip in which a picture moves evenly from one random place and size to another.

    Args:
        picture: (H, W, 3) uint8 RGB on a white ground.
        frames: how many.
        size: side of the square frames, pixels.
        generator: of all that is random.
    Returns:
        (frames, size, size, 3) uint8: the picture on a coloured ground, partly outside at times,
        mirrored in half of the clips, with changing light.
    """
    def draw(*shape: int, between: tuple[float, float]) -> torch.Tensor:
        low, high = between
        return low + (high - low) * torch.rand(*shape, generator=generator)

    scale, place = draw(2, between=(0.55, 1.3)), draw(2, 2, between=(-0.35, 0.35))
    aspect = picture.shape[1] / picture.shape[0]
    stretch = torch.tensor([max(1.0, 1 / aspect), max(1.0, aspect)])  # whole, never squeezed
    mirror = -1.0 if float(draw(1, between=(0, 1))) < 0.5 else 1.0
    ground, light = draw(3, between=(0.55, 1.0)), draw(2, between=(0.8, 1.1))
    step = torch.linspace(0, 1, frames)[:, None]
    sizes = stretch / torch.lerp(scale[:1], scale[1:], step)  # frames 2
    shift = torch.lerp(place[:1], place[1:], step)
    theta = torch.zeros(frames, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror * sizes[:, 0], sizes[:, 1]
    theta[:, 0, 2], theta[:, 1, 2] = -mirror * shift[:, 0] * sizes[:, 0], -shift[:, 1] * sizes[:, 1]
    ink = 1 - torch.tensor(picture).permute(2, 0, 1)[None].float() / 255  # nothing outside is white
    # large pictures are averaged before they are sampled, so that fine lines stay
    least = min(1.0, 2 * size / max(picture.shape[:2]))
    if least < 1:
        ink = F.interpolate(ink, scale_factor=least, mode="area")
    grid = F.affine_grid(theta, [frames, 3, size, size], align_corners=False)
    seen = 1 - F.grid_sample(ink.expand(frames, -1, -1, -1), grid, align_corners=False)
    seen = seen * ground[:, None, None] * torch.lerp(light[:1], light[1:], step)[..., None, None]
    return (255 * seen.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
