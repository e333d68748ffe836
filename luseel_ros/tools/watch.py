"""``luseel watch``: a web page that shows live what a running node hears, and asks it.

A small web server (aiohttp) hands the page over and sends it what the node publishes through a
WebSocket. It listens on this machine only, unless told otherwise: there is no password. Words of
queries come from anywhere; the page only ever shows them as text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import math
import signal
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from luseel_model.errors import LuseelError

PAGE = Path(__file__).parent / "page"
FILES = {"/": ("index.html", "text/html"), "/watch.js": ("watch.js", "text/javascript"),
         "/watch.css": ("watch.css", "text/css")}
# Nothing but what this server itself sends; no inline scripts, so that even a hole in the page's
# own handling of text would run nothing.
HEADERS = {
    "Content-Security-Policy":
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
LEVEL_PERIOD = 0.1  # [s] between two levels
BACKLOG = 100  # messages that may wait for a slow browser; the oldest are dropped
MAX_MESSAGE = 8192  # bytes from a browser
MAX_CLIENTS = 32
SERVICE_SECONDS = 3.0  # [s] that the node may take to answer
LIKELIHOOD_STEPS = 255  # the page gets whole numbers from 0 to this


def describe_events(message) -> dict:
    """A SoundEventArray for the page: angles in degrees counter-clockwise, 90 left; no NaN."""
    from luseel_model.angles import from_rep103

    from ..conversions import time_to_ns

    events = []
    for event in message.events:
        known = math.isfinite(event.azimuth)
        likelihood = np.nan_to_num(np.asarray(event.likelihood, np.float64))
        events.append({
            "id": event.query_id, "text": event.query_text, "active": bool(event.active),
            "confidence": _finite(event.confidence),
            "azimuth": round(float(from_rep103(event.azimuth)), 2) if known else None,
            "stddev": _finite(math.degrees(event.azimuth_stddev)),
            "likelihood": np.rint(
                np.clip(likelihood, 0, 1) * LIKELIHOOD_STEPS).astype(int).tolist()})
    return {"type": "events", "stamp": time_to_ns(message.header.stamp) / 1e9,
            "frame": message.header.frame_id, "events": events}


def describe_queries(message) -> dict:
    """A QueryArray for the page."""
    def called(query) -> str:
        shown = query.image.format  # the size of a picture
        return query.text or query.tag or (
            "pictures" if shown.endswith("moving") else "picture" if shown else "")

    return {"type": "queries", "queries": [
        {"id": query.id, "text": called(query), "threshold": _finite(query.threshold)}
        for query in message.queries]}


def _finite(value: float) -> float:
    return round(float(value), 4) if math.isfinite(value) else 0.0


# -- the ROS side --------------------------------------------------------------------------------


class Watcher:
    """Subscribes to what a node publishes and hands it on as plain dictionaries.

    Args:
        node: an rclpy node, which somebody else spins.
        target: full name of the node to watch.
        audio_topic, audio_type: the audio whose level is shown.
        deliver: called with each dictionary, from the thread that spins.
    """

    def __init__(self, node, target: str, audio_topic: str, audio_type: str, deliver):
        from luseel.msg import Query, QueryArray, SoundEventArray
        from luseel.srv import SetQuery
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

        from ..audio_io import AudioReader

        self._node, self._deliver, self._query = node, deliver, Query
        self._newest_level = 0.0
        self._levels: list[np.ndarray] = []
        any_publisher = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(
            SoundEventArray, f"{target}/events", self._on_events, any_publisher)
        node.create_subscription(
            QueryArray, f"{target}/queries", lambda m: deliver(describe_queries(m)), latched)
        self._audio = AudioReader(
            node, audio_type, audio_topic, any_publisher, self._on_audio,
            lambda why: node.get_logger().warning(why, throttle_duration_sec=10.0))
        self._publisher = node.create_publisher(Query, f"{target}/set_query", 10)
        self._service = node.create_client(SetQuery, f"{target}/set_query")

    def _on_events(self, message) -> None:
        data = describe_events(message)
        data["age"] = round(self._node.get_clock().now().nanoseconds / 1e9 - data["stamp"], 3)
        self._deliver(data)

    def _on_audio(self, block) -> None:
        from luseel_model.sources import level_db

        self._levels.append(level_db(np.asarray(block.samples).T))
        now = time.monotonic()
        if now - self._newest_level < LEVEL_PERIOD:
            return
        loudest, self._levels, self._newest_level = np.max(self._levels, axis=0), [], now
        self._deliver({"type": "level", "db": [round(float(x), 1) for x in loudest]})

    def ask(self, action: str, text: str = "", query_id: str = ""):
        """Send a query to the node: add, remove or clear.

        Returns:
            a future of the service's answer; None when there is no such service now, and the query
            was published as a message.

        Raises:
            LuseelError: words, or an action, that can't be used.
        """
        from luseel.srv import SetQuery

        from luseel_model.query import validate_query

        actions = {"add": self._query.ADD, "remove": self._query.REMOVE,
                   "clear": self._query.CLEAR}
        if action not in actions:
            raise LuseelError(f"unknown action {str(action)[:40]!r}")
        message = self._query(action=actions[action], id=query_id,
                              text=validate_query(text) if action == "add" else "")
        if self._service.service_is_ready():
            return self._service.call_async(SetQuery.Request(query=message))
        self._publisher.publish(message)
        return None


# -- the web side --------------------------------------------------------------------------------


class Server:
    """The page and its WebSocket.

    Args:
        title: what is watched.
        ask: called as `Watcher.ask` with what a browser asks for.
        local: refuse requests for other host names than this machine's own (a page elsewhere could
            point its name here).
    """

    def __init__(self, title: str, ask, local: bool = True):
        from aiohttp import web

        self._web, self._title, self._ask, self._local = web, title, ask, local
        self._clients: dict[object, asyncio.Queue] = {}
        self._state: dict[str, dict] = {}  # the newest message of each type
        self.app = web.Application(client_max_size=MAX_MESSAGE)
        for path, (name, kind) in FILES.items():
            self.app.router.add_get(path, self._file(PAGE / name, kind))
        self.app.router.add_get("/ws", self._socket)
        self.app.on_shutdown.append(self._close_all)

    def send(self, message: dict) -> None:
        """Send to all browsers; from the thread of the event loop."""
        self._state[message["type"]] = message
        text = json.dumps(message, allow_nan=False)
        for waiting in self._clients.values():
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(text)

    def _check_host(self, request) -> None:
        """Against pages of elsewhere that reach for this server."""
        host = request.headers.get("Host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._local and not _is_local(name):
            raise self._web.HTTPForbidden(text=f"this server is called localhost, not {name!r}\n")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise self._web.HTTPForbidden(text="requests from other pages are refused\n")

    def _file(self, path: Path, kind: str):
        async def handler(request):
            self._check_host(request)
            return self._web.Response(
                body=path.read_bytes(), content_type=kind, charset="utf-8", headers=HEADERS)
        return handler

    async def _socket(self, request):
        self._check_host(request)
        if len(self._clients) >= MAX_CLIENTS:
            raise self._web.HTTPServiceUnavailable(text="too many pages are open\n")
        socket = self._web.WebSocketResponse(heartbeat=20, max_msg_size=MAX_MESSAGE)
        await socket.prepare(request)
        waiting: asyncio.Queue = asyncio.Queue(BACKLOG)
        self._clients[socket] = waiting
        for message in ({"type": "hello", "node": self._title}, *self._state.values()):
            waiting.put_nowait(json.dumps(message, allow_nan=False))
        sender = asyncio.create_task(self._send_all(socket, waiting))
        try:
            async for message in socket:
                if message.type == self._web.WSMsgType.TEXT:
                    answer = await self._answer(message.data)
                    with contextlib.suppress(asyncio.QueueFull):
                        waiting.put_nowait(json.dumps(answer))
        finally:
            del self._clients[socket]
            sender.cancel()
        return socket

    async def _send_all(self, socket, waiting: asyncio.Queue) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):  # the page was closed
            while True:
                await socket.send_str(await waiting.get())

    async def _answer(self, text: str) -> dict:
        """Do what a page asks for -> how that went."""
        try:
            asked = json.loads(text)
            if not isinstance(asked, dict) or not all(
                    isinstance(value, str) for value in asked.values()):
                raise LuseelError("not understood")
            future = self._ask(asked.get("action", ""), asked.get("text", ""), asked.get("id", ""))
            if future is None:
                return {"type": "answer", "ok": True,
                        "reason": "sent; the node doesn't say whether it took it"}
            end = time.monotonic() + SERVICE_SECONDS
            while not future.done():
                if time.monotonic() > end:
                    raise LuseelError("the node doesn't answer")
                await asyncio.sleep(0.02)
            result = future.result()
            return {"type": "answer", "ok": bool(result.success), "reason": result.reason}
        except (LuseelError, json.JSONDecodeError) as error:
            return {"type": "answer", "ok": False, "reason": str(error)}
        except Exception as error:  # whatever a page sends, the server goes on
            return {"type": "answer", "ok": False, "reason": f"{type(error).__name__}: {error}"}

    async def _close_all(self, app) -> None:
        for socket in list(self._clients):
            await socket.close(code=1001, message=b"the server ends")


def _is_local(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def serve(server: Server, host: str, port: int, started, stop: asyncio.Event) -> None:
    """Run the server until `stop`; calls started(port) once it listens.

    Raises:
        LuseelError: host and port can't be used.
    """
    from aiohttp import web

    runner = web.AppRunner(server.app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise LuseelError(f"can't listen on {host} port {port}: {error.strerror or error}. "
                              "Choose another with --port") from None
        started(runner.addresses[0][1])
        await stop.wait()
    finally:
        await runner.cleanup()


# -- the command ---------------------------------------------------------------------------------


def register(commands) -> None:
    """Add the command to the subparsers of ``luseel``."""
    parser = commands.add_parser(
        "watch", help="a web page that shows what a running node hears",
        description="Serve a web page that shows live what a running node hears: a compass with "
        "the likelihood, levels, queries and their history. Ctrl-C ends it.")
    parser.add_argument("--node", default="/luseel", help="name of the node (default: %(default)s)")
    parser.add_argument("--audio-topic", default="audio", help="default: %(default)s")
    parser.add_argument("--audio-type", default="luseel",
                        help="luseel, ros_drivers or mgonzs13 (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080,
                        help="0: any that is free (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; another than "
                        "the default lets whoever reaches it watch and ask, without a password")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``luseel watch``; Ctrl-C ends it. Returns the exit status."""
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise LuseelError("luseel watch needs the package aiohttp: pip install 'luseel[watch]', or "
                          "apt install python3-aiohttp") from None
    if not 0 <= args.port <= 65535:
        raise LuseelError(f"--port {args.port}: expected 0 to 65535")
    from .spinning import spinning_node

    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # pages come and go
    target = "/" + args.node.strip("/")

    async def main(node):
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)

        def deliver(message):
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(server.send, message)

        server = Server(target, lambda *asked: watcher.ask(*asked), local=_is_local(args.host))
        watcher = Watcher(node, target, args.audio_topic, args.audio_type, deliver)

        def started(port):
            shown = f"[{args.host}]" if ":" in args.host else args.host
            print(f"watching {target} on http://{shown}:{port}/ (Ctrl-C ends it)", flush=True)
            if not _is_local(args.host):
                print("luseel: anybody who reaches this address can watch and ask: there is no "
                      "password", file=sys.stderr)

        await serve(server, args.host, args.port, started, stop)

    with spinning_node("luseel_watch") as node:
        asyncio.run(main(node))
    return 0
