"""The node with models of every kind, over real DDS: without direction, without sound and with four
microphones, asked by pictures, asked by several clues at once."""

import functools
import math

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy")

import ros_helpers  # noqa: E402
from ear_model import (  # noqa: E402
    RATE, AbleModel, ClueModel, EarModel, MutedModel, PictureModel, SquareModel)
from luseel.msg import Query  # noqa: E402
from ros_helpers import T0, FieldPeer  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, RegionOfInterest  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from test_node_pictures import packed, raw  # noqa: E402

from luseel_model.query import Capabilities  # noqa: E402
from luseel_ros import conversions  # noqa: E402

WAIT = 60  # [s]; a busy machine may take long
RED, BLUE = (220, 30, 20), (20, 30, 220)


def thing(colour, height=40, width=60, seed=0):
    """A picture that is mostly of that colour."""
    grain = np.random.default_rng(seed).integers(-20, 21, (height, width, 3))
    return np.clip(np.array(colour) + grain, 0, 255).astype(np.uint8)


class ModelPeer(FieldPeer):
    """A peer with cameras, and microphones of any number."""

    def __init__(self, context, **kwargs):
        super().__init__(context, **kwargs)
        self.camera = self.node.create_publisher(Image, f"{self.name}/query_image", 10)
        self.compressed = self.node.create_publisher(
            CompressedImage, f"{self.name}/query_image/compressed", 10)

    def connected(self):
        return super().connected() and self.until(
            lambda: self.camera.get_subscription_count() == 1
            and self.compressed.get_subscription_count() == 1)

    def hear(self, seconds, levels):
        """Noise of that level at each microphone."""
        for _ in range(round(seconds / 0.1)):
            audio = self.random.uniform(-1, 1, (len(levels), 1600)).astype(np.float32)
            audio *= np.float32(levels)[:, None]
            self.play_audio(audio, "array")

    def play_audio(self, audio, frame_id="ears", pause=0.02):
        """(microphones, samples), where the last audio ended, in messages of 0.1 s."""
        for start in range(0, audio.shape[1], 1600):
            stamp = conversions.ns_to_time(T0 + self.position * 62_500)
            self.audio.publish(conversions.array_to_chunk(
                audio[:, start:start + 1600], RATE, self.position,
                Header(stamp=stamp, frame_id=frame_id)))
            self.position += 1600
            self.spin(pause)

    def topics(self):
        """What the node publishes."""
        return {name.removeprefix(f"{self.name}/") for name, _ in
                self.node.get_publisher_names_and_types_by_node(self.name[1:], "/")}

    def events_of(self, query_id):
        return [e for m in self.events for e in m.events if e.query_id == query_id]

    def play_until(self, condition, **levels):
        """Play until something holds."""
        for _ in range(300):
            if condition():
                return True
            self.play(0.1, **levels)
            self.spin(0.05)
        return condition()


running = functools.partial(
    ros_helpers.running, peer_kind=ModelPeer, warm_up=False, buffer_seconds=60.0)


# -- what a model gives --------------------------------------------------------------------------

def test_without_direction_there_is_sound_and_whether_it_is_there(capfd):
    with running(MutedModel()) as (_, peer):
        assert peer.connected() and peer.request(id="dog", text="dog").success
        peer.play(1.0)
        assert peer.until(lambda: len(peer.events_of("dog")) >= 4 and peer.extracted, WAIT)
        for event in peer.events_of("dog"):
            assert event.active and event.confidence == event.presence == pytest.approx(0.8)
            assert math.isnan(event.azimuth) and math.isnan(event.azimuth_stddev)
            assert (event.direction.x, event.direction.y, event.direction.z) == (0, 0, 0)
            assert not np.any(event.likelihood)
            assert event.track_id == 0 and not event.hypotheses and math.isnan(event.track_azimuth)
        out = np.concatenate([np.reshape(c.samples, (-1, 2)) for c in peer.extracted]).T
        sent = np.concatenate(peer.sent, 1)[:, :out.shape[1]]
        np.testing.assert_allclose(out, 0.5 * sent, atol=1e-6)
        # nor does it seem as if there could ever be one
        assert not [name for name in peer.topics() if name.startswith(("pos", "markers"))]
        assert peer.node.count_subscribers("/odom") == 0
        assert not peer.markers and not peer.pose
        status = peer.status("model")
        assert {v.key: v.value for v in status.values}["takes and gives"] == (
            "2 microphones + words -> sound")
    assert "muted (2 microphones + words -> sound)" in capfd.readouterr().err


