"""The queries of the node: the list itself (plain Python), and the ways by which they come."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Mapping

import numpy as np
from luseel.msg import Query as QueryMessage
from luseel.msg import QueryArray
from luseel.srv import SetQuery
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header, String

from luseel_model.errors import LuseelError, QueryError
from luseel_model.query import Query, as_query

from . import conversions
from .ids import MAX_ID, validate_id
from .parameters import LATCHED
from .pictures import decode_compressed, prepare

LATCHED_SECONDS = 1.0  # [s] that a new one has to hand over the queries it holds
EXPIRY_PERIOD = 0.1  # [s] between two looks for queries whose time is over


@dataclass(frozen=True)
class ActiveQuery:
    """One query that the node listens for.

    Attributes:
        id: as in the outputs.
        query: what is asked for; stays the same object until its content changes, by which the
            stream knows that it goes on.
        index: counts the queries since the node was configured; gives the colour.
        threshold: from this confidence on it is active; None: the node's confidence_threshold.
        expires: when it is forgotten, in nanoseconds of the node's clock; None: never.
    """

    id: str
    query: Query
    index: int
    threshold: float | None = None
    expires: int | None = None

    @property
    def words(self) -> str:
        """What to call it."""
        return self.query.words

    @property
    def asked(self) -> str | Query:
        """What a stream takes: words alone as such."""
        return self.query.text if self.query.clues == {"text"} else self.query

    def __str__(self) -> str:
        parts = [f"'{self.query.text}'"] if self.query.text else []
        parts += [f"tag '{self.query.tag}'"] if self.query.tag else []
        if self.picture:
            parts.append(f"a picture of {self.picture}")
        return ", ".join(parts)

    @property
    def picture(self) -> str:
        """Its picture's size in words; empty: it has none."""
        shown = self.query.image if self.query.image is not None else self.query.frames
        if shown is None:
            return ""
        height, width = shown.shape[-3:-1]
        return f"{width} x {height} pixels" + (
            ", moving" if self.query.frames is not None else "")


def _same(one: Query, other: Query) -> bool:
    """Whether two queries ask for the same in the same way."""
    return (one.text, one.tag, one.frame_rate, one.clues) == (
        other.text, other.tag, other.frame_rate, other.clues) and all(
        a is b or np.array_equal(a, b)
        for a, b in ((one.image, other.image), (one.frames, other.frames)))


