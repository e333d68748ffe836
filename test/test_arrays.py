"""Microphone arrays: geometry against hand-worked values, symmetries, descriptions."""

import math

import pytest
import torch

from luseel_model.arrays import SOUND_SPEED, SQUARE, MicrophoneArray, load_array, square_array
from luseel_model.errors import ConfigError

SPREAD = 0.343  # metres: a wave along a line of microphones takes 1 ms from one to the next


def test_delays_of_a_line():
    line = MicrophoneArray("line", ((0.0, 0.0, 0.0), (SPREAD, 0.0, 0.0), (0.0, SPREAD, 0.0)))
    front, left, back = line.delays(torch.tensor([0.0, 90.0, 180.0], dtype=torch.float64)).T
    # the microphone nearer to the source hears it 1 ms earlier
    assert torch.allclose(front, torch.tensor([0.0, -1e-3, 0.0], dtype=torch.float64), atol=1e-9)
    assert torch.allclose(left, torch.tensor([0.0, 0.0, -1e-3], dtype=torch.float64), atol=1e-9)
    assert torch.allclose(back, torch.tensor([0.0, 1e-3, 0.0], dtype=torch.float64), atol=1e-9)
    assert line.pairs == [(0, 1), (0, 2), (1, 2)]
    pairs = line.pair_delays(torch.tensor(90.0, dtype=torch.float64))
    assert torch.allclose(pairs, torch.tensor([0.0, -1e-3, -1e-3], dtype=torch.float64), atol=1e-9)


def test_elevation_shortens_horizontal_delays():
    up = MicrophoneArray("up", ((0.0, 0.0, 0.0), (SPREAD, 0.0, 0.0), (0.0, 0.0, SPREAD)))
    delays = up.delays(torch.tensor(0.0, dtype=torch.float64), 60.0)
    wanted = torch.tensor([0.0, -0.5e-3, -math.sqrt(0.75) * 1e-3], dtype=torch.float64)
    assert torch.allclose(delays, wanted, atol=1e-9)
    overhead = square_array(0.1).delays(torch.tensor([10.0, 200.0]), 90.0)
    assert overhead.abs().max() < 1e-9


def test_the_square_is_the_papers():
    places = torch.tensor(SQUARE.positions)
    sides = (places - places.roll(1, 0)).norm(dim=1)
    assert torch.allclose(sides, torch.full((4,), 0.115), atol=1e-6)
    angles = torch.rad2deg(torch.atan2(places[:, 1], places[:, 0])) % 360
    assert angles.round().tolist() == [45.0, 135.0, 225.0, 315.0]


def test_symmetries_of_the_square():
    found = SQUARE.symmetries()
    assert len(found) == 8 and found[0] == (0.0, False, (0, 1, 2, 3))
    assert {turn for turn, mirrored, _ in found if not mirrored} == {0.0, 90.0, 180.0, 270.0}
    azimuth = torch.tensor([17.0, 143.0, 301.0], dtype=torch.float64)
    before = SQUARE.delays(azimuth)
    for turn, mirrored, order in found:
        after = SQUARE.delays(turn - azimuth if mirrored else turn + azimuth)
        assert torch.allclose(after, before[list(order)], atol=1e-12)


def test_an_array_without_symmetry_has_none():
    odd = MicrophoneArray("odd", ((0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.03, 0.08, 0.0)))
    assert odd.symmetries() == [(0.0, False, (0, 1, 2))]


def test_yaml(tmp_path):
    path = tmp_path / "ring.yaml"
    path.write_text("positions: [[0.1, 0, 0], [0, 0.1, 0], [-0.1, 0, 0.02]]\n")
    array = load_array(path)
    assert array.name == "ring" and array.microphones == 3
    assert array.positions[2] == (-0.1, 0.0, 0.02)
    assert load_array("square") is SQUARE


@pytest.mark.parametrize("text, message", [
    ("positions: [[0.1, 0, 0]]", "two microphones or more"),
    ("positions: [[0.1, 0, 0], [0.1, 0, 0]]", "less than 1 mm"),
    ("positions: [[100, 0, 0], [0, 100, 0]]", "in metres"),
    ("positions: [[0.1, 0], [0, 0.1]]", "expected 3 values"),
    ("positions: [[.nan, 0, 0], [0, 0.1, 0]]", "finite"),
    ("places: [[0.1, 0, 0], [0, 0.1, 0]]", "unknown key places"),
])
def test_wrong_descriptions(tmp_path, text, message):
    path = tmp_path / "array.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_array(path)
    assert "array.yaml" in str(error.value)


def test_unknown_array():
    with pytest.raises(ConfigError, match="there is square"):
        load_array("hexagon")


def test_sound_speed_is_that_of_air_at_20_degrees():
    assert SOUND_SPEED == pytest.approx(331.3 * math.sqrt(1 + 20 / 273.15), rel=2e-3)
