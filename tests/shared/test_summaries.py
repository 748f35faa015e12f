"""What evaluations print at their end.

The change against the base is tested with finished runs: tests/blip2_qlora/test_evaluate.py.
"""

from pathlib import Path
from typing import Any

import pytest

from shared.summaries import N_CASES, print_cases, print_summary


def record(number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "image": f"{number}.jpg", "question": f"What is {number}?", "answer": "red",
        "status": "ok", "error": None, "references": ["red", "red", "dark red"],
    }  # fmt: skip
    return made | changes


def test_cases_show_answers_errors_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        record(1),
        record(2, status="error", answer=None, error="2.jpg: no such picture"),
        record(3, image="", references=[], answer=""),
    ]
    print_cases(records, seed=0)
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "  (no picture)  What is 3?  ->  ''   (no reference)",
        "  1.jpg  What is 1?  ->  'red'   (red, dark red)",
        "  2.jpg  What is 2?  ->  error: 2.jpg: no such picture   (red, dark red)",
    ]


def test_cases_are_drawn_by_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    records = [record(i) for i in range(50)]
    shown = []
    for seed in (0, 0, 1):
        print_cases(records, seed)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert len(shown[0].splitlines()) == N_CASES


def test_summary_marks_a_toy_before_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def print_figures(metrics: dict[str, Any]) -> None:
        print(f"figure {metrics['accuracy']}")

    for is_toy in (True, False):
        metrics = {"synthetic": {"data": is_toy, "model": False}, "accuracy": 50}
        print_summary(tmp_path, [], metrics, print_figures, seed=0, has_adapter=False)
        said = capsys.readouterr().out.splitlines()
        assert [line.startswith("SYNTHETIC") for line in said] == [True] * is_toy + [False] * 2
        assert said[-2:] == ["figure 50", f"records and metrics: {tmp_path}"]


def test_with_an_adapter_the_missing_base_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "tuned"
    run.mkdir()
    (run / "config.json").write_text('{"adapter": "a"}')
    metrics = {"synthetic": {"data": False}}
    print_summary(run, [], metrics, lambda metrics: None, seed=0, has_adapter=True)
    said = capsys.readouterr().out
    assert said.startswith("no run of the base on the same sample beside it: the same command")
