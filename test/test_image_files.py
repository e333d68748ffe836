"""Pictures from files: what comes out, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from luseel_model.errors import QueryError
from luseel_model.image_files import read_frames, read_image

RED, GREEN = (255, 0, 0), (0, 255, 0)


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_picture_from_file_and_bytes(tmp_path):
    picture = Image.new("RGB", (20, 10), RED)
    picture.paste(GREEN, (0, 0, 10, 10))
    picture.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (10, 20, 3) and image.dtype == np.uint8
    assert tuple(image[5, 2]) == GREEN and tuple(image[5, 15]) == RED
    np.testing.assert_array_equal(read_image(png(picture)), image)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16"])
def test_other_kinds_of_pixels(mode):
    source = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1)))
    file = io.BytesIO()
    source.convert(mode if mode != "I;16" else "I").convert(mode).save(
        file, "TIFF" if mode == "CMYK" else "PNG")
    assert read_image(file.getvalue()).shape == (16, 32, 3)


def test_transparent_is_white():
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 8, 16))
    image = read_image(png(picture))
    assert tuple(image[3, 3]) == RED and tuple(image[3, 12]) == (255, 255, 255)


def test_camera_held_sideways(tmp_path):
    picture = Image.effect_noise((20, 10), 60)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (20, 10, 3)


def test_what_is_refused(tmp_path):
    whole = png(Image.effect_noise((64, 64), 60))
    for data, said in ((b"", "can't be read"), (b"GIF89a but not one", "can't be read"),
                       (whole[:200], "can't be read"), (png(Image.new("RGB", (4, 40))), "4 x 40"),
                       (png(Image.new("RGB", (64, 64), "black")), "one colour")):
        with pytest.raises(QueryError, match=said):
            read_image(data)
    with pytest.raises(QueryError, match="no picture at"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(QueryError, match="can't be read"):
        read_image(tmp_path)


def test_a_giant_is_refused_before_its_pixels_are_made():
    """A small file that unpacks to 400 megapixels."""
    with pytest.raises(QueryError, match="can't be read as a picture"):
        read_image(png(Image.new("1", (20000, 20000))))


def test_moving_pictures(tmp_path):
    steps = [Image.new("RGB", (24, 16), (i * 60, 0, 0)) for i in range(4)]
    steps[0].save(tmp_path / "a.gif", save_all=True, append_images=steps[1:], duration=200)
    frames, rate = read_frames(tmp_path / "a.gif")
    assert frames.shape == (4, 16, 24, 3) and rate == pytest.approx(5.0)
    np.testing.assert_allclose(frames[:, 8, 8, 0], [0, 60, 120, 180], atol=3)
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, step in enumerate(steps):
        step.resize((24 + i, 16)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no picture")
    frames, _ = read_frames(folder)
    np.testing.assert_array_equal(frames[:, 8, 8, 0], [0, 60, 120, 180])
    (tmp_path / "empty").mkdir()
    with pytest.raises(QueryError, match="0 pictures"):
        read_frames(tmp_path / "empty")
