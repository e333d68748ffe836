"""One trainer for all families: another family's task trains, resumes exactly and is validated."""

import csv
import json
import sys
from dataclasses import dataclass, field

import pytest
import torch
import yaml
from torch import nn

from luseel_model.checkpoint import load_network, read_checkpoint
from luseel_model.config import build_config
from luseel_model.errors import CheckpointError, ConfigError
from luseel_model.families import FAMILIES, Family
from training import tasks, train
from training.finetune import finetune
from training.heads import load_head
from training.tasks import find_task
from training.tasks.base import Task, TrainConfig
from training.trainer import Trainer, load_train_config


@dataclass(frozen=True)
class ToyConfig:
    name: str
    width: int = 16
    sample_rate: int = 16000
    window: float = 0.001

    @property
    def window_samples(self):
        return round(self.window * self.sample_rate)


class ToyNetwork(nn.Module):
    """(B, N) → (B,)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(config.window_samples, config.width)
        self.norm = nn.BatchNorm1d(config.width)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(config.width, 1)

    def parameter_count(self):
        return sum(p.numel() for p in self.parameters())

    def forward(self, x):
        return self.out(self.dropout(self.norm(self.hidden(x)).tanh()))[:, 0]


@dataclass(frozen=True)
class ToyLoss:
    error: float = 1.0


@dataclass(frozen=True)
class ToyTrainConfig(TrainConfig):
    first: int = 0
    first_batch: int = 2
    loss: ToyLoss = field(default_factory=ToyLoss)

    @property
    def first_steps(self):
        return self.first

    def batch_key(self, step):
        return "first_batch" if step < self.first else "batch_size"

    def check(self, model):
        super().check(model)
        if not self.loss.error:
            raise ConfigError("loss.error must be above 0")


class ToyTask(Task):
    """To tell the mean of a signal; batches come from the task's own generator."""

    config_class = ToyTrainConfig

    def __init__(self, config, device, seed):
        super().__init__(config, device, seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.calls, self.sizes = [], []

    def start(self):
        self.calls.append("start")

    def ready(self):
        self.calls.append("ready")

    def batch(self, step, size):
        self.sizes.append(size)
        return torch.randn(size, self.network.config.window_samples, generator=self.generator)

    def losses(self, batch, step):
        with self.autocast():
            error = (self.network(batch) - batch.mean(-1)).square().mean()
        return {"error": self.config.loss.error * error}

    def validate(self):
        assert not self.network.training and not torch.is_grad_enabled()
        x = torch.randn(64, self.network.config.window_samples,
                        generator=torch.Generator().manual_seed(1))
        error = float((self.network(x) - x.mean(-1)).square().mean())
        return {"score": error, "twice": 2 * error}

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"].cpu())

    def info(self):
        return {"kinds": ["noise"]}


TASK = ToyTask


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    """The family is known to the model's side and to the trainer's."""
    family = Family("toy", "Toy", "none", "toy", "ToyConfig", "ToyNetwork", "ToyExtractor")
    monkeypatch.setitem(FAMILIES, "toy", family)
    monkeypatch.setitem(sys.modules, "luseel_model.toy", sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "training.tasks.toy", sys.modules[__name__])
    monkeypatch.setattr(tasks, "TASKS", (*tasks.TASKS, "toy"))
    (tmp_path / "model.yaml").write_text("family: toy\nname: small\n")
    return tmp_path


def config_of(folder, **changes):
    return build_config(ToyTrainConfig, {
        "name": "toy", "family": "toy", "model": str(folder / "model.yaml"), "steps": 30,
        "batch_size": 8, "log_every": 5, "save_every": 5,
        "optimizer": {"learning_rate": 0.02, "warmup_steps": 2, "average": 0.8},
        "validation": {"every": 6}, **changes})


def rows(path, without=()):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def test_trains_and_is_validated(toy):
    trainer = Trainer(config_of(toy), toy / "run", "cpu")
    result = trainer.run()
    validations = rows(toy / "run" / "validation.csv")
    assert [row["step"] for row in validations] == ["6", "12", "18", "24", "30"]
    scores = [float(row["score"]) for row in validations]
    assert scores[-1] < scores[0] / 2 and scores[-1] == result["score"]
    assert trainer.best == min(scores)
    assert trainer.best_step == 6 * (1 + scores.index(min(scores)))
    log = rows(toy / "run" / "log.csv")
    assert [row["step"] for row in log] == ["5", "10", "15", "20", "25", "30"]
    assert all(row["error"] == row["loss"] for row in log)
    config, _, info = read_checkpoint(toy / "run" / "best.safetensors")
    assert config == ToyConfig("small")
    assert info["kinds"] == ["noise"] and info["validation"]["score"] == trainer.best
    network, info = load_network(toy / "run" / "last.safetensors")
    assert isinstance(network, ToyNetwork) and info["step"] == 30
    assert all(torch.equal(v, trainer.average[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("step", [4, 13])
def test_resumed_equals_uninterrupted(toy, step):
    whole = Trainer(config_of(toy), toy / "whole", "cpu")
    whole.run()
    first = Trainer(config_of(toy), toy / "parts", "cpu")

    def crash(batch, losses=first.losses):
        if first.step == step:
            raise RuntimeError("out of memory")
        return losses(batch)

    first.losses = crash
    with pytest.raises(RuntimeError, match="out of memory"):
        first.run()
    second = Trainer(config_of(toy), toy / "parts", "cpu")
    assert second.step == step // 5 * 5
    second.run()
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key]), key
        assert torch.equal(whole.average[key], second.average[key]), key
    assert rows(toy / "whole/validation.csv") == rows(toy / "parts/validation.csv")
    clock = ("steps_per_s", "simulation_scenes_per_s", "network_scenes_per_s")
    assert rows(toy / "whole/log.csv", clock) == rows(toy / "parts/log.csv", clock)


def test_pretrained_parts_only_where_nothing_else_is_given(toy):
    """A checkpoint's weights and those of a run's last save come before pretrained ones."""
    first = Trainer(config_of(toy, steps=2), toy / "run", "cpu")
    assert first.task.calls == ["start", "ready"]
    first.run()
    assert Trainer(config_of(toy, steps=2), toy / "run", "cpu").task.calls == ["ready"]
    other = Trainer(config_of(toy), toy / "other", "cpu", toy / "run" / "last.safetensors")
    assert other.task.calls == ["ready"]
    assert torch.equal(other.network.out.weight, first.average["out.weight"])


def test_a_first_stage_has_batches_of_its_own_and_no_validation(toy):
    trainer = Trainer(config_of(toy, first=7, steps=13), toy / "run", "cpu")
    trainer.run()
    assert trainer.task.sizes == [2] * 7 + [8] * 6
    assert [row["step"] for row in rows(toy / "run" / "validation.csv")] == ["12", "13"]


def test_parts_that_the_network_froze_stay_frozen(toy, monkeypatch):
    def build(cls, config):
        network = ToyNetwork(config.model_config())
        network.hidden.requires_grad_(False)
        return network

    monkeypatch.setattr(ToyTask, "build_network", classmethod(build))
    trainer = Trainer(config_of(toy), toy / "run", "cpu")
    before = {k: v.clone() for k, v in trainer.network.named_parameters()}
    trainer.train_step()
    moved = {k for k, v in trainer.network.named_parameters() if not torch.equal(v, before[k])}
    assert "out.weight" in moved and not moved & {"hidden.weight", "hidden.bias"}


def test_a_save_of_another_task_is_refused(toy, monkeypatch):
    Trainer(config_of(toy), toy / "run", "cpu").save_resume()
    monkeypatch.setattr(ToyTask, "load_state_dict", lambda self, state: state["simulator"])
    with pytest.raises(CheckpointError, match="(?s)resume.pt doesn't fit this run.*simulator"):
        Trainer(config_of(toy), toy / "run", "cpu")


def test_command(toy, capsys):
    config = toy / "run.yaml"
    config.write_text(yaml.safe_dump({
        "name": "mine", "family": "toy", "model": str(toy / "model.yaml"), "steps": 3,
        "overrides": {"width": 4}, "loss": {"error": 2.0}}))
    arguments = ["--config", str(config), "--out", str(toy / "run"), "--device", "cpu"]
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "M parameters, from step 0 to 3 on cpu" in printed
    assert "best validation score" in printed
    described = json.loads((toy / "run" / "config.json").read_text())
    assert build_config(ToyTrainConfig, described).loss.error == 2.0
    assert read_checkpoint(toy / "run" / "best.safetensors")[0].width == 4
    assert train.main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "mine: 81 trainable parameters" in printed  # 16·4 + 4, 2·4, 4 + 1
    assert "activations aren't known for the family toy" in printed
    assert train.main([*arguments, "--set", "loss.error=0"]) == 2
    assert "loss.error must be above 0" in capsys.readouterr().err
    assert train.main([*arguments, "--set", "tag_steps=3"]) == 2  # LuSeeL's, not the toy's
    assert "unknown key tag_steps" in capsys.readouterr().err


def test_families_of_configurations(toy):
    config = config_of(toy)
    assert type(load_train_config("debug")).__name__ == "LuSeeLTrainConfig"
    with pytest.raises(ConfigError, match="no training of the family 'other'; there are: luseel"):
        find_task("other")
    with pytest.raises(ConfigError, match="of the family toy, the training .* family luseel"):
        load_train_config("debug", [f"model={config.model}"]).model_config()
    with pytest.raises(ConfigError, match="sample_rate is 8000"):
        Trainer(config_of(toy, overrides={"sample_rate": 8000}), toy / "run", "cpu")


def test_another_family_is_not_fine_tuned_on_a_head(toy):
    Trainer(config_of(toy, steps=1), toy / "run", "cpu").run()
    with pytest.raises(ConfigError, match="is of the family toy.* only LuSeeL can be fine-tuned"):
        finetune(load_head("mit_kemar"), toy / "mine", load_train_config("finetune"),
                 toy / "run" / "last.safetensors", device="cpu")
    assert not (toy / "mine").exists()
