"""LASS-Net and UNet-Tag (paper 004): shapes, sizes, masks, queries, configurations."""

import dataclasses

import numpy as np
import pytest
import torch

from luseel_model.checkpoint import load_network, save_checkpoint
from luseel_model.config import StftConfig, build_config, to_dict
from luseel_model.errors import ConfigError, LuseelError, QueryError
from luseel_model.families import load_config
from luseel_model.lass import LASSConfig, LASSExtractor, LASSNet
from luseel_model.lass.config import QueryConfig, ResUNetConfig
from luseel_model.lass.extractor import QueryReader
from luseel_model.lass.network import (PerceptronFiLM, QueryNet, ResUNet, band_shapes, spectrogram,
                                       waveform)
from luseel_model.query import Query
from model_fixtures import merged, minilm, noise

#: A network of some thousand parameters on half a second.
TINY = {
    "name": "tiny-lass", "sample_rate": 16000, "window": 0.5, "stft": {"n_fft": 256, "hop": 128},
    "query": {"encoder": "sentence", "embedding": 384, "width": 16},
    "separator": {"channels": [8, 12], "pools": [[2, 1], [2, 2]], "kernel": 3, "film": "linear",
                  "film_encoder": False, "bands": 32, "inputs": "log", "tag_width": 8},
}
#: As the paper's, smaller.
PAPER = {"separator": {"kernel": 4, "film": "perceptron", "film_encoder": True, "bands": 0,
                       "inputs": "magnitude", "tag_width": 0}}


def tiny(**changes):
    return build_config(LASSConfig, merged(TINY, changes))


def make(config, seed=0):
    """In evaluation mode, with random numbers where training starts from zero."""
    torch.manual_seed(seed)
    network = LASSNet(config).eval()
    for name, parameter in network.named_parameters():
        if ".films." in name:
            torch.nn.init.normal_(parameter, 0.2, 0.3)
    return network


