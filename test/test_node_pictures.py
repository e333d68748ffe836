"""Pictures in messages: what they hold, and everything that can be wrong with them."""

import io
import random
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import CompressedImage, Image  # noqa: E402

from luseel_model.errors import QueryError  # noqa: E402
from luseel_ros.pictures import (  # noqa: E402
    KEPT_SIDE, Frames, decode_compressed, decode_image, prepare)

SECOND = 1_000_000_000


def picture(height=40, width=60, seed=0):
    """Coarse coloured squares, which survive JPEG."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return np.array(PIL.Image.fromarray(colours).resize((width, height), PIL.Image.NEAREST))


def packed(image, kind="PNG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def raw(image, encoding="rgb8", padding=0):
    """The message of a camera; `padding` bytes of rubbish after each row."""
    planes = {"rgb8": image, "bgr8": image[..., ::-1], "mono8": image[..., :1],
              "rgba8": np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]),
              "bgra8": np.dstack([image[..., ::-1], np.full(image.shape[:2], 7, np.uint8)])}
    rows = planes[encoding].reshape(len(image), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return Image(height=image.shape[0], width=image.shape[1], encoding=encoding,
                 step=rows.shape[1], data=rows.tobytes())


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_uncompressed_pictures_keep_their_colours(encoding, padding):
    image = picture()
    expected = image if encoding != "mono8" else image[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(decode_image(raw(image, encoding, padding)), expected)


@pytest.mark.parametrize("fields, words", [
    (dict(encoding="16UC1"), "'16UC1' can't be read"), (dict(encoding=""), "can't be read"),
    (dict(encoding="x" * 9000), "can't be read"), (dict(width=0), "0 x 40 pixels"),
    (dict(height=0), "60 x 0 pixels"), (dict(width=9000, step=27000), "9000 x 40 pixels"),
    (dict(width=2**32 - 1, height=2**32 - 1, step=2**32 - 1), "pixels"),
    (dict(step=179), "takes 180 bytes"), (dict(step=0), "takes 180 bytes"),
    (dict(step=2**32 - 1), "truncated"), (dict(height=41), "truncated"),
    (dict(data=b""), "truncated"), (dict(data=bytes(7199)), "truncated")])
def test_uncompressed_pictures_that_contradict_themselves_are_refused(fields, words):
    message = raw(picture())
    for name, value in fields.items():
        setattr(message, name, value)
    with pytest.raises(QueryError, match=words):
        decode_image(message)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_compressed_pictures_are_what_pillow_packed(kind):
    image = picture(80, 120)
    options = {"quality": 95} if kind != "PNG" else {}
    found = decode_compressed(CompressedImage(format="?", data=packed(image, kind, **options)))
    assert found.shape == image.shape and found.dtype == np.uint8
    error = np.abs(found.astype(int) - image)
    assert error.max() == 0 if kind == "PNG" else error.mean() < 8


def bomb(width, height):
    """A PNG that says it is so large, in 60 bytes."""
    def chunk(name, data):
        return (struct.pack(">I", len(data)) + name + data
                + struct.pack(">I", zlib.crc32(name + data)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(
        ">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("data, words", [
    (b"", "no data"), (b"no picture at all", "can't be read"), (b"\xff\xd8\xff", "can't be read"),
    (bomb(8000, 8000), "8000 x 8000"), (bomb(60000, 60000), "can't be read|60000"),
    (bomb(2**31 - 1, 2**31 - 1), "can't be read|pixels"), (bomb(100, 100), "can't be read"),
    (bomb(9, 7), "9 x 7"), (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "can't be"),
    (packed(np.full((40, 40, 3), 90, np.uint8)), "one colour")])
def test_compressed_pictures_that_cannot_be_used_are_refused(data, words):
    with pytest.raises(QueryError, match=words):
        prepare(decode_compressed(CompressedImage(data=data)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_are_read_or_refused_and_nothing_else(kind):
    whole, chance, refused = packed(picture(), kind), random.Random(kind), 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice((0, 1, 3, 30))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.5:
            del data[chance.randrange(len(data)):]
        if chance.random() < 0.2:
            start = chance.randrange(len(data) + 1)
            data[start:start] = chance.randbytes(chance.randrange(50))
        try:
            found = prepare(decode_compressed(CompressedImage(data=bytes(data))))
        except QueryError:
            refused += 1
        else:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    assert 50 < refused < 150


def test_random_bytes_in_all_fields_are_refused_and_nothing_else():
    chance = random.Random(0)
    for _ in range(200):
        message = Image(
            height=chance.choice((0, 1, 8, 40, 9000, 2**32 - 1)),
            width=chance.choice((0, 1, 8, 60, 9000, 2**32 - 1)),
            encoding=chance.choice(("rgb8", "mono8", "bgra8", "", "yuv422", "🐕")),
            step=chance.choice((0, 1, 60, 180, 240, 2**32 - 1)),
            data=chance.randbytes(chance.choice((0, 1, 7200, 9600))))
        try:
            assert prepare(decode_image(message)).shape[2] == 3
        except QueryError:
            pass


def test_a_region_is_cut_out():
    image = picture()
    np.testing.assert_array_equal(prepare(image, (10, 5, 30, 20)), image[5:25, 10:40])
    np.testing.assert_array_equal(prepare(image, (0, 0, 60, 40)), image)
    np.testing.assert_array_equal(prepare(image), image)
    for region in ((31, 0, 30, 40), (0, 21, 60, 20), (60, 40, 1, 1), (0, 0, 61, 40),
                   (-1, 0, 20, 20), (0, 0, 0, 20), (0, 0, -5, 20), (2**32 - 1, 0, 20, 20)):
        with pytest.raises(QueryError, match="isn't within the picture of 60 x 40"):
            prepare(image, region)
    with pytest.raises(QueryError, match="7 pixels"):
        prepare(image, (0, 0, 60, 7))
    with pytest.raises(QueryError, match="one colour"):
        prepare(image, (0, 0, 10, 10))  # one of the squares


def test_large_pictures_are_shrunk_in_proportion():
    small = prepare(picture(1000, 2000))
    assert small.shape == (KEPT_SIDE // 2, KEPT_SIDE, 3)
    edges = np.abs(small.astype(int) - picture(KEPT_SIDE // 2, KEPT_SIDE))
    assert edges.mean() < 4  # the same squares, but for their edges
    assert prepare(picture(16, 4000)).shape == (16, 4000, 3)  # too thin to be shrunk


def test_the_newest_frames_are_a_clip_with_the_rate_of_their_stamps():
    frames, images = Frames(), [picture(seed=i) for i in range(20)]
    clip, rate = frames.add(5 * SECOND, images[0], 1.0)
    assert clip.shape == (1, 40, 60, 3) and rate == 0
    for i in range(1, 20):
        clip, rate = frames.add(5 * SECOND + i * SECOND // 4, images[i], 1.0)
        assert rate == pytest.approx(4)
    np.testing.assert_array_equal(clip, images[15:])
    # stamps that go back, or a picture of another size: what was there is over
    clip, rate = frames.add(2 * SECOND, images[3], 1.0)
    np.testing.assert_array_equal(clip, images[3:4])
    clip, rate = frames.add(3 * SECOND, picture(20, 30), 1.0)
    assert clip.shape == (1, 20, 30, 3) and rate == 0
    clip, rate = frames.add(9 * SECOND, picture(20, 30), 1.0)  # long afterwards
    assert len(clip) == 1 and rate == 0
