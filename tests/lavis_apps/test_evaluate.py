"""lavis_apps/evaluate.py on tiny models and a drawn COCO: figures, resuming, what weights saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis_apps import evaluation_retrieval
from lavis_apps.blip import Blip, load_blip
from lavis_apps.evaluate import main
from lavis_apps.evaluation import answer_samples, evaluate_model
from lavis_apps.evaluation_samples import load_boxes, load_samples, matching_pairs
from lavis_apps.evaluation_settings import Asking, EvaluateOptions, task_of, toy_defaults
from lavis_apps.evaluation_splits import warning, weights_saw
from lavis_apps.processors import blip_caption
from lavis_apps.scoring_retrieval import NOT_RANKED
from shared.answering import read_records
from shared.options import UserError, read_json, write_json
from tests.tiny_models import tiny_blip

CAPTIONS = [
    ["a red star", "the red star"],
    ["two blue squares", "blue squares"],
    ["a red square", "the square"],
    ["what is there", "a blue star"],
    ["a picture of two stars", "stars"],
    ["is there a star", "two of the red"],
]


def noise(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def write_coco(root: Path, captions: list[list[str]]) -> Path:
    """COCO's captions and VQAv2 for val2014, in their layouts, with pictures of noise."""
    rows, questions, answers = [], [], []
    for i, texts in enumerate(captions):
        noise(root / "val2014" / f"COCO_val2014_{i:012d}.jpg", i)
        rows += [{"image_id": i, "caption": text} for text in texts]
        given = [{"answer": "red"}] * 6 + [{"answer": "blue"}] * 4
        questions.append({"image_id": i, "question_id": 10 * i, "question": "What color is it?"})
        answers.append({"image_id": i, "question_id": 10 * i, "answers": given,
                        "question_type": "what", "answer_type": "other",
                        "multiple_choice_answer": "red"})  # fmt: skip
    write_json(root / "captions_val2014.json", {"annotations": rows})
    write_json(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(root / "v2_mscoco_val2014_annotations.json", {"annotations": answers})
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_blip(kind, tmp_path_factory.mktemp("models") / kind)
        return made[kind]

    return folder


@pytest.fixture
def matcher(folders: Callable[[str], Path]) -> Blip:
    return load_blip(folders("matching"), device="cpu", dtype="float32")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco", CAPTIONS)


def options(task: str, model: Path, root: Path, folder: Path, **more: Any) -> EvaluateOptions:
    given: dict[str, Any] = {
        "task": task, "model": str(model), "data_root": str(root), "output_dir": str(folder),
        "device": "cpu", "limit": 0, "batch_size": 4, "k_test": 4,
    }  # fmt: skip
    return EvaluateOptions(**given | more)


def figure(folder: Path) -> Any:
    return read_json(folder / "metrics.json")["accuracy"]


# retrieval ------------------------------------------------------------------------------------


def by_the_original(blip: Blip, samples: list[Any], k: int) -> dict[str, float]:
    """R@k in percent by whole matrices as BLIP's train_retrieval.py fills them: logit plus cosine
    of the first k of each row, -100 elsewhere, then the place by id."""
    import torch

    from shared.images import open_image

    texts = [blip_caption(text) for sample in samples for text in sample.references]
    owner = [i for i, sample in enumerate(samples) for _ in sample.references]
    with torch.no_grad():
        states = blip.encode_images([open_image(sample.image) for sample in samples])
        sims = (blip.image_features(states) @ blip.text_features(texts).T).numpy()
        itm = np.stack([
            blip.match_logits(state.expand(len(texts), -1, -1), texts)[:, 1].numpy()
            for state in states
        ])  # fmt: skip

    def filled(own_sims: np.ndarray, own_itm: np.ndarray) -> np.ndarray:
        matrix = np.full(own_sims.shape, NOT_RANKED)
        for row, values in enumerate(own_sims):
            first = np.argsort(-values)[:k]
            matrix[row, first] = own_itm[row, first] + values[first]
        return matrix

    def places(matrix: np.ndarray, right: Callable[[int], list[int]]) -> list[int]:
        orders = [list(np.argsort(row)[::-1]) for row in matrix]
        return [min(order.index(c) for c in right(i)) for i, order in enumerate(orders)]

    found = places(filled(sims, itm), lambda i: [j for j, own in enumerate(owner) if own == i])
    back = places(filled(sims.T, itm.T), lambda j: [owner[j]])
    return {
        f"{name} R@{limit}": 100 * sum(p < limit for p in own) / len(own)
        for name, own in (("TR", found), ("IR", back))
        for limit in (1,)
    } | {"TR": found, "IR": back}  # fmt: skip


def test_re_ranking_is_the_originals(matcher, coco):
    samples = load_samples("retrieval", coco, "val2014").samples
    for k in (4, 99):  # of 12 captions, 6 pictures; more than there are is all of them
        expected = by_the_original(matcher, samples, k)
        records = answer_samples("retrieval", lambda: matcher, samples, Asking(k_test=k), None)
        ranks = {d: [r["rank"] for r in records if r["answer_type"] == d] for d in ("TR", "IR")}
        for direction, own in ranks.items():
            for rank, place in zip(own, expected[direction], strict=True):
                if place < k:  # behind the first k the original's order is that of its sort
                    assert rank == place + 1
                else:
                    assert rank > k
        metrics = evaluate_model("retrieval", matcher, samples, Asking(k_test=k))
        for direction in ("TR", "IR"):
            value = metrics["retrieval"][direction]["R@1"]["value"]
            assert value == pytest.approx(expected[f"{direction} R@1"], abs=0.01)


def test_without_re_ranking_no_pair_is_matched(matcher, coco, monkeypatch):
    monkeypatch.setattr(evaluation_retrieval, "itm_logits", None)
    samples = load_samples("retrieval", coco, "val2014").samples
    metrics = evaluate_model("retrieval", matcher, samples, Asking(k_test=0))
    assert metrics["metric"].endswith("ITC")
    assert metrics["retrieval_itc"] is None


def test_equal_captions_of_two_pictures(matcher, tmp_path):
    root = write_coco(tmp_path / "coco", [["A red star."], ["a red star"], ["two blue squares"]])
    samples = load_samples("retrieval", root, "val2014").samples
    records = answer_samples("retrieval", lambda: matcher, samples, Asking(k_test=8), None)
    by_id = {record["sample_id"]: record for record in records}
    for key in ("TR-0", "TR-1"):  # its own caption and the other's score alike: a tie is a miss
        assert by_id[key]["rank"] > by_id[key]["rank_equal"]
        assert by_id[key]["n_right_equal"] == 2
    assert by_id["IR-0-0"]["rank_equal"] == min(by_id[f"IR-{i}-0"]["rank"] for i in (0, 1))
    assert by_id["IR-2-0"]["rank"] == by_id["IR-2-0"]["rank_equal"]


def test_a_broken_picture_is_counted_and_the_rest_goes_on(matcher, coco):
    samples = load_samples("retrieval", coco, "val2014").samples
    samples[2].image.write_bytes(b"no picture")
    metrics = evaluate_model("retrieval", matcher, samples, Asking(k_test=4))
    assert metrics["counts"] | {"errors": 3, "answered": 15} == metrics["counts"]
    assert metrics["retrieval"]["TR"]["R@1"]["n"] == 6
    records = answer_samples("retrieval", lambda: matcher, samples, Asking(k_test=4), None)
    assert {r["n_candidates"] for r in records if r["status"] == "ok"} == {12, 5}


def test_a_stopped_run_goes_on_and_a_finished_one_needs_no_model(
    matcher, coco, tmp_path, monkeypatch
):
    samples = load_samples("retrieval", coco, "val2014").samples
    whole = answer_samples("retrieval", lambda: matcher, samples, Asking(k_test=4), tmp_path / "a")
    real, calls = evaluation_retrieval.itm_logits, []

    def stopping(family: Any, image: Any, texts: Any) -> list[float]:
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(family, image, texts)

    monkeypatch.setattr(evaluation_retrieval, "itm_logits", stopping)
    with pytest.raises(KeyboardInterrupt):
        answer_samples("retrieval", lambda: matcher, samples, Asking(k_test=4), tmp_path / "b")
    again = answer_samples("retrieval", lambda: matcher, samples, Asking(k_test=4), tmp_path / "b")
    assert again == whole
    assert len(calls) == 4 + 3  # three pictures were done before
    finished = answer_samples("retrieval", fail, samples, Asking(k_test=4), tmp_path / "b")
    assert finished == whole


def fail() -> Any:
    raise AssertionError("the model was loaded")


# all tasks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "kind"),
    [("caption", "caption"), ("vqa", "vqa"), ("retrieval", "matching"), ("matching", "matching")],
)
def test_evaluate_gives_the_figure_that_training_validates_with(
    task, kind, folders, coco, tmp_path, capsys
):
    given = options(task, folders(kind), coco, tmp_path / "run", min_length=1)
    main(given)
    said = capsys.readouterr().out
    blip = load_blip(folders(kind), device="cpu", dtype="float32")
    samples = load_samples(task, coco, "val2014").samples
    metrics = evaluate_model(task, blip, samples, given, progress=False)
    assert figure(tmp_path / "run") == metrics["accuracy"]
    stored = read_json(tmp_path / "run" / "metrics.json")
    assert stored["selection"] == metrics["selection"]
    assert "records and metrics" in said
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert stored["metric"] in page.replace("&#39;", "'")
    for name in ("config.json", "environment.json", "predictions.jsonl", "scored.jsonl"):
        assert (tmp_path / "run" / name).is_file()


