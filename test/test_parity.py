"""The backbone against the public reference network: equal weights in, equal output out."""

import pytest
import torch
from model_fixtures import changed, make_network, noise

from luseel_model.features import istft, stft
from luseel_model.layers import (FrequencyEmbedding, position_embedding_1d,
                                 position_embedding_2d)

pytest.importorskip("demucs", reason="the reference network: pip install --no-deps demucs")
demucs_transformer = pytest.importorskip("demucs.transformer")
ScaledEmbedding = pytest.importorskip("demucs.hdemucs").ScaledEmbedding
HTDemucs = pytest.importorskip("demucs.htdemucs").HTDemucs

PREFIXES = {
    "encoder.": "frequency_encoder.", "tencoder.": "time_encoder.",
    "decoder.": "frequency_decoder.", "tdecoder.": "time_decoder.",
    "freq_emb.": "frequency_embedding.", "crosstransformer.": "transformer.",
    "channel_upsampler.": "widen.", "channel_upsampler_t.": "widen_t.",
    "channel_downsampler.": "narrow.", "channel_downsampler_t.": "narrow_t.",
}


def renamed(key):
    for theirs, ours in PREFIXES.items():
        if key.startswith(theirs):
            return ours + key[len(theirs):]
    raise AssertionError(f"the reference has a parameter that LuSeeL doesn't know: {key}")


def reference(channels, ears, **options):
    """HTDemucs with weights at which every branch and every bias counts."""
    torch.manual_seed(7)
    network = HTDemucs(sources=["x"], audio_channels=ears, samplerate=16000, channels=channels,
                       use_train_segment=False, **options).eval()
    for name, parameter in network.named_parameters():
        if "gamma_" in name or name.endswith(".6.scale"):       # the LayerScales
            torch.nn.init.normal_(parameter, 1.0, 0.3)
        elif parameter.dim() == 1 and name.endswith("weight"):  # norms
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif parameter.dim() == 1:                              # biases
            torch.nn.init.normal_(parameter, 0.0, 0.1)
        elif "embedding" not in name:                           # matrices: keep the signal's level
            inputs = parameter[:, 0].numel() / 4 if "conv_tr" in name else parameter[0].numel()
            torch.nn.init.normal_(parameter, 0.0, 1.5 / inputs**0.5)
    return network


def with_weights_of(network, **changes):
    config = changed("luseel", use_localization=False, window=1.3, text={
        "embedding": 16, "width": 16, "layers": 1, "feed_forward": 16}, **changes)
    ours = make_network(config, awake=False)
    result = ours.load_state_dict(
        {renamed(k): v for k, v in network.state_dict().items()}, strict=False)
    assert not result.unexpected_keys
    # only what the paper adds to HTDemucs keeps its own initial weights
    text = ("text_adapter.", "transformer.film.", "transformer.film_t.")
    assert all(key.startswith(text) for key in result.missing_keys), result.missing_keys
    return ours


@pytest.mark.parametrize("channels, ears, samples, theirs, ours", [
    (8, 2, 20800, {}, {}),
    (8, 2, 20801, {}, {}),   # a length that no stride divides
    (8, 1, 20800, {}, {"audio_channels": 1}),
    (8, 2, 16000, {"bottom_channels": 96}, {"transformer": {"width": 96}}),
    (8, 2, 16000, {"dconv_mode": 3}, {"backbone": {"dconv_decoder": True}}),
    (8, 2, 16000, {"nfft": 2048, "t_layers": 3},
     {"stft": {"n_fft": 2048, "hop": 512}, "transformer": {"layers": 3}}),
    (48, 2, 20800, {}, {}),  # the paper's width
])
@torch.no_grad()
def test_output_equals_htdemucs(channels, ears, samples, theirs, ours):
    network = reference(channels, ears, **theirs)
    backbone = {"channels": channels, **ours.get("backbone", {})}
    luseel = with_weights_of(network, **{**ours, "backbone": backbone})
    mixture = noise(2, ears, samples)
    mixture[1] *= 0.01       # each clip is normalised by itself
    mixture[:, 0] += 0.02    # and has an offset
    expected = network(mixture)[:, 0]
    # any text: FiLM starts as the identity
    tokens, mask = torch.randn(2, 1, 3, 16), torch.ones(2, 1, 3, dtype=torch.bool)
    output = luseel(mixture, tokens, mask).audio[:, 0]
    assert output.shape == expected.shape
    scale = expected.std(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(output / scale, expected / scale, atol=1e-4, rtol=1e-4)
    # nothing is lost in that tolerance: all parts of the network shape the output
    for name in ("frequency_decoder.3.conv_tr.weight", "time_decoder.3.conv_tr.weight",
                 "transformer.layers.1.cross_attn.out_proj.weight",
                 "transformer.layers_t.1.linear2.weight", "time_encoder.3.dconv.layers.1.3.weight"):
        if name not in luseel.state_dict():
            continue
        parameter = luseel.get_parameter(name)
        kept = parameter.clone()
        parameter.mul_(0.9)
        change = (luseel(mixture, tokens, mask).audio[:, 0] - output) / scale
        assert change.abs().max() > 0.01, name
        parameter.copy_(kept)


@pytest.mark.parametrize("samples", [16000, 16384, 20801])
def test_spectrogram_equals_htdemucs(samples):
    network = reference(8, 2)
    audio = noise(1, 2, samples)
    spectrum = network._spec(audio)
    torch.testing.assert_close(stft(audio, 4096, 1024), spectrum, atol=1e-6, rtol=1e-5)
    expected = network._ispec(spectrum, samples)
    torch.testing.assert_close(istft(spectrum, 4096, 1024, samples), expected, atol=1e-6, rtol=1e-5)


def test_position_embeddings_equal_htdemucs():
    theirs = demucs_transformer.create_2d_sin_embedding(32, 5, 7)  # (1, C, F, T)
    theirs = theirs[0].permute(2, 1, 0).reshape(35, 32)            # frequency fastest
    torch.testing.assert_close(position_embedding_2d(5, 7, 32), theirs)
    theirs = demucs_transformer.create_sin_embedding(9, 32)[:, 0]
    torch.testing.assert_close(position_embedding_1d(9, 32), theirs)


def test_initialisation_follows_htdemucs():
    """Rescaled convolutions and the smooth frequency embedding: the same draws, the same start."""
    torch.manual_seed(11)
    theirs = HTDemucs(sources=["x"], samplerate=16000, channels=8)
    ours = make_network(changed("luseel", backbone={"channels": 8}, use_localization=False),
                        awake=False)
    for name in ("encoder.1.conv.weight", "tencoder.2.rewrite.weight", "decoder.0.conv_tr.weight"):
        expected, got = theirs.state_dict()[name], ours.state_dict()[renamed(name)]
        assert got.std() == pytest.approx(expected.std().item(), rel=0.05)
    embeddings = []
    for make in (lambda: ScaledEmbedding(64, 8, smooth=True, scale=10.0),
                 lambda: FrequencyEmbedding(64, 8)):
        torch.manual_seed(5)
        embeddings.append(make().embedding.weight)
    torch.testing.assert_close(embeddings[1], embeddings[0])
