"""ID-USS-Conformer (paper 002): extracts the sound of what a picture shows."""

from .config import IDUSSConfig
from .extractor import IDUSSExtractor
from .network import IDUSS

__all__ = ["IDUSS", "IDUSSConfig", "IDUSSExtractor"]
