"""Reader of the DCASE generator's layout (training/arrays/dcase.py)."""

import numpy as np
import pytest
import soundfile

from luseel_model.errors import ConfigError
from training.arrays.dcase import CLASSES, read_events, read_folder, windows


@pytest.fixture
def folder(tmp_path):
    """As the generator writes it: 24 kHz, a bell that moves, two women at once."""
    audio = np.zeros((72000, 4))
    audio[:, 0] = np.sin(2 * np.pi * 500 * np.arange(72000) / 24000) * 0.3
    for kind in ("foa", "mic"):
        place = tmp_path / "target_noiseless" / kind
        place.mkdir(parents=True)
        soundfile.write(place / "fold2_room1_mix001.wav", audio, 24000)
    (tmp_path / "metadata").mkdir()
    lines = [f"{frame},11,0,{-170 - frame},5" for frame in range(5, 15)]
    lines += [f"{frame},0,{track},{30 * track},0" for frame in range(10, 25) for track in (1, 2)]
    (tmp_path / "metadata" / "fold2_room1_mix001.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_events(folder):
    (recording,) = read_folder(folder)
    assert recording.name == "fold2_room1_mix001" and recording.fold == 2
    labels = [(event.label, event.track) for event in recording.events]
    assert labels == [("woman speaking", 1), ("woman speaking", 2), ("bell", 0)]
    bell = recording.events[2]
    assert bell.frame.tolist() == list(range(5, 15))
    # -175 is 185 counter-clockwise
    assert bell.azimuth[0] == 185.0 and bell.elevation[0] == 5.0
    assert bell.azimuth_at(np.array([0.45, 0.5, 0.65, 1.45, 1.5]))[1:4].tolist() == \
        [185.0, 184.0, 176.0]
    assert np.isnan(bell.azimuth_at(np.array([0.45, 1.5]))).all()
    assert len(CLASSES) == 13


def test_audio_is_resampled(folder):
    audio = read_folder(folder, "mic")[0].load(16000)
    assert audio.shape == (4, 48000) and audio.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(audio[0]))
    assert int(spectrum.argmax()) == 1500  # 500 Hz of 3 s
    assert np.abs(audio[1:]).max() == 0


def test_windows_name_what_a_query_can_mean(folder):
    (recording,) = read_folder(folder)
    parts = list(windows(recording, 16000, 2.0, np.arange(0, 2, 0.1)))
    assert [part.shape for part, _ in parts] == [(4, 32000), (4, 32000)]
    assert set(parts[0][1]) == {"bell"}, "two women at once: the words don't say which"
    track = parts[0][1]["bell"]
    assert np.isnan(track[:5]).all() and track[5] == 185.0 and np.isnan(track[15:]).all()
    assert parts[1][1] == {}
    assert np.abs(parts[1][0][:, 16000:]).max() == 0


def test_data_set_of_the_challenge(folder):
    (folder / "target_noiseless").rename(folder / "audio")
    (folder / "audio" / "foa").rename(folder / "audio" / "foa_dev")
    (folder / "metadata").rename(folder / "metadata_dev")
    assert len(read_folder(folder)) == 1


def test_errors(folder, tmp_path):
    path = folder / "metadata" / "fold2_room1_mix001.csv"
    path.write_text("0,11,0,10,0\nframe,class\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_events(path)
    path.write_text("0,13,0,10,0\n")
    with pytest.raises(ConfigError, match="0 to 12"):
        read_folder(folder)
    path.unlink()
    with pytest.raises(ConfigError, match="no metadata"):
        read_folder(folder)
    with pytest.raises(ConfigError, match="<scenario>/foa"):
        read_folder(folder / "metadata")
