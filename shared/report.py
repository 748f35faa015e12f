"""HTML reports in one file: page model, thumbnails, tables to copy, number formats.

A script describes its page with the dataclasses below and `write_report` renders them through
`report.html.j2`. Everything is inside the file (pictures and charts as data URIs, style and script
inline), a content security policy forbids the page any load from elsewhere and any script but its
own, and every text is escaped by the template. Charts come from `shared.charts`.

    python -m pytest tests/shared/test_report.py

Reads the template, style and script beside this file; writes one .html. No torch.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from shared.images import ImageError, open_image
from shared.options import UserError

Language = Literal["en", "zh"]
Tone = Literal["", "good", "bad", "warn", "stop", "mark"]

FEW = 30  # rows about fewer samples are greyed: their figures are shown, and not to be leaned on
THUMBNAIL_SIDE = 256  # pixels; about 10 kB a photograph as JPEG
TEXT_LIMIT = 400  # characters of one text on a card; an answer of 5,000 must not bury the others
HERE = Path(__file__).parent

PAGE_TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "synthetic": "SYNTHETIC",
        "copy": "Copy",
        "copied": "Copied",
        "copy_failed": "Press Ctrl+C",
        "no_picture": "picture not found",
        "few": f"Greyed rows rest on fewer than {FEW} samples.",
        "none": "none",
        "empty": "(empty)",
        "clipped": "… ({n} characters)",
    },
    "zh": {
        "synthetic": "SYNTHETIC 合成",
        "copy": "复制",
        "copied": "已复制",
        "copy_failed": "请按 Ctrl+C",
        "no_picture": "找不到图片",
        "few": f"灰色行的样本少于 {FEW} 个。",
        "none": "无",
        "empty": "（空）",
        "clipped": "……（共 {n} 个字符）",
    },
}


@dataclass(frozen=True)
class Row:
    """Cells of a table; `n` is the number of samples behind them, greyed below `FEW`."""

    cells: Sequence[str]
    n: int | None = None
    tone: Tone = ""

    @property
    def few(self) -> bool:
        return self.n is not None and self.n < FEW


@dataclass(frozen=True)
class Table:
    """`text_columns` are aligned left and may wrap, the other columns hold figures."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    note: str = ""
    text_columns: Collection[int] = (0,)
    folded: bool = False  # shown after a click on its title

    @property
    def has_few(self) -> bool:
        return any(row.few for row in self.rows)


@dataclass(frozen=True)
class Chart:
    """A PNG picture. `alt` says in words what it shows."""

    png: bytes
    title: str
    alt: str
    note: str = ""

    @property
    def uri(self) -> str:
        return data_uri(self.png, "image/png")


@dataclass(frozen=True)
class Charts:
    """Charts side by side where the screen is wide enough."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Answer:
    """What one model said: the answer, its figures in `note`, labelled small print below."""

    label: str
    text: str | None
    note: str = ""
    tone: Tone = ""
    details: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Card:
    """One sample; `picture` is a data URI, None for a placeholder that says `instead`."""

    picture: str | None
    title: str
    answers: Sequence[Answer]
    facts: Sequence[tuple[str, str]] = ()  # (label, text), beside the picture
    note: str = ""  # where the sample comes from
    instead: str = ""  # of the picture; empty: that it was not found


@dataclass(frozen=True)
class Gallery:
    """One stratum of samples; an empty `note` stands for "none"."""

    kind: ClassVar[str] = "gallery"
    title: str
    note: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class CopyBox:
    """Text to take away, with a copy button."""

    kind: ClassVar[str] = "copy"
    title: str
    text: str


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    paragraphs: Sequence[str]


Block = Table | Charts | Gallery | CopyBox | Text


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Report:
    """A page. `synthetic` is the notice for toy data or models, empty when all is real;

    `banner` holds the lines of the red banner: why the figures must not be used as they stand.
    """

    title: str
    subtitle: str
    verdict: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    language: Language = "en"
    synthetic: str = ""
    banner_title: str = ""
    banner: Sequence[str] = ()
    footer: Sequence[str] = field(default_factory=tuple)


def write_report(path: Path, report: Report) -> None:
    """Render the page whole or not at all. Raises UserError when it can't be written."""
    page = render(report)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def render(report: Report) -> str:
    """The page as text. Autoescape is on; only this package's own style and script go in raw."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    texts = PAGE_TEXTS[report.language]

    def clip(text: str) -> str:
        if len(text) <= TEXT_LIMIT:
            return text
        return text[:TEXT_LIMIT] + texts["clipped"].format(n=f"{len(text):,}")

    script = (HERE / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clip"] = clip
    environment.filters["keep_together"] = lambda text: text.replace(" %", "\u00a0%")
    page = environment.get_template("report.html.j2").render(
        report=report,
        texts=texts,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=script,
        # The policy names the one script that may run; injected ones would not, escaped or not.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.lstrip()


def data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def thumbnail(path: Path | str, side: int = THUMBNAIL_SIDE) -> str | None:
    """The picture as a JPEG data URI of at most `side` pixels; None when it can't be opened."""
    try:
        image = open_image(path)
    except ImageError:
        return None
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=85, optimize=True)
    return data_uri(content.getvalue(), "image/jpeg")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """GitHub's pipe table; bars and line breaks inside cells are made harmless."""

    def line(cells: Sequence[str]) -> str:
        safe = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(safe) + " |"

    rule = "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """RFC 4180 with line feeds. A text that a spreadsheet would run as a formula gets a quote."""

    def safe(cell: object) -> object:
        formula = isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t"}
        return f"'{cell}" if formula else cell

    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([safe(cell) for cell in row] for row in rows)
    return content.getvalue().rstrip("\n")


def percent(value: float | None) -> str:
    """A figure given in percent."""
    return "–" if value is None else f"{value:.2f} %"


def points(value: float | None) -> str:
    """A difference given in percentage points, signed."""
    return "–" if value is None else f"{value:+.2f}"


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    if low is None or high is None:
        return "–"
    return f"[{points(low)}, {points(high)}]" if signed else f"[{low:.2f}, {high:.2f}]"


def p_value(value: float | None) -> str:
    """Two significant digits down to 0.0001, the smallest that 9,999 sign flips can give: the true
    p may lie below it."""
    if value is None:
        return "–"
    if value <= 0.0001:
        return "≤ 0.0001"
    return f"{value:.4f}" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
