"""The trainer: exact resumption, schedules, logs, checkpoints, and that it learns."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
import yaml
from model_fixtures import (TINY, changed, in_step, make_network, merged, minilm,
                            write_tones)

from luseel_model.checkpoint import load_network, read_checkpoint, save_checkpoint
from luseel_model.config import build_config
from luseel_model.errors import CheckpointError, ConfigError
from training import train
from training.tasks.luseel import LuSeeLTrainConfig
from training.train_config import CONFIG_FOLDER
from training.trainer import Trainer, load_train_config


# columns that depend on the machine
CLOCK = ("steps_per_s", "simulation_scenes_per_s", "network_scenes_per_s")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("data") / "packed",
                       {"low tone": 300, "hissing": None})


@pytest.fixture(autouse=True)
def one_text_encoder(monkeypatch):
    monkeypatch.setattr("training.tasks.luseel.TextEncoder", lambda config, device: minilm())


@pytest.fixture
def settings(corpus):
    return {
        "name": "toy", "model": "luseel-small", "overrides": TINY,
        "steps": 8, "batch_size": 3, "tag_steps": 2, "tag_batch_size": 4,
        "log_every": 2, "save_every": 4,
        "data": {"packed": str(corpus), "captions": False,
                 "simulation": {"seconds": 0.5, "head_size": None}},
        "loss": {"spectrum": 0.0, "magnitude": 10.0, "doa": 2.0, "doa_kind": "cross_entropy",
                 "doa_tokens": 1.0, "dense_tags": 2.0, "clip_tags": 1.0, "presence": 1.0},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3, "average": 0.9},
        "validation": {"every": 3, "mixtures": 4, "batch_size": 2},
    }


def config_of(settings, **changes):
    return build_config(LuSeeLTrainConfig, merged(settings, changes))


def trainer_of(settings, out, **changes):
    return Trainer(config_of(settings, **changes), out, device="cpu")


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(one, other):
    """Weights, averages, optimizer and logs of two trainers, to the bit."""
    assert one.step == other.step and one.best == other.best and one.best_step == other.best_step
    for name, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name]), name
        assert torch.equal(one.average[name], other.average[name]), name
    states = [t.optimizer.state_dict()["state"] for t in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())
    logs = [[{k: v for k, v in row.items() if k not in CLOCK} for row in rows(t.out / "log.csv")]
            for t in (one, other)]
    assert logs[0] == logs[1]
    assert rows(one.out / "validation.csv") == rows(other.out / "validation.csv")
    for name in ("best.safetensors", "last.safetensors"):
        states = [read_checkpoint(t.out / name)[1] for t in (one, other)]
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items()), name


@pytest.fixture
def whole_run(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path / "whole")
    trainer.run()
    return trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5])
def test_resumed_equals_uninterrupted(settings, tmp_path, whole_run, step, number):
    """Ctrl-C in the middle of a step, with augmentation, dropout and random wordings."""
    first = trainer_of(settings, tmp_path / "parts")
    in_step(first, step, lambda: signal.raise_signal(number))
    first.run()
    assert first.step == step + 1  # the step was finished, no other begun
    second = trainer_of(settings, tmp_path / "parts")
    assert second.step == step + 1
    second.run()
    assert_same_run(second, whole_run)
    assert not torch.equal(first.network.tagger.text.weight, second.network.tagger.text.weight)


def test_a_crash_goes_on_from_the_last_save(settings, tmp_path, whole_run):
    first = trainer_of(settings, tmp_path / "parts")

    def crash():
        raise RuntimeError("out of memory")

    in_step(first, 6, crash)
    with pytest.raises(RuntimeError, match="out of memory"):
        first.run()
    assert len(rows(first.out / "log.csv")) == 3  # steps 2, 4 and 6; the last one is repeated
    second = trainer_of(settings, tmp_path / "parts")
    assert second.step == 4
    second.run()
    assert_same_run(second, whole_run)


def test_a_second_interrupt_stops_at_once(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    in_step(trainer, 5, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(signal.SIGINT) is handler
    assert trainer_of(settings, tmp_path).step == 4  # what was saved, whole


def test_time_limit(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path)
    trainer.run(max_minutes=1e-9)
    assert trainer.step == 0
    assert trainer_of(settings, tmp_path).step == 0


def test_a_finished_run_stays_finished(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, steps=3)
    trainer.run()
    before = trainer.network.state_dict()["tagger.text.weight"].clone()
    again = trainer_of(settings, tmp_path, steps=3)
    again.run()
    assert again.step == 3
    assert torch.equal(again.network.state_dict()["tagger.text.weight"], before)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_resume_file_that_does_not_fit(settings, tmp_path, content):
    if content is None:  # of another network
        trainer_of(settings, tmp_path, overrides={"tagging": {"width": 8}}).save_resume()
    else:
        (tmp_path / "resume.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="(?s)resume.pt doesn't fit .* another folder"):
        trainer_of(settings, tmp_path)


# -- schedules

def test_warm_up_and_decay(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, steps=1000, optimizer={
        "learning_rate": 1.0, "warmup_steps": 10, "schedule": "decay", "decay_steps": 200})
    rates = {step: trainer.learning_rate(step) for step in (0, 4, 9, 10, 500, 800, 900, 990, 999)}
    assert rates == pytest.approx({0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 500: 1.0, 800: 1.0, 900: 0.5,
                                   990: 0.05, 999: 0.02})


def test_the_rate_reaches_the_optimizer(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path)  # three warm-up steps to 3e-3
    seen = []
    for _ in range(4):
        trainer.train_step()
        seen.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert seen == [pytest.approx([r, r]) for r in (1e-3, 2e-3, 3e-3, 3e-3)]


def scripted(trainer, losses):
    """Replace training and validation by given validation losses, one a step."""
    def step():
        trainer.step += 1
        trainer._seconds = {"simulation": 0.1, "network": 0.4}
        return {"loss": torch.tensor(float(trainer.step))}

    trainer.train_step = step
    trainer.validate = lambda: {"loss": losses[trainer.step - 1]}


def test_plateau_halves_after_six_and_stops_after_ten(settings, tmp_path):
    changes = dict(steps=100, tag_steps=0, log_every=1000, save_every=1000,
                   optimizer={"warmup_steps": 0, "learning_rate": 1.0},
                   validation={"every": 1})
    trainer = trainer_of(settings, tmp_path, **changes)
    rates = []
    validation_round = trainer._validation_round

    def watched(writer):
        result = validation_round(writer)
        rates.append(trainer.learning_rate(trainer.step))
        return result

    trainer._validation_round = watched
    # better until step 3, worse or equal five times, better once more, then never again
    losses = [5, 4, 3, 3, 3, 4, 3, 5, 2] + [2] * 90
    scripted(trainer, losses)
    trainer.run()
    assert trainer.step == 19 and trainer.best_step == 9 and trainer.best == 2
    assert rates == [1.0] * 14 + [0.5] * 5  # six without improvement: at step 15
    logged = [float(row["loss"]) for row in rows(tmp_path / "validation.csv")]
    assert logged == losses[:19]

    again = trainer_of(settings, tmp_path, **changes)
    scripted(again, losses)
    again.run()
    assert again.step == 19, "an early-stopped run went on"
    more = trainer_of(settings, tmp_path, **merged(changes, {"validation": {"stop_patience": 12}}))
    assert more.learning_rate(19) == 0.5
    scripted(more, losses)
    more.run()
    assert more.step == 21


def test_decay_schedule_never_halves(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, steps=9, tag_steps=0, optimizer={
        "warmup_steps": 0, "learning_rate": 1.0, "schedule": "decay"}, validation={"every": 1})
    scripted(trainer, [1] * 9)
    trainer.run()
    assert trainer.stale == 8 and trainer.learning_rate(8) == 1.0


def test_a_loss_that_is_no_number_is_no_improvement(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, steps=3, tag_steps=0, validation={"every": 1})
    scripted(trainer, [float("nan"), 4.0, float("nan")])
    trainer.run()
    assert trainer.best == 4.0 and trainer.stale == 1


# -- logs and files

def test_logs(whole_run):
    log, validation = rows(whole_run.out / "log.csv"), rows(whole_run.out / "validation.csv")
    assert [row["step"] for row in log] == ["2", "4", "6", "8"]
    assert [row["step"] for row in validation] == ["3", "6", "8"]  # none while only tags are learnt
    # the tag stage has no extraction terms: its columns stay empty
    assert log[0]["si_snr"] == "" and float(log[0]["dense_tags"]) > 0
    for row in log[1:]:
        names = ("si_snr", "magnitude", "doa", "doa_tokens", "dense_tags", "clip_tags", "presence")
        total = sum(float(row[name]) for name in names)
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
        assert min(float(row[key]) for key in CLOCK) > 0
    for row in validation:
        assert {"loss", "si_snri", "right_source", "doa_error", "within_5"} <= set(row)
        assert all(np.isfinite(float(value)) for value in row.values())
    described = json.loads((whole_run.out / "config.json").read_text())
    assert build_config(LuSeeLTrainConfig, described) == whole_run.config


def test_log_rows_are_means_over_their_steps(settings, tmp_path):
    """Also where an interruption cut the interval: steps 3 and 4 after a stop at 2."""
    for steps in (2, 8):
        trainer = trainer_of(settings, tmp_path, steps=steps, log_every=4)
        scripted(trainer, [1.0] * 8)
        trainer.run()
    assert [float(row["loss"]) for row in rows(tmp_path / "log.csv")] == [3.5, 6.5]


def test_tensorboard(whole_run):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(whole_run.out / "tensorboard"))
    events.Reload()
    scalars = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["train/loss"] == [2, 4, 6, 8] and scalars["train/si_snr"] == [4, 6, 8]
    assert scalars["validation/loss"] == [3, 6, 8]


def test_saved_networks(whole_run):
    network, info = load_network(whole_run.out / "best.safetensors")
    assert network.config == changed("tiny")
    assert info["step"] == whole_run.best_step and info["kinds"] == ["hissing", "low tone"]
    assert info["validation"]["loss"] == whole_run.best
    network, info = load_network(whole_run.out / "last.safetensors")
    assert info["step"] == 8
    for name, value in network.state_dict().items():
        assert torch.equal(value, whole_run.average[name])  # the averaged weights
    assert not torch.equal(whole_run.average["tagger.text.weight"],
                           whole_run.network.tagger.text.weight)


def test_moving_average(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, tag_steps=0)
    expected = trainer.network.tagger.text.weight.detach().clone()
    for step in range(1, 4):
        trainer.train_step()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * trainer.network.tagger.text.weight.detach()
    torch.testing.assert_close(trainer.average["tagger.text.weight"], expected)
    count = "token_localizer.decoder.1.num_batches_tracked"
    assert trainer.average[count] == trainer.network.state_dict()[count] == 3


def test_init_from_a_checkpoint(settings, tmp_path):
    network = make_network(changed("tiny"))
    save_checkpoint(tmp_path / "start.safetensors", network.state_dict(), network.config)
    trainer = Trainer(config_of(settings), tmp_path / "run", "cpu", tmp_path / "start.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(trainer.network.state_dict()[name], value)
        assert torch.equal(trainer.average[name], value)
    other = make_network(changed("tiny", tagging={"width": 32}))
    save_checkpoint(tmp_path / "start.safetensors", other.state_dict(), other.config)
    with pytest.raises(CheckpointError, match="weights of .*start.* don't fit"):
        Trainer(config_of(settings), tmp_path / "run", "cpu", tmp_path / "start.safetensors")


# -- steps

def test_tag_stage_trains_encoder_and_tagger_alone(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.train_step()
    trainer.train_step()
    moved = {name.split(".")[0] for name, value in trainer.network.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved == {"frequency_encoder", "frequency_embedding", "shared_layers", "shared_norm",
                     "tagger"}
    trainer.train_step()
    moved = {name.split(".")[0] for name, value in trainer.network.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved == {name.split(".")[0] for name in before}


def test_a_broken_batch_changes_nothing(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, tag_steps=0)
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    losses = trainer.losses
    trainer.losses = lambda *a: {k: v * float("nan") for k, v in losses(*a).items()}
    trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters()))
    trainer.losses = losses
    trainer.train_step()
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters()))


def test_one_of_the_sources_is_asked_for(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, tag_steps=0, data={"queries": 1})
    seen = []
    extraction = trainer.task.objective.extraction

    def watched(network, output, mixture, target, azimuth, present):
        assert present is None
        seen.append((output.audio.shape[1], target.clone(), azimuth.clone()))
        return extraction(network, output, mixture, target, azimuth, present)

    trainer.task.objective.extraction = watched
    scene = trainer.task.simulator.sample(16)
    trainer.losses(scene)
    queries, target, azimuth = seen[0]
    assert queries == 1 and target.shape[:2] == (16, 1)
    which = [(scene.azimuth[i] == azimuth[i]).nonzero().item() for i in range(16)]
    assert set(which) == {0, 1}  # either, at random
    assert all(torch.equal(target[i, 0], scene.sources[i, which[i]]) for i in range(16))


def test_the_anchor_is_asked_for(settings, tmp_path):
    """The paper's target is the sound whose level the others are set against."""
    trainer = trainer_of(settings, tmp_path, tag_steps=0, data={"anchor_only": True})
    seen = []
    extraction = trainer.task.objective.extraction

    def watched(network, output, mixture, target, azimuth, present):
        seen.append((target.clone(), azimuth.clone()))
        return extraction(network, output, mixture, target, azimuth, present)

    trainer.task.objective.extraction = watched
    scene = trainer.task.simulator.sample(6)
    trainer.losses(scene)
    (target, azimuth), = seen
    assert torch.equal(target, scene.sources[:, :1])
    assert torch.equal(azimuth, scene.azimuth[:, :1]) and not scene.snr_db[:, 0].any()


