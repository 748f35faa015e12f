"""Samples, their order by ratio, and what validates."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from lavis_apps.blip import load_blip
from lavis_apps.train import parse
from lavis_apps.training_data import (
    Collator,
    RatioSampler,
    Sample,
    SeenSamples,
    open_training_data,
    weighted_answers,
)
from lavis_apps.training_inputs import BlipInputs
from shared.options import UserError
from tests.tiny_models import tiny_blip

COLORS = ("red", "blue", "green", "yellow")


def coco(root: Path, pictures: int = 4, first: int = 0) -> Path:
    """Both splits: pictures of one colour, two captions and one question each."""
    for split in ("train2014", "val2014"):
        (root / split).mkdir(parents=True)
        rows, asked, answered = [], [], []
        offset = first + (100 if split == "val2014" else 0)
        for i in range(offset, offset + pictures):
            color = COLORS[i % len(COLORS)]
            name = f"COCO_{split}_{i:012d}.jpg"
            Image.new("RGB", (40, 40), color).save(root / split / name)
            for j, text in enumerate((f"a {color} picture.", f"the {color} square")):
                rows.append({"image_id": i, "id": 10 * i + j, "caption": text})
            asked.append(
                {"image_id": i, "question_id": i, "question": "What color is the picture?"}
            )
            answers = [color] * 8 + ["two"] * 2
            answered.append({
                "question_id": i, "image_id": i, "multiple_choice_answer": color,
                "question_type": "what", "answer_type": "other",
                "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(answers, start=1)],
            })  # fmt: skip
        files = {
            f"captions_{split}.json": {"annotations": rows},
            f"v2_OpenEnded_mscoco_{split}_questions.json": {"questions": asked},
            f"v2_mscoco_{split}_annotations.json": {"annotations": answered},
        }
        for name, content in files.items():
            (root / name).write_text(json.dumps(content))
    return root


def options_of(task: str, *roots: Path, more: tuple[str, ...] = ()):
    names = [str(root) for root in roots]
    return parse(["--task", task, "--model", "none", "--data_root", *names, *more])[0]


def test_a_caption_each_or_a_picture_each(tmp_path):
    root = coco(tmp_path / "coco")
    apart = open_training_data(options_of("retrieval", root), 0)
    assert [s.texts for s in apart.samples[:2]] == [("a red picture.",), ("the red square",)]
    assert len(apart.samples) == 8
    assert apart.samples[0].picture == apart.samples[1].picture != apart.samples[2].picture
    together = options_of("caption", root, more=("--texts_per_picture", "5"))
    data = open_training_data(together, 0)
    assert [len(s.texts) for s in data.samples] == [2] * 4
    assert data.held_out_name == "coco_val2014"
    assert len(data.held_out) == 4


def test_questions_have_their_answers_by_share(tmp_path):
    data = open_training_data(options_of("vqa", coco(tmp_path / "coco")), 0)
    assert data.samples[0].texts == ("What color is the picture?",)
    assert data.samples[0].answers == ((("red", 0.8), ("two", 0.2)),)
    assert weighted_answers(["yes", " yes", "no", " "]) == (
        ("yes", pytest.approx(2 / 3)),
        ("no", pytest.approx(1 / 3)),
    )


def test_a_validation_picture_is_never_learned_from(tmp_path, monkeypatch):
    root = coco(tmp_path / "coco")
    monkeypatch.chdir(tmp_path)
    other = ("--train_splits", "val2014", "--validation_root", "coco")  # the same, spelled anew
    with pytest.raises(UserError, match="4 pictures of the validation split are learned from"):
        open_training_data(options_of("caption", root, more=other), 0)
    more = ("--train_splits", "train2014", "val2014")
    with pytest.raises(UserError, match="4 pictures of the validation split are learned from"):
        open_training_data(options_of("caption", root, more=more), 0)
    none = options_of("caption", root, more=(*more, "--validation_split", "none"))
    data = open_training_data(none, 0)
    assert (len(data.samples), data.held_out, data.held_out_name) == (16, [], None)


def test_roots_with_other_classes_are_refused(tmp_path):
    for root, name in (("a", "cat"), ("b", "dog")):
        for split in ("train", "val"):
            (tmp_path / root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / root / split / name / "0.png")
    with pytest.raises(UserError, match="b: other classes than the first --data_root's"):
        open_training_data(options_of("classification", tmp_path / "a", tmp_path / "b"), 0)
    data = open_training_data(options_of("classification", tmp_path / "b"), 0)
    assert (data.classes, data.samples[0].label) == (("dog",), 0)


# Order


def epoch_of(sampler: RatioSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_without_weights_every_sample_once_an_epoch():
    sampler = RatioSampler([3, 5], None, seed=1)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert sorted(first) == list(range(8))
    assert sorted(i - 8 for i in second) == list(range(8))  # the epoch is in the number
    assert [i - 8 for i in second] != first
    assert epoch_of(sampler, 0) == first
    assert epoch_of(RatioSampler([3, 5], None, seed=2), 0) != first


def test_roots_are_drawn_by_their_weights():
    """3 and 9 samples at 2 : 1: of an epoch's 12, eight are of the first root, each of it drawn
    twice before one is drawn a third time."""
    order = epoch_of(RatioSampler([3, 9], [2.0, 1.0], seed=0), 0)
    small = Counter(i for i in order if i < 3)
    assert len(order) == 12
    assert sum(small.values()) == 8
    assert sorted(small.values()) == [2, 3, 3]
    assert max(Counter(i for i in order if i >= 3).values()) == 1
    assert order != sorted(order)


# Batches


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> BlipInputs:
    return BlipInputs(load_blip(tiny_blip("caption", tmp_path_factory.mktemp("b")), device="cpu"))


def test_a_broken_picture_is_left_out_and_named(inputs, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    samples = [Sample(n, tmp_path / f"{n}.png", i, ("a star",)) for i, n in
               enumerate(("bad", "good"))]  # fmt: skip
    collator = Collator(options_of("caption", tmp_path), inputs)
    seen = SeenSamples(samples, 0)
    batch = collator([seen[0], seen[1]])
    assert batch["sample_ids"] == ["good"]
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert "bad.png" in batch["skipped"][0]
    alone = collator([seen[0]])
    assert (alone["sample_ids"], alone["labels"].numel()) == ([], 0)


@pytest.mark.parametrize("augment", ["crop", "randaugment"])
def test_augmentation_follows_seed_and_epoch(inputs, tmp_path, augment):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 80, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    samples = [Sample("a", tmp_path / "a.png", 0, ("a star",))]
    options = options_of("caption", tmp_path, more=("--augment", augment))
    collator = Collator(options, inputs)

    def seen(seed: int, epoch: int) -> torch.Tensor:
        return collator([SeenSamples(samples, seed)[epoch]])["pixel_values"]

    assert torch.equal(seen(0, 3), seen(0, 3))
    assert not torch.equal(seen(0, 3), seen(0, 4))
    assert not torch.equal(seen(0, 3), seen(1, 3))


def test_long_captions_are_cut_in_front_of_their_end(inputs):
    collator = Collator(options_of("caption", Path("unread")), inputs)
    batch = collator.decoded(["star " * 80], "a picture of ")
    assert batch["input_ids"].shape == (1, 40)  # BLIP's most
    assert batch["input_ids"][0, -1] == inputs.end_id == batch["labels"][0, -1]
