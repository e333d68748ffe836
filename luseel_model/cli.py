"""``luseel``: extract a described sound from a file, listen live, calibrate a robot's ears, list
the models, time them.

Other packages add commands through the entry-point group ``luseel.commands``: the name of the
command, and a function that adds its parser to the subparsers it gets (and sets ``run``, called
with the parsed arguments, which returns the exit status). ``listen`` of another package takes the
place of the one here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Callable, Mapping

from . import listen
from .angles import compass
from .errors import LuseelError

COMMANDS = "luseel.commands"  # entry points of other packages
_PICTURES = (".png", ".svg", ".pdf")


def _extract(args: argparse.Namespace) -> int:
    import soundfile

    from .inference import load_model

    out = [Path(p) for p in args.out or []]
    if out and len(out) != len(args.query):
        raise LuseelError(f"{len(args.query)} queries need {len(args.query)} -o files, "
                          f"got {len(out)}")
    out = out or [_default_output(args.input, query) for query in args.query]
    if len(set(out)) < len(out):
        raise LuseelError("two queries would be written to one file: name one for each with -o")
    formats = [f".{name.lower()}" for name in soundfile.available_formats()]
    for path, known in [*((p, formats) for p in out),
                        *([(Path(args.plot), _PICTURES)] if args.plot else [])]:
        if not path.parent.is_dir():
            raise LuseelError(f"the folder of {path} doesn't exist")
        if path.suffix.lower() not in known:
            raise LuseelError(f"{path}: unknown kind of file; use one of {', '.join(known)}")
    try:
        audio, rate = soundfile.read(args.input, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise LuseelError(f"can't read {args.input}: {error}") from None
    model = load_model(args.model, args.device)
    progress = False if args.quiet else None
    results = model.extract(audio.T, rate, args.query, progress=progress)
    for path, result in zip(out, results):
        try:
            soundfile.write(path, result.audio.T, rate, subtype=_subtype(path))
        except (soundfile.LibsndfileError, OSError) as error:
            raise LuseelError(f"can't write {path}: {error}") from None
    if args.plot:
        from .plotting import plot_extractions
        plot_extractions(audio.T, results, args.plot)
    if args.json:
        report = [{**r.to_dict(), "file": str(p)} for r, p in zip(results, out)]
        print(json.dumps(report if len(report) > 1 else report[0], indent=1))
    else:
        for result, path in zip(results, out):
            side = "no direction" if result.azimuth is None else \
                f"{result.azimuth:5.1f}° ({compass(result.azimuth)})"
            print(f"{result.query}: {side}, confidence {result.confidence:.2f} -> {path}")
        if args.plot:
            print(f"picture -> {args.plot}")
    return 0


def _subtype(path: Path) -> str | None:
    # float keeps what lies above full scale; other formats take their default
    return "FLOAT" if path.suffix.lower() == ".wav" else None


def _default_output(source: str, query: str) -> Path:
    words = "-".join("".join(c if c.isalnum() else " " for c in query.lower()).split())
    return Path(f"{Path(source).stem}_{words[:60]}.wav")


def _models(args: argparse.Namespace) -> int:
    from .checkpoint import CHECKPOINT_FOLDER, SHIPPED, read_checkpoint

    paths = sorted(CHECKPOINT_FOLDER.glob("*.safetensors"))
    if not paths:
        raise LuseelError(f"no checkpoints in {CHECKPOINT_FOLDER}")
    for path in paths:
        config, state, info = read_checkpoint(path)
        size = sum(v.numel() for v in state.values())
        default = " (default)" if path.stem == SHIPPED else ""
        print(f"{path.stem}{default}: {size / 1e6:.1f} M parameters, "
              f"{path.stat().st_size / 1e6:.1f} MB, window {config.window:g} s, "
              f"text encoder {config.text.encoder}, trained {info.get('step', '?')} steps "
              f"on {len(info.get('kinds', []))} kinds of sounds")
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    import torch

    from .benchmark import benchmark, untrained
    from .checkpoint import SHIPPED
    from .families import load_config
    from .inference import load_model

    if args.config and not args.untrained:
        raise LuseelError("--config needs --untrained: a checkpoint has its own configuration")
    if args.untrained and args.model:
        raise LuseelError("--model is a trained network: leave out it or --untrained")
    if args.threads is not None:
        if args.threads < 1:
            raise LuseelError(f"--threads must be 1 or more, got {args.threads}")
        torch.set_num_threads(args.threads)
    if args.untrained:
        model, note = untrained(load_config(args.config or SHIPPED), args.device)
    else:
        model, note = load_model(args.model, args.device), ""
    result = benchmark(model, args.rounds, args.hop, note=note)
    print(json.dumps(result.to_dict(), indent=1) if args.json else result.markdown())
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    import soundfile

    from .calibration import analyse, measure, plot_measurement

    if bool(args.recording) != bool(args.directions) or not (args.recording or args.at):
        raise LuseelError("give a recording with its --directions (calibrate claps.wav "
                          "--directions 0 90 180 270), or a file for each (--at 90 left.wav)")
    pairs = [(args.recording, args.directions)] if args.recording else []
    for azimuth, path in args.at or []:
        try:
            pairs.append((path, [float(azimuth)]))
        except ValueError:
            raise LuseelError(f"--at {azimuth} {path}: the direction in degrees comes first"
                              ) from None
    for path, known in ((Path(args.out), (".yaml", ".yml")),
                        *([(Path(args.plot), _PICTURES)] if args.plot else [])):
        if not path.parent.is_dir():
            raise LuseelError(f"the folder of {path} doesn't exist")
        if path.suffix.lower() not in known:
            raise LuseelError(f"{path}: unknown kind of file; use one of {', '.join(known)}")
    sounds = []
    for path, azimuths in pairs:
        try:
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise LuseelError(f"can't read {path}: {error}") from None
        sounds += analyse(audio.T, rate, azimuths, str(path))
    result = measure(sounds, args.straight)
    result.calibration.save(args.out)
    if args.plot:
        plot_measurement(result, args.plot)
    print("\n".join(result.verdict()))
    print(f"calibration -> {args.out}" + (f", picture -> {args.plot}" if args.plot else ""))
    return 0


def _unusable(commands, name: str, error: Exception) -> None:
    """A command that only says why it can't be used."""
    def run(args: argparse.Namespace) -> int:
        raise LuseelError(f"the command {name} can't be used: {type(error).__name__}: {error}")

    parser = commands.choices.get(name)
    if parser is None:
        parser = commands.add_parser(name, help="(can't be used here)", prefix_chars="\0")
        parser.add_argument("rest", nargs="*")
    parser.set_defaults(run=run)


