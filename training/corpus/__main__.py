"""``luseel-corpus``: build, pack and account for the recordings that training uses."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from luseel_model.errors import LuseelError
from training.corpus import debian, pack, toy


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="luseel-corpus", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = commands.add_parser(
        "debian", help="build the open corpus from Debian packages",
        description="Download the catalogued Debian packages (nothing is installed, no root rights "
        "needed), unpack them and write their recordings as 16 kHz mono clips. What is there "
        "already is kept: run it again to go on.")
    build.add_argument("--out", type=Path, default=Path("data/debian"), help="default: %(default)s")
    build.add_argument("--catalogue", type=Path, default=debian.CATALOGUE,
                       help="another catalogue than the shipped one")
    build.add_argument("--packages", nargs="+", metavar="NAME", help="only these packages")
    build.add_argument("--max-package-mb", type=float, metavar="MB",
                       help="leave out packages that are larger to download")
    build.add_argument("--cache", type=Path, help="folder for the packages (default: OUT/packages);"
                       " a .deb that lies there is used")
    build.add_argument("--delete-packages", action="store_true",
                       help="delete each package once its clips are built")
    build.add_argument("--list", action="store_true",
                       help="only list the packages, their sizes, clips and licences")

    commands.add_parser("pack", add_help=False,
                        help="pack recordings into the folder that training reads")

    generated = commands.add_parser(
        "toy", help="make a toy corpus of generated sounds, to try the tools with",
        description="Make and pack a few seconds each of a dozen generated kinds of sounds. They "
        "are for trying the tools; no figure of a network trained on them means anything.")
    generated.add_argument("--out", type=Path, default=toy.FOLDER, help="default: %(default)s")

    licences = commands.add_parser(
        "licences", help="report licences and authors of catalogued recordings",
        description="Write a Markdown report on the folders' catalogue.csv: recordings by package "
        "and licence, and author and origin of each recording where they are known.")
    licences.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    licences.add_argument("-o", "--output", type=Path, help="file (default: standard output)")
    return parser


def _megabytes(sizes: dict[str, int], package: str) -> str:
    return f"{sizes[package] / 1e6:.1f} MB" if package in sizes else "size unknown"


def _debian(options: argparse.Namespace) -> int:
    rows = debian.read_catalogue(options.catalogue, options.packages)
    counts = Counter(row["package"] for row in rows)
    sizes = debian.package_sizes(sorted(counts))
    if options.max_package_mb is not None:
        large = {name for name in counts if sizes.get(name, 0) > options.max_package_mb * 1e6}
        rows = [row for row in rows if row["package"] not in large]
        counts = Counter(row["package"] for row in rows)
    if options.list:
        speech = Counter(row["package"] for row in rows if row["category"] == "speech")
        licence = {row["package"]: row["licence"] for row in rows}
        for name in sorted(counts):
            print(f"{name:32} {_megabytes(sizes, name):>14} {counts[name] - speech[name]:5} events "
                  f"{speech[name]:5} speech  {licence[name]}")
    print(f"{len(counts)} packages, {sum(sizes.get(name, 0) for name in counts) / 1e6:.0f} MB, "
          f"{len(rows)} recordings")
    if options.list:
        return 0
    report = debian.build(rows, options.out, options.cache, options.delete_packages)
    print(f"{report.built} clips built, {report.kept} kept from before, in {options.out}")
    for package, path, reason in report.failures:
        print(f"failed: {' '.join(filter(None, (package, path)))}: {reason}", file=sys.stderr)
    if report.failures:
        print(f"{len(report.failures)} failures (see above). The catalogue was made with Debian 12;"
              " other releases lack some files.", file=sys.stderr)
    return 1 if report.failures else 0


def _toy(options: argparse.Namespace) -> int:
    manifest = toy.build(options.out)
    print(f"{sum(entry['recordings'] for entry in manifest['splits'].values())} generated "
          f"recordings of {manifest['kinds']} kinds, packed in {options.out}")
    return 0


def _licences(options: argparse.Namespace) -> int:
    text = debian.licence_report(debian.read_licences(options.folders))
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: ``luseel-corpus debian | pack | toy | licences``; see ``--help`` of each."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] == ["pack"]:  # has its own options
            pack.main(arguments[1:])
            return 0
        options = _parser().parse_args(arguments)
        return {"debian": _debian, "toy": _toy, "licences": _licences}[options.command](options)
    except (LuseelError, OSError) as error:
        print(f"luseel-corpus: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
