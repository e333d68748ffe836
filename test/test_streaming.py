"""The stream: sample-exact, gapless, the same for every chunk size, and hard to upset."""

import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_fixtures import changed, make_network, minilm

from luseel_model.errors import AudioError, ConfigError, LuseelError, QueryError
from luseel_model.luseel import LuSeeLExtractor
from luseel_model.streaming import (
    PROFILES, ExtractionStream, Profile, _seconds, fast_precision, is_out_of_memory, resampling_delay)

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


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("profile", [*PROFILES, Profile(0.25, 0.05, 0.1)])
def test_audio_is_ready_within_the_stated_latency(profile, rate):
    stream = ExtractionStream(Model(), rate, profile)
    stream.set_queries(["x"])
    audio, waits, out, step = noise(4, rate), [], 0, rate // 100
    for start in range(0, audio.shape[1], step):
        stream.push(audio[:, start:start + step])
        pushed = start + step
        while result := stream.process():
            # the oldest sample of this block became known this long ago
            block = result.estimates[0]
            if block.audio.shape[1]:
                waits.append(pushed - block.first_sample)
                out = block.first_sample + block.audio.shape[1]
                assert pushed - out >= (stream.profile.crossfade + stream.lookahead) * rate - 1
    stated = stream.latency * rate
    assert max(waits) == round(stated) if rate == RATE else max(waits) <= stated + step
    assert audio.shape[1] - out <= stated + step
    if rate == RATE:
        assert stream.latency == pytest.approx(stream.profile.latency)
    assert stream.lookahead == pytest.approx(stream.profile.lookahead, abs=1e-4)


def test_profiles_trade_latency_for_lookahead():
    low, balanced, accurate = (PROFILES[n] for n in ("low_latency", "balanced", "accurate"))
    assert low.latency < balanced.latency < accurate.latency
    assert low.lookahead <= balanced.lookahead < accurate.lookahead
    assert balanced.latency < 1  # [s]


def test_a_profile_is_overridden_and_fits_itself_to_hop_and_window():
    stream = ExtractionStream(Model(), RATE, "accurate", hop=0.1, precision="bfloat16")
    assert stream.profile.hop == stream.profile.crossfade == 0.1
    assert stream.profile.lookahead == PROFILES["accurate"].lookahead
    assert stream.profile.precision == stream.precision == "bfloat16"
    model = Model()
    model.window = 0.5
    short = ExtractionStream(model, RATE, "accurate", hop=0.3)
    assert short.latency <= 0.5 + 1e-9 and short.profile.hop == 0.3


@pytest.mark.parametrize("wrong", ["fast", "", None, 3])
def test_unknown_profiles(wrong):
    with pytest.raises(ConfigError, match="low_latency, balanced, accurate"):
        ExtractionStream(Model(), RATE, wrong)


@pytest.mark.parametrize("seed", range(6))
def test_the_profile_changes_live_without_a_gap(seed):
    """Whatever the order of the changes, the identity comes out whole."""
    random = np.random.default_rng(seed)
    stream = ExtractionStream(Model(), RATE, buffer_seconds=20)
    stream.set_queries(["x"])
    audio, results, start = noise(20, seed=seed), [], 0
    while start < audio.shape[1]:
        step = int(random.integers(1, 8000))
        results += play(stream, audio[:, start:start + step], step)
        start += step
        if random.random() < 0.4:
            hop = random.choice([0.1, 0.25, 0.5, 0.8])
            stream.set_profile(random.choice(list(PROFILES)), hop=random.choice([None, hop]))
    first, out = joined(results, "x")
    assert first == 0 and out.shape[1] > 18 * RATE
    np.testing.assert_allclose(out, audio[:, :out.shape[1]], atol=1e-6)
    assert [r.hop_end for r in results[:-1]] == [r.hop_start for r in results[1:]]
    before = stream.profile
    with pytest.raises(ConfigError, match="exceed"):
        stream.set_profile("balanced", hop=15.0, crossfade=0.0, lookahead=0.0)
    with pytest.raises(ConfigError, match="precision"):
        stream.set_profile("balanced", precision="float8")
    assert stream.profile is before


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


def test_a_model_that_fails_costs_one_estimate_and_no_audio():
    """The next window reaches back over what the failed hop left out."""
    def function(audio, number):
        if number == 4:
            raise RuntimeError("no kernel image is available")
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
    assert errors == ["no kernel image is available", "the model gave values that are not finite"]
    assert len(good) == 10 and stream.counters.failed == 2 and not stream.counters.halvings
    _, out = joined(good, "x")
    np.testing.assert_allclose(out, audio[:, :out.shape[1]], atol=1e-6)


