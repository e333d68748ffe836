"""Runs the node as a process that ends within a second of SIGINT or SIGTERM, whatever it does.

Nothing heavy is imported before the handlers are set: a signal that comes while torch is being
loaded counts as well. Python handles a signal only between two steps of its main thread, which may
be inside a long call of the network; so a thread waits for the signals, through the file
descriptor that the interpreter writes to at once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback

GRACE = 0.5  # [s] for an orderly end; then the process ends as it is


class Signals:
    """Set once a signal has asked the process to end.

    Attributes:
        stopping: set by the first SIGINT or SIGTERM.
    """

    def __init__(self):
        self.stopping = threading.Event()
        self._on_stop = None
        self._ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        self._mouth = mouth
        signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # the thread does it
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def call(self, function) -> None:
        """What the first signal calls, from a thread of its own. Until then it ends the process."""
        self._on_stop = function

    def _watch(self) -> None:
        while not self.stopping.is_set():
            numbers = self._ear.recv(16)
            if any(n in (signal.SIGINT, signal.SIGTERM) for n in numbers):
                self.stopping.set()
        if self._on_stop is None:
            os._exit(0)  # there is no node yet
        end = threading.Timer(GRACE, os._exit, (0,))  # nothing of worth is lost
        end.daemon = True
        end.start()
        self._on_stop()


def main(args: list[str] | None = None) -> None:
    """Run the node until SIGINT or SIGTERM."""
    signals = Signals()
    status = 0
    try:
        import rclpy
        from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
        from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from .node import LuseelNode
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = None
        try:
            node = LuseelNode()
            executor = SingleThreadedExecutor()
            executor.add_node(node)
            signals.call(executor.wake)
            while rclpy.ok() and not signals.stopping.is_set():
                try:
                    executor.spin_once()
                except ExternalShutdownException:
                    break
                except Exception:  # in a callback; the next message may be a better one
                    node.get_logger().error(traceback.format_exc())
                    time.sleep(0.05)
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            status = 1
            print(f"luseel_node: {error}", file=sys.stderr)
        finally:
            if node is not None:
                node.destroy_node()
            rclpy.try_shutdown()
    except BaseException:
        if not signals.stopping.is_set():  # else it is what ending in the middle brings about
            status = 1
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The interpreter's own end would look at each object of torch and transformers: seconds
        # on a busy machine, for memory that goes back to the system anyway.
        os._exit(status)


if __name__ == "__main__":
    main()
