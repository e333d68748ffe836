"""Configuration of a LuSeeL network (paper 000, section 3.3), and what small networks add.

Every dimension of the network follows from these numbers; none is typed twice.
"""

from __future__ import annotations

import dataclasses
import math
import typing

from ..config import StftConfig, TextConfig, require, require_at_least, require_share
from .yamnet import BLOCKS as YAMNET_BLOCKS
from .yamnet import SAMPLE_RATE as YAMNET_RATE


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Encoders and decoders (HTDemucs, paper section 2.1.2), with options for small networks.

    ``strides`` go along frequency in the spectral branch and along time in the time branch; each
    kernel is twice its stride. ``inputs``: 'complex' gives real and imaginary parts (HTDemucs),
    'interaural' adds log magnitude, level and phase differences. ``output``: 'direct' spectrum
    (HTDemucs) or complex 'mask'. ``norm_groups`` 0 leaves the layers without GroupNorm (HTDemucs).
    """

    channels: int = 48
    growth: int = 2
    strides: tuple[int, ...] = (4, 4, 4, 4)
    inputs: typing.Literal["complex", "interaural"] = "complex"
    output: typing.Literal["direct", "mask"] = "direct"
    time_branch: bool = True
    encoder_context: tuple[int, ...] = (0, 0, 0, 0)
    decoder_context: int = 1
    norm_groups: int = 0
    dconv_encoder: bool = True
    dconv_decoder: bool = False
    dconv_depth: int = 2
    dconv_compress: int = 8
    dconv_init: float = 1e-3
    frequency_embedding: float = 0.2
    rescale: float = 0.1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "channels", "growth", "dconv_compress")
        require_at_least(self, 0, "norm_groups", "decoder_context", "dconv_depth")
        require(len(self.strides) > 0 and min(self.strides) >= 2 and
                all(s % 2 == 0 for s in self.strides), "strides must be even numbers from 2")
        require(len(self.encoder_context) == len(self.strides) and
                min(self.encoder_context) >= 0,
                "encoder_context needs one value from 0 per stride")
        require(self.norm_groups == 0 or self.channels % self.norm_groups == 0,
                "channels must be a multiple of norm_groups")

    @property
    def layer_channels(self) -> tuple[int, ...]:
        """Channels after each encoder layer."""
        return tuple(self.channels * self.growth**i for i in range(len(self.strides)))


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Cross-domain transformer (paper section 2.1.3; HTDemucs). Self-attention at even layers,
    cross-attention between time and spectrum at odd ones (self-attention without a time branch).
    ``width`` 0 keeps the width of the last encoder layer. ``shared_layers`` (0 in the paper) come
    first, without text, once for all queries."""

    layers: int = 5
    shared_layers: int = 0
    width: int = 0
    heads: int = 8
    feed_forward: float = 4.0
    layer_scale: float = 1e-4
    dropout: float = 0.0
    film_skips: bool = False

    def __post_init__(self) -> None:
        require_at_least(self, 1, "layers", "heads")
        require_at_least(self, 0, "shared_layers", "width")
        require(self.feed_forward > 0, "feed_forward must be above 0")
        require_share(self, "dropout")


@dataclasses.dataclass(frozen=True)
class LocalizationConfig:
    """Localization module (paper sections 2.1.4 and 3.3).

    ``gcc_hop`` and ``gcc_lags`` are our reading of the paper's 504 GCC-PHAT features: frames
    every 0.5 s, centred, of lags -12 … +11 samples at 16 kHz. ``extracted`` adds a head on the
    cross-spectrum and level difference of the extracted ears; 'softmax' heads are trained by
    cross-entropy, 'sigmoid' by the paper's squared error.
    """

    token_channels: int = 100
    frame_channels: tuple[int, ...] = (512, 256, 1)
    hidden: int = 1024
    hidden_layers: int = 5
    dropout: float = 0.1
    gcc_hop: float = 0.5
    gcc_lags: int = 24
    activation: typing.Literal["sigmoid", "softmax"] = "sigmoid"
    extracted: bool = False
    extracted_hidden: int = 512

    def __post_init__(self) -> None:
        require_at_least(self, 1, "token_channels", "hidden", "hidden_layers",
                         "extracted_hidden")
        require(self.frame_channels[-1:] == (1,) and min(self.frame_channels) >= 1,
                "frame_channels must be positive numbers that end in 1")
        require(self.gcc_hop > 0, "gcc_hop must be above 0")
        require(self.gcc_lags >= 2 and self.gcc_lags % 2 == 0,
                f"gcc_lags must be an even number from 2, got {self.gcc_lags}")
        require_share(self, "dropout")


@dataclasses.dataclass(frozen=True)
class TaggingConfig:
    """Dense tags (not in the paper): how well each spectral token matches the query's sentence
    embedding, in a joint space of ``width`` (0: no tagging). Gives ``confidence``; the match is
    also shown to the extractor."""

    width: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, 0, "width")