def sentences(count, batch=1, seed=1):
    values = torch.randn(batch, count, 384, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


# -- the paper's numbers

def test_ten_seconds_are_513_by_626():
    """Paper, section 5.1."""
    config = load_config("lass")
    assert config.window_samples == 320_000 and config.frames == 626
    assert spectrogram(torch.zeros(1, 320_000), config.stft).shape == (1, 513, 626)


def test_size_against_the_authors_code():
    """The authors' code has two 3x3 convolutions in a ConvBlock and FiLM that only shifts: its
    UNetRes_FiLM(channels=1, cond_embedding_dim=256) has 52,228,323 parameters."""
    with torch.device("meta"):
        network = ResUNet(ResUNetConfig(kernel=3, depth=2, film="shift"), 256, 256)
    assert sum(p.numel() for p in network.parameters()) == 52_228_323


def test_size_of_the_query_network():
    """BERT of 4 layers and 256 dimensions, 11.17 million parameters with a fully connected layer of
    256 at its end (Turc et al., 2019, table 1: 11.3)."""
    with torch.device("meta"):
        query = QueryNet(QueryConfig())
    assert sum(p.numel() for p in query.parameters()) == 11_170_560
    assert len(query.bert.encoder.layer) == 4
    assert query.bert.encoder.layer[0].attention.self.num_attention_heads == 4


def test_size_of_the_paper_network():
    with torch.device("meta"):
        network = LASSNet(load_config("lass"))
        baseline = load_config("unet-tag")
        baseline = dataclasses.replace(baseline, query=dataclasses.replace(
            baseline.query, tags=tuple(str(i) for i in range(33))))
        tagged = LASSNet(baseline)
    assert network.parameter_count() == 56_956_803
    assert tagged.parameter_count() == 56_956_803 - 11_170_560 + 33 * 256 + 256
    assert [e[0].convs[0].weight.shape for e in network.separator.encoder] == [
        (b, a, 4, 4) for a, b in zip((1, 32, 64, 128, 256, 384), (32, 64, 128, 256, 384, 384))]
    assert [d.blocks[1].convs[0].weight.shape[0] for d in network.separator.decoder] == [
        384, 384, 256, 128, 64, 32]


def test_a_film_follows_every_convolution():
    with torch.device("meta"):
        network = LASSNet(load_config("lass"))
    blocks = [m for m in network.separator.modules() if hasattr(m, "films")]
    assert len(blocks) == 2 * 6 + 1 + 2 * 6 + 1
    assert all(len(b.films) == len(b.convs) == 1 for b in blocks)
    assert all(isinstance(film, PerceptronFiLM) for b in blocks for film in b.films)


def test_shipped_size():
    """A checkpoint of float16 numbers stays below 4 MB."""
    with torch.device("meta"):
        assert LASSNet(load_config("lass-small")).parameter_count() <= 1_900_000
        config = load_config("unet-tag-small")
        config = dataclasses.replace(config, query=dataclasses.replace(
            config.query, tags=tuple(str(i) for i in range(114))))
        assert LASSNet(config).parameter_count() <= 1_900_000


# -- parts

def test_spectrogram_and_back():
    audio = noise(2, 3, 5000)
    for config in (StftConfig(1024, 512), StftConfig(512, 128)):
        z = spectrogram(audio, config)
        assert z.shape == (2, 3, config.n_fft // 2 + 1, 5000 // config.hop + 1)
        assert (waveform(z, config, 5000) - audio).abs().max() < 1e-6


def test_bands_cover_every_bin_once():
    shapes = band_shapes(64, 512)
    torch.testing.assert_close(shapes.sum(0), torch.ones(512))
    assert (shapes.sum(1) > 0.9).all()  # at least about one bin wide
    width = (shapes > 0).sum(1)
    assert width[0] <= 2 and width[-2] > 20 and (width[2:-2].diff() >= -1).all()
    # as many bands as bins: every bin has its own
    torch.testing.assert_close(band_shapes(16, 16), torch.eye(16), atol=1e-3, rtol=0)


def test_film_of_equation_6():
    """γ and β from two fully connected layers with ReLU, written out."""
    torch.manual_seed(3)
    film = PerceptronFiLM(5, 3, shift_only=False)
    x, query = noise(2, 3, 4, 6), noise(2, 5, seed=1, level=1.0)
    values = (query @ film.hidden.weight.T + film.hidden.bias).clamp(min=0)
    values = (values @ film.output.weight.T + film.output.bias).clamp(min=0)
    for b in range(2):
        for c in range(3):
            torch.testing.assert_close(film(x, query)[b, c], values[b, c] * x[b, c]
                                       + values[b, c + 3])
    with torch.no_grad():
        film.output.weight.zero_()
        film.output.bias[3:].zero_()
    torch.testing.assert_close(film(x, query), x)


# -- the mask

@pytest.mark.parametrize("changes", [{}, PAPER, {"binaural": "each"}])
def test_a_mask_of_ones_gives_the_mixture_back(changes):
    network = make(tiny(**changes))
    with torch.no_grad():
        network.separator.last.weight.zero_()
        network.separator.last.bias.fill_(100.0)
        audio = noise(2, 2, 8000)
        output = network(audio, sentences(3, 2))
        assert output.mask.min() == 1.0
        assert output.audio.shape == (2, 3, 2, 8000)
        assert (output.audio - audio[:, None]).abs().max() < 1e-6
        network.separator.last.bias.fill_(-100.0)
        assert network(audio, sentences(3, 2)).audio.abs().max() < 1e-6


@pytest.mark.parametrize("changes", [{}, PAPER])
def test_masks_are_within_0_and_1_and_keep_the_phase(changes):
    network = make(tiny(**changes))
    with torch.no_grad():
        output = network(noise(2, 1, 8000), sentences(2, 2))
    assert output.mask.shape == (2, 2, 1, 129, 63)
    assert 0 <= output.mask.min() < output.mask.max() <= 1
    again = waveform(output.mask * output.spectrum[:, None], network.config.stft, 8000)
    torch.testing.assert_close(output.audio, again)


@pytest.mark.parametrize("changes", [{}, PAPER, merged(PAPER, {"separator": {"film": "shift"}})])
def test_every_film_conditions(changes):
    """The query matters, and through each single FiLM."""
    network = make(tiny(**changes))
    audio = noise(1, 1, 8000)
    with torch.no_grad():
        first, second = network(audio, sentences(2)).mask[0]
        assert (first - second).abs().max() > 1e-3
        films = [m for b in network.separator.modules() if hasattr(b, "films") and b.conditioned
                 for m in b.films]
        encoder = not changes
        assert len(films) == (4 + 1 if encoder else 4 + 1 + 4 + 1)
        before = network(audio, sentences(1)).mask
        for film in films:
            state = {k: v.clone() for k, v in film.state_dict().items()}
            for parameter in film.parameters():
                parameter.add_(0.2)
            assert (network(audio, sentences(1)).mask - before).abs().max() > 1e-5
            film.load_state_dict(state)


def test_queries_and_mixtures_do_not_mix():
    """Each mask depends on its own mixture and query alone."""
    for changes in ({}, PAPER, {"binaural": "each"}):
        network = make(tiny(**changes))
        audio, queries = noise(2, 2, 8000), sentences(3, 2)
        with torch.no_grad():
            together = network(audio, queries)
            for b in range(2):
                for q in range(3):
                    alone = network(audio[b:b + 1], queries[b:b + 1, q:q + 1])
                    torch.testing.assert_close(alone.audio[0, 0], together.audio[b, q],
                                               atol=1e-5, rtol=1e-3)
                    if not changes:
                        torch.testing.assert_close(alone.presence_logits[0, 0],
                                                   together.presence_logits[b, q])


def test_level_does_not_matter_to_the_small_network():
    network = make(tiny())
    with torch.no_grad():
        audio = noise(1, 1, 8000)
        loud, quiet = (network(level * audio, sentences(1)).mask for level in (1.0, 0.01))
    torch.testing.assert_close(loud, quiet, atol=1e-4, rtol=0)


def test_ears_share_a_mask_or_have_their_own():
    audio = torch.cat([noise(1, 1, 8000), noise(1, 1, 8000, seed=5)], 1)
    with torch.no_grad():
        mid = make(tiny())(audio, sentences(2))
        each = make(tiny(binaural="each"))
        both = each(audio, sentences(2))
        assert mid.mask.shape == (1, 2, 1, 129, 63) and both.mask.shape == (1, 2, 2, 129, 63)
        for ear in range(2):
            alone = each(audio[:, ear:ear + 1], sentences(2))
            torch.testing.assert_close(both.audio[:, :, ear], alone.audio[:, :, 0], atol=1e-5,
                                       rtol=1e-3)
        # the middle of two equal ears is what one ear hears
        twice = audio[:, :1].expand(-1, 2, -1)
        torch.testing.assert_close(make(tiny())(twice, sentences(2)).audio[:, :, 1],
                                   alone_of(make(tiny()), audio[:, :1]), atol=1e-5, rtol=1e-3)


def alone_of(network, audio):
    return network(audio, sentences(2)).audio[:, :, 0]


# -- queries

def test_bert_takes_its_first_token():
    config = QueryConfig(layers=1, heads=2, embedding=16, width=8, dropout=0.0)
    torch.manual_seed(0)
    query = QueryNet(config).eval()
    ids = torch.tensor([[[101, 7, 9, 0], [101, 7, 9, 11]]])
    with torch.no_grad():
        out = query(ids)
        assert out.shape == (1, 2, 8) and out.min() >= 0
        short = query.bert(input_ids=ids[0, :1, :3]).last_hidden_state[:, 0]
        expected = (short @ query.linear.weight.T + query.linear.bias).clamp(min=0)
    torch.testing.assert_close(out[0, :1], expected)  # what fills up isn't read
    assert (out[0, 0] - out[0, 1]).abs().max() > 1e-4


def test_words_for_bert():
    """Lower case, no punctuation, one token in front (paper, section 5.1)."""
    reader = QueryReader(QueryConfig())
    ids = reader([Query(text="A dog barks, loudly!"), Query(text="rain")])
    assert ids[:, 0].tolist() == [101, 101]  # [CLS] of BERT's vocabulary
    assert ids[1].tolist() == [101, 4542] + [0] * (ids.shape[1] - 2)
    assert torch.equal(ids[:1], reader([Query(text="a DOG barks loudly")]))


def test_pretrained_bert(tmp_path):
    from transformers import BertConfig, BertModel

    config = QueryConfig(layers=1, heads=2, embedding=16, width=8)
    given = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=64))
    given.save_pretrained(tmp_path / "bert")
    query = QueryNet(config)
    query.load_pretrained(str(tmp_path / "bert"))
    weight = given.state_dict()["encoder.layer.0.output.dense.weight"]
    assert torch.equal(query.bert.state_dict()["encoder.layer.0.output.dense.weight"], weight)
    with pytest.raises(LuseelError, match="query.weights"):
        query.load_pretrained(str(tmp_path / "nothing"))


