"""``luseel extract``: described, tagged or pictured sounds out of a recording."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..angles import compass
from ..errors import LuseelError
from ..plotting import PICTURES
from ..query import CLUES, Query

if TYPE_CHECKING:
    from ..inference import Extraction


def register(commands) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "extract", help="extract sounds from a recording and say where they come from",
        description="Each description, tag, picture and clip is a query of its own, in this order; "
        "with --together they all say what one sound is. `luseel models` tells what a model takes.")
    parser.add_argument("input", help="recording (WAV, FLAC, OGG, ...), of two ears for most "
                        "models")
    parser.add_argument("query", nargs="*", help='what to listen for, e.g. "dog barking"')
    parser.add_argument("--tag", action="append", default=[], help="one of the model's labels")
    parser.add_argument("--image", action="append", default=[], metavar="FILE",
                        help="a picture of what makes the sound")
    parser.add_argument("--frames", action="append", default=[], metavar="FILE",
                        help="moving pictures of it: a GIF or WebP, or a folder of pictures")
    parser.add_argument("--together", action="store_true",
                        help="all that is given describes one sound")
    parser.add_argument("-o", "--out", action="append",
                        help="output file, one for each query (default: INPUT_QUERY.wav)")
    parser.add_argument("--json", action="store_true", help="print everything known as JSON")
    parser.add_argument("--plot", metavar="PNG", help="write a picture")
    parser.add_argument("--attention", metavar="PNG", help="of one query to a model of several "
                        "clues: write which clue counts when in the loudest window")
    parser.add_argument("--model", help="checkpoint: name or .safetensors (default: the shipped)")
    parser.add_argument("--array", metavar="YAML",
                        help="where the microphones are, for models that hear any array")
    parser.add_argument("--window", type=float, metavar="SECONDS",
                        help="from which the sound is extracted at once (default: what suits the "
                             "model best, 10 for luseel-small); 2 where the ears or the "
                             "sounds move")
    parser.add_argument("--hop", type=float, metavar="SECONDS",
                        help="between the windows that say what is heard where (default: half a "
                             "window)")
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Extract, write the files, print what was found; the exit status."""
    import soundfile

    from ..inference import load_model

    named = _queries(args)
    out = [Path(p) for p in args.out or []]
    if out and len(out) != len(named):
        raise LuseelError(f"{len(named)} queries need {len(named)} -o files, got {len(out)}")
    out = out or [_default_output(args.input, name) for name, _ in named]
    if len(set(out)) < len(out):
        raise LuseelError("two queries would be written to one file: name one for each with -o")
    formats = [f".{name.lower()}" for name in soundfile.available_formats()]
    for path, known in [*((p, formats) for p in out),
                        *((Path(p), PICTURES) for p in (args.plot, args.attention) if p)]:
        if not path.parent.is_dir():
            raise LuseelError(f"the folder of {path} doesn't exist")
        if path.suffix.lower() not in known:
            raise LuseelError(f"{path}: unknown kind of file; use one of {', '.join(known)}")
    try:
        audio, rate = soundfile.read(args.input, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise LuseelError(f"can't read {args.input}: {error}") from None
    model = load_model(args.model, args.device)
    if args.array:
        if not hasattr(model, "set_array"):
            raise LuseelError(f"the model {model.name} hears two ears: leave --array out")
        from ..arrays import load_array
        model.set_array(load_array(args.array))
    if args.attention and not hasattr(model, "attention_of"):
        raise LuseelError(f"the model {model.name} attends to no clues: leave --attention out")
    if args.attention and len(named) != 1:
        raise LuseelError(f"--attention shows one query, there are {len(named)}: give one, or "
                          "--together")
    progress = False if args.quiet else None
    results = model.extract(audio.T, rate, [query for _, query in named], progress=progress,
                            hop=args.hop, window=args.window)
    for result, (name, _) in zip(results, named):
        result.query = name
    files = [path if result.audio is not None else None for path, result in zip(out, results)]
    for path, result in zip(files, results):
        if path is None:
            continue
        try:
            soundfile.write(path, result.audio.T, rate, subtype=_subtype(path))
        except (soundfile.LibsndfileError, OSError) as error:
            raise LuseelError(f"can't write {path}: {error}") from None
    if args.plot:
        from ..plotting import plot_extractions
        plot_extractions(audio.T, results, args.plot)
    if args.attention:
        from ..multi_clue.plot import save_attention
        save_attention(model.attention_of(audio.T, rate, named[0][1]), args.attention,
                       named[0][0])
    if args.json:
        report = [{**r.to_dict(), "file": p and str(p)} for r, p in zip(results, files)]
        print(json.dumps(report if len(report) > 1 else report[0], indent=1))
    else:
        for result, path in zip(results, files):
            print(_line(result) + (f" -> {path}" if path else ""))
        if args.plot:
            print(f"picture -> {args.plot}")
    return 0


def _queries(args: argparse.Namespace) -> list[tuple[str, Query]]:
    """Name and query, in the order of the arguments."""
    from ..image_files import read_frames, read_image

    found: list[tuple[str, Query]] = [(text, Query(text=text)) for text in args.query]
    if any(not text.strip() for text in args.query):
        raise LuseelError("the query is empty: describe a sound in words, e.g. 'dog barking'")
    found += [(tag, Query(tag=tag)) for tag in args.tag]
    found += [(Path(path).stem, Query(image=read_image(path))) for path in args.image]
    for path in args.frames:
        frames, rate = read_frames(path)
        found.append((Path(path).stem, Query(frames=frames, frame_rate=rate)))
    if not found:
        raise LuseelError('nothing to listen for: give words, e.g. "dog barking", or --tag, '
                          "--image or --frames")
    if not args.together:
        return found
    clues: dict[str, object] = {}
    for _, query in found:
        for name in query.clues:
            if name in clues:
                raise LuseelError(f"--together: {CLUES[name]} can be given once")
            clues[name] = getattr(query, name)
    rate = max(query.frame_rate for _, query in found)
    return [(" + ".join(name for name, _ in found), Query(**clues, frame_rate=rate))]


def _line(result: Extraction) -> str:
    side = "no direction" if result.azimuth is None else \
        f"{result.azimuth:5.1f}° ({compass(result.azimuth)})"
    return f"{result.query}: {side}, confidence {result.confidence:.2f}"


def _subtype(path: Path) -> str | None:
    # float keeps what lies above full scale; other formats take their default
    return "FLOAT" if path.suffix.lower() == ".wav" else None


def _default_output(source: str, query: str) -> Path:
    words = "-".join("".join(c if c.isalnum() else " " for c in query.lower()).split())
    return Path(f"{Path(source).stem}_{words[:60]}.wav")
