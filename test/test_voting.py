"""Bins that vote for a direction."""

import numpy as np
import pytest
import torch
from model_fixtures import queries
from test_head_search import RATE, heard, off, sparse_sound
from test_head_search import make as make_searching

from luseel_model.errors import ConfigError
from luseel_model.features import stft
from training.heads import load_head


@pytest.fixture(scope="module")
def head():
    return load_head("mit_kemar")


def make(head, voting, short_frame=0):
    torch.manual_seed(4)
    return make_searching(head, head_search={
        "azimuths": 120, "voting": voting, "short_frame": short_frame}).eval()


def spectra(*sounds, frame=1024):
    return torch.stack([stft(sound, frame, frame // 2) for sound in sounds])


@torch.no_grad()
@pytest.mark.parametrize("azimuth", [0, 51, 138, 225])
def test_votes_are_for_the_direction_of_what_was_extracted(head, azimuth):
    """Two sounds of equal level; whichever the extraction names, its direction wins."""
    network = make(head, 8)
    votes, prepared = network.voting_localizer, network.head_search.prepared()
    places = (azimuth, (azimuth + 105) % 360)
    sounds = [heard(head.hrir, a, sparse_sound(i, 1.0)) for i, a in enumerate(places)]
    mixture = spectra(sum(sounds))
    features, level = votes.features(mixture, spectra(*sounds)[None], [prepared.match_forms],
                                     torch.tensor([0]))
    bands = votes.bands.shape[1]
    assert features.shape == (1, 2, 4 * bands, 120) and level.shape == (1, 2, bands)
    for query, place in enumerate(places):
        for kind in range(4):  # matches and votes, of all bins and of direct sound
            whole = features[0, query, kind * bands:(kind + 1) * bands].sum(0)
            found = 3 * int(whole.argmax())
            # front and back differ by little; which it is, the network has to weigh
            assert min(off(found, place), off(found, 180 - place)) <= 6, (query, kind)


@torch.no_grad()
def test_direct_sound_outvotes_a_late_reflection(head):
    """A reflection of the same level from elsewhere, 60 ms later, for a train of clicks."""
    network = make(head, 8)
    votes, prepared = network.voting_localizer, network.head_search.prepared()
    clicks = np.zeros(RATE)
    clicks[1000::4000] = 1.0
    late = np.concatenate([np.zeros(960), clicks])[:RATE]
    sound = heard(head.hrir, 60, clicks) + heard(head.hrir, 270, late)
    features, _ = votes.features(spectra(sound), spectra(sound)[None], [prepared.match_forms],
                                 torch.tensor([0]))
    bands = votes.bands.shape[1]
    everywhere, direct = (features[0, 0, k * bands:(k + 1) * bands].sum(0) for k in (2, 3))
    here, there = 60 // 3, 270 // 3
    assert direct[here] - direct[there] > everywhere[here] - everywhere[there]
    assert off(3 * int(direct.argmax()), 60) <= 6


@torch.no_grad()
@pytest.mark.parametrize("azimuth", [0, 51, 138, 225])
def test_short_frames_vote_for_the_direction_of_what_was_extracted(head, azimuth):
    network = make(head, 8, short_frame=256)
    votes, prepared = network.voting_localizer, network.head_search.prepared()
    places = (azimuth, (azimuth + 105) % 360)
    sounds = [heard(head.hrir, a, sparse_sound(i, 1.0)) for i, a in enumerate(places)]
    features, level = votes.features(
        spectra(sum(sounds), frame=256), spectra(*sounds, frame=256)[None],
        [prepared.short_forms], torch.tensor([0]), short=True)
    bands = votes.short_bands.shape[1]
    assert features.shape == (1, 2, 6 * bands, 120) and level.shape == (1, 2, 3 * bands)
    for query, place in enumerate(places):
        for kind in range(6):
            whole = features[0, query, kind * bands:(kind + 1) * bands].sum(0)
            found = 3 * int(whole.argmax())
            assert min(off(found, place), off(found, 180 - place)) <= 6, (query, kind)


@torch.no_grad()
def test_only_short_frames_are_ahead_of_an_early_reflection(head):
    """A louder reflection 20 ms later lies in the same frame of 64 ms, not in that of 16 ms."""
    network = make(head, 8, short_frame=256)
    votes, prepared = network.voting_localizer, network.head_search.prepared()
    noise = np.random.default_rng(0).standard_normal(RATE)
    bursts = noise * (np.arange(RATE) % 4000 < 160)  # 10 ms each
    late = 1.5 * np.concatenate([np.zeros(320), bursts])[:RATE]
    sound = heard(head.hrir, 60, bursts) + heard(head.hrir, 300, late)
    index = torch.tensor([0])
    of_long, _ = votes.features(spectra(sound), spectra(sound)[None], [prepared.match_forms], index)
    of_short, kept = votes.features(
        spectra(sound, frame=256), spectra(sound, frame=256)[None], [prepared.short_forms], index,
        short=True)
    long, short = (v[0, 0, 3 * n:4 * n].sum(0) for v, n in (
        (of_long, votes.bands.shape[1]), (of_short[:, :, 2 * votes.short_bands.shape[1]:],
                                          votes.short_bands.shape[1])))
    assert off(3 * int(short.argmax()), 60) <= 6
    assert off(3 * int(long.argmax()), 60) > 6
    assert (kept[0, 0, votes.short_bands.shape[1]:] < 0).all()  # onsets are a part of all bins


def test_short_frames_fit_the_networks_own(head):
    with pytest.raises(ConfigError, match="multiple of head_search.short_frame 96"):
        make(head, 8, short_frame=96)
    assert make(head, 0, short_frame=96).head_search.prepared().short_forms is None


def test_front_and_back_are_exchanged(head):
    votes = make(head, 8).voting_localizer
    x = torch.arange(120.0) * 3
    mirrored = votes.mirrored(x)
    assert torch.equal(mirrored, (180 - x) % 360)
    assert torch.equal(votes.mirrored(mirrored), x)


@torch.no_grad()
@pytest.mark.parametrize("short_frame", [0, 256])
def test_a_new_one_changes_nothing(head, short_frame):
    with_votes, without = make(head, 8, short_frame), make(head, 0)
    missing, extra = without.load_state_dict(with_votes.state_dict(), strict=False)
    assert not missing and all(name.startswith("voting_localizer.") for name in extra)
    mixture = heard(head.hrir, 60, sparse_sound(1, 1.0))[None]
    a, b = (network(mixture, *queries(1)).doa_logits for network in (with_votes, without))
    assert torch.allclose(a, b, atol=1e-5)
