"""One run as a picture, an animation and a bag.

    python tools/robot/animate.py --out robot_output        (``make robot-demo``)

Runs the closed loop once and leaves robot.gif, robot.png (the last moment) and robot_bag, a
rosbag2 for RViz (config/luseel.rviz; fixed frame: map).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from base import RADIUS, Pose  # noqa: E402
from home import QUERY, Home, draw_home  # noqa: E402
from matplotlib.animation import PillowWriter  # noqa: E402
from matplotlib.patches import Circle, Ellipse, Polygon, Rectangle  # noqa: E402
from tqdm import tqdm  # noqa: E402
from world import ARRIVAL, Record  # noqa: E402

#: Colours (Okabe and Ito: told apart by everybody).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
RING = 0.45, 0.75  # [m] of the likelihood ring, and how far it bulges
FRAME_STEP = 3  # steps of the world in a frame
BAR = "{desc}: {n:.0f} of {total:.0f} s|{bar}| {elapsed}"


def ring(pose: Pose, likelihood: np.ndarray) -> np.ndarray:
    """The likelihood (360,) as a line around the robot, (361, 2) metres."""
    angle = np.deg2rad(np.arange(361)) + pose.yaw
    radius = RING[0] + RING[1] * np.append(likelihood, likelihood[0])
    return np.stack([pose.x + radius * np.cos(angle), pose.y + radius * np.sin(angle)], 1)


def ellipse(covariance: np.ndarray, turn: float) -> tuple[float, float, float]:
    """Width, height (m) and angle (degrees) of the ellipse that holds 95% of a covariance (2, 2),
    turned by radians."""
    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * np.sqrt(5.991 * np.maximum(values[::-1], 0))  # chi² with 2 degrees, 95%
    return width, height, math.degrees(math.atan2(*vectors[::-1, 1]) + turn)


def _newest(entries, time: float, key):
    """The last entry not after that time, or None."""
    found = None
    for entry in entries:
        if key(entry) > time + 1e-6:
            break
        found = entry
    return found


class Picture:
    """A figure of the run at any of its steps.

    Args:
        home, record: of the run.
        title: above the map.
    """

    def __init__(self, home: Home, record: Record, title: str = ""):
        self.home, self.record = home, record
        wide = home.size[0] / home.size[1]
        self.figure = plt.figure(figsize=(6.4 * min(max(wide, 0.9), 1.3), 8.0), dpi=80)
        grid = self.figure.add_gridspec(2, 1, height_ratios=[3.2, 1], hspace=0.16,
                                        left=0.09, right=0.97, top=0.93, bottom=0.07)
        self.map, self.line = (self.figure.add_subplot(grid[i]) for i in (0, 1))
        self.title = title

    def draw(self, step: int) -> None:
        """The state after that step (an index into the record)."""
        record, time = self.record, self.record.times[step]
        pose, odometry = Pose(*record.poses[step]), Pose(*record.odometry[step])
        heard = _newest(record.heard, time - 0.5, lambda h: h.time)
        position = _newest(record.positions, time - 0.5, lambda p: p[0])
        self._draw_map(step, time, pose, odometry, heard, position)
        self._draw_line(time)

    def _draw_map(self, step, time, pose, odometry, heard, position) -> None:
        axes, home, record = self.map, self.home, self.record
        axes.clear()
        length, width = home.size[:2]
        axes.add_patch(Rectangle((0, 0), length, width, fill=False, lw=3, ec="#333333", zorder=1))
        for x0, y0, x1, y1 in home.boxes:
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fc="#D8D2C8", ec="#A09888"))
        path = np.array(record.poses[:step + 1])
        axes.plot(*np.vstack([[home.start.x, home.start.y], path[:, :2]]).T, color=BLUE, lw=1.5,
                  alpha=0.7, zorder=2)
        axes.plot(home.start.x, home.start.y, "o", color=BLUE, ms=4, zorder=2)
        for i, source in enumerate(home.sources):
            place, sounds = record.places[step][i], record.sounding[step][i]
            colour = RED if i == 0 else GREY
            axes.plot(*place, "*" if i == 0 else "s", color=colour, ms=15 if i == 0 else 8,
                      zorder=4, alpha=1.0 if sounds else 0.45)
            if sounds:
                phase = (time % 0.9) / 0.9
                for ring_phase in (phase, (phase + 0.5) % 1):
                    axes.add_patch(Circle(place, 0.1 + 0.35 * ring_phase, fill=False, ec=colour,
                                          lw=1.2, alpha=0.9 * (1 - ring_phase), zorder=3))
            left = place[0] > 0.75 * length
            axes.annotate(source.label, place, (-11 if left else 11, 9),
                          textcoords="offset points", color=colour, fontsize=9,
                          ha="right" if left else "left", zorder=6,
                          weight="bold" if i == 0 else "normal")
        axes.add_patch(Circle(record.places[step][0], ARRIVAL, fill=False, ec=RED, ls=":", lw=1))
        if heard is not None:
            axes.add_patch(Polygon(ring(pose, heard.likelihood), fc=ORANGE, ec=ORANGE,
                                   alpha=0.25 + 0.3 * heard.confidence, lw=1, zorder=3))
            if math.isfinite(heard.azimuth):
                # told of half a second ago: the robot has turned since
                then = Pose(*record.odometry[max(0, round(heard.time / 0.1) - 1)])
                turned = pose.yaw + math.radians(heard.azimuth) + then.yaw - odometry.yaw
                tip = np.array([math.cos(turned), math.sin(turned)])
                axes.annotate("", (pose.x + 1.25 * tip[0], pose.y + 1.25 * tip[1]),
                              (pose.x, pose.y), zorder=5,
                              arrowprops={"arrowstyle": "-|>", "color": GREEN, "lw": 2.2})
        axes.add_patch(Circle((pose.x, pose.y), RADIUS, fc="white", ec=BLUE, lw=2, zorder=5))
        nose = RADIUS * np.array([math.cos(pose.yaw), math.sin(pose.yaw)])
        axes.plot([pose.x, pose.x + nose[0]], [pose.y, pose.y + nose[1]], color=BLUE, lw=2.5,
                  zorder=6)
        if position is not None and time - position[0] < 3.0:
            # from the odometry's frame to the home's, as the robot stands now
            x, y = pose.to_outer(*odometry.to_local(position[1], position[2]))
            turn = pose.yaw - odometry.yaw
            size = ellipse(position[3], turn)
            axes.add_patch(Ellipse((x, y), size[0], size[1], angle=size[2], fc=GREEN, ec=GREEN,
                                   alpha=0.25, zorder=3))
            axes.plot(x, y, "x", color=GREEN, ms=9, mew=2.5, zorder=6)
        axes.set_xlim(-0.15, length + 0.15)
        axes.set_ylim(-0.15, width + 0.15)
        axes.set_aspect("equal")
        axes.set_title(f"{self.title}   {time:4.1f} s   {record.states[step]}", fontsize=11,
                       loc="left")
        axes.tick_params(labelsize=8)
        axes.set_ylabel("m", fontsize=8, labelpad=1)
        marks = [plt.Line2D([], [], color=GREEN, lw=2.2), plt.Line2D([], [], color=ORANGE, lw=6,
                                                                     alpha=0.5),
                 plt.Line2D([], [], color=GREEN, marker="x", mew=2.5, lw=0),
                 plt.Line2D([], [], color=BLUE, lw=1.5)]
        axes.legend(marks, ["tracked direction", "likelihood of the hop", "place, 95%", "path"],
                    loc="upper center", bbox_to_anchor=(0.5, -0.045), ncol=4, fontsize=8,
                    frameon=False, handlelength=1.6, columnspacing=1.4)

    def _draw_line(self, time: float) -> None:
        axes, record = self.line, self.record
        axes.clear()
        heard = [h for h in record.heard if h.time <= time - 0.5 + 1e-6]

        def signed(azimuth):
            return (np.asarray(azimuth, float) + 180.0) % 360.0 - 180.0

        times = [h.time for h in heard]
        raw = [h.raw if h.confidence >= 0.5 else math.nan for h in heard]
        axes.plot(times, signed([h.truth for h in heard]), "o", color=RED, ms=4, mfc="none",
                  label="true")
        axes.plot(times, signed(raw), ".", color=ORANGE, ms=6, label="hop")
        axes.plot(times, signed([h.azimuth for h in heard]), "x", color=GREEN, ms=5, mew=1.5,
                  label="tracked")
        axes.set_xlim(0, max(record.times[-1], 1.0))
        axes.set_ylim(-190, 190)
        axes.set_yticks([-180, -90, 0, 90, 180], ["behind", "right", "front", "left", "behind"],
                        fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_xlabel("s", fontsize=8, labelpad=1)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8, ncol=3, framealpha=0.8)

    def save_still(self, path: Path) -> None:
        """The last moment as a PNG."""
        self.draw(len(self.record.times) - 1)
        self.figure.savefig(path, dpi=110)

    def save_animation(self, path: Path, fps: int = 10) -> None:
        """All of it as a GIF, that ends with a still moment."""
        steps = list(range(0, len(self.record.times), FRAME_STEP))
        steps += [len(self.record.times) - 1] * fps
        writer, drawn = PillowWriter(fps), None
        with writer.saving(self.figure, str(path), self.figure.dpi):
            for step in tqdm(steps, desc=path.name, unit="frame"):
                if step != drawn:
                    self.draw(step)
                    drawn = step
                writer.grab_frame()

    def close(self) -> None:
        """Free the figure."""
        plt.close(self.figure)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    from loop import NAVIGATORS, ROOT, Loop, harness
    from recorder import Recorder

    from luseel_model.errors import LuseelError
    from training.heads import load_head
    from training.pool import ClipPool

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=102, help="which home (default: 102)")
    parser.add_argument("--navigator", default="luseel", choices=NAVIGATORS)
    parser.add_argument("--seconds", type=float, default=90.0, help="simulated, at most")
    parser.add_argument("--head", default="mit_kemar", help="of the robot")
    parser.add_argument("--model", default="", help="checkpoint (default: the shipped)")
    parser.add_argument("--packed", type=Path, default=ROOT / "data/packed")
    parser.add_argument("--out", type=Path, default=Path("robot_output"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        home = draw_home(args.seed, ClipPool.load(args.packed, "test"), seconds=args.seconds)
        with Loop(load_head(args.head), args.navigator == "luseel", args.model) as loop, \
                tqdm(total=args.seconds, desc="driving", bar_format=BAR) as bar:
            recorder = Recorder(loop, args.navigator)
            score, world = loop.run(home, args.navigator, args.seconds,
                                    lambda w: bar.update(round(w.time - bar.n, 1)))
            recorder.save(args.out / "robot_bag", world)
    except (LuseelError, harness.FieldError) as error:
        print(f"robot: {error}", file=sys.stderr)
        return 1
    print(json.dumps(score, indent=1))
    (args.out / "robot.json").write_text(json.dumps(score, indent=1) + "\n")
    picture = Picture(home, world.record, f"“{QUERY}”")
    picture.save_still(args.out / "robot.png")
    picture.save_animation(args.out / "robot.gif")
    picture.close()
    print(f"written: {args.out}/robot.gif, robot.png, robot_bag")
    return 0


if __name__ == "__main__":
    sys.exit(main())
