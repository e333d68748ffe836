"""Pictures of a camera as part of a query."""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping

from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from luseel_model.errors import LuseelError

from . import conversions
from .pictures import Frames, decode_compressed, decode_image, prepare


class Camera:
    """Takes pictures from `~/query_image` and `~/query_image/compressed`.

    Most of what a camera sends is never decoded: at most `image_rate` pictures in a second are, the
    newest of what came each time. The last one of all counts, soon.

    Args:
        node: whose topics these are; its parameters say what to do with the pictures.
        values: its parameters, for those that only count when it is configured.
        show: called with the id of the query and the fields of a `Query` that change.
        refuse: called with the reason why a picture can't be used.
        moving: the model takes moving pictures.
    """

    def __init__(self, node, values: Mapping[str, Any],
                 show: Callable[[str, Mapping[str, Any]], None], refuse: Callable[[str], None],
                 moving: bool):
        self._node, self._show, self._refuse = node, show, refuse
        self._frames = Frames() if moving else None
        self._waiting: Image | CompressedImage | None = None
        qos = QoSProfile(
            depth=1, reliability=ReliabilityPolicy[values["image_reliability"].upper()])
        self._subscriptions = [
            node.create_subscription(Image, "~/query_image", self._on_picture, qos),
            node.create_subscription(
                CompressedImage, "~/query_image/compressed", self._on_picture, qos)]
        # Runs while pictures come; by the steady clock: simulated time may stand still.
        self._rest = node.create_timer(
            1.0, self._take_waiting, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._rest.cancel()

    def destroy(self) -> None:
        """Take the topics off the graph."""
        self._node.destroy_timer(self._rest)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _value(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def _on_picture(self, message: Image | CompressedImage) -> None:
        self._waiting = message
        if self._rest.is_canceled():
            self._rest.reset()
            self._take_waiting()

    def _take_waiting(self) -> None:
        message, self._waiting = self._waiting, None
        if message is None:
            self._rest.cancel()  # the next one is taken at once
            return
        self._rest.timer_period_ns = round(1e9 / self._value("image_rate"))
        query_id = self._value("image_query_id")
        if not query_id:
            return
        try:
            decode = decode_image if isinstance(message, Image) else decode_compressed
            picture = prepare(decode(message), self._value("image_region"))
        except LuseelError as error:
            self._refuse(f"picture refused: {error}")
            return
        if self._frames is None:
            self._show(query_id, {"image": picture})
            return
        stamp = conversions.time_to_ns(message.header.stamp) or time.time_ns()
        frames, rate = self._frames.add(stamp, picture, self._value("image_frames_seconds"))
        self._show(query_id, {"frames": frames, "frame_rate": rate})
