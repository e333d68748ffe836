"""The search with the head's responses, and what the network makes of it."""

import numpy as np
import pytest
import scipy.signal
import torch
from model_fixtures import changed, make_network, merged, minilm, noise, queries

from luseel_model.config import build_config
from luseel_model.errors import ConfigError
from luseel_model.features import istft, stft
from luseel_model.luseel import LuSeeLExtractor
from luseel_model.luseel.head_search import HeadSearch
from training.heads import load_head
from training.objective import LossConfig, Objective
from training.tasks.luseel import LuSeeLTrainConfig, mirrored
from training.trainer import grown_state

RATE = 16000


@pytest.fixture(scope="module")
def head():
    return load_head("mit_kemar")


@pytest.fixture(scope="module")
def search(head):
    config = changed("tiny", window=1.0, stft={"n_fft": 1024, "hop": 512},
                     head_search={"azimuths": 120})
    search = HeadSearch(config)
    search.set_head(head.hrir)
    return search


def sparse_sound(seed, seconds=2.0):
    """Notes that come and go, as most sounds do (Gaussian noise is no independent component)."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    sound = np.zeros_like(time)
    for _ in range(25):
        start, pitch = generator.uniform(0, seconds), generator.uniform(90, 900)
        decay = np.where(time > start, np.exp(-(time - start) * generator.uniform(5, 40)), 0)
        for harmonic in range(1, 12):
            sound += decay * np.sin(2 * np.pi * pitch * harmonic * time) / harmonic
    return sound / np.abs(sound).max()


def heard(hrir, azimuth, sound):
    """Through the responses of whole degrees, by SciPy."""
    return torch.tensor(np.stack([
        scipy.signal.fftconvolve(sound, hrir[azimuth, ear].numpy())[:len(sound)]
        for ear in (0, 1)]), dtype=torch.float32)


def off(a, b):
    return abs((float(a) - float(b) + 180) % 360 - 180)


def si_snr(estimate, target):
    target, estimate = target.flatten(), estimate.flatten()
    part = (estimate @ target) / (target @ target) * target
    return float(10 * torch.log10(part.square().sum() / (estimate - part).square().sum()))


@pytest.mark.parametrize("azimuths", [(30, 201), (90, 330), (75, 290)])
def test_two_sounds_without_a_room_are_found_and_separated(search, head, azimuths):
    images = [heard(head.hrir, a, sparse_sound(i)) for i, a in enumerate(azimuths)]
    mixture = torch.stack(images).sum(0)
    found = search(stft(mixture[None], 1024, 512), search.prepared())
    order = sorted((0, 1), key=lambda k: off(found.azimuth[0, k], azimuths[0]))
    for place, (azimuth, image) in zip(order, zip(azimuths, images)):
        assert off(found.azimuth[0, place], azimuth) <= 3
        audio = istft(found.images[0, place], 1024, 512, mixture.shape[-1])
        assert si_snr(audio, image) > 12 + si_snr(mixture, image)
        nearest = round(azimuth / 3) % 120
        assert found.evidence[0, nearest] < found.evidence[0].median() - 0.1


def test_the_right_head_matters(search, head):
    """Sounds heard by a smaller head: found with its responses, not with those of the other."""
    small = head.warped(0.8)
    azimuths = (50, 290)
    mixture = sum(heard(small.hrir, a, sparse_sound(9 + i)) for i, a in enumerate(azimuths))
    heads = [search.prepared(), search.prepare(search.spectra(small.hrir))]
    spectrum = stft(mixture[None], 1024, 512).expand(2, -1, -1, -1)
    found = search.forward_heads(spectrum, heads, torch.tensor([1, 0]))
    errors = [max(min(off(x, a) for x in row) for a in azimuths) for row in found.azimuth]
    assert errors[0] <= 3 < errors[1]


def test_a_mirrored_head_mirrors_what_is_found(search, head):
    azimuths = (40, 250)
    mixture = sum(heard(head.hrir, a, sparse_sound(20 + i)) for i, a in enumerate(azimuths))
    other = search.prepare(search.spectra(mirrored(head.hrir)))
    plain = search(stft(mixture[None], 1024, 512), search.prepared())
    swapped = search(stft(mixture.flip(0)[None], 1024, 512), other)
    assert sorted((-plain.azimuth[0]) % 360) == sorted(swapped.azimuth[0])
    assert torch.allclose(plain.evidence[0].flip(0).roll(1), swapped.evidence[0], atol=1e-3)


def test_silence_is_no_number_trouble(search):
    found = search(stft(torch.zeros(1, 2, RATE), 1024, 512), search.prepared())
    assert all(torch.isfinite(torch.view_as_real(v) if v.is_complex() else v).all()
               for v in (found.images, found.evidence, found.statistics))


# -- in the network

SEARCHING = {"window": 1.0, "stft": {"n_fft": 1024, "hop": 512}, "head_search": {
    "azimuths": 60, "mel_bands": 16, "tagger_channels": [8, 8]}}


def make(head, **changes):
    network = make_network(changed("tiny", **merged(SEARCHING, changes)))
    network.head_search.set_head(head.hrir)
    return network


@torch.no_grad()
def test_full_trust_gives_the_chosen_candidate(head):
    """With the gates open and the choice certain, the output is that candidate, gain included."""
    network = make(head)
    last = network.frequency_decoder[-1].conv_tr
    last.weight[:, -2:] = 0
    last.bias[-2], last.bias[-1] = 60.0, 60.0
    network.audibility[:] = torch.tensor([0.0, 30.0])
    mixture = sum(heard(head.hrir, a, sparse_sound(30 + i, 1.0))
                  for i, a in enumerate((60, 240)))[None]
    output = network(mixture, *queries(1))
    first = istft(output.candidates.images[:, 0], 1024, 512, mixture.shape[-1])
    assert torch.allclose(output.audio[:, 0], first, atol=1e-4)
    last.bias[-2] = -60.0
    masked = network(mixture, *queries(1))
    alone = istft(masked.masked[:, 0], 1024, 512, mixture.shape[-1])
    assert torch.allclose(masked.audio[:, 0], alone, atol=1e-4)
    assert not torch.allclose(alone, first, atol=1e-2)


@torch.no_grad()
def test_who_listens_is_told_apart_in_a_batch(head):
    network = make(head)
    small = network.head_search.prepare(
        network.head_search.spectra(head.warped(0.8).hrir))
    mixture = sum(heard(head.hrir, a, sparse_sound(40 + i, 1.0))
                  for i, a in enumerate((60, 240)))[None]
    tokens, mask = queries(1)
    heads = [network.head_search.prepared(), small]
    both = network(mixture.expand(2, -1, -1), tokens.expand(2, -1, -1, -1),
                   mask.expand(2, -1, -1), heads, torch.tensor([1, 0]))
    for row, number in ((0, 1), (1, 0)):
        alone = network(mixture, tokens, mask, heads, torch.tensor([number]))
        assert torch.allclose(both.audio[row], alone.audio[0], atol=1e-4)
        assert torch.allclose(both.doa_logits[row], alone.doa_logits[0], atol=1e-3)
    assert not torch.allclose(both.audio[0], both.audio[1], atol=1e-3)
    own = network(mixture, tokens, mask)
    assert torch.allclose(own.audio[0], both.audio[1], atol=1e-4)


@torch.no_grad()
def test_what_is_not_believed_present_is_silenced(head):
    network = make(head)
    network.audibility[:] = torch.tensor([1.0, 0.0])
    mixture = noise(1, 2, RATE)
    network.tagger.scale.fill_(0.0)
    levels = []
    for bias in (8.0, -8.0):
        network.tagger.bias.fill_(bias)
        levels.append(network(mixture, *queries(1)).audio.square().mean().sqrt())
    assert levels[1] < 1e-3 * levels[0]


def test_another_head_is_set_and_saved_with_the_weights(head, tmp_path):
    network = make(head)
    extractor = LuSeeLExtractor(network, text=minilm())
    before = network.head_search.prepared().responses.clone()
    extractor.set_head(head.warped(0.8))
    assert not torch.allclose(network.head_search.prepared().responses, before)
    other = make(head)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.head_search.prepared().responses,
                       network.head_search.prepared().responses)
    with pytest.raises(ConfigError, match="no use of a head"):
        LuSeeLExtractor(make_network(changed("tiny")), text=minilm()).set_head(head)


def test_search_needs_two_ears_and_tags():
    with pytest.raises(ConfigError, match="head_search needs"):
        changed("tiny", tagging={"width": 0}, head_search={"azimuths": 60})
    with pytest.raises(ConfigError, match="divisor of 360"):
        changed("tiny", head_search={"azimuths": 50})


def test_trust_and_choice_are_learnt_from_what_is_better(head):
    """Where the candidate is the target itself, the loss wants trust; where it is not, none."""
    network = make(head)
    mixture = sum(heard(head.hrir, a, sparse_sound(60 + i, 1.0))
                  for i, a in enumerate((60, 240)))[None]
    objective = Objective(LossConfig(trust=1.0, selection=1.0), network)
    with torch.no_grad():
        output = network(mixture, *queries(1))
    found = istft(output.candidates.images[:, 0], 1024, 512, mixture.shape[-1])
    sources = torch.stack([found, mixture - found], 1)
    output.chosen = output.candidates.images[:, None, 0]
    terms = {}
    for trust in (4.0, -4.0):
        for choice in (4.0, -4.0):
            output.trust_logits = torch.full((1, 1), trust)
            output.selection_logits = torch.full((1, 1), choice)
            terms[trust, choice] = objective.candidates(
                network, output, torch.zeros(2, 384), sources, torch.tensor([[0, 1]]),
                torch.eye(2, dtype=torch.bool), torch.tensor([[0]]))
    assert terms[4.0, 4.0]["trust"] < 0.1 < 2 < terms[-4.0, 4.0]["trust"]
    assert terms[4.0, 4.0]["selection"] < terms[4.0, -4.0]["selection"] - 1
    absent = objective.candidates(network, output, torch.zeros(2, 384), sources,
                                  torch.tensor([[0, 1]]), torch.eye(2, dtype=torch.bool),
                                  torch.tensor([[-1]]))
    assert "trust" not in absent and absent["selection"] == 0


# -- growing a checkpoint

def test_a_smaller_network_grows():
    small, large = make_network(changed("tiny", **SEARCHING, **{"localization": {}}), seed=1), None
    plain = make_network(changed("tiny", window=1.0, stft={"n_fft": 1024, "hop": 512}), seed=2)
    large = small.state_dict()
    state = grown_state(large, plain.state_dict())
    assert set(state) == set(large)
    inputs = "frequency_encoder.0.conv.weight"
    old = plain.state_dict()[inputs]
    assert torch.equal(state[inputs][:, :old.shape[1]], old)
    assert not state[inputs][:, old.shape[1]:].any()
    assert torch.equal(state["tagger.bias"], plain.state_dict()["tagger.bias"])
    assert torch.equal(state["candidate_tagger.project.weight"],
                       large["candidate_tagger.project.weight"])
    with pytest.raises(ValueError, match="has no"):
        grown_state(plain.state_dict(), large)


def test_training_configuration_is_checked():
    run = build_config(LuSeeLTrainConfig, {"name": "x", "model": "luseel-small", "steps": 1,
                                           "data": {"simulation": {"seconds": 0.5}},
                                           "loss": {"candidate_tags": 1.0}})
    with pytest.raises(ConfigError, match="head_search.azimuths"):
        run.check(changed("tiny"))
    with pytest.raises(ConfigError, match="absent_share"):
        build_config(LuSeeLTrainConfig, {"name": "x", "model": "luseel-small", "steps": 1,
                                         "data": {"absent_share": 2}})
