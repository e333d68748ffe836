"""Model configurations: the paper's dimensions, and errors that name the key."""

import pytest
import torch
import yaml
from model_fixtures import TINY, changed, merged

from luseel_model import LuSeeL, LuSeeLConfig
from luseel_model.config import build_config, read_yaml, to_dict
from luseel_model.errors import ConfigError
from luseel_model.families import load_config
from training.export import SHIPPED_BYTES


@pytest.mark.parametrize("changes, said", [
    ({"windw": 2.0}, "windw"),
    ({"stft": {"nfft": 512}}, r"stft\.nfft"),
    ({"backbone": {"strides": [8, "8"]}}, r"backbone\.strides\[1\]: expected int"),
    ({"transformer": {"heads": "two"}}, r"transformer\.heads: expected int, got 'two'"),
    ({"transformer": {"heads": True}}, r"transformer\.heads: expected int, got True"),
    ({"window": "long"}, "window: expected float, got 'long'"),
    ({"use_gcc_phat": 1}, "use_gcc_phat: expected bool, got 1"),
    ({"name": 3}, "name: expected str"),
    ({"stft": 512}, r"stft\.?: expected a mapping"),
    ({"backbone": {"inputs": "mel"}}, r"backbone\.inputs: 'mel' is not one of 'complex'"),
    ({"localization": {"frame_channels": 1}}, r"localization\.frame_channels: expected a list"),
    # values that contradict each other
    ({"stft": {"n_fft": 512, "hop": 200}}, r"stft\.n_fft 512 must be a multiple of twice the hop"),
    ({"stft": {"hop": 0}}, "hop"),
    ({"backbone": {"strides": [8, 3]}}, r"backbone\.strides must be even"),
    ({"backbone": {"strides": [8, 6]}}, r"product of backbone\.strides must divide the 256"),
    ({"backbone": {"encoder_context": [0]}}, r"backbone\.encoder_context needs one value"),
    ({"backbone": {"channels": 0}}, r"backbone\.channels must be at least 1"),
    ({"backbone": {"norm_groups": 3}}, r"backbone\.channels must be a multiple of norm_groups"),
    ({"transformer": {"heads": 3}}, "width 16 must be a multiple of its heads"),
    ({"transformer": {"heads": 0}}, r"transformer\.heads must be at least 1"),
    ({"transformer": {"layers": 0}}, r"transformer\.layers must be at least 1"),
    ({"transformer": {"width": 18}}, "multiple of 4"),
    ({"text": {"heads": 3}}, r"text\.width must be a multiple of heads"),
    ({"text": {"dropout": 1.5}}, r"text\.dropout must be in \[0, 1\)"),
    ({"localization": {"frame_channels": [8, 2]}}, r"localization\.frame_channels"),
    ({"localization": {"frame_channels": []}}, r"localization\.frame_channels"),
    ({"localization": {"gcc_lags": 23}}, r"localization\.gcc_lags"),
    ({"localization": {"gcc_hop": 0.0}}, r"localization\.gcc_hop"),
    ({"window": 0.02}, r"window .* stft\.n_fft"),
    ({"window": float("nan")}, "window"),
    ({"audio_channels": 3}, "audio_channels must be 1 or 2"),
    ({"audio_channels": 1}, "use_localization needs two audio_channels"),
    ({"audio_channels": 1, "use_localization": False}, "interaural.* needs two audio_channels"),
])
def test_wrong_configurations_name_the_key(changes, said):
    with pytest.raises(ConfigError, match=said):
        build_config(LuSeeLConfig, merged(TINY, changes))


def test_missing_key():
    with pytest.raises(ConfigError, match="missing key name"):
        build_config(LuSeeLConfig, {"window": 1.0})
    with pytest.raises(ConfigError, match="mapping"):
        build_config(LuSeeLConfig, ["name"])


