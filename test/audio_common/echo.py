"""The node side of cases.py, in a process of its own: what a reader delivers, writers send back.

    python echo.py KIND TOPIC...

For each topic: `TOPIC` in, `TOPIC/out` back as the same kind, `TOPIC/chunk` as luseel/AudioChunk
(float32, nothing lost) and `TOPIC/refused` with the reasons. Says "ready" once others listen to all
of them; ends with the end of its input.
"""
import gc
import sys
import threading

import rclpy
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from luseel_ros.audio_io import AudioReader, AudioWriter

QOS = QoSProfile(depth=1000)


class Echo:
    """Of one topic."""

    def __init__(self, node, kind, topic):
        options = {}
        if topic == "declared":
            options = dict(sample_format="S16LE", sample_rate=16000, channels=2)
        if topic == "strict":
            options = dict(sample_rate=16000, channels=2)
        out = dict(sample_format="F32LE", stamped=False) if topic == "unstamped_out" else {}
        self.back = [AudioWriter(node, kind, f"{topic}/out", QOS, **out),
                     AudioWriter(node, "luseel", f"{topic}/chunk", QOS)]
        self.reasons = node.create_publisher(String, f"{topic}/refused", QOS)
        self.reader = AudioReader(node, kind, topic, QOS, self.deliver, self.refuse, **options)
        self.publishers = [self.reasons] + [writer._publisher for writer in self.back]

    def deliver(self, block):
        for writer in self.back:
            writer.publish(block)

    def refuse(self, reason):
        self.reasons.publish(String(data=reason))


def main():
    kind, *topics = sys.argv[1:]
    rclpy.init()
    node = rclpy.create_node("echo")
    echoes = [Echo(node, kind, topic) for topic in topics]
    threading.Thread(  # rclpy ends with the input of this process
        target=lambda: (sys.stdin.read(), rclpy.try_shutdown()), daemon=True).start()
    ready = False
    while rclpy.ok():
        rclpy.spin_once(node, timeout_sec=0.1)
        if not ready and all(publisher.get_subscription_count() for echo in echoes
                             for publisher in echo.publishers):
            ready = True
            print("ready", flush=True)
    print("end", flush=True)


if __name__ == "__main__":
    try:
        main()
    except rclpy.executors.ExternalShutdownException:
        print("end", flush=True)
    gc.freeze()  # else the interpreter looks at each object of torch once more
