"""Pictures from files and bytes, as the queries take them: uint8 RGB."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from .errors import QueryError
from .images import validate_image
from .query import MAX_FRAMES, validate_pictures

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BACKGROUND = (255, 255, 255, 255)  # behind what is transparent
_FRAME_RATE = 10.0  # [1/s] of pictures that don't say theirs


def _open(source: str | Path | bytes | BinaryIO) -> Image.Image:
    name = str(source) if isinstance(source, (str, Path)) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            picture.load()
        return picture
    except FileNotFoundError:
        raise QueryError(f"no picture at {name}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError,
            Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise QueryError(f"{name} can't be read as a picture: {error}") from None


def _pixels(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _BACKGROUND), picture)
    return np.asarray(picture.convert("RGB"))


def read_image(source: str | Path | bytes | BinaryIO) -> np.ndarray:
    """A picture file, open or not, or what would be in it: (H, W, 3) uint8 RGB, what is
    transparent in white.

    Raises:
        QueryError: it isn't there, is broken, too small or large, or all of one colour.
    """
    return validate_image(_pixels(_open(source)))


def read_frames(path: str | Path) -> tuple[np.ndarray, float]:
    """Moving pictures from a file (GIF, WebP, PNG) or a folder of pictures in the order of their
    names: (T, H, W, 3) uint8 RGB, all of the first one's size, and their rate in 1/s.

    Raises:
        QueryError: nothing that can be read, or too much.
    """
    path, rate = Path(path), _FRAME_RATE
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        if not 1 <= len(files) <= MAX_FRAMES:
            raise QueryError(f"{path}: {len(files)} pictures; 1 to {MAX_FRAMES} can be used")
        frames = [_pixels(_open(file)) for file in files]
    else:
        clip = _open(path)
        count = getattr(clip, "n_frames", 1)
        if count > MAX_FRAMES:
            raise QueryError(f"{path}: {count} frames; 1 to {MAX_FRAMES} can be used")
        try:
            frames = [_pixels(frame.copy()) for frame in ImageSequence.Iterator(clip)]
        except (OSError, ValueError, SyntaxError) as error:
            raise QueryError(f"{path} can't be read to its end: {error}") from None
        if duration := clip.info.get("duration"):  # [ms]
            rate = 1000.0 / duration
    height, width = frames[0].shape[:2]
    frames = [frame if frame.shape[:2] == (height, width) else
              np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames]
    return validate_pictures(np.stack(frames), 4, "the moving pictures"), rate
