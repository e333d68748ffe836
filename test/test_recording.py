"""Joining windows to a recording."""

import numpy as np
import pytest

from luseel_model.inference import WindowOutput
from luseel_model.recording import WindowJoiner, window_starts

SIZE, RATE = 1600, 800  # windows of 2 s


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def join(samples, gates, sound=1.0):
    """A constant sound under the gates of its windows, joined."""
    starts = window_starts(samples, SIZE)
    joiner = WindowJoiner(1, samples, SIZE, RATE)
    for start, gate in zip(starts, gates(len(starts))):
        gain = 1.0 if gate is None else sigmoid(gate)
        joiner.add(start, WindowOutput(
            np.full((1, 2, SIZE), gain * sound, np.float32), np.float32([10]),
            np.eye(360, dtype=np.float32)[10:11], np.float32([0.5]),
            None if gate is None else np.float32([gate])))
    return joiner.finish()


@pytest.mark.parametrize("samples", [900, SIZE, SIZE + 1, 5 * SIZE, 30 * SIZE + 77])
@pytest.mark.parametrize("gate", [None, -8.0, 0.0, 30.0])
def test_equal_windows_join_to_themselves(samples, gate):
    joined = join(samples, lambda count: [gate] * count)
    assert joined.audio.shape == (1, 2, samples)
    expected = 1.0 if gate is None else sigmoid(gate)
    np.testing.assert_allclose(joined.audio, expected, rtol=1e-4)
    assert joined.audible == pytest.approx([expected], rel=1e-4)
    assert joined.azimuth[0] == pytest.approx(10, abs=0.01)


def test_one_doubtful_window_is_carried_by_its_neighbours():
    """Without the average the middle of the recording would be down by 0.5 · (1 + sigmoid(-4))."""
    def gates(count):
        return [4.0 if i != count // 2 else -4.0 for i in range(count)]
    joined = join(12 * SIZE, gates)
    assert joined.audio.min() > 0.8


def test_a_lone_window_does_not_open_a_silent_recording():
    def gates(count):
        return [-6.0 if i != count // 2 else 2.0 for i in range(count)]
    joined = join(12 * SIZE, gates)
    assert joined.audio.max() < 0.15 and joined.audible == pytest.approx([sigmoid(2.0)], rel=1e-4)


def test_far_windows_do_not_count():
    """A sound in the first half of a minute says nothing about the second half."""
    def gates(count):
        return [5.0] * (count // 2) + [-5.0] * (count - count // 2)
    audio = join(30 * SIZE, gates).audio[0, 0]
    edge = 15 * SIZE
    assert audio[:edge - 10 * RATE].min() > 0.99
    assert audio[edge + 10 * RATE:].max() < 0.01