def test_tags_are_a_multi_hot():
    reader = QueryReader(QueryConfig(encoder="tags", tags=("rain", "dog", "bell")))
    assert reader([Query(tag="dog"), Query(tag="bell; rain")]).tolist() == [[0, 1, 0], [1, 0, 1]]
    with pytest.raises(QueryError, match="no tag 'cat'.*rain, dog, bell"):
        reader([Query(tag="cat")])


# -- in use

def test_extractor_in_words(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", make(tiny()).state_dict(), tiny(), half=True)
    network, _ = load_network(tmp_path / "a.safetensors")
    model = LASSExtractor(network, text=minilm())
    found = model.extract(np.float32(noise(2, 20000).numpy()), 16000, ["a dog", "rain falling"])
    for item in found:
        assert item.audio.shape == (2, 20000) and 0 <= item.confidence <= 1
        assert item.azimuth is None and item.likelihood is None
        assert item.to_dict()["azimuth_degrees"] is None
    assert np.abs(found[0].audio - found[1].audio).max() > 1e-4
    assert not model.capabilities.direction and model.capabilities.sound
    with pytest.raises(QueryError, match="give it words"):
        model.extract(noise(2, 20000).numpy(), 16000, Query(tag="rain"))


def test_extractor_by_tags():
    config = tiny(query={"encoder": "tags", "tags": ["rain", "dog"]})
    model = LASSExtractor(make(config))
    model.warm_up()
    found = model.extract(noise(2, 9000).numpy(), 16000, [Query(tag="rain"), Query(tag="dog")])
    assert np.abs(found[0].audio - found[1].audio).max() > 1e-4
    with pytest.raises(QueryError, match="give it a tag"):
        model.extract(noise(2, 9000).numpy(), 16000, "rain")


def test_confidence_without_tags_is_the_share_of_energy():
    model = LASSExtractor(make(tiny(separator={"tag_width": 0})), text=minilm())
    with torch.no_grad():
        model.network.separator.last.weight.zero_()
        model.network.separator.last.bias.fill_(100.0)
    output = model.infer_window(noise(2, 8000), ["rain"])
    assert output.confidence[0] == pytest.approx(0.5, abs=1e-3)  # all of it, as much as the mixture


# -- configurations

@pytest.mark.parametrize("change, message", [
    ({"separator": {"bands": 30}}, "multiple of its pools"),
    ({"separator": {"bands": 4096}}, "at most"),
    ({"separator": {"pools": [[2, 2]]}}, "one pair"),
    ({"separator": {"pools": [[3, 2], [2, 2]]}}, "1 or 2"),
    ({"separator": {"film_encoder": True}}, "must not depend on the query"),
    ({"query": {"encoder": "bert", "embedding": 64}}, "tag_width needs"),
    ({"window": 0.001}, "shorter than the transform"),
])
def test_wrong_configurations(change, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**change)


def test_tags_have_to_be_named():
    with pytest.raises(ConfigError, match="query.tags is empty"):
        LASSNet(tiny(query={"encoder": "tags"}))


@pytest.mark.parametrize("name", ["lass", "lass-small", "unet-tag", "unet-tag-small"])
def test_shipped_configurations_survive_a_round_trip(name):
    config = load_config(name)
    assert build_config(LASSConfig, to_dict(config)) == config and config.name == name
