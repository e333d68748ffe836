"""Training by two processes: the same gradients as one, resumption, a clean end.

The processes run this file: torchrun test/test_distributed.py FOLDER.
"""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from model_fixtures import TINY, in_step, merged, minilm, noise, write_corpus

from luseel_model.config import build_config
from luseel_model.errors import CheckpointError, ConfigError
from training.tasks import luseel as module
from training.distributed import Processes
from training.simulation import BinauralSimulator, Scene
from training.tasks.luseel import LuSeeLTrainConfig
from training.trainer import _SEED_STRIDE, Trainer

ROOT = Path(__file__).parent.parent
KINDS = ("low tone", "hissing", "high tone", "beat")


def settings(folder, **changes):
    base = {
        "name": "toy", "model": "luseel-small", "overrides": TINY, "steps": 4, "batch_size": 4,
        "tag_steps": 1, "tag_batch_size": 4, "log_every": 1, "save_every": 100,
        "data": {"packed": str(Path(folder) / "packed"), "captions": False,
                 "simulation": {"seconds": 0.5, "head_size": None}},
        "loss": {"spectrum": 0.0, "magnitude": 10.0, "doa": 2.0, "doa_kind": "cross_entropy",
                 "doa_tokens": 1.0, "dense_tags": 2.0, "clip_tags": 1.0, "presence": 1.0},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "average": 0.9},
        "validation": {"every": 2, "mixtures": 2, "batch_size": 2}}
    return merged(base, changes)


def without_chance(folder):
    """A run in which nothing but the scenes is random: no dropout, every sound is asked for."""
    return build_config(LuSeeLTrainConfig, settings(folder, overrides={
        "text": {"dropout": 0.0}, "localization": {"dropout": 0.0}}))


def three_steps(trainer):
    """By gradient descent: Adam's step is the sign of a gradient, even of one that should be 0."""
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=1e-2)
    terms = [trainer.train_step() for _ in range(3)]
    return trainer.network.state_dict(), float(terms[-1]["grad_norm"])


def images():
    """A batch of (8, 3, 4, 5), different in its halves."""
    x = torch.randn(8, 3, 4, 5, generator=torch.Generator().manual_seed(5))
    return (x + torch.arange(8)[:, None, None, None]).requires_grad_()


def normalised(norm, x):
    """Output, running statistics and the gradient of one step of batch normalisation, for an
    uneven loss."""
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(6))
    y = norm(x)
    (y.pow(3)).sum().backward()
    return y.detach(), norm.running_mean, norm.running_var, x.grad


def work(folder):
    """What each of the two processes does; the first one writes down what came out."""
    torch.set_num_threads(1)
    module.TextEncoder = lambda config, device: minilm()
    processes = Processes.join()
    found = {"rank": processes.rank, "size": processes.size}
    trainer = Trainer(without_chance(folder), folder / "same", "cpu", None, processes)
    state, found["grad_norm"] = three_steps(trainer)
    found["sum"] = float(sum(v.double().sum() for v in state.values()))
    found["unused"] = [n for n, p in trainer.network.named_parameters() if p.grad is None]
    if processes.is_first:
        torch.save(state, folder / "two.pt")

    config = build_config(LuSeeLTrainConfig, settings(folder, data={"simulation": {
        "n_sources": [2, 3]}}))
    whole = Trainer(config, folder / "whole", "cpu", None, processes)
    found["azimuth"] = whole.task.simulator.draw(2).azimuth[0, 0].item()
    whole = Trainer(config, folder / "whole", "cpu", None, processes)
    whole.run()
    parts = Trainer(config, folder / "parts", "cpu", None, processes)
    if processes.rank == 1:  # one of them is told to stop
        in_step(parts, 1, lambda: signal.raise_signal(signal.SIGTERM))
    parts.run()
    found["stopped"] = parts.step
    processes.wait()
    parts = Trainer(config, folder / "parts", "cpu", None, processes)
    found["resumed"] = parts.step
    parts.run()
    found["schedule"] = parts.best, parts.best_step, parts.stale
    found["equal"] = all(torch.equal(v, parts.network.state_dict()[k])
                         for k, v in whole.network.state_dict().items())
    try:
        Trainer(dataclasses.replace(config, batch_size=3), folder / "odd", "cpu", None, processes)
    except ConfigError as error:
        found["odd"] = str(error)
    half = images().detach()[4 * processes.rank:][:4].requires_grad_()
    layer = torch.nn.BatchNorm2d(3)
    processes.wrap(layer)
    torch.save(normalised(layer, half), folder / f"norm{processes.rank}.pt")
    everything = processes.gather(found)
    if processes.is_first:
        (folder / "found.json").write_text(json.dumps(everything))
    processes.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")

    def clip(kind, i):
        time = np.arange(10000) / 16000
        if kind == "hissing":
            return np.diff(noise(10001, seed=i, level=0.15).numpy())
        frequency = {"low tone": 300, "high tone": 2500, "beat": 900}[kind] + 40 * i
        return 0.5 * np.sin(2 * np.pi * frequency * time) * (
            1 if kind != "beat" else np.sin(2 * np.pi * 8 * time))

    write_corpus(folder / "packed", {
        split: [(kind, f"{kind}{split}{i}", clip(kind, i + first))
                for kind in KINDS for i in range(2)]
        for split, first in (("train", 0), ("valid", 4))})
    return folder


