"""Command line: see ``python -m training.pictures --help``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

from luseel_model.errors import LuseelError
from luseel_model.families import load_config
from training.pictures.bank import embed_pictures
from training.pictures.build import build
from training.pictures.catalogue import read_catalogue
from training.pictures.coco_fsd50k import write_manifests


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.pictures", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="fetch the packages and pack their pictures")
    command.add_argument("--out", type=Path, default=Path("data/pictures"))
    command.add_argument("--cache", type=Path, default=Path("data/packages"),
                         help="downloaded packages are kept here")
    command = commands.add_parser("embed", help="embeddings of augmented versions")
    command.add_argument("--pictures", type=Path, default=Path("data/pictures"))
    command.add_argument("--model", default="id-uss-small",
                         help="a model whose image encoder is used")
    command = commands.add_parser(
        "coco-fsd50k", help="manifests of the paper's data from COCO, FSD50K and the ontology")
    for name, what in (("coco", "folder with annotations/ and train2017/, val2017/"),
                       ("fsd50k", "folder with FSD50K.ground_truth/, FSD50K.dev_audio/, ..."),
                       ("ontology", "AudioSet's ontology.json"), ("out", "folder to write to")):
        command.add_argument(f"--{name}", type=Path, required=True, help=what)
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            report = build(read_catalogue(), options.out, options.cache)
            print(f"{report.built} pictures packed, {report.kept} kept, "
                  f"{len(report.failures)} failed")
            for package, path, reason in report.failures:
                print(f"  {package}: {path}: {reason}")
            return 1 if report.failures else 0
        if options.command == "embed":
            print(embed_pictures(options.pictures, load_config(options.model).image))
        else:
            for line in write_manifests(options.coco, options.fsd50k, options.ontology,
                                        options.out):
                print(line)
    except LuseelError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
