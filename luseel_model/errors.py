"""Errors that luseel_model raises on purpose.

All derive from :class:`LuseelError`, a ``ValueError``, so that a caller can catch one class and
show its text to a person: each message says what is wrong and what to do.
"""


class LuseelError(ValueError):
    """Base class of all errors raised on purpose."""


class AudioError(LuseelError):
    """The audio can't be used: wrong shape, empty, not finite, or an impossible sample rate."""


class QueryError(LuseelError):
    """The query can't be used: empty, over-long, or not a string."""


class ConfigError(LuseelError):
    """A configuration has an unknown key, a wrong type or values that contradict each other."""


class CheckpointError(LuseelError):
    """A checkpoint is missing, truncated, foreign, or doesn't fit its configuration."""
