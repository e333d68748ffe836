"""The builder of the open corpus, on small packages made here; no network."""

import csv
import io
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import soundfile

from training.corpus import debian
from training.corpus.__main__ import main
from training.corpus.containers import ContainerError, index_containers, members

RATE = 16000


def tone(frequency, seconds=0.5, rate=RATE, level=0.5):
    return level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def wav(audio, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format="WAV")
    return file.getvalue()


def pitch(audio):
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(audio.size), 1 << 16))
    return np.argmax(spectrum) * RATE / (1 << 16)


def rcc(files, compress=True, version=3):
    """A Qt resource file with the given files in one folder ``sounds``."""
    names, data, offsets = b"", b"", {}
    for name in ("sounds", *files):
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    date = b"" if version < 2 else bytes(8)
    tree = struct.pack(">IHII", 0, 2, 1, 1) + date
    tree += struct.pack(">IHII", offsets["sounds"], 2, len(files), 2) + date
    for name, content in files.items():
        if compress:
            content = struct.pack(">I", len(content)) + zlib.compress(content)
        tree += struct.pack(">IHHHI", offsets[name], int(compress), 0, 1, len(data)) + date
        data += struct.pack(">I", len(content)) + content
    header = 20 if version < 3 else 24
    head = b"qres" + struct.pack(">4I", version, header + len(data) + len(names), header,
                                 header + len(data)) + bytes(header - 20)
    return head + data + names + tree


def patch(waveforms, rate):
    """A Gravis patch of 16-bit waveforms."""
    out = bytearray(b"GF1PATCH110\0ID#000002\0".ljust(129, b"\0"))
    out[82] = 1
    instrument = bytearray(63)
    instrument[22] = 1
    layer = bytearray(47)
    layer[6] = len(waveforms)
    out += instrument + layer
    for waveform in waveforms:
        content = (waveform * 32767).astype("<i2").tobytes()
        sample = bytearray(96)
        struct.pack_into("<I", sample, 8, len(content))
        struct.pack_into("<H", sample, 20, rate)
        sample[55] = 1
        out += sample + content
    return bytes(out)


def soundfont(samples, rate):
    """A SoundFont with the chunks that hold samples."""
    def chunk(kind, content):
        return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    wave, headers = b"", b""
    for name, audio in samples.items():
        start = len(wave) // 2
        wave += (audio * 32767).astype("<i2").tobytes()
        headers += struct.pack("<20s5IBbHH", name.encode(), start, start + audio.size, 0, 0, rate,
                               60, 0, 0, 1)
    headers += b"EOS".ljust(46, b"\0")
    body = b"sfbk" + chunk(b"LIST", b"INFO" + chunk(b"ifil", bytes(4)))
    body += chunk(b"LIST", b"sdta" + chunk(b"smpl", wave))
    body += chunk(b"LIST", b"pdta" + chunk(b"shdr", headers))
    return chunk(b"RIFF", body)


CONTENT = {  # path in the package: frequency
    "usr/share/dog.wav": 300, "unz/sound/cat.wav": 500, "unz/sounds/duck.wav": 700,
}


def row(package, path, clip, label="dog barking", licence="CC0-1.0"):
    return {"package": package, "path": path, "label": label, "category": "animal", "text": "",
            "seconds": "0.5", "sample_rate": "16000", "licence": licence, "flags": "",
            "group": f"{package}/x", "split": "train", "clip": clip}


