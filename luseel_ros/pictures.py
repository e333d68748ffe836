"""Pictures from messages: decoded, cropped and shrunk, ready to be part of a query.

What they show is for the model to say: nothing is recognised here.
"""

from __future__ import annotations

import collections
import io
from typing import Sequence

import numpy as np
import PIL.Image
from sensor_msgs.msg import CompressedImage, Image

from luseel_model.errors import LuseelError, QueryError
from luseel_model.image_files import read_image
from luseel_model.images import validate_image

MIN_SIDE, MAX_SIDE = 8, 8192  # pixels
MAX_PIXELS = 7680 * 4320  # what is unpacked takes a multiple of this in memory
# Longest side [pixels] of what is kept: models look at 224 to 384, and a clip must fit in memory.
KEPT_SIDE = 640
MAX_FRAMES = 256  # of a clip, whatever its length and the camera's rate
FILES = ("JPEG", "PNG", "WEBP")
# Of sensor_msgs/Image: bytes of a pixel, and which of them are red, green and blue. Alpha is
# ignored: cameras have none, and simulated ones are opaque.
ENCODINGS = {"rgb8": (3, [0, 1, 2]), "bgr8": (3, [2, 1, 0]), "rgba8": (4, [0, 1, 2]),
             "bgra8": (4, [2, 1, 0]), "mono8": (1, [0, 0, 0])}


def decode_image(message: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an uncompressed picture; padding at the ends of rows is left out.

    Raises:
        QueryError: an encoding that isn't known, or sizes that don't fit the data or the limits.
    """
    width, height, step = message.width, message.height, message.step
    if message.encoding not in ENCODINGS:
        raise QueryError(f"encoding '{message.encoding[:40]}' can't be read: expected "
                         f"{', '.join(ENCODINGS)}, or a compressed picture")
    size, order = ENCODINGS[message.encoding]
    _check_sides(width, height)
    if step < size * width:
        raise QueryError(f"step {step}: a row of {width} pixels in {message.encoding} takes "
                         f"{size * width} bytes")
    if len(message.data) < step * height:
        raise QueryError(f"{len(message.data)} bytes of data, but {height} rows of {step} bytes "
                         "are declared: the picture is truncated")
    rows = np.frombuffer(message.data, np.uint8, step * height).reshape(height, step)
    return rows[:, :size * width].reshape(height, width, size)[..., order]


class _File(io.BytesIO):
    """Compressed data, under a name for error messages."""

    def __str__(self) -> str:
        return "the picture"


def decode_compressed(message: CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a whole JPEG, PNG or WebP file in a message.

    Raises:
        QueryError: another kind of data, damaged or truncated, beyond the limits, or a picture
            that shows nothing (see `luseel_model.image_files.read_image`).
    """
    if not len(message.data):
        raise QueryError("the picture is empty: it has no data")
    file = _File(bytes(message.data))
    try:
        # The size comes before the pixels: a small file may unpack to gigabytes.
        with PIL.Image.open(file, formats=FILES) as head:
            width, height = head.size
        _check_sides(width, height)
        file.seek(0)
        return read_image(file)
    except LuseelError:
        raise
    except Exception as error:  # damaged files bring forth errors of all types
        raise QueryError(f"the picture can't be read ({type(error).__name__}): give a whole JPEG, "
                         "PNG or WebP file") from None


def _check_sides(width: int, height: int) -> None:
    if not MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE or \
            width * height > MAX_PIXELS:
        raise QueryError(f"a picture of {width} x {height} pixels: {MIN_SIDE} to {MAX_SIDE} a "
                         f"side, and up to {MAX_PIXELS // 10**6} million, can be used")


def prepare(picture: np.ndarray, region: Sequence[int] = (0, 0, 0, 0)) -> np.ndarray:
    """A picture cropped to a region, and shrunk if it is larger than any model looks at.

    Args:
        picture: (H, W, 3) uint8 RGB.
        region: x, y, width, height in pixels; width and height 0: all of it.

    Raises:
        QueryError: the region lies beyond the picture, or what is in it shows nothing.
    """
    x, y, width, height = (int(value) for value in region)
    if (width, height) != (0, 0):
        if min(x, y) < 0 or width < 1 or height < 1 or x + width > picture.shape[1] or \
                y + height > picture.shape[0]:
            raise QueryError(
                f"the region [{x}, {y}, {width}, {height}] (x, y, width, height) isn't within the "
                f"picture of {picture.shape[1]} x {picture.shape[0]} pixels")
        picture = picture[y:y + height, x:x + width]
    picture = validate_image(np.ascontiguousarray(picture))
    factor = KEPT_SIDE / max(picture.shape[:2])
    if factor < 1 and factor * min(picture.shape[:2]) >= MIN_SIDE:
        small = PIL.Image.fromarray(picture)
        small.thumbnail((KEPT_SIDE, KEPT_SIDE))
        picture = np.array(small)
    return picture


class Frames:
    """The newest pictures of a camera, as a clip."""

    def __init__(self):
        self._frames: collections.deque = collections.deque(maxlen=MAX_FRAMES)

    def add(self, stamp_ns: int, picture: np.ndarray, seconds: float) -> tuple[np.ndarray, float]:
        """Take in a picture.

        Args:
            stamp_ns: when it was taken, nanoseconds.
            picture: (H, W, 3). One of another size, or of before the last one, begins anew.
            seconds: length of the clip.

        Returns:
            (T, H, W, 3), the pictures of the last so many seconds, and how many there are in one
            second, by their stamps; 0 of a single one.
        """
        frames = self._frames
        if frames and (stamp_ns <= frames[-1][0] or picture.shape != frames[-1][1].shape):
            frames.clear()
        frames.append((stamp_ns, picture))
        while stamp_ns - frames[0][0] > 1e9 * seconds:
            frames.popleft()
        length = (stamp_ns - frames[0][0]) / 1e9
        return (np.stack([frame for _, frame in frames]),
                (len(frames) - 1) / length if length else 0.0)
