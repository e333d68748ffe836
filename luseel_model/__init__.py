"""LuSeeL: pull a sound described in words out of a binaural recording, and say where it is.

>>> from luseel_model import load_model
>>> model = load_model()                                  # the shipped checkpoint
>>> result = model.extract(audio, sample_rate, "dog barking")
>>> result.azimuth                                        # degrees, 0 front, 90 left
"""

from .angles import angular_error, wrap_degrees
from .calibration import Calibration
from .errors import (AudioError, CheckpointError, ConfigError, LuseelError, QueryError)
from .families import load_config
from .inference import Extraction, Extractor, WindowEstimate, WindowOutput, load_model
from .luseel import LuSeeL, LuSeeLConfig
from .query import Capabilities, Query

__version__ = "0.1.0"

__all__ = [
    "AudioError", "Calibration", "Capabilities", "CheckpointError", "ConfigError", "Extraction",
    "Extractor", "LuSeeL", "LuSeeLConfig", "LuseelError", "Query", "QueryError",
    "WindowEstimate", "WindowOutput", "angular_error", "load_config", "load_model", "wrap_degrees",
]
