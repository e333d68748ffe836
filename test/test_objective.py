"""The training objective against values computed by hand or by a library."""

import numpy as np
import pytest
import torch
from model_fixtures import changed, make_network, noise, queries

from luseel_model.luseel.network import LuSeeLOutput
from training.objective import LossConfig, Objective

NONE = dict(si_snr=0.0, spectrum=0.0, doa=0.0)


@pytest.fixture(scope="module")
def network():
    return make_network(changed("tiny"))


def terms(network, output, target, azimuth, mixture=None, **weights):
    objective = Objective(LossConfig(**{**NONE, **weights}), network)
    mixture = output.audio[:, 0] if mixture is None else mixture
    return objective.extraction(network, output, mixture, target, azimuth)


def silent_output(doa=None, token_doa=None):
    return LuSeeLOutput(audio=noise(1, 2, 2, 8000), doa_logits=doa, token_doa_logits=token_doa)


ALL = dict(si_snr=1.0, spectrum=1.0, magnitude=1.0, doa=1.0, doa_tokens=1.0)


@pytest.mark.parametrize("left_out", ALL)
def test_weight_zero_leaves_a_term_out(network, left_out):
    logits = noise(1, 2, 360)
    output = silent_output(logits, logits * 2)
    inputs = output, noise(1, 2, 2, 8000, seed=4), torch.tensor([[10.0, 200.0]])
    full, part = terms(network, *inputs, **ALL), terms(network, *inputs, **{**ALL, left_out: 0.0})
    assert set(full) == set(ALL) and set(part) == set(ALL) - {left_out}
    twice = terms(network, *inputs, **{**ALL, left_out: 2.0})
    for name in ALL:
        assert twice[name] == pytest.approx((2 if name == left_out else 1) * full[name].item())


def test_network_without_localization(network):
    inputs = silent_output(), noise(1, 2, 2, 8000, seed=4), torch.zeros(1, 2)
    assert set(terms(network, *inputs, **ALL)) == {"si_snr", "spectrum", "magnitude"}


def test_si_snr_term_equals_torchmetrics(network):
    functional = pytest.importorskip("torchmetrics.functional.audio")
    output, target = silent_output(), noise(1, 2, 2, 8000, seed=4)
    output.audio[0] += target[0] * torch.tensor([1.0, 0.3])[:, None, None]
    got = terms(network, output, target, torch.zeros(1, 2), si_snr=0.5)
    expected = functional.scale_invariant_signal_noise_ratio(output.audio, target).mean()
    assert got["si_snr"].item() == pytest.approx(-0.5 * expected.item(), abs=1e-3)


def test_queries_meet_their_own_targets(network):
    """Mixtures and queries are flattened alike: the right pairs give high SI-SNR."""
    target = noise(2, 2, 2, 8000, seed=4)
    output = LuSeeLOutput(audio=target + 0.01 * noise(2, 2, 2, 8000, seed=5))
    right = terms(network, output, target, torch.zeros(2, 2), si_snr=1.0)["si_snr"]
    wrong = terms(network, output, target.flip(1), torch.zeros(2, 2), si_snr=1.0)["si_snr"]
    assert right.item() == pytest.approx(-40, abs=1) and wrong > 0


