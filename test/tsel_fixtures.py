"""Small networks of the family TSEL for several test modules."""

from __future__ import annotations

from luseel_model.config import StftConfig
from luseel_model.lass.config import LASSConfig, QueryConfig, ResUNetConfig
from luseel_model.tsel.config import SteeredConfig


def small_separator(embedding=16, **changes):
    """A separator of some thousand parameters for 16 kHz."""
    return LASSConfig(
        name="tiny", sample_rate=16000, window=1.0, stft=StftConfig(1024, 512),
        query=QueryConfig(encoder="sentence", embedding=embedding, width=16),
        separator=ResUNetConfig(**{**dict(
            channels=(8, 12), pools=((2, 1), (2, 2)), kernel=3, film="linear", film_encoder=False,
            bands=32, inputs="log", tag_width=8), **changes}))


def small_steered(embedding=16, **changes):
    """A steered network around it."""
    return SteeredConfig(**{**dict(separator=small_separator(embedding), bands=4, circle=8,
                                   circle_layers=2), **changes})
