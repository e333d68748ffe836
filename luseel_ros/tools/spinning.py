"""A node for a tool that does something else in its main thread."""

from __future__ import annotations

import contextlib
import threading
from typing import Iterator


@contextlib.contextmanager
def spinning_node(name: str) -> Iterator:
    """An rclpy node, the only one of this process, whose callbacks run in a thread until the end.

    Signals are left to the caller. What the callbacks need must be there before what brings them
    about is created.
    """
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node, executor, thread = None, None, None
    try:
        node, executor = rclpy.create_node(name), SingleThreadedExecutor()
        executor.add_node(node)

        def spin():
            with contextlib.suppress(ExternalShutdownException):
                executor.spin()

        thread = threading.Thread(target=spin, name="ros", daemon=True)
        thread.start()
        yield node
    finally:
        if executor is not None:
            executor.shutdown(timeout_sec=1.0)
        if thread is not None:  # still waiting on what is about to be destroyed, it would abort
            thread.join(timeout=2.0)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