def test_a_model_that_fails_for_longer_than_its_window_leaves_a_gap():
    def function(audio, number):
        if 4 <= number < 9:
            raise RuntimeError("gone")
        return audio

    stream = ExtractionStream(Model(function), RATE, buffer_seconds=10)
    stream.set_queries(["x"])
    audio, good = noise(8), []
    stream.push(audio)
    while stream.ready:
        try:
            good.append(stream.process())
        except RuntimeError:
            pass
    first, out = joined(good[3:], "x")
    assert first == 8 * 8000 - round(stream.delay * RATE)
    np.testing.assert_allclose(out[:, 1600:], audio[:, first + 1600:first + out.shape[1]],
                               atol=1e-6)


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate "
                 "memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)")])
def test_memory_that_runs_out_splits_the_queries_and_loses_nothing(error):
    class Small(Model):
        def infer_window(self, window, queries):
            if len(queries) > 2:
                raise error
            return super().infer_window(window, queries)

    model = Small()
    stream = ExtractionStream(model, RATE)
    stream.set_queries([f"sound {i}" for i in range(1, 8)])
    audio = noise(3)
    results = play(stream, audio)
    assert len(results) == 6 and stream.counters.failed == 0
    assert stream.max_queries_at_once == 1 and stream.counters.halvings == 2  # 7, 3, 1
    assert {len(queries) for queries in model.queries} == {1}
    for i in range(1, 8):
        first, out = joined(results, f"sound {i}")
        np.testing.assert_allclose(out, i * audio[:, :out.shape[1]], atol=1e-5)
    stream.max_queries_at_once = None  # tried again, and again too much
    stream.push(noise(0.5))
    assert stream.process() and stream.max_queries_at_once == 1


def test_memory_that_runs_out_for_one_query_is_an_error():
    def function(audio, number):
        raise MemoryError

    stream = ExtractionStream(Model(function), RATE)
    stream.set_queries(["x"])
    stream.push(noise(0.5))
    with pytest.raises(MemoryError):
        stream.process()
    assert stream.counters.halvings == 0
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_groups_of_queries():
    model = Model()
    stream = ExtractionStream(model, RATE, max_queries_at_once=3)
    stream.set_queries([f"sound {i}" for i in range(1, 9)])
    audio = noise(1)
    results = play(stream, audio)
    assert [len(queries) for queries in model.queries] == [3, 3, 2] * 2
    for i in range(1, 9):
        _, out = joined(results, f"sound {i}")
        np.testing.assert_allclose(out, i * audio[:, :out.shape[1]], atol=1e-5)
    with pytest.raises(ConfigError, match="max_queries_at_once"):
        stream.max_queries_at_once = 0


def test_precision_is_that_of_the_profile(monkeypatch):
    seen = []

    def function(audio, number):
        on = torch.is_autocast_enabled("cpu")
        seen.append("bfloat16" if on else "float32")
        assert not on or torch.get_autocast_dtype("cpu") == torch.bfloat16
        return audio

    stream = ExtractionStream(Model(function), RATE)
    stream.set_queries(["x"])
    for precision in ("float32", "bfloat16", "auto"):
        stream.set_profile("balanced", precision=precision)
        assert stream.precision == (fast_precision("cpu") if precision == "auto" else precision)
        play(stream, noise(0.5))
    assert seen == ["float32", "bfloat16", fast_precision("cpu")]


def test_bfloat16_where_the_processor_has_it_and_is_faster(monkeypatch):
    took = {"bfloat16": 1.0, "float32": 2.0}
    monkeypatch.setattr("luseel_model.streaming._seconds", took.get)
    for text, expected in (("flags : fpu avx2 avx512f avx512_bf16 sse4\n", "bfloat16"),
                           ("Features : fp asimd bf16 i8mm\n", "bfloat16"),
                           ("flags : fpu avx2 avx512f\nmodel name : bf16\n", "float32")):
        fast_precision.cache_clear()
        monkeypatch.setattr("luseel_model.streaming.Path.read_text", lambda self: text)
        assert fast_precision("cpu") == expected
    monkeypatch.setattr("luseel_model.streaming.Path.read_text", lambda self: "flags : amx_bf16\n")
    for took["bfloat16"], expected in ((1.0, "bfloat16"), (3.0, "float32")):
        fast_precision.cache_clear()
        assert fast_precision("cpu") == expected
    fast_precision.cache_clear()
    assert fast_precision("mps") == "float32"


