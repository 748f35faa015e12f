"""Prompt templates compared: figures by hand, references found, the page looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_clip_llava_lora import compare_prompts, describe_images, describe_settings
from qwen_clip_llava_lora.compare_prompts import ComparePromptsOptions, run_first
from qwen_clip_llava_lora.describe_settings import DescribeOptions, toy_defaults
from qwen_clip_llava_lora.prompt_figures import (
    compare_templates,
    covered_aspects,
    distinct,
    lengths,
    read_references,
    united_aspects,
)
from qwen_clip_llava_lora.prompt_texts import TEXTS
from shared.caption_score import score_captions
from shared.caption_tokens import tokenize_caption
from shared.options import MissingError, UserError, read_json

ASPECTS = {"colour": ["red", "blue"], "animal": ["dog", "polar bear", "fox"]}


def record(image: str, template: str, text: str | None, **more: Any) -> dict[str, Any]:
    return {
        "sample_id": f"{image}|{template}|{more.get('sample', 0)}", "image": image,
        "template": template, "language": "en", "sample": 0,
        "status": "malformed" if text is None else "ok", "description": text, "error": "no JSON",
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Red dog.", ["colour", "animal"]),
        ("Two dogs and foxes", ["animal"]),
        ("a polar bear", ["animal"]),
        ("a polar cap and a bear", []),
        ("hundreds of doghouses", []),  # whole words
        ("", []),
    ],
)
def test_an_aspect_is_covered_where_a_word_of_it_occurs(text, expected):
    assert covered_aspects(text, tokenize_caption(text), ASPECTS, "en") == expected


def test_chinese_aspects_need_no_word_borders():
    aspects = {"颜色": ["红", "蓝"], "动物": ["狗"]}
    text = "一只红色的小狗"
    assert covered_aspects(text, tokenize_caption(text, "zh"), aspects, "zh") == ["颜色", "动物"]
    assert covered_aspects("一辆车", tokenize_caption("一辆车", "zh"), aspects, "zh") == []


def test_aspects_of_several_templates_are_united():
    found = united_aspects(
        [{"aspects": {"a": ["x"]}}, {}, {"aspects": {"a": ["y", "x"], "b": ["z"]}}]
    )
    assert found == {"a": ("x", "y"), "b": ("z",)}


def test_distinct_ngrams_by_hand():
    texts = [["a", "red", "dog"], ["a", "red", "fox"], ["a", "a"]]
    assert distinct(texts, 1, 8) == pytest.approx(4 / 8)
    assert distinct(texts, 2, 8) == pytest.approx(4 / 5)  # a-red, red-dog, red-fox, a-a of 5
    assert distinct(texts, 1, 4) == pytest.approx(3 / 4)  # a red dog | a
    assert distinct([], 1, 0) is None
    assert distinct([["a"]], 2, 1) is None


def test_lengths_by_hand():
    found = lengths([["a"], ["a", "b", "c"], ["a", "b"]], ["p", "q", "r"])
    assert (found["mean"], found["quartiles"]) == (2.0, [1.5, 2.0, 2.5])
    assert found["low"] < 2 < found["high"]
    alike = lengths([["a"]] * 12, [str(i) for i in range(12)])
    assert (alike["mean"], alike["low"]) == (1.0, None)  # no width would claim certainty
    assert lengths([], [])["mean"] is None


def contents(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"language": "en", "aspects": ASPECTS} for name in names}


def test_templates_against_references():
    """The figures are score_captions'; an unusable description is an empty caption."""
    animals = ["dog", "fox", "cat", "cow", "owl", "bee", "ant", "elk", "hen", "pig", "rat", "emu"]
    references = {"en": {f"{a}.jpg": [f"a red {a} on grass", f"one {a}"] for a in animals}}
    records = []
    for i, animal in enumerate(animals):
        records.append(record(f"{animal}.jpg", "good", f"a red {animal} on grass"))
        records.append(record(f"{animal}.jpg", "good", "never scored", sample=1))
        records.append(
            record(f"{animal}.jpg", "bad", None if i == 0 else f"this is {animal} thing")
        )
    found = compare_templates(records, contents("good", "bad"), references)["en"]
    against = found["references"]
    assert against["n_pictures"] == 12
    expected = score_captions(
        references["en"], {f"{a}.jpg": f"this is {a} thing" for a in animals[1:]}, meteor=False
    )
    assert against["scores"]["bad"]["corpus"]["CIDEr"] == expected["corpus"]["CIDEr"]
    assert against["scores"]["bad"]["without_description"] == 1
    assert against["scores"]["good"]["corpus"]["ROUGE_L"] == pytest.approx(1.0)
    (pair,) = against["pairs"]
    assert (pair["first"], pair["second"]) == ("good", "bad")
    assert pair["difference"] < 0
    assert pair["p_holm"] == pair["p_value"] < 0.01
    assert against["length"]["mean"] == pytest.approx(3.5)
    # each other: the row's texts with the column's as references, on the pictures of both
    rows = found["agreement"]["table"]
    assert rows[0][0] is rows[1][1] is None
    assert 0 < rows[0][1] < 1
    figures = found["figures"]
    assert (figures["good"]["usable"], figures["bad"]["usable"]) == (24, 11)
    assert figures["good"]["different_texts"] == 13
    assert figures["good"]["aspects"]["colour"]["value"] == pytest.approx(50.0)


def test_templates_without_any_usable_description_or_reference():
    records = [record("a.jpg", "one", None), record("a.jpg", "two", "a red dog")]
    found = compare_templates(records, contents("one", "two"), {"zh": {"a.jpg": ["狗"]}})["en"]
    assert found["references"] == {"n_pictures": 0, "reason": "not_given"}
    assert found["figures"]["one"]["length"]["mean"] is None
    assert found["figures"]["one"]["aspects"]["colour"]["value"] is None
    assert found["agreement"]["table"] == [[None, None], [None, None]]
    found = compare_templates(records, contents("one", "two"), {"en": {"b.jpg": ["a dog"]}})["en"]
    assert found["references"]["reason"] == "not_matched"


