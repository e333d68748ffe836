"""The benchmark's command line (``luseel-benchmark-set`` or ``python -m training.benchmark``).

    luseel-benchmark-set build                        # heads and test rooms, once
    luseel-benchmark-set evaluate --checkpoint PATH   # every cell; the same command resumes
    luseel-benchmark-set compare RUN_A RUN_B
    luseel-benchmark-set audio --out FOLDER           # the mixtures as FLAC files
    luseel-benchmark-set examples RUN --out FOLDER    # median mixtures to hear and see
    luseel-benchmark-set write --out FOLDER           # a new version of the catalogue
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from luseel_model.errors import ConfigError, LuseelError
from training import SAMPLE_RATE
from training.benchmark import compare as comparison
from training.benchmark.catalogue import Catalogue, Found, find_recordings, load_catalogue
from training.benchmark.draw import AMEND_SEED, ROOM_BANK, SEED, amend_catalogue, make_catalogue
from training.benchmark.examples import read_licences, write_examples
from training.benchmark.render import Renderer, check_rooms
from training.benchmark.report import markdown, summarise, write_report
from training.benchmark.run import GIVEN_HEADS, Results, inputs_of, run_cell, tell_head
from training.captions import Captions
from training.corpus.pack import file_sha256
from training.heads import KNOWN, Head, load_head, prepare_heads
from training.pool import ClipPool
from training.report import plain
from training.rooms import DATA_FOLDER, RoomBank


def _recordings(catalogue: Catalogue, packed: str, allow_missing: bool) -> tuple[ClipPool, Found]:
    pool = ClipPool.load(packed, "test")
    found = find_recordings(catalogue, pool)
    if found.missing and not allow_missing:
        some = ", ".join(found.missing[:5]) + (", ..." if len(found.missing) > 5 else "")
        raise ConfigError(
            f"{len(found.missing)} of the {len(catalogue.recordings)} recordings of "
            f"{catalogue.identity} are not in {packed} ({some}): build and pack the sets that "
            "docs/data.md names, with no --packages or --max-package-mb that leaves some out; or "
            "go on without them with --allow-missing (the figures then can't be compared)")
    if found.missing:
        print(f"{len(found.missing)} recordings are missing: their mixtures are left out, the "
              "figures can't be compared", file=sys.stderr)
    if found.altered:
        print(f"{len(found.altered)} recordings have other samples than the catalogue's (another "
              "codec version?); figures may differ slightly", file=sys.stderr)
    return pool, found


def _head(name: str) -> Head:
    try:
        return load_head(name)
    except ConfigError:
        raise ConfigError(f"head {name} is missing: run `luseel-benchmark-set build`") from None


def _rooms(catalogue: Catalogue, head: str, folder: str) -> RoomBank:
    path = RoomBank.path(folder, head, catalogue.rooms["split"])
    if not path.is_file():
        raise ConfigError(f"{path} is missing: run `luseel-benchmark-set build`")
    return RoomBank.load(path)


def _renderers(catalogue: Catalogue, cells, pool: ClipPool, folder: str):
    """Renderers cell by cell, each head and its rooms loaded once while needed."""
    heads: dict[str, Head] = {}
    banks: dict[str, RoomBank] = {}
    for cell in cells:
        if cell.head not in heads:
            heads[cell.head] = _head(cell.head)
        if cell.room != "none" and cell.head not in banks:
            banks[cell.head] = _rooms(catalogue, cell.head, folder)
        yield Renderer(catalogue, cell, pool, heads[cell.head],
                       banks.get(cell.head) if cell.room != "none" else None)


def build(options: argparse.Namespace) -> None:
    """Make what the cells need beside the recordings: heads and test rooms."""
    catalogue = load_catalogue(options.catalogue)
    cells = catalogue.choose(options.cells)
    for name in dict.fromkeys(cell.head for cell in cells):
        try:
            head = load_head(name)
        except ConfigError:
            if name not in KNOWN:
                raise
            head = prepare_heads(options.heads_folder, [name])[0]
        print(f"head {name}: there")
        if not any(cell.head == name and cell.room != "none" for cell in cells):
            continue
        path = RoomBank.path(options.rooms, name, catalogue.rooms["split"])
        if path.is_file() and not options.rebuild:
            check_rooms(catalogue, RoomBank.load(path))
            print(f"{path}: there")
            continue
        about = catalogue.rooms
        bank = RoomBank.build(head, about["rooms"], about["positions"], about["split"],
                              about["seed"], tuple(about["rt60"]), None, options.jobs, True)
        check_rooms(catalogue, bank)
        bank.save(path.parent)
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    pool, found = _recordings(catalogue, options.packed, True)
    print(f"recordings in {options.packed}: {len(catalogue.recordings) - len(found.missing)} of "
          f"{len(catalogue.recordings)}")


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a checkpoint, cell by cell, and write the report after each."""
    from luseel_model import load_model
    from luseel_model.checkpoint import find_checkpoint

    catalogue = load_catalogue(options.catalogue)
    cells = catalogue.choose(options.cells)
    if options.mixtures is not None and options.mixtures < 1:
        raise ConfigError(f"--mixtures: {options.mixtures} must be 1 or more")
    path = find_checkpoint(options.checkpoint)
    model = load_model(options.checkpoint, options.device)
    pool, found = _recordings(catalogue, options.packed, options.allow_missing)
    name = path.stem if options.checkpoint is None else f"{path.resolve().parent.name}/{path.stem}"
    folder = Path(options.out or Path("runs") / "benchmark" / name.replace("/", "-"))
    hop = options.hop if options.hop is not None else model.window / 2
    at_once = model.heard_at_once(catalogue.samples, options.window) / SAMPLE_RATE
    captions = Captions.load()
    phrases = {sound.held_out: catalogue.recordings[sound.recording].kind
               for sounds in catalogue.sounds["two"] for sound in sounds}
    used = sum(words != kind and words in captions.variants(kind)
               for words, kind in phrases.items())
    about = {"model": name, "model_sha256": file_sha256(path), "catalogue_sha256": catalogue.sha256,
             "window": float(model.window), "hop": hop, "recording_window": at_once,
             "sdr": options.sdr,
             "give_head": {None: False, "measured": True}.get(options.give_head, options.give_head),
             "missing": len(found.missing),
             "altered": len(found.altered)}
    results = Results(folder, about)
    try:
        for renderer in _renderers(catalogue, cells, pool, options.rooms):
            told = None
            if options.give_head:
                told = tell_head(model, renderer.head, options.give_head)
            taken = options.shared_with and results.take_over(
                renderer.cell, catalogue, options.shared_with, inputs_of(renderer, told),
                options.mixtures)
            if taken:
                print(f"{renderer.cell.name}: {taken} mixtures taken over from "
                      f"{options.shared_with}")
            run_cell(model, catalogue, renderer, results, options.mixtures, hop, options.sdr,
                     told=told, window=options.window)
            # Cells of earlier commands belong to the report, too.
            rows = {cell: results.rows(cell) for cell in catalogue.cells}
            rows = {cell: some for cell, some in rows.items() if some}
            summary = summarise(catalogue, rows, {**about, "used_in_training": used, "inputs": {
                cell: results.inputs(cell) for cell in rows}})
            write_report(summary, rows, folder, figures=False)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from here ({folder})", file=sys.stderr)
        raise
    files = write_report(summary, rows, folder)
    print(markdown(summary))
    print("written: " + ", ".join(str(file) for file in files))


