"""A run as a rosbag2 for RViz: all topics of the loop, the transforms, and the home as markers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from geometry_msgs.msg import Point, PoseWithCovarianceStamped, Twist
from home import QUERY, Home
from luseel.msg import AudioChunk, SoundEventArray
from nav_msgs.msg import Odometry
from rclpy.serialization import serialize_message
from sensor_msgs.msg import LaserScan
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray
from world import World

from luseel_ros import conversions
from luseel_ros.tools.bag import _qos, _rosbags, typestore

HEIGHT = 0.6  # [m] of walls and furniture in RViz


class Recorder:
    """Hears the next run of a loop.

    Args:
        loop: that runs it.
        navigator: with which.
    """

    def __init__(self, loop, navigator: str):
        self._loop = loop
        self._messages: list[tuple[int, str, str, bytes]] = []
        source, query = f"/{navigator}", loop.next_query
        self._subscriptions = [
            loop.node.create_subscription(
                kind, topic, lambda data, t=topic, n=name: self._add(t, n, data), 100, raw=True)
            for kind, topic, name in (
                (AudioChunk, "/audio", "luseel/msg/AudioChunk"),
                (Odometry, "/odom", "nav_msgs/msg/Odometry"),
                (LaserScan, "/scan", "sensor_msgs/msg/LaserScan"),
                (Twist, "/cmd_vel", "geometry_msgs/msg/Twist"),
                (SoundEventArray, f"{source}/events", "luseel/msg/SoundEventArray"),
                (MarkerArray, f"{source}/markers", "visualization_msgs/msg/MarkerArray"),
                (PoseWithCovarianceStamped, f"{source}/positions/{query}",
                 "geometry_msgs/msg/PoseWithCovarianceStamped"))]

    def _add(self, topic: str, kind: str, data: bytes) -> None:
        self._messages.append((self._loop.now_ns, topic, kind, bytes(data)))

    def save(self, path: str | Path, world: World) -> int:
        """Write the bag (a folder; one that is there is replaced) -> number of messages."""
        path = Path(path)
        if path.exists() and not (path / "metadata.yaml").is_file():
            raise FileExistsError(f"{path} is there already, and is no bag: name another folder")
        if path.exists():
            shutil.rmtree(path)
        store, rosbags = typestore(), _rosbags()
        begin = self._loop.begin_ns
        messages = [*self._messages, *self._transforms(store, world, begin),
                    *self._scene(world, begin)]
        messages.sort(key=lambda entry: entry[0])
        connections = {}
        with rosbags.rosbag2.Writer(
                path, version=9, storage_plugin=rosbags.rosbag2.StoragePlugin.MCAP) as writer:
            for moment, topic, kind, data in messages:
                if topic not in connections:
                    connections[topic] = writer.add_connection(
                        topic, kind, typestore=store,
                        offered_qos_profiles=[_qos(latched=topic in ("/tf_static",))])
                writer.write(connections[topic], moment, data)
        return len(messages)

    def _transforms(self, store, world: World, begin: int):
        """map to odom (true, without the drift) once, odom to base_link at each step."""
        types = store.types
        name = "tf2_msgs/msg/TFMessage"

        def message(moment: int, parent: str, child: str, pose) -> bytes:
            x, y, yaw = pose
            turn = conversions.quaternion(0.0, 0.0, yaw)
            stamped = types["geometry_msgs/msg/TransformStamped"](
                header=types["std_msgs/msg/Header"](
                    frame_id=parent, stamp=types["builtin_interfaces/msg/Time"](
                        sec=moment // 10**9, nanosec=moment % 10**9)),
                child_frame_id=child, transform=types["geometry_msgs/msg/Transform"](
                    translation=types["geometry_msgs/msg/Vector3"](x=x, y=y, z=0.0),
                    rotation=types["geometry_msgs/msg/Quaternion"](
                        x=turn[0], y=turn[1], z=turn[2], w=turn[3])))
            return bytes(store.serialize_cdr(types[name](transforms=[stamped]), name))

        start = world.home.start
        yield begin, "/tf_static", name, message(
            begin, "map", "odom", (start.x, start.y, start.yaw))
        for time, pose in zip(world.record.times, world.record.odometry):
            moment = begin + round(time * 1e9)
            yield moment, "/tf", name, message(moment, "odom", "base_link", pose)

    def _scene(self, world: World, begin: int):
        """Walls, furniture and sources, each second and whenever a source moves or turns silent."""
        last = None
        for time, places, sounding in zip(world.record.times, world.record.places,
                                          world.record.sounding):
            now = np.round(places, 1).tolist(), sounding, int(time)
            if now == last:
                continue
            last, moment = now, begin + round(time * 1e9)
            yield moment, "/home", "visualization_msgs/msg/MarkerArray", serialize_message(
                MarkerArray(markers=home_markers(world.home, places, sounding, moment)))


def home_markers(home: Home, places: np.ndarray, sounding, moment: int) -> list[Marker]:
    """The home for RViz, in the frame map.

    Args:
        places: (P, 2) of the sources, metres.
        sounding: (P,) which of them are heard.
        moment: nanoseconds.
    """
    header = Header(frame_id="map", stamp=conversions.ns_to_time(moment))
    length, width = (float(v) for v in home.size[:2])
    markers = []

    def add(kind: int, namespace: str, colour, scale, place=(0.0, 0.0, 0.0)) -> Marker:
        marker = Marker(header=header, ns=namespace, id=len(markers), type=kind,
                        action=Marker.ADD)
        marker.pose.orientation.w = 1.0
        p, s = marker.pose.position, marker.scale
        p.x, p.y, p.z = (float(v) for v in place)
        s.x, s.y, s.z = (float(v) for v in scale)
        marker.color = ColorRGBA(**dict(zip("rgba", colour)))
        markers.append(marker)
        return marker

    walls = add(Marker.LINE_STRIP, "walls", (0.3, 0.3, 0.3, 1.0), (0.05, 0, 0))
    walls.points = [Point(x=x, y=y) for x, y in (
        (0.0, 0.0), (length, 0.0), (length, width), (0.0, width), (0.0, 0.0))]
    for x0, y0, x1, y1 in home.boxes:
        add(Marker.CUBE, "furniture", (0.7, 0.65, 0.6, 1.0), (x1 - x0, y1 - y0, HEIGHT),
            ((x0 + x1) / 2, (y0 + y1) / 2, HEIGHT / 2))
    for i, (source, place, sounds) in enumerate(zip(home.sources, places, sounding)):
        colour = (0.84, 0.37, 0.0) if i == 0 else (0.5, 0.5, 0.5)
        add(Marker.SPHERE, "sources", (*colour, 1.0 if sounds else 0.3), (0.3, 0.3, 0.3),
            (*place, 0.3))
        add(Marker.TEXT_VIEW_FACING, "names", (1.0, 1.0, 1.0, 1.0), (0, 0, 0.2),
            (*place, 0.7)).text = source.label + (f" (asked for: {QUERY})" if i == 0 else "")
    return markers