def torchrun(*arguments):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "test")]),
                       OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True)


@pytest.fixture(scope="module")
def found(folder):
    process = torchrun(__file__, folder)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    return json.loads((folder / "found.json").read_text())


def test_two_equal_one_with_the_same_scenes(folder, found, monkeypatch):
    monkeypatch.setattr("training.tasks.luseel.TextEncoder", lambda config, device: minilm())
    config = without_chance(folder)
    one = Trainer(config, folder / "one", "cpu")
    start = {key: value.clone() for key, value in one.network.state_dict().items()}
    both = [BinauralSimulator(one.task.train_pool, one.task.hrirs, config.data.simulation, "cpu",
                              config.seed + rank * _SEED_STRIDE, one.task.bank.confusable)
            for rank in (0, 1)]
    monkeypatch.setattr(one.task.simulator, "sample", lambda size: Scene.joined(
        [simulator.sample(size // 2) for simulator in both]))
    state, norm = three_steps(one)
    two = torch.load(folder / "two.pt", weights_only=True)
    assert state.keys() == two.keys()
    for key, value in state.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5, msg=key)
    # far less than what was learnt
    moved = sum(float((state[k].double() - start[k]).square().sum()) for k in state)
    apart = sum(float((state[k].double() - two[k]).square().sum()) for k in state)
    assert apart < 1e-6 * moved
    assert found[0]["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_all_processes_have_the_same_weights_and_scenes_of_their_own(found):
    first, second = found
    assert [first["rank"], second["rank"], first["size"]] == [0, 1, 2]
    assert first["sum"] == second["sum"] and first["grad_norm"] == second["grad_norm"]
    assert first["unused"] == second["unused"] == []
    assert first["azimuth"] != second["azimuth"]


def test_batch_normalisation_of_images_is_over_all_processes(folder, found):
    output, mean, variance, gradient = normalised(torch.nn.BatchNorm2d(3), images())
    halves = [torch.load(folder / f"norm{rank}.pt", weights_only=True) for rank in (0, 1)]
    for i, whole in ((0, output), (3, gradient)):
        torch.testing.assert_close(torch.cat([half[i] for half in halves]), whole, rtol=1e-4,
                                   atol=1e-4)
    for half in halves:
        torch.testing.assert_close(half[1:3], (mean, variance))


def test_a_signal_to_one_stops_all_and_the_run_goes_on_exactly(folder, found, monkeypatch):
    for one in found:
        assert one["stopped"] == one["resumed"] == 2 and one["equal"]
        assert one["schedule"] == found[0]["schedule"] and one["schedule"][1] > 0
        assert "batch_size 3 can't be shared equally by 2 processes" in one["odd"]
    for name, steps in (("log.csv", ["1", "2", "3", "4"]), ("validation.csv", ["2", "4"])):
        with open(folder / "parts" / name, newline="") as file:
            assert [row["step"] for row in csv.DictReader(file)] == steps  # written by one of them
    monkeypatch.setattr("training.tasks.luseel.TextEncoder", lambda config, device: minilm())
    with pytest.raises(CheckpointError, match="saved by 2 processes: go on with as many"):
        Trainer(build_config(LuSeeLTrainConfig, settings(folder)), folder / "parts", "cpu")


def test_the_command_ends_cleanly_when_torchrun_is_stopped(folder):
    path, out = folder / "endless.yaml", folder / "endless"
    path.write_text(yaml.safe_dump(settings(folder, steps=100000, tag_steps=0,
                                            validation={"every": 100000})))
    process = torchrun("-m", "training.train", "--config", path, "--out", out, "--device", "cpu")
    try:
        limit = time.monotonic() + 300
        while not (out / "log.csv").exists() and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert said.count("interrupted and saved; the same command resumes") == 1, said[-3000:]
    assert said.count("2 processes") == 1
    state = torch.load(out / "resume.pt", weights_only=True)
    with open(out / "log.csv", newline="") as file:
        assert int(list(csv.DictReader(file))[-1]["step"]) == state["step"] > 0
    assert len(state["others"]) == 1


def test_alone():
    """Without torchrun nothing of it is there."""
    alone = Processes.join()
    assert alone == Processes() and alone.is_first and alone.share(3, "batch_size") == 3
    layer = torch.nn.BatchNorm1d(2)
    assert alone.wrap(layer) is layer and type(layer) is torch.nn.BatchNorm1d
    assert alone.gather(1) == [1] and alone.from_first([1, 2]) == [1, 2] and not alone.any(False)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