def compare(options: argparse.Namespace) -> None:
    """Print two runs side by side."""
    result = comparison.compare(options.before, options.after)
    text = comparison.markdown(result)
    print(text)
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.md").write_text(text, encoding="utf-8")
        (out / "comparison.json").write_text(json.dumps(plain(result), indent=1) + "\n",
                                             encoding="utf-8")


def audio(options: argparse.Namespace) -> None:
    """Write mixtures and their sounds as 16-bit FLAC, with what is in them."""
    import soundfile

    catalogue = load_catalogue(options.catalogue)
    pool, _ = _recordings(catalogue, options.packed, options.allow_missing)
    for renderer in _renderers(catalogue, catalogue.choose(options.cells), pool, options.rooms):
        folder = Path(options.out) / renderer.cell.name
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [n for n in range(min(options.mixtures or len(renderer), len(renderer)))
                   if n not in renderer.missing]
        with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["mixture", "audio", "kind", "azimuth", "recording", "held_out",
                             "absent", "rt60", "noise_db"])
            for number in tqdm(numbers, desc=renderer.cell.name, unit="mixture"):
                mixture = renderer[number]
                parts = [("mixture", mixture.audio), *(
                    (f"sound{i}", sound) for i, sound in enumerate(mixture.sources))]
                for part, samples in parts:
                    name = f"{number:03d}_{part}.flac"
                    soundfile.write(folder / name, samples.T, SAMPLE_RATE, "PCM_16")
                for i, kind in enumerate(mixture.kind):
                    writer.writerow([number, f"{number:03d}_sound{i}.flac", kind,
                                     f"{mixture.azimuth[i]:.2f}", mixture.recording[i],
                                     mixture.held_out[i], mixture.absent, mixture.rt60,
                                     mixture.noise_db])