def test_validation_leaves_training_alone(settings, tmp_path):
    trainer = trainer_of(settings, tmp_path, tag_steps=0)
    trainer.train_step()
    state = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    chance = torch.get_rng_state(), trainer.task.generator.get_state(), \
        trainer.task.simulator.state_dict()["generator"]
    first = trainer.validate()
    assert all(torch.equal(state[k], v) for k, v in trainer.network.state_dict().items())
    after = torch.get_rng_state(), trainer.task.generator.get_state(), \
        trainer.task.simulator.state_dict()["generator"]
    assert all(torch.equal(a, b) for a, b in zip(chance, after))
    assert trainer.validate() == first  # the same scenes each time


def test_validation_scenes_do_not_depend_on_the_seed(settings, tmp_path):
    scenes = []
    for seed in (1, 2):
        trainer = trainer_of(settings, tmp_path / str(seed), seed=seed)
        trainer.validate()
        scenes.append(trainer.task._scenes[0])
    assert torch.equal(scenes[0].mixture, scenes[1].mixture)
    # no augmentation, and the direction is as simulated
    assert not trainer.task.validation_simulator.config.swap_ears


def test_one_channel_network_trains(settings, tmp_path):
    """The paper's T-HTDemucs hears one ear and doesn't localize."""
    trainer = trainer_of(settings, tmp_path, steps=3, tag_steps=1, overrides={
        "audio_channels": 1, "use_localization": False, "backbone": {"inputs": "complex"}})
    result = trainer.run()
    assert np.isfinite(result["loss"]) and "doa_error" not in result


