"""The separation tables' command line (``python -m training.separation``).

    python -m training.separation evaluate                       # what needs no model
    python -m training.separation evaluate --checkpoint PATH     # the same command resumes
    python -m training.separation table RUN ... --out FOLDER     # beside the paper's tables
    python -m training.separation write --out FOLDER             # a new version of the mixtures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from luseel_model.errors import LuseelError
from training.benchmark.catalogue import find_recordings
from training.benchmark.render import Renderer
from training.benchmark.run import Results
from training.captions import Captions
from training.corpus.pack import file_sha256
from training.pool import ClipPool
from training.separation.mixtures import MONO, head_of, load_mixtures, make_mixtures
from training.separation.run import run_cell, with_binaural
from training.separation.table import read_run, write_tables

RUNS = Path("runs") / "separation"
REFERENCE = "reference"


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a checkpoint, or without one the unprocessed mixtures and the oracle masks."""
    mixtures = load_mixtures(options.mixtures)
    catalogue = mixtures.catalogue
    cells = catalogue.choose(options.cells or [MONO])
    model, about = None, {"model": REFERENCE, "clue": ""}
    if options.checkpoint is not None:
        from luseel_model import load_model
        from luseel_model.checkpoint import find_checkpoint

        model = with_binaural(load_model(options.checkpoint, options.device), options.binaural)
        about = {"model": model.config.name, "model_sha256": file_sha256(
                     find_checkpoint(options.checkpoint)),
                 "clue": "text" if "text" in model.capabilities.clues else "tag",
                 "binaural": options.binaural}
    name = "-".join(filter(None, (about["model"], options.binaural)))
    pool = ClipPool.load(options.packed, "test")
    found = find_recordings(catalogue, pool)
    if found.missing:
        print(f"{len(found.missing)} of {len(catalogue.recordings)} recordings are missing: their "
              "mixtures are left out, the figures can't be compared", file=sys.stderr)
    about |= {"catalogue_sha256": catalogue.sha256, "missing": len(found.missing),
              "altered": len(found.altered)}
    results = Results(options.out or RUNS / name, about)
    try:
        for cell in cells:
            renderer = Renderer(catalogue, cell, pool, head_of(cell.name))
            run_cell(model, mixtures, renderer, results, options.count)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from here ({results.folder})", file=sys.stderr)
        raise
    print(results.folder)


def tables(options: argparse.Namespace) -> None:
    """Write the tables of some runs."""
    mixtures = load_mixtures(options.mixtures)
    out = write_tables(read_run(options.reference, mixtures),
                       [read_run(folder, mixtures) for folder in options.runs], mixtures,
                       options.out)
    print((out / "separation.md").read_text(encoding="utf-8"))


def write(options: argparse.Namespace) -> None:
    """Draw a new version of the mixtures."""
    mixtures = make_mixtures(options.out, ClipPool.load(options.packed, "test"), Captions.load(),
                             options.version, options.seed, options.count)
    print(f"{options.out}: {len(mixtures.queries)} mixtures, {mixtures.catalogue.identity}")


def main(arguments: list[str] | None = None) -> int:
    """Command line: see ``python -m training.separation --help``."""
    parser = argparse.ArgumentParser(prog="python -m training.separation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    part = commands.add_parser("evaluate", help="measure a model; the same command resumes")
    part.add_argument("--checkpoint", help="shipped model's name or a .safetensors file; none: the "
                      "unprocessed mixtures and oracle masks")
    part.add_argument("--out", help=f"folder of the run (default: {RUNS}/MODEL)")
    part.add_argument("--cells", nargs="+", help=f"e.g. {MONO} (default) and mit_kemar")
    part.add_argument("--count", type=int, help="the first so many mixtures (default: all)")
    part.add_argument("--binaural", choices=("mid", "each"),
                      help="one mask for both ears or one for each, for models with that choice")
    part.add_argument("--packed", default="data/packed")
    part.add_argument("--mixtures", help="folder of another version of the mixtures")
    part.add_argument("--device", help="cpu, cuda, ...")
    part.set_defaults(run=evaluate)

    part = commands.add_parser("table", help="tables and box plots of some runs")
    part.add_argument("runs", nargs="*", help="folders of runs, in the order of the rows")
    part.add_argument("--reference", default=str(RUNS / REFERENCE))
    part.add_argument("--out", default="docs/reports/separation")
    part.add_argument("--mixtures", help="folder of another version of the mixtures")
    part.set_defaults(run=tables)

    part = commands.add_parser("write", help="draw a new version of the mixtures")
    part.add_argument("--out", required=True)
    part.add_argument("--version", default="v1")
    part.add_argument("--seed", type=int, default=20261121)
    part.add_argument("--count", type=int, default=320)
    part.add_argument("--packed", default="data/packed")
    part.set_defaults(run=write)

    options = parser.parse_args(arguments)
    if getattr(options, "count", None) is not None and options.count < 1:
        parser.error(f"--count: {options.count} must be 1 or more")
    try:
        options.run(options)
    except LuseelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
