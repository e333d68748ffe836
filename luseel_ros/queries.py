"""The queries of the node: the list itself (plain Python), and the ways by which they come."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Callable

from luseel.msg import Query, QueryArray
from luseel.srv import SetQuery
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header, String

from luseel_model.errors import LuseelError, QueryError
from luseel_model.query import validate_query

from . import conversions
from .parameters import LATCHED

LATCHED_SECONDS = 1.0  # [s] that a new one has to hand over the queries it holds
EXPIRY_PERIOD = 0.1  # [s] between two looks for queries whose time is over
MAX_ID = 64  # characters


@dataclass(frozen=True)
class ActiveQuery:
    """One query that the node listens for.

    Attributes:
        id: as in the outputs.
        text: its words.
        index: counts the queries since the node was configured; gives the colour.
        threshold: from this confidence on it is active; None: the node's confidence_threshold.
        expires: when it is forgotten, in nanoseconds of the node's clock; None: never.
    """

    id: str
    text: str
    index: int
    threshold: float | None = None
    expires: int | None = None


def validate_id(query_id: str) -> str:
    """The id, if it may be part of a topic name.

    Raises:
        QueryError: it may not.
    """
    if len(query_id) > MAX_ID or not re.fullmatch(r"[A-Za-z](_?[A-Za-z0-9])*", query_id):
        raise QueryError(
            f"the id {query_id[:MAX_ID]!r} can't be used: a letter, then letters and digits with "
            f"single underscores between them, at most {MAX_ID} characters")
    return query_id


class QueryList:
    """The queries by id, oldest first. All times are nanoseconds of one clock, the caller's.

    Every method either does what it says or raises `QueryError` and changes nothing. Safe to use
    from several threads.
    """

    def __init__(self, maximum: int = 8):
        self.maximum = maximum
        self._queries: dict[str, ActiveQuery] = {}
        self._count = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._queries)

    def all(self) -> dict[str, ActiveQuery]:
        """A copy."""
        with self._lock:
            return dict(self._queries)

    def replace_all(self, text: str) -> str:
        """Only this query from now on, without threshold and end; blank: none at all.

        Returns:
            its id: that of the query of the same words if there is one.
        """
        with self._lock:
            if not text.strip():
                self._queries = {}
                return ""
            text = validate_query(text)
            query_id = self._id_of(text) or self._new_id()
            old = self._queries.get(query_id)
            self._queries = {query_id: ActiveQuery(query_id, text, self._index(old))}
            return query_id

    def add(self, text: str, query_id: str = "", threshold: float = 0.0,
            lifetime_ns: int = 0, now: int = 0) -> str:
        """Add a query, or change the one of this id.

        Args:
            text: its words.
            query_id: empty: the id of the query of the same words, else a new one.
            threshold: in (0, 1]; 0: the node's.
            lifetime_ns: nanoseconds from `now` on; 0: for ever.

        Returns:
            its id.
        """
        text = validate_query(text)
        if not 0 <= threshold <= 1:  # NaN compares false
            raise QueryError(f"threshold {threshold:g}: expected 0 (the node's) to 1")
        if lifetime_ns < 0:
            raise QueryError(f"lifetime {lifetime_ns / 1e9:g} s: expected 0 (for ever) or more")
        with self._lock:
            query_id = (validate_id(query_id) if query_id
                        else self._id_of(text) or self._new_id())
            old = self._queries.get(query_id)
            if old is None and len(self._queries) >= self.maximum:
                raise QueryError(f"there are {len(self._queries)} queries already, and "
                                 f"max_queries is {self.maximum}: remove one first")
            self._queries[query_id] = ActiveQuery(
                query_id, text, self._index(old),
                threshold or None, now + lifetime_ns if lifetime_ns else None)
            return query_id

    def remove(self, query_id: str = "", text: str = "") -> str:
        """Forget the query of this id, or without id that of these words; returns its id."""
        with self._lock:
            if not query_id and not text.strip():
                raise QueryError("neither id nor text says which query to remove")
            found = query_id or self._id_of(" ".join(text.split()))
            if not found or found not in self._queries:
                there = ", ".join(self._queries) or "there are none"
                raise QueryError(f"no query {(query_id or text)[:MAX_ID]!r} to remove: {there}")
            del self._queries[found]
            return found

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._queries = {}

    def expire(self, now: int) -> list[ActiveQuery]:
        """Forget those whose time is over; returns them."""
        with self._lock:
            over = [q for q in self._queries.values() if q.expires is not None and q.expires <= now]
            for query in over:
                del self._queries[query.id]
            return over

    def shift(self, nanoseconds: int) -> None:
        """The clock jumped by so much: what remains of each lifetime stays the same."""
        with self._lock:
            for query in self._queries.values():
                if query.expires is not None:
                    self._queries[query.id] = replace(
                        query, expires=query.expires + nanoseconds)

    def _id_of(self, text: str) -> str:
        return next((q.id for q in self._queries.values() if q.text == text), "")

    def _new_id(self) -> str:
        number = self._count + 1
        while f"q{number}" in self._queries:
            number += 1
        return f"q{number}"

    def _index(self, old: ActiveQuery | None) -> int:
        if old is not None:
            return old.index
        self._count += 1
        return self._count


class _Latched:
    """Hands over once what transient-local publishers of a topic sent before we listened.

    What anybody sends from now on comes, in order, through the ordinary subscription. For the rest
    a transient-local one is opened for a moment, when there is such a publisher: kept open, every
    ordinary publisher would log it as incompatible.
    """

    def __init__(self, node, kind, topic: str, deliver: Callable[[int, Any], None]):
        self._node, self._kind, self._topic, self._deliver = node, kind, topic, deliver
        self._known: set[tuple] = set()  # publishers
        self._subscription = None  # while it is open
        self._close = 0.0  # monotonic time
        self._held: list[tuple[int, Any]] = []  # source timestamp and message

    def look(self) -> None:
        """To be called now and then."""
        if self._subscription is not None:
            if time.monotonic() < self._close:
                return
            self._node.destroy_subscription(self._subscription)
            held, self._subscription, self._held = self._held, None, []
            for stamp, message in sorted(held, key=lambda item: item[0]):
                self._deliver(stamp, message)
        publishers = {
            tuple(publisher.endpoint_gid)
            for publisher in self._node.get_publishers_info_by_topic(self._topic)
            if publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL}
        if publishers - self._known:
            self._subscription = self._node.create_subscription(
                self._kind, self._topic, self._hold,
                QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL),
                event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))
            self._close = time.monotonic() + LATCHED_SECONDS
        self._known = publishers

    def _hold(self, message, info) -> None:
        if len(self._held) < 1000:
            self._held.append((info["source_timestamp"], message))

    def destroy(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None


class QueryInterface:
    """Takes queries from `query`, `~/set_query` (topic and service); publishes `~/queries`.

    Args:
        node: whose topics these are.
        queries: the list that they change.
        changed: called after each change, with the list already published.
        refuse: called with the reason when a message asked for what can't be done.
    """

    def __init__(self, node, queries: QueryList, changed: Callable[[], None],
                 refuse: Callable[[str], None]):
        self._node, self.queries = node, queries
        self._changed, self._refuse = changed, refuse
        self._said: dict[str, ActiveQuery] = {}
        # Source timestamps [ns] of the newest command to all queries, and to each one: a latched
        # command of before these is out of date.
        self._newest_for_all = 0
        self._newest: dict[str, int] = {}
        self._list = node.create_publisher(QueryArray, "~/queries", LATCHED)
        self._subscriptions = [
            node.create_subscription(String, "query", self._on_words, 10),
            node.create_subscription(Query, "~/set_query", self._on_query, 100)]
        self._service = node.create_service(SetQuery, "~/set_query", self._on_service)
        self._latched = [
            _Latched(node, String, self._subscriptions[0].topic_name, self._on_latched_words),
            _Latched(node, Query, self._subscriptions[1].topic_name, self._on_latched_query)]
        self._expiry = node.create_timer(
            EXPIRY_PERIOD, self._expire,
            clock=Clock(clock_type=ClockType.STEADY_TIME))  # goes on while simulated time stands
        self._expiry.cancel()  # until there is a query with a lifetime
        self._publish({})

    def destroy(self) -> None:
        """Take all of it off the graph."""
        for latched in self._latched:
            latched.destroy()
        self._node.destroy_timer(self._expiry)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._node.destroy_service(self._service)
        self._node.destroy_publisher(self._list)

    # -- what comes --------------------------------------------------------------------------

    def _on_words(self, message: String, info) -> None:
        self._newest_for_all = max(self._newest_for_all, info["source_timestamp"])
        self._do(self.queries.replace_all, message.data)

    def _on_latched_words(self, stamp: int, message: String) -> None:
        if stamp > max([self._newest_for_all, *self._newest.values()]):  # nothing has overtaken it
            self._newest_for_all = stamp
            self._do(self.queries.replace_all, message.data)

    def _on_query(self, message: Query, info) -> None:
        self._remember(message, info["source_timestamp"])
        self._do(self._apply, message)

    def _on_latched_query(self, stamp: int, message: Query) -> None:
        overtaken = [self._newest_for_all, self._newest.get(_key(message), 0)]
        if message.action == Query.CLEAR:
            overtaken += self._newest.values()
        if stamp > max(overtaken):
            self._remember(message, stamp)
            self._do(self._apply, message)

    def _remember(self, message: Query, stamp: int) -> None:
        if message.action == Query.CLEAR:
            self._newest_for_all = max(self._newest_for_all, stamp)
            return
        if len(self._newest) >= 1000:  # bounded, whatever comes; the oldest are forgotten
            self._newest = dict(sorted(self._newest.items(), key=lambda item: item[1])[-500:])
        self._newest[_key(message)] = max(self._newest.get(_key(message), 0), stamp)

    def _on_service(self, request: SetQuery.Request, response: SetQuery.Response):
        try:
            response.id, response.reason = self._apply(request.query)
            response.success = True
        except LuseelError as error:
            response.reason = str(error)
        self._update()
        return response

    def _apply(self, message: Query) -> tuple[str, str]:
        """Do what a message says -> id, what was done."""
        if message.action == Query.ADD:
            before = len(self.queries)
            lifetime = conversions.duration_to_ns(message.lifetime)
            query_id = self.queries.add(
                message.text, message.id, round(message.threshold, 6), lifetime,
                self._node.get_clock().now().nanoseconds)
            return query_id, "added" if len(self.queries) > before else "replaced"
        if message.action == Query.REMOVE:
            return self.queries.remove(message.id, message.text), "removed"
        if message.action == Query.CLEAR:
            count = len(self.queries)
            self.queries.clear()
            return "", f"{count} removed"
        raise QueryError(f"action {message.action}: expected ADD ({Query.ADD}), "
                         f"REMOVE ({Query.REMOVE}) or CLEAR ({Query.CLEAR})")

    def _do(self, function: Callable, *args) -> None:
        try:
            function(*args)
        except LuseelError as error:
            self._refuse(f"query refused: {error}")
        self._update()

    def look(self) -> None:
        """For new publishers of latched queries; to be called about once a second."""
        for latched in self._latched:
            latched.look()

    def _expire(self) -> None:
        if over := self.queries.expire(self._node.get_clock().now().nanoseconds):
            for query in over:
                self._node.get_logger().info(f"query {query.id}: its time is over")
            self._update()

    # -- what goes ---------------------------------------------------------------------------

    def _update(self) -> None:
        """Publish the list and tell of it, if it has changed."""
        now = self.queries.all()
        if now == self._said:
            return
        ends = any(query.expires is not None for query in now.values())
        if ends == self._expiry.is_canceled():
            self._expiry.reset() if ends else self._expiry.cancel()
        log = self._node.get_logger().info
        for query in now.values():
            if self._said.get(query.id) != query:
                log(f"query {query.id}: '{query.text}'")
        for query_id in self._said:
            if query_id not in now:
                log(f"query {query_id} is no more" + ("" if now else "; none is left"))
        self._publish(now)
        self._changed()

    def _publish(self, queries: dict[str, ActiveQuery]) -> None:
        self._said = queries
        clock = self._node.get_clock().now()
        self._list.publish(QueryArray(header=Header(stamp=clock.to_msg()), queries=[
            Query(action=Query.ADD, id=query.id, text=query.text, threshold=query.threshold or 0.0,
                  lifetime=conversions.seconds_to_duration(
                      max(query.expires - clock.nanoseconds, 1) / 1e9 if query.expires else 0.0))
            for query in queries.values()]))


def _key(message: Query) -> str:
    """What two messages about the same query have in common."""
    return "id " + message.id if message.id else "text " + " ".join(message.text.split())
