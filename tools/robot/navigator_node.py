"""The navigator as a ROS 2 node: faces and approaches a queried sound and stops within a metre.

    python tools/robot/navigator_node.py --ros-args -p query_id:=baby

It hears `events` (luseel/msg/SoundEventArray) and `positions/<query id>` of luseel_node, `odom`
(nav_msgs/msg/Odometry) and `scan` (sensor_msgs/msg/LaserScan, all around), and nothing else. It
answers each message of `odom` with one on `cmd_vel` (geometry_msgs/msg/Twist), and says on `state`
(std_msgs/msg/String) what it is doing; "arrived" ends it. All angles of the events are taken to be
in the frame of the base: the microphones are over its middle and look ahead.
"""

from __future__ import annotations

import math

import numpy as np
import rclpy
from base import Pose
from geometry_msgs.msg import PoseWithCovarianceStamped, Twist
from luseel.msg import SoundEventArray
from nav_msgs.msg import Odometry
from navigator import Bearing, Navigator, Place
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import LaserScan
from std_msgs.msg import String

NANO = 1e-9


def seconds(stamp) -> float:
    """A stamp in seconds."""
    return stamp.sec + NANO * stamp.nanosec


class NavigatorNode(Node):
    """See the module.

    Args:
        source: node that says where the sound is.
        query_id: what to approach.
        kwargs: for `rclpy.node.Node`.
    """

    def __init__(self, source: str = "/luseel", query_id: str = "", **kwargs):
        super().__init__("navigator", **kwargs)
        source = self.declare_parameter("source", source).value
        self.query_id = self.declare_parameter("query_id", query_id).value
        self.navigator = Navigator()
        self.answered = 0  # messages of odom
        self._command = self.create_publisher(Twist, "cmd_vel", 10)
        self._state = self.create_publisher(String, "~/state", 10)
        self._said = ""
        self.create_subscription(SoundEventArray, f"{source}/events", self._on_events, 10)
        self.create_subscription(PoseWithCovarianceStamped,
                                 f"{source}/positions/{self.query_id}", self._on_position, 10)
        self.create_subscription(LaserScan, "scan", self._on_scan, qos_profile_sensor_data)
        self.create_subscription(Odometry, "odom", self._on_odometry, qos_profile_sensor_data)

    def _on_events(self, message: SoundEventArray) -> None:
        for event in message.events:
            if event.query_id == self.query_id:
                known = event.track_id != 0
                self.navigator.hear(Bearing(
                    seconds(message.header.stamp),
                    event.track_azimuth if known else math.nan,
                    event.track_azimuth_stddev if known else math.inf,
                    np.array(event.likelihood), event.confidence))

    def _on_position(self, message: PoseWithCovarianceStamped) -> None:
        covariance = np.reshape(message.pose.covariance, (6, 6))[:2, :2]
        place = message.pose.pose.position
        self.navigator.place(Place(seconds(message.header.stamp), place.x, place.y,
                                   math.sqrt(float(np.linalg.eigvalsh(covariance)[-1]))))

    def _on_scan(self, message: LaserScan) -> None:
        if message.angle_min == 0.0:  # ray i at i times the increment, once round
            self.navigator.scan(np.array(message.ranges))

    def _on_odometry(self, message: Odometry) -> None:
        place, turn = message.pose.pose.position, message.pose.pose.orientation
        yaw = math.atan2(2 * (turn.w * turn.z + turn.x * turn.y),
                         1 - 2 * (turn.y ** 2 + turn.z ** 2))
        time = seconds(message.header.stamp)
        self.navigator.odometry(time, Pose(place.x, place.y, yaw))
        command = Twist()
        command.linear.x, command.angular.z = self.navigator.command(time)
        if self.navigator.state != self._said:
            self._said = self.navigator.state
            self._state.publish(String(data=self._said))
        self.answered += 1
        self._command.publish(command)


def main() -> None:
    """Run it until Ctrl-C."""
    rclpy.init()
    node = NavigatorNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