def installed_commands() -> dict[str, Callable[[], Callable]]:
    """Name -> what loads the function, of the commands that installed packages add."""
    return {entry.name: entry.load for entry in entry_points(group=COMMANDS)}


def main(argv: list[str] | None = None,
         extra: Mapping[str, Callable[[], Callable]] | None = None) -> int:
    """Entry point; returns the exit status (2: what was given can't be used).

    Args:
        argv: the arguments; None: those of the process.
        extra: further commands, as `installed_commands` gives them; None: the installed ones.
    """
    parser = argparse.ArgumentParser(
        prog="luseel", description="Pull a sound described in words out of a binaural recording "
        "and say where it comes from (degrees counter-clockwise: 0 front, 90 left).")
    commands = parser.add_subparsers(dest="command", required=True)
    extract = commands.add_parser("extract", help="extract described sounds from a stereo file")
    extract.add_argument("input", help="stereo recording (WAV, FLAC, OGG, ...)")
    extract.add_argument("query", nargs="+", help='what to listen for, e.g. "dog barking"')
    extract.add_argument("-o", "--out", action="append",
                         help="output file, one for each query (default: INPUT_QUERY.wav)")
    extract.add_argument("--json", action="store_true", help="print everything known as JSON")
    extract.add_argument("--plot", metavar="PNG", help="write a picture")
    extract.add_argument("--model", help="checkpoint: name or .safetensors (default: the shipped)")
    extract.add_argument("--device", help="cpu, cuda, ...")
    extract.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    extract.set_defaults(run=_extract)
    models = commands.add_parser("models", help="list the shipped checkpoints")
    models.set_defaults(run=_models)
    speed = commands.add_parser(
        "benchmark", help="measure how fast a model is on this machine",
        description="Time one window of audio with one, two and three queries, and three queries "
        "in one call against three calls. Leave the machine idle meanwhile.")
    speed.add_argument("--model", help="checkpoint: name or .safetensors (default: the shipped)")
    speed.add_argument("--untrained", action="store_true",
                       help="time a network with random weights instead")
    speed.add_argument("--config", help="its configuration: luseel, luseel-small or a YAML file "
                       "(default: luseel-small)")
    speed.add_argument("--device", help="cpu, cuda, ...")
    speed.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    speed.add_argument("--hop", type=float, default=0.5,
                       help="seconds between two windows of a stream (default: %(default)s)")
    speed.add_argument("--rounds", type=int, default=30, help="default: %(default)s")
    speed.add_argument("--json", action="store_true", help="print the figures as JSON")
    speed.set_defaults(run=_benchmark)
    ears = commands.add_parser(
        "calibrate", help="measure what a robot's ears do to a few claps at known directions",
        description="Find out from claps (or other broadband sounds) at known directions whether "
        "left and right are swapped, one ear hears late, louder or inverted, or the head is "
        "turned, and write it to a file that the model and the node load. Directions are degrees "
        "counter-clockwise seen from above: 0 front, 90 left, 180 behind, 270 right; these four "
        "are the best.")
    ears.add_argument("recording", nargs="?", help="stereo recording of all claps")
    ears.add_argument("--directions", nargs="+", type=float, metavar="DEGREES",
                      help="where its claps were, in their order (equally many at each)")
    ears.add_argument("--at", nargs=2, action="append", metavar=("DEGREES", "FILE"),
                      help="instead: a recording of claps, or of a steady noise, at one direction")
    ears.add_argument("-o", "--out", default="ears.yaml", help="default: %(default)s")
    ears.add_argument("--plot", metavar="PNG", help="write a picture")
    ears.add_argument("--straight", action="store_true",
                      help="the head does look to the front: don't measure a turn")
    ears.set_defaults(run=_calibrate)
    plug_ins = installed_commands() if extra is None else extra
    if "listen" not in plug_ins:
        listen.register(commands)
    for name, load in sorted(plug_ins.items()):
        try:
            load()(commands)
        except Exception as error:  # of another package: the other commands must go on working
            _unusable(commands, name, error)
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return args.run(args)
    except LuseelError as error:
        print(f"luseel: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("luseel: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