def test_a_run_goes_on_is_scored_again_and_refuses_other_options(
    folders, coco, tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    main(options("vqa", folders("vqa"), coco, run))
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "predictions.jsonl").write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    before = read_json(run / "metrics.json")
    main(options("vqa", folders("vqa"), coco, run, batch_size=2))
    assert "continuing" in capsys.readouterr().out
    assert read_json(run / "metrics.json") == before
    monkeypatch.setattr("lavis_apps.evaluate.open_model", fail)
    main(options("vqa", folders("vqa"), coco, run))  # nothing is missing: no model
    with pytest.raises(UserError, match=r"asked\.num_beams"):
        main(options("vqa", folders("vqa"), coco, run, num_beams=1))


def test_ranked_answers_come_from_the_candidates(folders, coco, tmp_path):
    file = tmp_path / "answers.txt"
    file.write_text("red\nblue\n\ntwo\n", encoding="utf-8")
    run = tmp_path / "run"
    main(options("vqa", folders("vqa"), coco, run, inference="rank", candidates=str(file)))
    answers = {json.loads(line)["answer"] for line in (run / "predictions.jsonl").open()}
    assert answers <= {"red", "blue", "two"}
    with pytest.raises(UserError, match="--candidates"):
        options("vqa", folders("vqa"), coco, run, inference="rank")
    file.write_text("red\nblue\n", encoding="utf-8")  # an edited list is another run
    with pytest.raises(UserError, match="candidates_hash"):
        main(options("vqa", folders("vqa"), coco, run, inference="rank", candidates=str(file)))


