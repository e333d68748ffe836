"""The paper's table on the open benchmark (docs/paper_table.md).

    python -m training.paper_table train        # all systems; the same command resumes
    python -m training.paper_table evaluate     # on the benchmark; the same command resumes
    python -m training.paper_table table        # the ten rows, the figures
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from luseel_model.checkpoint import read_checkpoint
from luseel_model.errors import ConfigError
from training.benchmark.catalogue import find_recordings, load_catalogue
from training.benchmark.render import Renderer
from training.benchmark.report import summarise, write_report
from training.benchmark.run import Results, run_cell
from training.corpus.pack import file_sha256
from training.heads import load_head
from training.paper_table.systems import SYSTEMS, LeftEar, System, hears_one_ear, load_system
from training.paper_table.table import write_table
from training.pool import ClipPool
from training.tasks.luseel import LuSeeLTask
from training.train import add_run_options, run_command
from training.trainer import Trainer, load_train_config

CELLS = ("mit_kemar-2-none", "mit_kemar-3-none")


def _systems(keys: list[str] | None) -> list[System]:
    known = [system.key for system in SYSTEMS]
    for key in keys or []:
        if key not in known:
            raise ConfigError(f"no system {key!r}; there are: {', '.join(known)}")
    return [system for system in SYSTEMS if keys is None or system.key in keys]


def train(args: argparse.Namespace) -> int:
    """Train the tagger that all share, then the systems one after the other."""
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    runs, systems = Path(args.runs), _systems(args.systems)
    start = runs / "tags" / "last.safetensors"
    tag_changes = list(args.changes)
    if args.tag_steps is not None:
        tag_changes += [f"steps={args.tag_steps}", f"tag_steps={args.tag_steps}"]
    jobs = [("tags", tag_changes, None)] if any(system.tagged for system in systems) else []
    jobs += [(system.key, args.changes, start if system.tagged else None) for system in systems]
    for key, changes, init in jobs:
        config = load_train_config(f"ablation/{key}", changes)
        LuSeeLTask.make_data(config)
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        trainer = None
        if left is None or left > 0:
            trainer = Trainer(config, runs / key, args.device, init)
            print(f"{key}: {trainer.network.parameter_count() / 1e6:.2f} M parameters, from step "
                  f"{trainer.step} to {config.steps}")
            if trainer.step < config.steps:
                trainer.run(left)
        if trainer is None or (trainer.step < config.steps
                               and trainer.stale < config.validation.stop_patience):
            print(f"stopped in {key}; the same command goes on")
            return 0
    print(f"all trained: {runs}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Ask every trained system for every sound of the two cells."""
    catalogue = load_catalogue(args.catalogue)
    cells = catalogue.choose(list(CELLS))
    pool = ClipPool.load(args.packed, "test")
    missing = find_recordings(catalogue, pool).missing
    if missing:
        raise ConfigError(f"{len(missing)} of the benchmark's recordings are not in {args.packed}: "
                          f"`luseel-benchmark-set check --catalogue {args.catalogue}` says which")
    runs, out = Path(args.runs), Path(args.results)
    tags = runs / "tags" / "last.safetensors"
    tag_seconds = read_checkpoint(tags)[2].get("training_seconds") if tags.is_file() else None
    for system in _systems(args.systems):
        path = runs / system.key / "best.safetensors"
        if not path.is_file():
            raise ConfigError(f"{path} is missing: run `python -m training.paper_table train`, or "
                              "name the systems that are there with --systems")
        model = load_system(path, args.device)
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        whole = read_checkpoint(path.with_name("last.safetensors"))[2]
        left = hears_one_ear(model)
        about = {"model": system.key, "model_sha256": file_sha256(path),
                 "catalogue_sha256": catalogue.sha256, "window": float(model.window),
                 "hop": model.window / 2, "sdr": args.sdr, "ears": "left" if left else "both",
                 "parameters": model.network.parameter_count(), "steps": model.info["step"],
                 "of_steps": config["steps"],
                 "training_seconds": whole.get("training_seconds"),
                 "tags_seconds": tag_seconds if system.tagged else None}
        results = Results(out / system.key, about)
        for cell in cells:
            renderer = (LeftEar if left else Renderer)(catalogue, cell, pool, load_head(cell.head))
            run_cell(model, catalogue, renderer, results, args.mixtures, sdr=args.sdr)
        rows = {cell.name: results.rows(cell.name) for cell in cells}
        inputs = {cell: results.inputs(cell) for cell in rows}
        summary = summarise(catalogue, rows, {**about, "inputs": inputs})
        write_report(summary, rows, out / system.key, figures=False)
        for name in ("validation.csv", "config.json"):
            shutil.copyfile(path.parent / name, out / system.key / name)
    print(f"results: {out}")
    return 0


def make_table(args: argparse.Namespace) -> int:
    """Write the table and the figures from the results."""
    files = write_table(args.results, args.out)
    print(files[0].read_text(encoding="utf-8"))
    print("written: " + ", ".join(str(file) for file in files))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.paper_table",
                                     description="The paper's Table 1 on the open benchmark.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action, summary: str) -> argparse.ArgumentParser:
        part = commands.add_parser(name, help=summary, description=summary)
        part.set_defaults(action=action, threads=None)
        return part

    trained = command("train", train, "Train all systems in order; the same command resumes.")
    trained.add_argument("--tag-steps", type=int, help="steps of the tagger that all start from "
                         "(default: as in the configuration)")
    add_run_options(trained)
    evaluated = command("evaluate", evaluate, "Evaluate the trained systems; the same command "
                        "resumes.")
    evaluated.add_argument("--packed", default="data/packed", help="default: %(default)s")
    evaluated.add_argument("--catalogue", default="v1", help="version or folder of the benchmark "
                           "(default: %(default)s, which the committed table is of)")
    evaluated.add_argument("--mixtures", type=int, help="only the first so many of each cell")
    evaluated.add_argument("--sdr", action="store_true", help="SDRi as well: much slower")
    evaluated.add_argument("--device", help="cpu, cuda, ...")
    evaluated.add_argument("--threads", type=int, help="CPU threads")
    tabled = command("table", make_table, "Write table and figures from the results.")
    tabled.add_argument("--out", default="docs/reports/paper_table", help="default: %(default)s")
    for part in (trained, evaluated):
        part.add_argument("--runs", default="runs/ablation", help="folder of the trainings "
                          "(default: %(default)s)")
        part.add_argument("--systems", nargs="+", metavar="SYSTEM", help="only these: "
                          + ", ".join(system.key for system in SYSTEMS))
    for part in (evaluated, tabled):
        part.add_argument("--results", default="runs/paper_table", help="folder of the evaluations "
                          "(default: %(default)s)")
    args = parser.parse_args(argv)
    return run_command("paper_table", args, args.action)


if __name__ == "__main__":
    sys.exit(main())
