"""``luseel calibrate``: what a robot's ears do to a few claps at known directions."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import LuseelError
from ..plotting import PICTURES


def register(commands) -> None:
    """Add the command to the subparsers."""
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
    ears.add_argument("--head", metavar="FILE", help="write the head's responses as well, from claps "
                      "all around, every 45° at least, 30° is better (.safetensors)")
    ears.add_argument("--straight", action="store_true",
                      help="the head does look to the front: don't measure a turn")
    ears.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write the file, say what was found; the exit status."""
    import soundfile

    from ..calibration import analyse, measure, measure_head, plot_measurement

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
                        *([(Path(args.plot), PICTURES)] if args.plot else []),
                        *([(Path(args.head), (".safetensors",))] if args.head else [])):
        if not path.parent.is_dir():
            raise LuseelError(f"the folder of {path} doesn't exist")
        if path.suffix.lower() not in known:
            raise LuseelError(f"{path}: unknown kind of file; use one of {', '.join(known)}")
    recordings = []
    for path, azimuths in pairs:
        try:
            audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise LuseelError(f"can't read {path}: {error}") from None
        recordings.append((audio.T, rate, analyse(audio.T, rate, azimuths, str(path))))
    result = measure([sound for _, _, sounds in recordings for sound in sounds], args.straight)
    head = measure_head(recordings, result, Path(args.head).stem) if args.head else None
    if head:
        head.save(args.head)
    result.calibration.save(args.out)
    if args.plot:
        plot_measurement(result, args.plot, head)
    print("\n".join(result.verdict()))
    if head:
        print(f"the head's responses are told by {len(head.metadata['directions'].split())} directions "
              f"from {head.metadata['heard']}; beyond they are those of a known head")
    print(f"calibration -> {args.out}" + (f", responses -> {args.head}" if args.head else "")
          + (f", picture -> {args.plot}" if args.plot else ""))
    return 0
