"""The node with the shipped checkpoints that hear what a picture shows, over real DDS: the demo's
dog and rooster at once, each asked for with drawings that no training saw."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy")

import ros_helpers  # noqa: E402
from ear_model import RATE  # noqa: E402
from luseel.msg import Query  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402
from test_node_models import WAIT, ModelPeer  # noqa: E402
from test_node_pictures import raw  # noqa: E402
from test_shipped import scene_tracks  # noqa: E402

from luseel_model import load_model  # noqa: E402
from luseel_model.image_files import read_image  # noqa: E402
from luseel_model.multi_clue.plot import save_attention  # noqa: E402
from luseel_model.query import Query as Asked  # noqa: E402
from training.metrics import si_snr_per_ear_mean  # noqa: E402

DOG, ROOSTER = (Path(__file__).parent / "pictures" / f"{name}.png" for name in ("dog", "rooster"))
SECONDS, HOP = 4.0, 0.5


def quality(estimate, truth):
    """SI-SDR in dB, the mean of both ears."""
    return float(si_snr_per_ear_mean(*(torch.from_numpy(np.ascontiguousarray(x))[None]
                                       for x in (estimate, truth))))


class ScenePeer(ModelPeer):
    """A peer that plays the demo's dog and rooster, both at once."""

    def __init__(self, context, **kwargs):
        super().__init__(context, **kwargs)
        self.tracks, self.parts = scene_tracks(SECONDS), 0

    def connected(self):  # reading the checkpoint takes long on a busy machine
        return any(super(ScenePeer, self).connected() for _ in range(4))

    def play_part(self, query_id):
        """The scene once more from its beginning, until all of it was heard; the tracks and the
        extraction of a stretch of it in which the present query alone counts.

        Returns:
            dog, rooster, mixture, extraction, each (2, samples).
        """
        mixture, begin = self.tracks[0] + self.tracks[1], self.position
        self.play_audio(mixture, pause=0.01)
        self.parts += 1
        hops = round(self.parts * SECONDS / HOP)
        assert self.until(lambda: len(self.events_of(query_id)) >= hops, WAIT)
        # the first second fades from what was asked for before; the profile holds the last back
        first, last = RATE, round((SECONDS - 0.5) * RATE)
        assert self.until(lambda: self.end_of_extracted(query_id) >= begin + last, WAIT)
        out = np.zeros((2, self.position), np.float32)
        for chunk in self.extracted:
            ears = np.reshape(chunk.samples, (-1, 2)).T
            out[:, chunk.first_sample:chunk.first_sample + ears.shape[1]] = ears
        dog, rooster, mixture = (x[:, first:last] for x in (*self.tracks, mixture))
        return dog, rooster, mixture, out[:, begin + first:begin + last]

    def end_of_extracted(self, query_id):
        assert all(chunk.query_id == query_id for chunk in self.extracted)
        return max((c.first_sample + len(c.samples) // 2 for c in self.extracted), default=0)


running = functools.partial(
    ros_helpers.running, load=lambda name, device: load_model(name, "cpu"), peer_kind=ScenePeer,
    warm_up=False, buffer_seconds=60.0, hop=HOP)


def assert_nearer(out, shown, other, mixture):
    """The extraction is the shown thing's sound, and not the other one's."""
    found = quality(out, shown) - quality(mixture, shown), quality(out, shown) - quality(out, other)
    assert found[0] > 0.5 and found[1] > 3.0, found


def test_the_camera_shows_a_dog_then_a_rooster_and_each_is_heard(capfd):
    with running(model="id-uss-small", image_rate=60.0) as (node, peer):
        assert peer.connected()
        peer.camera.publish(raw(read_image(DOG)))
        assert peer.until(lambda: "image" in (peer.listed() or {}), WAIT)
        before = node.queries.all()
        # half a file is refused, and the dog still counts
        peer.compressed.publish(CompressedImage(format="png", data=ROOSTER.read_bytes()[:2000]))
        status = peer.status("queries", lambda s: "refused" in s.message, WAIT)
        assert status and {v.key: v.value for v in status.values}["refused"] == "1"
        assert node.queries.all() == before
        dog, rooster, mixture, out = peer.play_part("image")
        assert_nearer(out, dog, rooster, mixture)
        # the wrong picture for the dog extracts the other sound
        peer.compressed.publish(CompressedImage(format="png", data=ROOSTER.read_bytes()))
        assert peer.until(lambda: node.queries.all() != before, WAIT)
        dog, rooster, mixture, out = peer.play_part("image")
        assert_nearer(out, rooster, dog, mixture)
        events = peer.events_of("image")
        assert all(np.isfinite(event.azimuth) for event in events)
        assert peer.state() == "active"
    assert "picture refused: the picture can't be read" in capfd.readouterr().err


def test_tag_words_and_picture_under_one_id_changed_while_it_listens(tmp_path):
    with running(model="multi-clue-small") as (node, peer):
        assert peer.connected()
        assert peer.request(id="it", tag="dog barking", text="a dog barks",
                            image=CompressedImage(data=DOG.read_bytes())).reason == "added"
        dog, rooster, mixture, out = peer.play_part("it")
        assert_nearer(out, dog, rooster, mixture)
        answer = peer.request(action=Query.CHANGE, id="it", tag="rooster crowing",
                              text="a rooster crows",
                              image=CompressedImage(data=ROOSTER.read_bytes()))
        assert answer.success and answer.reason == "changed"
        asked = node.queries.all()["it"].query
        assert asked.clues == {"tag", "text", "image"}
        dog, rooster, mixture, out = peer.play_part("it")
        assert_nearer(out, rooster, dog, mixture)
        # one clue is left, of the other sound
        assert peer.request(id="it", tag="dog barking").reason == "replaced"
        assert node.queries.all()["it"].query.clues == {"tag"}
        dog, rooster, mixture, out = peer.play_part("it")
        assert_nearer(out, dog, rooster, mixture)
        assert peer.state() == "active"

        attention = node._model.attention(peer.tracks[0][:, :2 * RATE], asked)
        tag = node._model.attention(peer.tracks[0][:, :2 * RATE], Asked(tag="dog barking"))
    assert set(attention.clues) == {"tag", "text", "video"}
    np.testing.assert_allclose(attention.weights.sum(1), 1, atol=1e-4)
    assert all(attention.of_clue(name).mean() > 0.001 for name in ("tag", "text", "video"))
    np.testing.assert_allclose(tag.of_clue("tag"), 1, atol=1e-4)
    save_attention(attention, tmp_path / "attention.png", "rooster crowing")
    assert read_image(tmp_path / "attention.png").shape[1] > 500
