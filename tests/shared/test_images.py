"""Pictures as users have them: each is opened rightly or named with what is wrong."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from shared.images import ImageError, header_size, list_images, open_image
from shared.options import UserError


def noise(width: int = 40, height: int = 30) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(width: int, height: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG put together by hand: what no encoder here would write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# Bad pictures: one ImageError that names the file


def test_a_missing_picture_is_named(tmp_path):
    """Used to be a FileNotFoundError of Pillow from the middle of a batch."""
    for check in (open_image, header_size):
        with pytest.raises(ImageError, match=r"absent.jpg: no such picture"):
            check(tmp_path / "absent.jpg")


def test_a_folder_in_the_place_of_a_picture_is_named(tmp_path):
    """A row whose image column holds the folder's name."""
    with pytest.raises(ImageError, match="a folder, not a picture"):
        open_image(tmp_path)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"", b"\x00" * 2000])
def test_something_else_named_jpg_is_named(tmp_path, content):
    """A download that failed leaves an error page, or nothing, under the picture's name."""
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for check in (open_image, header_size):
        with pytest.raises(ImageError, match=r"a.jpg: not a picture that Pillow can read"):
            check(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_a_truncated_picture_is_an_error_not_a_grey_half(tmp_path, suffix):
    """Half a download has a whole header; decoded leniently, its lower half would be grey."""
    path = tmp_path / f"a.{suffix}"
    noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"a.{suffix}: broken picture"):
        open_image(path)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """A few hundred bytes that say 20,000 x 20,000 pixels would take 1.2 GB."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20_000, 20_000, 8, 2, b""))
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    for check in (open_image, header_size):
        with pytest.raises(ImageError, match=r"bomb.png: .*pixels"):
            check(path)


def never(*_: object) -> None:
    raise AssertionError("the pixels were decoded")


def test_a_path_that_cannot_be_one_is_named(tmp_path):
    with pytest.raises(ImageError, match="broken picture"):
        open_image(tmp_path / ("x" * 300))
    with pytest.raises(ImageError, match="broken picture"):
        open_image("a\0b.jpg")


# Unusual pictures: opened as a viewer shows them


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    picture = open_image(tmp_path / "a.jpg")
    assert picture.mode == "RGB"
    red, green, blue = picture.getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 20


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    """`convert("RGB")` makes every 16-bit grey above 255 white."""
    greys = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(greys).save(tmp_path / "a.png")
    picture = open_image(tmp_path / "a.png")
    assert picture.mode == "RGB"
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_transparency_is_laid_on_white(tmp_path):
    """`convert("RGB")` shows the colour that lies hidden under transparent pixels, often black."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 10, 20])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(open_image(tmp_path / "palette.png"))[0].tolist() == [
        [255, 255, 255],
        [200, 10, 20],
    ]
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    assert open_image(tmp_path / "rgba.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("LA", (1, 1), (100, 255)).save(tmp_path / "la.png")
    assert open_image(tmp_path / "la.png").getpixel((0, 0)) == (100, 100, 100)
    Image.new("RGBA", (1, 1), (0, 0, 0, 127)).save(tmp_path / "half.png")
    assert open_image(tmp_path / "half.png").getpixel((0, 0)) == (128, 128, 128)


def test_exif_rotation_is_applied(tmp_path):
    """A phone writes the sensor's rows and "turn by 90 degrees"; models must see it upright."""
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste("red", (0, 0, 20, 20))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = open_image(tmp_path / "a.jpg")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] > 200  # what was left is on top
    assert upright.getpixel((10, 35))[2] > 200


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
    assert open_image(tmp_path / "a.gif").getpixel((4, 4)) == (255, 0, 0)


def test_one_bit_and_grey_become_rgb(tmp_path):
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "bit.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)


# Headers and folders


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_header_size_is_that_of_the_picture_as_shown(tmp_path, suffix, orientation):
    """Models whose image tokens follow from the size count them before a picture is decoded."""
    from PIL import Image

    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (60, 40), "red").save(file, exif=exif)
    shown = open_image(file).size
    assert header_size(file) == shown == ((40, 60) if orientation in (6, 8) else (60, 40))


def test_header_size_decodes_no_pixels(tmp_path, monkeypatch):
    """The check of a whole training set reads headers: 100,000 decodes would take minutes."""
    noise(640, 480).save(tmp_path / "a.jpg")
    decodes = []
    load = ImageFile.ImageFile.load

    def counted(self: ImageFile.ImageFile):
        decodes.append(self)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    assert header_size(tmp_path / "a.jpg") == (640, 480)
    assert decodes == []
    open_image(tmp_path / "a.jpg")
    assert len(decodes) >= 1  # the counter does count


def test_open_pictures_are_closed(tmp_path):
    """Thousands of pictures in one process must not use up the file descriptors."""
    noise().save(tmp_path / "a.png")
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("no /proc to count open files in")
    before = len(list(descriptors.iterdir()))
    kept = [open_image(tmp_path / "a.png") for _ in range(20)]
    assert len(list(descriptors.iterdir())) == before
    assert len(kept) == 20


def test_pictures_of_a_folder_in_order(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", "sub/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == [
        "a.png",
        "b.JPG",
        "sub/d.webp",
    ]


def test_a_folder_without_pictures_or_no_folder_is_named(tmp_path):
    """A misspelt folder used to be reported as a folder without pictures."""
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"no picture in it \(looked for \.bmp"):
        list_images(tmp_path)
    with pytest.raises(UserError, match=r"absent: no such folder"):
        list_images(tmp_path / "absent")