def test_it_learns(settings, tmp_path):
    """A few dozen steps on two kinds: the loss falls, the right sound comes out."""
    trainer = trainer_of(settings, tmp_path, steps=60, batch_size=6, tag_steps=10, save_every=100,
                         log_every=10, optimizer={"learning_rate": 5e-3, "average": 0.8},
                         validation={"every": 60, "mixtures": 16, "batch_size": 8})
    start = trainer.validate()
    end = trainer.run()
    log = rows(tmp_path / "log.csv")
    assert float(log[-1]["loss"]) < float(log[1]["loss"]) - 10
    assert end["loss"] < start["loss"] - 20
    # about 20 dB, 100% and 57 degrees (90 by chance) with other seeds
    assert end["si_snri"] > 10 > 0 > start["si_snri"]
    assert end["right_source"] > 0.95
    assert end["doa_error"] < 80


# -- configurations

@pytest.mark.parametrize("name", sorted(
    str(p.relative_to(CONFIG_FOLDER).with_suffix("")) for p in CONFIG_FOLDER.rglob("*.yaml")
    if p.stem != "evaluation"))
def test_shipped_configurations(name):
    config = load_train_config(name)
    model = config.model_config()
    config.check(model)
    assert config.name == name
    if config.family == "luseel":
        assert config.data.simulation.seconds == model.window


