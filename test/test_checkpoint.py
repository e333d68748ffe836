"""Checkpoints: round trip, and each kind of file that is none."""

import json
import threading

import pytest
import torch
from model_fixtures import changed, make_network, noise, queries
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from luseel_model.checkpoint import (CHECKPOINT_FOLDER, find_checkpoint, load_network,
                                     read_checkpoint, save_checkpoint)
from luseel_model.config import to_dict
from luseel_model.errors import CheckpointError, LuseelError
from luseel_model.inference import load_model


@pytest.fixture(scope="module")
def network():
    return make_network(changed("tiny"))


@pytest.fixture
def checkpoint(network, tmp_path):
    path = tmp_path / "folder" / "net.safetensors"
    save_checkpoint(path, network.state_dict(), network.config, {"step": 3, "kinds": ["rain"]})
    return path


@torch.no_grad()
def test_round_trip(network, checkpoint):
    config, state, info = read_checkpoint(checkpoint)
    assert config == network.config and info == {"step": 3, "kinds": ["rain"]}
    for name, value in network.state_dict().items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype
    loaded, _ = load_network(checkpoint)
    assert not loaded.training
    inputs = noise(1, 2, 8000), *queries(1)
    assert torch.equal(loaded(*inputs).audio, network(*inputs).audio)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["net.safetensors"]


def test_describes_itself(checkpoint, network):
    """Readable with the public library alone."""
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == to_dict(network.config)
    assert json.loads(metadata["info"])["step"] == 3


@torch.no_grad()
def test_half_precision(network, checkpoint, tmp_path):
    half = tmp_path / "half.safetensors"
    save_checkpoint(half, network.state_dict(), network.config, half=True)
    assert {v.dtype for v in load_file(half).values()} == {torch.float16, torch.int64}
    tensors = sum(v.numel() * v.element_size() for v in load_file(half).values())
    full = sum(v.numel() * v.element_size() for v in load_file(checkpoint).values())
    assert tensors < 0.51 * full
    loaded, info = load_network(half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} and info == {}
    inputs = noise(1, 2, 8000), *queries(1)
    expected = network(*inputs).audio
    assert (loaded(*inputs).audio - expected).abs().max() < 0.02 * expected.std()


def test_an_interrupted_save_leaves_the_old_file(network, checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("luseel_model.checkpoint.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(checkpoint, network.state_dict(), network.config)
    assert checkpoint.read_bytes() == before


# -- files that are none: the error says what to do

def test_truncated(checkpoint):
    whole = checkpoint.read_bytes()
    for size in (0, 5, 1000, len(whole) // 2, len(whole) - 1):
        checkpoint.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated .* [Ff]etch it again"):
            load_network(checkpoint)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="not a LuSeeL checkpoint .* luseel-train"):
            load_network(path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_pickles_are_never_loaded(tmp_path, name):
    path = tmp_path / name
    torch.save({"weights": Bomb()}, path)
    with pytest.raises(CheckpointError, match="pickles are never loaded"):
        load_network(path)


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*gone.* give the path"):
        load_network(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint at .* give the path"):
        load_network(tmp_path)


def test_unknown_name():
    shipped = ", ".join(sorted(p.stem for p in CHECKPOINT_FOLDER.glob("*.safetensors"))) or "none"
    with pytest.raises(CheckpointError, match=f"'luseel-huge'; shipped are: {shipped}. Give one"):
        find_checkpoint("luseel-huge")


def test_a_folder_does_not_hide_a_shipped_name(checkpoint, tmp_path, monkeypatch):
    """As in runs/, where the run of a configuration is a folder of its name."""
    monkeypatch.setattr("luseel_model.checkpoint.CHECKPOINT_FOLDER", checkpoint.parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    assert find_checkpoint("net") == checkpoint


def test_weights_that_do_not_fit(network, checkpoint):
    state = network.state_dict()
    for broken in ({**state, "extra": torch.zeros(1)},
                   {k: v for k, v in state.items() if k != "tagger.bias"},
                   {**state, "tagger.text.bias": torch.zeros(5)}):
        save_checkpoint(checkpoint, broken, network.config)
        with pytest.raises(CheckpointError, match="don't fit .* fetch it again"):
            load_network(checkpoint)


@pytest.mark.parametrize("config", ["{", "[]", '{"name": "x", "unheard_of": 1}', None])
def test_broken_configuration(network, checkpoint, config):
    metadata = {"format": "luseel-1", "info": "{}"}
    if config is not None:
        metadata["config"] = config
    save_file(network.state_dict(), checkpoint, metadata=metadata)
    with pytest.raises(CheckpointError, match="configuration can't be read.* fetch it again"):
        load_network(checkpoint)


@pytest.mark.parametrize("info", ["[]", "3", "null"])
def test_information_that_is_no_mapping(network, checkpoint, info):
    save_file(network.state_dict(), checkpoint, metadata={
        "format": "luseel-1", "config": json.dumps(to_dict(network.config)), "info": info})
    with pytest.raises(CheckpointError, match="not a mapping.* fetch it again"):
        read_checkpoint(checkpoint)


def test_load_model_gives_the_same_errors(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(tmp_path / "gone.safetensors")
    with pytest.raises(LuseelError, match="device 'abacus' can't be used"):
        load_model(checkpoint, "abacus")


def test_half_of_a_save_is_never_seen(checkpoint, network):
    """Readers while the file is written over and over."""
    stop = threading.Event()

    def write():
        while not stop.is_set():
            save_checkpoint(checkpoint, network.state_dict(), network.config, {"step": 3})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            assert read_checkpoint(checkpoint)[2]["step"] == 3
    finally:
        stop.set()
        writer.join()
