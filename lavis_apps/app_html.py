"""Pieces of the page's answers as HTML: tables, bars, pictures, and files to save.

Pictures and files go into the answer itself, as data: addresses: nothing of a visitor lies on the
disk, and no request names a file of this machine. Used by the tabs of app.py; no torch, no Gradio.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

THUMBNAIL, LARGE = 240, 720  # LAVIS' widths of hits and of pictures
MIME = {"csv": "text/csv;charset=utf-8", "npz": "application/octet-stream", "png": "image/png"}


def table_html(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    """Cells are escaped, but for those of type `Html`. `kind` is a class for the look."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell(c)}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="figures {kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def matrix_html(names: Sequence[str], lines: Sequence[str], scores: Any) -> str:
    """A row a picture, a column a text; `scores` (m, n)."""
    rows = [
        (f"{i}. {name}", *map(float, row))
        for i, (name, row) in enumerate(zip(names, scores, strict=True), start=1)
    ]
    return table_html(("", *lines), rows, "matrix")


class Html(str):
    """Text that is HTML already."""


def cell(value: Any) -> str:
    return value if isinstance(value, Html) else html.escape(figure(value))


def figure(value: Any) -> str:
    """Numbers with four decimals, as BLIP's demo prints them; None as a dash."""
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def bar_html(share: float) -> Html:
    """A percentage with three decimals, as LAVIS prints it, behind a bar of that length."""
    width = 100 * min(max(share, 0.0), 1.0)
    return Html(f'<span class="meter"><span style="width:{width:.1f}%"></span></span>{share:.3%}')


def said_html(text: str) -> str:
    return f'<p class="said">{html.escape(text)}</p>'


def small_html(*texts: str) -> str:
    """Small print: a paragraph each; empty ones are left out."""
    return "".join(f'<p class="small">{html.escape(text)}</p>' for text in texts if text)


def notice_html(text: str) -> str:
    return f'<div class="notice">{html.escape(text)}</div>'


def picture_html(image: Image, caption: str = "", *, width: int = LARGE, more: str = "") -> str:
    """A picture, made smaller than `width`; `more` is HTML for below its caption."""
    small = image.copy()
    small.thumbnail((width, width))
    address = data_url(encoded(small, "JPEG"), "image/jpeg")
    below = f"<figcaption>{html.escape(caption)}{more}</figcaption>" if caption or more else ""
    return f'<figure><img src="{address}" alt="{html.escape(caption)}">{below}</figure>'


def map_figure(texts: Mapping[str, str], grid: Any, image: Image, caption: str, name: str) -> str:
    """A heat map over its picture, at the size of the page, with a link that saves it as PNG."""
    from lavis_apps.heat_maps import fitted, heat_map

    drawn = heat_map(grid, fitted(image, LARGE))
    link = download_html(texts["save_png"], f"{name}.png", encoded(drawn, "PNG"))
    return picture_html(drawn, caption, more=f" {link}")


def gallery_html(figures: Iterable[str], kind: str = "") -> str:
    return f'<div class="pictures {kind}">{"".join(figures)}</div>'


def download_html(label: str, name: str, content: bytes) -> str:
    """A link that saves `content` as the file `name`; its type is the name's suffix."""
    address = data_url(content, MIME[name.rpartition(".")[2]])
    return (
        f'<a class="save" download="{html.escape(name)}" href="{address}">{html.escape(label)}</a>'
    )


def data_url(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def encoded(image: Image, kind: str) -> bytes:
    """The picture as a file: PNG, or JPEG of quality 88."""
    file = io.BytesIO()
    image.convert("RGB").save(file, kind, quality=88)
    return file.getvalue()


def csv_bytes(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file that spreadsheets read as UTF-8; numbers in full."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(head)
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + file.getvalue().encode("utf-8")


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()
