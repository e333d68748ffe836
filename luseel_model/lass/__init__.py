"""LASS-Net (paper 004): separates what a sentence, or a tag, describes; gives no direction."""

from .config import LASSConfig
from .extractor import LASSExtractor
from .network import LASSNet

__all__ = ["LASSConfig", "LASSExtractor", "LASSNet"]
