"""`luseel watch`: its page in a real browser, over real DDS; and what it refuses."""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

aiohttp = pytest.importorskip("aiohttp")
rclpy = pytest.importorskip("rclpy")

from luseel.msg import AudioChunk, Query, QueryArray, SoundEventArray  # noqa: E402
from luseel.srv import SetQuery  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from ros_helpers import ros_context, spinning  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from luseel_model.errors import LuseelError  # noqa: E402
from luseel_ros import conversions  # noqa: E402
from luseel_ros.tools import watch  # noqa: E402

RATE = 16000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60  # [s] on a busy machine
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;"


class Robot:
    """Stands for the node: publishes events, queries and audio; takes queries."""

    def __init__(self, context, service=False):
        self.node = rclpy.create_node("luseel", context=context)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.events = self.node.create_publisher(SoundEventArray, "~/events", 10)
        self.list = self.node.create_publisher(QueryArray, "~/queries", latched)
        self.audio = self.node.create_publisher(AudioChunk, "audio", 10)
        self.asked = []
        self.node.create_subscription(Query, "~/set_query", self.asked.append, 10)
        if service:
            self.node.create_service(SetQuery, "~/set_query", self.answer)
        self.hops = 0
        self.begin = time.time_ns()

    def answer(self, request, response):
        self.asked.append(request.query)
        response.success = request.query.text != "too much"
        response.reason = "listening" if response.success else "there are 8 queries already"
        return response

    def hear(self, *sounds, queries=True):
        """One hop: (id, words, azimuth in degrees, confidence) of each sound."""
        stamp = conversions.ns_to_time(self.begin + self.hops * 500_000_000)
        self.hops += 1
        header = Header(stamp=stamp, frame_id="mic")
        if queries:
            self.list.publish(QueryArray(header=header, queries=[
                Query(id=sound[0], text=sound[1]) for sound in sounds]))
        events = []
        for query_id, words, azimuth, confidence in sounds:
            distance = (np.arange(360) - azimuth + 180) % 360 - 180
            likelihood = np.exp(-0.5 * (distance / 12) ** 2).astype(np.float32)
            events.append(conversions.sound_event(
                query_id, words, azimuth, likelihood, confidence, 0.5, 0.1))
        self.events.publish(SoundEventArray(header=header, events=events))

    def sound(self, left, right):
        time_ = np.arange(1600) / RATE
        tone = np.sin(2 * np.pi * 440 * time_)
        self.audio.publish(conversions.array_to_chunk(
            np.stack([left * tone, right * tone]), RATE, 0, Header()))


@contextlib.contextmanager
def watched(service=False):
    """A robot, and the server that watches it -> (robot, address)."""
    with ros_context() as context:
        robot = Robot(context, service)
        watcher_node = rclpy.create_node("luseel_watch", context=context)
        ready, port, loops = threading.Event(), [], []

        async def main():
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            loops.append((loop, stop))

            def deliver(message):
                loop.call_soon_threadsafe(server.send, message)
            watcher = watch.Watcher(watcher_node, "/luseel", "audio", "luseel", deliver)
            server = watch.Server("/luseel", watcher.ask)

            def started(number):
                port.append(number)
                ready.set()
            await watch.serve(server, "127.0.0.1", 0, started, stop)

        thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        thread.start()
        assert ready.wait(PATIENCE)
        with spinning(robot.node), spinning(watcher_node):
            assert until(lambda: robot.events.get_subscription_count()
                         and robot.list.get_subscription_count()
                         and robot.audio.get_subscription_count())
            assert until(lambda: watcher_node.count_subscribers("/luseel/set_query"))
            if service:
                assert until(lambda: any(name == "/luseel/set_query" for name, _ in
                                         watcher_node.get_service_names_and_types()))
            yield robot, f"http://127.0.0.1:{port[0]}"
            loops[0][0].call_soon_threadsafe(loops[0][1].set)
            thread.join(10)
        assert not thread.is_alive()


