"""From audio and words to sound and direction: windows, rates, lengths, inputs, errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_fixtures import changed, make_network, minilm, noise

from luseel_model import Extraction
from luseel_model.angles import estimate_azimuth
from luseel_model.checkpoint import save_checkpoint
from luseel_model.errors import AudioError, ConfigError, LuseelError, QueryError
from luseel_model.inference import WindowOutput, load_model, validate_audio
from luseel_model.luseel import LuSeeLExtractor
from luseel_model.recording import window_starts

RATE = 16000
QUERY = "dog barking"


def make_extractor(monkeypatch, config):
    monkeypatch.setattr("luseel_model.luseel.extractor.TextEncoder", lambda config, device: minilm())
    return LuSeeLExtractor(make_network(config), "net")


@pytest.fixture
def model(monkeypatch):
    return make_extractor(monkeypatch, changed("tiny"))


def recording(seconds, rate=RATE, seed=0):
    """Noise below 3 kHz, so that it survives every rate of these tests."""
    samples = round(seconds * rate)
    spectrum = np.fft.rfft(noise(2, samples, seed=seed).numpy())
    spectrum[:, round(3000 / rate * samples):] = 0
    return np.fft.irfft(spectrum, samples).astype(np.float32)


def same(a, b):
    """Two extractions, but for the rounding of differently shaped batches."""
    level = np.abs(b.audio).max()
    np.testing.assert_allclose(a.audio, b.audio, atol=1e-4 * level)
    np.testing.assert_allclose(a.likelihood, b.likelihood, atol=1e-4)
    assert a.azimuth == pytest.approx(b.azimuth, abs=0.05)
    assert a.confidence == pytest.approx(b.confidence, abs=1e-4)
    assert (a.query, a.sample_rate, len(a.windows)) == (b.query, b.sample_rate, len(b.windows))


# -- one window

def test_what_an_extraction_holds(model):
    audio = recording(0.5)
    result = model.extract(audio, RATE, "  Dog   barking ")
    assert isinstance(result, Extraction) and result.query == "Dog barking"
    assert result.audio.shape == (2, 8000) and result.audio.dtype == np.float32
    assert 0 <= result.azimuth < 360 and 0 <= result.confidence <= 1
    assert result.likelihood.shape == (360,) and result.likelihood.max() <= 1
    assert result.sample_rate == RATE and len(result.windows) == 1
    assert (model.sample_rate, model.window, model.window_samples) == (RATE, 0.5, 8000)
    described = json.loads(json.dumps(result.to_dict()))
    assert described["azimuth_degrees"] == pytest.approx(result.azimuth, abs=1e-3)
    assert len(described["likelihood"]) == 360 and len(described["windows"]) == 1


def test_extract_of_one_window_is_infer_window(model):
    audio = recording(0.5)
    window = model.infer_window(audio, [QUERY])
    assert window.audio.shape == (1, 2, 8000) and window.likelihood.shape == (1, 360)
    assert window.azimuth.shape == window.confidence.shape == (1,)
    result = model.extract(audio, RATE, QUERY)
    np.testing.assert_array_equal(result.audio, window.audio[0])
    np.testing.assert_allclose(result.likelihood, window.likelihood[0], rtol=1e-6)
    assert result.azimuth == pytest.approx(window.azimuth[0], abs=1e-4)
    assert result.confidence == window.confidence[0]


def test_infer_window_is_the_network(model):
    """Text, network and azimuth put together by hand."""
    audio = recording(0.5)
    tokens = minilm().embed([QUERY])[0][None, None]
    with torch.no_grad():
        output = model.network(torch.from_numpy(audio)[None], tokens,
                               torch.ones(tokens.shape[:3], dtype=torch.bool))
    window = model.infer_window(audio, [QUERY])
    np.testing.assert_allclose(window.audio[0], output.audio[0, 0], atol=1e-6)
    assert window.confidence[0] == pytest.approx(output.presence_logits.sigmoid().item(), abs=1e-5)
    assert abs(window.azimuth[0] - output.doa_logits.argmax().item()) <= 3


def test_a_short_window_is_filled_with_silence(model):
    audio = recording(0.3)
    short = model.infer_window(audio, [QUERY])
    padded = model.infer_window(np.pad(audio, ((0, 0), (0, 8000 - 4800))), [QUERY])
    assert short.audio.shape == (1, 2, 4800)
    np.testing.assert_array_equal(short.audio, padded.audio[..., :4800])
    np.testing.assert_array_equal(short.likelihood, padded.likelihood)
    result = model.extract(audio, RATE, QUERY)
    np.testing.assert_array_equal(result.audio, short.audio[0])
    assert result.windows[0].duration == 0.3


def test_bad_windows(model):
    for shape in ((2, 8001), (2, 0), (1, 8000), (8000,), (1, 2, 8000)):
        with pytest.raises(AudioError, match=r"\(2, 1..8000\)"):
            model.infer_window(np.zeros(shape, np.float32), [QUERY])
    with pytest.raises(AudioError, match="NaN"):
        model.infer_window(np.full((2, 8000), np.nan, np.float32), [QUERY])
    for queries in (QUERY, []):
        with pytest.raises(QueryError, match="list of descriptions"):
            model.infer_window(recording(0.5), queries)
    with pytest.raises(QueryError, match="empty"):
        model.infer_window(recording(0.5), [QUERY, ""])


def test_warm_up(model):
    model.warm_up()


# -- long recordings

def test_windows_of_a_long_file_are_single_windows(model):
    audio = recording(1.83)
    result = model.extract(audio, RATE, QUERY)
    starts = [0, 4000, 8000, 12000, 16000, 20000, 29280 - 8000]
    assert [round(w.start * RATE) for w in result.windows] == starts
    for start, window in zip(starts, result.windows):
        alone = model.infer_window(audio[:, start:start + 8000], [QUERY])
        np.testing.assert_allclose(window.likelihood, alone.likelihood[0], atol=1e-4)
        assert window.confidence == pytest.approx(alone.confidence[0], abs=1e-4)
        assert window.azimuth == pytest.approx(alone.azimuth[0], abs=0.05)
    assert result.confidence == max(w.confidence for w in result.windows)


def test_the_sound_between_windows_is_their_cross_fade(model):
    """Samples of the result from two single windows and straight lines, computed here."""
    audio = recording(0.75)  # windows at 0 and 0.25 s
    first = model.infer_window(audio[:, :8000], [QUERY]).audio[0]
    second = model.infer_window(audio[:, 4000:], [QUERY]).audio[0]
    fade = (np.arange(4000) + 0.5) / 4000
    expected = np.concatenate([first[:, :4000],
                               first[:, 4000:] * (1 - fade) + second[:, :4000] * fade,
                               second[:, 4000:]], axis=1)
    result = model.extract(audio, RATE, QUERY)
    np.testing.assert_allclose(result.audio, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("samples, size", [
    (8000, 8000), (1, 8000), (8001, 8000), (12000, 8000), (100_003, 8001), (160_000, 32000)])
def test_windows_cover_all(samples, size):
    starts = window_starts(samples, size)
    assert starts[0] == 0 and starts[-1] == max(0, samples - size)
    assert all(0 < b - a <= size // 2 for a, b in zip(starts, starts[1:]))


@pytest.mark.parametrize("samples", [3000, 8000, 8001, 12_345, 100_003])
def test_windows_join_without_seam(model, monkeypatch, samples):
    """A model that returns what it hears gives the recording back."""
    def echo(windows, queries):
        return [WindowOutput(np.stack([window.numpy()] * len(queries)), np.zeros(len(queries)),
                             np.ones((len(queries), 360)), np.ones(len(queries)))
                for window in windows]

    monkeypatch.setattr(model, "infer_windows", echo)
    audio = noise(2, samples, seed=samples).numpy()
    result = model.extract(audio, RATE, QUERY, progress=False)
    np.testing.assert_allclose(result.audio, audio, atol=1e-6)


def test_sounds_are_extracted_from_more_at_once(monkeypatch):
    """From as much as the configuration or the caller says; all else is as in a stream."""
    model = make_extractor(monkeypatch, changed("tiny", recording_window=1.0))
    assert (model.window, model.recording_window) == (0.5, 1.0)
    heard, infer = [], LuSeeLExtractor.infer_windows

    def watched(self, windows, queries):
        heard.extend([windows.shape[-1] / RATE] * len(windows))
        return infer(self, windows, queries)

    monkeypatch.setattr(LuSeeLExtractor, "infer_windows", watched)

    def hear(audio, **options):
        heard.clear()
        return model.extract(audio, RATE, QUERY, progress=False, **options)

    audio = recording(2.2)
    plain = hear(audio, window=0.5)
    assert heard == [0.5] * 8
    for seconds, windows, options in ((1.0, 4, {}), (1.5, 2, {"window": 1.5})):
        result = hear(audio, **options)
        assert heard == [0.5] * 8 + [seconds] * windows
        assert result.audio.shape == audio.shape
        assert np.abs(result.audio - plain.audio).max() > 1e-3 * np.abs(plain.audio).max()
        np.testing.assert_array_equal(result.likelihood, plain.likelihood)
        assert (result.azimuth, result.confidence) == (plain.azimuth, plain.confidence)
        assert [w.start for w in result.windows] == [w.start for w in plain.windows]
    assert len(hear(audio, hop=0.5).windows) == 5 and heard == [0.5] * 5 + [1.0] * 4
    short = audio[:, :11_000]  # shorter than the window: heard as it is, not filled up
    np.testing.assert_array_equal(
        hear(short).audio, infer(model, torch.from_numpy(short)[None], [QUERY])[0].audio[0])
    hear(audio[:, :7000])
    assert heard == [0.5]
    for window in (0.4, 0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="hears at least 0.5 s at once"):
            hear(audio, window=window)
    monkeypatch.setattr(LuSeeLExtractor, "longer_windows", False)
    with pytest.raises(ConfigError, match="hears 0.5 s at once"):
        hear(audio, window=0.6)


@pytest.mark.parametrize("gates, gain", [((-1.0, 0.0, -3.0), 0.5), ((40.0, -40.0, -40.0), 1.0)])
def test_what_short_windows_do_not_hear_is_silenced_twice(monkeypatch, gates, gain):
    model = make_extractor(monkeypatch, changed("tiny", recording_window=1.0))
    infer = LuSeeLExtractor.infer_windows
    audio = recording(1.0)
    plain = model.extract(audio, RATE, QUERY)

    def gated(self, windows, queries):
        outputs = infer(self, windows, queries)
        if windows.shape[-1] == model.window_samples:
            assert len(outputs) == len(gates)
            return [replace(output, gate=np.float32([gate]))
                    for output, gate in zip(outputs, gates)]
        return outputs

    monkeypatch.setattr(LuSeeLExtractor, "infer_windows", gated)
    np.testing.assert_allclose(model.extract(audio, RATE, QUERY).audio, gain * plain.audio,
                               atol=1e-6)


def test_a_recording_window_shorter_than_the_window_is_refused():
    with pytest.raises(ConfigError, match="recording_window"):
        changed("tiny", recording_window=0.4)


def test_progress_bar(model, capsys):
    model.extract(recording(2), RATE, QUERY)
    assert "extracting" in capsys.readouterr().err
    model.extract(recording(2), RATE, QUERY, progress=False)
    model.extract(recording(0.5), RATE, QUERY)
    assert capsys.readouterr().err == ""
    model.extract(recording(0.5), RATE, QUERY, progress=True)
    assert "extracting" in capsys.readouterr().err


# -- rates and lengths

@pytest.mark.parametrize("rate, samples", [
    (44100, 44100), (44100, 33333), (48000, 24001), (8000, 5999), (22050, 20011), (11025, 4999),
    (16000, 9999), (96000, 48001), (44099.5, 30001), (np.int64(32000), 16001)])
def test_length_and_rate_are_kept(model, rate, samples):
    result = model.extract(recording(samples / float(rate), float(rate))[:, :samples], rate, QUERY)
    assert result.audio.shape == (2, samples) and result.sample_rate == rate
    assert np.isfinite(result.audio).all()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_the_rate_makes_no_difference_to_the_sound(model, rate):
    """The same sound at another rate: the same extraction, in time and level."""
    class Same(torch.nn.Module):  # hands the sound through
        config = model.config

        def forward(self, mixture, tokens, mask):
            output = model.network(mixture, tokens, mask)
            output.audio = mixture[:, None].expand(-1, tokens.shape[1], -1, -1)
            return output

        likelihood = model.network.likelihood

    audio = recording(1.1, rate)
    extractor = LuSeeLExtractor.__new__(LuSeeLExtractor)
    vars(extractor).update(vars(model), network=Same())
    result = extractor.extract(audio, rate, QUERY)
    # ends ring where a recording starts in the middle of a sound
    inside = slice(rate // 20, -rate // 20)
    np.testing.assert_allclose(result.audio[:, inside], audio[:, inside],
                               atol=0.02 * np.abs(audio).max())


# -- several queries

def test_a_list_of_queries_equals_single_ones(model, monkeypatch):
    audio, queries = recording(0.9), [QUERY, "rain", "a very long description of a baby crying"]
    singles = [model.extract(audio, RATE, query) for query in queries]
    encoded = []
    encode = model.network.encode
    monkeypatch.setattr(
        model.network, "encode",
        lambda mixture, *heads: encoded.append(len(mixture)) or encode(mixture, *heads))
    together = model.extract(audio, RATE, queries)
    assert sum(encoded) == len(singles[0].windows)  # the audio encoders ran once
    assert [r.query for r in together] == queries
    for one, other in zip(together, singles):
        same(one, other)
    assert np.abs(together[0].audio - together[1].audio).max() > 1e-4  # words count
    assert model.extract(audio, RATE, tuple(queries))[1].query == "rain"
    assert [r.query for r in model.extract(audio, RATE, [QUERY])] == [QUERY]
    assert model.extract(audio, RATE, []) == []


# -- inputs

def test_kinds_of_input(model):
    audio = recording(0.6)
    expected = model.extract(audio, RATE, QUERY)
    for same_audio in (torch.from_numpy(audio), torch.from_numpy(audio).requires_grad_(),
                       torch.from_numpy(audio).double(), audio.astype(np.float64), audio.tolist(),
                       np.asfortranarray(audio), audio[:, ::-1].copy()[:, ::-1]):
        same(model.extract(same_audio, RATE, QUERY), expected)
    for coarse, scale in ((np.round(audio * 32768).astype(np.int16), 32768),
                          (torch.from_numpy(audio * 2.0**31).round().int(), 2.0**31),
                          (torch.from_numpy(audio).bfloat16(), 1), (audio.astype(np.float16), 1)):
        floats = torch.as_tensor(coarse).double().numpy() / scale
        same(model.extract(coarse, RATE, QUERY), model.extract(floats, RATE, QUERY))


def test_the_input_is_left_alone(model):
    audio = recording(0.6)
    before = audio.copy()
    result = model.extract(audio, RATE, QUERY)
    np.testing.assert_array_equal(audio, before)
    result.audio[:] = 0
    np.testing.assert_array_equal(audio, before)


GOOD = np.zeros((2, 8000), np.float32)


@pytest.mark.parametrize("audio, rate, said", [
    (GOOD[0], RATE, "mono .* left and the right ear"),
    (GOOD[:1], RATE, "mono"),
    (GOOD[:1].T, RATE, "mono"),
    (GOOD.T, RATE, "transpose it"),
    (np.zeros((3, 8000)), RATE, r"shape \(2, samples\), got \(3, 8000\)"),
    (GOOD[None], RATE, r"shape \(2, samples\)"),
    (np.where(np.arange(8000) == 7999, np.nan, GOOD), RATE, "NaN or infinite"),
    (np.where(np.arange(8000) == 0, -np.inf, GOOD), RATE, "NaN or infinite"),
    (GOOD[:, :0], RATE, "empty"),
    ([], RATE, "empty"),
    (GOOD[:, :799], RATE, "too short: 49.9 ms, at least 50 ms"),
    (GOOD[:, :1], RATE, "too short"),
    (GOOD, 0, "sample rate 0 Hz"),
    (GOOD, -16000, "sample rate -16000 Hz"),
    (GOOD, None, "sample rate None Hz"),
    (GOOD, "16000", "sample rate '16000' Hz"),
    (GOOD, float("nan"), "sample rate nan Hz"),
    (GOOD, float("inf"), "sample rate inf Hz"),
    (GOOD, True, "sample rate True Hz"),
    (GOOD, 10_000_000, "sample rate 10000000 Hz"),
    (GOOD.astype(complex), RATE, "floating-point"),
    (GOOD.astype(bool), RATE, "floating-point"),
    ("a.wav", RATE, "floating-point"),
    (None, RATE, "floating-point"),
])
def test_bad_audio(model, audio, rate, said):
    with pytest.raises(AudioError, match=said):
        model.extract(audio, rate, QUERY)
    with pytest.raises(AudioError, match=said):
        validate_audio(audio, rate)


@pytest.mark.parametrize("query, said", [
    ("", "empty: describe"), (" \t", "empty"), ("...", "empty"), ("x" * 257, "257 characters"),
    (None, "string, got NoneType"), (7, "string, got int"), ([QUERY, ""], "empty"),
    ([QUERY, None], "string, got NoneType")])
def test_bad_queries(model, query, said):
    with pytest.raises(QueryError, match=said):
        model.extract(recording(0.5), RATE, query)


def test_all_errors_are_value_errors():
    assert issubclass(AudioError, LuseelError) and issubclass(QueryError, LuseelError)
    assert issubclass(LuseelError, ValueError)


def test_silence_is_no_error(model):
    result = model.extract(np.zeros((2, 20000)), RATE, QUERY)
    assert np.isfinite(result.audio).all() and 0 <= result.azimuth < 360
    assert np.isfinite(result.confidence) and np.isfinite(result.likelihood).all()


# -- azimuth from likelihood

@pytest.mark.parametrize("azimuth", [0.0, 0.3, 90.0, 179.75, 359.6, 270.4])
def test_estimate_azimuth(azimuth):
    distance = (np.arange(360) - azimuth + 180) % 360 - 180
    likelihood = np.exp(-distance**2 / 10) + 0.01 * np.exp(-((np.arange(360) - 120) / 20.0) ** 2)
    got = estimate_azimuth(np.stack([likelihood, likelihood]))
    assert got.shape == (2,) and (0 <= got).all() and (got < 360).all()
    assert np.abs((got - azimuth + 180) % 360 - 180).max() < 0.3
    assert estimate_azimuth(np.zeros(360)) == 0


def test_long_recordings_trust_the_windows_that_hear_the_sound(model, monkeypatch):
    """A loud confident window at 80 degrees outweighs quiet, unsure ones at 200."""
    from luseel_model.inference import WindowOutput

    def estimates(windows, queries):
        outputs = []
        for window in windows.numpy():
            here = window[0, 0] > 0.5
            likelihood = np.zeros((1, 360), np.float32)
            likelihood[0, 80 if here else 200] = 1.0
            outputs.append(WindowOutput(window[None] if here else window[None] * 0 + 1e-3,
                                        np.float32([80 if here else 200]), likelihood,
                                        np.float32([0.9 if here else 0.2])))
        return outputs

    monkeypatch.setattr(model, "infer_windows", estimates)
    audio = np.zeros((2, 5 * 8000), np.float32)
    audio[:, 16000:18000] = 1.0
    result = model.extract(audio, RATE, QUERY)
    assert result.azimuth == pytest.approx(80)
    assert result.confidence == pytest.approx(0.9)
    assert [w.azimuth for w in result.windows].count(80) == 1


# -- models that lack a part

def test_without_localization(monkeypatch):
    model = make_extractor(monkeypatch, changed("tiny", use_localization=False))
    result = model.extract(recording(0.9), RATE, QUERY)
    assert result.azimuth is None and result.likelihood is None
    assert all(w.azimuth is None and w.likelihood is None for w in result.windows)
    assert 0 <= result.confidence <= 1
    assert json.loads(json.dumps(result.to_dict()))["azimuth_degrees"] is None


def test_without_tagging_confidence_is_the_peak_of_the_likelihood(monkeypatch):
    model = make_extractor(monkeypatch, changed("tiny", tagging={"width": 0}))
    window = model.infer_window(recording(0.5), [QUERY, "rain"])
    np.testing.assert_allclose(window.confidence, window.likelihood.max(-1))


@pytest.mark.parametrize("tagging", [0, 16])
def test_one_channel_model_hears_each_ear_by_itself(monkeypatch, tagging):
    model = make_extractor(monkeypatch, changed(
        "tiny", audio_channels=1, use_localization=False, tagging={"width": tagging},
        backbone={"inputs": "complex", "output": "direct"}))
    audio = recording(0.5)
    queries = [QUERY, "rain", "a bell"]
    both = model.infer_window(audio, queries)
    assert both.audio.shape == (3, 2, 8000) and np.isnan(both.azimuth).all()
    tokens, mask = minilm()(queries)
    with torch.no_grad():
        left = model.network(torch.from_numpy(audio[None, :1]), tokens[None], mask[None]).audio
    np.testing.assert_allclose(both.audio[:, 0], left[0, :, 0], atol=1e-5 * left.abs().max())
    swapped = model.infer_window(audio[::-1].copy(), queries)
    level = np.abs(both.audio).max()
    np.testing.assert_allclose(swapped.audio, both.audio[:, ::-1], atol=1e-4 * level)
    np.testing.assert_allclose(swapped.confidence, both.confidence, atol=1e-4)
    assert ((0 <= both.confidence) & (both.confidence <= 1)).all()


# -- from a file

def test_load_model(tmp_path):
    network = make_network(changed("tiny"))
    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, network.state_dict(), network.config, {"step": 12})
    model = load_model(path, "cpu")
    assert (model.name, model.info, model.device.type) == ("mine", {"step": 12}, "cpu")
    audio = recording(0.5)
    tokens = minilm().embed([QUERY])[0][None, None]
    with torch.no_grad():
        expected = network(torch.from_numpy(audio)[None], tokens,
                           torch.ones(tokens.shape[:3], dtype=torch.bool)).audio[0, 0]
    np.testing.assert_allclose(model.extract(audio, RATE, QUERY).audio, expected, atol=1e-6)
