"""Zero-shot classification: LAVIS' formulas by hand, ensembles, none of these, files, refusals."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lavis_apps.blip import load_blip
from lavis_apps.classification import (
    ONE_CLASS,
    Classifier,
    classification,
    read_classes,
    write_csv,
)
from lavis_apps.features import open_embedder, open_family
from lavis_apps.matching import Matcher
from lavis_apps.settings import TOY_MODELS
from lavis_apps.toy_sets import ensure_shapes
from shared.images import ImageError
from shared.options import UserError
from tests.tiny_models import tiny_blip, tiny_blip2

CLASSES = ["star", "blue square", "two", "is there"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "blip": tiny_blip("matching", tmp_path_factory.mktemp("blip")),
        "blip2": tiny_blip2(tmp_path_factory.mktemp("blip2")),
        "clip": TOY_MODELS["clip"],
    }


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]


def in_order(found: list, classes: list[str] = CLASSES) -> torch.Tensor:
    return torch.tensor([[own.probabilities[name] for name in classes] for own in found])


# the formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["blip", "blip2"])
def test_cosine_of_blip_is_lavis_formula(family: str, folders: dict[str, Path]) -> None:
    images = pictures(3)
    found = Classifier.open(folders[family]).classify(images, CLASSES, batch_size=2)
    sentences = [f"A picture of {name}" for name in CLASSES]
    cosines = Matcher.open(folders[family]).match(images, sentences).itc
    torch.testing.assert_close(in_order(found), (cosines / 0.07).softmax(-1))
    for own, row in zip(found, cosines, strict=True):
        assert [c.label for c in own.top] == [CLASSES[i] for i in row.argsort(descending=True)]
        assert own.label == own.top[0].label
        assert own.score == pytest.approx(float(row.max()))
        assert sum(own.probabilities.values()) == pytest.approx(1)


def test_cosine_of_clip_is_its_own_softmax(folders: dict[str, Path]) -> None:
    import transformers

    images = pictures(3)
    found = Classifier.open(folders["clip"]).classify(images, CLASSES)
    model = transformers.CLIPModel.from_pretrained(folders["clip"], dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folders["clip"])
    with torch.no_grad():
        inputs = processor(text=CLASSES, images=images, padding=True, return_tensors="pt")
        theirs = model(**inputs).logits_per_image.softmax(-1)
    torch.testing.assert_close(in_order(found), theirs)


@pytest.mark.parametrize("family", ["blip", "blip2"])
def test_itm_is_the_softmax_of_the_positive_logits(family: str, folders: dict[str, Path]) -> None:
    images = pictures(3)
    found = Classifier.open(folders[family], "itm").classify(images, CLASSES)
    sentences = [f"A picture of {name}" for name in CLASSES]
    model = open_family(folders[family])
    with torch.no_grad():
        states = model.read_images(images).states
        for j, sentence in enumerate(sentences):
            logits = model.match_logits(states, [model.process(sentence)] * 3)
            for i, own in enumerate(found):
                score = next(c.score for c in own.top if c.label == CLASSES[j])
                assert score == pytest.approx(float(logits[i].softmax(-1)[1]), abs=1e-5)
            sentences[j] = logits[:, 1]
    torch.testing.assert_close(in_order(found), torch.stack(sentences, 1).softmax(-1))


def test_templates_are_averaged_as_features(folders: dict[str, Path]) -> None:
    images, templates = pictures(2), ["a {}", "the red {}", "{} is there"]
    embedder = open_embedder(folders["blip"])
    means = torch.stack(
        [embedder.text_features([t.format(c) for t in templates]).mean(0) for c in CLASSES]
    )
    means = means / means.norm(dim=-1, keepdim=True)
    wanted = (embedder.image_features(images) @ means.T / 0.07).softmax(-1)
    classifier = Classifier(embedder)
    torch.testing.assert_close(
        in_order(classifier.classify(images, CLASSES, templates=templates)), wanted
    )
    # kept features of the last call are not taken for other classes or templates
    other = classifier.classify(images, CLASSES, templates=["a {}"])
    assert (in_order(other) - wanted).abs().max() > 1e-3
    swapped = classifier.classify(images, CLASSES[::-1], templates=["a {}"])
    torch.testing.assert_close(in_order(swapped), in_order(other))


def test_itm_templates_average_logits_and_probabilities(folders: dict[str, Path]) -> None:
    images, templates = pictures(2), ["a {}", "the red {}"]
    matcher = Matcher.open(folders["blip"])
    found = Classifier(matcher.family, "itm").classify(images, CLASSES, templates=templates)
    sentences = [t.format(c) for c in CLASSES for t in templates]
    itm = matcher.match(images, sentences).itm.view(2, 4, 2).mean(-1)
    for i, own in enumerate(found):
        for c in own.top:
            assert c.score == pytest.approx(float(itm[i, CLASSES.index(c.label)]), abs=1e-5)


def test_temperature(folders: dict[str, Path]) -> None:
    images = pictures(2)
    flat, steep = (
        Classifier.open(folders["blip"], temperature=t).classify(images, CLASSES) for t in (1, 0.01)
    )
    for a, b in zip(flat, steep, strict=True):
        assert [c.label for c in a.top] == [c.label for c in b.top]
        assert a.probability < b.probability
        assert a.score == pytest.approx(b.score)
    with pytest.raises(UserError, match="temperature 0: a number above 0"):
        Classifier.open(folders["blip"], temperature=0)


# one class, none of these ------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["cosine", "itm"])
def test_one_class(scoring: str, folders: dict[str, Path]) -> None:
    classifier = Classifier.open(folders["blip"], scoring)
    (found,) = classifier.classify(pictures(1), ["star"])
    assert found.probability == 1.0
    assert found.note == ONE_CLASS
    assert found.label == "star"
    matches = Matcher(classifier.family).match(pictures(1), "a picture of star")
    wanted = matches.itc if scoring == "cosine" else matches.itm
    assert found.score == pytest.approx(wanted.item(), abs=1e-5)
    for threshold, label in ((found.score + 1e-3, None), (found.score - 1e-3, "star")):
        (decided,) = classifier.classify(pictures(1), ["star"], none_threshold=threshold)
        assert decided.label == label


def test_none_of_these_is_decided_by_the_raw_score() -> None:
    scores = [0.1, 0.2]
    for threshold, label in ((None, "b"), (0.2, "b"), (0.2001, None)):
        own = classification(["a", "b"], [0.01, 0.99], scores, threshold, "")
        assert own.label == label
        assert (own.probability, own.score) == (0.99, 0.2)
        assert own.note == ""


def test_thresholds_that_mean_nothing(folders: dict[str, Path]) -> None:
    classifier = Classifier.open(folders["blip"], "itm")
    for threshold in (-0.1, 50):
        with pytest.raises(UserError, match="an ITM probability is between 0 and 1"):
            classifier.classify(pictures(1), CLASSES, none_threshold=threshold)
    with pytest.raises(UserError, match="a cosine is between -1 and 1"):
        Classifier(classifier.family).classify(pictures(1), CLASSES, none_threshold=1.5)


# files -------------------------------------------------------------------------------------------


def test_file_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffstar\n# a comment\n\n blue square \nStar\ntwo\nstar\n", encoding="utf-8")
    found = read_classes(path)
    assert found.classes == ("star", "blue square", "two")
    assert [d.split(": ", 1)[1] for d in found.duplicates] == [
        "'Star' stands in line 1 already",
        "'star' stands in line 1 already",
    ]
    assert "line 5" in found.duplicates[0]
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="no class in it"):
        read_classes(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        read_classes(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_classes(tmp_path / "none.txt")


def test_a_row_a_picture_in_the_csv(folders: dict[str, Path], tmp_path: Path) -> None:
    classifier = Classifier.open(folders["blip"])
    scores = sorted(own.score for own in classifier.classify(pictures(4), CLASSES))
    threshold = sum(scores[1:3]) / 2
    found = classifier.classify(pictures(4), CLASSES, none_threshold=threshold, batch_size=3)
    answers = [(f"b/{i}.png", own) for i, own in enumerate(found)]
    broken = ImageError("a.jpg: not a picture")
    errors = write_csv(tmp_path / "out" / "answers.csv", [("a.jpg", broken), *answers], k=2)
    assert errors == {"a.jpg": "a.jpg: not a picture"}
    with (tmp_path / "out" / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a.jpg", *(f"b/{i}.png" for i in range(4))]
    assert (rows[0]["error"], rows[0]["label"]) == ("a.jpg: not a picture", "")
    for row, own in zip(rows[1:], found, strict=True):
        assert row["label"] == (own.top[0].label if own.score >= threshold else "none of these")
        assert row["class_1"] == own.top[0].label
        assert float(row["probability_2"]) == pytest.approx(own.top[1].probability, abs=1e-6)
        assert float(row["score_1"]) == pytest.approx(own.score, abs=1e-6)
        assert "class_3" not in row
        assert row["error"] == ""
    assert sum(row["label"] == "none of these" for row in rows) == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["answers.csv"]
    with pytest.raises(UserError, match="cannot be written"):
        write_csv(tmp_path / "out", [])


# three lines, refusals, the toy ------------------------------------------------------------------


def test_three_lines(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "dog.png"
    pictures(1)[0].save(path)
    classifier = Classifier.open(folders["blip"])
    (found,) = classifier.classify([path], ["dog", "cat", "horse"])
    assert found.label in {"dog", "cat", "horse"}
    (same,) = Classifier(load_blip(folders["blip"])).classify(path, ["dog", "cat", "horse"])
    assert same == found


def test_bad_input(folders: dict[str, Path]) -> None:
    classifier = Classifier.open(folders["blip"])
    for classes, message in (
        ([], "no class given"),
        (["star", " "], "class 2 of 2 is empty"),
        (["star", "two", "Star "], r"class 3 \(Star\) is the same as class 1"),
        (["star", "!!!"], "class 2 of 2 has no word"),
        (["c#", "c*"], r"classes 1 and 2 \(c#, c\*\) are the same to this model: 'a picture of c'"),
        ("star", "a list of names"),
    ):
        with pytest.raises(UserError, match=message):
            classifier.classify(pictures(1), classes)
    for templates, message in (([], "no template"), (["a star"], "needs {} where")):
        with pytest.raises(UserError, match=message):
            classifier.classify(pictures(1), CLASSES, templates=templates)
    (found,) = classifier.classify(pictures(1), ["star", "two " * 2500])  # 10,000 characters
    assert "1 classes are longer than the model reads" in found.note
    assert found.probability < 1
    with pytest.raises(UserError, match="scoring 'multimodal': cosine"):
        Classifier.open(folders["blip"], "multimodal")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a CLIP has no matching head"):
        Classifier.open(folders["clip"], "itm")


@pytest.mark.parametrize(
    ("kind", "scoring"), [("matching", "cosine"), ("matching", "itm"), ("clip", "cosine")]
)
def test_toy_models_know_the_trained_shapes(kind: str, scoring: str) -> None:
    if not TOY_MODELS[kind].is_dir():
        pytest.skip(f"{TOY_MODELS[kind]} is not trained yet")
    root = ensure_shapes()
    paths = sorted((root / "val").glob("*/*.jpg"))[::3]
    classes = sorted({p.parent.name for p in paths})
    found = Classifier.open(TOY_MODELS[kind], scoring).classify(paths, classes)
    right = sum(own.label == p.parent.name for own, p in zip(found, paths, strict=True))
    assert right / len(paths) >= 0.6