def test_the_shipped_separator_pulls_the_dog_out_of_the_mixture():
    """lass-small itself: the demo's dog and rooster, one asked for, its sound out of the node."""
    from test_shipped import scene_tracks

    from luseel_model import load_model
    tracks = scene_tracks(4.0)
    with running(load=lambda name, device: load_model(name, "cpu"), model="lass-small",
                 hop=0.5) as (_, peer):
        assert peer.connected() and peer.request(id="dog", text="dog barking").success
        mixture = tracks[0] + tracks[1]
        peer.play_audio(mixture)
        assert peer.until(lambda: len(peer.events_of("dog")) >= 8, WAIT)
        # all but what the profile holds back
        assert peer.until(lambda: sum(len(c.samples) for c in peer.extracted) > 2 * 3.7 * RATE,
                          WAIT)
        assert all(math.isnan(event.azimuth) for event in peer.events_of("dog"))
        out = np.concatenate([np.reshape(c.samples, (-1, 2)) for c in peer.extracted]).T
    dog, rooster = (track[:, RATE:out.shape[1]] for track in tracks)  # the first second fades in

    def likeness(other):
        return np.corrcoef(out[:, RATE:].ravel(), other.ravel())[0, 1]

    assert likeness(dog) > 0.75 > 0.45 > likeness(rooster), (likeness(dog), likeness(rooster))


def test_the_shipped_localizer_hears_with_four_microphones_where_each_sound_is():
    """tsel-small itself: the demo's dog and rooster as plane waves at the square, both asked for."""
    from test_shipped import scene_tracks

    from luseel_model import load_model
    from luseel_model.arrays import SQUARE
    from training.arrays.simulation import plane_wave
    places = {"dog": 40.0, "rooster": 200.0}
    parts = [torch.from_numpy(track[int(azimuth > 180)])  # what the nearer ear hears
             for track, azimuth in zip(scene_tracks(4.0), places.values())]
    mixture = sum(plane_wave(part / part.square().mean().sqrt() * 0.05, SQUARE, azimuth)
                  for part, azimuth in zip(parts, places.values())).numpy()
    model = load_model("tsel-small", "cpu")  # here, lest the peer wait for it
    with running(model, model="tsel-small", hop=0.5) as (_, peer):
        assert peer.connected()
        for query, text in (("dog", "dog barking"), ("rooster", "rooster crowing")):
            assert peer.request(id=query, text=text).success
        peer.play_audio(mixture, "array")
        assert peer.until(lambda: min(len(peer.events_of(q)) for q in places) >= 8, WAIT)
        for query, azimuth in places.items():
            events = peer.events_of(query)[3:]  # whole windows
            off = [math.remainder(math.degrees(event.azimuth) - azimuth, 360) for event in events]
            sure = max(range(len(off)), key=lambda i: events[i].confidence)
            assert abs(off[sure]) < 10 and abs(np.median(off)) < 10, (query, off)
        assert not peer.extracted and "extracted" not in peer.topics()


@pytest.mark.parametrize("array", [False, True])
def test_without_sound_four_microphones_tell_where_it_is_and_where_it_goes(tmp_path, array):
    model, path = SquareModel(), tmp_path / "ring.yaml"
    path.write_text("name: ring\npositions: [[0.1, 0.1, 0], [-0.1, 0.1, 0], [-0.1, -0.1, 0], "
                    "[0.1, -0.1, 0]]\n")
    more = {"array": str(path)} if array else {}
    with running(model, **more) as (_, peer):
        assert peer.connected() and peer.request(id="dog", text="dog").success
        peer.hear(3.0, (1.0, 0.5, 0.2, 0.5))
        assert peer.until(lambda: len(peer.events_of("dog")) >= 14, WAIT)
        event = peer.events_of("dog")[-1]
        assert event.azimuth == pytest.approx(math.pi / 4)
        assert event.track_id == 1 and event.track_azimuth == pytest.approx(math.pi / 4, abs=0.1)
        peer.hear(3.0, (0.5, 1.0, 0.5, 0.2))  # it went to the left, and on
        assert peer.until(lambda: len(peer.events_of("dog")) >= 29, WAIT)
        event = peer.events_of("dog")[-1]
        assert event.azimuth == pytest.approx(3 * math.pi / 4)
        assert event.track_azimuth == pytest.approx(3 * math.pi / 4, abs=0.2)
        assert peer.until(lambda: peer.markers and peer.pose)
        assert not peer.extracted and "extracted" not in peer.topics()
        assert (model.array is not None and model.array.microphones == 4) == array