def examples(options: argparse.Namespace) -> None:
    """Write the median mixture of some cells as sounds and pictures."""
    from luseel_model import load_model
    from luseel_model.checkpoint import find_checkpoint

    run = json.loads((Path(options.run_folder) / "run.json").read_text(encoding="utf-8"))
    if file_sha256(find_checkpoint(options.checkpoint)) != run["model_sha256"]:
        raise ConfigError(f"{options.run_folder} is a run of another checkpoint ({run['model']})")
    model, catalogue = load_model(options.checkpoint, options.device), load_catalogue(
        options.catalogue)
    if catalogue.sha256 != run["catalogue_sha256"]:
        raise ConfigError(f"{options.run_folder} is not a run on {catalogue.identity}: name its "
                          "version with --catalogue")
    results = Results(options.run_folder, run)
    # Of two sounds of one kind there is no right one.
    cells = [cell for cell in catalogue.choose(options.cells)
             if options.cells or cell.set != "same" and results.rows(cell.name)]
    pool, _ = _recordings(catalogue, options.packed, True)
    written = write_examples(model, _renderers(catalogue, cells, pool, options.rooms),
                             {cell.name: results.rows(cell.name) for cell in cells},
                             read_licences(options.packed), options.out, run["give_head"],
                             run.get("recording_window", run["window"]))
    print(f"{len(written)} files in {options.out}")


def write(options: argparse.Namespace) -> None:
    """Draw a catalogue from the packed recordings, or another without its doubtful labels."""
    pool, captions = ClipPool.load(options.packed, "test"), Captions.load()
    if options.amend:
        if options.mixtures or options.no_rooms:
            raise ConfigError("--amend keeps the mixtures and rooms of the version that is put "
                              "right: leave --mixtures and --no-rooms out")
        source = load_catalogue(options.amend)
        if not source.doubtful:
            raise ConfigError(f"{source.identity} has no doubtful labels (doubtful_labels.csv): "
                              "there is nothing to put right")
        catalogue = amend_catalogue(
            options.out, source, pool, captions, source.doubtful, options.version,
            AMEND_SEED if options.seed is None else options.seed)
    else:
        catalogue = make_catalogue(
            options.out, pool, captions, None if options.no_rooms else ROOM_BANK, options.version,
            SEED if options.seed is None else options.seed, options.mixtures or 300)
    print(f"{options.out}: {catalogue.identity}, {len(catalogue.recordings)} recordings, "
          f"{len(catalogue.cells)} cells")