def test_the_papers_optimisation():
    config = load_train_config("luseel")
    assert config.optimizer.learning_rate == 1e-4 and config.optimizer.warmup_steps == 5000
    assert config.optimizer.schedule == "plateau" and config.optimizer.patience == 6
    assert config.validation.stop_patience == 10 and config.batch_size == 128
    assert config.data.simulation.n_sources == (2, 3)
    assert config.data.simulation.snr_db == (-5, 5)


def test_base_of_a_configuration(tmp_path):
    """What a file says comes on top of its base, key by key, over several files."""
    (tmp_path / "one.yaml").write_text(
        "base: debug\nname: one\nloss: {doa: 7.0}\ndata: {simulation: {rate: null}}\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\nname: two\nloss: {masked: 0.0}\n")
    debug, two = load_train_config("debug"), load_train_config(tmp_path / "two.yaml", ["steps=3"])
    assert (two.name, two.steps, two.loss.doa, two.loss.masked) == ("two", 3, 7.0, 0.0)
    assert two.data.simulation.rate is None and two.data.packed == debug.data.packed
    assert two.loss.trust == debug.loss.trust and two.overrides == debug.overrides
    (tmp_path / "one.yaml").write_text("base: two.yaml\n")
    with pytest.raises(ConfigError, match="leads back"):
        load_train_config(tmp_path / "two.yaml")


