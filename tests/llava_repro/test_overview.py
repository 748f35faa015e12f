"""overview.py: one row a benchmark, Holm over them, what is not a comparison of two runs."""

from __future__ import annotations

import json

import pytest

from llava_repro.overview import OverviewOptions, main, make_overview, read_comparisons
from shared.options import UserError


def estimate(value):
    return {"value": value, "low": value - 5, "high": value + 5, "n": 100}


def comparison(task, difference, p, synthetic=False):
    return {
        "base": {"config": {"task": task}},
        "tuned": {"config": {"task": task}},
        "metric": "accuracy",
        "synthetic": {"data": synthetic, "model": False},
        "blind": {"value": 50.0},
        "overall": {
            "base": estimate(60.0),
            "tuned": estimate(60.0 + difference),
            "difference": difference,
            "low": difference - 4,
            "high": difference + 4,
            "p_value": p,
            "n": 100,
        },
    }


def test_p_is_corrected_over_the_benchmarks():
    """.03 twice is .06 after Holm: neither is sure; .001 of three is .003."""
    two = {"a": comparison("pope", 9.0, 0.03), "b": comparison("gqa", 9.0, 0.03)}
    page = make_overview(two, ["stage 1", "stage 2"], "en")
    assert [row.cells[-1] for row in page.sections[0].blocks[0].rows] == ["0.06", "0.06"]
    assert page.verdict.startswith("0 of 2 benchmarks better, 0 worse")

    three = two | {"c": comparison("textvqa", -20.0, 0.001)}
    page = make_overview(three, ["stage 1", "stage 2"], "en")
    assert page.sections[0].blocks[0].rows[2].cells[-1] == "0.003"
    assert page.verdict.startswith("0 of 3 benchmarks better, 1 worse")


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_page_says_synthetic_when_it_is(synthetic, tmp_path, capsys):
    (tmp_path / "pope-report").mkdir()
    (tmp_path / "pope-report" / "comparison.json").write_text(
        json.dumps(comparison("pope", 10.0, 0.001, synthetic))
    )
    main(OverviewOptions(folder=str(tmp_path), names=["v1", "v2"], language="zh"))
    page = (tmp_path / "overview.html").read_text("utf-8")
    assert ("SYNTHETIC" in page.split("<main")[0]) == synthetic
    assert "+10.00 [+6.00, +14.00]" in page
    assert "pope-report/report.html" in page
    assert "| pope | 100 | 50.00 % |" in capsys.readouterr().out


def test_a_folder_without_comparisons_names_the_command(tmp_path):
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "comparison.json").write_text('{"runs": []}')
    with pytest.raises(UserError, match=r"no comparison of two runs.*compare\.py RUN RUN"):
        read_comparisons(tmp_path)
