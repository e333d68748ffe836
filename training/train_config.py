"""Configurations of trainings: what all model families share, and how they are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import yaml

from luseel_model.config import build_config, find_config, read_yaml, require, to_dict
from luseel_model.errors import ConfigError
from luseel_model.families import DEFAULT, family_of, load_config
from training import SAMPLE_RATE
from training.tasks import find_task

CONFIG_FOLDER = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. ``schedule``: 'plateau' halves the rate after ``patience`` validations without
    improvement (paper); 'decay' holds it and falls linearly to 2% over the last ``decay_steps``.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 5000
    schedule: Literal["plateau", "decay"] = "plateau"
    patience: int = 6
    decay_steps: int = 0
    clip_norm: float = 5.0
    average: float = 0.0  # decay of the moving average of weights that is validated and saved


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """``every`` steps (the paper's epoch), ``mixtures`` fixed scenes of the valid split."""

    every: int = 500
    mixtures: int = 128
    sources: int = 2
    stop_patience: int = 10
    batch_size: int = 8


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run; a family's own (training/tasks) adds its data, losses and stages.

    ``family``: of the model, and so the task. ``overrides``: changes of the model's configuration,
    a nested mapping. ``batch_size``: of all processes together. ``train_only``: parts of the
    network (its attributes) to train, the others stay as they are (none: all are trained).
    """

    name: str
    model: str
    steps: int
    family: str = DEFAULT
    batch_size: int = 8
    train_only: tuple[str, ...] = ()
    seed: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 20
    save_every: int = 200
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, model: Any) -> None:
        """A :class:`ConfigError` where the run and its model contradict each other. A family's own
        calls this one, unless it makes its data at the model's rate."""
        require(model.sample_rate == SAMPLE_RATE,
                f"the model's sample_rate is {model.sample_rate}, but recordings and heads are "
                f"packed at {SAMPLE_RATE} Hz: make it {SAMPLE_RATE}")
        simulation = getattr(getattr(self, "data", None), "simulation", None)
        require(simulation is None or simulation.seconds == model.window,
                f"data.simulation.seconds is {simulation and simulation.seconds}, but the model's "
                f"window is {model.window}: make them equal")

    @property
    def first_steps(self) -> int:
        """Steps of a first stage, in which nothing is validated."""
        return 0

    def batch_key(self, step: int) -> str:
        """Which key says how large the batch of step ``step`` (from 0) is."""
        return "batch_size"

    @property
    def packed(self) -> str:
        """Folder of packed recordings: a family's ``data.packed``, empty where it has none."""
        return getattr(getattr(self, "data", None), "packed", "")

    def model_config(self) -> Any:
        """The model's configuration with ``overrides`` applied.

        Raises:
            ConfigError: it is wrong, or of a family that is trained otherwise.
        """
        model = load_config(self.model)
        family = family_of(model).name
        if find_task(family) is not find_task(self.family):
            raise ConfigError(f"the model {self.model} is of the family {family}, the training "
                              f"{self.name} of the family {self.family}: make them the same")
        return build_config(type(model), merged(to_dict(model), self.overrides))


@dataclasses.dataclass(frozen=True)
class TaggedTrainConfig(TrainConfig):
    """``tag_steps``: first steps, with batches of ``tag_batch_size``, that train what tells sounds
    apart alone."""

    tag_steps: int = 0
    tag_batch_size: int = 32

    @property
    def first_steps(self) -> int:
        return self.tag_steps

    def batch_key(self, step: int) -> str:
        return "tag_batch_size" if step < self.first_steps else "batch_size"


def merged(base: dict, change: dict) -> dict:
    """Nested mappings, ``change`` on top."""
    return {**base, **{key: merged(base[key], value) if isinstance(value, dict)
                       and isinstance(base.get(key), dict) else value
                       for key, value in change.items()}}


def _read_with_base(name_or_path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration on top of the one that its ``base`` names: a name in training/configs, or a
    YAML file, from the folder of the file that names it."""
    path = find_config(name_or_path, CONFIG_FOLDER, "training")
    if path in above:
        raise ConfigError(f"{path}: base leads back to the same file")
    data = read_yaml(path)
    base = data.pop("base", None)
    if base is None:
        return data
    if Path(str(base)).suffix:
        base = path.parent / str(base)
    return merged(_read_with_base(str(base), (*above, path)), data)


def load_train_config(name_or_path: str | Path, changes: list[str] | None = None) -> TrainConfig:
    """A training configuration by name or path, of the class of its ``family`` (``luseel`` where it
    names none); ``changes`` like ``optimizer.patience=3``."""
    data = _read_with_base(name_or_path)
    for change in changes or []:
        key, separator, value = change.partition("=")
        if not separator:
            raise ConfigError(f"{change!r}: expected key=value")
        *parents, last = key.strip().split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{change!r}: {parent} has no keys")
        place[last] = yaml.safe_load(value)
    return build_config(find_task(str(data.get("family", DEFAULT))).config_class, data)
