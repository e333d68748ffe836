"""Command line: see ``python -m training.image_table --help``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Sequence

from luseel_model.checkpoint import find_checkpoint, load_network
from luseel_model.errors import CheckpointError, ConfigError, LuseelError
from luseel_model.id_uss import IDUSS
from luseel_model.inference import load_model
from training.benchmark.run import Results
from training.corpus.pack import file_sha256
from training.image_table.figure import extraction_figure
from training.image_table.measure import CONDITIONS, measure
from training.image_table.rows import ROWS
from training.image_table.table import read_results, report
from training.pictures.bank import encoder_name


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path} is missing: make it first (docs/id_uss.md, Training)")
    return file_sha256(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.image_table", description=__doc__,
        epilog="Train the small rows first: " + ", ".join(
            f"luseel-train --config {small}" for small in
            dict.fromkeys(row.small for row in ROWS if row.small)))
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("measure", help="measure a checkpoint")
    command.add_argument("checkpoint", help="name of a shipped one, or a path")
    command.add_argument("--name", required=True,
                         help="of the result: a row's (conformer, resunet, conv-tasnet), or any")
    command.add_argument("--mixtures", type=int, default=200)
    command.add_argument("--results", type=Path, default=Path("runs/image_table"),
                         help="folder of the rows (default: %(default)s); the same command goes on")
    command.add_argument("--packed", default="data/packed")
    command.add_argument("--pictures", default="data/pictures")
    for command in (command, commands.add_parser("report", help="results as Markdown")):
        command.add_argument("--out", type=Path, default=Path("docs/reports/image"))
    command = commands.add_parser("figure", help="spectrograms of what pictures extract")
    command.add_argument("checkpoint", help="name of a shipped one, or a path")
    command.add_argument("--sounds", nargs="+", required=True, help="recordings that are mixed")
    command.add_argument("--pictures", nargs="+", required=True, help="a picture of each")
    command.add_argument("--out", type=Path, default=Path("docs/figures/id_uss.png"))
    options = parser.parse_args(arguments)
    try:
        if options.command == "report":
            text = report(read_results(options.out))
            (options.out / "report.md").write_text(text, encoding="utf-8")
            print(text)
            return 0
        if options.command == "figure":
            extraction_figure(load_model(options.checkpoint, "cpu"), options.sounds,
                              options.pictures, options.out)
            print(options.out)
            return 0
        network, info = load_network(options.checkpoint)
        if not isinstance(network, IDUSS):
            raise CheckpointError(f"{options.checkpoint} is no ID-USS model: give one that takes "
                                  "pictures")
        about = {"model_sha256": file_sha256(find_checkpoint(options.checkpoint)),
                 "recordings_sha256": _sha256(Path(options.packed) / "test.csv"),
                 "pictures_sha256": _sha256(Path(options.pictures) / "embeddings" /
                                            f"{encoder_name(network.config.image)}.safetensors")}
        results = Results(options.results / options.name, about)
        result = {"checkpoint": Path(options.checkpoint).stem, "step": info.get("step"),
                  "parameters": network.parameter_count(), **about, "conditions": {
                      condition.name: measure(network, options.packed, options.pictures, condition,
                                              options.mixtures, results)
                      for condition in CONDITIONS}}
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(path)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    except LuseelError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
