"""lavis_apps/compare.py: paired figures by hand, pages of every task, runs that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lavis_apps.compare import CompareOptions, chosen_folders, main
from lavis_apps.comparing import mean_recall_difference, metric_rows
from lavis_apps.scoring import score_task
from lavis_apps.scoring_itm import MATCH, NO_MATCH
from lavis_apps.scoring_retrieval import IR, TR
from shared.options import MissingError, UserError, read_json, write_json
from shared.runs import read_run
from tests.lavis_apps.test_scoring import auroc, query, record

CONFIG = {
    "script": "evaluate", "model": "m", "adapter": None, "data_root": "", "split": "val2014",
    "limit": 0, "seed": 0, "compute_dtype": "float32", "asked": {}, "data_hash": None,
}  # fmt: skip


def write_run(folder: Path, task: str, records: list[dict[str, Any]], **config: Any) -> Path:
    """A finished run's folder, scored as evaluate.py scores it, with a picture for every record."""
    rows, metrics = score_task(task, records, expected=len(records), meteor=False)
    metrics |= {
        "weights_saw": {"trained_on": ["a set"], "saw": None, "warning": None},
        "trained_on_scored": False, "synthetic": {"data": False, "model": False},
        "data_problems": {"count": 0, "first": []},
    }  # fmt: skip
    folder.mkdir(parents=True)
    for name in {row["image"] for row in records}:
        Image.new("RGB", (16, 16), "red").save(folder.parent / name)
    write_json(folder / "config.json",
               CONFIG | {"task": task, "data_root": str(folder.parent)} | config)  # fmt: skip
    write_json(folder / "environment.json", {"python": "3.11"})
    write_json(folder / "metrics.json", metrics)
    for name, lines in (("predictions", records), ("scored", rows)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def queries(ranks: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Picture -> rank of its own query, then those of its captions."""
    found = []
    for key, (own, *captions) in ranks.items():
        queries_of_it = [query(TR, key, own, own)]
        queries_of_it += [query(IR, f"{key}{i}", rank, rank) for i, rank in enumerate(captions)]
        found += [one | {"image_id": key, "image": f"{key}.jpg"} for one in queries_of_it]
    return found


def run_both(tmp_path: Path, task: str, first: list, second: list, **config: Any) -> list[str]:
    return [str(write_run(tmp_path / "first", task, first)),
            str(write_run(tmp_path / "second", task, second, **config))]  # fmt: skip


def test_mean_recalls_are_paired_by_picture(tmp_path):
    before = {f"{i:02d}": [2, 2, 20] for i in range(12)}
    after = before | {f"{i:02d}": [1, 1, 5] for i in range(6)}
    folders = run_both(tmp_path, "retrieval", queries(before), queries(after))
    runs = [read_run(Path(folder)) for folder in folders]
    rows = {row["metric"]: row for row in metric_rows(*runs)}
    assert next(iter(rows)) == "mean recall"
    assert rows["TR R@1"]["first"] == 0.0
    assert rows["TR R@1"]["second"] == 0.5
    assert rows["TR R@1"]["test"] == "mcnemar-exact"  # a picture a query
    assert rows["IR R@1"]["second"] == 0.25
    assert rows["IR R@1"]["test"] == "sign-flip-clustered"  # two captions a picture
    assert (rows["IR R@5"]["wins"], rows["IR R@5"]["losses"]) == (6, 0)
    change = mean_recall_difference(*runs, "rank", 0)
    stored = [run.metrics["accuracy"]["value"] for run in runs]
    assert 100 * change.difference == pytest.approx(stored[1] - stored[0], abs=0.02)
    assert change.n_clusters == 12
    assert change.low > 0
    assert rows["mean recall"]["p_holm"] == rows["mean recall"]["p_value"]  # what it is made for
    others = [row for row in rows.values() if row["metric"] != "mean recall"]
    assert min(row["p_holm"] for row in others) > min(row["p_value"] for row in others)


def test_auroc_differences_draw_the_same_pictures(tmp_path):
    def pairs(shift: float) -> list[dict[str, Any]]:
        found = []
        for i in range(15):
            for truth, itm in ((MATCH, 0.3 + 0.04 * i + shift), (NO_MATCH, 0.2 + 0.04 * i)):
                said = MATCH if itm >= 0.5 else NO_MATCH
                found.append(record(f"{i}-{truth}", said, image_id=i, image=f"{i}.jpg",
                                    answer_type=truth, references=[truth], itm=itm,
                                    itc=itm - 0.1))  # fmt: skip
        return found

    folders = run_both(tmp_path, "matching", pairs(0.0), pairs(0.15))
    rows = metric_rows(*(read_run(Path(folder)) for folder in folders))
    assert [row["metric"] for row in rows] == ["AUROC of ITM", "AUROC of ITC"]
    for row in rows:
        own = [0.3 + 0.04 * i for i in range(15)]
        others = [0.2 + 0.04 * i for i in range(15)]
        kinds = [True] * 15 + [False] * 15
        assert row["first"] == pytest.approx(auroc(own + others, kinds))
        assert row["second"] > row["first"]
        assert row["low"] <= row["difference"] <= row["high"]
    broken = pairs(0.15)
    broken[0] = record("0-match", None, image_id=0, image="0.jpg", answer_type=MATCH,
                       references=[MATCH])  # fmt: skip
    folders = run_both(tmp_path / "broken", "matching", pairs(0.0), broken)
    base, tuned = (read_run(Path(folder)) for folder in folders)
    for row, key in zip(metric_rows(base, tuned), ("itm", "itc"), strict=True):
        assert 100 * row["second"] == pytest.approx(tuned.metrics["auroc"][key]["value"], abs=0.01)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_of_retrieval(tmp_path, capsys, language):
    before = {f"{i:02d}": [2, 2, 20] for i in range(12)}
    after = before | {f"{i:02d}": [1, 1, 5] for i in range(8)}
    folders = run_both(tmp_path, "retrieval", queries(before), queries(after))
    main(CompareOptions(folders, output_dir=str(tmp_path / "page"), language=language))
    said = capsys.readouterr().out
    assert "mean recall" in said
    assert "TR R@1: 0.00 % → 66.67 %" in said.replace("：", ": ")
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "IR R@10" in page
    assert "data:image/jpeg" in page  # pictures are in it
    content = read_json(tmp_path / "page" / "comparison.json")
    assert content["metric"] == "R@1 over all queries"
    assert content["not_comparable"] == []
    assert content["figures"][0]["metric"] == "mean recall"


def classified(answers: list[str]) -> list[dict[str, Any]]:
    return [record(f"{i:02d}", answer, references=["cat"], answer_type="cat",
                   rank=1 if answer == "cat" else 2, confidence=0.9)
            for i, answer in enumerate(answers)]  # fmt: skip


def test_classes_by_mcnemars_test(tmp_path, capsys):
    first = classified(["cat"] * 4 + ["dog"] * 8)
    second = classified(["dog"] * 1 + ["cat"] * 10 + ["dog"] * 1)
    folders = run_both(tmp_path, "classification", first, second)
    main(CompareOptions(folders, output_dir=str(tmp_path / "page")))
    content = read_json(tmp_path / "page" / "comparison.json")
    overall = content["overall"]
    assert (overall["wins"], overall["losses"]) == (7, 1)
    assert overall["test"] == "mcnemar-exact"
    assert overall["p_value"] == pytest.approx(2 * (1 + 8) / 2**8)  # P(X <= 1), two-sided, of 8
    assert content["figures"][0]["p_value"] == overall["p_value"]
    assert "top-1: 33.33 % → 83.33 %" in capsys.readouterr().out


def test_captions_and_answers(tmp_path):
    words = ["a red star", "a blue square", "two green rings"]
    captions = [record(f"{i}", words[i % 3], references=[words[i % 3], f"one {words[i % 3]}"])
                for i in range(12)]  # fmt: skip
    other = [r | {"answer": "a red square"} for r in captions]
    folders = run_both(tmp_path / "captions", "caption", other, captions)
    main(CompareOptions(folders, output_dir=str(tmp_path / "page")))
    pair = read_json(tmp_path / "page" / "comparison.json")["pairs"][0]
    assert pair["metrics"]["CIDEr"]["difference"] > 0
    answers = [record(f"{i}", "red", question="color?", references=["red"] * 10)
               for i in range(12)]  # fmt: skip
    folders = run_both(tmp_path / "vqa", "vqa", [r | {"answer": "2"} for r in answers], answers)
    main(CompareOptions(folders, output_dir=str(tmp_path / "page2")))
    assert read_json(tmp_path / "page2" / "comparison.json")["overall"]["difference"] == 100.0


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"asked": {"prompt": "a photo of "}}, "prompt or decoding"),
        ({"asked": {"k_test": 8}}, "prompt or decoding"),
        ({"compute_dtype": "bfloat16"}, "dtype"),
        ({"split": "train2014"}, "split"),
        ({"data_hash": "other"}, "data_hash"),
    ],
)
def test_runs_that_differ_are_refused_unless_forced(tmp_path, config, reason):
    records = classified(["cat", "dog"] * 6)
    folders = run_both(tmp_path, "classification", records, records, **config)
    with pytest.raises(UserError, match=reason):
        main(CompareOptions(folders, output_dir=str(tmp_path / "page")))
    main(CompareOptions(folders, output_dir=str(tmp_path / "page"), force=True))
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert reason in page


def test_edited_scores_other_tasks_and_other_samples_are_refused(tmp_path):
    records = classified(["cat", "dog"] * 6)
    folders = run_both(tmp_path, "classification", records, records)
    scored = tmp_path / "second" / "scored.jsonl"
    good = scored.read_text(encoding="utf-8")
    scored.write_text(good.replace('"score": 0.0', '"score": 1.0'), encoding="utf-8")
    with pytest.raises(UserError, match="not what its records give"):
        main(CompareOptions(folders, output_dir=str(tmp_path / "page")))
    fewer = str(write_run(tmp_path / "third", "classification", records[:6]))
    with pytest.raises(UserError, match="questions differ"):
        main(CompareOptions([folders[0], fewer], output_dir=str(tmp_path / "page")))
    retrieval = str(write_run(tmp_path / "fourth", "retrieval", queries({"00": [1, 1]})))
    with pytest.raises(UserError, match="task classification, fourth of retrieval"):
        main(CompareOptions([folders[0], retrieval]))


def test_which_runs_are_meant(monkeypatch, tmp_path):
    monkeypatch.setattr("lavis_apps.compare.TOY_RUNS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(MissingError, match=r"pipeline_toy\.sh"):
        chosen_folders(CompareOptions(toy=True))
    with pytest.raises(UserError, match="give two runs"):
        chosen_folders(CompareOptions(["one"]))
    assert chosen_folders(CompareOptions(["a", "b"])) == [Path("a"), Path("b")]