@dataclasses.dataclass(frozen=True)
class HeadSearchConfig:
    """Search with the head's responses (not in the paper; luseel_model/luseel/head_search.py).

    ``azimuths``: directions searched, a divisor of 360 (0: no search). The two candidate sounds
    are shown to the extractor and tagged from ``mel_bands`` by a network of ``tagger_channels``.
    ``voting``: width of the network that counts the bins' votes for a direction (0: none);
    ``short_frame``: samples of the short frames that vote beside the network's own, whose length
    must be a multiple (0: none; without voting it means nothing). ``yamnet_blocks``: how many
    blocks of YAMNet tag the candidates as well (0: none, 13: all; luseel_model/luseel/yamnet.py).
    """

    azimuths: int = 0
    mel_bands: int = 64
    tagger_channels: tuple[int, ...] = (64, 128, 256)
    tagger_dropout: float = 0.3
    voting: int = 0
    short_frame: int = 0
    yamnet_blocks: int = 0

    def __post_init__(self) -> None:
        require(self.azimuths == 0 or (self.azimuths >= 24 and 360 % self.azimuths == 0),
                f"azimuths must be 0 or a divisor of 360 from 24, got {self.azimuths}")
        require_at_least(self, 8, "mel_bands")
        require_at_least(self, 0, "voting")
        require(self.short_frame == 0 or self.short_frame >= 32,
                f"short_frame must be 0, or 32 samples and more, got {self.short_frame}")
        require(0 <= self.yamnet_blocks <= len(YAMNET_BLOCKS),
                f"yamnet_blocks must be within 0 and {len(YAMNET_BLOCKS)}, "
                f"got {self.yamnet_blocks}")
        require(len(self.tagger_channels) > 0 and min(self.tagger_channels) >= 1,
                "tagger_channels must be positive numbers")
        require_share(self, "tagger_dropout")

    @property
    def voting_frame(self) -> int:
        """Samples of the short frames that vote; 0 where none do."""
        return self.short_frame if self.voting else 0


@dataclasses.dataclass(frozen=True)
class LuSeeLConfig:
    """A LuSeeL network. ``window`` in seconds: of training and of streams.

    ``recording_window``: seconds of a recording from which a sound is extracted at once, ``window``
    where it is None. With more in its ears, the network confuses sounds less often
    (docs/training.md).

    ``use_localization``, ``use_gcc_phat`` and ``audio_channels`` are the paper's ablations:
    LuSeeL† has no localization, LuSeeL° no GCC-PHAT, T-HTDemucs one channel and no localization.
    """

    name: str
    sample_rate: int = 16000
    window: float = 10.0
    recording_window: float | None = None
    audio_channels: int = 2
    use_localization: bool = True
    use_gcc_phat: bool = True
    stft: StftConfig = dataclasses.field(default_factory=StftConfig)
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    localization: LocalizationConfig = dataclasses.field(default_factory=LocalizationConfig)
    tagging: TaggingConfig = dataclasses.field(default_factory=TaggingConfig)
    head_search: HeadSearchConfig = dataclasses.field(default_factory=HeadSearchConfig)

    def __post_init__(self) -> None:
        require(self.audio_channels in (1, 2), "audio_channels must be 1 or 2")
        require(self.sample_rate > 0 and self.window > 0, "sample_rate and window must be > 0")
        require(self.window_samples >= self.stft.n_fft,
                f"window ({self.window_samples} samples) must hold at least one frame of "
                f"stft.n_fft {self.stft.n_fft}")
        require(self.recording_window is None or self.recording_window >= self.window,
                f"recording_window ({self.recording_window} s) must not be shorter than the window "
                f"({self.window} s)")
        require(not (self.use_localization and self.audio_channels == 1),
                "use_localization needs two audio_channels")
        require(not (self.backbone.inputs == "interaural" and self.audio_channels == 1),
                "backbone.inputs 'interaural' needs two audio_channels")
        require(not self.head_search.azimuths or
                (self.audio_channels == 2 and self.tagging.width and self.use_localization
                 and self.backbone.inputs == "interaural" and self.backbone.output == "mask"),
                "head_search needs two audio_channels, tagging, localization, 'interaural' "
                "inputs and a 'mask' as output")
        require(not (self.head_search.azimuths and self.head_search.yamnet_blocks)
                or self.sample_rate == YAMNET_RATE,
                f"head_search.yamnet_blocks needs a sample_rate of {YAMNET_RATE}")
        short = self.head_search.voting_frame
        require(not short or (short < self.stft.n_fft and self.stft.n_fft % short == 0),
                f"stft.n_fft {self.stft.n_fft} must be a multiple of "
                f"head_search.short_frame {short}")
        require(self.stft.bins % math.prod(self.backbone.strides) == 0,
                f"the product of backbone.strides must divide the {self.stft.bins} frequency bins")
        require(self.width % self.transformer.heads == 0,
                f"the transformer's width {self.width} must be a multiple of its heads")
        require(self.width % 4 == 0, "the transformer's width must be a multiple of 4")

    @property
    def window_samples(self) -> int:
        return round(self.window * self.sample_rate)

    @property
    def frames(self) -> int:
        """STFT frames in a window."""
        return math.ceil(self.window_samples / self.stft.hop)

    @property
    def width(self) -> int:
        """Channels of the transformer's tokens."""
        return self.transformer.width or self.backbone.layer_channels[-1]

    @property
    def spectral_tokens(self) -> int:
        """Tokens of the spectral stream in a window (1256 in the paper)."""
        return self.frames * (self.stft.bins // math.prod(self.backbone.strides))

    @property
    def gcc_hop_samples(self) -> int:
        return round(self.localization.gcc_hop * self.sample_rate)

    @property
    def gcc_frames(self) -> int:
        """Centred GCC-PHAT frames in a window (21 in the paper's 10 s)."""
        return self.window_samples // self.gcc_hop_samples + 1

    @property
    def gcc_features(self) -> int:
        return self.gcc_frames * self.localization.gcc_lags if self.use_gcc_phat else 0