def fill(folder, package="toy-data"):
    """Lay out a package: a plain file, a zip under another name, a Qt resource file."""
    share = folder / "usr/share"
    (share / "doc" / package).mkdir(parents=True)
    (share / "doc" / package / "copyright").write_text("by the test\n")
    (share / "dog.wav").write_bytes(wav(tone(300)))
    (share / "broken.wav").write_bytes(b"RIFF, but not really")
    (share / "silence.wav").write_bytes(wav(np.zeros(1000)))
    with zipfile.ZipFile(share / "pak0.pk3", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sound/cat.wav", wav(tone(500)))
    (share / "learn.rcc").write_bytes(rcc({"duck.wav": wav(tone(700))}))


@pytest.fixture
def toy(tmp_path):
    """Catalogue rows of a toy package, and stand-ins for download and unpacking that count."""
    calls = []

    def fetcher(package, cache, npm=False):
        calls.append(package)
        if package == "lost-data":
            raise debian.FetchError("no such package")
        cache.mkdir(parents=True, exist_ok=True)
        archive = cache / f"{package}_1.0_all.deb"
        archive.write_bytes(b"toy")
        return archive

    def unpacker(archive, folder):
        fill(folder)

    rows = [row("toy-data", path, f"toy-data/{number}.ogg")
            for number, path in enumerate(CONTENT)]

    def build(rows=rows, **options):
        return debian.build(rows, tmp_path / "out", progress=False, fetcher=fetcher,
                            unpacker=unpacker, **options)

    return rows, build, calls, tmp_path / "out"


def test_clips_come_from_files_zip_archives_and_qt_resources(toy):
    rows, build, _, out = toy
    report = build()
    assert (report.built, report.kept, report.failures) == (3, 0, [])
    manifest = debian.read_manifest(out / "manifest.csv")
    for item in rows:
        audio, rate = soundfile.read(out / "clips16k" / item["clip"])
        assert rate == RATE and audio.ndim == 1
        assert pitch(audio) == pytest.approx(CONTENT[item["path"]], abs=2)
        assert manifest[item["clip"]].archive == "toy-data_1.0_all.deb"
        assert manifest[item["clip"]].seconds == pytest.approx(0.5, abs=0.01)
    assert (out / "copyright/toy-data.txt").read_text() == "by the test\n"
    assert not list(out.rglob("*.part")) and not list(out.rglob(".unpacked-*"))


def test_a_second_run_builds_only_what_is_missing_or_changed(toy):
    rows, build, calls, out = toy
    build(rows[:1])
    assert build().built == 2
    calls.clear()
    assert build().kept == 3
    assert calls == []  # nothing to do: nothing downloaded
    (out / "clips16k/toy-data/0.ogg").write_bytes(b"cut off")
    (out / "clips16k/toy-data/1.ogg").unlink()
    report = build()
    assert (report.built, report.kept) == (2, 1)
    # A run of some packages keeps the rows of the others.
    build(rows[:1])
    with open(out / "catalogue.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_an_interrupted_run_goes_on(toy, monkeypatch):
    rows, build, _, out = toy
    convert, count = debian.convert, 0

    def stopped(content):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return convert(content)

    monkeypatch.setattr(debian, "convert", stopped)
    with pytest.raises(KeyboardInterrupt):
        build()
    monkeypatch.setattr(debian, "convert", convert)
    report = build()
    assert (report.built, report.kept) == (1, 2)


def test_failures_are_reported_and_the_rest_is_built(toy):
    rows, build, _, out = toy
    rows = [*rows, row("lost-data", "a.wav", "lost-data/a.ogg"),
            row("toy-data", "usr/share/broken.wav", "toy-data/b.ogg"),
            row("toy-data", "usr/share/silence.wav", "toy-data/c.ogg"),
            row("toy-data", "usr/share/gone.wav", "toy-data/d.ogg"),
            row("toy-data", "unz/gone.wav", "toy-data/e.ogg"),
            row("toy-data", "../../../../etc/passwd", "toy-data/f.ogg")]
    report = build(rows)
    assert report.built == 3
    reasons = {path: reason for _, path, reason in report.failures}
    assert reasons[""] == "no such package"
    assert "unreadable" in reasons["usr/share/broken.wav"]
    assert reasons["usr/share/silence.wav"] == "silent"
    assert "not in this version" in reasons["usr/share/gone.wav"]
    assert "in no archive" in reasons["unz/gone.wav"]
    assert "out of the package" in reasons["../../../../etc/passwd"]
    with open(out / "catalogue.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_delete_packages(toy):
    _, build, _, out = toy
    build(delete_packages=True)
    assert not list((out / "packages").glob("*.deb"))


def test_convert_mixes_resamples_trims_and_cuts():
    audio = np.stack([tone(400, 20, 44100), np.zeros(20 * 44100)], axis=1)
    audio[:44100] = 0
    clip = debian.convert(wav(audio, 44100))
    assert clip.size == 15 * RATE and clip.dtype == np.float32
    assert np.abs(clip).max() == pytest.approx(0.9, abs=1e-3)
    assert pitch(clip) == pytest.approx(400, abs=1)
    assert np.argmax(np.abs(clip) > 0.1) == pytest.approx(0.05 * RATE, abs=0.01 * RATE)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compress", [True, False])
def test_qt_resources(tmp_path, version, compress):
    path = tmp_path / "a.rcc"
    path.write_bytes(rcc({"a.wav": b"first", "b.wav": b"second"}, compress, version))
    assert {name: read() for name, read in members(path)} == {
        "sounds/a.wav": b"first", "sounds/b.wav": b"second"}


def test_gravis_patches_and_soundfonts(tmp_path):
    (tmp_path / "Drum_000").mkdir()
    (tmp_path / "Drum_000/035_Kick.pat").write_bytes(patch([tone(300), tone(600)], RATE))
    (tmp_path / "all.sf2").write_bytes(
        soundfont({"Choir A6(L)": tone(400), "Bell": tone(900)}, RATE))
    index, damaged = index_containers(tmp_path)
    assert not damaged
    for name, frequency in {"drum_Kick_0.wav": 300, "drum_Kick_1.wav": 600,
                            "Choir_A6_L_.wav": 400, "Bell.wav": 900}.items():
        audio, rate = soundfile.read(io.BytesIO(index[name]()))
        assert rate == RATE and audio.size == RATE // 2
        assert pitch(audio) == pytest.approx(frequency, abs=2)


def test_damaged_containers(tmp_path):
    good = rcc({"a.wav": b"x" * 1000})
    (tmp_path / "cut.rcc").write_bytes(good[:30])
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "plain.txt").write_text("no container")
    index, damaged = index_containers(tmp_path)
    assert index == {} and len(damaged) == 2
    (tmp_path / "wrong.rcc").write_bytes(good.replace(zlib.compress(b"x" * 1000), b"?" * 17))
    with pytest.raises(ContainerError, match="wrong.rcc"):
        for _, read in members(tmp_path / "wrong.rcc"):
            read()


@pytest.mark.parametrize("change, message", [
    ({"clip": "../outside.ogg"}, "relative path"), ({"clip": "/tmp/a.ogg"}, "relative path"),
    ({"clip": "a.wav"}, "relative path"), ({"package": "-o=evil"}, "not a package name"),
])
def test_bad_catalogues(tmp_path, change, message):
    path = tmp_path / "catalogue.csv"
    item = {**row("toy-data", "a.wav", "a.ogg"), **change}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, item)
        writer.writeheader()
        writer.writerow(item)
    with pytest.raises(debian.CorpusError, match=message):
        debian.read_catalogue(path)


def test_catalogue_errors(tmp_path):
    with pytest.raises(debian.CorpusError, match="cannot read"):
        debian.read_catalogue(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("package,path\n")
    with pytest.raises(debian.CorpusError, match="column label, .* is missing"):
        debian.read_catalogue(tmp_path / "a.csv")
    with pytest.raises(debian.CorpusError, match="not in the catalogue: unheard-of"):
        debian.read_catalogue(packages=["unheard-of"])


def test_shipped_catalogue():
    rows = debian.read_catalogue()
    assert len(rows) == 5625 and len({item["package"] for item in rows}) == 71
    assert {item["split"] for item in rows} == {"train", "valid", "test"}
    assert all(item["licence"] and item["label"] for item in rows)
    splits = {}
    for item in rows:  # recordings of one package never lie on both sides
        assert splits.setdefault(item["package"], item["split"]) == item["split"]


def test_fetch_uses_what_is_there_and_says_what_to_do(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "toy-data_1.0_all.deb").write_bytes(b"")
    monkeypatch.setenv("PATH", "")
    assert debian.fetch("toy-data", cache).name == "toy-data_1.0_all.deb"
    with pytest.raises(debian.FetchError, match="apt-get is not installed"):
        debian.fetch("other-data", cache)
    with pytest.raises(debian.FetchError, match="npm is not installed"):
        debian.fetch("other", cache, npm=True)


def test_npm_archives(tmp_path):
    path = tmp_path / "toy-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("package/sounds/bird.wav", "../outside.wav"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"bird"))
    folder = tmp_path / "unpacked"
    folder.mkdir()
    debian.unpack(path, folder)
    assert (folder / "package/sounds/bird.wav").read_bytes() == b"bird"
    assert not (tmp_path / "outside.wav").exists()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(debian.FetchError, match="delete it"):
        debian.unpack(path, folder)


def test_fetch_with_apt(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(
        "#!/bin/sh\n"
        "[ \"$3\" = toy-data ] || { echo 'E: Unable to locate package' >&2; exit 100; }\n"
        "echo toy > toy-data_1.0_all.deb\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    cache = tmp_path / "cache"
    assert debian.fetch("toy-data", cache) == cache / "toy-data_1.0_all.deb"
    with pytest.raises(debian.FetchError, match="Unable to locate package.*apt-get update"):
        debian.fetch("lost-data", cache)
    assert [path.name for path in cache.iterdir()] == ["toy-data_1.0_all.deb"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None or shutil.which("dpkg") is None,
                    reason="needs dpkg")
def test_command_line_with_a_real_package(tmp_path, capsys):
    package = tmp_path / "toy"
    fill(package)
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(
        "Package: toy-data\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b.c>\n"
        "Description: a toy\n")
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", package,
                    cache / "toy-data_1.0_all.deb"], check=True, capture_output=True)
    rows = [row("toy-data", path, f"toy-data/{number}.ogg")
            for number, path in enumerate(CONTENT)]
    catalogue = tmp_path / "catalogue.csv"
    with open(catalogue, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    out = tmp_path / "out"
    arguments = ["debian", "--catalogue", str(catalogue), "--cache", str(cache), "--out", str(out)]
    assert main([*arguments, "--list"]) == 0
    assert "3 events" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "3 clips built" in capsys.readouterr().out
    assert main(["licences", str(out), "-o", str(tmp_path / "report.md")]) == 0
    assert "| toy-data | CC0-1.0 | 3 |" in (tmp_path / "report.md").read_text()
    # What is built can be packed for training.
    main(["pack", "--catalogue", str(out), "--out", str(tmp_path / "packed")])
    assert np.load(tmp_path / "packed/train.npy").size == pytest.approx(1.5 * RATE, rel=0.05)
    (cache / "toy-data_1.0_all.deb").write_bytes(b"cut off")
    shutil.rmtree(out / "clips16k")
    assert main(arguments) == 1
    assert "delete" in capsys.readouterr().err


def test_licence_report(toy):
    rows, build, _, out = toy
    build([*rows[:2], {**rows[2], "licence": "CC-BY-3.0"}])
    text = (out / "LICENCES.md").read_text()
    assert "| toy-data | CC0-1.0 | 2 |" in text and "| toy-data | CC-BY-3.0 | 1 |" in text
    text = debian.licence_report({"field": [
        {"clip": "a.ogg", "title": "Wind | rain", "author": "Ann", "licence": "CC-BY-4.0",
         "source": "https://example.org/a"}]})
    assert "| CC-BY-4.0 | 1 |" in text
    assert "| a.ogg | Wind \\| rain | Ann | CC-BY-4.0 | https://example.org/a |" in text


def test_licences_command_names_what_is_missing(tmp_path, capsys):
    assert main(["licences", str(tmp_path)]) == 2
    assert "no catalogue.csv" in capsys.readouterr().err