def test_audio_of_another_number_of_channels_is_refused(capfd):
    with running(SquareModel()) as (_, peer):
        assert peer.connected() and peer.request(id="dog", text="dog").success
        peer.play(0.6)  # two ears
        assert peer.until(lambda: peer.status("audio", lambda s: any(
            v.key == "refused messages" and int(v.value) >= 12 for v in s.values)), WAIT)
        assert not peer.events
        peer.position = 0
        peer.hear(1.0, (1.0, 0.5, 0.2, 0.5))
        assert peer.until(lambda: peer.events_of("dog"), WAIT)
    text = capfd.readouterr().err
    assert "2 channel(s): 4 are expected, one from each microphone of the model's array" in text


def test_an_array_that_cannot_be_used_fails_when_configuring(tmp_path, capfd):
    wrong = tmp_path / "far.yaml"
    wrong.write_text("positions: [[0, 0, 0], [90, 0, 0]]\n")
    for model, path, words in (
            (EarModel(), "square", "model ears hears with its own two ears"),
            (SquareModel(), tmp_path / "none.yaml", "none.yaml"),
            (SquareModel(), wrong, "give the positions in metres")):
        with running(model, array=str(path)) as (_, peer):
            assert peer.state() == "unconfigured"
            assert peer.until(lambda: "can't configure" in (text := capfd.readouterr().err)
                              and words in text)


# -- what a model takes --------------------------------------------------------------------------

def test_what_a_model_cannot_use_is_refused_and_the_rest_goes_on(capfd):
    fake, picture = AbleModel(), packed(thing(RED))
    with running(fake) as (node, peer):
        assert peer.connected() and peer.request(id="dog", text="dog").success
        before = node.queries.all()
        for fields, words in (
                (dict(tag="dog"), "can't use a tag as a query: give it words"),
                (dict(text="cat", tag="cat"), "can't use a tag"),
                (dict(id="dog", text="dog", tag="dog"), "can't use a tag"),
                (dict(image=CompressedImage(data=picture)), "can't use a picture"),
                (dict(action=Query.CHANGE, id="dog", image=CompressedImage(data=picture)),
                 "can't use a picture"),
                (dict(image=CompressedImage(data=picture[:90])), "can't be read"),
                (dict(text="dog", region=RegionOfInterest(width=3, height=3)), "no picture"),
                (dict(action=Query.CHANGE, text="dog"), "needs the id")):
            answer = peer.request(**fields)
            assert not answer.success and words in answer.reason and not answer.id
        peer.commands.publish(Query(tag="dog"))
        peer.camera.publish(raw(thing(RED)))
        assert peer.until(lambda: node.statistics["refused_queries"] == 2, WAIT)
        assert node.queries.all() == before
        assert peer.play_until(lambda: len(peer.events_of("dog")) >= 3)
        assert fake.queries == ["dog"]
    assert "query refused: the model ears can't use a" in capfd.readouterr().err


def test_a_model_of_pictures_refuses_words(capfd):
    with running(PictureModel()) as (node, peer):
        assert peer.connected()
        answer = peer.request(text="dog")
        assert not answer.success
        assert "the model pictures can't use words as a query: give it a picture" in answer.reason
        peer.ask("dog")
        assert peer.until(lambda: node.statistics["refused_queries"] == 1, WAIT)
        assert not node.queries.all()
    assert "query refused: the model pictures can't use words" in capfd.readouterr().err


# -- pictures ------------------------------------------------------------------------------------

def test_what_the_camera_points_at_is_heard():
    fake = PictureModel()
    with running(fake, image_rate=60.0) as (node, peer):
        assert peer.connected()
        peer.camera.publish(raw(thing(RED), "bgr8", padding=4))
        assert peer.until(lambda: "image" in (peer.listed() or {}), WAIT)
        (listed,) = peer.lists[-1].queries
        assert listed.image.format == "60 x 40 pixels" and not listed.image.data
        assert peer.play_until(lambda: len(peer.events_of("image")) >= 6)
        event = peer.events_of("image")[-1]
        assert event.query_text == "picture" and event.active
        assert event.azimuth == pytest.approx(math.pi / 2)
        assert peer.until(lambda: peer.extracted)
        ears = np.reshape(peer.extracted[-1].samples, (-1, 2))
        assert peer.extracted[-1].query_id == "image"
        assert np.abs(ears[:, 0]).max() > 0.5 and not ears[:, 1].any()
        assert len(fake.seen) == 1  # the same picture, not one a hop
        # the same once more is nothing new
        first, shown, show = node.queries.all()["image"].query, [], node._camera._show
        node._camera._show = lambda name, clues: (show(name, clues), shown.append(name))
        peer.camera.publish(raw(thing(RED), "rgb8"))
        assert peer.until(lambda: shown, WAIT)
        assert node.queries.all()["image"].query is first
        # another one is; it comes compressed
        peer.compressed.publish(CompressedImage(format="jpeg", data=packed(thing(BLUE), "JPEG")))
        assert peer.play_until(
            lambda: peer.events_of("image")[-1].azimuth == pytest.approx(-math.pi / 2))
        assert len(fake.seen) == 2
        assert len(peer.lists) == 2  # none, and that with a picture of this size