def test_direction_terms_by_hand(network):
    """Cross-entropy and the paper's equation 2 in NumPy, one mixture, two queries."""
    logits = noise(1, 2, 360, level=1.0)
    azimuth = np.array([10.25, 359.5])
    output = silent_output(logits, logits * 0)
    degrees = np.arange(360)
    distance = np.abs((degrees[None] - azimuth[:, None] + 180) % 360 - 180)
    label = np.exp(-distance**2 / (2 * 5))
    x = logits[0].double().numpy()
    log_softmax = x - np.log(np.exp(x).sum(1, keepdims=True))
    probability = label / label.sum(1, keepdims=True)
    inputs = output, noise(1, 2, 2, 8000, seed=4), torch.tensor(azimuth)[None]

    got = terms(network, *inputs, doa=2.0, doa_tokens=1.0, doa_kind="cross_entropy")
    assert got["doa"].item() == pytest.approx(
        2 * -(probability * log_softmax).sum(1).mean(), rel=1e-4)
    assert got["doa_tokens"].item() == pytest.approx(np.log(360), rel=1e-5)

    paper = make_network(changed("tiny", localization={"activation": "sigmoid"}))
    sigmoid = 1 / (1 + np.exp(-x))
    got = terms(paper, *inputs, doa=10.0)  # the defaults are the paper's: squared error, peak 1
    assert got["doa"].item() == pytest.approx(
        10 * ((sigmoid - label) ** 2).sum(1).mean(), rel=1e-4)


def test_magnitude_is_relative_to_each_mixture(network):
    """Query q of mixture b is measured in the level of mixture b."""
    output = LuSeeLOutput(audio=torch.zeros(2, 2, 2, 8000))
    target, mixture = noise(2, 2, 2, 8000), noise(2, 2, 8000, seed=2)
    base = terms(network, output, target, torch.zeros(2, 2), mixture, magnitude=1.0)["magnitude"]
    gain = torch.tensor([1.0, 100.0]).view(2, 1, 1)
    scaled = terms(network, output, target * gain[..., None], torch.zeros(2, 2), mixture * gain,
                   magnitude=1.0)["magnitude"]
    assert scaled.item() == pytest.approx(base.item(), rel=1e-3)


def test_the_defaults_are_the_papers():
    config = LossConfig()
    assert (config.si_snr, config.spectrum, config.doa) == (1, 1, 10)
    assert config.doa_kind == "squared"
    assert not (config.doa_tokens or config.dense_tags or config.clip_tags or config.presence
                or config.magnitude)


# -- tags

class Toy:
    """A tagger whose similarities are given."""

    def __init__(self, similarity):
        self.tagger = self
        self.value = similarity

    def similarity(self, tokens, sentences):
        return self.value

    def presence(self, similarity, candidate_tags, sentences):
        return torch.logsumexp(similarity, dim=1)


def tag_terms(network, similarity, kind, confusable=None, sources=None, **weights):
    objective = Objective(LossConfig(**{**NONE, **weights}), network)
    kinds = similarity.shape[-1]
    if confusable is None:
        confusable = torch.eye(kinds, dtype=torch.bool)
    if sources is None:
        sources = noise(*kind.shape, 2, 8000)
    return objective.tags(Toy(similarity), None, None, sources, kind, confusable)


def similarities(network, batch, kinds, seed=0):
    return noise(batch, network.config.spectral_tokens, kinds, seed=seed, level=1.0)


def softplus(x):
    return np.log1p(np.exp(x))


def test_tag_weights_of_zero_leave_terms_out(network):
    similarity, kind = similarities(network, 1, 3), torch.tensor([[0, 1]])
    assert tag_terms(network, similarity, kind) == {}
    for name in ("dense_tags", "clip_tags", "presence"):
        assert set(tag_terms(network, similarity, kind, **{name: 1.0})) == {name}


