"""The parts of the node that need no graph: query list, time line, statistics, steady model."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402

from luseel_model.errors import QueryError  # noqa: E402
from luseel_model.query import Capabilities, Query, as_query  # noqa: E402
from luseel_ros import conversions, diagnostics, steady_model  # noqa: E402
from luseel_ros.queries import QueryList, validate_id  # noqa: E402
from luseel_ros.steady_model import SteadyModel  # noqa: E402
from luseel_ros.timeline import FOLLOWS, GAP, JUMP, OVERLAP, Block, Timeline  # noqa: E402

SECOND = 1_000_000_000
RATE = 16000
BLOCK = 800  # samples, 50 ms
T0 = 1_700_000_000 * SECOND


# -- queries --------------------------------------------------------------------------------------

def test_words_replace_all_and_blanks_clear():
    queries = QueryList()
    assert queries.replace_all("dog") == "q1"
    queries.add("cat", "cat")
    assert list(queries.all()) == ["q1", "cat"]
    assert queries.replace_all(" cat ") == "cat"  # it stays what it is: no seam in its audio
    assert list(queries.all()) == ["cat"]
    assert queries.replace_all("owl") == "q3"
    queries.replace_all("  ")
    assert not queries.all()


def test_adding_keeps_ids_and_limits():
    queries = QueryList(maximum=2)
    assert queries.add("dog") == "q1" and queries.add("dog", threshold=0.7) == "q1"
    assert queries.all()["q1"].threshold == 0.7
    assert queries.add("cat", "q2") == "q2"
    with pytest.raises(QueryError, match="max_queries is 2"):
        queries.add("owl")
    assert queries.add("hen", "q2") == "q2"  # a change needs no room
    assert [q.words for q in queries.all().values()] == ["dog", "hen"]
    queries.remove("q1")
    assert queries.add("owl") == "q3"  # ids and colours don't come again
    assert len({q.index for q in queries.all().values()}) == 2


@pytest.mark.parametrize("arguments, words", [
    (dict(query=""), "empty"), (dict(query="x" * 5000), "characters"),
    (dict(query="dog", query_id="7up"), "can't be used"),
    (dict(query="dog", query_id="a/b"), "can't be used"),
    (dict(query="dog", query_id="a__b"), "can't be used"),
    (dict(query="dog", query_id="a_"), "can't be used"),
    (dict(query="dog", query_id="x" * 65), "can't be used"),
    (dict(query="dog", threshold=1.1), "threshold"), (dict(query="dog", threshold=-0.1), "threshold"),
    (dict(query="dog", threshold=math.nan), "threshold"),
    (dict(query="dog", lifetime_ns=-1), "lifetime")])
def test_what_cannot_be_added_changes_nothing(arguments, words):
    queries = QueryList()
    queries.add("cat")
    before = queries.all()
    with pytest.raises(QueryError, match=words):
        queries.add(**arguments)
    assert queries.all() == before


def test_a_query_stays_the_same_object_until_its_content_changes():
    queries, picture = QueryList(), np.uint8(np.arange(300) % 256).reshape(10, 10, 3)
    queries.add(Query(text="dog", image=picture), "a")
    first = queries.all()["a"].query
    queries.add(Query(text=" dog", image=picture.copy()), "a", threshold=0.3)
    assert queries.all()["a"].query is first and queries.all()["a"].threshold == 0.3
    queries.change("a", {"image": picture.copy()})
    assert queries.all()["a"].query is first and queries.all()["a"].threshold == 0.3
    queries.change("a", {"image": picture + 1})
    second = queries.all()["a"].query
    assert second is not first and second.text == "dog"
    queries.change("a", {"text": "wolf"}, threshold=0.6)
    assert queries.all()["a"].query.image is second.image
    assert (queries.all()["a"].words, queries.all()["a"].threshold) == ("wolf", 0.6)
    # a change needs an id, and what it asks for must be possible as a whole
    before = queries.all()
    for arguments in (("", {"text": "owl"}), ("a", {"text": ""}, 2.0), ("a/b", {"text": "owl"}),
                      ("a", {"image": picture[:2]}), ("b", {}), ("a", {"tag": "x" * 300})):
        with pytest.raises(QueryError):
            queries.change(*arguments)
    assert queries.all() == before


def test_a_change_keeps_the_end_that_it_says_nothing_of():
    queries = QueryList()
    queries.add("dog", "a", lifetime_ns=10 * SECOND, now=T0)
    queries.change("a", {"tag": "bark"}, now=T0 + SECOND)
    assert not queries.expire(T0 + 10 * SECOND - 1)
    queries.change("a", {}, lifetime_ns=SECOND, now=T0 + 9 * SECOND + 1)
    assert not queries.expire(T0 + 10 * SECOND)
    assert queries.expire(T0 + 10 * SECOND + 1)


def test_what_the_model_refuses_is_not_added():
    able = Capabilities(frozenset({"tag"}))

    def check(query):
        query = as_query(query)
        able.check(query, "tagger")
        return query

    queries = QueryList(check=check)
    assert queries.add(Query(tag="dog")) == "q1"
    for refused in (lambda: queries.add("dog"), lambda: queries.replace_all("dog"),
                    lambda: queries.change("q1", {"text": "dog"})):
        with pytest.raises(QueryError, match="tagger can't use words as a query: give it a tag"):
            refused()
    assert [str(q) for q in queries.all().values()] == ["tag 'dog'"]
    assert queries.replace_all(" ") == "" and not len(queries)


def test_ids_make_valid_topic_names():
    from rclpy.validate_full_topic_name import validate_full_topic_name
    for name in ("q1", "A", "kitchen_dog_2", "x" * 64):
        validate_full_topic_name(f"/luseel/poses/{validate_id(name)}")


def test_lifetimes_end_and_survive_a_jump_of_the_clock():
    queries = QueryList()
    queries.add("dog", lifetime_ns=10 * SECOND, now=T0)
    queries.add("cat")
    assert not queries.expire(T0 + 10 * SECOND - 1)
    queries.shift(-T0)  # simulated time starts
    assert not queries.expire(10 * SECOND - 1)
    assert [q.words for q in queries.expire(10 * SECOND)] == ["dog"]
    assert [q.words for q in queries.all().values()] == ["cat"]


def test_removing_by_id_or_words():
    queries = QueryList()
    queries.add("dog", "a"), queries.add("cat", "b")
    assert queries.remove("a") == "a" and queries.remove(text=" cat ") == "b"
    for missing in (dict(query_id="a"), dict(text="dog"), dict()):
        with pytest.raises(QueryError):
            queries.remove(**missing)


# -- time line ------------------------------------------------------------------------------------

class Source:
    """Blocks of 50 ms with exact stamps; what is done to them is up to the test."""

    def __init__(self, timeline, counts=False):
        self.timeline, self.counts, self.sent = timeline, counts, 0

    def place(self, off=0, count=BLOCK):
        stamp = T0 + conversions.samples_to_ns(self.sent, RATE) + off
        place = self.timeline.place(stamp, count, self.sent if self.counts else None)
        self.sent += count
        return place

    def lose(self, samples):
        self.sent += samples


def test_jitter_and_drift_of_stamps_are_not_believed():
    source, jitter = Source(Timeline(RATE)), random.Random(0)
    for i in range(20_000):  # 1000 s in which the clocks part by 0.1 s
        off = round(i * BLOCK / RATE * 100e-6 * SECOND + jitter.uniform(-0.03, 0.03) * SECOND)
        place = source.place(off)
        assert place.what == FOLLOWS and place.first_sample is None


@pytest.mark.parametrize("lost", [2400, 8000, 15999])
def test_a_gap_in_the_stamps_is_bridged(lost):
    source = Source(Timeline(RATE))
    for _ in range(5):
        source.place()
    source.lose(lost)
    assert source.place().what == source.place().what == FOLLOWS  # late, perhaps
    place = source.place()
    assert (place.what, place.first_sample) == (GAP, 7 * BLOCK + lost)
    assert all(source.place().off == 0 for _ in range(10))


@pytest.mark.parametrize("late", [0.2, 0.9, 3.0])
def test_stamps_that_are_late_and_catch_up_lose_nothing(late):
    """The time of arrival, when something holds up the messages: at the beginning, and later."""
    source = Source(Timeline(RATE))
    for _ in range(2):
        for i in range(100):
            place = source.place(max(0, round((late - 0.05 * i) * SECOND)))
            assert place.what == FOLLOWS and place.first_sample is None


def test_short_losses_add_up_until_they_are_noticed():
    source = Source(Timeline(RATE))
    placed = []
    for i in range(60):
        if i % 4 == 3:
            source.lose(240)  # 15 ms, each well within the jitter
        place, truth = source.place(), source.sent - BLOCK
        if place.what == GAP:
            placed.append(place.first_sample - truth)
    assert len(placed) == 2 and np.abs(placed).max() <= 32  # 2 ms


def test_an_overlap_is_placed_where_it_was():
    source = Source(Timeline(RATE))
    for _ in range(10):
        source.place()
    source.sent -= 4 * BLOCK  # 0.2 s again
    place = source.place()
    assert (place.what, place.first_sample) == (OVERLAP, 6 * BLOCK)


@pytest.mark.parametrize("seconds", [-1e6, -5, 5, 1e6])
def test_a_jump_of_the_stamps_asks_for_a_new_stream(seconds):
    source = Source(Timeline(RATE))
    for _ in range(5):
        source.place()
    places = [source.place(round(seconds * SECOND)) for _ in range(3)]
    assert places[0 if seconds < 0 else 2].what == JUMP


def test_numbered_audio_goes_on_when_the_clock_jumps():
    source = Source(Timeline(RATE), counts=True)
    for i in range(10):
        assert source.place() == (type(source.place())(2 * i * BLOCK, FOLLOWS, 0))
    jump = source.place(3600 * SECOND)
    assert jump.what == JUMP and jump.first_sample == 20 * BLOCK and jump.off == 3600 * SECOND
    assert source.place(3600 * SECOND).what == FOLLOWS  # the new time holds
    source.sent = 0  # starts to count anew, at another time: no jump of the clock
    assert source.place(7200 * SECOND).what == FOLLOWS


def test_numbered_audio_that_was_lost_is_no_jump_of_the_clock():
    source = Source(Timeline(RATE), counts=True)
    for _ in range(5):
        source.place()
    source.lose(8000)
    assert source.place().what == FOLLOWS


@pytest.mark.parametrize("factor", [1 / 3, 0.9, 1.1, 3.0])
@pytest.mark.parametrize("counts", [True, False])
def test_a_wrong_rate_is_noticed_and_nothing_is_bridged(factor, counts):
    timeline = Timeline(RATE)
    placed = []
    for i in range(100):
        stamp = T0 + round(i * BLOCK / RATE / factor * SECOND)
        placed.append(timeline.place(stamp, BLOCK, i * BLOCK if counts else None))
    assert timeline.true_rate == pytest.approx(RATE * factor, rel=0.01)
    if not counts:
        assert all(place.what == FOLLOWS for place in placed[-50:])


def test_a_right_rate_is_not_doubted():
    timeline = Timeline(RATE)
    for i in range(100):  # two blocks at a time, stamped when they arrive
        timeline.place(T0 + conversions.samples_to_ns(i // 2 * 2 * BLOCK, RATE), BLOCK, i * BLOCK)
        assert timeline.true_rate is None


def test_stamps_that_are_missing_or_stand_still_tell_nothing():
    for stamp in (0, T0):
        timeline = Timeline(RATE)
        for _ in range(50):
            place = timeline.place(stamp, BLOCK, None)
            assert place.what == FOLLOWS and place.first_sample is None


def test_capture_times_are_exact_and_of_the_right_time_line():
    timeline = Timeline(44100)
    timeline.add(Block(0, 0, 4410, T0, "a", 0.0))
    timeline.add(Block(0, 4410, 4410, T0 + SECOND // 10, "b", 0.0))
    timeline.add(Block(1, 0, 4410, T0 + 50 * SECOND, "c", 0.0))
    assert timeline.time_of(0, 1) == T0 + 22676  # 22675.7 ns
    assert timeline.find(0, 4410).frame == "b" and timeline.find(1, 5).frame == "c"
    assert timeline.time_of(1, 8820) == T0 + 50 * SECOND + SECOND // 5  # a little beyond the end
    assert timeline.time_of(2, 0) is None and timeline.time_of(0, 10**7) is None


# -- conversions ----------------------------------------------------------------------------------

@pytest.mark.parametrize("angles", [(0.1, -0.4, 2.0), (3.0, 1.2, -1.0), (0, 0, math.pi / 2)])
def test_rotation_is_that_of_scipy(angles):
    from scipy.spatial.transform import Rotation
    ours, theirs = conversions.quaternion(*angles), Rotation.from_euler("xyz", angles).as_quat()
    np.testing.assert_allclose(np.abs(np.dot(ours, theirs)), 1.0, atol=1e-12)


# -- diagnostics ----------------------------------------------------------------------------------

def report(**fields):
    statistics = fields.pop("statistics", diagnostics.Statistics())
    values = dict(name="/robot/luseel", state="active", sample_rate=RATE, silent=0.1, publishers=1)
    return diagnostics.Report(statistics=statistics, **{**values, **fields})


def levels(report):
    from builtin_interfaces.msg import Time
    return {s.name.split(": ")[1]: (s.level, s.message) for s in report.array(Time()).status}


OK, WARN, ERROR, STALE = (DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR,
                          DiagnosticStatus.STALE)


def counted(name):
    statistics = diagnostics.Statistics()
    statistics.count(name)
    return statistics


def hopped(processing=0.1, latency=0.2):
    statistics = diagnostics.Statistics()
    for i in range(100):
        statistics.hop(0.5, processing, latency + i / 1000, latency)
    return statistics


@pytest.mark.parametrize("fields, part, level, words", [
    (dict(), "audio", OK, "16000 Hz"),
    (dict(state="inactive", silent=None), "audio", STALE, "inactive"),
    (dict(silent=7.0), "audio", STALE, "no audio for 7 s"),
    (dict(silent=7.0, statistics=lambda: counted("refused")), "audio", ERROR, "refused"),
    (dict(true_rate=44100.0), "audio", ERROR, "stamps say 44100 Hz"),
    (dict(statistics=lambda: counted("missing")), "audio", WARN, "audio lost"),
    (dict(statistics=lambda: counted("clock_jumps")), "audio", WARN, "clock jumped"),
    (dict(statistics=lambda: hopped()), "model", OK, "0.20"),
    (dict(statistics=lambda: hopped(0.45)), "model", WARN, "nearly too slow"),
    (dict(statistics=lambda: hopped(0.6)), "model", ERROR, "too slow"),
    (dict(statistics=lambda: hopped(latency=5000)), "model", WARN, "another clock"),
    (dict(failing="no result"), "model", ERROR, "no result"),
    (dict(reduced="on the CPU"), "model", WARN, "on the CPU"),
    (dict(state="unconfigured"), "model", STALE, "unconfigured"),
    (dict(queries={"q1": "dog"}), "queries", OK, "1 query"),
    (dict(statistics=lambda: counted("refused_queries")), "queries", WARN, "refused"),
])
def test_levels_mean_something(fields, part, level, words):
    if "statistics" in fields:  # made now: what is long ago counts no more
        fields = {**fields, "statistics": fields["statistics"]()}
    assert levels(report(**fields))[part][0] == level
    assert words in levels(report(**fields))[part][1]


def test_latencies_are_numpys_percentiles():
    from builtin_interfaces.msg import Time
    model = report(statistics=hopped(latency=0.2)).array(Time()).status[1]
    values = {value.key: value.value for value in model.values}
    assert values["latency since capture, p50 [s]"] == "0.249"  # of 0.200, 0.201 ... 0.299
    assert values["latency since capture, p95 [s]"] == "0.294"
    assert values["latency since capture, p99 [s]"] == "0.298"
    assert int(values["memory, resident [MB]"]) > 20


# -- a model that outlives errors -----------------------------------------------------------------

class Fake:
    """Fails as told: `errors` are raised one after the other."""

    sample_rate, window, name = RATE, 1.0, "fake"

    def __init__(self, device, errors=()):
        self.device, self.errors = device, list(errors)

    def warm_up(self):
        self.infer_window(None, ["x"])

    def infer_window(self, window, queries):
        if self.errors:
            raise self.errors.pop(0)
        return SimpleNamespace(queries=queries)


def out_of_memory():
    import torch
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("error", [out_of_memory(), MemoryError(), RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_without_memory_the_model_goes_to_the_cpu(error):
    loaded, said = [], []

    def load(device):
        loaded.append(device)
        return Fake(device, [error] if device == "cuda" else [])

    model = SteadyModel(load, "cuda", said.append)
    with pytest.raises(type(error)):
        model.infer_window(None, ["dog", "cat"])  # the stream tries fewer first
    model._model.errors.append(error)
    assert model.infer_window(None, ["dog"]).queries == ["dog"]
    assert loaded == ["cuda", "cpu"] and model.device == "cpu" and "CPU" in model.reduced
    assert len(said) == 1 and "CPU" in said[0]


@pytest.mark.parametrize("when", ["load", "warm_up"])
def test_without_memory_at_the_start_it_goes_to_the_cpu_too(when):
    def load(device):
        if device == "cuda" and when == "load":
            raise out_of_memory()
        return Fake(device, [out_of_memory()] if device == "cuda" else [])

    model = SteadyModel(load, "cuda", lambda text: None)
    model.warm_up()
    assert model.device == "cpu"


def test_on_the_cpu_there_is_nothing_left_to_do():
    model = SteadyModel(lambda device: Fake("cpu", [MemoryError()]), "", lambda text: None)
    with pytest.raises(MemoryError):
        model.infer_window(None, ["dog"])
    assert model.infer_window(None, ["dog"])


def test_a_query_that_the_model_cannot_use_is_no_reason_to_load_it_anew():
    loads = []

    def load(device):
        loads.append(device)
        return Fake("cpu", [QueryError("no such tag")] * 20)

    model = SteadyModel(load, "", lambda text: None)
    for _ in range(20):
        with pytest.raises(QueryError, match="no such tag"):
            model.infer_window(None, ["dog"])
    assert len(loads) == 1 and model.infer_window(None, ["dog"])
    assert model.capabilities.clues == {"text"} and model.microphones == 2


def test_a_model_that_fails_again_and_again_is_loaded_anew(monkeypatch):
    monkeypatch.setattr(steady_model, "RELOAD_PAUSE", 0.0)
    loads, said, reloads = [], [], []

    def load(device):
        loads.append(device)
        if len(loads) == 2:
            raise RuntimeError("the driver is gone")
        errors = [RuntimeError("device-side assert")] * 100 if len(loads) == 1 else []
        return Fake("cpu", errors)

    model = SteadyModel(load, "", said.append, lambda: reloads.append(1))
    for _ in range(steady_model.RELOAD_AFTER):
        with pytest.raises(RuntimeError, match="device-side assert"):
            model.infer_window(None, ["dog"])
    assert len(loads) == 2 and not reloads and "the driver is gone" in said[-1]
    with pytest.raises(ValueError, match="could not be loaded"):
        model.infer_window(None, ["dog"])
    assert len(loads) == 3 and reloads
    assert model.infer_window(None, ["dog"]).queries == ["dog"]
