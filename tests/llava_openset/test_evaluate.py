"""evaluate.py on a tiny random LLaVA: its files, stopping and going on, scoring again, controls."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_openset import evaluation_setup, scoring
from llava_openset.evaluate import main
from llava_openset.prompts import VARIANTS
from llava_openset.samples import Sample, read_split
from llava_openset.settings import EvaluateOptions, toy_defaults
from shared.options import UserError, parse_options
from shared.vision_language import VisionLanguage

KNOWN, UNKNOWN = ("dog", "cat", "bus"), ("horse", "zebra")
N_KNOWN, N_ALL = 12, 20  # of either part together
KEYS = ["course", *(f"freetext-{name}" for name in VARIANTS), "likelihood", "two_query"]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of noise a class, half of them for validation. Don't write into it."""
    folder = tmp_path_factory.mktemp("data") / "split"
    samples = []
    for number, label in enumerate([*KNOWN, *UNKNOWN]):
        known = label in KNOWN
        kind = "known_images" if known else "unknown_images"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            image_id = 10 * (number + 1) + i
            noise = np.random.default_rng(image_id).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((40, 40)).save(folder / kind / f"{image_id}.png")
            samples.append(
                {"sample_id": str(image_id), "file": f"{kind}/{image_id}.png", "label": label,
                 "known": known, "part": "validation" if i < 2 else "test", "image_id": image_id,
                 "box": None, "present": [label]}
            )  # fmt: skip
    content = {
        "version": 1, "synthetic": False, "seed": 0, "rules": {"unit": "image"},
        "classes": {"known": list(KNOWN), "unknown": list(UNKNOWN)}, "samples": samples,
        "left_out": {}, "caveats": ["LLaVA saw COCO."], "data_hash": "abc",
    }  # fmt: skip
    (folder / "split.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def evaluate(split: Path, tiny_llava_folder: Callable[..., Path]) -> Callable[..., Path]:
    """Runs the script's main with the tiny model on the small split; later flags win."""

    def run(folder: Path, *argv: str) -> Path:
        flags = ["--model", str(tiny_llava_folder("clip", "qwen2")), "--device", "cpu",
                 "--split", str(split), "--max_new_tokens", "8", "--output_dir", str(folder),
                 "--report", "none", *argv]  # fmt: skip
        main(parse_options(EvaluateOptions, description="", argv=flags))
        return folder

    return run


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """Intervals from 50 resamples: what is under test is not how wide they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            scoring, "bootstrap_intervals", partial(scoring.bootstrap_intervals, n_resamples=50)
        )
        yield


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, split: Path, tiny_llava_folder: Callable[..., Path]
) -> Path:
    """A finished run of all protocols. Don't write into it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    main(
        parse_options(
            EvaluateOptions, description="",
            argv=["--model", str(tiny_llava_folder("clip", "qwen2")), "--device", "cpu",
                  "--split", str(split), "--max_new_tokens", "8", "--output_dir", str(folder),
                  "--report", "none"],
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the vision tower got."""
    calls: list[int] = []
    encode = VisionLanguage.encode_images

    def counting(self: VisionLanguage, images: Any) -> Any:
        calls.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(VisionLanguage, "encode_images", counting)
    return calls


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_has_every_protocol_and_file(whole: Path) -> None:
    metrics = read(whole / "metrics.json")
    assert list(metrics["protocols"]) == KEYS
    for key, protocol in metrics["protocols"].items():
        assert protocol["parts"]["test"]["known"] == 6, key
        assert protocol["counts"]["answered"] == protocol["counts"]["expected"], key
    assert metrics["caveats"] == ["LLaVA saw COCO."]
    assert metrics["synthetic"] == {"data": False, "model": False}
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "config.json", "environment.json", "scored.jsonl", "metrics.json", "per_class.csv",
        "predictions_course.jsonl", "predictions_freetext.jsonl", "predictions_likelihood.jsonl",
        "predictions_two_query.jsonl", "results_known.jsonl", "results_private.jsonl",
    }  # fmt: skip
    with (whole / "per_class.csv").open() as file:
        table = list(csv.DictReader(file))
    assert Counter(row["protocol"] for row in table) == {
        **dict.fromkeys(KEYS, 5), "two_query": 8,
    }  # fmt: skip


def test_every_query_has_one_record_and_one_row(whole: Path) -> None:
    expected = {"course": N_ALL, "freetext": 4 * N_ALL, "likelihood": N_ALL,
                "two_query": N_ALL + N_KNOWN}  # fmt: skip
    for protocol, n in expected.items():
        records = lines(whole / f"predictions_{protocol}.jsonl")
        assert len(records) == len({r["sample_id"] for r in records}) == n
        assert {r["status"] for r in records} == {"ok"}
    rows = lines(whole / "scored.jsonl")
    assert len(rows) == sum(expected.values())
    assert Counter(row["protocol"] for row in rows)["freetext-list"] == N_ALL


def test_the_courses_files_hold_the_test_part(whole: Path) -> None:
    known, unknown = (lines(whole / f"results_{part}.jsonl") for part in ("known", "private"))
    assert [row["label"] for row in known] == ["dog", "dog", "cat", "cat", "bus", "bus"]
    assert {row["label"] for row in unknown} == {"horse", "zebra"}
    assert set(known[0]) == {"filename", "label", "output", "prediction", "correct"}


def test_scores_of_a_row_are_its_records(whole: Path) -> None:
    """The softmax over the mean log-probabilities of the likeliest names, once more."""
    records = {r["sample_id"]: r for r in lines(whole / "predictions_likelihood.jsonl")}
    for row in lines(whole / "scored.jsonl"):
        if row["protocol"] != "likelihood":
            continue
        record = records[row["sample_id"]]
        means = np.array(record["choice_log_probs"]) / record["choice_n_tokens"]
        owners = np.array(record["choice_classes"])
        best = np.array([means[owners == name].max() for name in KNOWN])
        softmax = np.exp(best) / np.exp(best).sum()
        assert row["scores"]["max_softmax"] == pytest.approx(softmax.max(), abs=1e-6)
        assert row["prediction"] == KNOWN[int(softmax.argmax())]
        assert row["class_probabilities"] == pytest.approx(
            dict(zip(KNOWN, softmax, strict=True)), abs=1e-5
        )


def test_each_protocol_encodes_a_picture_once(
    evaluate: Callable[..., Path], tmp_path: Path, encoded: list[int]
) -> None:
    for protocol in ("course", "freetext", "likelihood", "two_query"):
        encoded.clear()
        evaluate(tmp_path / "run", "--protocol", protocol, "--batch_size", "8")
        assert sum(encoded) == N_ALL, protocol


def test_a_stopped_run_goes_on_and_gives_the_same(
    evaluate: Callable[..., Path], whole: Path, tmp_path: Path, encoded: list[int]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("metrics.json", "scored.jsonl"):
        (run / name).unlink()
    for protocol in ("course", "two_query"):
        file = run / f"predictions_{protocol}.jsonl"
        kept = file.read_text(encoding="utf-8").splitlines(keepends=True)[:-6]
        file.write_text("".join(kept) + '{"sample_id": "cut', encoding="utf-8")
    evaluate(run)
    assert 0 < sum(encoded) <= 12
    ours, theirs = read(run / "metrics.json"), read(whole / "metrics.json")
    for key in KEYS:
        assert ours["protocols"][key]["counts"] == theirs["protocols"][key]["counts"]
    rows, before = (
        {(r["protocol"], r["query"], r["sample_id"]): r for r in lines(f / "scored.jsonl")}
        for f in (run, whole)
    )
    assert rows.keys() == before.keys()
    for key, row in rows.items():  # another batch is another rounding
        assert row["prediction"] == before[key]["prediction"]
        assert row["scores"] == pytest.approx(before[key]["scores"], abs=1e-4)


def test_a_run_grows_by_protocols(evaluate: Callable[..., Path], tmp_path: Path) -> None:
    run = evaluate(tmp_path / "run", "--protocol", "freetext", "--freetext_variants", "open")
    assert list(read(run / "metrics.json")["protocols"]) == ["freetext-open"]
    evaluate(run, "--protocol", "likelihood")
    assert list(read(run / "metrics.json")["protocols"]) == ["freetext-open", "likelihood"]


def test_a_stopped_protocol_is_left_out_of_the_figures_and_said(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a stopped run has not answered yet is not wrong; other protocols are scored."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for protocol, n in (("likelihood", 7), ("freetext", 4 * N_ALL - 1)):
        file = run / f"predictions_{protocol}.jsonl"
        kept = file.read_text(encoding="utf-8").splitlines(keepends=True)[:n]
        file.write_text("".join(kept), encoding="utf-8")
    cut = lines(whole / "predictions_freetext.jsonl")[-1]["variant"]
    again = ["--score_only", "--report", "none", "--output_dir", str(run)]
    main(parse_options(EvaluateOptions, description="", argv=again))
    metrics = read(run / "metrics.json")
    stopped = ("likelihood", f"freetext-{cut}")
    assert list(metrics["protocols"]) == [key for key in KEYS if key not in stopped]
    assert {row["protocol"] for row in lines(run / "scored.jsonl")} == set(metrics["protocols"])
    freetext, likelihood = metrics["notes"]
    assert f"likelihood: 7 of {N_ALL} answered" in likelihood
    assert "the same command with --protocol likelihood goes on" in likelihood
    assert f"freetext-{cut}: {N_ALL - 1} of {N_ALL} answered" in freetext
    assert f"--protocol freetext --freetext_variants {cut} goes on" in freetext
    printed = capsys.readouterr().out
    assert f"note: {likelihood}" in printed
    for name in ("course", "freetext", "two_query"):
        (run / f"predictions_{name}.jsonl").unlink()
    with pytest.raises(UserError, match=f"likelihood: 7 of {N_ALL} answered"):
        main(parse_options(EvaluateOptions, description="", argv=again))


def test_other_questions_are_refused_in_its_folder(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    run = evaluate(tmp_path / "run", "--protocol", "likelihood")
    with pytest.raises(UserError, match="question"):
        evaluate(run, "--protocol", "likelihood", "--question", "What do you see?")


def test_scoring_again_needs_no_model_and_gives_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("metrics.json", "scored.jsonl", "per_class.csv"):
        (run / name).unlink()
    monkeypatch.setattr("shared.vision_language.load_vision_language", None)
    score_only = ["--score_only", "--report", "none", "--output_dir", str(run)]
    main(parse_options(EvaluateOptions, description="", argv=score_only))
    for name in ("metrics.json", "scored.jsonl", "per_class.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()

    more = ["--threshold_criterion", "known_accept_95", "--length_normalisation", "sum"]
    main(parse_options(EvaluateOptions, description="", argv=[*score_only, *more]))
    metrics = read(run / "metrics.json")
    assert metrics["scoring"]["threshold_criterion"] == "known_accept_95"
    assert metrics["scoring"]["length_normalisation"] == "sum"
    threshold = metrics["protocols"]["likelihood"]["scores"]["max_softmax"]["threshold"]
    assert threshold["criterion"] == "known_accept_95"


def test_scoring_again_refuses_another_split(whole: Path, split: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "split"
    shutil.copytree(whole, run)
    shutil.copytree(split, other)
    (other / "split.json").write_text(json.dumps({**read(split / "split.json"), "data_hash": "x"}))
    config = read(run / "config.json")
    (run / "config.json").write_text(json.dumps({**config, "split": str(other)}))
    options = parse_options(
        EvaluateOptions, description="", argv=["--score_only", "--output_dir", str(run)]
    )
    with pytest.raises(UserError, match="another split"):
        main(options)


def test_the_test_part_alone_has_no_threshold(
    evaluate: Callable[..., Path], tmp_path: Path
) -> None:
    run = evaluate(tmp_path / "run", "--protocol", "likelihood", "--part", "test")
    assert len(lines(run / "predictions_likelihood.jsonl")) == N_ALL // 2
    protocol = read(run / "metrics.json")["protocols"]["likelihood"]
    assert protocol["parts"]["validation"] == {"known": 0, "unknown": 0}
    assert protocol["decision"]["threshold"] is None
    assert protocol["scores"]["max_softmax"]["figures"]["known_accept_rate"]["reason"]


def test_shuffled_pictures_are_others_and_the_same_in_each_protocol(
    evaluate: Callable[..., Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, set[str]] = {}
    seen: list[Path] = []
    own = evaluation_setup.open_image

    def opening(path: Path) -> Any:
        seen.append(path)
        return own(path)

    monkeypatch.setattr(evaluation_setup, "open_image", opening)
    for protocol in ("likelihood", "two_query"):
        seen.clear()
        run = evaluate(tmp_path / "run", "--protocol", protocol, "--pictures", "shuffled",
                       "--batch_size", "1")  # fmt: skip
        order = [r["image"] for r in lines(run / f"predictions_{protocol}.jsonl")]
        pairs = zip(order, seen, strict=True)
        opened[protocol] = {f"{image} {path.name}" for image, path in pairs}
        assert all(Path(pair.split()[0]).name != pair.split()[1] for pair in opened[protocol])
    assert opened["likelihood"] == opened["two_query"]
    assert read(run / "metrics.json")["pictures"] == "shuffled"


@pytest.mark.parametrize("limit", [4, 7])
def test_a_limit_takes_from_both_parts_and_kinds(limit: int) -> None:
    samples = [
        Sample(f"{part}{label}{i}", Path("x"), "x", label, label in KNOWN, part)
        for part in ("validation", "test")
        for label in (*KNOWN, *UNKNOWN)
        for i in range(3)
    ]
    taken = evaluation_setup.limited(samples, limit, 0)
    assert len(taken) == limit
    assert taken == [s for s in samples if s in taken]  # in their order
    assert len({(s.part, s.known) for s in taken}) == 4
    assert taken == evaluation_setup.limited(samples, limit, 0)
    assert taken != evaluation_setup.limited(samples, limit, 1)
    assert evaluation_setup.limited(samples, 0, 0) == samples


def test_a_limit_without_test_samples_is_told_before_the_model_is_loaded(
    evaluate: Callable[..., Path],
    split: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.vision_language.load_vision_language", None)

    def parts(limit: int, seed: int) -> set[str]:
        taken = evaluation_setup.limited(read_split(split).samples, limit, seed)
        return {sample.part for sample in taken}

    unlucky = next(seed for seed in range(20) if parts(1, seed) == {"validation"})
    with pytest.raises(UserError, match="--limit 3 or more"):
        evaluate(tmp_path / "run", "--limit", "1", "--seed", str(unlucky))
    assert all("test" in parts(3, seed) for seed in range(20))  # as the message says


def test_a_broken_picture_is_counted_and_named(
    evaluate: Callable[..., Path], split: Path, tmp_path: Path
) -> None:
    other = tmp_path / "split"
    shutil.copytree(split, other)
    (other / "known_images" / "12.png").write_bytes(b"no picture")
    run = evaluate(tmp_path / "run", "--protocol", "likelihood", "--split", str(other))
    counts = read(run / "metrics.json")["protocols"]["likelihood"]["counts"]
    assert (counts["errors"], counts["answered"]) == (1, N_ALL - 1)
    (broken,) = (r for r in lines(run / "scored.jsonl") if r["status"] == "error")
    assert (broken["sample_id"], broken["prediction"], broken["correct"]) == ("12", None, False)


def test_own_pictures_join_as_unknown(
    evaluate: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "private_images"
    own.mkdir()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(own / "room.jpg")
    (tmp_path / "private_labels.csv").write_text("filename,label\nroom.jpg,dorm room\n")
    run = evaluate(tmp_path / "run", "--protocol", "course", "--private_images", str(own))
    protocol = read(run / "metrics.json")["protocols"]["course"]
    assert protocol["own_pictures"]["unknown_predicted_as_unknown"]["n"] == 1
    assert protocol["parts"]["test"]["unknown"] == 5
    assert [row["filename"] for row in lines(run / "results_private.jsonl")] == ["room.jpg"]
    assert "unknown predicted as unknown" in capsys.readouterr().out


def test_blip2_takes_the_same_flags_and_its_own_form(
    evaluate: Callable[..., Path], tiny_blip2_opt: Path, tmp_path: Path
) -> None:
    run = evaluate(
        tmp_path / "run", "--model", str(tiny_blip2_opt), "--protocol", "freetext", "likelihood",
        "--freetext_variants", "list", "--question", "what is it ?",
    )  # fmt: skip
    (record, *_) = lines(run / "predictions_freetext.jsonl")
    assert record["prompt"] == (
        "Question: Choose one of these: dog, cat, bus. what is it ? Answer:"
    )
    assert {r["status"] for r in lines(run / "predictions_likelihood.jsonl")} == {"ok"}


def test_classes_that_no_answer_tells_apart_are_refused_before_asking(
    evaluate: Callable[..., Path], split: Path, tmp_path: Path
) -> None:
    other = tmp_path / "split"
    shutil.copytree(split, other)
    text = (split / "split.json").read_text().replace('"cat"', '"ambiguous"')
    (other / "split.json").write_text(text)
    with pytest.raises(UserError, match="No class may be called 'ambiguous'"):
        evaluate(tmp_path / "run", "--split", str(other))
    assert not (tmp_path / "run").exists()


def test_too_few_classes_are_told_before_anything_is_answered(
    evaluate: Callable[..., Path], split: Path, tmp_path: Path
) -> None:
    other = tmp_path / "split"
    shutil.copytree(split, other)
    content = read(split / "split.json")
    content["classes"]["known"] = ["dog", "cat"]
    content["samples"] = [s for s in content["samples"] if s["label"] != "bus"]
    (other / "split.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="--protocol two_query: 1 class to choose from"):
        evaluate(tmp_path / "run", "--split", str(other))
    assert not list((tmp_path / "run").glob("predictions*"))


def test_a_toys_run_stays_one_where_its_model_is_not(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    config = read(run / "config.json")
    config |= {"model": "gone/away", "synthetic": {"data": False, "model": True}}
    (run / "config.json").write_text(json.dumps(config))
    argv = ["--score_only", "--report", "none", "--output_dir", str(run)]
    main(parse_options(EvaluateOptions, description="", argv=argv))
    assert read(run / "metrics.json")["synthetic"] == {"data": False, "model": True}
    assert "SYNTHETIC" in capsys.readouterr().out


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    evaluate: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(tmp_path / "run", "--dry_run")
    said = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert "two_query: 32 prompts\n  'Choose one of these: dog, cat, bus." in said
    assert "validation: 6 known, 4 unknown samples" in said
    assert "memory:" in said
    assert "LLaVA saw COCO." in said


def test_the_default_models_memory_is_planned_without_its_weights(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """7.06 billion weights; in 4 bits they fit a 16 GB card."""
    argv = ["--split", str(split), "--dry_run", "--quantization", "nf4", "--dtype", "bfloat16"]
    main(parse_options(EvaluateOptions, description="", argv=argv))
    said = capsys.readouterr().out
    assert "7,063 M parameters" in said
    assert "16 GB: fits" in said


def test_the_summary_shows_tables_and_cases(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llava_openset.evaluation_summary import print_summary

    metrics = read(whole / "metrics.json")
    print_summary(whole, lines(whole / "scored.jsonl"), metrics, seed=0)
    said = capsys.readouterr().out
    for key in KEYS:
        assert f"{key}: 6 known" in said
    assert "AUROC of max_softmax" in said
    assert "known rejected" in said
    assert "note: LLaVA saw COCO." in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--protocol", "likelihod"], "--protocol likelihod: one or several of course"),
        (["--freetext_variants", "none"], "--freetext_variants none"),
        (["--limit", "-1"], "--limit -1"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--question", " "], "--question is empty"),
        (["--score_only"], "of which run"),
    ],
)
def test_wrong_options_have_one_message(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_options(EvaluateOptions, description="", argv=argv)


def test_toy_defaults_are_fields() -> None:
    assert set(toy_defaults()) <= set(EvaluateOptions.__dataclass_fields__)
