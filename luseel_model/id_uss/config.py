"""Configuration of an ID-USS network (paper 002), with the options of small networks.

The defaults are the paper's where it says a number.
"""

from __future__ import annotations

import dataclasses
import typing

from ..config import StftConfig, require, require_at_least
from ..conformer import ConformerConfig
from ..images import ImageConfig
from ..lass.config import LASSConfig, ResUNetConfig


@dataclasses.dataclass(frozen=True)
class ConvTasNetConfig:
    """Conv-TasNet (Luo and Mesgarani 2019) with FiLM after each block; the defaults are theirs:
    ``filters`` N, ``kernel`` L (samples, even), ``bottleneck`` B, ``hidden`` H, ``taps`` P,
    ``blocks`` X, ``repeats`` R."""

    filters: int = 512
    kernel: int = 16
    bottleneck: int = 128
    hidden: int = 512
    taps: int = 3
    blocks: int = 8
    repeats: int = 3

    def __post_init__(self) -> None:
        require_at_least(self, 1, "filters", "bottleneck", "hidden", "taps", "blocks", "repeats")
        require(self.kernel >= 2 and self.kernel % 2 == 0, "kernel must be an even number")
        require(self.taps % 2 == 1, "taps must be odd")


@dataclasses.dataclass(frozen=True)
class TaggingConfig:
    """A joint space of sounds and pictures, ``width`` wide (0: none; the paper has none): the
    conformer's ``plain_blocks`` are trained to name what is heard in each of ``bands`` of the
    spectrum, and the blocks after them are shown how well that fits the picture. It gives the
    confidence, too."""

    width: int = 0
    bands: int = 16

    def __post_init__(self) -> None:
        require_at_least(self, 0, "width")
        require_at_least(self, 1, "bands")


@dataclasses.dataclass(frozen=True)
class IDUSSConfig:
    """A model.

    Attributes:
        window: seconds heard at once; the paper doesn't say.
        image: frozen image encoder.
        discriminant: so many directions of its features that tell things apart whatever the
            picture (Fisher's linear discriminant of training's pictures) are what the network
            sees; 0: all features, as in the paper, whose encoder learns.
        picture_noise: length of the noise on these features in training, of length 1.
        projection: nodes of the layer that the picture's features go through (equation 1).
        separator: which of the networks below separates (tables 2 and 3). 'lass' isn't in the paper:
            a whole LASS network; the picture is made a sentence embedding by the probabilities of
            ``things`` that it may show and what each of them is called.
        things: see ``separator``.
        inputs: 'magnitude' of the mixture, or its 'log'; at a level of 1 both.
        bands: bins are merged to so many bands, one bin wide at low frequencies, wider and wider
            above; 0 gives the network every bin.
        head_taps: length of a head's responses that checkpoints carry for the direction; 0: none,
            the direction is taken as from a sphere.
        output: 'spectrum', the magnitude itself (equation 3), or a 'mask' for the mixture's.
    """

    name: str
    sample_rate: int = 16000
    window: float = 5.0
    stft: StftConfig = StftConfig(1024, 256)
    image: ImageConfig = ImageConfig()
    discriminant: int = 0
    picture_noise: float = 0.0
    projection: int = 256
    separator: typing.Literal["conformer", "resunet", "conv-tasnet", "lass"] = "conformer"
    inputs: typing.Literal["magnitude", "log"] = "magnitude"
    bands: int = 0
    head_taps: int = 0
    output: typing.Literal["spectrum", "mask"] = "spectrum"
    conformer: ConformerConfig = ConformerConfig()
    resunet: ResUNetConfig = ResUNetConfig()
    conv_tasnet: ConvTasNetConfig = ConvTasNetConfig()
    tagging: TaggingConfig = TaggingConfig()
    lass: LASSConfig | None = None
    things: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "sample_rate", "projection")
        require_at_least(self, 0, "bands", "head_taps", "discriminant", "picture_noise")
        require(self.discriminant <= self.image.embedding,
                f"discriminant: at most the image encoder's {self.image.embedding} features")
        require(self.discriminant > 0 or not self.picture_noise,
                "picture_noise needs discriminant")
        require(self.window_samples >= self.stft.n_fft,
                f"window {self.window} s is shorter than the transform ({self.stft.n_fft} samples)")
        require(self.bands <= self.stft.bins, f"bands: at most {self.stft.bins}")
        require(self.separator == "conformer" or self.output == "mask",
                f"the separator {self.separator} gives a mask: make output 'mask'")
        require(not self.bands or self.output == "mask",
                "bands need output 'mask': a spectrum has every bin")
        require(not self.tagging.width or
                (self.separator == "conformer" and self.conformer.plain_blocks > 0),
                "tagging needs the separator conformer with plain_blocks: what is heard must not "
                "depend on the picture")
        require(not self.conformer.plain_blocks or self.tagging.width > 0,
                "conformer.plain_blocks are for tagging: give tagging.width")
        if self.separator == "lass":
            self._check_lass()
        if self.separator == "resunet":
            require(self.stft.bins % self.resunet.pooled[0] == 0 and not self.resunet.bands
                    and not self.resunet.tag_width and self.resunet.inputs == "magnitude",
                    "resunet: bins must be a multiple of its pools, without bands, tag_width and "
                    "log inputs of its own")

    def _check_lass(self) -> None:
        lass = self.lass
        require(lass is not None and lass.query.encoder == "sentence" and lass.binaural == "each"
                and self.things > 0 and self.discriminant > 0,
                "the separator lass needs lass, with query.encoder 'sentence' and binaural 'each', "
                "discriminant and things")
        for name in ("sample_rate", "window", "stft"):
            require(getattr(lass, name) == getattr(self, name),
                    f"lass.{name} must be the model's {name}")
        require(not self.bands, "bands: the separator lass has its own")

    @property
    def tag_width(self) -> int:
        """Width of the joint space of sounds and pictures, 0 without one."""
        return self.lass.separator.tag_width if self.separator == "lass" else self.tagging.width

    @property
    def window_samples(self) -> int:
        return round(self.window * self.sample_rate)

    @property
    def rows(self) -> int:
        """Bins or bands that the separator sees."""
        return self.bands or self.stft.bins + 1
