"""Maps of localization.py drawn: one over its picture, and those of a text's words side by side.

The look is LAVIS' (`getAttMap`,
https://github.com/salesforce/LAVIS/blob/main/lavis/common/gradcam.py): a map is shifted and scaled
to 0..1, enlarged to the picture (bicubic), blurred, brought to 0..1 again (a), and shown in jet's
colours: (1 - a^0.7) of the picture and a^0.7 of the colours. One difference: there the map fades
towards its edges, as what lies outside counts as 0.

    heat_map(found.average, image).save("dog.png")
    Path("words.png").write_bytes(words_chart(image, found))

Reads and writes nothing. No torch; scipy and matplotlib are imported where they are used.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from shared.charts import drawable, font_families

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from lavis_apps.localization import Localization

BLUR = 0.02  # standard deviation, as a share of the picture's longer side
OPACITY = 0.7  # exponent
LONGEST_SIDE = 2048  # pixels of a drawn picture; a wider one would take gigabytes
COLUMNS, TILE, TITLE, DPI = 4, 2.4, 0.3, 100  # of a chart of words; width and title in inches
MOST_WORDS = 39  # with the average ten rows of tiles


def enlarged(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (rows, columns) on a picture of `size` (width, height): (height, width) float32.

    Bicubic, cut to the map's own range, as scikit-image's `resize` does for LAVIS. Beyond its edges
    the map goes on with its last values.
    """
    import numpy as np
    from PIL import Image

    grid = np.asarray(grid, dtype=np.float32)
    rows, columns = grid.shape
    reach = 2  # patches that the bicubic kernel looks at on each side
    padded = Image.fromarray(np.pad(grid, reach, mode="edge"))
    box = (reach, reach, reach + columns, reach + rows)
    large = np.asarray(padded.resize(size, Image.Resampling.BICUBIC, box=box))
    return large.clip(grid.min(), grid.max())


def from_0_to_1(values: np.ndarray) -> np.ndarray:
    """Shifted and scaled to 0 to 1; all 0 where all are equal."""
    import numpy as np

    values = np.asarray(values, dtype=np.float32)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def smooth(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map as it is drawn on a picture of `size` (width, height): (height, width), 0 to 1."""
    from scipy.ndimage import gaussian_filter

    large = enlarged(from_0_to_1(grid), size)
    return from_0_to_1(gaussian_filter(large, BLUR * max(size)))


def heat_map(grid: np.ndarray, image: Image) -> Image:
    """An RGB picture under its map (rows, columns), in the picture's size.

    One with a side above 2,048 pixels is made smaller first. A map without any difference is drawn
    in jet's lowest colour at no opacity: the picture as it was.
    """
    import matplotlib
    import numpy as np
    from PIL import Image as PillowImage

    image = fitted(image)
    heat = smooth(grid, image.size)  # (H, W)
    colors = matplotlib.colormaps["jet"](np.arange(256))[:, :3].astype(np.float32) * 255
    share = (heat**OPACITY)[..., None]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    index = np.minimum((heat * 256).astype(np.int64), 255)  # as matplotlib finds a colour
    laid = (1 - share) * pixels + share * colors[index]
    return PillowImage.fromarray(np.round(laid).astype(np.uint8))


def fitted(image: Image, longest: int = LONGEST_SIDE) -> Image:
    """The picture itself, or a smaller one whose longer side is `longest`."""
    from PIL import Image as PillowImage

    width, height = image.size
    scale = longest / max(width, height)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(size, PillowImage.Resampling.BICUBIC, reducing_gap=2.0)


def words_chart(image: Image, found: Localization) -> bytes:
    """PNG: the average and each word's map over the picture, four in a row, as LAVIS shows them.

    Each map goes from 0 to 1 of its own. Of a text with more than 39 words the first are shown, and
    the title of the average says so.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = found.words[:MOST_WORDS]
    title = f"average (match {found.probability:.1%})"
    if len(shown) < len(found.words):
        title += f", first {len(shown)} words"
    tiles = [(title, found.average), *((word.word, word.grid) for word in shown)]
    rows, columns = math.ceil(len(tiles) / COLUMNS), min(COLUMNS, len(tiles))
    small = fitted(image, round(TILE * DPI * 2))
    tall = TILE * min(2.0, max(0.5, small.height / small.width))
    with matplotlib.rc_context({"font.family": font_families(), "text.parse_math": False}):
        figsize = (columns * TILE, rows * (tall + TITLE))
        figure = Figure(figsize=figsize, dpi=DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for place in axes:
            place.axis("off")
        for place, (name, grid) in zip(axes, tiles, strict=False):
            place.imshow(heat_map(grid, small))
            place.set_title(drawable(name, 40), fontsize=9)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
