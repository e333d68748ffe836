"""Pictures for training: catalogue, packing, versions, embeddings, and the paper's own data."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from luseel_model.errors import ConfigError
from luseel_model.images import ImageConfig
from training.corpus.debian import CorpusError, FetchError
from training.pictures import bank as bank_module
from training.pictures.__main__ import main
from training.pictures.augment import plain, version
from training.pictures.bank import PictureBank, embed_pictures, encoder_name, write_embeddings
from training.pictures.build import SIDE, build, fetch_package
from training.pictures.catalogue import Picture, read_catalogue, read_concepts
from training.pictures.coco_fsd50k import THINGS, Ontology, coco_pictures, write_manifests

torch.set_num_threads(1)
IMAGE = ImageConfig("efficientnet-lite0", "", 6, 32)


def cut_out(color=(200, 30, 20), size=(60, 40)):
    """A disc on a transparent ground."""
    image = Image.new("RGBA", size)
    ImageDraw.Draw(image).ellipse((5, 5, size[0] - 6, size[1] - 6), fill=(*color, 255))
    return image


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# -- catalogue

def test_shipped_catalogue():
    pictures, concepts = read_catalogue(), read_concepts()
    assert {picture.concept for picture in pictures} == set(concepts)
    assert len(pictures) == 701 and len(concepts) == 64
    for concept in concepts:  # each is trained, validated and tested, with pictures of their own
        splits = [p.split for p in pictures if p.concept == concept]
        assert {"train", "valid", "test"} == set(splits), concept
        assert splits.count("train") >= 1
    assert all(picture.licence for picture in pictures)


def rows(tmp_path, *lines, columns="package,path,concept,split,licence"):
    path = tmp_path / "catalogue.csv"
    path.write_text("\n".join([columns, *lines]) + "\n")
    return path


@pytest.mark.parametrize("lines, words", [
    (["a,b.png,dog,training,MIT"], "the split 'training' is none of"),
    (["a,b.png,dog,train,MIT", "a,b.png,cat,test,MIT"], "is there twice"),
])
def test_catalogues_that_cannot_be_used(tmp_path, lines, words):
    with pytest.raises(CorpusError, match=words):
        read_catalogue(rows(tmp_path, *lines))
    with pytest.raises(CorpusError, match="column licence is missing"):
        read_catalogue(rows(tmp_path, columns="package,path,concept,split"))
    with pytest.raises(CorpusError, match="cannot read"):
        read_catalogue(tmp_path / "none.csv")


def test_a_kind_belongs_to_one_concept(tmp_path):
    path = tmp_path / "concepts.csv"
    path.write_text("concept,kinds\ndog,barking;growling\nwolf,howling;growling\n")
    with pytest.raises(CorpusError, match="'growling' belongs to 'dog' and 'wolf'"):
        read_concepts(path)


# -- packing

@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two 'packages', unpacked by hand: plain files, a zip container, and one that isn't there."""
    cache = tmp_path / "cache"
    cache.mkdir()

    def unpack(archive, folder):
        if archive.name.startswith("stamps"):
            (folder / "usr").mkdir()
            (folder / "usr/dog.png").write_bytes(png(cut_out(size=(900, 600))))
            (folder / "usr/broken.png").write_bytes(b"\x89PNG not really")
            (folder / "usr/empty.png").write_bytes(png(Image.new("RGBA", (20, 20))))
        else:
            with zipfile.ZipFile(folder / "data.bin", "w") as archive:
                archive.writestr("pictures/cow.png", png(cut_out((0, 0, 255))))

    def fetch(package, cache):
        if package == "gone":
            raise FetchError("no such package; try another")
        return cache / f"{package}_1.deb"

    monkeypatch.setattr("training.pictures.build.unpack", unpack)
    monkeypatch.setattr("training.pictures.build.fetch", fetch)
    return cache


def pictures_of(*paths):
    return [Picture(package, path, "dog", "train", "MIT") for package, path in paths]