def test_the_trial_of_precisions_leaves_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert all(0 < _seconds(precision) < 5 for precision in ("float32", "bfloat16"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", range(4))
def test_other_queries_never_disturb_one(seed):
    """Others come and go at random moments: this one's audio is the same, bit by bit."""
    random = np.random.default_rng(seed)
    audio = noise(10, seed=seed)
    alone = ExtractionStream(Model(), RATE)
    alone.set_queries({"mine": "dog 2"})
    expected = joined(play(alone, audio), "mine")
    stream = ExtractionStream(Model(), RATE)
    results, words = [], {"mine": "dog 2"}
    stream.set_queries(words)
    for start in range(0, audio.shape[1], 1600):
        for _ in range(random.integers(0, 4)):
            key = f"other {random.integers(6)}"
            if random.random() < 0.5:
                words.pop(key, None)
            else:
                words[key] = f"cat {random.integers(9)}"
            items = list(words.items())
            random.shuffle(items)
            stream.set_queries(dict(items))
        results += play(stream, audio[:, start:start + 1600])
    assert len({e.key for r in results for e in r.estimates}) > 4
    first, out = joined(results, "mine")
    assert first == expected[0]
    np.testing.assert_array_equal(out, expected[1])


def test_a_real_network_shares_its_encoders_and_keeps_queries_apart():
    torch.manual_seed(0)
    model = LuSeeLExtractor(make_network(changed("tiny")), text=minilm())
    encode, runs = model.network.encode, []
    model.network.encode = lambda mixture, *more: (
        runs.append(len(mixture)) or encode(mixture, *more))
    audio, outcomes = noise(2), []
    for others in ({}, {"q2": "rain", "q3": "a bell", "q4": "birds"}):
        stream = ExtractionStream(model, RATE, hop=0.2, precision="float32")
        stream.set_queries({"q1": "dog barking", **others})
        outcomes.append(joined(play(stream, audio), "q1"))
    assert runs == [1] * 20  # once per hop, however many queries
    assert outcomes[0][1].std() > 0
    np.testing.assert_allclose(outcomes[1][1], outcomes[0][1], atol=1e-5)


def test_many_queries_on_a_slow_model_drop_the_oldest_for_all_alike():
    model = Model()
    stream = ExtractionStream(model, RATE, buffer_seconds=1.0)
    stream.set_queries({f"q{i}": f"sound {i}" for i in range(32)})
    audio, results = noise(30), []
    for start in range(0, audio.shape[1], 8000):  # the model manages every fourth hop
        stream.push(audio[:, start:start + 8000])
        if start // 8000 % 4 == 3:
            results.append(stream.process())
    assert stream.counters.dropped > 10 * RATE
    done = sum(r.hop_end - r.hop_start for r in results)
    waiting = stream._history.end - stream._done
    assert done + stream.counters.dropped + waiting == audio.shape[1] and waiting <= RATE
    for result in results:
        assert len({(e.first_sample, e.audio.shape) for e in result.estimates}) == 1
        at = result.estimates[3].first_sample
        block = result.estimates[3].audio[:, 1600:]
        np.testing.assert_allclose(
            block, 3 * audio[:, at + 1600:at + 1600 + block.shape[1]], atol=1e-5)


def test_memory_stays_flat():
    """A minute with ever new queries, resampled: nothing of the past is kept."""
    model = Model()
    stream = ExtractionStream(model, 48000, hop=0.25)
    chunk, sizes = noise(0.25, 48000), []
    tracemalloc.start()
    try:
        for i in range(240):
            stream.set_queries({f"q{j}": f"sound {j}" for j in range(i, i + 3)})
            stream.push(chunk)
            stream.process()
            model.windows.clear(), model.queries.clear()
            if i % 60 == 59:
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(stream._joins) <= 3
    assert sizes[-1] - sizes[0] < 96_000  # [bytes]: a single chunk of the 180


@pytest.mark.parametrize("rate", [RATE, 8000, 11025, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.03, 1.0, 3.217])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_end_gives_out_exactly_what_came_in(profile, rate, seconds):
    stream = ExtractionStream(Model(), rate, profile)
    stream.set_queries(["x", "y 2"])
    count = round(seconds * rate)
    audio = np.stack([np.sin(2 * np.pi * f * np.arange(count) / rate) for f in (440, 1234)])
    audio = audio.astype(np.float32)
    for origin in (0, 5000):  # and again: it starts anew
        results = play(stream, audio, rate // 10, first=origin) + stream.finish()
        for key, gain in (("x", 1), ("y 2", 2)):
            first, out = joined(results, key)
            assert first == origin and out.shape == audio.shape
            inner = slice(round(0.02 * rate), -round(0.02 * rate))
            np.testing.assert_allclose(out[:, inner], gain * audio[:, inner], atol=5e-3)
        assert results[0].hop_start == origin and results[-1].hop_end == origin + count
        assert stream.process() is None
    assert stream.finish() == []


def test_the_end_without_queries_or_audio():
    stream = ExtractionStream(Model(), RATE)
    assert stream.finish() == []
    stream.push(noise(0.7))
    assert [(r.hop_start, r.hop_end) for r in stream.finish()] == [(0, 8000), (8000, 11200)]
    assert stream.counters.received == 11200


def test_resampling_delay():
    assert resampling_delay(RATE, RATE) == 0
    for rate in (8000, 44100, 48000):
        assert 0 < resampling_delay(rate, RATE) < 0.2


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
