"""What is asked for: words, a label, a picture, moving pictures, or several of them at once.

A plain string is a query in words. What a model can use of a query is in its
:class:`Capabilities`; anything else is an error that says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .errors import QueryError

MAX_QUERY_CHARACTERS = 256
#: What a query may consist of, and what to call it.
CLUES = {"text": "words", "tag": "a tag", "image": "a picture", "frames": "moving pictures"}
MAX_FRAMES = 1024
_MIN_SIDE, _MAX_SIDE = 8, 8192  # pixels


def validate_query(query: object) -> str:
    """The query's words without surrounding or repeated white space.

    Raises:
        QueryError: not a string, nothing to read in it, or more than 256 characters.
    """
    if not isinstance(query, str):
        raise QueryError(f"the query must be a string, got {type(query).__name__}")
    query = " ".join(query.split())
    if not re.search(r"\w", query):
        raise QueryError("the query is empty: describe a sound in words, e.g. 'dog barking'")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise QueryError(
            f"the query has {len(query)} characters, at most {MAX_QUERY_CHARACTERS} are read")
    return query


def validate_pictures(pictures: object, dimensions: int, what: str) -> np.ndarray:
    """A picture (H, W, 3), or pictures (T, H, W, 3), as uint8 RGB.

    Raises:
        QueryError: another shape or type, empty, smaller than 8 or larger than 8192 pixels a side.
    """
    shape = "(height, width, 3)" if dimensions == 3 else "(frames, height, width, 3)"
    if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8 or \
            pictures.ndim != dimensions or pictures.shape[-1] != 3:
        found = f"{pictures.dtype} {pictures.shape}" if isinstance(pictures, np.ndarray) else \
            type(pictures).__name__
        raise QueryError(f"{what} must be a uint8 RGB array {shape}, got {found}")
    height, width = pictures.shape[-3:-1]
    if not (_MIN_SIDE <= min(height, width) and max(height, width) <= _MAX_SIDE):
        raise QueryError(f"{what} of {width} x {height} pixels: {_MIN_SIDE} to {_MAX_SIDE} a side "
                         "can be used")
    if dimensions == 4 and not 1 <= len(pictures) <= MAX_FRAMES:
        raise QueryError(f"{what}: {len(pictures)} frames; 1 to {MAX_FRAMES} can be used")
    return pictures


@dataclass(frozen=True, eq=False)
class Query:
    """One sound asked for; what is empty or None is not part of the query.

    Attributes:
        text: words, e.g. "dog barking".
        tag: a label, one of those that the model was trained on.
        image: (H, W, 3) uint8 RGB, a picture of what makes the sound.
        frames: (T, H, W, 3) uint8 RGB, successive pictures of it.
        frame_rate: of ``frames``, 1/s; 0 where unknown.
    """

    text: str = ""
    tag: str = ""
    image: np.ndarray | None = None
    frames: np.ndarray | None = None
    frame_rate: float = 0.0

    @property
    def clues(self) -> frozenset[str]:
        """Names of what it consists of (see :data:`CLUES`)."""
        return frozenset(name for name in CLUES
                         if getattr(self, name) is not None and len(getattr(self, name)))

    @property
    def words(self) -> str:
        """What to call it."""
        return self.text or self.tag or ("picture" if self.image is not None else "pictures")


def as_query(query: object) -> Query:
    """A checked query; a string is one in words.

    Raises:
        QueryError: nothing is asked for, or a part of it can't be read.
    """
    if not isinstance(query, Query):
        return Query(text=validate_query(query))
    if not query.clues:
        raise QueryError("the query is empty: give words, a tag, a picture or several of them")
    for name in ("text", "tag"):
        if getattr(query, name):
            validate_query(getattr(query, name))
    if query.image is not None:
        validate_pictures(query.image, 3, "the picture")
    if query.frames is not None:
        validate_pictures(query.frames, 4, "the moving pictures")
    return Query(" ".join(query.text.split()), " ".join(query.tag.split()), query.image,
                 query.frames, query.frame_rate)


@dataclass(frozen=True)
class Capabilities:
    """What a model takes and gives.

    Attributes:
        clues: what a query may consist of, names of :data:`CLUES`.
        sound: it gives the extracted sound.
        direction: it gives a direction.
        microphones: audio channels it takes.
        together: several clues may be used in one query.
    """

    clues: frozenset[str]
    sound: bool = True
    direction: bool = True
    microphones: int = 2
    together: bool = False

    def check(self, query: Query, model: str) -> None:
        """Raises:
            QueryError: ``model`` can't use a part of the query.
        """
        takes = " or ".join(CLUES[name] for name in CLUES if name in self.clues)
        for name in CLUES:
            if name in query.clues - self.clues:
                raise QueryError(f"the model {model} can't use {CLUES[name]} as a query: give it "
                                 f"{takes}")
        if len(query.clues) > 1 and not self.together:
            raise QueryError(f"the model {model} takes one kind of clue at a time: {takes}")

    def describe(self) -> str:
        """In a few words, for lists of models."""
        takes = (", " if self.together else " or ").join(
            CLUES[name] for name in CLUES if name in self.clues)
        gives = " and ".join(name for name, given in (("sound", self.sound),
                                                      ("direction", self.direction)) if given)
        return f"{self.microphones} microphone{'s' * (self.microphones > 1)} + {takes} -> {gives}"