def run_async(coroutine):
    """As asyncio.run, in a thread of its own: the browser's driver has a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def until(condition, seconds=PATIENCE, every=0.05, do=lambda: None):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        do()
        time.sleep(every)
    return found


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, from Debian's package."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, timeout=120_000, args=[
                "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update",
                "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.set_default_timeout(PATIENCE * 1000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text)
            if message.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: page.problems.append(dialog.message))
    yield page
    page.close()


def arrows(page):
    """Query id -> azimuth of the arrows on the page, and where their tips are on the screen."""
    return page.evaluate("""() => Object.fromEntries(
        [...document.querySelectorAll('.arrow')].map((group) => {
          const line = group.querySelector('line');
          return [group.dataset.id, [Number(group.dataset.azimuth),
                  Number(line.getAttribute('x2')), Number(line.getAttribute('y2'))]];
        }))""")


def test_the_page_shows_what_is_heard_and_asks(page):
    with watched() as (robot, address):
        robot.hear(("q1", "dog barking", 90.0, 0.9))  # before the page is there
        page.goto(address)
        assert until(lambda: page.inner_text("#state") == "connected")
        assert page.inner_text("#node") == "/luseel"
        # the newest hop of before is there at once; left is on the left
        assert until(lambda: "q1" in arrows(page))
        azimuth, x, y = arrows(page)["q1"]
        assert azimuth == 90 and x < -40 and abs(y) < 1
        row = page.locator("#queries li")
        assert row.count() == 1 and row.locator(".words").inner_text() == "dog barking"
        assert row.locator(".where").inner_text() == "90° left"
        assert row.get_attribute("class") == "active"

        # live: it moves to the right, another one joins in front, unsure
        robot.hear(("q1", "dog barking", 270.0, 0.9), ("q2", "rain", 0.0, 0.2))
        assert until(lambda: len(arrows(page)) == 2)
        azimuth, x, _ = arrows(page)["q1"]
        assert azimuth == 270 and x > 40
        azimuth, x, y = arrows(page)["q2"]
        assert azimuth == 0 and abs(x) < 1 and y < -40
        opacity = page.evaluate("[...document.querySelectorAll('.arrow')].map("
                                "(g) => Number(g.getAttribute('opacity')))")
        assert opacity[0] > 0.8 and opacity[1] < 0.4
        # the ring bulges to where the likelihood is: its farthest point is on the right
        far = page.evaluate("""() => document.querySelector('.ring').getAttribute('points')
            .split(' ').map((p) => p.split(',').map(Number))
            .reduce((a, b) => Math.hypot(...a) > Math.hypot(...b) ? a : b)""")
        assert far == pytest.approx([106, 0], abs=0.5)
        assert row.count() == 2 and row.nth(1).get_attribute("class") is None
        assert until(lambda: page.get_attribute("#history", "data-points") == "3")

        # levels, in dB of full scale: a tone of 0.5 has -9 dB, the other ear 20 dB less
        assert until(lambda: page.inner_text("#left_db") == "-9 dB",
                     do=lambda: robot.sound(0.5, 0.05))
        assert page.inner_text("#right_db") == "-29 dB"
        assert page.evaluate("Number(document.getElementById('left').value)") == pytest.approx(
            -9, abs=0.1)

        # words that are typed arrive at the node
        page.fill("#words", "  a baby crying ")
        page.press("#words", "Enter")
        assert until(lambda: robot.asked)
        assert (robot.asked[0].action, robot.asked[0].text) == (Query.ADD, "a baby crying")
        assert until(lambda: page.inner_text("#answer").startswith("sent"))
        page.locator("#queries li button").nth(1).click()
        assert until(lambda: len(robot.asked) == 2)
        assert (robot.asked[1].action, robot.asked[1].id) == (Query.REMOVE, "q2")
        page.click("#clear")
        assert until(lambda: len(robot.asked) == 3) and robot.asked[2].action == Query.CLEAR

        if "LUSEEL_SCREENSHOT" in os.environ:
            take_screenshot(page, robot)
        assert page.problems == []


def take_screenshot(page, robot):
    """The picture of docs/tools.md: a minute of three sounds, of which one moves."""
    random = np.random.default_rng(0)
    robot.begin += 10 * 10**9
    for hop in range(110):
        robot.hear(("q1", "dog barking", (60 + random.normal(0, 4)) % 360,
                    0.9 if 20 < hop < 70 or hop > 95 else 0.12),
                   ("q2", "somebody talking", (300 - hop + random.normal(0, 3)) % 360,
                    0.75 + 0.2 * random.random()),
                   ("q3", "rooster crowing", random.uniform(0, 360), 0.08))
        robot.sound(0.2, 0.09)
        time.sleep(0.02)
    time.sleep(2)
    page.evaluate("document.getElementById('answer').textContent = ''")
    page.screenshot(path=os.environ["LUSEEL_SCREENSHOT"])


def test_words_from_elsewhere_are_text_and_nothing_else(page):
    with watched() as (robot, address):
        page.goto(address)
        assert until(lambda: page.inner_text("#state") == "connected")
        evil_id = "\"><script>document.title='owned'</script>"
        robot.hear((evil_id, EVIL, 45.0, 0.9))
        assert until(lambda: page.locator("#queries li").count() == 1)
        assert page.locator("#queries .words").inner_text() == EVIL
        assert until(lambda: arrows(page).get(evil_id))
        page.wait_for_timeout(300)  # for what would run
        assert page.title() == "LuSeeL"
        assert page.locator("img").count() == 0
        assert page.evaluate("document.scripts.length") == 1
        # even a hole would run nothing: the browser refuses scripts that aren't the server's file
        page.evaluate("document.body.insertAdjacentHTML('beforeend', "
                      "'<img src=x onerror=\"document.title=1\">')")
        page.wait_for_timeout(300)
        assert page.title() == "LuSeeL"


def test_the_node_says_no_and_the_page_shows_why(page):
    with watched(service=True) as (robot, address):
        page.goto(address)
        assert until(lambda: page.inner_text("#state") == "connected")
        for words, shown in (("dog", "listening"),
                             ("too much", "refused: there are 8 queries already")):
            page.fill("#words", words)
            page.press("#words", "Enter")
            assert until(lambda: page.inner_text("#answer") == shown)
        assert [q.text for q in robot.asked] == ["dog", "too much"]


# -- without a browser ---------------------------------------------------------------------------

async def talk(address, *texts, headers=None):
    """Open the WebSocket, send the texts; -> the answers."""
    answers = []
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(address + "/ws", headers=headers or {}) as socket:
            for text in texts:
                await socket.send_str(text)
                while True:
                    message = await asyncio.wait_for(socket.receive(), PATIENCE)
                    if message.type != aiohttp.WSMsgType.TEXT:
                        answers.append(message.type)
                        return answers
                    data = json.loads(message.data)
                    if data["type"] == "answer":
                        answers.append((data["ok"], data["reason"]))
                        break
    return answers


def test_what_a_page_may_not_do():
    with watched() as (robot, address):
        async def run():
            async with aiohttp.ClientSession() as session:
                async def status(path="/", **headers):
                    async with session.get(address + path, headers=headers) as response:
                        return response.status, dict(response.headers)
                code, headers = await status()
                assert code == 200 and "script-src 'self'" in headers["Content-Security-Policy"]
                assert "unsafe" not in headers["Content-Security-Policy"]
                # a page of elsewhere whose name was pointed here, or that opens our socket
                port = address.rsplit(":", 1)[1]
                assert (await status(Host="evil.example"))[0] == 403
                assert (await status(Host=f"localhost:{port}"))[0] == 200
                assert (await status("/ws", Origin="http://evil.example"))[0] == 403
                for path in ("/../watch.py", "/watch.py", "/%2e%2e/watch.py", "/page/"):
                    assert (await status(path))[0] == 404
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await talk(address, headers={"Origin": "http://evil.example"})
            answers = await talk(
                address, "no JSON", "[1]", '{"action": 3}', '{"action": "burn"}',
                '{"action": "add", "text": " "}', json.dumps({"action": "add", "text": "x" * 999}),
                '{"action": "add", "text": "dog"}', headers={"Origin": address})
            assert [ok for ok, _ in answers] == [False] * 6 + [True]
            assert (await talk(address, "x" * 20000))[0] in (
                aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        run_async(run())
        assert until(lambda: robot.asked)
        assert [q.text for q in robot.asked] == ["dog"]


def test_a_slow_page_gets_the_newest_and_memory_stays():
    server = watch.Server("/luseel", lambda *_: None)

    async def run():
        waiting = asyncio.Queue(watch.BACKLOG)
        server._clients["slow"] = waiting
        for number in range(1000):
            server.send({"type": "level", "db": [number]})
        assert waiting.qsize() == watch.BACKLOG
        newest = [json.loads(waiting.get_nowait())["db"][0] for _ in range(watch.BACKLOG)]
        assert newest == list(range(1000 - watch.BACKLOG, 1000))
    run_async(run())


def test_events_for_the_page_have_no_numbers_that_json_lacks():
    event = conversions.sound_event("q1", "dog", float("nan"), np.full(360, 0.5), 0.4, 0.5, 0.1)
    event.likelihood[3] = float("nan")
    data = watch.describe_events(SoundEventArray(events=[event]))
    json.dumps(data, allow_nan=False)
    assert data["events"][0]["azimuth"] is None and data["events"][0]["likelihood"][3] == 0
    right = conversions.sound_event("q1", "dog", 270.0, np.full(360, 0.5), 0.4, 0.5, 0.1)
    assert watch.describe_events(SoundEventArray(events=[right]))["events"][0]["azimuth"] == 270


def test_a_port_in_use_is_said():
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LuseelError, match="Choose another with --port"):
            run_async(watch.serve(watch.Server("/x", None), "127.0.0.1",
                                  taken.getsockname()[1], None, asyncio.Event()))


def test_the_command_as_a_process():
    """It serves the page on localhost and ends with status 0 on SIGINT."""
    with ros_context() as context:
        environment = dict(os.environ, ROS_DOMAIN_ID=str(context.get_domain_id()))
        process = subprocess.Popen(
            [sys.executable, "-m", "luseel_ros.tools", "watch", "--port", "0"], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            assert "watching /luseel on http://127.0.0.1:" in line, process.stderr.read()
            import urllib.request
            with urllib.request.urlopen(line.split()[3], timeout=PATIENCE) as response:
                assert b"<title>LuSeeL</title>" in response.read()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0 and errors == ""


def test_arguments(capsys):
    parser = argparse.ArgumentParser()
    watch.register(parser.add_subparsers())
    args = parser.parse_args(["watch"])
    assert (args.host, args.port, args.node) == ("127.0.0.1", 8080, "/luseel")
    with pytest.raises(LuseelError, match="expected 0 to 65535"):
        watch.run(SimpleNamespace(port=99999))