def test_a_region_of_the_camera_and_another_id():
    both = np.concatenate([thing(RED), thing(BLUE)], 1)
    with running(PictureModel(), image_rate=60.0, image_region=[60, 0, 60, 40]) as (node, peer):
        assert peer.connected()
        peer.camera.publish(raw(both))
        assert peer.play_until(lambda: peer.events_of("image"))
        assert peer.events_of("image")[-1].azimuth == pytest.approx(-math.pi / 2)
        for value in ([0, 0, 60], [0, 0, 60, 0], [-1, 0, 60, 40]):
            assert not peer.set_parameter("image_region", value).successful
        assert not peer.set_parameter("image_query_id", "a/b").successful
        assert peer.set_parameter("image_region", [0, 0, 60, 40]).successful
        assert peer.set_parameter("image_query_id", "thing").successful
        peer.camera.publish(raw(both))
        assert peer.play_until(lambda: peer.events_of("thing"))
        assert peer.events_of("thing")[-1].azimuth == pytest.approx(math.pi / 2)
        # a region of the message's own, and of a picture that is too small for that of the camera
        answer = peer.request(id="own", image=CompressedImage(data=packed(both)),
                              region=RegionOfInterest(x_offset=60, width=60, height=40))
        assert answer.success and answer.reason == "added"
        assert peer.play_until(lambda: peer.events_of("own"))
        assert peer.events_of("own")[-1].azimuth == pytest.approx(-math.pi / 2)
        assert peer.set_parameter("image_region", [60, 0, 60, 40]).successful
        peer.camera.publish(raw(thing(RED)))
        assert peer.until(lambda: node.statistics["refused_queries"] == 1, WAIT)
        # with an empty id the camera counts no more
        assert peer.set_parameter("image_query_id", "").successful
        peer.camera.publish(raw(both))
        peer.spin(0.3)
        assert set(peer.listed()) == {"image", "thing", "own"}


def test_of_many_pictures_few_are_taken_and_the_last_one_is():
    fake = PictureModel()
    with running(fake, image_rate=5.0) as (node, peer):
        assert peer.connected()
        shown = []
        show = node._camera._show
        node._camera._show = lambda name, clues: (shown.append(clues), show(name, clues))
        for i in range(25):
            peer.camera.publish(raw(thing(RED, seed=i)))
            peer.spin(0.02)
        last = thing(BLUE, seed=99)
        peer.camera.publish(raw(last))
        assert peer.until(lambda: shown and np.array_equal(shown[-1]["image"], last), WAIT)
        assert len(shown) < 25
        peer.spin(0.5)
        assert node._camera._rest.is_canceled()
        np.testing.assert_array_equal(node.queries.all()["image"].query.image, last)


