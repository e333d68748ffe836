"""Multi-clue extraction (paper 003): a tag, words and moving pictures, whichever there are."""

from .config import MultiClueConfig
from .extractor import MultiClueExtractor
from .network import MultiClue

__all__ = ["MultiClue", "MultiClueConfig", "MultiClueExtractor"]