def check(options: argparse.Namespace) -> None:
    """Say what the catalogue holds and whether everything is there to make it."""
    catalogue = load_catalogue(options.catalogue)
    kinds = {recording.kind for recording in catalogue.recordings}
    print(f"benchmark {catalogue.identity}: {len(catalogue.recordings)} recordings of "
          f"{len(kinds)} kinds")
    for cell in catalogue.cells.values():
        print(f"  {cell.name}: {catalogue.size(cell)} mixtures; asked: {', '.join(cell.asked)}")
    pool, _ = _recordings(catalogue, options.packed, False)
    for _ in _renderers(catalogue, catalogue.cells.values(), pool, options.rooms):
        pass
    print("everything is there")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="luseel-benchmark-set",
        description="The open benchmark: fixed mixtures, and the figures of a checkpoint on them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, summary: str, data: bool = True) -> argparse.ArgumentParser:
        part = commands.add_parser(function.__name__, help=summary, description=summary)
        part.set_defaults(run=function)
        if data:
            part.add_argument("--packed", default="data/packed", help="folder of packed recordings "
                              "(default: %(default)s)")
            part.add_argument("--rooms", default=str(DATA_FOLDER), help="folder of the test rooms "
                              "(default: %(default)s)")
            part.add_argument("--catalogue", help="v1, v2, or the folder of a catalogue "
                              "(default: the newest of the package's)")
        return part

    part = command(build, "Make the heads and the test rooms.")
    part.add_argument("--cells", nargs="+", metavar="CELL", help="only what these need")
    part.add_argument("--heads-folder", default="data/heads")
    part.add_argument("--jobs", type=int, default=1, help="processes for the rooms")
    part.add_argument("--rebuild", action="store_true", help="rooms that are there as well")
    command(check, "Say what is in the benchmark, and whether all it needs is here.")
    part = command(evaluate, "Evaluate a checkpoint; the same command resumes an interrupted run.")
    part.add_argument("--checkpoint", help="path or name of a checkpoint (default: the shipped)")
    part.add_argument("--out", help="folder of the run (default: runs/benchmark/<checkpoint>)")
    part.add_argument("--cells", nargs="+", metavar="CELL", help="names or patterns, such as "
                      "'*-2-none' (default: all)")
    part.add_argument("--mixtures", type=int, help="only the first so many of each cell; the "
                      "report says so")
    part.add_argument("--window", type=float, help="seconds from which sounds are extracted at "
                      "once (default: as `luseel extract`); directions and live figures are of a "
                      "stream's windows")
    part.add_argument("--hop", type=float, help="seconds between a stream's windows (default: half "
                      "a window)")
    part.add_argument("--sdr", action="store_true", help="SDR as well: much slower")
    part.add_argument("--give-head", nargs="?", const="measured", choices=GIVEN_HEADS,
                      help="tell the model the responses of each cell's head (models that use them; "
                      "the others refuse), all as measured, or as `luseel calibrate --head` finds "
                      "them from one clap every 30° in a mild room")
    part.add_argument("--shared-with", metavar="RUN", help="folder of a run of the same checkpoint "
                      "on another version: what both versions have in common isn't heard again")
    part.add_argument("--allow-missing", action="store_true", help="leave out mixtures whose "
                      "recordings aren't here")
    part.add_argument("--device", help="cpu, cuda, ...")
    part.add_argument("--threads", type=int, help="CPU threads")
    part = command(compare, "Two runs side by side, with paired differences.", data=False)
    part.add_argument("before", help="folder or summary.json of a run")
    part.add_argument("after", help="of another")
    part.add_argument("--out", help="folder for comparison.md and comparison.json")
    part = command(audio, "Write the mixtures and their sounds as FLAC files.")
    part.add_argument("--out", required=True)
    part.add_argument("--cells", nargs="+", metavar="CELL")
    part.add_argument("--mixtures", type=int)
    part.add_argument("--allow-missing", action="store_true")
    part = command(examples, "Write the median mixture of some cells as sounds and pictures.")
    part.add_argument("run_folder", metavar="RUN", help="folder of an evaluated run")
    part.add_argument("--checkpoint", help="the checkpoint of that run (default: the shipped)")
    part.add_argument("--out", required=True)
    part.add_argument("--cells", nargs="+", metavar="CELL", help="(default: all that were "
                      "evaluated, but for those with sounds of one kind)")
    part.add_argument("--device", help="cpu, cuda, ...")
    part = command(write, "Draw a new version of the catalogue from packed recordings.",
                   data=False)
    part.add_argument("--packed", default="data/packed")
    part.add_argument("--out", required=True, help="folder to write to")
    part.add_argument("--version", default="v1", help="its name (default: %(default)s)")
    part.add_argument("--seed", type=int, help="(default: that of the package's versions)")
    part.add_argument("--amend", metavar="CATALOGUE", help="instead of drawing all anew: this "
                      "version (folder or name) without the recordings of its doubtful_labels.csv")
    part.add_argument("--mixtures", type=int, help="per set (default: 300)")
    part.add_argument("--no-rooms", action="store_true")
    options = parser.parse_args(arguments)
    if getattr(options, "threads", None):
        torch.set_num_threads(options.threads)
    try:
        options.run(options)
    except LuseelError as error:
        print(f"luseel-benchmark-set: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
