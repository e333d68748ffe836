"""Messages that are taken in a thread of their own, apart from whatever executor spins the node.

Before each wait, and twice for each message, an executor of rclpy goes through all that the node
has: services, timers, events of publishers. For messages that come 10 to 100 times a second that
costs more than all that is done with them (docs/node.md, Computing time). This thread waits for
its subscriptions only, the way `rclpy.wait_for_message` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from typing import Callable

from rclpy.callback_groups import CallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation

PAUSE = 0.05  # [s] after a callback that raised
MOST = 100  # messages of a subscription at once, until the others have their turn


class SubscriptionThread(CallbackGroup):
    """A callback group whose messages are handled, one at a time, in this thread and no other.

    Executors ask a group what they may run: they are told to leave its subscriptions alone, and
    their events (an incompatible quality of service), too: whoever waits for those is woken by
    each message.

    Args:
        node: an rclpy node. Callbacks of its subscriptions get the message alone.
        name: of the thread.
    """

    def __init__(self, node, name: str):
        super().__init__()
        self._node = node
        self._stop = threading.Event()
        self._guard = GuardCondition(callback=None, callback_group=None, context=node.context)
        self._parts: list | None = None  # subscriptions and events; None: to be looked up
        self._wait_set = None  # for as many
        self._task: Callable[[], None] = lambda: None
        self._period, self._due, self._rest = None, 0.0, 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        node.context.on_shutdown(self._wake)

    def every(self, period: float, task: Callable[[], None]) -> None:
        """Call the task each `period` seconds, in this thread; to be said before the start."""
        self._task, self._period, self._due = task, period, time.monotonic() + period

    def rest(self, seconds: float) -> None:
        """Called by a callback: let messages wait in their queue for so long, and take them all
        then: waking up costs more than a message does."""
        self._rest = seconds

    def start(self) -> None:
        """Begin, once the group has the subscriptions that it begins with."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the callback that runs; nothing is called afterwards."""
        self._stop.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        self._guard.destroy()

    def add_entity(self, entity) -> None:
        """What rclpy tells of each subscription, and each of its events, that is made."""
        super().add_entity(entity)
        self._parts = None
        self._wake()

    def can_execute(self, entity) -> bool:
        """What an executor asks: may it run this?"""
        return False

    beginning_execution = can_execute

    def ending_execution(self, entity) -> None:
        """Nothing was begun."""

    def _wake(self) -> None:
        with contextlib.suppress(InvalidHandle):  # it has ended already
            self._guard.trigger()

    def _run(self) -> None:
        while self._goes_on():
            try:
                self._once()
            except InvalidHandle:  # a subscription was destroyed
                self._parts = None
            except Exception:  # in a callback; the next message may be a better one
                if self._goes_on():
                    self._node.get_logger().error(traceback.format_exc())
                    time.sleep(PAUSE)

    def _goes_on(self) -> bool:
        return self._node.context.ok() and not self._stop.is_set()

    def _once(self) -> None:
        """Wait for messages or the task, and handle what there is."""
        most = 1
        if self._rest > 0:
            self._stop.wait(self._rest)
            most = MOST
        self._rest = 0.0
        subscriptions, events = self._look_up()
        wait_set, handles = self._wait_set, [s.handle for s in subscriptions]
        with contextlib.ExitStack() as in_use:  # what is waited for must not be destroyed
            for part in (self._node.context.handle, self._guard.handle, *handles, *events):
                in_use.enter_context(part)
            wait_set.clear_entities()
            wait_set.add_guard_condition(self._guard.handle)
            for handle in handles:
                wait_set.add_subscription(handle)
            for event in events:
                event.add_to_wait_set(wait_set)
            wait_set.wait(-1 if self._period is None
                          else max(0, round(1e9 * (self._due - time.monotonic()))))
            addresses = wait_set.get_ready_entities("subscription")
            ready = [s for s in subscriptions if s.handle.pointer in addresses]
            happened = [event for event in events if event.is_ready(wait_set)]
        for event in happened:
            if self._goes_on():
                asyncio.run(event.execute(event.take_data()))
        for subscription in ready:
            take = subscription.handle.take_message
            for _ in range(most):
                if not self._goes_on():
                    break
                if (taken := take(subscription.msg_type, subscription.raw)) is None:
                    break
                subscription.callback(taken[0])
        if self._period is not None and time.monotonic() >= self._due and self._goes_on():
            self._due = time.monotonic() + self._period
            self._task()

    def _look_up(self) -> tuple[list, list]:
        """The subscriptions and events of this group."""
        if self._parts is None:
            self._parts = [[part for part in parts if part.callback_group is self]
                           for parts in (self._node.subscriptions, self._node.waitables)]
            subscriptions, events = self._parts
            self._wait_set = rclpy_implementation.WaitSet(
                len(subscriptions), 1, 0, 0, 0, len(events), self._node.context.handle)
        return self._parts
