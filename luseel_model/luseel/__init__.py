"""LuSeeL (paper 000): joint extraction and localization of a described sound."""

from .config import LuSeeLConfig
from .extractor import LuSeeLExtractor
from .network import LuSeeL

__all__ = ["LuSeeL", "LuSeeLConfig", "LuSeeLExtractor"]
