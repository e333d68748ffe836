"""The network: shapes, independence of batch and queries, the paper's ablations."""

import pytest
import torch
from model_fixtures import changed, make_network, noise, queries

from luseel_model.families import load_config
from luseel_model.layers import DConv, FrequencyEmbedding
from luseel_model.layers import FiLM, Tagger
from luseel_model.luseel.transformer import TextAdapter
from luseel_model.text import sentence_embedding

VARIANTS = {
    "tiny": {},
    "time branch": {"backbone": {"time_branch": True}},
    "paper-like": {"backbone": {"time_branch": True, "inputs": "complex", "output": "direct",
                                "norm_groups": 0},
                   "transformer": {"layers": 3, "shared_layers": 0, "film_skips": False},
                   "localization": {"extracted": False, "activation": "sigmoid"},
                   "tagging": {"width": 0}},
    "other width": {"transformer": {"width": 24}},
    "no localization": {"use_localization": False},
}


def build(variant, **changes):
    return make_network(changed("tiny", **{**VARIANTS[variant], **changes}))


def outputs(output):
    """The tensors that a configuration has, by name."""
    return {k: v for k, v in vars(output).items() if v is not None}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_shapes(variant):
    network = build(variant)
    output = network(noise(2, 2, 8000), *queries(3, batch=2))
    assert output.audio.shape == (2, 3, 2, 8000) and output.audio.isfinite().all()
    expected = {"audio"}
    if network.config.use_localization:
        assert output.doa_logits.shape == output.token_doa_logits.shape == (2, 3, 360)
        expected |= {"doa_logits", "token_doa_logits"}
    if network.config.tagging.width:
        assert output.presence_logits.shape == (2, 3)
        assert output.tag_tokens.shape == (2, network.config.spectral_tokens, 16)
        expected |= {"presence_logits", "tag_tokens"}
    assert set(outputs(output)) == expected


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_queries_share_the_encoders(variant):
    """Several queries at once give what each gives by itself, in batches too."""
    network = build(variant)
    mixture, (tokens, mask) = noise(2, 2, 8000), queries(3, batch=2)
    together = outputs(network(mixture, tokens, mask))
    encoded = network.encode(mixture)
    for query in range(3):
        part = slice(query, query + 1)
        alone = outputs(network.extract(encoded, tokens[:, part], mask[:, part]))
        for name in alone.keys() - {"tag_tokens"}:
            torch.testing.assert_close(together[name][:, part], alone[name], atol=2e-5, rtol=1e-4)
    first, second = together["audio"][:, 0], together["audio"][:, 1]
    assert (first - second).abs().max() > 1e-3 * first.std(), "the words make no difference"


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_mixtures_of_a_batch_are_independent(variant):
    network = build(variant)
    mixture, (tokens, mask) = noise(3, 2, 8000), queries(2, batch=3)
    mixture[1] *= 100
    together = outputs(network(mixture, tokens, mask))
    for i in range(3):
        alone = outputs(network(mixture[i:i + 1], tokens[i:i + 1], mask[i:i + 1]))
        for name, value in alone.items():
            level = value.std()
            torch.testing.assert_close(together[name][i:i + 1] / level, value / level,
                                       atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["tiny", "paper-like"])
