"""TSEL (paper 001): direction of a described sound with any microphone array."""

from .config import TselConfig
from .extractor import TselExtractor
from .network import Tsel

__all__ = ["Tsel", "TselConfig", "TselExtractor"]
