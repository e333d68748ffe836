"""Training of LASS-Net and UNet-Tag: batches, terms, resumption, and that it learns."""

import numpy as np
import pytest
import torch
from model_fixtures import merged, minilm, write_tones
from test_lass import PAPER, TINY

from luseel_model.checkpoint import load_network
from luseel_model.config import build_config
from luseel_model.errors import ConfigError
from luseel_model.lass.network import spectrogram
from training.losses.spectral_mae import spectral_mae
from training.tasks.lass import LASSTask, LASSTrainConfig, extraction_terms, token_shares
from training.train_config import load_train_config
from training.trainer import Trainer

TONES = {"high tone": 3000, "hissing": None, "low tone": 300}
KINDS = tuple(TONES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("data") / "packed", TONES)


@pytest.fixture(autouse=True)
def one_text_encoder(monkeypatch):
    monkeypatch.setattr("training.tasks.lass.TextEncoder", lambda config, device: minilm())


@pytest.fixture
def settings(corpus):
    return {
        "name": "toy", "family": "lass", "model": "lass-small", "overrides": TINY,
        "steps": 6, "batch_size": 3, "tag_steps": 2, "tag_batch_size": 4,
        "log_every": 2, "save_every": 3,
        "data": {"packed": str(corpus), "captions": False, "queries": 2, "absent_share": 0.5,
                 "simulation": {"seconds": 0.5, "head_size": None, "snr_db": [-3, 3]}},
        "loss": {"mae": 5.0, "relative": True, "si_snr": 1.0, "absent": 0.3, "dense_tags": 1.0,
                 "clip_tags": 1.0, "presence": 1.0},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3, "average": 0.9},
        "validation": {"every": 3, "mixtures": 4, "batch_size": 2},
    }


def config_of(settings, **changes):
    return build_config(LASSTrainConfig, merged(settings, changes))


def task_of(settings, **changes):
    return LASSTask(config_of(settings, **changes), torch.device("cpu"), 1)


# -- batches

def test_what_a_batch_asks_for(settings):
    task = task_of(settings)
    absent = 0
    for _ in range(4):
        batch = task.batch(5, 6)
        assert batch.mixture.shape == (6, 1, 8000) and batch.sources.shape == (6, 2, 1, 8000)
        torch.testing.assert_close(batch.sources.sum(1), batch.mixture, atol=1e-6, rtol=1e-4)
        asked_kind = batch.wording  # without captions a wording is its kind
        for b in range(6):
            for q in range(2):
                if batch.asked[b, q] < 0:
                    absent += 1
                    assert q == 1 and asked_kind[b, q] not in batch.kind[b]
                else:
                    assert asked_kind[b, q] == batch.kind[b, batch.asked[b, q]]
    assert 4 <= absent <= 20  # of 24, half on average


def test_paper_mixtures_are_at_0_db(settings):
    """Section 4, with the paper's data configuration."""
    config = load_train_config("lass")
    assert (config.batch_size, config.steps, config.optimizer.learning_rate) == (16, 200_000, 3e-4)
    assert config.loss.mae == 1.0 and not config.loss.relative and not config.tag_steps
    data = {"simulation": {"snr_db": list(config.data.simulation.snr_db), "rate": None,
                           "equaliser_db": 0.0, "level_db": None, "gap": [0, 0]}}
    batch = task_of(settings, data=data).batch(5, 8)
    level = batch.sources.square().mean((-1, -2)).sqrt()
    torch.testing.assert_close(level[:, 0], level[:, 1])


def test_paper_training_keeps_the_transform_in_seconds():
    model = load_train_config("lass").model_config()
    assert model.stft.n_fft / model.sample_rate == pytest.approx(1024 / 32000)
    assert model.frames == 626 and model.separator.channels == (32, 64, 128, 256, 384, 384)


