"""Frames of a recording's own video, around the event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from luseel_model.errors import LuseelError, QueryError
from luseel_model.image_files import read_frames
from luseel_model.images import validate_image

#: Containers of videos; all else is read as moving pictures (GIF, a folder of pictures).
CONTAINERS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def event_frames(path: str | Path, start: float, seconds: float, most: int) -> list[np.ndarray]:
    """What is on show in the middle of each of ``most`` even parts of an event.

    Args:
        path: a video (:data:`CONTAINERS`), or what ``read_frames`` takes.
        start, seconds: place and length of the event in s.
    Returns:
        (H, W, 3) uint8 RGB, ``most`` or fewer: each frame once, those of one colour left out.
    Raises:
        QueryError: it can't be read, or shows nothing then.
        LuseelError: PyAV is missing.
    """
    path = Path(path)
    if path.suffix.lower() in CONTAINERS and not path.is_dir():
        frames = _decoded(path, start)
    else:
        pictures, rate = read_frames(path)
        frames = ((number / rate, picture) for number, picture in enumerate(pictures))
    kept = []
    for frame in _on_show(frames, start, seconds, most):
        try:
            kept.append(validate_image(frame if isinstance(frame, np.ndarray) else
                                       frame.to_ndarray(format="rgb24")))
        except QueryError:  # of one colour
            continue
    if not kept:
        raise QueryError(f"{path} shows nothing from {start:g} s to {start + seconds:g} s")
    return kept


def _on_show(frames: Iterable[tuple[float, object]], start: float, seconds: float, most: int
             ) -> list:
    """Of (time, frame), those on show in the middle of each part, each once."""
    times = [start + (part + 0.5) * seconds / most for part in range(most)]
    found: list = []
    last, begin = None, -np.inf

    def take() -> None:
        if last is not None and not (found and found[-1] is last):
            found.append(last)

    for time, frame in frames:
        while times and times[0] < time:
            times.pop(0)
            take()
        if not times:
            return found
        last, begin = frame, time
    if begin >= start:  # its last frame; a video that ended before the event shows nothing of it
        take()
    return found


def _decoded(path: Path, start: float) -> Iterator[tuple[float, object]]:
    """Times in s and frames (of PyAV) from the last key frame before ``start``."""
    try:
        import av
    except ImportError:
        raise LuseelError(f"reading {path} needs PyAV: pip install av") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise QueryError(f"{path} has no pictures")
            origin = (container.start_time or 0) / av.time_base
            if start > 0:
                container.seek(int((origin + start) * av.time_base))
            for frame in container.decode(video=0):
                if frame.time is not None:
                    yield frame.time - origin, frame
    except (av.FFmpegError, OSError) as error:
        raise QueryError(f"{path} can't be read as a video: {error}") from None