def test_pictures_that_cannot_be_used_change_nothing(capfd):
    good, short = raw(thing(RED)), raw(thing(RED))
    short.height = 41
    whole = packed(thing(RED), "JPEG")
    bad = [Image(), short, Image(encoding="rgb8", width=2**31, height=2**31, step=2**31),
           raw(np.full((40, 60, 3), 7, np.uint8)), CompressedImage(),
           CompressedImage(data=whole[:len(whole) // 2]), CompressedImage(data=b"\x00" * 5000),
           CompressedImage(data=packed(np.zeros((9000, 8, 3), np.uint8)))]
    with running(PictureModel(), image_rate=60.0) as (node, peer):
        assert peer.connected()
        peer.camera.publish(good)
        assert peer.until(lambda: "image" in (peer.listed() or {}), WAIT)
        before = node.queries.all()
        for count, message in enumerate(bad, 1):
            (peer.camera if isinstance(message, Image) else peer.compressed).publish(message)
            assert peer.until(lambda: node.statistics["refused_queries"] == count, WAIT)
        assert node.queries.all() == before
        assert peer.play_until(lambda: len(peer.events_of("image")) >= 3)
    assert "picture refused: " in capfd.readouterr().err


# -- several clues -------------------------------------------------------------------------------

def test_words_tag_and_picture_together_changed_while_it_listens():
    fake, picture = ClueModel(), packed(thing(RED))
    with running(fake) as (node, peer):
        assert peer.connected()
        answer = peer.request(id="it", text="a dog", tag="bark",
                              image=CompressedImage(data=picture), threshold=0.4)
        assert answer.success and answer.id == "it"
        assert peer.play_until(lambda: len(peer.events_of("it")) >= 3)
        assert peer.events_of("it")[-1].confidence == pytest.approx(0.75)
        (asked,) = fake.queries
        assert asked.clues == {"text", "tag", "frames"} and asked.frames.shape == (1, 40, 60, 3)
        peer.play(0.4)
        assert fake.queries[0].frames is asked.frames
        # one clue changes, the others stay
        answer = peer.request(action=Query.CHANGE, id="it", text="a wolf")
        assert answer.success and answer.reason == "changed"
        assert peer.play_until(lambda: fake.queries and fake.queries[0].text == "a wolf")
        (now,) = fake.queries
        assert now.tag == "bark" and now.frames is asked.frames
        assert peer.until(lambda: peer.listed() == {"it": "a wolf"})
        (listed,) = peer.lists[-1].queries
        assert listed.tag == "bark" and listed.image.format == "60 x 40 pixels, moving"
        assert listed.threshold == pytest.approx(0.4)
        # ADD puts another query in its place
        assert peer.request(id="it", tag="howl").reason == "replaced"
        assert peer.play_until(
            lambda: peer.events_of("it")[-1].confidence == pytest.approx(0.25))
        assert peer.events_of("it")[-1].query_text == "howl"
        assert fake.queries[0].clues == {"tag"}
        # without an id, text and tag say which is meant
        first = peer.request(text="hen", tag="bird").id
        assert peer.request(text="hen", tag="bird").id == first != "it"
        assert peer.request(text="hen").id not in (first, "it")
        assert not peer.request(action=Query.REMOVE, tag="bird").success
        assert peer.request(action=Query.REMOVE, text="hen", tag="bird").success
        assert peer.request(action=Query.REMOVE, tag="howl").success
        assert list(peer.listed().values()) == ["hen"] or peer.until(
            lambda: list(peer.listed().values()) == ["hen"])


def test_the_camera_gives_moving_pictures_beside_words():
    fake = ClueModel()
    with running(fake, image_rate=60.0, image_frames_seconds=1.0, image_query_id="it") as (
            node, peer):
        assert peer.connected() and peer.request(id="it", text="a dog").success

        def frames():
            found = node.queries.all()["it"].query.frames
            return [] if found is None else found

        for i in range(8):  # four in a second, by their stamps
            message = raw(thing(RED, seed=i))
            message.header.stamp = conversions.ns_to_time(T0 + i * 250_000_000)
            peer.camera.publish(message)
            newest = thing(RED, seed=i)
            assert peer.until(lambda: len(frames()) and np.array_equal(frames()[-1], newest), WAIT)
        query = node.queries.all()["it"].query
        np.testing.assert_array_equal(
            query.frames, [thing(RED, seed=i) for i in (3, 4, 5, 6, 7)])
        assert query.frame_rate == pytest.approx(4) and query.text == "a dog"
        assert peer.play_until(lambda: peer.events_of("it")
                               and peer.events_of("it")[-1].confidence == pytest.approx(0.5))
        assert peer.events_of("it")[-1].query_text == "a dog"
        assert fake.queries[0].frames is query.frames


def test_a_picture_of_a_message_beside_the_moving_ones_of_the_camera():
    class Both(ClueModel):
        capabilities = Capabilities(ClueModel.capabilities.clues | {"image"}, together=True)

    fake = Both()
    with running(fake, image_query_id="it") as (node, peer):
        assert peer.connected()
        picture = CompressedImage(data=packed(thing(RED)))
        assert peer.request(id="it", tag="bark", image=picture).success
        peer.compressed.publish(CompressedImage(data=packed(thing(BLUE))))
        assert peer.play_until(lambda: peer.events_of("it")
                               and peer.events_of("it")[-1].confidence == pytest.approx(0.75))
        (asked,) = fake.queries
        np.testing.assert_array_equal(asked.image, thing(RED))
        np.testing.assert_array_equal(asked.frames, thing(BLUE)[None])
        assert asked.tag == "bark"
