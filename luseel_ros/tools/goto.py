"""Sends a navigator to a sound: ``python3 -m luseel_ros.tools.goto baby --distance 0.8``.

An example of what to do with the node's positions. It listens to ``/luseel/positions/<id>`` and
``odom`` and publishes ``geometry_msgs/PoseStamped`` on ``goal_pose``, which nav2's bt_navigator
takes (RViz's "2D Goal Pose" sends the same). The goal lies `distance` metres before the sound, as
seen from the robot, and looks at it; a new one is sent when it has moved by more than `step`.
docs/tracking.md says more.
"""

from __future__ import annotations

import argparse
import math
import sys

import rclpy
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

Pose2D = tuple[float, float, float]


def goal_before(sound: tuple[float, float], robot: tuple[float, float],
                distance: float) -> Pose2D:
    """Where to stand to hear a sound: x, y [m] and yaw [rad], all in one frame.

    The place `distance` metres before the sound on the line from the robot, looking at it; where
    the robot is nearer already, the place where it is.
    """
    dx, dy = sound[0] - robot[0], sound[1] - robot[1]
    way = math.hypot(dx, dy)
    part = max(0.0, 1 - distance / way) if way > 0 else 0.0
    return robot[0] + part * dx, robot[1] + part * dy, math.atan2(dy, dx)


class GoTo(Node):
    """See the module.

    Args:
        query_id: of the query whose sound to go to.
        distance: metres to stop before it.
        step: metres, and `turn`: radians, by which a goal must differ from the last one sent.
        max_std: metres; less certain positions are waited out.
        source: name of the luseel node.
    """

    def __init__(self, query_id: str, distance: float = 0.8, step: float = 0.3, turn: float = 0.5,
                 max_std: float = 0.7, source: str = "/luseel", **kwargs):
        super().__init__("luseel_goto", **kwargs)
        self._distance, self._step, self._turn, self._max_std = distance, step, turn, max_std
        self._robot: tuple[float, float] | None = None
        self._frame = ""
        self._sent: Pose2D | None = None
        self._goals = self.create_publisher(PoseStamped, "goal_pose", 10)
        self.create_subscription(Odometry, "odom", self._on_odometry, QoSProfile(
            depth=10, reliability=ReliabilityPolicy.BEST_EFFORT))
        self.create_subscription(PoseWithCovarianceStamped, f"{source}/positions/{query_id}",
                                 self._on_position, 10)

    def _on_odometry(self, message: Odometry) -> None:
        where = message.pose.pose.position
        self._robot, self._frame = (where.x, where.y), message.header.frame_id

    def _on_position(self, message: PoseWithCovarianceStamped) -> None:
        if self._robot is None or message.header.frame_id != self._frame:
            return
        xx, xy, yy = (message.pose.covariance[i] for i in (0, 1, 7))
        worst = 0.5 * (xx + yy) + math.hypot(0.5 * (xx - yy), xy)  # the larger eigenvalue
        if worst > self._max_std ** 2:
            return
        where = message.pose.pose.position
        goal = goal_before((where.x, where.y), self._robot, self._distance)
        if self._sent is not None:
            turned = math.remainder(goal[2] - self._sent[2], 2 * math.pi)
            if math.dist(goal[:2], self._sent[:2]) < self._step and abs(turned) < self._turn:
                return
        self._sent = goal
        out = PoseStamped()
        out.header.stamp, out.header.frame_id = message.header.stamp, self._frame
        out.pose.position.x, out.pose.position.y = goal[:2]
        out.pose.orientation.z = math.sin(goal[2] / 2)
        out.pose.orientation.w = math.cos(goal[2] / 2)
        self._goals.publish(out)
        self.get_logger().info(
            f"goal: {goal[0]:.2f}, {goal[1]:.2f} m in {self._frame}, the sound is within "
            f"{math.sqrt(worst):.2f} m of {where.x:.2f}, {where.y:.2f}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status. ROS arguments (remapping) follow --ros-args."""
    parser = argparse.ArgumentParser(prog="python3 -m luseel_ros.tools.goto",
                                     description="Send a navigator to a sound.")
    parser.add_argument("query_id", help="id of the query, as in ~/queries")
    parser.add_argument("--distance", type=float, default=0.8, help="metres to stop before it "
                        "(default: %(default)s)")
    parser.add_argument("--max-std", type=float, default=0.7, help="metres; less certain positions "
                        "are waited out (default: %(default)s)")
    parser.add_argument("--source", default="/luseel", help="name of the luseel node")
    arguments = sys.argv[1:] if arguments is None else arguments
    own = arguments[:arguments.index("--ros-args")] if "--ros-args" in arguments else arguments
    options = parser.parse_args(own)
    rclpy.init(args=arguments)
    node = GoTo(options.query_id, options.distance, max_std=options.max_std,
                source=options.source)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
