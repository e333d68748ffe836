"""Examples to hear and to see, and what a model is told of the head it hears with."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from luseel_model import Extraction
from luseel_model.errors import ConfigError
from training.benchmark.examples import median_mixture, read_licences, write_examples
from training.benchmark.render import BenchmarkMixture
from training.benchmark.run import tell_head
from training.heads import interaural_delay, load_head


def row(mixture, source, gain, asked="label"):
    return {"mixture": mixture, "source": source, "asked": asked, "si_snri": gain}


def test_the_median_is_of_the_mixtures_means():
    """Means 5, 2, 9, 1: the lower median is 2; absent queries have no say."""
    rows = [row(7, 0, 10), row(7, 1, 0), row(3, 0, 2), row(3, 1, 2), row(4, 0, 9), row(5, 0, 1),
            {"mixture": 3, "source": 0, "asked": "absent"}, row(3, 0, 100, "held_out")]
    assert median_mixture(rows) == 3
    with pytest.raises(ConfigError, match="evaluate"):
        median_mixture([row(1, 0, 3.0, "held_out")])


def test_writes_sounds_picture_and_page(tmp_path):
    random = np.random.default_rng(0)
    sources = random.standard_normal((2, 2, 16000)).astype(np.float32) * 2
    mixture = BenchmarkMixture(3, sources.sum(0), sources, None, np.array([10.0, 200.0]),
                               ["dog barking", "rain"], ["a/1.ogg", "b/2.ogg"], ["", ""], "cat",
                               0.0, np.nan)

    def extract(audio, rate, queries, progress, window):
        assert window == 7.0
        return [Extraction(query, sources[i], rate, 12.0, np.full(360, 0.1, np.float32), 0.5)
                for i, query in enumerate(queries)]

    given = []

    class Scenes:
        cell, head = SimpleNamespace(name="cell"), "ears"

        def __getitem__(self, number):
            assert number == 3
            return mixture

    (tmp_path / "test.csv").write_text(
        "name,source,licence\na/1.ogg,one,CC-BY-4.0\nb/2.ogg,two,GPL-2\n")
    files = write_examples(
        SimpleNamespace(extract=extract, set_head=given.append), [Scenes()],
        {"cell": [row(3, 0, 4.0), row(3, 1, 6.0)]}, read_licences(tmp_path), tmp_path / "out",
        "measured", 7.0)
    assert given == ["ears"]
    assert {f.name for f in files} == {
        "README.md", "cell.jpg", "cell_mixture.ogg", "cell_1_extracted.ogg", "cell_1_true.ogg",
        "cell_2_extracted.ogg", "cell_2_true.ogg"}
    audio, rate = soundfile.read(tmp_path / "out" / "cell_mixture.ogg")
    assert rate == 16000 and audio.shape == (16000, 2)
    assert 0.5 < np.abs(audio).max() <= 1  # the scale fits the mixture, not full scale 1
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| dog barking |" in text and "CC-BY-4.0" in text and "| 6.0 | 200 | 12 |" in text


def test_a_head_told_by_claps():
    head, given = load_head("mit_kemar"), []
    tell_head(SimpleNamespace(set_head=given.append), head, "claps")
    told, = given
    assert told.metadata["source"].startswith("claps") and told.name == "mit_kemar"
    delay = interaural_delay(told.hrir.numpy(), 16000) - interaural_delay(head.hrir.numpy(), 16000)
    assert 0 < np.median(np.abs(delay)) < 20e-6
