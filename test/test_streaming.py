"""The stream: sample-exact, gapless, the same for every chunk size, and hard to upset."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from luseel_model.errors import AudioError, ConfigError, LuseelError, QueryError
from luseel_model.streaming import ExtractionStream

RATE = 16000


class Model:
    """Gives back the window itself, times the number in the query (or 1)."""

    sample_rate, window = RATE, 2.0

    def __init__(self, function=None):
        self.windows, self.queries, self.function = [], [], function

    def infer_window(self, window, queries):
        assert window.shape == (2, 32000) and window.dtype == np.float32
        self.windows.append(window)
        self.queries.append(list(queries))
        gains = [float(q.split()[-1]) if q.split()[-1].replace(".", "").isdigit() else 1.0
                 for q in queries]
        audio = np.stack([gain * window for gain in gains])
        if self.function:
            audio = self.function(audio, len(self.windows))
        count = len(queries)
        return SimpleNamespace(
            audio=audio, azimuth=np.full(count, 90.0), confidence=np.full(count, 0.5),
            likelihood=np.zeros((count, 360), np.float32))


def noise(seconds, rate=RATE, seed=0):
    return np.random.default_rng(seed).normal(
        0, 0.1, (2, round(seconds * rate))).astype(np.float32)


def play(stream, audio, chunk=1600, first=None, drain=True):
    """Push in chunks, process what is ready; results in order."""
    results = []
    for start in range(0, audio.shape[1], chunk):
        stream.push(audio[:, start:start + chunk], None if first is None else first + start)
        while drain and (result := stream.process()):
            results.append(result)
    return results


def joined(results, key):
    """The audio of one query; fails unless each block starts where the last one ended."""
    blocks = [e for r in results for e in r.estimates if e.key == key]
    position = blocks[0].first_sample
    for block in blocks:
        assert block.first_sample == position
        position += block.audio.shape[1]
    return blocks[0].first_sample, np.concatenate([b.audio for b in blocks], 1)


def test_identity_is_the_input_delayed_by_the_stated_latency():
    stream = ExtractionStream(Model(), RATE, hop=0.5, crossfade=0.1, lookahead=0.05)
    assert stream.delay == pytest.approx(0.15) and stream.latency == pytest.approx(0.65)
    stream.set_queries(["dog barking"])
    audio = noise(7.3)
    results = play(stream, audio)
    assert [r.hop_end - r.hop_start for r in results] == [8000] * 14
    assert [r.hop_start for r in results] == list(range(0, 14 * 8000, 8000))
    # What is out after each hop ends exactly `delay` before the newest sample of that hop.
    for result in results:
        estimate = result.estimates[0]
        end = estimate.first_sample + estimate.audio.shape[1]
        assert end == result.hop_end - round(stream.delay * RATE)
    first, out = joined(results, "dog barking")
    assert first == 0 and out.shape[1] == 14 * 8000 - 2400
    np.testing.assert_allclose(out, audio[:, :out.shape[1]], atol=1e-6)


def test_audio_is_ready_within_the_stated_latency():
    stream = ExtractionStream(Model(), RATE, hop=0.25, crossfade=0.05, lookahead=0.1)
    stream.set_queries(["x"])
    audio, waits, out = noise(5), [], 0
    for start in range(0, audio.shape[1], 160):
        stream.push(audio[:, start:start + 160])
        pushed = start + 160
        while result := stream.process():
            # the oldest sample of this block became known this long ago
            block = result.estimates[0]
            if block.audio.shape[1]:
                waits.append(pushed - block.first_sample)
                out = block.first_sample + block.audio.shape[1]
    assert max(waits) == round(stream.latency * RATE)
    assert audio.shape[1] - out <= round(stream.latency * RATE)


@pytest.mark.parametrize("chunk", [1, 37, 512, 8000, 50000])
def test_the_chunk_size_changes_nothing(chunk):
    audio = noise(1.2 if chunk == 1 else 5)
    outcomes = []
    for size in (1600, chunk):
        stream = ExtractionStream(Model(), RATE, buffer_seconds=10)
        stream.set_queries(["x 0.5"])
        outcomes.append(joined(play(stream, audio, size), "x 0.5"))
    assert outcomes[0][0] == outcomes[1][0]
    np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])


def test_the_window_holds_the_newest_audio_after_silence():
    model = Model()
    stream = ExtractionStream(model, RATE)
    stream.set_queries(["x"])
    audio = noise(4)
    play(stream, audio)
    assert not model.windows[0][:, :24000].any()
    np.testing.assert_array_equal(model.windows[0][:, 24000:], audio[:, :8000])
    for index in (3, 7):
        end = 8000 * (index + 1)
        np.testing.assert_array_equal(model.windows[index], audio[:, end - 32000:end])


def test_windows_that_disagree_are_blended_without_a_step():
    """Equal-gain: between gains 1 and 2 the envelope of a constant stays within them."""
    stream = ExtractionStream(Model(lambda audio, n: audio * (1 + n % 2)), RATE)
    stream.set_queries(["x"])
    _, out = joined(play(stream, np.ones((2, 5 * RATE), np.float32)), "x")
    assert out.min() >= 1 - 1e-6 and out.max() <= 2 + 1e-6
    assert np.abs(np.diff(out)).max() < 2e-3  # a step would be 1


def test_several_queries_share_one_run():
    model = Model()
    stream = ExtractionStream(model, RATE)
    stream.set_queries({"q1": "dog 1", "q2": "cat 2"})
    audio = noise(3)
    results = play(stream, audio)
    assert len(model.windows) == len(results) == 6
    assert [e.key for e in results[0].estimates] == ["q1", "q2"]
    one, two = joined(results, "q1")[1], joined(results, "q2")[1]
    np.testing.assert_allclose(2 * one, two, atol=1e-6)


def test_queries_come_and_go():
    model = Model()
    stream = ExtractionStream(model, RATE)
    audio = noise(12)
    before = play(stream, audio[:, :32000])
    assert len(before) == 4 and all(not r.estimates for r in before) and not model.windows
    stream.set_queries({"q1": "dog"})
    first = play(stream, audio[:, 32000:64000])
    stream.set_queries({"q1": "dog", "q2": "cat"})
    second = play(stream, audio[:, 64000:96000])
    stream.set_queries({"q2": "cat"})
    third = play(stream, audio[:, 96000:128000])
    stream.set_queries([])
    assert all(not r.estimates for r in play(stream, audio[:, 128000:]))
    # a query that stays has no seam; one that arrives late fades in from silence
    start, dog = joined(first + second, "q1")
    assert start == 32000 - 3200
    np.testing.assert_allclose(dog[:, 1600:], audio[:, start + 1600:start + dog.shape[1]],
                               atol=1e-6)
    assert np.abs(dog[:, :20]).max() < 1e-3
    start, cat = joined(second + third, "q2")
    assert start == 64000 - 3200 and cat.shape[1] == 64000
    np.testing.assert_allclose(cat[:, 1600:], audio[:, start + 1600:start + 64000], atol=1e-6)


def test_bad_queries_leave_the_old_ones():
    stream = ExtractionStream(Model(), RATE)
    stream.set_queries(["dog"])
    for bad in ([""], ["  "], ["x" * 10000], [3]):
        with pytest.raises(QueryError):
            stream.set_queries(bad)
    assert play(stream, noise(1))[0].estimates[0].query == "dog"


def test_overload_drops_the_oldest_and_goes_on_at_the_newest():
    stream = ExtractionStream(Model(), RATE, buffer_seconds=2.0)
    stream.set_queries(["x"])
    audio = noise(20)
    before = play(stream, audio[:, :32000])
    play(stream, audio[:, 32000:160000], drain=False)  # the model is stuck for 8 s
    after = play(stream, audio[:, 160000:])
    positions = [(r.hop_start, r.hop_end) for r in before + after]
    assert sum(end - start for start, end in positions) + stream.counters.dropped == 320000
    assert stream.counters.dropped > 0
    jump = [b[0] - a[1] for a, b in zip(positions, positions[1:]) if b[0] != a[1]]
    assert jump == [stream.counters.dropped]
    start, out = joined(after, "x")  # within what follows: gapless, and at its right place
    np.testing.assert_allclose(out[:, 1600:], audio[:, start + 1600:start + out.shape[1]],
                               atol=1e-6)
    assert after[0].hop_start >= 160000 - 2.5 * RATE
    # the model saw real audio before the newest hop, not a hole
    end = after[0].hop_end
    np.testing.assert_array_equal(stream.model.windows[4], audio[:, end - 32000:end])


def test_one_huge_chunk():
    stream = ExtractionStream(Model(), RATE, buffer_seconds=2.0)
    stream.set_queries(["x"])
    audio = noise(30)
    results = play(stream, audio, chunk=audio.shape[1])
    assert sum(r.hop_end - r.hop_start for r in results) + stream.counters.dropped == 480000
    assert results[-1].hop_end == 480000
    np.testing.assert_array_equal(stream.model.windows[-1], audio[:, -32000:])


def test_lost_messages_are_bridged_with_silence():
    stream = ExtractionStream(Model(), RATE)
    stream.set_queries(["x"])
    audio = noise(6)
    results = []
    for start in range(0, audio.shape[1], 1600):
        if 40000 <= start < 45000:  # four messages lost
            continue
        assert stream.push(audio[:, start:start + 1600], 700 + start) == 700 + start
        while result := stream.process():
            results.append(result)
    first, out = joined(results, "x")
    expected = audio.copy()
    expected[:, 40000:46400] = 0
    assert first == 700 and stream.counters.missing == 6400 and not stream.counters.restarts
    np.testing.assert_allclose(out, expected[:, :out.shape[1]], atol=1e-6)


def test_a_long_gap_or_a_source_that_restarts_begins_anew():
    stream = ExtractionStream(Model(), RATE)
    stream.set_queries(["x"])
    audio = noise(3)
    for origin in (0, 10_000_000, 5):
        results = play(stream, audio, first=origin)
        first, out = joined(results, "x")
        assert first == origin and results[0].hop_start == origin
        assert {r.restarts for r in results} == {stream.counters.restarts}
        np.testing.assert_allclose(out, audio[:, :out.shape[1]], atol=1e-6)
    assert stream.counters.restarts == 2
    assert stream.counters.missing == 10_000_000 - 48000


def test_repeated_and_late_messages_are_ignored():
    stream = ExtractionStream(Model(), RATE)
    stream.set_queries(["x"])
    audio, results = noise(4), []
    for start in range(0, audio.shape[1], 1600):
        for shift in (0, 0, -800):  # each message twice, then one that overlaps
            shift = max(shift, -start)
            stream.push(audio[:, start + shift:start + shift + 1600], start + shift)
        while result := stream.process():
            results.append(result)
    _, out = joined(results, "x")
    np.testing.assert_allclose(out, audio[:, :out.shape[1]], atol=1e-6)
    assert stream.counters.repeated > 0 and not stream.counters.restarts


def test_invalid_samples_become_silence_and_are_counted():
    stream = ExtractionStream(Model(), RATE)
    stream.set_queries(["x"])
    audio = noise(2)
    audio[0, 100], audio[1, 200], audio[0, 300] = np.nan, np.inf, -1e30
    expected = audio.copy()
    expected[0, 100] = expected[1, 200] = expected[0, 300] = 0
    _, out = joined(play(stream, audio), "x")
    assert stream.counters.invalid == 3
    np.testing.assert_allclose(out, expected[:, :out.shape[1]], atol=1e-6)


@pytest.mark.parametrize("shape", [(1600,), (1, 1600), (1600, 2), (3, 1600)])
def test_anything_but_two_ears_is_refused(shape):
    stream = ExtractionStream(Model(), RATE)
    with pytest.raises(AudioError, match="both ears"):
        stream.push(np.zeros(shape, np.float32))
    stream.push(np.zeros((2, 0), np.float32))
    assert stream.process() is None


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_other_rates_come_back_at_their_own(rate):
    """A sound below 3 kHz comes back the same, at the same place, sample by sample."""
    stream = ExtractionStream(Model(), rate)
    audio = np.stack([np.sin(2 * np.pi * f * np.arange(8 * rate) / rate) for f in (440, 1234)])
    audio = audio.astype(np.float32)
    half = 4 * rate
    results = play(stream, audio[:, :half], rate // 10)
    stream.set_queries({"q1": "x"})
    middle = play(stream, audio[:, half:6 * rate], 777)
    stream.set_queries({"q1": "x", "q2": "late"})  # its resampler starts in mid-stream
    last = play(stream, audio[:, 6 * rate:], 1000)
    assert all(r.sample_rate == rate for r in results + middle + last)
    for key, part in (("q1", middle + last), ("q2", last)):
        first, out = joined(part, key)
        wait = part[-1].hop_end - (first + out.shape[1])
        assert wait <= (stream.delay + 0.2) * rate
        inner = slice(round(0.15 * rate), None)
        np.testing.assert_allclose(
            out[:, inner], audio[:, first:first + out.shape[1]][:, inner], atol=2e-3)


def test_a_model_that_fails_costs_one_hop():
    def function(audio, number):
        if number == 4:
            raise RuntimeError("out of memory")
        return audio * (np.nan if number == 6 else 1)

    stream = ExtractionStream(Model(function), RATE)
    stream.set_queries(["x"])
    audio, good, errors = noise(6), [], []
    for start in range(0, audio.shape[1], 1600):
        stream.push(audio[:, start:start + 1600])
        while stream.ready:
            try:
                good.append(stream.process())
            except (RuntimeError, LuseelError) as error:
                errors.append(str(error))
    assert errors == ["out of memory", "the model gave values that are not finite"]
    assert len(good) == 10
    _, out = joined(good[5:], "x")
    np.testing.assert_allclose(
        out[:, -8000:], audio[:, :96000 - 3200][:, -8000:], atol=1e-6)


def test_pushing_while_processing():
    """A pushing thread and a waiting one, as in the node: nothing lost, nothing twice."""
    stream = ExtractionStream(Model(), RATE, buffer_seconds=60)
    stream.set_queries(["x"])
    audio = noise(30)
    feeder = threading.Thread(target=play, args=(stream, audio, 111, None, False))
    feeder.start()
    results = []
    while stream.wait(1.0):
        results.append(stream.process())
    feeder.join()
    _, out = joined(results, "x")
    assert len(results) == 60
    np.testing.assert_allclose(out, audio[:, :out.shape[1]], atol=1e-6)
    assert not stream.wait(0.01)


@pytest.mark.parametrize("wrong", [
    dict(hop=0), dict(hop=-1), dict(crossfade=0.6), dict(lookahead=-0.1),
    dict(hop=1.9, crossfade=0.2), dict(buffer_seconds=0.6)])
def test_times_that_contradict_each_other(wrong):
    with pytest.raises(ConfigError):
        ExtractionStream(Model(), RATE, **wrong)


@pytest.mark.parametrize("rate", [0, -1, 100, 10**9])
def test_impossible_rates(rate):
    with pytest.raises(AudioError, match="rate"):
        ExtractionStream(Model(), rate)