@torch.no_grad()
def test_the_recording_gain_passes_through(variant):
    """Half as loud in, half as loud out, same direction: interaural levels are kept."""
    network = build(variant)
    mixture, words = noise(1, 2, 8000, level=0.5), queries(1)
    loud, soft = network(mixture, *words), network(mixture / 2, *words)
    torch.testing.assert_close(soft.audio * 2, loud.audio, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(soft.doa_logits, loud.doa_logits, atol=1e-2, rtol=0)
    uneven = mixture * torch.tensor([1.0, 0.5])[:, None]
    change = (network(uneven, *words).doa_logits - loud.doa_logits).abs().max()
    assert change > 1e-3


@torch.no_grad()
def test_silence_is_finite():
    for variant in VARIANTS:
        output = build(variant)(torch.zeros(1, 2, 8000), *queries(1))
        for name, value in outputs(output).items():
            assert value.isfinite().all(), (variant, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant):
    """Each parameter gets a gradient from the outputs: nothing is left unconnected."""
    network = build(variant).train()
    output = network(noise(4, 2, 8000), *queries(2, batch=4))
    sum((v * noise(*v.shape, seed=9, level=1.0)).sum() for v in outputs(output).values()).backward()
    dead = [name for name, parameter in network.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().max() > 0]
    # the bias of keys shifts all attention scores alike, so that only rounding is left in it
    assert not [name for name in dead if "in_proj_bias" not in name], dead


# -- the paper's ablations

def test_without_localization():
    network = build("tiny", use_localization=False)
    assert not [name for name, _ in network.named_parameters() if "locali" in name]
    output = network(noise(1, 2, 8000), *queries(1))
    assert output.doa_logits is None and output.token_doa_logits is None


@pytest.mark.parametrize("use", [True, False])
@torch.no_grad()
def test_the_localizer_hears_more_in_pieces(use):
    """The mean of the pieces' probabilities, whichever comes first; one piece: that piece's."""
    network = build("tiny", use_gcc_phat=use)
    localizer, config = network.token_localizer, network.config
    first, second = ([noise(1, config.spectral_tokens, config.width, seed=seed + layer, level=1)
                      for layer in range(config.transformer.layers)] for seed in (1, 11))
    gcc = [noise(1, config.gcc_frames, 24, seed=seed) if use else None for seed in (21, 22)]

    def after(one, other, correlation):
        return localizer([torch.cat(pair, 1) for pair in zip(one, other)],
                         torch.cat(correlation, 1) if use else None).softmax(-1)

    alone = [localizer(*part).softmax(-1) for part in ((first, gcc[0]), (second, gcc[1]))]
    assert (alone[0] - alone[1]).abs().max() > 1e-4
    torch.testing.assert_close(after(first, second, gcc), sum(alone) / 2)
    torch.testing.assert_close(after(second, first, gcc[::-1]), sum(alone) / 2)
    longer = network(noise(2, 2, 3 * config.window_samples + 123), *queries(2, batch=2))
    assert longer.doa_logits.shape == (2, 2, 360) and longer.doa_logits.isfinite().all()
    assert longer.audio.shape[-1] == 3 * config.window_samples + 123


@pytest.mark.parametrize("use", [True, False])
@torch.no_grad()
def test_gcc_phat_switch(use, monkeypatch):
    network = build("tiny", use_gcc_phat=use, localization={
        "token_channels": 8, "frame_channels": [8, 1], "hidden": 16, "hidden_layers": 1})
    features = 2 * 24 if use else 0  # frames at 0 and 0.5 s
    assert network.token_localizer.decoder[0].in_features == 16 + features
    mixture, words = noise(1, 2, 8000), queries(1)
    before = network(mixture, *words).doa_logits
    monkeypatch.setattr("luseel_model.luseel.network.gcc_phat",
                        lambda audio, hop, lags: noise(1, 2, lags, level=5.0))
    after = network(mixture, *words).doa_logits
    assert bool((before == after).all()) == (not use)


@torch.no_grad()
def test_one_channel():
    """T-HTDemucs: one ear in, one ear out."""
    network = make_network(changed(
        "tiny", audio_channels=1, use_localization=False,
        backbone={"inputs": "complex", "output": "direct", "time_branch": True}))
    output = network(noise(2, 1, 8000), *queries(2, batch=2))
    assert output.audio.shape == (2, 2, 1, 8000)
    assert network.frequency_encoder[0].conv.in_channels == 2  # real and imaginary part
    assert network.time_encoder[0].conv.in_channels == 1


# -- whole networks

@torch.no_grad()
def test_paper_network_runs():
    network = make_network(load_config("luseel"))
    output = network(noise(1, 2, 160000), *queries(1, width=512))
    assert output.audio.shape == (1, 1, 2, 160000) and output.audio.isfinite().all()
    assert output.doa_logits.shape == (1, 1, 360) and output.doa_logits.isfinite().all()
    likelihood = network.likelihood(output.doa_logits)
    torch.testing.assert_close(likelihood, output.doa_logits.sigmoid())
    assert output.presence_logits is None


@torch.no_grad()
def test_small_network_runs():
    network = make_network(load_config("luseel-small"))
    output = network(noise(1, 2, 32000), *queries(2))
    assert output.audio.shape == (1, 2, 2, 32000) and output.doa_logits.shape == (1, 2, 360)
    likelihood = network.likelihood(output.doa_logits)
    assert likelihood.min() >= 0 and likelihood.max() <= 1
    # a softmax head that is as sharp as the label it learns reaches 1 at the peak
    distance = torch.arange(360.0) - 180
    assert network.likelihood(-distance.square() / 10)[180].item() == pytest.approx(1, abs=1e-3)


def test_a_new_mask_network_starts_near_the_mixture():
    """Unmasked output started at -23 dB in the design study; a mask starts bounded."""
    network = make_network(changed("tiny"), awake=False)
    mixture = noise(1, 2, 8000)
    with torch.no_grad():
        audio = network(mixture, *queries(1)).audio
    assert audio.square().mean() < 4 * 4 * mixture.square().mean()


# -- parts

def test_film():
    film = FiLM(4, 3)
    x, text = noise(2, 5, 3), noise(2, 4, seed=1)
    torch.testing.assert_close(film(x, text), x)  # starts as the identity
    torch.nn.init.normal_(film.linear.weight)
    torch.nn.init.normal_(film.linear.bias)
    scale, shift = (text @ film.linear.weight.T + film.linear.bias).split(3, dim=1)
    torch.testing.assert_close(film(x, text), x * (1 + scale[:, None]) + shift[:, None])
    maps = noise(2, 3, 6, 7)
    expected = maps * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(film(maps, text, channel_dim=1), expected)


@torch.no_grad()
def test_text_adapter_ignores_padding():
    adapter = TextAdapter(changed("tiny").text).eval()
    tokens = torch.cat([noise(1, 3, 384, level=0.05), noise(1, 4, 384, seed=8, level=9.0)], dim=1)
    mask = torch.arange(7)[None] < 3
    alone = adapter(tokens[:, :3], mask[:, :3])
    torch.testing.assert_close(adapter(tokens, mask), alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(adapter(tokens, torch.ones(1, 7, dtype=torch.bool)), alone, atol=0.1)
    assert not torch.allclose(adapter(tokens[:, :2], mask[:, :2]), alone, atol=1e-2)


def test_sentence_is_the_masked_mean_at_unit_length():
    tokens = noise(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    expected = torch.stack([tokens[0, :2].mean(0), tokens[1].mean(0)])
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sentence_embedding(tokens, mask), expected)


def test_tagger_takes_shared_and_own_sentences():
    tagger = Tagger(8, 6, 4)
    tokens, sentences = tagger.audio(noise(2, 10, 8)), noise(3, 6)
    shared = tagger.similarity(tokens, sentences)
    assert shared.shape == (2, 10, 3)
    torch.testing.assert_close(tagger.similarity(tokens, sentences.expand(2, -1, -1)), shared)
    assert tagger.presence(shared).shape == (2, 3)


def test_dconv_leaves_frequencies_alone():
    dconv = DConv(16, compress=4, depth=2, init=1.0).eval()
    x = noise(2, 16, 5, 20)
    changed_input = x.clone()
    changed_input[:, :, 3] += 1
    difference = (dconv(changed_input) - dconv(x)).abs().amax(dim=(0, 1, 3))
    assert (difference > 1e-4).tolist() == [False, False, False, True, False]
    torch.testing.assert_close(dconv(x)[:, :, 2], dconv(x[:, :, 2]))


def test_frequency_embedding_is_smooth():
    torch.manual_seed(0)
    value = FrequencyEmbedding(64, 8)()
    assert value.shape == (1, 8, 64, 1)
    rough = torch.nn.Embedding(64, 8).weight
    steps = (value[0, :, 1:, 0] - value[0, :, :-1, 0]).std() / value.std()
    assert steps < 0.5 * (rough[1:] - rough[:-1]).std() / rough.std()
