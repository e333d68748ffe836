"""Many versions of one picture, as a camera might see the thing.

A cut-out (with transparent parts) is turned, scaled and put somewhere on another background; a
photograph is cropped. Both are mirrored, recoloured, blurred and compressed.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

#: A picture counts as a cut-out when so much of it is transparent.
_CUT_OUT = 0.02


def plain(picture: Image.Image, side: int) -> np.ndarray:
    """The picture as it is, on white, (side, side, 3) uint8; a margin makes it square."""
    return np.asarray(_on(picture, Image.new("RGB", (side, side), "white"), 0.96))


def version(picture: Image.Image, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random version, (side, side, 3) uint8.

    Args:
        picture: RGBA.
    """
    alpha = np.asarray(picture.getchannel("A"))
    if (alpha < 128).mean() > _CUT_OUT:
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turned = picture.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)
        stretch = np.exp(rng.uniform(-0.15, 0.15))
        turned = turned.resize((max(1, round(turned.width * stretch)), turned.height))
        image = _on(turned, background(side, rng), rng.uniform(0.45, 1.1),
                    rng.uniform(-0.5, 0.5, 2))
    else:
        image = _crop(picture.convert("RGB"), side, rng)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.5:
            image = image.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC,
                                 fillcolor=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(_recolour(image, rng))


def _on(picture: Image.Image, ground: Image.Image, share: float, shift=(0.0, 0.0)) -> Image.Image:
    """``picture`` on ``ground``, its longer side ``share`` of the ground's, moved by ``shift`` of
    the space that is left (or lacking)."""
    scale = share * ground.width / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    small = picture.resize(size, Image.Resampling.BICUBIC)
    place = [round((ground.width - length) * (0.5 + move)) for length, move in zip(size, shift)]
    ground = ground.copy()
    ground.paste(small, tuple(place), small.getchannel("A"))
    return ground


def background(side: int, rng: np.random.Generator) -> Image.Image:
    """White, one colour, a gradient, or soft or coarse blotches."""
    kind = rng.choice(5, p=(0.15, 0.2, 0.25, 0.25, 0.15))
    if kind == 0:
        return Image.new("RGB", (side, side), "white")
    if kind == 1:
        return Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    cells = (2, 2) if kind == 2 else (int(rng.integers(3, 9)),) * 2 if kind == 3 else (48, 48)
    spread = 128 if kind == 2 else rng.uniform(20, 90)
    coarse = rng.uniform(30, 225, 3) + rng.uniform(-spread, spread, (*cells, 3))
    ground = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return ground.resize((side, side), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    share, stretch = np.sqrt(rng.uniform(0.45, 1.0)), np.exp(rng.uniform(-0.2, 0.2))
    width = min(image.width, max(1, round(image.width * share * stretch)))
    height = min(image.height, max(1, round(image.height * share / stretch)))
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.resize((side, side), Image.Resampling.BICUBIC,
                        (left, top, left + width, top + height))


def _recolour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhance, low, high in ((ImageEnhance.Brightness, 0.55, 1.4),
                               (ImageEnhance.Contrast, 0.6, 1.4), (ImageEnhance.Color, 0.3, 1.6)):
        image = enhance(image).enhance(rng.uniform(low, high))
    if rng.random() < 0.08:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.5)))
    if rng.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(25, 80)))
        image = Image.open(file).convert("RGB")
    return image