def test_classification_of_folders(folders, tmp_path):
    root = tmp_path / "shapes"
    for i in range(4):
        noise(root / "val" / ("star" if i % 2 else "square") / f"{i}.jpg", i)
    (root / "val" / "star" / "broken.jpg").write_bytes(b"")
    run = tmp_path / "run"
    main(options("classification", folders("matching"), root, run, split="val"))
    metrics = read_json(run / "metrics.json")
    assert metrics["counts"] | {"expected": 5, "errors": 1} == metrics["counts"]
    assert set(metrics["per_class"]) == {"square", "star"}
    assert metrics["confusion"]["columns"] == ["square", "star", "(error)"]
    assert read_json(run / "config.json")["asked"]["templates"] == "A picture of {}"


def test_localization_of_boxes(folders, tmp_path, capsys):
    root = tmp_path / "coco2017"
    for i in range(3):
        noise(root / "val2017" / f"{i}.jpg", i)
    boxes = [(0, 1, [0, 0, 16, 32], 0), (0, 1, [0, 0, 8, 8], 0), (1, 2, [8, 8, 16, 16], 0),
             (2, 1, [0, 0, 9, 9], 1), (0, 2, [16, 0, 16, 16], 0)]  # fmt: skip
    write_json(root / "annotations" / "instances_val2017.json", {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 32, "height": 32}
                   for i in range(3)],
        "categories": [{"id": 1, "name": "star"}, {"id": 2, "name": "square"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "area": 9,
             "iscrowd": crowd} for n, (image, category, box, crowd) in enumerate(boxes)
        ],
    })  # fmt: skip
    found = load_boxes(root, "val2017")
    # two boxes of one category are one sample, a crowd alone is none; overlaps count once
    assert [(s.sample_id, s.chance) for s in found.samples] == [
        ("0-1", 0.5), ("0-2", 0.25), ("1-2", 0.25)
    ]  # fmt: skip
    star, square, alone = (sample.others for sample in found.samples)
    assert star == (found.samples[1].boxes,)
    assert square == (found.samples[0].boxes,)
    assert alone == ()
    run = tmp_path / "run"
    own = {"split": "val2017", "sentence": "{a} {}"}  # other braces are a text's own
    main(options("localization", folders("matching"), root, run, **own))
    prompts = {record["prompt"] for record in read_records(run / "predictions.jsonl").values()}
    assert prompts == {"{a} star", "{a} square"}
    metrics = read_json(run / "metrics.json")
    assert metrics["boxes_share"]["value"] == pytest.approx(100 / 3, abs=0.01)
    several = metrics["named_against_others"]
    assert several["difference"]["n"] == 2
    printed = capsys.readouterr().out
    assert f"hits on the one named {several['named']['value']:.2f} %" in printed
    assert "0: the map ignores its text" in printed
    assert "does the map follow its words?" in (run / "report.html").read_text("utf-8")
    assert set(metrics["per_answer_type"]) == {"star", "square"}
    with pytest.raises(UserError, match="--categories moon"):
        load_boxes(root, "val2017", ["moon"])