class QueryList:
    """The queries by id, oldest first. All times are nanoseconds of one clock, the caller's.

    Every method either does what it says or raises `QueryError` and changes nothing. Safe to use
    from several threads.

    Args:
        maximum: of queries.
        check: gives a query back as the model takes it, or raises `QueryError`.
    """

    def __init__(self, maximum: int = 8, check: Callable[[str | Query], Query] = as_query):
        self.maximum, self._check = maximum, check
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
            query = self._check(text)
            query_id = self._id_of(query.text) or self._new_id()
            old = self._queries.get(query_id)
            if old is not None and _same(old.query, query):
                query = old.query
            self._queries = {query_id: ActiveQuery(query_id, query, self._index(old))}
            return query_id

    def add(self, query: str | Query, query_id: str = "", threshold: float = 0.0,
            lifetime_ns: int = 0, now: int = 0) -> str:
        """Add a query, or put it in the place of the one of this id.

        Args:
            query: words, or more.
            query_id: empty: the id of the query of the same words and tag, else a new one.
            threshold: in (0, 1]; 0: the node's.
            lifetime_ns: nanoseconds from `now` on; 0: for ever.

        Returns:
            its id.
        """
        query = self._check(query)
        if not 0 <= threshold <= 1:  # NaN compares false
            raise QueryError(f"threshold {threshold:g}: expected 0 (the node's) to 1")
        if lifetime_ns < 0:
            raise QueryError(f"lifetime {lifetime_ns / 1e9:g} s: expected 0 (for ever) or more")
        with self._lock:
            query_id = (validate_id(query_id) if query_id
                        else self._id_of(query.text, query.tag) or self._new_id())
            old = self._queries.get(query_id)
            if old is None and len(self._queries) >= self.maximum:
                raise QueryError(f"there are {len(self._queries)} queries already, and "
                                 f"max_queries is {self.maximum}: remove one first")
            if old is not None and _same(old.query, query):
                query = old.query
            self._queries[query_id] = ActiveQuery(
                query_id, query, self._index(old),
                threshold or None, now + lifetime_ns if lifetime_ns else None)
            return query_id

    def change(self, query_id: str, clues: Mapping[str, Any], threshold: float = 0.0,
               lifetime_ns: int = 0, now: int = 0) -> str:
        """Change a part of a query; where there is none of this id, add it.

        Args:
            clues: fields of a `Query`; the others stay what they are.
            threshold, lifetime_ns, now: as for `add`; 0: as they are.

        Returns:
            its id.
        """
        if not query_id:
            raise QueryError("CHANGE needs the id of a query")
        with self._lock:
            old = self._queries.get(query_id)
            if old is None:
                return self.add(Query(**clues), query_id, threshold, lifetime_ns, now)
            expires = old.expires
            self.add(replace(old.query, **clues), query_id, threshold or old.threshold or 0.0,
                     lifetime_ns, now)
            if not lifetime_ns:
                self._queries[query_id] = replace(self._queries[query_id], expires=expires)
            return query_id

    def remove(self, query_id: str = "", text: str = "", tag: str = "") -> str:
        """Forget the query of this id, or without id that of these words and tag; returns its id.
        """
        with self._lock:
            if not query_id and not text.strip() and not tag.strip():
                raise QueryError("neither id nor text nor tag says which query to remove")
            found = query_id or self._id_of(" ".join(text.split()), " ".join(tag.split()))
            if not found or found not in self._queries:
                there = ", ".join(self._queries) or "there are none"
                raise QueryError(
                    f"no query {(query_id or text or tag)[:MAX_ID]!r} to remove: {there}")
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

    def _id_of(self, text: str, tag: str = "") -> str:
        if not text and not tag:
            return ""
        return next((q.id for q in self._queries.values()
                     if (q.query.text, q.query.tag) == (text, tag)), "")

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
        only_frames: a picture in a message is a clip of one frame, for models that take no other.
    """

    def __init__(self, node, queries: QueryList, changed: Callable[[], None],
                 refuse: Callable[[str], None], only_frames: bool = False):
        self._node, self.queries = node, queries
        self._changed, self._refuse = changed, refuse
        self._only_frames = only_frames
        self._said: dict[str, ActiveQuery] = {}
        # Source timestamps [ns] of the newest command to all queries, and to each one: a latched
        # command of before these is out of date.
        self._newest_for_all = 0
        self._newest: dict[str, int] = {}
        self._list = node.create_publisher(QueryArray, "~/queries", LATCHED)
        self._subscriptions = [
            node.create_subscription(String, "query", self._on_words, 10),
            node.create_subscription(QueryMessage, "~/set_query", self._on_query, 100)]
        self._service = node.create_service(SetQuery, "~/set_query", self._on_service)
        self._latched = [
            _Latched(node, String, self._subscriptions[0].topic_name, self._on_latched_words),
            _Latched(node, QueryMessage, self._subscriptions[1].topic_name, self._on_latched_query)]
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

    def _on_query(self, message: QueryMessage, info) -> None:
        self._remember(message, info["source_timestamp"])
        self._do(self._apply, message)

    def _on_latched_query(self, stamp: int, message: QueryMessage) -> None:
        overtaken = [self._newest_for_all, self._newest.get(_key(message), 0)]
        if message.action == QueryMessage.CLEAR:
            overtaken += self._newest.values()
        if stamp > max(overtaken):
            self._remember(message, stamp)
            self._do(self._apply, message)

    def _remember(self, message: QueryMessage, stamp: int) -> None:
        if message.action == QueryMessage.CLEAR:
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

    def _apply(self, message: QueryMessage) -> tuple[str, str]:
        """Do what a message says -> id, what was done."""
        before = len(self.queries)
        more = (round(message.threshold, 6), conversions.duration_to_ns(message.lifetime),
                self._node.get_clock().now().nanoseconds)
        if message.action == QueryMessage.ADD:
            query_id = self.queries.add(Query(**self._clues(message)), message.id, *more)
            return query_id, "added" if len(self.queries) > before else "replaced"
        if message.action == QueryMessage.CHANGE:
            query_id = self.queries.change(message.id, self._clues(message), *more)
            return query_id, "added" if len(self.queries) > before else "changed"
        if message.action == QueryMessage.REMOVE:
            return self.queries.remove(message.id, message.text, message.tag), "removed"
        if message.action == QueryMessage.CLEAR:
            count = len(self.queries)
            self.queries.clear()
            return "", f"{count} removed"
        raise QueryError(f"action {message.action}: expected ADD ({QueryMessage.ADD}), REMOVE "
                         f"({QueryMessage.REMOVE}), CLEAR ({QueryMessage.CLEAR}) or CHANGE "
                         f"({QueryMessage.CHANGE})")

    def _clues(self, message: QueryMessage) -> dict[str, Any]:
        """The fields of a `Query` that a message has something for."""
        clues = {name: getattr(message, name) for name in ("text", "tag")
                 if getattr(message, name)}
        region = message.region
        region = (region.x_offset, region.y_offset, region.width, region.height)
        if len(message.image.data):
            picture = prepare(decode_compressed(message.image), region)
            clues |= {"frames": picture[None]} if self._only_frames else {"image": picture}
        elif any(region):
            raise QueryError("a region, but no picture that it could be a part of")
        return clues

    def show(self, query_id: str, clues: Mapping[str, Any]) -> None:
        """New pictures of a camera for the query of this id."""
        self._do(self.queries.change, query_id, clues)

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
        said = {query.id: _outline(query) for query in self._said.values()}
        log = self._node.get_logger().info
        for query in now.values():
            if said.get(query.id) != _outline(query):
                log(f"query {query.id}: {query}")
        for query_id in self._said:
            if query_id not in now:
                log(f"query {query_id} is no more" + ("" if now else "; none is left"))
        if said != {query.id: _outline(query) for query in now.values()}:
            self._publish(now)
        self._said = now
        self._changed()

    def _publish(self, queries: dict[str, ActiveQuery]) -> None:
        clock = self._node.get_clock().now()
        self._list.publish(QueryArray(header=Header(stamp=clock.to_msg()), queries=[
            QueryMessage(
                action=QueryMessage.ADD, id=query.id, text=query.query.text, tag=query.query.tag,
                image=CompressedImage(format=query.picture), threshold=query.threshold or 0.0,
                lifetime=conversions.seconds_to_duration(
                    max(query.expires - clock.nanoseconds, 1) / 1e9 if query.expires else 0.0))
            for query in queries.values()]))


def _outline(query: ActiveQuery) -> tuple:
    """All that is said of a query: a camera's next picture is nothing new."""
    return query.query.text, query.query.tag, query.picture, query.threshold, query.expires


def _key(message: QueryMessage) -> str:
    """What two messages about the same query have in common."""
    if message.id:
        return "id " + message.id
    return "text " + " ".join(message.text.split()) + "\ntag " + " ".join(message.tag.split())
