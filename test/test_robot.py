"""The robot in the loop: base, renderer, decisions, scores, and a short closed loop."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch

sys.path.append(str(Path(__file__).parents[1] / "tools/robot"))
pytest.importorskip("pyroomacoustics")

from base import (  # noqa: E402
    DISTANCE_SCALE, MAX_SPEED, MAX_TURN, RADIUS, YAW_SCALE, Base, Floor, Pose, wrap)
from home import HOP, LEVEL, Ears, Home, Source, draw_home, shortest_way  # noqa: E402
from navigator import (  # noqa: E402
    ARRIVED, CONFIRM, DRIVE, EXPLORE, FACE, LISTEN, Bearing, Habits, Navigator, Place)
from perception import EVENT_HOP, Follower, Loudest, TrueDirection  # noqa: E402
from world import World  # noqa: E402

from luseel_model.angles import to_rep103  # noqa: E402
from training import SAMPLE_RATE, rooms  # noqa: E402
from training.heads import interaural_delay, load_head  # noqa: E402
from training.pool import ClipPool  # noqa: E402

try:
    import loop
    import trial
    ros = pytest.mark.skipif(False, reason="")
except ImportError:  # no ROS here, or no nav_msgs
    ros = pytest.mark.skip("needs ROS with nav_msgs")

EMPTY = Floor((6.0, 5.0), np.zeros((0, 4)))


@pytest.fixture(scope="module")
def head():
    return load_head("mit_kemar")


@pytest.fixture(scope="module")
def pool():
    random = np.random.default_rng(0)
    labels = ["baby crying", "dog barking", "footsteps", "guitar"]
    length = 2 * SAMPLE_RATE
    samples = (3000 * random.standard_normal(len(labels) * length)).astype(np.int16)
    return ClipPool(torch.from_numpy(samples), np.arange(len(labels)) * length,
                    [length] * len(labels), labels, labels)


def make_home(audio, place=(4.5, 2.5), start=Pose(1.5, 2.5, 0.0), rt60=0.2, size=(6.0, 5.0, 2.6),
              boxes=np.zeros((0, 4))):
    """A home with one sound, at the height of the ears."""
    from home import EAR_HEIGHT
    source = Source("baby crying", "test", np.asarray(audio, np.float32), np.zeros(1),
                    np.array([[*place, EAR_HEIGHT]]))
    return Home(1, np.array(size), rt60, np.full(7, rt60), boxes, [source], start,
                len(audio) / SAMPLE_RATE, 2.0)


def noise(seconds, seed=0):
    return LEVEL * np.random.default_rng(seed).standard_normal(
        round(seconds * SAMPLE_RATE)).astype(np.float32)


# -- base ----------------------------------------------------------------------------------------


def test_the_base_keeps_its_limits():
    base = Base(EMPTY, Pose(1.0, 1.0, 0.0), None)
    base.step(5.0, 0.0, 0.1)
    assert base.speed == pytest.approx(0.08)  # 0.8 m/s² for 0.1 s
    for _ in range(20):
        base.step(5.0, -9.0, 0.1)
    assert base.speed == pytest.approx(MAX_SPEED) and base.turn == pytest.approx(-MAX_TURN)


def test_a_circle_ends_where_it_began():
    base = Base(EMPTY, Pose(2.0, 2.0, 0.3), None)
    base.speed, base.turn = 0.4, 0.8
    for _ in range(100):
        base.step(0.4, 0.8, 2 * math.pi / 0.8 / 100)
    assert math.dist((base.pose.x, base.pose.y), (2.0, 2.0)) < 1e-3
    assert wrap(base.pose.yaw - 0.3) == pytest.approx(0.0, abs=1e-9)
    assert base.path == pytest.approx(2 * math.pi * 0.5)


def test_odometry_without_errors_is_the_truth_seen_from_the_start():
    start = Pose(1.0, 2.0, 1.2)
    base = Base(EMPTY, start, None)
    for turn in (0.3, -0.5, 0.9):
        base.step(0.4, turn, 1.0)
    assert base.odometry.x == pytest.approx(start.to_local(base.pose.x, base.pose.y)[0])
    assert base.odometry.y == pytest.approx(start.to_local(base.pose.x, base.pose.y)[1])
    assert wrap(start.yaw + base.odometry.yaw - base.pose.yaw) == pytest.approx(0, abs=1e-9)


def test_the_odometry_drifts_as_much_as_stated():
    floor = Floor((20.0, 4.0), np.zeros((0, 4)))
    ways, turns = [], []
    for seed in range(80):
        base = Base(floor, Pose(1.0, 2.0, 0.0), seed)
        base.step(0.4, 0.0, 5.0)
        ways.append(math.hypot(base.odometry.x, base.odometry.y) / base.path)
        base = Base(floor, Pose(1.0, 2.0, 0.0), seed)
        base.turn = 1.0
        base.step(0.0, 1.0, 3.0)
        turns.append(base.odometry.yaw / 3.0)
    # scale, and noise with the root of 1.9 m; the standard deviation of 80 is known to 8%
    assert np.std(ways) == pytest.approx(
        math.hypot(DISTANCE_SCALE, 0.01 / math.sqrt(1.9)), rel=0.25)
    assert np.std(turns) == pytest.approx(
        math.hypot(YAW_SCALE, math.radians(0.5) / math.sqrt(3)), rel=0.25)


def test_walls_and_furniture_stop_the_base():
    floor = Floor((6.0, 5.0), np.array([[3.0, 2.0, 4.0, 3.0]]))
    base = Base(floor, Pose(2.0, 2.5, 0.0), None)
    for _ in range(50):
        base.step(0.4, 0.0, 0.1)
    assert base.pose.x == pytest.approx(3.0 - RADIUS, abs=0.01) and base.bumps == 1
    assert floor.clearance(base.pose.x, base.pose.y) >= RADIUS - 1e-9
    base.step(-0.4, 0.0, 1.0)
    assert base.pose.x < 2.7  # it gets away again


def test_the_scan_sees_what_is_there():
    floor = Floor((6.0, 5.0), np.array([[3.0, 2.0, 4.0, 3.0]]))
    ranges = floor.scan(Pose(2.0, 2.5, math.pi / 2), rays=4, reach=2.2)  # looks to +y
    assert ranges[3] == pytest.approx(1.0)  # to its right, +x: the box
    assert ranges[1] == pytest.approx(2.0)  # to its left: the wall at x = 0
    assert np.isinf(ranges[[0, 2]]).all()  # 2.5 m are out of reach
    # A ray that hits the box aslant: at 45° from (2.5, 1.5) to its corner
    assert floor.scan(Pose(2.5, 1.5, math.pi / 4), rays=4)[0] == pytest.approx(math.sqrt(0.5))


# -- homes ---------------------------------------------------------------------------------------


def test_homes_are_drawn_by_their_seed_and_keep_the_rules(pool):
    moving = 0
    for seed in range(6):
        home = draw_home(seed, pool, seconds=10.0)
        again = draw_home(seed, pool, seconds=10.0)
        assert home.start == again.start and (home.boxes == again.boxes).all()
        assert (home.target.audio == again.target.audio).all()
        assert home.target.label == "baby crying" and 2 <= len(home.sources) <= 3
        assert home.distance(home.start, 0.0) >= 3.0 and home.shortest >= 1.9
        assert 0.2 <= home.rt60 <= 0.6
        for source in home.sources:
            for time in np.arange(0, 10, 0.5):
                assert home.floor.clearance(*source.at(time)[:2]) > 0.09
                if source is not home.target:
                    assert math.dist(source.at(time)[:2], home.target.at(0)[:2]) > 1.0
            moving += source.moves
        assert not home.target.moves
    assert moving > 0


def test_the_target_has_its_level(pool):
    audio = draw_home(3, pool, seconds=20.0).target.audio
    blocks = np.sqrt(np.square(audio.reshape(-1, 160)).mean(1))
    assert np.median(blocks[blocks > 0.3 * LEVEL]) == pytest.approx(LEVEL, rel=0.1)
    assert (blocks == 0).any()  # it pauses


def test_the_shortest_way_is_straight_or_around():
    start, goal = np.array([1.0, 2.5]), np.array([5.0, 2.5])
    assert shortest_way(EMPTY, start, goal, 1.0) == pytest.approx(3.0, abs=0.06)
    wall = Floor((6.0, 5.0), np.array([[2.9, 0.0, 3.1, 3.5]]))
    corners = [(2.9 - RADIUS, 3.5), (3.1, 3.5 + RADIUS)]  # the base's middle passes outside both
    least = math.dist(start, corners[0]) + math.dist(corners[1], goal) - 1.0
    assert least < shortest_way(wall, start, goal, 1.0) < 1.15 * least + 0.3
    closed = Floor((6.0, 5.0), np.array([[2.9, 0.0, 3.1, 5.0]]))
    assert math.isinf(shortest_way(closed, start, goal, 1.0))


# -- ears ----------------------------------------------------------------------------------------


def test_a_robot_that_stands_hears_the_plain_convolution(head):
    home = make_home(noise(1.0), place=(4.5, 3.5))
    ears = Ears(home, head, noise=False)
    heard = np.concatenate([ears.hear(k * HOP, home.start, home.start) for k in range(10)], 1)
    x, y = home.start.to_local(4.5, 3.5)
    angle = round(2 * math.degrees(home.start.yaw)) / 2
    room = rooms.Room(home.size, 0.2, home.band_rt60, np.array([1.5, 2.5, 1.1]), angle,
                      np.array([math.degrees(math.atan2(y, x))]), np.array([math.hypot(x, y)]),
                      np.zeros(1), 1.0, home.seed)
    response = rooms.render_room(room, head)[0]
    expected = scipy.signal.fftconvolve(home.target.audio[None], response, axes=1)
    error = heard - expected[:, :heard.shape[1]]
    assert np.square(error).mean() < 1e-8 * np.square(expected).mean()  # -80 dB


@pytest.mark.parametrize("yaw, azimuth", [(0, 0), (-90, 90), (90, 270), (-45, 45), (180, 180)])
def test_a_turn_moves_the_interaural_delay_as_it_should(head, yaw, azimuth):
    home = make_home(noise(0.1))  # straight ahead of the start
    ears = Ears(home, head, noise=False)
    direct = ears.response(Pose(1.5, 2.5, math.radians(yaw)), 0.0)[:, :, :60]  # 3 m: alone at first
    own = interaural_delay(head.hrir[azimuth:azimuth + 1].numpy(), SAMPLE_RATE)[0]
    assert interaural_delay(direct, SAMPLE_RATE)[0] == pytest.approx(own, abs=10e-6)


def test_the_direct_sound_falls_with_the_distance(head):
    ears = Ears(make_home(noise(0.1)), head, noise=False)
    energy = [np.square(ears.response(Pose(4.5 - d, 2.5, 0.0), 0.0)[..., :60]).sum()
              for d in (1.0, 2.0)]
    assert 10 * math.log10(energy[0] / energy[1]) == pytest.approx(6.02, abs=0.3)


def test_driving_and_turning_makes_no_clicks(head):
    tone = LEVEL * np.sin(2 * np.pi * 500 * np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE)
    home = make_home(tone, rt60=0.4)
    ears = Ears(home, head, noise=False)
    pose, heard = home.start, []
    for k in range(25):
        after = Pose(pose.x + 0.04, pose.y, pose.yaw + 0.1)
        heard.append(ears.hear(k * HOP, pose, after))
        pose = after
    moving = np.concatenate(heard, 1)[:, SAMPLE_RATE // 2:]
    frequency, power = scipy.signal.periodogram(moving, SAMPLE_RATE, window="blackmanharris")
    away = (frequency < 300) | (frequency > 700)
    assert 10 * np.log10(power[:, away].sum() / power.sum()) < -50
    # and it does change with the way: the far ear is softer at the end
    assert not np.allclose(np.square(heard[-1]).mean(1), np.square(heard[5]).mean(1), rtol=0.1)


# -- what the navigator is told ------------------------------------------------------------------


@pytest.mark.parametrize("azimuth", [40, 140, 300])
def test_the_loudest_direction_has_the_right_side_and_both_front_and_back(head, azimuth):
    random = np.random.default_rng(azimuth)
    dry = random.standard_normal(2 * SAMPLE_RATE)
    loudest = Loudest(head)
    loudest.push(scipy.signal.fftconvolve(dry[None], head.hrir[azimuth].numpy(), axes=1))
    likelihood, confidence = loudest.estimate()
    assert confidence == 1.0
    mirror = (180 - azimuth) % 360
    assert likelihood[azimuth] > 0.8 and likelihood[mirror] == pytest.approx(
        likelihood[azimuth], rel=1e-6)
    assert likelihood[(azimuth + 180) % 360] < 0.3
    assert Loudest(head).estimate()[1] == 0.0  # silence


# -- decisions -----------------------------------------------------------------------------------


class Script:
    """A navigator that is told things; time goes by in steps of 0.1 s."""

    def __init__(self, yaw=0.0):
        self.navigator, self.time, self.pose = Navigator(), 0.0, Pose(0.0, 0.0, yaw)
        self.ranges = np.full(72, np.inf)

    def tell(self, azimuth=None, place=None, std=0.1, seconds=0.1, hop=None):
        """Hear a bearing (degrees) or a place again and again -> the last command.

        The hops alone point to ``hop`` (degrees; None: to the azimuth).
        """
        degrees = azimuth if hop is None else hop
        likelihood = None
        if degrees is not None and math.isfinite(degrees):
            likelihood = np.zeros(360)
            likelihood[round(degrees) % 360] = 1.0
        for _ in range(max(1, round(seconds / 0.1))):
            self.time += 0.1
            self.navigator.odometry(self.time, self.pose)
            self.navigator.scan(self.ranges)
            if azimuth is not None:
                self.navigator.hear(Bearing(self.time, math.radians(azimuth), std,
                                            likelihood, 0.9))
            if place is not None:
                self.navigator.place(Place(self.time, *place, std))
            command = self.navigator.command(self.time)
        return command


def test_it_listens_before_it_moves():
    script = Script()
    assert script.tell(90.0, seconds=1.0) == (0.0, 0.0)
    assert script.navigator.state == LISTEN
    speed, turn = script.tell(90.0, seconds=2.0)
    assert script.navigator.state == FACE and speed == 0.0 and turn > 0.3  # to the left
    assert script.navigator.heading == pytest.approx(math.pi / 2)


def test_it_turns_to_a_sound_behind_before_it_drives():
    script = Script(yaw=1.0)
    script.tell(-170.0, seconds=3.0)
    assert script.navigator.state == FACE
    script.pose = Pose(0.0, 0.0, wrap(1.0 + math.radians(-165)))
    script.tell(-5.0)
    assert script.navigator.state == DRIVE


def test_it_drives_past_until_it_knows_the_place_then_to_it():
    script = Script()
    speed, _ = script.tell(0.0, seconds=4.0)
    assert script.navigator.state == DRIVE and speed > 0
    aside = script.navigator.heading
    assert abs(aside) == pytest.approx(Habits().side, abs=0.01)
    script.tell(0.0, place=(2.0, 0.5))
    assert script.navigator.heading == pytest.approx(math.atan2(0.5, 2.0))


def test_a_place_that_is_not_sure_is_not_driven_to():
    script = Script()
    script.tell(0.0, seconds=4.0)
    script.tell(0.0, place=(2.0, 2.0), std=1.0)
    assert abs(script.navigator.heading) == pytest.approx(Habits().side, abs=0.01)


def test_it_confirms_and_arrives():
    script = Script()
    script.tell(0.0, seconds=4.0)
    assert script.tell(0.0, place=(0.5, 0.0)) == (0.0, 0.0)
    assert script.navigator.state == CONFIRM
    script.tell(0.0, place=(0.5, 0.0), seconds=1.4)
    assert script.navigator.state == CONFIRM  # what it heard reaches back to when it drove
    script.tell(0.0, place=(0.5, 0.0), seconds=0.7)
    assert script.navigator.state == ARRIVED
    assert script.tell(180.0, place=(-3.0, 0.0), seconds=5.0) == (0.0, 0.0)


def test_a_place_that_does_not_sound_is_left():
    script = Script()
    script.tell(0.0, seconds=4.0)
    script.tell(0.0, place=(0.5, 0.0))
    script.tell(0.0, place=(0.5, 0.0), seconds=2.5, hop=150.0)
    assert script.navigator.state == LISTEN
    script.tell(0.0, place=(0.6, 0.1), seconds=3.0)  # told again, and not believed
    assert script.navigator.state == DRIVE
    script.tell(0.0, place=(0.4, 1.5))  # another one is
    assert script.navigator.heading == pytest.approx(math.atan2(1.5, 0.4))


def test_a_vague_place_counts_where_it_is_already():
    script = Script()
    script.tell(0.0, seconds=4.0)
    script.tell(0.0, place=(2.0, 0.0), std=0.7)
    assert script.navigator.state == DRIVE  # and not to it
    script.tell(0.0, place=(0.3, 0.0), std=0.7)
    assert script.navigator.state == CONFIRM
    script.tell(0.0, place=(0.3, 0.0), std=0.7, seconds=2.5, hop=150.0)
    assert script.navigator.state == ARRIVED  # nearer than the place is known, any hop will do


def test_it_does_not_arrive_where_the_place_turns_out_farther():
    script = Script()
    script.tell(0.0, seconds=4.0)
    script.tell(0.0, place=(0.5, 0.0))
    script.tell(0.0, place=(2.5, 0.0), seconds=2.0)
    assert script.navigator.state == DRIVE


def test_it_looks_elsewhere_when_nothing_is_heard():
    script = Script()
    script.tell(math.nan, seconds=5.0)
    assert script.navigator.state == LISTEN
    _, turn = script.tell(math.nan, seconds=2.0)
    assert script.navigator.state == FACE and turn != 0.0


def test_it_goes_to_where_it_may_be_when_all_listening_is_in_vain():
    script, where, seen = Script(yaw=0.5), 1.8, []
    while EXPLORE not in seen and len(seen) < 400:
        off = math.degrees(wrap(where - script.pose.yaw))  # hops point there, unsure of hearing it
        script.tell(math.nan, hop=off)
        seen.append(script.navigator.state)
        if seen[-1] == FACE:  # as it is told
            script.pose = Pose(0.0, 0.0, script.navigator.heading)
    assert seen[-1] == EXPLORE and seen.count(FACE) >= Habits().turns
    script.tell(math.nan)
    assert wrap(script.navigator.heading - where) == pytest.approx(0, abs=math.radians(16))
    script.tell(0.0, seconds=2.0)  # now it is heard
    assert script.navigator.state != EXPLORE


def test_it_does_not_drive_into_what_is_ahead():
    script = Script()
    script.tell(0.0, seconds=4.0)
    angle = wrap(np.arange(72) * np.deg2rad(5))
    with np.errstate(divide="ignore"):
        wall = np.where(np.abs(angle) < 1.2, 0.3 / np.cos(angle), np.inf)
    script.ranges = wall  # 0.3 m ahead
    speed, turn = script.tell(0.0, place=(2.0, 0.0))
    assert speed < 0.05 and abs(turn) > 0.3


def test_it_gets_around_a_box(head):
    """Closed loop in plain Python: the true place is behind a box."""
    floor = Floor((6.0, 5.0), np.array([[2.6, 2.0, 3.4, 3.0]]))
    base, navigator = Base(floor, Pose(1.0, 2.5, 0.0), None), Navigator()
    navigator.state, command = DRIVE, (0.0, 0.0)
    for step in range(400):
        base.step(*command, HOP)
        navigator.odometry(step * HOP, base.odometry)
        navigator.scan(base.scan())
        navigator.place(Place(step * HOP, 4.0, 0.0, 0.1))
        command = navigator.command(step * HOP)
        if navigator.state == ARRIVED:
            break
    assert navigator.state == ARRIVED and base.bumps == 0
    assert math.dist((base.pose.x, base.pose.y), (5.0, 2.5)) < 0.8


# -- the whole -----------------------------------------------------------------------------------


def plain_loop(world, follower, limit):
    """The loop without ROS -> whether it says that it has arrived."""
    navigator, command = Navigator(), (0.0, 0.0)
    follower.odometry(0.0, world.base.odometry)
    while world.time < limit and navigator.state != ARRIVED:
        audio = world.step(*command, navigator.state)
        if audio is not None:
            follower.source.push(audio)
        follower.odometry(world.time, world.base.odometry)
        navigator.odometry(world.time, world.base.odometry)
        navigator.scan(world.base.scan())
        if world.steps % round(EVENT_HOP / HOP) == 0:
            state, likelihood, confidence = follower.update(world.time)
            world.hear(state.stamp_s, state.azimuth, state.azimuth_std,
                       float(likelihood.argmax()), confidence, likelihood)
            known = state.id is not None
            navigator.hear(Bearing(state.stamp_s,
                                   float(to_rep103(state.azimuth)) if known else math.nan,
                                   math.radians(state.azimuth_std) if known else math.inf,
                                   likelihood, confidence))
            if state.position is not None:
                place = state.position
                world.record.positions.append((state.stamp_s, place.x, place.y, place.covariance))
                navigator.place(Place(state.stamp_s, place.x, place.y, math.sqrt(
                    float(np.linalg.eigvalsh(place.covariance)[-1]))))
        command = navigator.command(world.time)
    return navigator.state == ARRIVED


def test_the_true_direction_leads_there(pool):
    for seed in (0, 1):
        world = World(draw_home(seed, pool, seconds=60.0), None)
        score = world.score(plain_loop(world, Follower(TrueDirection(world)), 60.0))
        assert score["success"] and score["distance"] < 1.0
        assert score["bearing_error"] < 10 and score["path_ratio"] < 3.5


def test_scores():
    home = make_home(noise(2.0), place=(2.5, 2.5))
    world = World(home, None, odometry_errors=False)
    world.step(0.0, 0.0)
    world.hear(0.1, 10.0, 5.0, 200.0, 0.9, np.ones(360))  # truth 0
    world.hear(0.1, math.nan, math.nan, 90.0, 0.2, np.ones(360))  # nothing is heard: not counted
    world.record.positions.append((0.1, 1.0, 0.5, np.eye(2)))  # 0.5 m beside it
    score = world.score(True)
    assert score["success"] and score["distance"] == 1.0 and score["declared"]
    assert score["bearing_error"] == 10.0 and score["raw_error"] == 160.0
    assert score["position_error"] == 0.5 and score["confused"] == 0.0
    assert not world.score(False)["success"]
    far = World(make_home(noise(2.0)), None)
    far.step(0.0, 0.0)
    assert not far.score(True)["success"] and far.score(True)["declared"]


# -- with ROS ------------------------------------------------------------------------------------


@ros
def test_wilson():
    # statsmodels.stats.proportion.proportion_confint(..., method="wilson")
    assert trial.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-4)
    assert trial.wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-4)
    assert trial.wilson(50, 50)[1] == 1.0


@ros
def test_the_report_says_what_was_missed(tmp_path):
    settings = {"first": 0, "seconds": 60.0, "head": "mit_kemar", "model": "", "threshold": 0.7}
    keys = trial.keys_of(settings, ["luseel", "loudest"])
    base = {"declared": True, "seconds": 20.0, "path_ratio": 1.5, "bumps": 0,
            "bearing_error": 9.0, "raw_error": 20.0, "confused": 0.1, "position_error": 0.3,
            "competing": 1}
    rows = [{**base, "settings": keys[name], "seed": i, "navigator": name, "success": i < solved}
            for name, solved in (("luseel", 7), ("loudest", 6)) for i in range(10)]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"seed": 11, "navi')
    assert trial.read_rows(path, keys) == rows  # a line that was cut off is left out
    shorter = trial.keys_of({**settings, "seconds": 1.0}, ["luseel", "loudest"])
    assert trial.read_rows(path, shorter) == []
    other = trial.keys_of({**settings, "model": "lass-small"}, ["luseel", "loudest"])
    assert {row["navigator"] for row in trial.read_rows(path, other)} == {"loudest"}
    summary = trial.make_summary(rows, {**settings, "homes": 10}, ["luseel", "loudest"])
    assert len(summary["failed"]) == 2
    text = trial.markdown(summary)
    assert "| luseel | 10 | 70 (40 to 89) | 3 |" in text and "MISSED" in text
    assert "| solved within | 60 s |" in text and "| luseel | 70% |" in text
    good = [{**row, "success": row["navigator"] == "luseel"} for row in rows]
    assert trial.make_summary(good, {**settings, "homes": 10}, ["luseel", "loudest"])[
        "failed"] == []


@ros
def test_the_loop_over_dds(pool, head, tmp_path):
    """Navigator node, topics, simulated time and the bag; the direction is the true one."""
    from recorder import Recorder

    from luseel_ros.tools.bag import open_bag

    home = draw_home(0, pool, seconds=60.0)
    with loop.Loop(head, listening=False) as closed:
        recorder = Recorder(closed, "true")
        score, world = closed.run(home, "true", 60.0)
        count = recorder.save(tmp_path / "bag", world)
    assert score["success"] and score["bearing_error"] < 10
    assert world.record.states[-1] == ARRIVED and DRIVE in world.record.states
    with open_bag(tmp_path / "bag") as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    assert sum(counts.values()) == count
    assert counts["/tf"] == world.steps and counts["/odom"] >= world.steps
    assert counts["/true/events"] == world.steps // 5 and counts["/home"] > 0
    assert counts["/true/positions/target1"] == len(world.record.positions) > 0


@ros
def test_the_picture(pool, tmp_path):
    pytest.importorskip("matplotlib")
    from animate import Picture, ellipse

    width, height, angle = ellipse(np.diag([1.0, 4.0]), 0.0)
    # 95% of a plane normal distribution lie within 2.4477 standard deviations
    assert (width, height) == pytest.approx((2 * 2 * 2.4477, 2 * 2.4477), rel=1e-3)
    assert abs(angle) % 180 == pytest.approx(90.0)
    world = World(draw_home(0, pool, seconds=20.0), None)
    plain_loop(world, Follower(TrueDirection(world)), 1.0)
    picture = Picture(world.home, world.record, "test")
    picture.save_still(tmp_path / "still.png")
    picture.save_animation(tmp_path / "run.gif")
    picture.close()
    from PIL import Image
    with Image.open(tmp_path / "run.gif") as gif:
        assert min(gif.size) > 400
        shown = 0
        for frame in range(gif.n_frames):  # equal ones are kept as one that lasts longer
            gif.seek(frame)
            shown += gif.info["duration"]
    assert shown == 100 * (4 + 10)  # every third of ten steps, then a second of the last
    assert (tmp_path / "still.png").stat().st_size > 20_000
