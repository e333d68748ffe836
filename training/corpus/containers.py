"""Recordings inside other files: zip archives, Qt resources, Gravis patches and SoundFonts.

Games and learning programs pack their sounds. :func:`index_containers` finds such files by their
first bytes, whatever they are called (a Quake ``.pk3`` is a zip archive), and gives a reader for
each member; nothing is written to disk, so a member's name cannot lead anywhere.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

Reader = Callable[[], bytes]


class ContainerError(ValueError):
    """A container that is damaged or compressed in a way that cannot be read."""


def _zip_members(path: Path) -> Iterator[tuple[str, Reader]]:
    def reader(name: str) -> Reader:
        def read() -> bytes:
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        return read

    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, reader(info.filename)


# Flags of an entry in a Qt resource tree.
_RCC_ZLIB, _RCC_DIRECTORY, _RCC_ZSTD = 1, 2, 4


def _rcc_members(path: Path) -> Iterator[tuple[str, Reader]]:
    """Walk a binary Qt resource file (format versions 1 to 3, all numbers big-endian).

    Header: ``qres``, version, offsets of tree, data and names. Tree entry: name offset (u32), flags
    (u16), then number and first index of the children (u32, u32) or territory, language (u16, u16)
    and data offset (u32); from version 2 on a time of change (u64). Name: length (u16), hash (u32),
    UTF-16. Data: length (u32), then the bytes; compressed ones begin with their full length (u32).
    """
    content = path.read_bytes()
    version, tree, data, names = struct.unpack_from(">4I", content, 4)
    entry_size = 14 if version < 2 else 22

    def name_at(offset: int) -> str:
        length, _hash = struct.unpack_from(">HI", content, names + offset)
        start = names + offset + 6
        return content[start:start + 2 * length].decode("utf-16-be")

    def reader(flags: int, offset: int) -> Reader:
        def read() -> bytes:
            (length,) = struct.unpack_from(">I", content, data + offset)
            raw = content[data + offset + 4:data + offset + 4 + length]
            if flags & _RCC_ZSTD:
                raise ContainerError(f"{path.name}: a member is compressed with zstd, "
                                     "which is not supported")
            if flags & _RCC_ZLIB:
                (size,) = struct.unpack_from(">I", raw)
                # max_length 0 would mean "no limit"
                raw = zlib.decompressobj().decompress(raw[4:], size) if size else b""
                if len(raw) != size:
                    raise ContainerError(f"{path.name}: a member is cut off")
            return raw
        return read

    def walk(index: int, prefix: str, depth: int) -> Iterator[tuple[str, Reader]]:
        offset = tree + index * entry_size
        name_offset, flags = struct.unpack_from(">IH", content, offset)
        name = prefix + (name_at(name_offset) if index else "")  # the root has no name
        if flags & _RCC_DIRECTORY:
            if depth > 100:
                raise ContainerError(f"{path.name}: damaged, its folders go round in circles")
            count, first = struct.unpack_from(">2I", content, offset + 6)
            for child in range(first, first + count):
                yield from walk(child, name + "/" if name else "", depth + 1)
        else:
            (data_offset,) = struct.unpack_from(">I", content, offset + 10)
            yield name, reader(flags, data_offset)

    yield from walk(0, "", 0)


def _wav_bytes(samples: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _patch_members(path: Path) -> Iterator[tuple[str, Reader]]:
    """Waveforms of a Gravis Ultrasound patch as ``<instrument>_<number>.wav``.

    Little-endian; headers of file (129 bytes), instrument (63), layer (47) and, before each
    waveform, sample (96: length at byte 8, rate at 20, modes at 55; mode 1: 16 bits, 2: unsigned).
    """
    content = path.read_bytes()
    instrument = re.sub(r"^\d+_", "", path.stem)
    if path.parent.name.lower().startswith("drum"):
        instrument = f"drum_{instrument}"

    def reader(start: int, length: int, rate: int, modes: int) -> Reader:
        def read() -> bytes:
            raw = content[start:start + length]
            if modes & 1:
                samples = np.frombuffer(raw[:len(raw) // 2 * 2], "<u2" if modes & 2 else "<i2")
                samples = samples.astype(np.int32) - (32768 if modes & 2 else 0)
            else:
                samples = np.frombuffer(raw, np.uint8 if modes & 2 else np.int8).astype(np.int32)
                samples = (samples - (128 if modes & 2 else 0)) * 256
            return _wav_bytes(samples.astype(np.int16), rate)
        return read

    offset, number = 129, 0
    for _ in range(content[82]):  # instruments
        layers = content[offset + 22]
        offset += 63
        for _ in range(layers):
            count = content[offset + 6]
            offset += 47
            for _ in range(count):
                (length,) = struct.unpack_from("<I", content, offset + 8)
                (rate,) = struct.unpack_from("<H", content, offset + 20)
                modes = content[offset + 55]
                yield f"{instrument}_{number}.wav", reader(offset + 96, length, rate, modes)
                offset += 96 + length
                number += 1


def _soundfont_members(path: Path) -> Iterator[tuple[str, Reader]]:
    """Samples of a SoundFont 2 file as ``<name>.wav`` (16-bit mono; what is no letter, digit,
    # or - in a name becomes _)."""
    samples, headers = None, b""
    with open(path, "rb") as file:
        size = path.stat().st_size
        file.seek(12)
        while file.tell() + 8 <= size:
            kind, length = struct.unpack("<4sI", file.read(8))
            start = file.tell()
            if kind == b"LIST":
                file.seek(start + 4)  # into the list: its chunks come next
                continue
            if kind == b"smpl":
                samples = np.memmap(path, "<i2", "r", start, (length // 2,))
            elif kind == b"shdr":
                headers = file.read(length)
            file.seek(start + length + length % 2)
    if samples is None or not headers:
        raise ContainerError(f"{path.name}: a SoundFont without samples")

    def reader(start: int, end: int, rate: int) -> Reader:
        return lambda: _wav_bytes(np.asarray(samples[start:end]), rate)

    for offset in range(0, len(headers) - 46, 46):  # the last header only marks the end
        name, start, end, _, _, rate = struct.unpack_from("<20s5I", headers, offset)
        text = name.split(b"\0")[0].decode("latin-1").strip()
        yield re.sub(r"[^A-Za-z0-9#-]+", "_", text) + ".wav", reader(start, end, rate)


_BY_MAGIC: tuple[tuple[bytes, Callable[[Path], Iterator[tuple[str, Reader]]]], ...] = (
    (b"PK\x03\x04", _zip_members),
    (b"qres", _rcc_members),
    (b"GF1PATCH", _patch_members),
)


# RuntimeError and NotImplementedError: encryption and rare compression methods of zip archives.
_DAMAGE = (struct.error, zipfile.BadZipFile, zlib.error, IndexError, UnicodeError, EOFError,
           RuntimeError, NotImplementedError)


def _guarded(path: Path, reader: Reader) -> Reader:
    def read() -> bytes:
        try:
            return reader()
        except _DAMAGE as error:
            raise ContainerError(f"{path.name}: cannot read a member: {error}") from error
    return read


def members(path: Path) -> Iterator[tuple[str, Reader]]:
    """Names and readers of what lies in one container; nothing for any other file.

    Raises:
        ContainerError: the container is damaged; so do the readers.
    """
    with open(path, "rb") as file:
        head = file.read(12)
    kind = next((kind for magic, kind in _BY_MAGIC if head.startswith(magic)), None)
    if head.startswith(b"RIFF") and head.endswith(b"sfbk"):
        kind = _soundfont_members
    if kind is None:
        return
    try:
        for name, reader in kind(path):
            yield name, _guarded(path, reader)
    except _DAMAGE as error:
        raise ContainerError(f"{path.name} is damaged: {error}") from error


def index_containers(folder: Path) -> tuple[dict[str, Reader], list[str]]:
    """Readers by member name for all containers below a folder, and what could not be read.

    Containers are taken in the order of their paths; of equal names the last one counts, as in the
    games themselves (``pak1.pk3`` replaces files of ``pak0.pk3``).
    """
    index: dict[str, Reader] = {}
    damaged: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            for name, reader in members(path):
                index[name.lstrip("/")] = reader
        except (ContainerError, OSError) as error:
            damaged.append(str(error))
    return index, damaged