def test_changes_from_the_command_line():
    config = load_train_config("debug", ["optimizer.patience=3", "steps=7", "name=mine",
                                         "data.heads=[a, b]", "overrides.window=1.0"])
    assert (config.optimizer.patience, config.steps, config.name) == (3, 7, "mine")
    assert config.data.heads == ("a", "b") and config.model_config().window == 1.0
    for change, said in (("steps", "expected key=value"), ("stps=3", "unknown key stps"),
                         ("steps.x=3", "steps has no keys"),
                         ("optimizer.patience=soon", r"optimizer\.patience: expected int"),
                         ("data.simulation.seconds=-1", r"data\.simulation\.seconds")):
        with pytest.raises(ConfigError, match=said):
            load_train_config("debug", [change])
    with pytest.raises(ConfigError, match="transformer.heds"):
        load_train_config("debug", ["overrides.transformer.heds=2"]).model_config()
    with pytest.raises(ConfigError, match="there are: .*debug"):
        load_train_config("unheard-of")


@pytest.mark.parametrize("changes, said", [
    ({"data": {"simulation": {"seconds": 1.0}}}, "seconds is 1.0, but the model's window is 0.5"),
    ({"overrides": {"tagging": {"width": 0}}}, "tagging.width"),
    ({"loss": {"dense_tags": 0, "clip_tags": 0, "presence": 0}}, "tag_steps need"),
    ({"loss": {"si_snr": 0, "magnitude": 0, "doa": 0, "doa_tokens": 0}}, "loss has no weight"),
    ({"data": {"packed": "gone"}}, "luseel-corpus pack"),
    ({"overrides": {"sample_rate": 22050}}, "sample_rate is 22050, but recordings"),
    ({"data": {"heads": ["nobody"]}}, "no head 'nobody'"),
    ({"data": {"simulation": {"n_sources": [3]}}}, "only 2 usable kinds"),
])
def test_contradictions(settings, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        trainer_of(settings, tmp_path, **changes)


# -- the command

def test_command(settings, tmp_path, capsys):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(path), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert train.main([*arguments, "--set", "steps=3"]) == 0
    printed = capsys.readouterr().out
    assert "8 recordings of 2 kinds, from step 0 to 3" in printed and "best.safetensors" in printed
    assert train.main([*arguments, "--set", "steps=4"]) == 0
    assert "from step 3 to 4" in capsys.readouterr().out
    assert train.main([*arguments, "--set", "stps=4"]) == 2
    assert "luseel-train: unknown key stps" in capsys.readouterr().err
    assert train.main(["--config", "unheard-of"]) == 2
    assert "there are:" in capsys.readouterr().err
    assert train.main([*arguments, "--init", "gone.safetensors"]) == 2
    assert "no checkpoint at gone" in capsys.readouterr().err


def test_dry_run(settings, tmp_path, capsys):
    """Parameters, memory and steps of a run without starting it; time from a measured rate only."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(settings))
    arguments = ["--config", str(path), "--out", str(tmp_path / "run"), "--dry-run"]
    count = make_network(changed("tiny")).parameter_count()
    assert train.main(arguments) == 0
    text = capsys.readouterr().out
    assert f"toy: {count:,} trainable parameters" in text and "time: not known" in text
    assert "an epoch of 8 scenes" in text and "takes 3 steps" in text
    assert not (tmp_path / "run").exists()
    assert train.main([*arguments, "--rate", "0.1", "--set", "data.packed=gone"]) == 0
    text = capsys.readouterr().out
    assert "1.3 min for all 8 steps" in text and "no recordings in gone" in text
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").write_text("step,steps_per_s\n1,2\n2,4\n3,4\n")
    assert train.main(arguments) == 0
    assert "time at 4 steps/s" in capsys.readouterr().out
    assert train.main([*arguments, "--rate", "0"]) == 2
    assert "--rate must be above 0" in capsys.readouterr().err


def test_memory_of_a_dry_run(settings):
    """Of a network with twice the channels more is kept, but not twice as much: the losses' share
    and the tokens' stay."""
    from training.dry_run import saved_bytes

    config = config_of(settings, overrides={"tagging": {"width": 0}},
                       loss={"dense_tags": 0, "clip_tags": 0, "presence": 0})
    small, large = (make_network(changed("tiny", tagging={"width": 0}, backbone={"channels": n}))
                    for n in (8, 16))
    sizes = [saved_bytes(config, net) for net in (small, large)]
    assert 1.2 < sizes[1] / sizes[0] < 2


# -- sounds that aren't there, and the search with the head's responses

def test_absent_sounds_are_asked_for_and_silenced(settings, tmp_path):
    """All queries are for sounds that aren't there: what comes out gets quieter."""
    config = config_of(settings, steps=25, tag_steps=0, log_every=5,
                       data={"absent_share": 1.0, "simulation": {"n_sources": [1]}},
                       loss={"absent": 1.0, "si_snr": 0.0, "magnitude": 0.0, "doa": 0.0,
                             "doa_tokens": 0.0, "dense_tags": 0.0, "clip_tags": 0.0,
                             "presence": 0.0})
    with pytest.raises(ConfigError, match="no weight above 0"):
        Trainer(config, tmp_path / "none")
    config = config_of(settings, steps=25, tag_steps=0, log_every=5,
                       data={"absent_share": 1.0, "simulation": {"n_sources": [1]}},
                       loss={"absent": 1.0, "magnitude": 1e-9, "si_snr": 0.0, "doa": 0.0,
                             "doa_tokens": 0.0, "dense_tags": 0.0, "clip_tags": 0.0,
                             "presence": 0.0})
    Trainer(config, tmp_path / "run").run()
    with open(tmp_path / "run" / "log.csv") as file:
        levels = [float(row["absent"]) for row in csv.DictReader(file)]
    assert levels[-1] < levels[0] - 3  # dB


def test_candidates_are_tagged_first_and_resumed_exactly(settings, tmp_path):
    changes = {"candidate_steps": 3, "steps": 6, "tag_steps": 0,
               "overrides": {"window": 0.5, "head_search": {
                   "azimuths": 24, "mel_bands": 16, "tagger_channels": [8, 8]}},
               "loss": {"candidate_tags": 1.0, "selection": 1.0}}
    whole = Trainer(config_of(settings, **changes), tmp_path / "whole")
    start = {k: v.clone() for k, v in whole.network.state_dict().items()}
    for _ in range(3):
        terms = whole.train_step()
    assert set(terms) == {"loss", "grad_norm", "candidate_tags"}
    after = whole.network.state_dict()
    moved = {k.split(".")[0] for k in after if not torch.equal(after[k], start[k])}
    assert moved == {"candidate_tagger"}
    whole.save_resume()
    assert "selection" in (terms := whole.train_step()) and "si_snr" in terms
    resumed = Trainer(config_of(settings, **changes), tmp_path / "whole")
    again = resumed.train_step()
    assert all(torch.equal(terms[k], again[k]) for k in terms)


def test_both_taggers_of_candidates_learn_by_themselves(settings, tmp_path):
    changes = {"candidate_steps": 2, "steps": 6, "tag_steps": 0,
               "overrides": {"window": 0.5, "head_search": {
                   "azimuths": 24, "mel_bands": 16, "tagger_channels": [8, 8],
                   "yamnet_blocks": 1}},
               "loss": {"candidate_tags": 1.0, "tagged_candidates": 1.0, "selection": 1.0}}
    trainer = Trainer(config_of(settings, **changes), tmp_path / "run")
    start = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    assert set(trainer.train_step()) == {"loss", "grad_norm", "candidate_tags", "tagged_candidates"}
    after = trainer.network.state_dict()
    moved = {k.split(".")[0] for k in after if not torch.equal(after[k], start[k])}
    assert moved == {"candidate_tagger", "candidate_yamnet"}  # and not their weights
    trainer.train_step()
    assert "selection" in trainer.train_step()
    assert not torch.equal(trainer.network.tagger_weights, start["tagger_weights"])


def test_validation_recordings_are_trained_on_where_asked(settings, tmp_path):
    apart = Trainer(config_of(settings), tmp_path / "apart").task
    both = Trainer(config_of(settings, data={"validation_too": True}), tmp_path / "both").task
    valid = apart.validation_simulator.pool
    assert len(both.train_pool) == len(apart.train_pool) + len(valid)
    assert both.train_pool.kinds == apart.train_pool.kinds


def test_only_what_is_named_is_trained(settings, tmp_path):
    """The rest neither learns nor gathers statistics."""
    changes = {"tag_steps": 0, "train_only": ["token_localizer", "film_skips"]}
    names = ("token_localizer.", "film_skips.")
    trainer = trainer_of(settings, tmp_path, **changes)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.train_step()
    different = {k for k, v in trainer.network.state_dict().items() if not v.equal(before[k])}
    assert different and all(k.startswith(names) for k in different)
    with pytest.raises(ConfigError, match="no nonsense"):
        trainer_of(settings, tmp_path / "other", train_only=["nonsense"])