def test_false_captions_are_none_of_the_pictures_own(coco):
    samples = load_samples("matching", coco, "val2014").samples
    jobs = matching_pairs(samples, 0)
    assert len(jobs) == 2 * len(samples)
    for sample, true, false in zip(samples, jobs[::2], jobs[1::2], strict=True):
        own = [blip_caption(text) for text in sample.references]
        assert true.prompt == own[0]
        assert false.prompt not in own
        assert true.question.image == false.question.image == sample.image
    assert [job.prompt for job in matching_pairs(samples, 0)] == [job.prompt for job in jobs]
    with pytest.raises(UserError, match="give more pictures"):
        matching_pairs(samples[:1], 0)


def test_dry_run_names_what_would_be_asked(folders, coco, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lavis_apps.evaluate.open_model", fail)
    run = tmp_path / "run"
    main(options("retrieval", folders("matching"), coco, run, dry_run=True))
    said = capsys.readouterr().out
    assert "6 pictures and 12 captions; at most 72 pairs" in said  # 6 x 4 + 12 x 4
    assert not run.exists()


def test_the_task_decides_the_toys_defaults(tmp_path):
    assert task_of(["--toy", "--task", "retrieval"]) == "retrieval"
    assert task_of(["--task=vqa"]) == "vqa"
    assert task_of(["--toy"]) == "caption"
    file = tmp_path / "own.yaml"
    file.write_text("task: [vqa\n")
    assert task_of([str(file), "--toy"]) == "caption"  # the parser names what is wrong with it
    assert toy_defaults("retrieval")["k_test"] < Asking().k_test
    assert toy_defaults("localization")["data_root"].endswith("coco2017")


# what the weights saw -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "task", "split", "saw"),
    [
        ("Salesforce/blip-vqa-base", "vqa", "val2014", "questions"),
        ("Salesforce/blip-vqa-base", "vqa", "test2015", None),
        ("data/models/Salesforce/blip-vqa-base", "vqa", "val2014", "questions"),
        ("Salesforce/blip-vqa-base", "caption", "karpathy_test", "pictures"),
        ("Salesforce/blip-image-captioning-base", "caption", "karpathy_test", None),
        ("Salesforce/blip-image-captioning-base", "caption", "val2014", "questions"),
        ("Salesforce/blip-itm-base-coco", "retrieval", "val2014", "questions"),
        ("Salesforce/blip-itm-base-coco", "vqa", "val2014", "pictures"),
        ("Salesforce/blip-itm-base-coco", "localization", "val2017", "pictures"),  # of val2014
        ("Salesforce/blip-itm-base-flickr", "retrieval", "karpathy_test", None),
        ("openai/clip-vit-base-patch32", "retrieval", "val2014", None),
        ("somebody/else", "caption", "val2014", None),
    ],
)
def test_published_weights(model, task, split, saw):
    config = {"data_root": "data/vqav2", "split": split, "data_hash": None}
    found = weights_saw(task, model, None, config)
    assert found["saw"] == saw
    assert (warning(found, split) is None) == (saw is None)
    assert "not known" in found["trained_on"][0] or "http" in found["trained_on"][0]
    toy = weights_saw(task, model, None, config | {"synthetic_data": True})
    assert toy["saw"] is None