def test_pictures_are_packed_and_what_fails_is_told(packages, tmp_path):
    out = tmp_path / "out"
    wanted = pictures_of(("stamps", "usr/dog.png"), ("stamps", "usr/broken.png"),
                         ("box", "unz/pictures/cow.png"), ("stamps", "usr/empty.png"),
                         ("stamps", "usr/missing.png"), ("stamps", "../../etc/passwd"),
                         ("box", "unz/none.png"), ("gone", "a.png"))
    report = build(wanted, out, packages)
    assert (report.built, report.kept) == (2, 0)
    reasons = {path: reason for _, path, reason in report.failures}
    assert set(reasons) == {p.path for p in wanted} - {"usr/dog.png", "unz/pictures/cow.png"}
    assert "empty" in reasons["usr/empty.png"] and "leads out" in reasons["../../etc/passwd"]
    assert "no such package" in reasons["a.png"]
    table = list(csv.DictReader(open(out / "pictures.csv")))
    assert [row["path"] for row in table] == ["usr/dog.png", "unz/pictures/cow.png"]
    dog = Image.open(out / table[0]["file"])
    assert dog.mode == "RGBA" and dog.width == SIDE  # shrunk, and cropped to the disc
    assert dog.getchannel("A").getbbox() == (0, 0, *dog.size)
    again = build(wanted, out, packages)
    assert (again.built, again.kept) == (0, 2)
    (out / table[0]["file"]).unlink()
    assert build(wanted[:1], out, packages).built == 1


def test_scoped_npm_packages(tmp_path, monkeypatch):
    (tmp_path / "scope-name-1.2.3.tgz").write_bytes(b"")
    assert fetch_package("@scope/name", tmp_path).name == "scope-name-1.2.3.tgz"
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(FetchError, match="npm is not installed.*scope-other"):
        fetch_package("@scope/other", tmp_path)


# -- versions

def test_versions_of_a_cut_out():
    rng = np.random.default_rng(0)
    shown = [version(cut_out(), 48, rng) for _ in range(12)]
    assert all(v.shape == (48, 48, 3) and v.dtype == np.uint8 for v in shown)
    assert len({v.tobytes() for v in shown}) == 12
    red = [(v[..., 0].astype(int) - v[..., 1:].max(-1) > 30).mean() for v in shown]
    assert sum(share > 0.02 for share in red) >= 8  # the disc is still to be seen in most
    assert np.array_equal(version(cut_out(), 48, np.random.default_rng(3)),
                          version(cut_out(), 48, np.random.default_rng(3)))
    whole = plain(cut_out(), 48)
    assert (whole[0] == 255).all() and (whole[24, 24] == (200, 30, 20)).all()


def test_versions_of_a_photograph():
    photo = Image.fromarray(np.random.default_rng(1).integers(
        0, 255, (30, 50, 3), np.uint8)).convert("RGBA")
    shown = [version(photo, 32, np.random.default_rng(seed)) for seed in range(4)]
    assert len({v.tobytes() for v in shown}) == 4


# -- embeddings

