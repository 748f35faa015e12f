"""Opening and checking pictures.

A picture is decoded once, turned as its EXIF says, and brought to RGB; whatever is wrong with it
becomes one `ImageError` that names the file. `header_size` reads only the header, for checks over
many files before training starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shared.options import UserError, read_json

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
MAX_PIXELS = (
    178_956_970  # Pillow's own limit for a decompression bomb, made an error instead of a warning
)
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 lie on their side
SIDEWAYS = (5, 6, 7, 8)

# model: as its config.json or adapter says it was trained; pad: a mean-coloured square around the
# picture (LLaVA v1.5); crop: the middle square; resize: squeezed to a square.
ImageHandling = Literal["model", "pad", "crop", "resize"]
# In the Hub layout their config.json is silent; the original's (liuhaotian/llava-v1.5-7b and -13b)
# has `"image_aspect_ratio": "pad"`.
PUBLISHED_ASPECT_RATIOS = {
    "llava-hf/llava-1.5-7b-hf": "pad",
    "llava-hf/llava-1.5-13b-hf": "pad",
}


class ImageError(UserError):
    """A picture that cannot be used; the message names the file and the reason."""


def open_image(path: Path | str) -> Image:
    """The picture as an RGB PIL image, EXIF rotation applied, fully decoded.

    Raises ImageError for a missing, truncated, oversized or non-image file.
    """
    from PIL import Image, ImageOps

    header_size(path)
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: broken picture ({error})") from error


def to_rgb(image: Image) -> Image:
    """RGB with transparency laid on white and 16-bit greys scaled to 8 bits."""
    from PIL import Image

    if image.mode in {"I;16", "I;16B", "I;16L", "I"}:
        # convert("L") would clip everything above 255 to white
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def pad_to_square(image: Image, color: tuple[int, int, int]) -> Image:
    """The picture in the middle of a square of its longer side, as LLaVA v1.5 pads.

    Odd rests go below and to the right (haotian-liu/LLaVA c121f04, llava/mm_utils.py,
    expand2square); `color` is the processor's mean there.
    """
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def trained_aspect_ratio(folder: Path) -> str | None:
    """ "pad" or "square" as a LLaVA was trained: its config.json's word, else what is published of
    the model that its path names (data/models/NAME, or the Hub's cache); None where neither says.
    """
    said = read_json(folder / "config.json").get("image_aspect_ratio")
    if said:
        return said
    return PUBLISHED_ASPECT_RATIOS.get(published_name(folder, PUBLISHED_ASPECT_RATIOS) or "")


def published_name(folder: Path, names: Iterable[str]) -> str | None:
    """Which of the Hub's `names` the folder of a model is called by (data/models/NAME, or the Hub's
    cache)."""
    for name in names:
        owner, _, model = name.partition("/")
        if folder.parts[-2:] == (owner, model) or f"models--{owner}--{model}" in folder.parts:
            return name
    return None


def squared(
    image: Image,
    handling: ImageHandling,
    *,
    trained_on: str | None,
    mean: Sequence[float],
    side: int,
) -> Image:
    """The picture as `handling` says; what is left to do is the image processor's.

    `trained_on` is the model's aspect ratio ("pad", "square", None), `mean` its processor's mean
    colour (0 to 1), `side` its input's pixels.
    """
    if handling == "model":
        if trained_on != "pad":
            return image
        handling = "pad"
    if handling == "pad":
        red, green, blue = (int(255 * value) for value in mean)
        return pad_to_square(image, (red, green, blue))
    if handling == "crop":
        shorter = min(image.size)
        left, top = (image.width - shorter) // 2, (image.height - shorter) // 2
        return image.crop((left, top, left + shorter, top + shorter))
    return image.resize((side, side))


def header_size(path: Path | str) -> tuple[int, int]:
    """(width, height) as `open_image` shows it, turned as its EXIF says; from the header alone,
    pixels not decoded. Raises ImageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            width, height = image.size
            # without EXIF in the header Pillow would read the whole of a PNG in search of it
            if "exif" in image.info and image.getexif().get(ORIENTATION) in SIDEWAYS:
                width, height = height, width
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such picture") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path}: a folder, not a picture") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: not a picture that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: broken picture ({error})") from error
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: {width}x{height} pixels is more than this program decodes")
    return width, height


def list_images(folder: Path) -> list[Path]:
    """Pictures of a folder and its subfolders by suffix, by name. Raises UserError if none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )
    if not found:
        raise UserError(
            f"{folder}: no picture in it (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return found