def test_what_adapter_and_base_both_saw_is_said_once(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    write_json(base / "manifest.json", {"synthetic": True})
    write_json(adapter / "manifest.json", {"base_model": f"{tmp_path}/adapter/../base"})
    found = weights_saw("retrieval", str(base), str(adapter), {"split": "val2014"})
    assert len(found["trained_on"]) == 1


def test_class_folders_of_one_split_s_name_are_not_one_data_set(tmp_path):
    data = {"source": str(tmp_path / "a"), "split": "train", "data_hash": None}
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "manifest.json", {"task": "classification", "data": [data]})
    config = {"data_root": str(tmp_path / "a"), "split": "train", "data_hash": None}
    assert weights_saw("classification", str(model), None, config)["saw"] == "questions"
    other = config | {"data_root": str(tmp_path / "b")}
    assert weights_saw("classification", str(model), None, other)["saw"] is None


def test_own_training_says_what_it_saw_and_what_its_base_saw(folders, coco, tmp_path, capsys):
    trained = tmp_path / "trained" / "model"
    trained.mkdir(parents=True)
    for file in folders("vqa").iterdir():
        (trained / file.name).write_bytes(file.read_bytes())
    data = {"source": str(coco), "split": "val2014", "data_hash": None, "samples": 6}
    other = data | {"split": "train2014"}
    write_json(trained / "manifest.json", {
        "base_model": "Salesforce/blip-vqa-base", "task": "vqa", "data": [other, data],
    })  # fmt: skip
    config = {"data_root": str(coco), "split": "val2014", "data_hash": None}
    found = weights_saw("vqa", str(trained), None, config)
    assert found["saw"] == "questions"
    assert len(found["trained_on"]) == 3
    assert "Visual Genome" in found["trained_on"][2]
    assert weights_saw("retrieval", str(trained), None, config)["saw"] == "pictures"
    assert weights_saw("vqa", str(trained), None, config | {"split": "test2015"})["saw"] is None
    run = tmp_path / "run"
    main(options("vqa", trained, coco, run))
    assert "WARNING: The weights were trained on val2014" in capsys.readouterr().out
    assert read_json(run / "metrics.json")["trained_on_scored"] is True
    assert "which is what scores them" in (run / "report.html").read_text(encoding="utf-8")