def test_references_are_found_by_name_and_language(tmp_path):
    def row(image: Any, answer: str, **more: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": answer}]
        return {"image": image, "conversations": turns} | more

    rows = [
        row("a.jpg", "first", captions=["one", "two", "一个"]),
        row("train/b.jpg", "the answer"),
        row("x/c.jpg", "one of two"),
        {"image": "a.jpg"},
        row("z.jpg", "of no picture"),
    ]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    found, bad = read_references(
        tmp_path / "captions.json", ["a.jpg", "val/b.jpg", "c/c.jpg", "d/c.jpg"]
    )
    assert found["en"] == {"a.jpg": ["one", "two"], "val/b.jpg": ["the answer"]}
    assert found["zh"] == {"a.jpg": ["一个"]}
    assert bad == 1


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    describe_settings.prepare_toy()
    folder = tmp_path_factory.mktemp("describe")
    flags = {"limit": 14, "output_dir": str(folder), "device": "cpu"}
    describe_images.main(DescribeOptions(**(toy_defaults() | flags)))
    return folder


def spoil(run: Path, folder: Path) -> Path:
    """The run with a malformed, a missing and a hostile description, and without some pictures."""
    folder.mkdir()
    records = [json.loads(line) for line in (run / "descriptions.jsonl").open(encoding="utf-8")]
    records[0] |= {"status": "malformed", "description": None, "error": "it holds no JSON object"}
    records[1] |= {"status": "missing", "description": None, "error": "not asked"}
    records[2] |= {"description": "<script>alert(1)</script> a red star " + "and more " * 200}
    for one in records[4:8]:
        one["image"] = "gone.jpg"
    with (folder / "descriptions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in records)
    metrics = read_json(run / "metrics.json") | {"complete": False}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.json").write_text((run / "config.json").read_text(encoding="utf-8"))
    return folder


def test_the_toy_run_compared(toy_run, tmp_path, capsys):
    references = str(describe_settings.TOY_SETS / "cc3m_595k" / "held_out.json")
    compare_prompts.main(
        ComparePromptsOptions(run=str(toy_run), references=references, output_dir=str(tmp_path))
    )
    said = capsys.readouterr().out
    assert said.startswith("SYNTHETIC")
    assert "toy_chain_en: 14 / 14 usable" in said
    comparison = read_json(tmp_path / "prompts.json")
    assert set(comparison["languages"]) == {"en", "zh"}
    english, chinese = (comparison["languages"][code] for code in ("en", "zh"))
    assert english["references"]["n_pictures"] + chinese["references"]["n_pictures"] == 14
    assert "character" in chinese["references"]["tokenizer"]
    # the toy sees what it describes: far above chance
    assert english["references"]["scores"]["toy_plain_en"]["corpus"]["CIDEr"] > 1
    page = (tmp_path / "prompts.html").read_text(encoding="utf-8")
    assert "Toy data and model" in page
    assert page.count("data:image/jpeg") == 12  # the sample's pictures
    assert page.count("data:image/png") == 1 + 2 * 2


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_spoilt_run_without_references_still_has_its_page(toy_run, tmp_path, language):
    run = spoil(toy_run, tmp_path / "spoilt")
    compare_prompts.main(
        ComparePromptsOptions(run=str(run), language=language, pictures=50, seed=3)
    )
    page = (run / "prompts.html").read_text(encoding="utf-8")
    words = TEXTS[language]
    for key in ("unfinished_title", "not_given", "status_missing", "aspects_note"):
        assert words[key] in page, key
    assert "it holds no JSON object" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_both_languages_say_the_same_things():
    assert set(TEXTS["en"]) == set(TEXTS["zh"])
    for key, text in TEXTS["en"].items():
        holes = [sorted(part.split("}")[0] for part in t.split("{")[1:])
                 for t in (text, TEXTS["zh"][key])]  # fmt: skip
        assert holes[0] == holes[1], key


@pytest.mark.browser
def test_the_page_in_a_browser(toy_run, tmp_path, chromium_page, page_log):
    references = str(describe_settings.TOY_SETS / "cc3m_595k" / "held_out.json")
    compare_prompts.main(
        ComparePromptsOptions(run=str(toy_run), references=references, output_dir=str(tmp_path),
                              language="zh")
    )  # fmt: skip
    page = chromium_page
    page.goto((tmp_path / "prompts.html").as_uri())
    assert page_log["errors"] == []
    assert page_log["requests"] == [page.url]  # nothing from elsewhere
    broken = "images => images.filter(image => !image.naturalWidth).length"
    assert page.locator("img").evaluate_all(broken) == 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("summary", has_text=TEXTS["zh"]["prompts"]).click()
    assert page.get_by_text("What color is the {shape}?").is_visible()


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match="which run"):
        ComparePromptsOptions()
    with pytest.raises(MissingError, match=r"no config.json.*describe_images.py --toy"):
        compare_prompts.main(ComparePromptsOptions(run=str(tmp_path)))
    assert run_first(["RUN", "--seed", "1"]) == ["--run", "RUN", "--seed", "1"]
    assert run_first(["--toy"]) == ["--toy"]


def test_references_of_other_pictures_are_told(toy_run, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    row = {"image": "other.png", "conversations": [
        {"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]}  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match="no caption of any of the run's pictures"):
        compare_prompts.main(
            ComparePromptsOptions(run=str(toy_run), references=str(tmp_path / "rows.json"))
        )
