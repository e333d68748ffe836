"""Tables 1 and 2 of paper 003 on the open corpus (docs/multi_clue.md).

    python -m training.clue_table --checkpoint multi-clue-small --out docs/reports/multi_clue
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from luseel_model.checkpoint import find_checkpoint
from luseel_model.errors import ConfigError, LuseelError
from luseel_model.families import family_of
from luseel_model.inference import load_model
from luseel_model.multi_clue.plot import save_attention
from luseel_model.text import TextEncoder
from training.benchmark.run import Results
from training.clue_table.measure import SETS, measure
from training.clue_table.scenes import TestScenes, nearest_tags
from training.clue_table.table import summarise, write_rows, write_table
from training.clues.pictures import read_pictures
from training.corpus.pack import file_sha256

_ATTENTION_PICTURES = 3


def pictures_for_tests(folder: str, unseen: list[str]) -> dict:
    """Pictures of the test split, and of unseen kinds those of all splits."""
    found = read_pictures(folder, "test")
    for split in ("train", "valid"):
        for kind, pictures in read_pictures(folder, split).items():
            if kind in unseen:
                found.setdefault(kind, []).extend(pictures)
    return found


def attention_pictures(model, scenes: TestScenes, out: Path) -> None:
    """Figure 2 for the first sounds that have all clues."""
    done = 0
    for number, scene, sounds in scenes("seen", 50):
        for sound in sounds:
            if "video" in sound.clues and done < _ATTENTION_PICTURES:
                query = sound.query(("tag", "text", "video"))
                others = [scenes.pool.kinds[int(k)] for i, k in enumerate(scene.kind[0])
                          if i != sound.place]
                save_attention(model.attention(scene.mixture[0], query),
                               out / f"attention_{done + 1}.png",
                               f"{sound.kind}, mixed with {', '.join(others)}")
                done += 1
        if done == _ATTENTION_PICTURES:
            return


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.clue_table",
                                     description="Tables 1 and 2 of paper 003.")
    parser.add_argument("--checkpoint", default="multi-clue-small",
                        help="name or .safetensors file; default: %(default)s")
    parser.add_argument("--packed", default="data/packed", help="default: %(default)s")
    parser.add_argument("--pictures", default="data/pictures",
                        help="folder of pictures; '' for no video clues; default: %(default)s")
    parser.add_argument("--head", default="mit_kemar", help="default: %(default)s")
    parser.add_argument("--mixtures", type=int, default=300, help="of each set; default: "
                        "%(default)s")
    parser.add_argument("--device")
    parser.add_argument("--results", default="runs/clue_table",
                        help="folder of the rows; the same command goes on; default: %(default)s")
    parser.add_argument("--out", default="docs/reports/multi_clue", help="default: %(default)s")
    args = parser.parse_args(argv)
    out = Path(args.out)
    try:
        model = load_model(args.checkpoint, args.device)
        if family_of(model.config).name != "multi-clue":
            raise ConfigError(f"{args.checkpoint} is of another family than multi-clue")
        kinds, unseen = model.info["kinds"], model.info.get("unseen", [])
        pictures = pictures_for_tests(args.pictures, unseen) if args.pictures else {}
        tags = nearest_tags(kinds, unseen, TextEncoder(model.config.text, "cpu"))
        scenes = TestScenes(args.packed, args.head, unseen, pictures, tags,
                            model.config.video.frames)
        count = {which: args.mixtures if which == "seen" or unseen else 0 for which in SETS}
        out.mkdir(parents=True, exist_ok=True)
        results = Results(Path(args.results) / model.name, {
            "model_sha256": file_sha256(find_checkpoint(args.checkpoint)), "head": args.head,
            "recordings_sha256": file_sha256(Path(args.packed) / "test.csv"),
            "pictures_sha256": file_sha256(Path(args.pictures) / "pictures.csv")
            if args.pictures else ""})
        rows = measure(model, scenes, count, results=results)
        write_rows(rows, out / "rows.csv.gz")
        done = {which: len({r["mixture"] for r in rows if r["set"] == which}) for which in SETS}
        path = write_table(summarise(rows, {
            "model": model.name, "parameters": model.network.parameter_count(),
            "mixtures": done, "unseen": unseen, "head": args.head,
            "nearest": {kind: tags[kind] for kind in unseen}}), out)
        attention_pictures(model, scenes, out)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    except LuseelError as error:
        print(f"clue_table: {error}", file=sys.stderr)
        return 2
    print(path.read_text(encoding="utf-8"))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
