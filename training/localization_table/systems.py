"""The systems that are compared, what the paper says, and which of its rows are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from luseel_model.arrays import SQUARE
from luseel_model.inference import Extractor, load_model
from luseel_model.tsel.features import (pair_phases, spectra, steered_response, steering,
                                        without_common)


@dataclass(frozen=True)
class System:
    """A system of the tables; ``key`` is its training configuration, empty for one without;
    ``start``: the system whose weights its training starts from (its own run, or what is shipped).
    """

    key: str
    name: str
    text: str
    audio: str
    fusion: str
    moving: bool = False
    start: str = ""


SYSTEMS = (
    System("", "the loudest, without words", "none", "SRP-PHAT", "none"),
    System("localization/tsel-resnet-small", "paper's, narrowed", "MiniLM", "GCC-PHAT", "concat"),
    System("localization/tsel-attention-small", "paper's, narrowed", "MiniLM", "GCC-PHAT", "CA"),
    System("tsel-small", "tsel-small", "MiniLM", "steered", "masks"),
    System("localization/tsel-small-circular", "tsel-small, circular loss", "MiniLM", "steered",
           "masks"),
    System("localization/tsel-lstm-small", "paper's, narrowed", "MiniLM", "GCC-PHAT", "concat",
           moving=True),
    System("tsel-frames-small", "tsel-frames-small", "MiniLM", "steered", "masks", moving=True,
           start="tsel-small"),
)


def system_name(key: str) -> str:
    """Folder of a system's results: its configuration without the folder."""
    return Path(key).name or "loudest"


#: What the paper's tables say: text, audio, fusion, scenes, mean absolute error in degrees.
PAPER_ONE = (
    ("CLAP", "GCC-PHAT", "concat", "additive", 1.34),
    ("CLAP", "GCC-PHAT", "concat", "two", 32.15),
    ("CLAP", "GCC-PHAT, CLAP", "concat", "two", 43.3),
    ("FlanT5", "GCC-PHAT", "CA", "two", 37.18),
    ("BERT", "GCC-PHAT", "CA", "two", 33.61),
)
PAPER_TWO = (
    ("CLAP", "GCC-PHAT", "concat", 45.58),
    ("CLAP", "GCC-PHAT, CLAP", "concat", 47.92),
    ("FlanT5", "GCC-PHAT", "CA", 48.71),
    ("BERT", "GCC-PHAT", "CA", 49.18),
)
LEFT_OUT = (
    "Rows with CLAP, FlanT5 and BERT: their weights come from a model hub alone; `text.encoder` "
    "and `text.weights` of a model's configuration take them (docs/tsel.md).",
    "Table II on the responses measured in Tampere: they aren't part of any package here. "
    "`luseel-train --config tsel-dcase` trains on what the DCASE generator makes of them, "
    "`python -m training.arrays.dcase_evaluate` measures it.",
)


class Loudest:
    """SRP-PHAT over the whole clip: the direction of most sound, whatever is asked for."""

    name = "loudest"
    moving = False

    def __init__(self) -> None:
        self._steers = steering(SQUARE, 1024, 16000)

    def locate(self, audio: np.ndarray, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(M, N) and Q queries → (Q,) degrees; it doesn't know what is there, so NaN (Q,)."""
        phases = pair_phases(spectra(torch.from_numpy(audio)[None], 1024, 640), SQUARE.pairs)
        peak = float(steered_response(without_common(phases[0].sum(-1)), self._steers).argmax())
        return np.full(len(queries), peak), np.full(len(queries), np.nan)


class Trained:
    """A checkpoint of the family TSEL."""

    def __init__(self, model: Extractor, name: str):
        self.model, self.name = model, name
        self.moving = model.config.output == "frames"

    @classmethod
    def load(cls, path: str | Path, name: str) -> "Trained":
        return cls(load_model(path, "cpu"), name)

    def locate(self, audio: np.ndarray, queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(M, N) and Q queries → (Q,) degrees (equation 9: the highest bin) and (Q,) confidence."""
        found = self.model.extract(audio, self.model.sample_rate, list(queries), progress=False)
        return (np.array([one.likelihood.argmax() for one in found], np.float64),
                np.array([one.confidence for one in found]))

    def follow(self, audio: Tensor, queries: Sequence[str]) -> Tensor:
        """(M, N) of one window and Q queries → (Q, T) degrees at ``config.frame_times``."""
        return self.model.follow(audio, queries).argmax(-1).float()