class Counted:
    """Stands in for the image encoder: mean colour and spread, and counts what it is shown."""

    seen = 0

    def __init__(self, config, device="cpu"):
        self.config = config

    def embed_frames(self, frames):
        Counted.seen += len(frames)
        flat = torch.tensor(frames).float().flatten(1, 2) / 255
        return torch.cat([flat.mean(1), flat.std(1)], 1)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    (folder / "images").mkdir(parents=True)
    table = []
    for i, (concept, split) in enumerate(
            [("dog", s) for s in ("train", "train", "valid", "test")]
            + [("rain", s) for s in ("train", "valid", "test")]):
        cut_out((30 * i, 255 - 30 * i, 40)).save(folder / f"images/{i}.png")
        table.append({"file": f"images/{i}.png", "package": "p", "path": f"{i}.png",
                      "concept": concept, "split": split, "licence": "MIT"})
    with open(folder / "pictures.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    (folder / "concepts.csv").write_text("concept,kinds\ndog,barking;growling\nrain,rain\n")
    monkeypatch.setattr(bank_module, "ImageEncoder", Counted)
    return folder


COUNTS = {"train": 3, "valid": 2, "test": 1}


def test_embeddings_are_made_once(packed):
    Counted.seen = 0
    path = embed_pictures(packed, IMAGE, COUNTS)
    assert Counted.seen == 3 * 3 + 2 * 2 + 2 * 1
    first = load_file(path)["embeddings"]
    embed_pictures(packed, IMAGE, COUNTS)
    assert torch.equal(load_file(path)["embeddings"], first)  # the same versions again


def test_an_interrupted_embedding_goes_on(packed, monkeypatch):
    whole = load_file(embed_pictures(packed, IMAGE, COUNTS))["embeddings"]
    (packed / "embeddings").joinpath(f"{encoder_name(IMAGE)}.safetensors").unlink()
    monkeypatch.setattr(bank_module, "_SAVE_EVERY", 2)
    original, calls = Counted.embed_frames, []

    def fail_at_fifth(self, frames):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, frames)

    monkeypatch.setattr(Counted, "embed_frames", fail_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(packed, IMAGE, COUNTS)
    monkeypatch.setattr(Counted, "embed_frames", original)
    Counted.seen = 0
    again = load_file(embed_pictures(packed, IMAGE, COUNTS))["embeddings"]
    assert torch.equal(again, whole)
    assert Counted.seen == 15 - (3 + 3 + 2 + 1)  # four pictures were saved


def test_bank(packed):
    embed_pictures(packed, IMAGE, COUNTS)
    kinds = ["barking", "snow", "growling", "rain"]
    bank = PictureBank.load(packed, "train", IMAGE, kinds)
    assert bank.names == ["dog", "rain"] and bank.kinds == ["barking", "growling", "rain"]
    assert bank.concept_of.tolist() == [0, -1, 0, 1]
    assert bank.count.tolist() == [6, 3] and bank.embeddings.shape == (9, 6)
    generator = torch.Generator().manual_seed(0)
    drawn = bank.draw(torch.tensor([[0, 1]] * 200), generator)
    assert drawn.shape == (200, 2, 6)
    for concept, begin, end in ((0, 0, 6), (1, 6, 9)):  # all of its own pictures, no others
        found = {tuple(v.tolist()) for v in drawn[:, concept]}
        assert found == {tuple(v.tolist()) for v in bank.embeddings[begin:end]}
    blended = bank.draw(torch.zeros(300, dtype=torch.long), generator, blend=0.5)
    own = bank.embeddings[:6]
    apart = torch.cdist(blended, own).amin(1) > 1e-4
    assert 60 < apart.sum() < 200  # about half, less those of a picture with itself
    assert (blended >= own.amin(0) - 1e-5).all() and (blended <= own.amax(0) + 1e-5).all()
    held_out = PictureBank.load(packed, "test", IMAGE, kinds, plain_only=True)
    trained = {tuple(v.tolist()) for v in bank.embeddings}
    assert not trained & {tuple(v.tolist()) for v in held_out.embeddings}


def test_banks_that_cannot_be_loaded(packed):
    with pytest.raises(ConfigError, match="pictures embed"):
        PictureBank.load(packed, "train", IMAGE, ["barking"])
    path = embed_pictures(packed, IMAGE, COUNTS)
    with pytest.raises(ConfigError, match="pictures embed"):  # another encoder's
        PictureBank.load(packed, "train", ImageConfig("efficientnet-lite0", "", 6, 64), ["barking"])
    with pytest.raises(ConfigError, match="no picture shows"):
        PictureBank.load(packed, "train", IMAGE, ["snow"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="can't be read"):
        PictureBank.load(packed, "train", IMAGE, ["barking"])
    (packed / "pictures.csv").unlink()
    with pytest.raises(ConfigError, match="pictures build"):
        embed_pictures(packed, IMAGE, COUNTS)


def test_a_crop_is_embedded_as_a_crop(packed):
    photo = Image.new("RGB", (80, 40), "blue")
    photo.paste("red", (40, 0, 80, 40))
    photo.save(packed / "photo.png")
    with open(packed / "pictures.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("file package path concept split licence left top right bottom".split())
        writer.writerow(["photo.png", "coco", "1", "dog", "train", "", 45, 2, 78, 38])
    embed_pictures(packed, IMAGE, COUNTS)
    bank = PictureBank.load(packed, "train", IMAGE, ["barking"], plain_only=True)
    red, _, blue = bank.embeddings[0, :3].tolist()
    assert red > blue + 0.5


# -- the paper's own data

ONTOLOGY = [
    {"id": "/a", "name": "Animal", "child_ids": ["/dog", "/bird"]},
    {"id": "/dog", "name": "Dog", "child_ids": ["/bark", "/growl"]},
    {"id": "/bark", "name": "Bark", "child_ids": []},
    {"id": "/growl", "name": "Growling", "child_ids": []},
    {"id": "/bird", "name": "Bird", "child_ids": []},
    {"id": "/rain", "name": "Rain", "child_ids": []},
    {"id": "/voice", "name": "Human voice", "child_ids": ["/speech"]},
    {"id": "/speech", "name": "Speech", "child_ids": []},
]


def test_one_label_is_left_when_its_parents_go():
    tree = Ontology(ONTOLOGY)
    assert tree.single_label(["/bark", "/dog", "/a"]) == "/bark"
    assert tree.single_label(["/dog", "/a"]) == "/dog"
    assert tree.single_label(["/bark", "/growl", "/dog", "/a"]) is None
    assert tree.single_label(["/bark", "/rain"]) is None
    assert [tree.thing(n) for n in ("/bark", "/speech", "/bird", "/rain", "/a")] == \
        ["dog", "person", "bird", None, None]


def test_an_ontology_that_goes_round_in_circles_ends():
    tree = Ontology([{"id": "/a", "name": "A", "child_ids": ["/b"]},
                     {"id": "/b", "name": "B", "child_ids": ["/a"]}])
    assert tree.below("/a") == {"/a", "/b"}


@pytest.fixture
def miniature(tmp_path):
    """Both layouts with a handful of files."""
    coco, fsd, ontology = tmp_path / "coco", tmp_path / "fsd", tmp_path / "ontology.json"
    ontology.write_text(json.dumps(ONTOLOGY))
    (coco / "annotations").mkdir(parents=True)
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"},
                  {"id": 99, "name": "fork"}, {"id": 5, "name": "banana"}]
    for part, first in (("train2017", 1), ("val2017", 100)):
        images = [{"id": first + i, "file_name": f"{first + i:012d}.jpg", "width": 640,
                   "height": 480, "license": 3} for i in range(3)]
        boxes = [(first, 18, [10.4, 20.6, 101.0, 99.1], 0),       # 10,009 pixels
                 (first, 18, [10, 20, 100, 100], 0),              # 10,000: not above
                 (first + 1, 1, [600, 400, 200, 200], 0),         # beyond the edge
                 (first + 1, 1, [0, 0, 300, 300], 1),             # a crowd
                 (first + 2, 5, [0, 0, 300, 300], 0)]             # none of the 20
        (coco / "annotations" / f"instances_{part}.json").write_text(json.dumps({
            "images": images, "categories": categories, "annotations": [
                {"id": 10 * first + i, "image_id": image, "category_id": category, "bbox": box,
                 "iscrowd": crowd} for i, (image, category, box, crowd) in enumerate(boxes)]}))
    truth = fsd / "FSD50K.ground_truth"
    truth.mkdir(parents=True)
    (truth / "dev.csv").write_text(
        'fname,labels,mids,split\n1,"Bark,Dog,Animal","/bark,/dog,/a",train\n'
        '2,"Bark,Dog,Rain","/bark,/dog,/rain",train\n3,Rain,/rain,val\n')
    (truth / "eval.csv").write_text('fname,labels,mids\n7,"Speech,Human_voice","/speech,/voice"\n')
    (fsd / "FSD50K.dev_audio").mkdir()
    soundfile.write(fsd / "FSD50K.dev_audio" / "1.wav", np.zeros(88200), 44100)
    return coco, fsd, ontology, tmp_path / "out"


def test_manifests_of_a_miniature(miniature):
    coco, fsd, ontology, out = miniature
    lines = write_manifests(coco, fsd, ontology, out)
    assert lines[0].startswith("4 pictures of 2 things") and lines[1].startswith("3 recordings")
    table = list(csv.DictReader(open(out / "pictures" / "pictures.csv")))
    assert [(row["concept"], row["split"]) for row in table if "val2017" in row["path"]] == \
        [("dog", "test"), ("person", "test")]
    assert all(row["split"] in ("train", "valid") for row in table if "train2017" in row["path"])
    dog, person = table[:2]
    assert [int(dog[k]) for k in ("left", "top", "right", "bottom")] == [10, 21, 111, 120]
    assert [int(person[k]) for k in ("right", "bottom")] == [640, 480]
    assert read_concepts(out / "pictures" / "concepts.csv") == {
        "person": ("person",), "dog": ("dog",)}
    recordings = list(csv.DictReader(open(out / "recordings" / "catalogue.csv")))
    assert [(r["label"], r["split"]) for r in recordings] == \
        [("dog", "train"), ("rain", "valid"), ("person", "test")]
    counts = {row["thing"]: row for row in csv.DictReader(open(out / "counts.csv"))}
    assert counts["dog"]["seconds"] == "2" and counts["dog"]["paper_pictures"] == "3133"


def test_the_catalogue_can_be_packed(miniature):
    from training.corpus.pack import read_catalogue as catalogue_of_pack
    coco, fsd, ontology, out = miniature
    write_manifests(coco, fsd, ontology, out)
    items = catalogue_of_pack(out / "recordings", "fsd50k")
    assert items[0].path.is_file() and items[0].label == "dog" and items[0].split == "train"


def test_all_crops_of_a_picture_share_a_split(tmp_path):
    (tmp_path / "annotations").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(500)]
    boxes = [{"id": 1000 * c + i, "image_id": i, "category_id": c, "bbox": [0, 0, 200, 200]}
             for i in range(500) for c in (1, 2)]
    content = {"images": images, "annotations": boxes,
               "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    for part in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    split = {}
    for row in coco_pictures(tmp_path):
        assert split.setdefault(row["file"], row["split"]) == row["split"]
    valid = sum(value == "valid" for value in split.values())
    assert 5 <= valid <= 40  # about 3.7% of 500


def test_the_20_things():
    """Table 1's; a COCO category or an ontology class belongs to one of them."""
    assert len(THINGS) == 20
    for part in (0, 1):
        names = [name for thing in THINGS.values() for name in thing[part]]
        assert len(names) == len(set(names))


def test_folders_that_are_something_else(miniature, tmp_path, capsys):
    coco, fsd, ontology, out = miniature
    for wrong in ([tmp_path, fsd, ontology], [coco, tmp_path, ontology], [coco, fsd, tmp_path]):
        with pytest.raises(CorpusError, match="cannot read"):
            write_manifests(*wrong, out)
    with pytest.raises(SystemExit):
        main(["coco-fsd50k", "--coco", str(tmp_path), "--fsd50k", str(fsd), "--ontology",
              str(ontology), "--out", str(out)])
    assert "cannot read" in capsys.readouterr().err


def test_embeddings_file_says_what_it_is(tmp_path):
    from safetensors import safe_open
    write_embeddings(tmp_path / "e" / "x.safetensors", [np.ones((2, 6), np.float16)],
                     [{"concept": "dog", "split": "train", "versions": 2}], IMAGE)
    with safe_open(tmp_path / "e" / "x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["image"])["size"] == 32
