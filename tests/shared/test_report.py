"""Report pages: escaping, notices, greyed rows, tables to copy, and a real browser on them."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from shared import charts
from shared.options import UserError
from shared.report import (
    PAGE_TEXTS,
    Answer,
    Card,
    Chart,
    Charts,
    CopyBox,
    Gallery,
    Report,
    Row,
    Section,
    Table,
    Text,
    Tile,
    csv_table,
    interval,
    markdown_table,
    p_value,
    percent,
    points,
    render,
    thumbnail,
    write_report,
)

HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">\'&'


def sample_report(**changes: object) -> Report:
    """Every kind of block, with hostile text wherever a text goes."""
    picture = Image.new("RGB", (40, 30), "red")
    content = io.BytesIO()
    picture.save(content, "JPEG")
    uri = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    chart = Chart(charts.outcome_bars([HOSTILE], [(1, 2, 3)], ["a", "b", "c"]), HOSTILE, HOSTILE)
    answer = Answer(HOSTILE, HOSTILE, HOSTILE, "good", [(HOSTILE, HOSTILE)])
    card = Card(uri, HOSTILE, [answer, Answer("b", None)], [(HOSTILE, HOSTILE)], HOSTILE)
    blocks = [
        Table([HOSTILE, "n"], [Row([HOSTILE, "29"], 29), Row(["thirty", "30"], 30)], HOSTILE),
        Table(["folded"], [Row(["inside"])], "unfold", folded=True),
        Charts([chart]),
        Gallery(HOSTILE, "one", [card, replace(card, picture=None)]),
        Gallery("empty stratum", "", []),
        CopyBox(HOSTILE, f"| {HOSTILE} |\n| two |"),
        Text([HOSTILE]),
    ]
    page = Report(
        title=HOSTILE,
        subtitle=HOSTILE,
        verdict=HOSTILE,
        tiles=[Tile(HOSTILE, "12.00 %", HOSTILE)],
        sections=[Section("all", HOSTILE, blocks)],
        footer=[HOSTILE],
    )
    return replace(page, **changes)


def test_every_text_is_escaped() -> None:
    page = render(sample_report(banner=[HOSTILE], banner_title=HOSTILE, synthetic=HOSTILE))
    assert "<script>window" not in page
    assert "<img src=x" not in page
    assert page.count("<script>") == 1  # its own


def test_notices_show_only_when_given() -> None:
    plain = render(sample_report())
    assert 'class="banner"' not in plain
    assert 'class="synthetic"' not in plain
    warned = render(sample_report(banner=["reason"], banner_title="stop", synthetic="toy"))
    assert "<li>reason</li>" in warned
    assert "<strong>SYNTHETIC</strong> toy" in warned


def test_rows_below_thirty_are_greyed_and_shown() -> None:
    page = render(sample_report())
    assert page.count('<tr class="few ') == 1
    assert ">29<" in page
    assert PAGE_TEXTS["en"]["few"] in page


def test_long_texts_on_cards_are_clipped() -> None:
    card = Card(None, "q" * 5000, [Answer("a", "b" * 399 + "end of it")])
    page = render(sample_report(sections=[Section("s", "s", [Gallery("g", "n", [card])])]))
    assert "q" * 400 + "… (5,000 characters)" in page
    assert "end of it" not in page


def test_chinese_page() -> None:
    assert PAGE_TEXTS["en"].keys() == PAGE_TEXTS["zh"].keys()
    page = render(sample_report(language="zh", synthetic="玩具"))
    assert '<html lang="zh-CN">' in page
    assert "<strong>SYNTHETIC 合成</strong> 玩具" in page
    assert PAGE_TEXTS["zh"]["no_picture"] in page


def test_thumbnail_is_a_small_jpeg_and_none_for_what_is_no_picture(tmp_path: Path) -> None:
    Image.effect_noise((1600, 900), 80).save(tmp_path / "big.png")
    uri = thumbnail(tmp_path / "big.png")
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (256, 144)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "broken.jpg") is None
    assert thumbnail(tmp_path / "missing.jpg") is None


def test_markdown_cells_cannot_break_the_table() -> None:
    assert markdown_table(["a", "b"], [["x|y\nz", "1"]]) == "| a | b |\n|---|---:|\n| x\\|y z | 1 |"


def test_csv_quotes_and_stops_formulas() -> None:
    text = csv_table(["name", "n"], [["=cmd()", 1], ['a,"b"', -2.5], ["-x", None]])
    assert list(csv.reader(io.StringIO(text))) == [
        ["name", "n"],
        ["'=cmd()", "1"],
        ['a,"b"', "-2.5"],
        ["'-x", ""],
    ]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(12.3), "12.30 %"),
        (percent(None), "–"),
        (points(-3.1), "-3.10"),
        (points(3.1), "+3.10"),
        (interval(-1.0, 2.0, signed=True), "[-1.00, +2.00]"),
        (interval(None, None), "–"),
        (p_value(0.00009), "≤ 0.0001"),
        (p_value(0.0001), "≤ 0.0001"),  # the floor of 9,999 sign flips
        (p_value(0.00012), "0.0001"),
        (p_value(0.0449), "0.045"),
        (p_value(0.5), "0.50"),
        (p_value(None), "–"),
    ],
)
def test_number_formats(shown: str, expected: str) -> None:
    assert shown == expected


def test_unwritable_folder_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", sample_report())


@pytest.mark.browser
def test_page_in_a_browser_loads_nothing_and_runs_only_its_own_script(
    tmp_path: Path, chromium_page, page_log: dict[str, list[str]]
) -> None:
    path = tmp_path / "report.html"
    write_report(path, sample_report())
    chromium_page.goto(path.as_uri())
    images = chromium_page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
    assert len(images) == 2  # the chart and one card; the other card has a placeholder
    assert min(images) > 0
    assert chromium_page.evaluate("window.hacked") is None
    assert page_log["errors"] == []
    assert [url for url in page_log["requests"] if not url.startswith(("data:", "file:"))] == []
    assert chromium_page.locator("h1").inner_text() == HOSTILE


@pytest.mark.browser
def test_copy_button_copies_the_whole_text(tmp_path: Path, chromium_page) -> None:
    write_report(tmp_path / "report.html", sample_report())
    chromium_page.goto((tmp_path / "report.html").as_uri())
    button = chromium_page.get_by_role("button", name="Copy")
    button.click()
    chromium_page.get_by_role("button", name="Copied").wait_for()
    assert chromium_page.evaluate("navigator.clipboard.readText()") == f"| {HOSTILE} |\n| two |"


@pytest.mark.browser
def test_copy_button_works_without_the_clipboard_interface(tmp_path: Path, chromium_page) -> None:
    """Pages served over plain http have no navigator.clipboard."""
    write_report(tmp_path / "report.html", sample_report())
    chromium_page.add_init_script(
        "window.clipboard = navigator.clipboard;"
        "Object.defineProperty(Navigator.prototype, 'clipboard', {get: () => undefined});"
    )
    chromium_page.goto((tmp_path / "report.html").as_uri())
    chromium_page.get_by_role("button", name="Copy").click()
    chromium_page.get_by_role("button", name="Copied").wait_for()
    assert chromium_page.evaluate("window.clipboard.readText()") == f"| {HOSTILE} |\n| two |"


@pytest.mark.browser
def test_an_injected_script_would_not_run(
    tmp_path: Path, chromium_page, page_log: dict[str, list[str]]
) -> None:
    """The page's policy is a second wall behind the escaping."""
    page = render(sample_report()).replace("</main>", "<script>window.hacked = 2</script></main>")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    chromium_page.goto((tmp_path / "report.html").as_uri())
    assert chromium_page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in error for error in page_log["errors"])


@pytest.mark.browser
def test_no_sideways_scrolling_on_a_phone(tmp_path: Path, chromium_page) -> None:
    wide = Table([f"column {i}" for i in range(12)], [Row(["1234.56 [1.0, 2.0]"] * 12)])
    long = Text(["/a/very/long/path/" + "x" * 200])
    sections = [*sample_report().sections, Section("wide", "wide", [wide, long])]
    write_report(tmp_path / "report.html", sample_report(sections=sections))
    chromium_page.set_viewport_size({"width": 360, "height": 740})
    chromium_page.goto((tmp_path / "report.html").as_uri())
    assert chromium_page.evaluate("document.documentElement.scrollWidth") == 360