@pytest.mark.parametrize("name", ["luseel", "luseel-small"])
def test_round_trip(name):
    config = load_config(name)
    text = yaml.safe_dump(to_dict(config))
    assert build_config(LuSeeLConfig, yaml.safe_load(text)) == config
    assert config.name == name


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "own.yaml"
    # YAML 1.1 reads 1e-4 as text, and 10 is a fine number of seconds
    path.write_text("name: own\nwindow: 10\ntransformer: {layer_scale: 1e-4}\n")
    config = load_config(path)
    assert config.transformer.layer_scale == 1e-4
    assert config.window == 10.0 and isinstance(config.window, float)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="there are: .*luseel, luseel-small"):
        load_config("luseel-tiny")
    with pytest.raises(ConfigError, match="no configuration at"):
        load_config(tmp_path / "gone.yaml")
    for text, said in (("a: [", "not valid YAML"), ("- name", "expected a mapping"),
                       ("", "expected a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_dimensions_of_the_paper():
    """Sections 2.1 and 3.3: 1256 tokens, 500, 888 = 384 + 504, 46.3 M trainable parameters."""
    config = load_config("luseel")
    assert (config.window_samples, config.frames, config.width) == (160000, 157, 384)
    assert config.spectral_tokens == 1256
    assert (config.gcc_frames, config.gcc_features) == (21, 21 * 24)
    with torch.device("meta"):
        network = LuSeeL(config)
    head = network.token_localizer
    assert [(c.in_channels, c.out_channels) for c in head.project] == [(1256, 100)] * 5
    frame = [m for m in head.frame_encoder if isinstance(m, torch.nn.Conv1d)]
    assert [(c.in_channels, c.out_channels) for c in frame] == [(500, 512), (512, 256), (256, 1)]
    decoder = [m for m in head.decoder if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in decoder] == \
        [(888, 1024)] + [(1024, 1024)] * 4 + [(1024, 360)]

    transformer = network.transformer
    assert [layer.cross for layer in transformer.layers] == [False, True, False, True, False]
    assert [layer.cross for layer in transformer.layers_t] == [False, True, False, True, False]
    assert list(transformer.film) == list(transformer.film_t) == ["0", "2", "4"]
    adapter = network.text_adapter.layers.layers
    assert len(adapter) == 5
    assert adapter[0].linear1.weight.shape == (1024, 512)
    assert adapter[0].self_attn.num_heads == 2

    assert millions(network) == pytest.approx(46.3, abs=0.1)
    assert network.parameter_count() / 1e6 == pytest.approx(46.3, abs=0.1)
    assert millions(network.text_adapter) == pytest.approx(10.5, abs=0.1)
    film = millions(transformer.film) + millions(transformer.film_t)
    assert film == pytest.approx(2.4, abs=0.05)
    assert millions(head) == pytest.approx(6.5, abs=0.1)


def test_options_for_small_networks_are_off_in_the_paper_network():
    with torch.device("meta"):
        names = {name.split(".")[0] for name, _ in LuSeeL(load_config("luseel")).named_modules()}
    assert names & {"film_skips", "tagger", "tag_inject", "extracted_localizer", "widen",
                    "shared_norm"} == set()


def test_dimensions_of_the_small_network():
    config = load_config("luseel-small")
    with torch.device("meta"):
        network = LuSeeL(config)
    weights = sum(value.numel() for value in network.state_dict().values())
    assert 2 * weights <= SHIPPED_BYTES  # in half precision
    # adapter and DoA heads are shrunk as well
    assert millions(network.text_adapter) < 1.5
    assert millions(network.token_localizer) + millions(network.extracted_localizer) < 1.5
    # 63 frames of 4 bands, and centred GCC-PHAT frames at 0, 0.5, ... 2 s
    assert (config.frames, config.spectral_tokens, config.gcc_features) == (63, 252, 5 * 24)


@pytest.mark.parametrize("window, gcc_hop", [(0.6, 0.2), (0.9, 0.3), (2.1, 0.7), (0.5, 0.3)])
def test_gcc_frames_survive_rounding(window, gcc_hop):
    """0.6 / 0.2 is 2.999…: the frames are those that the transform of whole samples gives."""
    config = changed("tiny", window=window, localization={"gcc_hop": gcc_hop})
    samples, hop = round(window * 16000), round(gcc_hop * 16000)
    assert config.gcc_frames == torch.arange(0, samples + 1, hop).numel()