def test_tokens_belong_to_what_is_heard_there(settings):
    """A low tone first, a high one after it."""
    task = task_of(settings)
    time = torch.arange(8000) / 16000
    early = (time < 0.25).float()
    sources = torch.stack([early * torch.sin(2 * torch.pi * 300 * time),
                           (1 - early) * torch.sin(2 * torch.pi * 3000 * time)])[None, :, None]
    shares, weight = token_shares(sources, task.network)
    network = task.network
    with torch.no_grad():
        encoded = network.separator.encode(
            network.inputs(spectrogram(sources[:, 0, 0], network.config.stft).abs()), None)
    rows, frames = encoded.x.shape[-2:]
    assert shares.shape == (1, rows * frames, 2) and encoded.tag_tokens.shape[1] == rows * frames
    shares = shares.view(frames, rows, 2)
    power = weight.view(frames, rows)
    assert shares[: frames // 2 - 2, :, 0].min() > 0.99
    assert shares[frames // 2 + 2: -1, :, 1].min() > 0.99
    assert power[3].argmax() < power[-4].argmax()  # rows go up in frequency
    assert weight.mean() == pytest.approx(1.0)


# -- terms

def test_mae_of_equation_5():
    torch.manual_seed(0)
    estimate, target = torch.rand(2, 1, 5, 7), torch.rand(2, 1, 5, 7)
    expected = [np.abs(estimate[b].numpy() - target[b].numpy()).mean() for b in range(2)]
    assert spectral_mae(estimate, target).tolist() == pytest.approx(expected)
    mixture = torch.rand(2, 1, 5, 7)
    relative = spectral_mae(3 * estimate, 3 * target, 3 * mixture)
    torch.testing.assert_close(relative, spectral_mae(estimate, target, mixture))


def test_terms_of_known_masks(settings):
    """A perfect and a silent extraction, and one of a sound that isn't there."""
    task = task_of(settings)
    batch = task.batch(5, 4)
    batch.asked = torch.tensor([[0, 1]] * 3 + [[0, -1]])
    model = task.network.config
    output = task.network(batch.mixture, task.features[batch.wording])
    spectra = spectrogram(batch.sources, model.stft)
    output.mask = (spectra.abs()[:, :, :1] / output.spectrum.abs()[:, None]).reshape(
        output.mask.shape)
    output.audio = batch.sources.clone()
    terms = extraction_terms(output, batch, model, task.config.loss)
    assert terms["mae"] < 1e-5 and terms["si_snr"] < -50
    output.audio[3, 1] *= 0.01
    quieter = extraction_terms(output, batch, model, task.config.loss)["absent"]
    assert quieter < terms["absent"]
    output.mask = torch.zeros_like(output.mask)
    silent = extraction_terms(output, batch, model, task.config.loss)["mae"]
    heard = [(b, q) for b in range(4) for q in range(2) if batch.asked[b, q] >= 0]
    expected = np.mean([spectra[b, q].abs().mean() / output.spectrum[b].abs().mean()
                        for b, q in heard])
    assert silent.item() == pytest.approx(5 * expected, rel=1e-4)


def test_tag_steps_train_the_encoder_alone(settings, tmp_path):
    trainer = Trainer(config_of(settings), tmp_path, "cpu")
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.train_step()
    def moved():
        return {".".join(k.split(".")[:2]) for k, v in trainer.network.state_dict().items()
                if not torch.equal(v, before[k])}
    assert moved() == {"separator.encoder", "separator.middle", "separator.tagger"}
    trainer.train_step()
    trainer.train_step()
    assert moved() >= {"separator.decoder", "separator.after", "separator.last", "query.linear"}


# -- runs

def test_resumed_equals_uninterrupted(settings, tmp_path):
    whole = Trainer(config_of(settings), tmp_path / "whole", "cpu")
    whole.run()
    first = Trainer(config_of(settings, save_every=1), tmp_path / "parts", "cpu")
    for _ in range(3):
        first.train_step()
    first.save_resume()
    second = Trainer(config_of(settings), tmp_path / "parts", "cpu")
    assert second.step == 3
    second.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


@pytest.mark.parametrize("changes", [
    {"overrides": {"query": {"encoder": "tags", "tags": []}}, "model": "unet-tag-small"},
    {"overrides": merged(PAPER, {"query": {"encoder": "bert", "layers": 1, "heads": 2,
                                           "embedding": 16}}),
     "loss": {"dense_tags": 0.0, "clip_tags": 0.0, "presence": 0.0, "relative": False,
              "si_snr": 0.0, "absent": 0.0}, "tag_steps": 0, "data": {"absent_share": 0.0}},
])
def test_other_networks_train(settings, tmp_path, changes, monkeypatch):
    """UNet-Tag, and the paper's network with its loss alone, starting from a pretrained BERT."""
    started = []
    monkeypatch.setattr("luseel_model.lass.network.QueryNet.load_pretrained",
                        lambda self, weights: started.append(weights))
    trainer = Trainer(config_of(settings, steps=3, **changes), tmp_path, "cpu")
    result = trainer.run()
    assert np.isfinite(result["score"]) and result["score"] == -result["si_snri"]
    network, info = load_network(tmp_path / "last.safetensors")
    assert info["kinds"] == list(KINDS)
    if network.config.query.encoder == "tags":
        assert network.config.query.tags == KINDS and not started
        assert torch.equal(trainer.task.features, torch.eye(3))
    else:
        assert started == ["prajjwal1/bert-mini"]


def test_it_learns(settings, tmp_path):
    """Low tone, high tone or hiss: told apart by words after some seconds."""
    trainer = Trainer(config_of(
        settings, steps=90, batch_size=8, tag_steps=30, tag_batch_size=8,
        data={"absent_share": 0.0}, optimizer={"learning_rate": 0.01, "average": 0.0},
        validation={"every": 90, "mixtures": 8, "batch_size": 8}), tmp_path, "cpu")
    result = trainer.run()
    assert result["si_snri"] > 5 and result["right_source"] > 0.9


@pytest.mark.parametrize("change, message", [
    ({"overrides": {"separator": {"tag_width": 0}}}, "tag_width"),
    ({"loss": {"mae": 0.0, "si_snr": 0.0}}, "above 0 for the extraction"),
    ({"loss": {"absent": 0.0}}, "absent_share needs"),
    ({"data": {"simulation": {"seconds": 1.0}}}, "make them equal"),
    ({"overrides": {"sample_rate": 32000}}, "sample_rate"),
    ({"data": {"absent_share": 2.0}}, "within 0 and 1"),
])
def test_contradictions(settings, change, message):
    with pytest.raises(ConfigError, match=message):
        task_of(settings, **change)


@pytest.mark.parametrize("name", ["lass", "lass-small", "unet-tag", "unet-tag-small"])
def test_shipped_trainings(name):
    config = load_train_config(name)
    assert config.family == "lass" and config.name == name == config.model
    model = config.model_config()
    if model.query.encoder != "tags":
        config.check(model)


def test_noise_losses(settings):
    """What the dry run counts memory by."""
    config = config_of(settings)
    network = LASSTask.build_network(config)
    terms = LASSTask.noise_losses(config, network, 2)
    assert set(terms) == {"mae", "si_snr"} and all(v.isfinite() for v in terms.values())
    sum(terms.values()).backward()
