"""The model families: what each is called, and the three classes that make one.

A family is a sub-package with a configuration (a frozen dataclass with at least ``name``,
``sample_rate``, ``window`` and ``window_samples``), a network built from it, and an
:class:`~luseel_model.inference.Extractor` around the network.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from .config import CONFIG_FOLDER, build_config, find_config, read_yaml
from .errors import ConfigError


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: as in configurations and checkpoints.
        title: as in lists.
        paper: where it comes from.
        module, config, network, extractor: the sub-package and its three classes.
    """

    name: str
    title: str
    paper: str
    module: str
    config: str
    network: str
    extractor: str

    def _load(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{__package__}.{self.module}"), name)

    @property
    def config_class(self) -> type:
        return self._load(self.config)

    @property
    def network_class(self) -> type[nn.Module]:
        return self._load(self.network)

    @property
    def extractor_class(self) -> type:
        return self._load(self.extractor)


FAMILIES = {family.name: family for family in (
    Family("luseel", "LuSeeL", "000", "luseel", "LuSeeLConfig", "LuSeeL", "LuSeeLExtractor"),
    Family("tsel", "TSEL", "001", "tsel", "TselConfig", "Tsel", "TselExtractor"),
    Family("id-uss", "ID-USS", "002", "id_uss", "IDUSSConfig", "IDUSS",
           "IDUSSExtractor"),
    Family("multi-clue", "multi-clue extraction", "003", "multi_clue", "MultiClueConfig",
           "MultiClue", "MultiClueExtractor"),
    Family("lass", "LASS-Net", "004", "lass", "LASSConfig", "LASSNet", "LASSExtractor"),
)}
DEFAULT = "luseel"


def find_family(name: str) -> Family:
    """A family by its name.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if name not in FAMILIES:
        raise ConfigError(f"no model family {name!r}; there are: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_of(config: Any) -> Family:
    """The family that a model's configuration belongs to."""
    for family in FAMILIES.values():
        if type(config) is family.config_class:
            return family
    raise ConfigError(f"{type(config).__name__} is the configuration of no model family")


def load_config(name_or_path: str | Path) -> Any:
    """A model's configuration by name (``luseel``, ``luseel-small``, ...) or path of a YAML file,
    of the class of its ``family`` (``luseel`` where it names none).

    Raises:
        ConfigError: missing or wrong; the message says what.
    """
    data = read_yaml(find_config(name_or_path, CONFIG_FOLDER, "model"))
    family = find_family(data.pop("family", DEFAULT))
    return build_config(family.config_class, data)