def test_presence_by_hand(network):
    """Kinds 0 and 1 sound, 3 is confusable with 1 and ignored, 2 and 4 are absent."""
    similarity, kind = similarities(network, 1, 5), torch.tensor([[0, 1]])
    confusable = torch.eye(5, dtype=torch.bool)
    confusable[1, 3] = confusable[3, 1] = True
    got = tag_terms(network, similarity, kind, confusable, presence=2.0)["presence"].item()
    logit = np.log(np.exp(similarity[0].double().numpy()).sum(0))
    expected = 2 * 0.5 * (np.mean(softplus(-logit[[0, 1]])) + np.mean(softplus(logit[[2, 4]])))
    assert got == pytest.approx(expected, rel=1e-4)
    changed_similarity = similarity.clone()
    changed_similarity[..., 3] += 5
    again = tag_terms(network, changed_similarity, kind, confusable, presence=2.0)["presence"]
    assert again.item() == pytest.approx(got, rel=1e-5), "a confusable kind counted"
    # a kind that is confusable with a present one but present itself does count
    both = tag_terms(network, changed_similarity, torch.tensor([[1, 3]]), confusable, presence=2.0)
    logit[3] += 5
    expected = 2 * 0.5 * (np.mean(softplus(-logit[[1, 3]])) + np.mean(softplus(logit[[0, 2, 4]])))
    assert both["presence"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", [[0, -1], [-1, 0]])
def test_an_unknown_kind_is_neither_present_nor_erases_one(network, order):
    similarity = similarities(network, 1, 3)
    weights = dict(presence=1.0, clip_tags=1.0)
    with_unknown = tag_terms(network, similarity, torch.tensor([order]), **weights)
    alone = tag_terms(network, similarity, torch.tensor([[0]]), **weights)
    for name in alone:
        assert with_unknown[name].item() == pytest.approx(alone[name].item(), rel=1e-5)


def test_dense_tags_by_hand(network):
    """One source low and one high in frequency: each token's label is the one that sounds there."""
    bins = network.config.spectral_tokens // network.config.frames  # 4 bands
    time = torch.arange(8000) / 16000
    low, high = torch.sin(2 * np.pi * 1000 * time), torch.sin(2 * np.pi * 7000 * time)
    sources = torch.stack([low, high])[None, :, None].expand(1, 2, 2, 8000)
    kind = torch.tensor([[2, 0]])
    similarity = torch.zeros(1, network.config.frames, bins, 3)
    similarity[:, :, 0, 2] = similarity[:, :, 3, 0] = 9.0  # lowest band kind 2, highest kind 0
    similarity = similarity.flatten(1, 2)
    right = tag_terms(network, similarity, kind, sources=sources, dense_tags=1.0)["dense_tags"]
    wrong = tag_terms(network, similarity, kind.flip(1), sources=sources, dense_tags=1.0)
    assert right < 0.1 and wrong["dense_tags"] > 5
    flat = tag_terms(network, similarity * 0, kind, sources=sources, dense_tags=3.0)["dense_tags"]
    assert flat.item() == pytest.approx(3 * np.log(3), rel=1e-3)


def test_clip_tags_by_hand(network):
    similarity, kind = similarities(network, 2, 4), torch.tensor([[0, 3], [1, -1]])
    got = tag_terms(network, similarity, kind, clip_tags=1.0)["clip_tags"].item()
    pooled = np.log(np.exp(similarity.double().numpy()).sum(1))
    log_softmax = pooled - np.log(np.exp(pooled).sum(1, keepdims=True))
    expected = -(log_softmax[0, [0, 3]].mean() + log_softmax[1, 1]) / 2
    assert got == pytest.approx(expected, rel=1e-4)


def test_all_terms_are_differentiable():
    network = make_network(changed("tiny")).train()
    weights = {**ALL, "dense_tags": 1.0, "clip_tags": 1.0, "presence": 1.0,
               "doa_kind": "cross_entropy"}
    objective = Objective(LossConfig(**weights), network)
    mixture, target = noise(2, 2, 8000), noise(2, 2, 2, 8000, seed=6)
    output = network(mixture, *queries(2, batch=2))
    losses = objective.extraction(network, output, mixture, target, torch.rand(2, 2) * 360)
    losses |= objective.tags(network, output.tag_tokens, noise(3, 384, level=1.0), target,
                             torch.tensor([[0, 1], [2, 0]]), torch.eye(3, dtype=torch.bool))
    assert len(losses) == 8
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True,
                                        retain_graph=True)
        gradients = [g for g in gradients if g is not None]
        assert gradients and all(g.isfinite().all() for g in gradients), name
        assert max(g.abs().max() for g in gradients) > 0, name
